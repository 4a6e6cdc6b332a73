"""An index of codes: what it finds, how it grows and shrinks, what it promises, and what it refuses."""

from __future__ import annotations

import copy
import resource
import threading

import numpy as np
import pytest

from st_dimreduce.base_head import BaseHead, FitRecord
from st_dimreduce.codes.codes import Codes
from st_dimreduce.enums import Precision
from st_dimreduce.errors import UserError
from tests.helpers.components import missing

pytestmark = pytest.mark.component("FAISS")

if not missing("FAISS"):
    import faiss

    from st_dimreduce.vectors.index import Index

ROWS, K = 6000, 64
PRECISIONS = list(Precision)


def drawn(rows, seed, size=K):
    """Vectors around 100 centres."""
    rng, centres = np.random.default_rng(seed), np.random.default_rng(99).standard_normal((100, size))
    return (centres[rng.integers(0, 100, rows)] + 0.8 * rng.standard_normal((rows, size))).astype(np.float32)


def questions(vectors, count, seed=0):
    """Vectors that lie to some of these as questions do to documents."""
    rng = np.random.default_rng(seed)
    rows, size = rng.integers(0, len(vectors), count), vectors.shape[1]
    unit = vectors[rows] / np.linalg.norm(vectors[rows], axis=1, keepdims=True)
    return (0.65 * unit + 0.76 * rng.standard_normal((count, size)) / np.sqrt(size)).astype(np.float32)


def recall(found, truth):
    """The share of results that score as well as the last of exact search: one of two equal codes will do."""
    return float((found >= truth[:, -1:] - 1e-6).mean())


@pytest.fixture(scope="module")
def vectors():
    return drawn(ROWS, 1)


@pytest.fixture(scope="module")
def queries():
    return drawn(50, 2)


@pytest.fixture(scope="module")
def codes(vectors):
    return Codes.of(vectors, "int2")


@pytest.fixture(scope="module")
def built(codes):
    return Index.build(codes)


@pytest.fixture
def index(built):
    return copy.deepcopy(built)


@pytest.mark.parametrize("kind", ["ivf", "flat"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", [K, 37])  # the latter fills no last byte
def test_finds_what_exact_search_finds_with_its_scores(kind, precision, size):
    codes, queries = Codes.of(drawn(ROWS, 1, size), precision), drawn(50, 2, size)
    index = Index.build(codes, kind=kind)
    truth, rows = codes.search(queries, 10)
    scores, ids = index.search(queries, 10, recall=1)
    np.testing.assert_allclose(scores, truth, atol=1e-6)
    assert (ids == rows).mean() > 0.99  # equal scores may come in another order
    scores, ids = index.search(queries, 10)
    assert recall(scores, truth) > 0.93
    every, _ = codes.search(queries, ROWS)
    order = np.argsort(codes.search(queries, ROWS)[1], axis=1)
    by_row = np.take_along_axis(every, order, axis=1)
    np.testing.assert_allclose(scores, np.take_along_axis(by_row, ids, axis=1), atol=1e-6)
    assert [ids.dtype, scores.dtype] == [np.int64, np.float32]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", [K, 37])
def test_faiss_holds_the_codes_unchanged(precision, size):
    codes = Codes.of(drawn(500, 1, size), precision)
    ids = np.random.default_rng(0).permutation(10**6)[:500]
    index = Index.build(codes, ids, cells=7)
    order = np.argsort(ids)
    read = index._lists.codes(np.arange(500))
    assert read.dtype == codes.values.dtype
    np.testing.assert_allclose(read, codes.values[order], atol=1e-7)  # bytes equal; floats of norm 1 are scaled again


@pytest.mark.parametrize("precision", PRECISIONS)
def test_plain_faiss_reads_and_searches_the_file(precision, tmp_path, vectors, queries):
    codes = Codes.of(vectors, precision)
    Index.build(codes, range(100, 100 + ROWS)).save(tmp_path / "index")
    plain = faiss.read_index(str(tmp_path / "index" / "index.faiss"))
    plain.nprobe = plain.nlist
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    scores, ids = plain.search(unit, 10)
    truth, rows = codes.search(queries, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids, rows + 100, strict=True)]) > 0.7
    np.testing.assert_allclose(scores, truth, atol=0.08)  # cosines, but for the norm of a code, which is near 1


