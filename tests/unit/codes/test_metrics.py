from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap, spearmanr
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.util import cos_sim

from st_dimreduce.codes.metrics import Mean, RankCorrelation, cosines, difference, interval, nearest, retrieval

RNG = np.random.default_rng(0)
DOCUMENTS = RNG.standard_normal((300, 16)).astype(np.float32)
QUERIES = RNG.standard_normal((40, 16)).astype(np.float32)


class Rows(InformationRetrievalEvaluator):
    """The stock evaluator over embeddings that exist."""

    def embed_inputs(self, model, sentences, encode_fn_name=None, **_):
        return model[encode_fn_name][[int(sentence) for sentence in sentences]]


def test_means_are_those_of_the_stock_evaluator():
    relevant = [set(RNG.choice(300, size, replace=False).tolist()) for size in RNG.integers(0, 15, size=40)]
    assert set() in relevant
    ndcg, recall = retrieval(nearest(QUERIES, DOCUMENTS), relevant)
    evaluator = Rows(
        {str(row): str(row) for row in range(40)},
        {str(row): str(row) for row in range(300)},
        {str(row): {str(answer) for answer in rows} for row, rows in enumerate(relevant)},
        precision_recall_at_k=[10],
        score_functions={"cosine": cos_sim},
    )
    # The evaluator asks only what has an answer, the rows left are numbered by its own texts.
    theirs = evaluator.compute_all_metrics(
        {"query": torch.from_numpy(QUERIES), "document": torch.from_numpy(DOCUMENTS)}
    )["cosine"]
    assert (Mean(ndcg).value, Mean(recall).value) == pytest.approx((theirs["ndcg@k"][10], theirs["recall@k"][10]))
    assert np.isnan(ndcg[relevant.index(set())])


def test_grades_are_the_gains():
    found = np.array([[4, 1, 7, 2]])
    ndcg, recall = retrieval(found, [{1: 3, 2: 1, 9: 2, 4: 0, 7: -1}])
    log = np.log2
    assert ndcg[0] == pytest.approx((3 / log(3) + 1 / log(5)) / (3 / log(2) + 2 / log(3) + 1 / log(4)))
    assert recall[0] == pytest.approx(2 / 3)
    assert np.isnan(retrieval(found, [{4: 0}])[0][0]), "nothing is relevant"
    assert retrieval(found, [{4: 1, 1: 1}])[0] == retrieval(found, [{4, 1}])[0] == 1


@pytest.mark.component("mteb")  # which needs it
def test_graded_ndcg_is_that_of_trec_eval():
    import pytrec_eval

    relevant = [
        dict(zip(RNG.choice(300, size, replace=False).tolist(), RNG.integers(-1, 4, size).tolist(), strict=True))
        for size in RNG.integers(1, 40, size=40)
    ]
    found = nearest(QUERIES, DOCUMENTS)
    qrels = {str(query): {str(row): grade for row, grade in rows.items()} for query, rows in enumerate(relevant)}
    run = {str(query): {str(row): -float(place) for place, row in enumerate(rows)} for query, rows in enumerate(found)}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.10"}).evaluate(run)
    ndcg, recall = retrieval(found, relevant)
    asked = [query for query, rows in enumerate(relevant) if max(rows.values()) > 0]
    assert len(asked) > 20
    for query in asked:
        assert ndcg[query] == pytest.approx(theirs[str(query)]["ndcg_cut_10"])
        assert recall[query] == pytest.approx(theirs[str(query)]["recall_10"])
    assert ndcg[asked].max() > 0


def test_nearest_is_a_full_sort_without_the_own_row():
    scores = cos_sim(DOCUMENTS, DOCUMENTS).numpy()
    assert np.array_equal(nearest(DOCUMENTS, DOCUMENTS), np.argsort(-scores, axis=1)[:, :10])
    own = np.arange(20, 300)
    np.fill_diagonal(scores, -np.inf)
    assert np.array_equal(nearest(DOCUMENTS[own], DOCUMENTS, own), np.argsort(-scores, axis=1)[own, :10])
    assert nearest(DOCUMENTS[:4], DOCUMENTS[:4], np.arange(4)).shape == (4, 3)


def test_among_equal_documents_none_is_found_by_itself():
    equal = np.ones((30, 4), np.float32)
    found = nearest(equal, equal, np.arange(30))
    assert found.shape == (30, 10)
    assert not (found == np.arange(30)[:, None]).any()


def test_cosines_are_of_the_same_rows():
    expected = cos_sim(QUERIES, DOCUMENTS[:40]).numpy().diagonal()
    assert cosines(QUERIES, DOCUMENTS[:40]) == pytest.approx(expected, abs=1e-6)
    assert cosines(np.zeros((1, 16), np.float32), DOCUMENTS[:1]) == [0]


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


def test_a_difference_is_of_the_same_queries():
    noise, base = RNG.random(200), RNG.random(200)
    low, high = difference(Mean(base + 0.01 * noise), Mean(base))
    assert 0.004 < low < high < 0.006  # the spread of the base itself, 0.02, cancels out
    assert difference(Mean(base), Mean(base)) == (0, 0)


def test_the_correlation_of_several_runs_is_the_mean_of_theirs():
    true = RNG.standard_normal(100)
    runs = true + RNG.standard_normal((3, 100))
    each = [RankCorrelation(run, true) for run in runs]
    assert RankCorrelation(runs, true).value == pytest.approx(np.mean([one.value for one in each]))
    low, high = interval(RankCorrelation(runs, true))
    assert low < RankCorrelation(runs, true).value < high


def test_pairs_are_ranked_within_their_group():
    true = RNG.standard_normal(100)
    group = np.arange(100) % 2
    shifted = true + 100 * group
    assert RankCorrelation(shifted, true).value < 0.8
    assert RankCorrelation(shifted, true, group).value == pytest.approx(1)
