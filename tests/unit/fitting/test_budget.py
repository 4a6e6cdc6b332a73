from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from st_dimreduce import Head, Pairs, Precision, Size, Summary
from st_dimreduce.codes.precision import dequantize, quantize
from st_dimreduce.codes.stores import columns_of
from st_dimreduce.enums import Store
from st_dimreduce.fitting import closed_form
from st_dimreduce.fitting.budget import choose
from st_dimreduce.fitting.closed_form import closed_form_head
from st_dimreduce.fitting.contrastive import _loss, contrast_head
from st_dimreduce.fitting.distillation import distill_head
from st_dimreduce.fitting.fit import fit_head

RNG = np.random.default_rng(0)
SPREAD = np.linspace(2, 0.3, 32)
X = (RNG.standard_normal((3000, 32)) * SPREAD).astype(np.float32)
SUMMARY = Summary.of(X)
PAIRS = Pairs(X[:600] + 0.4 * RNG.standard_normal((600, 32)), X[:600])


def shares(choice):
    return {(option.out_features, option.precision): option.retention for option in choice.measured}


@pytest.mark.parametrize("budget", [1, 4, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("pairs", [None, PAIRS])
def test_the_best_option_within_the_budget_is_taken(budget, pairs):
    choice = choose(SUMMARY, Size(bytes=budget), pairs=pairs)
    assert choice.best.bytes_per_vector <= budget
    assert choice.best.bytes_per_vector == Precision(choice.best.precision).bytes_per_vector(choice.best.out_features)
    assert choice.best.retention == max(shares(choice).values())
    assert choice.metric == ("overlap@10" if pairs is None else "nDCG@10")
    assert json.loads(json.dumps(choice.to_dict()))["best"] in choice.to_dict()["measured"]


def test_the_full_vector_keeps_everything():
    choice = choose(SUMMARY, Size(bytes=128), objective="fidelity")
    assert shares(choice)[32, "float32"] == pytest.approx(1, abs=1e-3)


def test_more_bytes_keep_more():
    kept = [choose(SUMMARY, Size(bytes=budget), objective="fidelity").best.retention for budget in (2, 4, 8, 16, 32)]
    assert kept == sorted(kept)
    assert kept[0] < 0.5
    assert kept[-1] > 0.9


def test_keep_takes_the_smallest_that_does():
    choice = choose(SUMMARY, Size(keep=0.8), objective="fidelity")
    assert choice.best.retention >= 0.8
    assert all(
        option.retention < 0.8 for option in choice.measured if option.bytes_per_vector < choice.best.bytes_per_vector
    )


def test_a_share_that_no_option_keeps_warns():
    with pytest.warns(UserWarning, match="nothing keeps 100.0% of the overlap@10: the best keeps"):
        choice = choose(SUMMARY, Size(keep=1.0, precision="int8"))
    assert choice.best.retention == max(shares(choice).values())
    assert not choice.best.keeps(1.0)


def test_keep_goes_by_the_lower_end_of_the_interval():
    choice = choose(SUMMARY, Size(keep=0.8), objective="fidelity")
    assert 0.8 <= choice.best.low < choice.best.retention
    asked = choice.best.retention - 1e-9
    assert choose(SUMMARY, Size(keep=asked), objective="fidelity").best.bytes_per_vector > choice.best.bytes_per_vector


def test_keep_takes_the_directions_of_fidelity_where_those_of_quality_do_not_keep_it():
    choice = choose(SUMMARY, Size(keep=1.0))
    assert choice.strength == 0
    assert choice.best.keeps(1.0)


def by_type(choice):
    return {(option.out_features, option.column): option for option in choice.measured}


@pytest.mark.parametrize("store", ["pgvector", "elasticsearch", "chroma", "qdrant", "faiss"])
@pytest.mark.parametrize("budget", [4, 24])
def test_a_store_gets_what_it_searches(store, budget):
    choice = choose(SUMMARY, Size(bytes=budget, store=store), pairs=PAIRS)
    assert choice.store == store
    columns = {column.precision.value: column for column in columns_of(Store(store))}
    assert {option.precision for option in choice.measured} == columns.keys()
    for option in choice.measured:
        assert option.column == columns[option.precision].type
        assert option.bytes_per_vector == columns[option.precision].bytes_per_vector(option.out_features) <= budget
    assert choice.best.retention == max(option.retention for option in choice.measured)


def test_floats_of_16_bits_take_two_bytes_per_dimension():
    choice = choose(SUMMARY, Size(bytes=24, store="pgvector"), objective="fidelity")
    assert by_type(choice)[12, "halfvec"].bytes_per_vector == 24
    assert (
        by_type(choice)[12, "halfvec"].retention
        == choose(SUMMARY, Size(bytes=48, store="chroma"), objective="fidelity").best.retention
    )


def test_a_store_that_compares_bits_with_bits_is_measured_so():
    """Float queries find more in the same bits."""
    bits = choose(SUMMARY, Size(bytes=4, store="pgvector"), objective="fidelity")
    floats = choose(SUMMARY, Size(bytes=4, store="faiss"), objective="fidelity")
    assert by_type(bits)[32, "bit"].retention < by_type(floats)[32, "Index"].retention - 0.05


def test_keep_measures_what_more_bytes_do_not_improve_once():
    choice = choose(SUMMARY, Size(keep=0.9, store="pgvector"), objective="fidelity")
    assert len(by_type(choice)) == len(choice.measured)
    assert choice.best.retention >= 0.9
    assert choice.best.column == "halfvec"


def test_a_limit_of_the_store_is_respected(monkeypatch):
    halves = replace(columns_of(Store.PGVECTOR)[0], most=10)
    monkeypatch.setattr("st_dimreduce.fitting.budget.columns_of", lambda store: (halves,))
    [option] = choose(SUMMARY, Size(bytes=100, store="pgvector")).measured
    assert option.out_features == 10


def test_a_head_knows_what_its_store_holds():
    head = fit_head(SUMMARY, Size(bytes=4, store="pgvector"), cloze_pairs=PAIRS)
    assert (head.out_features, head.precision) == (32, Precision.BINARY)
    assert (head.record.choice["store"], head.record.choice["best"]["column"]) == ("pgvector", "bit")
    assert Head.fit(X, Size(keep=0.5, store="chroma"), objective="fidelity").precision is Precision.FLOAT32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bytes": 8, "store": "pinecone"}, "unknown store 'pinecone': choose from faiss, qdrant, pgvector"),
        ({"store": "pgvector"}, "store='pgvector' is for choosing a precision: give bytes"),
        ({"dim": 8, "store": "pgvector"}, "store='pgvector' is for choosing a precision"),
        ({"nested": (8, 16), "store": "pgvector"}, "store='pgvector' is for choosing a precision"),
    ],
)
def test_bad_stores(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        Size(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bytes": 3, "store": "chroma"}, "bytes=3: one dimension takes 4 in chroma"),
        ({"bytes": 3, "store": "nothing"}, "unknown store 'nothing'"),
        ({"bytes": 8, "keep": 0.9}, "bytes and keep were given: give exactly one of dim .--dim., bytes"),
        ({"bytes": 0}, "bytes=0: choose a budget of at least 1"),
        ({"bytes": 129}, "bytes=129: choose 1 to 128, what the full float32 vector takes"),
        ({"keep": 0}, "keep=0: choose a share greater than 0"),
        ({"keep": 1.1}, "keep=1.1: choose a share"),
    ],
)
def test_bad_budgets(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        choose(SUMMARY, Size(**arguments))
    assert "\n" not in str(error.value)


def test_an_unknown_objective():
    with pytest.raises(ValueError, match="unknown objective 'speed': choose from quality, fidelity"):
        choose(SUMMARY, Size(keep=0.9), objective="speed")


def test_too_few_vectors_to_choose_by():
    with pytest.raises(ValueError, match="59 vectors are too few to hold any out for a choice: give 60"):
        choose(Summary.of(X[:59]), Size(bytes=8))


def overlap(head, precision="float32"):
    full = X / np.linalg.norm(X, axis=1, keepdims=True)
    small = head.transform(X)
    stored = dequantize(quantize(small, precision), precision, head.out_features)
    tops = [np.argsort(-scores, axis=1)[:, 1:11] for scores in (full[:300] @ full.T, small[:300] @ stored.T)]
    return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*map(np.ndarray.tolist, tops), strict=True)])