@pytest.mark.parametrize("ids", ["numbers", "names"])
def test_a_saved_index_is_the_same(ids, tmp_path, codes, queries):
    given = np.arange(ROWS) * 2 if ids == "numbers" else [f"é{row}" for row in range(ROWS)]
    index = Index.build(codes, given)
    index.save(tmp_path / "index")
    loaded, copied = Index.load(tmp_path / "index"), copy.deepcopy(index)
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == (
        ["ids.json", "index.faiss", "index.json"] if ids == "names" else ["index.faiss", "index.json"]
    )
    for other in (loaded, copied):
        assert [other.kind, other.origin, other.measured] == [index.kind, index.origin, index.measured]
        for one, two in zip(index.search(queries, 10), other.search(queries, 10), strict=True):
            assert np.array_equal(one, two)
        other.remove([given[0]])
        other.add(codes_at(codes, [0]), [given[0]])
        with pytest.raises(UserError, match="is in the index already"):
            other.add(codes_at(codes, [0]), [given[0]])
    with pytest.raises(FileExistsError):
        index.save(tmp_path / "index")
    index.save(tmp_path / "index", overwrite=True)


def codes_at(codes, rows):
    return Codes(codes.values[rows], codes.precision, codes.out_features, codes.head)


def test_k_is_cut_to_what_is_there_before_memory_is_taken(queries):
    index = Index.build(Codes.of(drawn(50, 0), "int2"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    scores, ids = index.search(queries[:1], 50_000_000)
    assert scores.shape == ids.shape == (1, 50)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


@pytest.mark.parametrize("kind", ["ivf", "flat"])
@pytest.mark.parametrize("precision", ["binary", "int2", "int4"])
def test_the_lowest_scores_are_found_too(kind, precision, monkeypatch):
    monkeypatch.setattr("st_dimreduce.vectors.index._SCORED_ALL", 0)
    vectors = np.random.default_rng(0).standard_normal((20, K)).astype(np.float32)
    codes = Codes.of(np.concatenate([vectors, np.repeat(vectors[:1], 2000, axis=0)]), precision)
    index = Index.build(codes, kind=kind)
    for query in (np.eye(1, K), -np.sign(vectors[:1]), np.zeros((1, K))):
        for k in (15, 1000, 2020):
            scores, ids = index.search(query.astype(np.float32), k)
            assert recall(scores, codes.search(query.astype(np.float32), k)[0]) > 0.9
            assert len(set(ids[0].tolist())) == k


@pytest.mark.parametrize("kind", ["ivf", "flat"])
@pytest.mark.parametrize("copies", [100, 200, 300])
def test_all_copies_of_a_document_are_found(kind, copies):
    vectors = drawn(600 // copies, 1, 16)
    codes = Codes.of(np.repeat(vectors, copies, axis=0), "int4")
    scores, ids = Index.build(codes, kind=kind).search(vectors, 100)
    assert all(len(set(row)) == 100 for row in ids.tolist())
    assert (ids // copies == np.arange(len(vectors))[:, None]).all()
    np.testing.assert_allclose(scores, codes.search(vectors, 100)[0], atol=1e-6)


@pytest.mark.parametrize(("kind", "precision"), [("ivf", "int4"), ("ivf", "int8"), ("flat", "int2")])
def test_recall_is_kept_as_the_index_grows_and_shrinks(kind, precision):
    vectors = np.random.default_rng(0).standard_normal((10_200, K)).astype(np.float32)
    codes, asked = Codes.of(vectors, precision), questions(vectors, 100)
    index = Index.build(codes_at(codes, slice(0, 200)), kind=kind, cells=None if kind == "flat" else 8)
    assert index.measured.vectors == 200
    for start in range(200, 10_200, 2000):
        index.add(codes_at(codes, slice(start, start + 2000)))
    assert index.measured.vectors > 10_200 / 1.5
    truth = codes.search(asked, 10)[0]
    for wanted in (0.95, 0.99):
        assert recall(index.search(asked, 10, recall=wanted)[0], truth) > wanted - 0.03
    left = np.sort(np.random.default_rng(1).permutation(10_200)[:20])
    index.remove(np.setdiff1d(np.arange(10_200), left))
    assert len(index) == index.measured.vectors == 20
    scores, rows = codes_at(codes, left).search(asked, 10)
    found, ids = index.search(asked, 10)
    np.testing.assert_allclose(found, scores, atol=1e-6)
    assert (ids == left[rows]).mean() > 0.99


def test_recall_is_measured_against_exact_search():
    """Codes of unequal norm, which FAISS's scan leaves out: its own candidates are not the truth."""
    rng = np.random.default_rng(1)
    vectors = rng.standard_t(2, (20_000, K)).astype(np.float32)
    asked = 0.65 * vectors[rng.integers(0, 20_000, 100)] / np.linalg.norm(vectors, axis=1).mean()
    asked = (asked + 0.76 * rng.standard_t(2, (100, K)) / 8).astype(np.float32)
    codes = Codes.of(vectors, "int4")
    index = Index.build(codes, kind="flat")
    index.measure(asked)
    truth = codes.search(asked, 10)[0]
    (claimed,) = index.measured.recalls["10"]
    scanned, _ = index._best(index._unit(asked, 10), 10, 1, None)
    assert claimed == pytest.approx(recall(scanned, truth), abs=1e-3)
    assert claimed < 0.97  # else this tests nothing
    for wanted in (claimed - 0.01, 0.99):  # what no number of cells reaches is searched exactly
        assert recall(index.search(asked, 10, recall=wanted)[0], truth) >= wanted


def test_more_cells_find_more_and_the_least_that_reach_the_recall_are_taken(built, codes, vectors):
    measured = built.measured
    assert measured.vectors == ROWS
    assert list(measured.cells) == sorted(set(measured.cells))
    for depth in ("10", "100"):
        assert measured.recalls[depth][-1] > 0.99 > measured.recalls[depth][0]
    asked = questions(vectors, 200)
    for k in (10, 100):
        truth = codes.search(asked, k)[0]
        for wanted in (0.8, 0.9, 0.99):
            cells = measured.cells_for(wanted, k)
            assert cells == min(c for c, r in zip(measured.cells, measured.recalls[str(k)], strict=True) if r >= wanted)
            assert recall(built.search(asked, k, wanted)[0], truth) > wanted - 0.03
    assert measured.cells_for(0.9, 1000) == 10 * measured.cells_for(0.9, 100)
    assert measured.cells_for(1.1, 10) is None


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("count", [3, 2500])
def test_among_some_ids_only(named, count, codes, queries, monkeypatch):
    monkeypatch.setattr("st_dimreduce.vectors.index._FILTERED_ALL", 1000)  # so that 2,500 are scanned
    names = [f"n{row}" for row in range(ROWS)]
    index = Index.build(codes, names if named else None)
    rows = np.random.default_rng(0).permutation(ROWS)[:count]
    ids = [names[row] for row in rows] if named else rows
    scores, found = index.search(queries, 10, recall=0.95, ids=[*ids, "other" if named else 10**9])
    assert found.shape == (50, min(10, count))
    assert set(found.ravel().tolist()) <= set(ids if named else rows.tolist())
    truth = codes_at(codes, rows).search(queries, 10)[0]
    assert recall(scores, truth) > (0.9 if count > 1000 else 0.9999)
    assert index.search(queries, 10, ids=[])[0].shape == (50, 0)


def test_ids(codes):
    few = codes_at(codes, slice(0, 5))
    unit = few.decode()
    largest = 2**63 - 1
    index = Index.build(few, [7, 0, largest, 3, 2**40])
    assert index.search(unit, 1)[1][:, 0].tolist() == [7, 0, largest, 3, 2**40]
    with pytest.raises(UserError, match="no numbers are left"):
        index.add(few)
    index.remove([largest])
    index.remove(np.array([3, 3]))
    assert sorted(index.search(unit, 5)[1][0].tolist()) == [0, 7, 2**40]
    grown = Index.build(few)
    grown.remove([4])
    grown.add(codes_at(codes, [9]))
    assert grown.search(codes_at(codes, [9]).decode(), 1)[1].tolist() == [[5]]  # no number is given twice
    named = Index.build(few, ids=iter("abcde"))
    named.remove(["b", "b"])
    named.add(few, ["b", "", "f", "g", "h"])
    found = named.search(unit, 9)[1]
    assert found.dtype == object
    assert sorted(found[0]) == ["", "a", "b", "c", "d", "e", "f", "g", "h"]
    assert {named.search(unit[:1], 2)[1][0, 0], named.search(unit[:1], 2)[1][0, 1]} == {"a", "b"}


def test_everything_can_be_removed_and_more_added(index, codes, queries):
    index.remove(range(ROWS))
    assert len(index) == 0
    assert index.search(queries, 10)[0].shape == (50, 0)
    index.add(codes)
    truth = codes.search(queries, 10)[0]
    assert recall(index.search(queries, 10)[0], truth) > 0.93
    assert index.search(queries, 10)[1].min() >= ROWS


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2], "2 ids for 3 codes: give one per code"),
        ([1, 2, 1], "id 1 is given twice: give each code its own"),
        (["a", "b", "a"], "id 'a' is given twice: give each code its own"),
        ([1, 2, -3], "ids hold -3: expected whole numbers from 0 to 2^63 - 1, or strings"),
        ([1, 2, 2**63], "expected whole numbers from 0 to 2^63 - 1, or strings"),
        ([1.5, 2, 3], "expected whole numbers from 0 to 2^63 - 1, or strings"),
        ([1, "b", 3], "expected whole numbers from 0 to 2^63 - 1, or strings"),
        ([None, 2, 3], "expected whole numbers from 0 to 2^63 - 1, or strings"),
        ("abc", "expected several"),
        (5, "expected several"),
    ],
)
def test_refuses_ids(ids, message, codes):
    with pytest.raises(UserError) as refused:
        Index.build(codes_at(codes, [0, 1, 2]), ids)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_refused_changes_nothing(index, codes, queries):
    before = index.search(queries, 10)
    some = codes_at(codes, [0, 1])
    with pytest.raises(UserError, match="id 5 is in the index already: remove it first"):
        index.add(some, [ROWS, 5])
    with pytest.raises(UserError, match=r"id 6000 \(and 1 more\) is not in the index: remove what it holds"):
        index.remove([3, ROWS, ROWS + 1])
    with pytest.raises(UserError, match="ids are strings: the index holds integers"):
        index.add(some, ["a", "b"])
    with pytest.raises(UserError, match="id 'a' is of another type: the index holds integers"):
        index.remove(["a"])
    with pytest.raises(UserError, match="id 'a' is of another type: the index holds integers"):
        index.search(queries, ids=["a"])
    with pytest.raises(UserError, match="codes have 64 dimensions in int4: the index holds 64 dimensions in int2"):
        index.add(Codes.of(drawn(2, 0), "int4"))
    with pytest.raises(UserError, match="codes are of type ndarray: expected Codes"):
        index.add(some.values)
    for one, two in zip(before, index.search(queries, 10), strict=True):
        assert np.array_equal(one, two)
    named = Index.build(some, ["a", "b"])
    with pytest.raises(UserError, match="no ids: the index holds strings, give one per code"):
        named.add(some)
    with pytest.raises(UserError, match="ids are integers: the index holds strings"):
        named.add(some, [1, 2])
    with pytest.raises(UserError, match="id 'c' is not in the index"):
        named.remove(["a", "c"])
    assert len(named) == 2


