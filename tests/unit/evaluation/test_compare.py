from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from st_dimreduce import Precision, compare, reduce_model
from st_dimreduce.cli.tables import comparison_table
from st_dimreduce.evaluation.compare import compare_embeddings, compare_models
from st_dimreduce.evaluation.embeddings import Embedded, Stored
from st_dimreduce.texts import Question
from tests.helpers.tiny import SENTENCES

RNG = np.random.default_rng(0)
DOCUMENTS = RNG.standard_normal((300, 16)).astype(np.float32)
QUERIES = RNG.standard_normal((40, 16)).astype(np.float32)


def ndcg_by_hand(queries, documents, relevant):
    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    ranked = np.argsort(-(unit(queries) @ unit(documents).T), axis=1)[:, :10]
    gains = [[row in answers for row in top] for top, answers in zip(ranked, relevant, strict=True)]
    discounts = 1 / np.log2(np.arange(2, 12))
    ideal = [discounts[: len(answers)].sum() for answers in relevant]
    ndcg = np.mean([(np.array(gain) * discounts).sum() / best for gain, best in zip(gains, ideal, strict=True)])
    recall = np.mean([sum(gain) / len(answers) for gain, answers in zip(gains, relevant, strict=True)])
    return ndcg, recall


def test_labelled_metrics_match_the_definition():
    relevant = [set(RNG.choice(300, 3, replace=False).tolist()) for _ in QUERIES]
    queries = np.array([DOCUMENTS[list(rows)].mean(axis=0) for rows in relevant])
    row = compare_embeddings(Embedded(queries, DOCUMENTS), [], relevant).rows[0]
    assert (row.ndcg, row.recall) == pytest.approx(ndcg_by_hand(queries, DOCUMENTS, relevant))
    assert 0.5 < row.ndcg < 1


def test_the_base_model_agrees_with_itself_and_noise_does_not():
    noise = Embedded(RNG.standard_normal((40, 4)).astype(np.float32), RNG.standard_normal((300, 4)).astype(np.float32))
    full = Embedded(QUERIES, DOCUMENTS)
    base, same, other = compare_embeddings(full, [Stored("same", full), Stored("noise", noise)]).rows
    assert base.overlap == same.overlap == 1
    assert base.spearman == pytest.approx(1)
    assert other.overlap < 0.2
    assert abs(other.spearman) < 0.1
    assert base.ndcg is None


def test_documents_search_the_others_but_never_find_themselves():
    twins = np.repeat(np.eye(12, dtype=np.float32), 2, axis=0)
    shuffled = twins[::-1].copy()
    rows = compare_embeddings(Embedded(None, twins), [Stored("flipped", Embedded(None, shuffled))]).rows
    assert rows[1].overlap == 1


def test_coarser_storage_is_smaller_and_less_faithful():
    full = Embedded(QUERIES, DOCUMENTS)
    rows = compare_embeddings(full, [Stored(p.value, full, p) for p in Precision]).rows[1:]
    assert [row.bytes_per_vector for row in rows] == [64, 16, 8, 4, 2]
    overlaps = [row.overlap for row in rows]
    assert overlaps == sorted(overlaps, reverse=True)
    assert overlaps[1] > 0.95 > overlaps[-1]


def test_compare_models(tiny):
    reduced = reduce_model(tiny, SENTENCES, 16)
    comparison = compare(tiny, reduced, SENTENCES, SENTENCES[:20], range(20), precision="int8")
    base, small = comparison.rows
    assert (base.dimensions, small.dimensions, small.bytes_per_vector) == (32, 16, 16)
    assert (comparison.documents, comparison.queries) == (len(SENTENCES), 20)
    assert base.recall == pytest.approx(1)
    assert base.seconds > 0
    assert json.loads(json.dumps(comparison.to_dict()))["rows"][1]["precision"] == "int8"
    table = comparison_table(comparison, "title")
    assert table.row_count == 2
    without_labels = comparison_table(compare(tiny, reduced, SENTENCES), "title")
    assert len(table.columns) == len(without_labels.columns) + 2, "nDCG and retention"


def test_several_relevant_documents_and_prompts(tiny):
    tiny.prompts = {"query": "query : ", "document": "document : "}
    comparison = compare(tiny, tiny, SENTENCES, SENTENCES[:4], [[0, 1], {2}, 3, (4, 5)])
    assert comparison.rows[0].ndcg == comparison.rows[1].ndcg