@pytest.mark.parametrize("precision", ["float32", "int2"])
def test_distillation_finds_more_of_the_base_models_neighbours(precision):
    start = closed_form_head(SUMMARY, 16, whitening=0.5)
    before = start.weight.copy()
    taught = distill_head(start, SUMMARY, precision=precision)
    assert overlap(taught, precision) > overlap(start, precision) + 0.01
    assert np.array_equal(start.weight, before)
    assert taught.record.distilled_steps > 0
    gains = [np.sqrt(((SUMMARY.sample @ h.weight.T) ** 2).mean()) for h in (start, taught)]
    assert gains[1] == pytest.approx(gains[0], rel=0.3)


def test_training_never_returns_worse_than_it_was_given():
    start = closed_form_head(SUMMARY, 8, strength=0)
    ruined = distill_head(start, SUMMARY, learning_rate=100.0, steps=25)
    assert ruined.record.distilled_steps == 0
    assert np.allclose(ruined.weight, start.weight, rtol=1e-5)
    assert contrast_head(start, PAIRS, learning_rate=100.0, steps=25).record.trained_steps == 0


def test_labelled_pairs_teach_what_belongs_together():
    # What matters is in the quiet half of the dimensions: nothing but labels can tell.
    loud, quiet = 1.5 * RNG.standard_normal((2, 1000, 32)), RNG.standard_normal((1000, 32))
    loud[..., 16:], quiet[:, :16] = 0, 0
    train, test = (Pairs((loud[0] + quiet)[rows], (loud[1] + quiet)[rows]) for rows in (slice(700), slice(700, None)))
    start = closed_form_head(Summary.of(np.concatenate([train.queries, train.documents])), 16, strength=0)
    before = start.weight.copy()

    def found(head):
        queries, documents = (head.transform(rows) for rows in (test.queries, test.documents))
        return ((queries @ documents.T).argmax(axis=1) == np.arange(300)).mean()

    taught = contrast_head(start, train, learning_rate=0.02)
    assert found(start) < 0.1
    assert found(taught) > 0.9
    assert np.array_equal(start.weight, before)
    again = [contrast_head(start, train, steps=5, seed=1).weight for _ in range(2)]
    assert np.array_equal(*again)