def test_codes_of_another_head_are_refused(vectors):
    record = FitRecord(mean_norm=1.0, precision="int2")
    one, other = (BaseHead(np.roll(np.eye(K, K + 8, dtype=np.float32), i, 1), record=record) for i in (0, 1))
    full = drawn(300, 0, K + 8)
    index = Index.build(one.encode(full))
    assert index.origin.head == one.fingerprint
    index.add(one.encode(full))
    with pytest.raises(UserError, match="the index holds codes made by head"):
        index.add(other.encode(full))
    with pytest.raises(UserError, match="shelf holds codes made by head"):
        index.origin.check(other.fingerprint, "shelf")
    assert len(index) == 600


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "hnsw"}, "unknown kind 'hnsw': choose from ivf, flat"),
        ({"cells": 0}, "cells=0: choose at least 1"),
        ({"cells": 7}, "cells=7: choose at most 3, the number of codes"),
        ({"kind": "flat", "cells": 2}, "cells=2: a flat index has one, leave it out or choose kind='ivf'"),
        ({"seed": -1}, "seed=-1: choose a whole number from 0 to"),
    ],
)
def test_refuses_options(options, message, codes):
    with pytest.raises(UserError) as refused:
        Index.build(codes_at(codes, [0, 1, 2]), **options)
    assert message in str(refused.value)


