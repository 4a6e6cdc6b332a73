from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap, spearmanr
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.util import cos_sim

from st_dimreduce.evaluation.metrics import Mean, RankCorrelation, interval, labelled, nearest

RNG = np.random.default_rng(0)
DOCUMENTS = torch.from_numpy(RNG.standard_normal((300, 16)).astype(np.float32))
QUERIES = torch.from_numpy(RNG.standard_normal((40, 16)).astype(np.float32))


class Rows(InformationRetrievalEvaluator):
    """The stock evaluator over embeddings that exist."""

    def embed_inputs(self, model, sentences, encode_fn_name=None, **_):
        return model[encode_fn_name][[int(sentence) for sentence in sentences]]


def test_means_are_those_of_the_stock_evaluator():
    relevant = [set(RNG.choice(300, size, replace=False).tolist()) for size in RNG.integers(0, 15, size=40)]
    assert set() in relevant
    ndcg, recall = labelled(nearest(QUERIES, DOCUMENTS, None), relevant)
    evaluator = Rows(
        {str(row): str(row) for row in range(40)},
        {str(row): str(row) for row in range(300)},
        {str(row): {str(answer) for answer in rows} for row, rows in enumerate(relevant)},
        precision_recall_at_k=[10],
        score_functions={"cosine": cos_sim},
    )
    # The evaluator asks only what has an answer, the rows left are numbered by its own texts.
    theirs = evaluator.compute_all_metrics({"query": QUERIES, "document": DOCUMENTS})["cosine"]
    assert (Mean(ndcg).value, Mean(recall).value) == pytest.approx((theirs["ndcg@k"][10], theirs["recall@k"][10]))
    assert np.isnan(ndcg[relevant.index(set())])


def test_nearest_in_blocks_is_nearest_in_one(monkeypatch):
    whole = nearest(DOCUMENTS, DOCUMENTS, np.arange(300))
    monkeypatch.setattr("st_dimreduce.evaluation.metrics._BLOCK", 1000)
    assert np.array_equal(nearest(DOCUMENTS, DOCUMENTS, np.arange(300)), whole)
    assert not (whole == np.arange(300)[:, None]).any()
    assert nearest(DOCUMENTS[:4], DOCUMENTS[:4], np.arange(4)).shape == (4, 3)


def test_the_interval_of_a_mean_is_scipys():
    values = RNG.random(200)
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=1000, rng=1).confidence_interval
    assert interval(Mean(values)) == pytest.approx(tuple(theirs), abs=0.01)
    assert interval(Mean(values)) == interval(Mean(values))


def test_the_interval_of_a_share_is_that_of_the_same_queries():
    base = RNG.random(200) + 0.1
    low, high = interval(Mean(0.9 * base), Mean(base))
    assert (low, high) == pytest.approx((0.9, 0.9))
    low, high = interval(Mean(base[::-1].copy()), Mean(base))
    assert low < 1 < high


def test_rank_correlation_is_spearmans_and_covers_the_truth():
    given = RNG.standard_normal(300)
    true = np.round(given + RNG.standard_normal(300))
    correlation = RankCorrelation(given, true)
    assert correlation.value == pytest.approx(spearmanr(given, true).statistic)

    def resampled(one, other):
        return spearmanr(one, other).statistic

    theirs = bootstrap((given, true), resampled, paired=True, method="percentile", n_resamples=300, rng=1)
    assert interval(correlation) == pytest.approx(tuple(theirs.confidence_interval), abs=0.03)
    assert RankCorrelation(given, np.ones(300)).value == 0