def test_too_little_to_train_on_warns():
    head = fit_head(SUMMARY, 8)
    with pytest.warns(UserWarning, match="63 vectors are too few to distil from, 64 are needed"):
        assert distill_head(head, Summary.of(X[:63])) is head
    with pytest.warns(UserWarning, match="31 pairs are too few to train on, 32 are needed"):
        assert contrast_head(head, Pairs(PAIRS.queries[:31], PAIRS.documents[:31])) is head
    with pytest.raises(ValueError, match="pairs of 4 dimensions for a head of 32"):
        contrast_head(head, Pairs(np.eye(4), np.eye(4)))
    with pytest.raises(ValueError, match="a summary of 4 dimensions for a head of 32"):
        distill_head(head, Summary.of(np.eye(4)))


def test_a_negative_is_pushed_away():
    # A quiet mark tells right from wrong: among other subjects it is of no use.
    subject, mark = RNG.standard_normal((1000, 32)), np.zeros(32)
    subject[:, 24:], mark[24:] = 0, 0.3
    right, wrong = subject + mark * RNG.choice([-1, 1], (1000, 1)), subject.copy()
    wrong[:, 24:] = -right[:, 24:]
    queries = subject + 0.5 * (right - subject)
    summary = Summary.of(np.concatenate([queries, right, wrong]))
    start = closed_form_head(summary, 8, strength=0)

    def told_apart(head):
        reduced = [head.transform(rows) for rows in (queries, right, wrong)]
        return float(((reduced[0] * reduced[1]).sum(axis=1) - (reduced[0] * reduced[2]).sum(axis=1)).mean())

    without = contrast_head(start, Pairs(queries[:800], right[:800]), steps=100)
    taught = contrast_head(start, Pairs(queries[:800], right[:800], wrong[:800]), steps=100)
    assert told_apart(taught) > 0.005 > 2 * abs(told_apart(without))


def test_a_document_that_answers_twice_is_no_wrong_answer(recwarn):
    rows = X[:200] / np.linalg.norm(X[:200], axis=1, keepdims=True)
    documents = np.repeat(rows[:100], 2, axis=0)
    doubled = contrast_head(fit_head(SUMMARY, 8), Pairs(documents + 0.1 * rows, documents), steps=25)
    assert np.isfinite(doubled.weight).all()
    loss = _loss(Pairs(documents, documents), Precision.FLOAT32, lambda: torch.arange(2))
    assert loss(torch.eye(32)) == 0, "two pairs alike have nothing to tell apart"