def test_refuses_queries_and_recalls(built, codes, queries):
    for recall_ in (0, -0.5, 1.01, float("nan"), "0.9"):
        with pytest.raises(UserError, match="choose a share over 0 and at most 1"):
            built.search(queries, recall=recall_)
    with pytest.raises(UserError, match="queries have 5 dimensions, expected 64"):
        built.search(queries[:, :5])
    with pytest.raises(UserError, match="finite"):
        built.search(np.full((1, K), np.nan, np.float32))
    with pytest.raises(UserError, match="at least 1"):
        built.search(queries, 0)
    with pytest.raises(UserError, match="there are no queries"):
        built.measure(queries[:0])
    with pytest.raises(UserError, match="no code to index: give at least one"):
        Index.build(codes_at(codes, []))
    with pytest.raises(UserError, match="codes of type list"):
        Index.build([1, 2])
    assert built.search(queries[:0], 10)[0].shape == (0, 10)


def test_the_same_seed_gives_the_same_index(codes, queries):
    one, two, other = (Index.build(codes, seed=seed) for seed in (0, 0, 1))
    assert one.measured == two.measured != other.measured
    for left, right in zip(one.search(queries), two.search(queries), strict=True):
        assert np.array_equal(left, right)


def test_threads_search_side_by_side(built, queries):
    wanted, found = built.search(queries, 10), []
    threads = [threading.Thread(target=lambda: found.append(built.search(queries, 10))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(np.array_equal(one, two) for each in found for one, two in zip(each, wanted, strict=True))


def test_many_queries_and_results_are_found_in_parts(built, codes, queries, monkeypatch):
    wanted = built.search(queries, 50)
    monkeypatch.setattr("st_dimreduce.vectors.index._RESCORED", 300)
    monkeypatch.setattr("st_dimreduce.vectors.inverted_file._CACHED_BYTES", 1)
    monkeypatch.setattr("st_dimreduce.vectors.inverted_file._BLOCK", 100)
    monkeypatch.setattr("st_dimreduce.vectors.inverted_file._QUERY_BLOCK", 7)
    for one, two in zip(wanted, built.search(queries, 50), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    np.testing.assert_allclose(built.search(queries, 10, 1)[0], codes.search(queries, 10)[0], atol=1e-6)


def test_an_interrupted_addition_keeps_what_was_added(index, codes, queries, monkeypatch):
    from st_dimreduce.vectors import index as module

    monkeypatch.setattr(module, "_ADDED", 100)
    real, calls = module.to_faiss, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "to_faiss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index.add(codes)
    monkeypatch.undo()
    assert len(index) == ROWS + 200
    _, ids = index.search(codes_at(codes, [0, 199, 200]).decode(), 2, recall=1)
    assert [sorted(row) for row in ids.tolist()[:2]] == [[0, ROWS], [199, ROWS + 199]]
    index.add(codes_at(codes, [200]))
    assert ROWS + 200 in index.search(codes_at(codes, [200]).decode(), 2, recall=1)[1]