def test_several_models_precisions_scored_pairs_and_peers(tiny):
    models = {"sixteen": reduce_model(tiny, SENTENCES, 16), "eight": reduce_model(tiny, SENTENCES, 8)}
    pairs = [(SENTENCES[i], SENTENCES[i + 1], float(i % 5)) for i in range(30)]
    precisions = ["float32", "binary"]
    alone = compare(tiny, models, pairs=pairs, precision=precisions)
    texts = list(dict.fromkeys(text for one, other, _ in pairs for text in (one, other)))
    comparison = compare_models(tiny, models, Question(texts, scored_pairs=pairs), precisions, with_peers=True)
    assert [row.sts for row in comparison.rows[:5]] == [row.sts for row in alone.rows]
    assert comparison.metric == "sts"
    names = [(row.name, row.precision) for row in comparison.rows[1:5]]
    assert names == [(name, p) for name in models for p in ("float32", "binary")]
    assert comparison.documents == len(texts)
    vectors = tiny.encode(texts)
    rows = [(texts.index(one), texts.index(other)) for one, other, _ in pairs]
    expected = spearmanr([vectors[a] @ vectors[b] for a, b in rows], [score for *_, score in pairs]).statistic
    assert comparison.rows[0].sts == pytest.approx(expected, abs=1e-3)
    for row in comparison.rows:
        low, high = row.intervals["sts"]
        assert low <= row.sts <= high
        assert low < high or row.sts == 0
        assert row.retention == pytest.approx(row.sts / expected, abs=1e-2)
    peers = {(row.name, row.bytes_per_vector) for row in comparison.rows[5:]}
    assert {("binary", 4), ("truncation", 1), ("truncation", 2)} <= peers


def test_the_queries_that_lost_most_come_first():
    relevant = [{row} for row in range(40)]
    queries = DOCUMENTS[:40].copy()
    hurt = queries.copy()
    hurt[[3, 7]] *= -1
    noisy = Stored("hurt", Embedded(hurt, DOCUMENTS))
    comparison = compare_embeddings(Embedded(queries, DOCUMENTS), [noisy], relevant)
    assert comparison.hurt[0] == []
    assert [(one.query, one.change) for one in comparison.hurt[1]] == [(3, -1.0), (7, -1.0)]
    assert comparison.hurt[1][0].before[0] == 3
    assert 3 not in comparison.hurt[1][0].after[:10]
    assert comparison.helped == [[], []]
    assert comparison.rows[1].retention == pytest.approx(38 / 40)
    own = compare_embeddings(Embedded(None, DOCUMENTS), [Stored("other", Embedded(None, DOCUMENTS[::-1].copy()))])
    assert len(own.hurt[1]) == 10
    assert own.metric == "overlap"
    losses = [one.change for one in own.hurt[1]]
    assert losses == sorted(losses)
    assert losses[0] < own.rows[1].overlap - 1 < 0, "the mean change"
    assert own.helped == [[], []], "no overlap exceeds the base model's with itself"


def test_the_queries_that_gained_most_and_how_deep_their_documents_were():
    queries = DOCUMENTS[:40].copy()
    queries[[3, 7]] *= -1
    better = Stored("better", Embedded(DOCUMENTS[:40], DOCUMENTS))
    comparison = compare_embeddings(Embedded(queries, DOCUMENTS), [better], [{row} for row in range(39)] + [set()])
    assert [(one.query, one.change) for one in comparison.helped[1]] == [(3, 1.0), (7, 1.0)]
    assert comparison.hurt[1] == []
    assert comparison.rows[1].ndcg == 1, "a query with nothing to find does not count"
    assert len(comparison.helped[1][0].before) == min(100, len(DOCUMENTS))


def test_the_dict_contains_no_text(tiny):
    words = json.dumps(compare(tiny, tiny, SENTENCES, precision="binary").to_dict())
    assert not any(text in words for text in SENTENCES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": [("a", "b")]}, r"pair 0 is \('a', 'b'\): expected two texts and how similar they are"),
        ({"pairs": [("a", "b", float("nan"))]}, "pair 0 is .*: expected two texts and how similar"),
        ({"pairs": [("a", "b", 1.0), ("a", "c", 1.0)]}, "2 pairs without two different scores"),
        ({"texts": SENTENCES[:1]}, "1 texts to search: give at least 2"),
        ({"queries": []}, "queries is empty"),
        ({"relevant": [0]}, "relevant has 1 entries for no queries"),
        ({"queries": SENTENCES[:2], "relevant": [0]}, "relevant has 1 entries for 2 queries"),
        (
            {"queries": SENTENCES[:2], "relevant": [0, 999]},
            r"relevant names \[999\]: expected rows of texts, 0 to 127",
        ),
        ({"queries": SENTENCES[:2], "relevant": [[], []]}, "relevant names no rows"),
        ({"precision": "int3"}, "unknown precision 'int3'"),
    ],
)
def test_bad_input(tiny, arguments, message):
    with pytest.raises(ValueError, match=message):
        compare(tiny, tiny, **{"texts": SENTENCES, **arguments})