def test_training_serves_every_nested_size():
    def nearest(weight, size):
        queries, documents = (rows @ weight[:size].T for rows in (PAIRS.queries, PAIRS.documents))
        scores = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ documents.T
        return ((scores / np.linalg.norm(documents, axis=1)).argmax(axis=1) == np.arange(600)).mean()

    start = fit_head(SUMMARY, Size(nested=(4, 16)))
    taught = contrast_head(start, PAIRS, steps=100)
    assert taught.record.nested == (4, 16)
    found = [[nearest(head.weight, size) for size in (4, 16)] for head in (start, taught)]
    assert found[1][0] > found[0][0] + 0.02
    assert found[1][1] > 0.99


def retention_by_definition(summary, size, precision, objective, pairs, seed):
    """What a head fitted on the rest keeps of what the full vectors of held-out queries find, written out."""
    sample, paired = summary.sample, None
    if pairs is None:
        count = min(500, len(sample) // 4)
        queries, documents = sample[:count], sample[count:]
        fitted = Summary.of(documents)
    else:
        paired, unseen = pairs.split(1 / 3, seed)
        nearest = (unseen.documents @ sample.T).argmax(axis=1)
        others = np.delete(sample, np.unique(nearest), axis=0)
        queries, documents, fitted = unseen.queries, np.concatenate([unseen.documents, others]), summary
    strength = 1 if objective == "quality" else 0
    head = closed_form_head(fitted, size, cloze_pairs=paired, strength=strength, rotation="random", seed=seed)
    stored = dequantize(quantize(head.forward(documents), precision), precision, size)
    full, small = queries @ documents.T, head.forward(queries) @ stored.T
    if pairs is None:
        tops = [np.argsort(-scores, axis=1)[:, :10].tolist() for scores in (full, small)]
        share = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(*tops, strict=True)])
        return share, share
    return tuple(ndcg(small, last) / ndcg(full, last) for last in (True, False))


def ndcg(scores, last):
    """nDCG@10 where query i should find document i, the last or the first of the documents of equal codes."""
    own = np.diag(scores)[:, None]
    rank = (scores > own + 1e-6).sum(axis=1) + last * ((np.abs(scores - own) <= 1e-6).sum(axis=1) - 1)
    return np.mean(np.where(rank < 10, 1 / np.log2(rank + 2), 0))


@pytest.fixture
def linear(monkeypatch):
    """A gain at which the Tanh changes nothing that could be measured."""
    monkeypatch.setattr(closed_form, "GAIN", 1e-3)


@pytest.mark.usefixtures("linear")
@pytest.mark.parametrize("objective", ["quality", "fidelity"])
@pytest.mark.parametrize("count", [200, 3000])
def test_retention_of_neighbours_is_that_on_held_out_vectors(objective, count):
    summary = Summary.of(X[:count] + np.float32(0.5))
    choice = choose(summary, Size(bytes=8), objective=objective, seed=5)
    assert shares(choice).keys() == {(32, "int2"), (16, "int4"), (8, "int8")}
    for (size, precision), kept in shares(choice).items():
        expected, _ = retention_by_definition(summary, size, precision, objective, None, 5)
        assert kept == pytest.approx(expected, abs=0.004), (size, precision)


@pytest.mark.usefixtures("linear")
def test_retention_of_pairs_is_the_mean_over_three_folds():
    choice = choose(SUMMARY, Size(bytes=2), pairs=PAIRS, seed=5)
    for (size, precision), kept in shares(choice).items():
        each = [retention_by_definition(SUMMARY, size, precision, "quality", PAIRS, seed) for seed in (5, 6, 7)]
        low, high = np.mean(each, axis=0)
        assert np.ptp(each, axis=0).max() > 0.002, "the thirds differ"
        assert low - 0.001 < kept < high + 0.001, (size, precision)


def test_options_that_waste_half_of_the_budget_are_left_out():
    assert shares(choose(SUMMARY, Size(bytes=16))).keys() == {(32, "int4"), (16, "int8")}
    assert shares(choose(SUMMARY, Size(bytes=128))).keys() == {(32, "int8"), (32, "float32")}
    few = Summary.of(X[:60, :8])
    assert shares(choose(few, Size(bytes=1))).keys() == {(8, "binary"), (4, "int2"), (2, "int4"), (1, "int8")}
