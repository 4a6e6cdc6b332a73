"""An index of codes, with FAISS itself: what it finds, how it grows and shrinks, and what it refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
from st_dimreduce.codes.calibration import EXACT

from st_dimreduce import (
    FitRecord,
    Head,
    Precision,
    Summary,
    add_to_index,
    build_index,
    dequantize,
    fit_head,
    merge_indexes,
    open_index,
    quantize,
    reduce_vectors,
    search,
)
from tests.helpers.command import run

pytestmark = pytest.mark.component("FAISS")

ROWS, D, K = 6000, 96, 64
PRECISIONS = list(Precision)


def drawn(rows, seed):
    """Vectors around 100 centres."""
    rng, centres = np.random.default_rng(seed), np.random.default_rng(99).standard_normal((100, D))
    return (centres[rng.integers(0, 100, rows)] + 0.8 * rng.standard_normal((rows, D))).astype(np.float32)


@pytest.fixture(scope="module")
def vectors():
    return drawn(ROWS, 1)


@pytest.fixture(scope="module")
def head(vectors):
    return fit_head(Summary.of(vectors), K, train=False).with_record(mean_norm=1.0, precision="int2")


@pytest.fixture(scope="module")
def queries(head):
    return head.reduce_stored(drawn(50, 2))


@pytest.fixture(scope="module")
def codes(vectors, head):
    return quantize(head.reduce_stored(vectors), "int2")


@pytest.fixture(scope="module")
def built(tmp_path_factory, vectors, head):
    path = tmp_path_factory.mktemp("index") / "index"
    build_index(vectors, head, path)
    return path


@pytest.fixture
def index(built, tmp_path):
    shutil.copytree(built, tmp_path / "index")
    return open_index(tmp_path / "index")


def recall(found, truth):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), truth.tolist(), strict=True)])


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "flat"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", [K, 30])
def test_scores_are_those_of_exact_search(kind, precision, size, vectors, tmp_path):
    head = fit_head(Summary.of(vectors), size, train=False).with_record(mean_norm=1.0)
    index = build_index(vectors, head, tmp_path / "index", kind=kind, precision=precision, cells=None)
    stored = quantize(head.reduce_stored(vectors), precision)
    queries = head.reduce_stored(drawn(50, 2))
    truth, rows = search(queries, stored, precision, 10)
    scores, ids = index.search(queries, 10, effort=EXACT)
    # Equal codes may stand for one another: of scores, nothing may be lost.
    assert (scores >= truth[:, -1:] - 1e-6).mean() > 0.99
    own = search_of(queries, stored, precision, ids)
    assert np.allclose(scores, own, atol=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert recall(ids, rows) > 0.9
    assert np.array_equal(index.codes(ids[0]), stored[ids[0]])


def search_of(queries, codes, precision, rows):
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    decoded = dequantize(codes, precision, queries.shape[1])
    return np.einsum("qk,qrk->qr", unit, decoded[rows])


def test_recall_is_what_was_asked_for(index, queries, codes):
    truth = search(queries, codes, "int2", 10)[1]
    efforts = [index._effort(share, None, 10) for share in (0.5, 0.9, 0.99)]
    assert efforts == sorted(efforts)
    assert efforts[0] < efforts[2] <= index._efforts[1]
    reached = [recall(index.search(queries, 10, recall=share)[1], truth) for share in (0.5, 0.9, 0.99)]
    assert reached == sorted(reached)
    for share, found in zip((0.5, 0.9, 0.99), reached, strict=True):
        assert found > share - 0.05
    assert recall(index.search(queries, 10, effort=1)[1], truth) < recall(index.search(queries, 10)[1], truth)


def test_other_queries_measure_another_recall(index):
    before = index.manifest.recalls
    scattered = np.random.default_rng(0).standard_normal((200, K)).astype(np.float32)
    index.calibrate(scattered)
    assert index.manifest.recalls["10"][0] < before["10"][0]
    assert open_index(index.path).manifest.recalls == index.manifest.recalls


def test_one_query_many_queries_and_threads_find_the_same(index, queries):
    scores, ids = index.search(queries, 5)
    for threads in (1, 2):
        assert np.array_equal(index.search(queries, 5, threads=threads)[1], ids)
    single = [index.search(queries[row : row + 1], 5)[1][0] for row in range(len(queries))]
    assert np.array_equal(single, ids)
    found = {}

    def look(row):
        found[row] = index.search(queries, 5)

    workers = [threading.Thread(target=look, args=[row]) for row in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(np.array_equal(found[row][1], ids) and np.array_equal(found[row][0], scores) for row in range(4))


@pytest.mark.parametrize("count", [0, 3, 200, 4000])
def test_only_the_ids_that_are_asked_for(count, index, queries, codes, monkeypatch):
    monkeypatch.setattr("st_dimreduce.codes.index._EXACT_ROWS", 1000)
    wanted = np.random.default_rng(0).permutation(ROWS)[:count]
    scores, ids = index.search(queries, 10, ids=[*wanted, 10**9])
    there = ids[ids >= 0]
    assert set(there.tolist()) <= set(wanted.tolist())
    assert ((ids >= 0).sum(axis=1) == min(count, 10)).all()
    assert np.isneginf(scores[ids < 0]).all()
    if count:
        truth = np.sort(wanted)[search(queries, codes[np.sort(wanted)], "int2", 10)[1]]
        assert recall(ids, truth) > 0.9


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "flat"])
def test_it_grows_forgets_and_is_merged(kind, vectors, head, queries, codes, tmp_path):
    index = build_index(vectors, head, tmp_path / "index", kind=kind)
    more = quantize(np.random.default_rng(3).standard_normal((500, K)).astype(np.float32), "int2")
    index.add(more[:300])
    index.add(more[300:], ids=range(10_000, 10_200))
    index.remove(range(1000, 3000))
    index.remove([6001, 10_199])
    ids = np.array([*range(1000), *range(3000, 6001), *range(6002, 6300), *range(10_000, 10_199)])
    left = np.concatenate([codes, more[:300], more[300:]])
    places = np.array([one if one < 6300 else one - 10_000 + 6300 for one in ids])
    assert len(index) == len(ids)
    assert 6000 in index
    assert 6001 not in index
    assert 1500 not in index

    def check(which):
        rows = search(queries, left[places], "int2", 10)[1]
        found = which.search(queries, 10, effort=EXACT)[1]
        assert recall(found, ids[rows]) > 0.97
        assert np.array_equal(which.codes(ids[::7]), left[places[::7]])

    check(index)
    check(open_index(index.path))
    other = open_index(index.path)
    index.compact()
    check(index)
    check(other)  # whose files are gone, but mapped
    assert len(index.manifest.segments) == 1
    assert other.refresh()
    assert not other.refresh()
    check(other)
    assert {path.name for path in index.path.glob("segment-*")} == {index.manifest.segments[0].name}


def test_many_small_additions_stay_few_segments(index, codes):
    for start in range(0, 640, 10):
        index.add(codes[start : start + 10])
    assert len(index) == ROWS + 640
    assert len(index.manifest.segments) <= 8
    assert np.array_equal(index.codes(range(ROWS, ROWS + 640)), codes[:640])
    assert index.search(dequantize(codes[:20], "int2", K), 40, effort=EXACT)[1].max() >= ROWS


def test_an_id_can_be_given_anew(index, codes):
    with pytest.raises(ValueError, match="id 7 is in the index already: remove it first, or pass overwrite=True"):
        index.add(codes[:1], ids=[7])
    assert len(open_index(index.path)) == ROWS
    index.add(codes[100:102], ids=[7, 8], overwrite=True)
    assert np.array_equal(index.codes([7, 8]), codes[100:102])
    assert len(index) == ROWS
    index.compact()
    assert np.array_equal(index.codes([7, 8]), codes[100:102])


def test_ids_are_strings(head, vectors, queries, codes, tmp_path):
    names = [f"dokument-ü{row}" for row in range(ROWS)]
    index = build_index(vectors, head, tmp_path / "index", ids=names)
    truth = search(queries, codes, "int2", 5)[1]
    ids = index.search(queries, 5, effort=EXACT)[1]
    assert recall(np.array([[int(one.removeprefix("dokument-ü")) for one in row] for row in ids]), truth) > 0.97
    index.add(codes[:2], ids=["neu", "neuer"])
    index.remove(["dokument-ü5", "neu"])
    assert "neuer" in index
    assert "neu" not in index
    index.compact()
    assert np.array_equal(index.codes(["neuer", "dokument-ü77"]), codes[[1, 77]])
    assert set(index.search(queries, 3, ids=["neuer"])[1][:, 0]) == {"neuer"}
    assert index.search(queries, 3, ids=["neuer"])[1][0, 1] is None
    with pytest.raises(ValueError, match="id 'neu' is not in the index"):
        index.remove(["neu"])
    with pytest.raises(ValueError, match="expected strings"):
        index.remove([5])


def test_every_source_gives_the_same_index(head, vectors, codes, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), D)
    ids = np.arange(ROWS)[::-1] * 3
    table = pa.table({"key": ids, "name": [f"n{one}" for one in ids], "v": column})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=1000)
    np.save(tmp_path / "x.npy", vectors)
    reduce_vectors(tmp_path / "x.npy", head, tmp_path / "codes.npy", "int2")
    reduce_vectors(tmp_path / "x.parquet", head, tmp_path / "codes.parquet", "int2")
    reduce_vectors(tmp_path / "x.npy", head, tmp_path / "folder", "int2", batch_bytes=4 * D * 64)

    def of(source, name, **options):
        index = build_index(source, head, tmp_path / name, **options)
        lists = (index.path / index.manifest.segments[0].name / "lists.bin").read_bytes()
        return index, lists

    plain, lists = of(vectors, "array")
    files = [tmp_path / name for name in ("x.npy", "codes.npy", "folder")]
    sources = [codes, *files, iter([vectors[:4000], vectors[4000:]])]
    for number, source in enumerate(sources):
        assert of(source, f"plain-{number}")[1] == lists
    for number, source in enumerate([tmp_path / "x.parquet", table, tmp_path / "codes.parquet"]):
        keyed, same = of(source, f"keyed-{number}", id_column="key")
        assert same == lists
        assert np.array_equal(keyed.codes(ids[:9]), codes[:9])
        named, _ = of(source, f"named-{number}", id_column="name")
        assert np.array_equal(named.codes([f"n{one}" for one in ids[:9]]), codes[:9])
    assert plain.manifest.recalls == of(vectors, "again")[0].manifest.recalls


def test_texts_and_a_model(tiny, tmp_path):
    from sentence_transformers import SentenceTransformer

    from st_dimreduce import reduce_model, save_portable
    from tests.helpers.tiny import SENTENCES

    save_portable(reduce_model(tiny, SENTENCES, 16), tmp_path / "model")
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    index = build_index(SENTENCES[:100], model, tmp_path / "index", kind="flat", precision="int8")
    ids = index.search(model.encode_query(SENTENCES[:20]), 1)[1]
    assert [SENTENCES[one] for one in ids[:, 0]] == SENTENCES[:20]
    assert add_to_index(index, SENTENCES[100:], model) == len(SENTENCES) - 100
    assert index.search(model.encode_query([SENTENCES[-1]]), 1)[1] == len(SENTENCES) - 1
    with pytest.raises(ValueError, match="another head than the index"):
        add_to_index(index, ["a"], reduce_model(tiny, SENTENCES, 16, seed=1))
    with pytest.raises(ValueError, match="expected a list of strings"):
        build_index("one text", model, tmp_path / "other")


def test_what_was_written_to_a_copy_of_mapped_codes_stays(head, codes, tmp_path):
    np.save(tmp_path / "codes.npy", np.zeros_like(codes))
    copied = np.load(tmp_path / "codes.npy", mmap_mode="c")
    copied[:] = codes
    index = build_index(copied, head, tmp_path / "index")
    assert np.array_equal(copied, codes)
    assert np.array_equal(index.codes(range(len(codes))), codes)


def test_vectors_are_added_with_the_head_of_the_index(index, vectors, codes):
    assert add_to_index(index, vectors[:10], ids=range(9000, 9010)) == 10
    assert np.array_equal(index.codes(range(9000, 9010)), codes[:10])


def test_shards_are_merged_with_their_cells_or_without(head, vectors, codes, queries, tmp_path):
    first = build_index(vectors[:4000], head, tmp_path / "a", ids=range(4000))
    build_index(vectors[4000:], head, tmp_path / "b", ids=range(4000, ROWS))
    first.remove([5])
    merged = merge_indexes([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert len(merged) == ROWS - 1
    assert len(merged.manifest.segments) == 1
    ids = np.array([one for one in range(ROWS) if one != 5])
    assert np.array_equal(merged.codes(ids[::11]), codes[ids[::11]])
    truth = ids[search(queries, codes[ids], "int2", 10)[1]]
    assert recall(merged.search(queries, 10)[1], truth) > 0.9
    with pytest.raises(ValueError, match="is in another index as well"):
        merge_indexes([tmp_path / "a", tmp_path / "c"], tmp_path / "d")
    assert not (tmp_path / "d").exists()
    build_index(vectors, head, tmp_path / "flat", kind="flat")
    with pytest.raises(ValueError, match="differ in kind"):
        merge_indexes([tmp_path / "a", tmp_path / "flat"], tmp_path / "d")
    with pytest.raises(ValueError, match="no index was given"):
        merge_indexes([], tmp_path / "d")
    again = merge_indexes([tmp_path / "c"], tmp_path / "c2")
    assert len(again) == ROWS - 1


def test_a_temporary_index_goes_with_its_object(head, vectors):
    index = build_index(vectors[:500], head)
    assert len(index) == 500
    folder = index.path
    assert folder.exists()
    del index
    assert not folder.exists()


def test_the_same_seed_gives_the_same_files(head, vectors, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        build_index(vectors, head, tmp_path / name, seed=seed)
    files = {name: (tmp_path / name / "cells.npy").read_bytes() for name in "abc"}
    assert files["a"] == files["b"] != files["c"]
    assert (tmp_path / "a" / "index.json").read_bytes() == (tmp_path / "b" / "index.json").read_bytes()


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_few_vectors(rows, head, vectors, tmp_path):
    index = build_index(vectors[:rows], head, tmp_path / "index")
    ids = index.search(head.reduce_stored(vectors[:1]), 5, recall=1.0)[1]
    assert ids[0, 0] == 0
    assert (ids >= 0).sum() == min(rows, 5)
    index.remove([0])
    assert (index.search(head.reduce_stored(vectors[:1]), 5)[1] != 0).all()
    index.compact()
    assert len(index) == rows - 1
    index.add(quantize(head.reduce_stored(vectors[:1]), "int2"), ids=[0])
    assert index.search(head.reduce_stored(vectors[:1]), 1)[1] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cells": 7000}, "cells=7000: choose at most 6,000, the number of vectors"),
        ({"cells": 0}, "cells=0: choose at least 1"),
        ({"kind": "flat", "cells": 5}, "for kind='ivf' only"),
        ({"kind": "tree"}, "unknown kind 'tree': choose from ivf, hnsw, flat"),
        ({"precision": "int3"}, "unknown precision 'int3'"),
        ({"ids": [1, 2]}, "2 ids were given for 6,000 vectors"),
        ({"ids": [0] * ROWS}, "id 0 is given to several vectors"),
        ({"ids": [0], "id_column": "a"}, "ids and id_column='a' were given"),
        ({"id_column": "a"}, "the source is no table that can be read twice"),
        ({"queries": np.zeros((3, 5), np.float32)}, "queries have 5 dimensions, expected 64"),
        ({"queries": np.zeros((0, K), np.float32)}, "queries are empty: give typical ones, or none at all"),
        ({"ids": ["a", "\ud800"]}, r"id '\\ud800' holds half a character: expected text in UTF-8"),
        ({"ids": ["a", 5]}, "some ids are strings and some are not"),
        ({"seed": -1}, "seed=-1: choose a whole number, 0 to 2147483646"),
        ({"seed": 2**31}, "seed=2147483648: choose"),
        ({"seed": 0.5}, "seed=0.5: choose"),
        ({"cells": 1.5}, "cells=1.5: choose at least 1"),
    ],
)
def test_what_cannot_be_built(options, said, head, vectors, tmp_path):
    with pytest.raises(ValueError, match=said):
        build_index(vectors, head, tmp_path / "index", **options)
    assert list(tmp_path.iterdir()) == []


def test_codes_of_another_head_or_precision(head, vectors, index, tmp_path):
    other = Head(np.eye(K, D, dtype=np.float32), record=FitRecord(mean_norm=1.0))
    with pytest.raises(ValueError, match="holds codes of another head: give the one that it was built with"):
        open_index(index.path, other)
    assert len(open_index(index.path, head)) == ROWS
    with pytest.raises(ValueError, match=r"codes have shape \(3, 64\), expected \(n, 16\)"):
        index.add(quantize(np.ones((3, K), np.float32), "int8"))
    with pytest.raises(ValueError, match=r"codes have shape \(6000, 16\), expected \(n, 32\)"):
        build_index(quantize(head.reduce_stored(vectors), "int2"), head, tmp_path / "x", precision="int4")
    with pytest.raises(ValueError, match="the head takes 96"):
        build_index(np.ones((9, 50), np.float32), head, tmp_path / "x")
    with pytest.raises(ValueError, match="there is no vector"):
        build_index(np.ones((0, D), np.float32), head, tmp_path / "x")
    with pytest.raises(ValueError, match="there is no code"):
        build_index(np.ones((0, 16), np.uint8), head, tmp_path / "x")
    with pytest.raises(ValueError, match="str is no head"):
        build_index(vectors, "head", tmp_path / "x")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"recall": 1.5}, "recall=1.5: choose a share over 0 and at most 1"),
        ({"recall": 0}, "recall=0: choose"),
        ({"effort": 0}, "effort=0: look into at least 1 cell"),
        ({"effort": 3, "recall": 0.5}, "give one of them"),
        ({"top_k": 0}, "top_k=0"),
        ({"threads": 0}, "threads=0: use at least 1"),
        ({"ids": ["a"]}, "id 'a' is a string: expected integers"),
        ({"ids": [1, "a"]}, "id 'a' is of type str: expected integers"),
        ({"ids": [1, True]}, "id True is of type bool: expected integers"),
        ({"ids": [1, 2.5]}, "id 2.5 is of type float: expected integers"),
        ({"ids": [1, [2]]}, r"id \[2\] is of type list: expected integers"),
        ({"ids": [1, 2**63]}, "id 9223372036854775808 is too large"),
        ({"ids": [10**5000]}, "id huge is too large"),
        ({"ids": [-(2**63) - 1]}, "id -9223372036854775809 is too small"),
        ({"ids": 5}, "ids are 5, of type int: expected several, as in a list"),
        ({"ids": np.int64(5)}, "of type int64: expected several"),
        ({"ids": np.array([[5]])}, "of type ndarray: expected several"),
        ({"ids": "12"}, "ids are '12', of type str: expected several"),
        ({"effort": 1.5}, "effort=1.5: look into at least 1 cell"),
        ({"effort": float("nan")}, "effort=nan"),
        ({"effort": True}, "effort=True"),
        ({"recall": float("nan")}, "recall=nan"),
        ({"recall": "0.9"}, "recall=0.9: choose a share"),
        ({"top_k": 2.5}, "top_k=2.5"),
        ({"top_k": "3"}, "top_k=3"),
        ({"threads": 1.5}, "threads=1.5"),
    ],
)
def test_what_cannot_be_searched(options, said, index, queries):
    with pytest.raises(ValueError, match=said):
        index.search(queries, **options)


def test_queries_that_do_not_fit(index, vectors, queries):
    with pytest.raises(ValueError, match="queries have 96 dimensions, expected 64: encode them with the reduced model"):
        index.search(vectors[:3])
    for kind in ("U1", "O", "V2", "c8"):
        with pytest.raises(ValueError, match=r"queries are of type .*: expected floats of shape \(q, k\)"):
            index.search(np.zeros((2, K), kind))
    with pytest.raises(ValueError, match="queries are of type list: expected an array or a tensor"):
        index.search(queries.tolist())
    queries = queries.copy()
    queries[0, 0] = np.nan
    with pytest.raises(ValueError, match="expected finite vectors"):
        index.search(queries)


def test_a_recall_that_cannot_be_had(head, vectors, tmp_path, monkeypatch):
    monkeypatch.setattr("st_dimreduce.codes.index.enough_candidates", lambda *_: 1)
    index = build_index(vectors, head, tmp_path / "index", queries=head.reduce_stored(drawn(100, 5)))
    with pytest.raises(ValueError, match=r"recall=0.99: this index reaches 0.\d{4} at most; search scores every code"):
        index.search(head.reduce_stored(vectors[:1]), recall=0.99)


def test_the_command(head, vectors, queries, codes, tmp_path):
    head.save(tmp_path / "head")
    np.save(tmp_path / "x.npy", vectors[:5000])
    np.save(tmp_path / "more.npy", vectors[5000:])
    np.save(tmp_path / "q.npy", queries[:3])
    done = run("index", "build", tmp_path / "head", tmp_path / "x.npy", "--output", tmp_path / "index")
    assert done.exit_code == 0, done.output
    assert "ivf index of 5,000 vectors of 64 dimensions in int2" in " ".join(done.output.split())
    done = run("index", "build", tmp_path / "head", tmp_path / "x.npy", "--output", tmp_path / "index")
    assert done.exit_code == 2
    assert "exists" in done.output
    done = run("index", "add", tmp_path / "index", tmp_path / "more.npy")
    assert "Added 1,000: ivf index of 6,000" in " ".join(done.output.split()), done.output
    done = run("index", "search", tmp_path / "index", tmp_path / "q.npy", "--top-k", 5, "--recall", 0.99)
    lines = [line.split("\t") for line in done.output.splitlines()]
    assert [line[:2] for line in lines[:6]] == [["1", str(rank)] for rank in range(1, 6)] + [["2", "1"]]
    truth = search(queries[:3], codes, "int2", 5)[1]
    assert recall(np.array([int(line[2]) for line in lines]).reshape(3, 5), truth) > 0.9
    (tmp_path / "gone").write_text("1\n2\n")
    done = run("index", "remove", tmp_path / "index", "0", f"@{tmp_path / 'gone'}")
    assert "5,997 vectors" in done.output
    done = run("index", "remove", tmp_path / "index", "0")
    assert done.exit_code == 2
    assert "id 0 is not in the index" in done.output
    done = run("index", "remove", tmp_path / "index", "zero")
    assert "id 'zero' is no number" in done.output
    (tmp_path / "gone").write_bytes(b"\xff\xfe1\n")
    for given, said in ((f"@{tmp_path / 'gone'}", "is no text in UTF-8"), ("9" * 5000, "is no number from 0 to 2^63")):
        done = run("index", "remove", tmp_path / "index", given)
        assert done.exit_code == 2
        assert said in " ".join(done.output.split())
    done = run("index", "merge", tmp_path / "index", "--output", tmp_path / "merged")
    assert done.exit_code == 0, done.output
    done = run("index", "info", tmp_path / "merged")
    assert "5,997 vectors of 64 dimensions in int2; segments: 1, removed vectors: 0" in " ".join(done.output.split())
    assert "recall@10" in done.output
    done = run("index", "search", tmp_path / "index", tmp_path / "x.npy")
    assert done.exit_code == 2
    assert "queries have 96 dimensions" in done.output


def test_the_command_on_texts(tiny, tmp_path):
    from st_dimreduce import reduce_model, save_portable
    from tests.helpers.tiny import SENTENCES

    save_portable(reduce_model(tiny, SENTENCES, 16), tmp_path / "model")
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES[:100]))
    (tmp_path / "more.txt").write_text("\n".join(SENTENCES[100:]))
    (tmp_path / "q.txt").write_text(SENTENCES[110])
    build = ["index", "build", tmp_path / "model", tmp_path / "texts.txt", "-o", tmp_path / "index", "--kind", "flat"]
    done = run(*build)
    assert done.exit_code == 0, done.output
    done = run("index", "add", tmp_path / "index", tmp_path / "more.txt", "--model", tmp_path / "model")
    assert done.exit_code == 0, done.output
    done = run("index", "search", tmp_path / "index", tmp_path / "q.txt", "--model", tmp_path / "model", "--top-k", 1)
    assert done.output.splitlines()[-1].split("\t")[:3] == ["1", "1", "110"]
    done = run("index", "add", tmp_path / "index", tmp_path / "more.txt")
    assert done.exit_code == 2


def test_without_faiss_one_line_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['faiss'] = None\n"
        "import numpy as np, st_dimreduce as s\n"
        "head = s.Head(np.eye(2, 4, dtype=np.float32))\n"
        "try:\n    s.build_index(np.ones((3, 4), np.float32), head)\n"
        "except ModuleNotFoundError as error:\n    print(error)"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout == "an index of codes needs FAISS: pip install 'st_dimreduce[faiss]'\n"


@pytest.fixture
def searched(tiny, tmp_path):
    """A reduced model's folder, texts, and an index of them."""
    from sentence_transformers import SentenceTransformer

    from st_dimreduce import reduce_model, save_portable
    from tests.helpers.tiny import SENTENCES

    save_portable(reduce_model(tiny, SENTENCES, 16), tmp_path / "model")
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    return str(tmp_path / "model"), SENTENCES, build_index(SENTENCES, model, tmp_path / "index", kind="flat")


@pytest.mark.component("LangChain")
def test_a_langchain_retriever(searched):
    from langchain_core.documents import Document
    from langchain_huggingface import HuggingFaceEmbeddings

    from st_dimreduce.integrations.langchain import IndexRetriever

    path, texts, index = searched
    documents = [Document(text, metadata={"number": number}) for number, text in enumerate(texts)]
    retriever = IndexRetriever(index=index, embeddings=HuggingFaceEmbeddings(model_name=path), documents=documents)
    found = retriever.invoke(texts[7])
    assert [len(found), found[0].page_content] == [4, texts[7]]
    assert found[0].metadata["number"] == 7
    assert found[0].metadata["score"] >= found[1].metadata["score"]
    assert "score" not in documents[7].metadata


@pytest.mark.component("LlamaIndex")
def test_a_llamaindex_retriever(searched):
    from llama_index.core.schema import TextNode
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    from st_dimreduce.integrations.llama_index import IndexRetriever

    path, texts, index = searched
    nodes = {number: TextNode(text=text) for number, text in enumerate(texts)}
    found = IndexRetriever(index, HuggingFaceEmbedding(model_name=path), nodes, top_k=3).retrieve(texts[7])
    assert [len(found), found[0].text] == [3, texts[7]]
    assert found[0].score >= found[1].score


@pytest.mark.component("Haystack")
def test_a_haystack_retriever_in_a_pipeline(searched):
    from haystack import Document, Pipeline
    from haystack_integrations.components.embedders.sentence_transformers import SentenceTransformersTextEmbedder

    from st_dimreduce.integrations.haystack import IndexRetriever

    path, texts, index = searched
    pipeline = Pipeline()
    pipeline.add_component("embedder", SentenceTransformersTextEmbedder(model=path, progress_bar=False))
    pipeline.add_component("retriever", IndexRetriever(index, [Document(content=text) for text in texts], top_k=3))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    found = pipeline.run({"embedder": {"text": texts[7]}})["retriever"]["documents"]
    assert [len(found), found[0].content] == [3, texts[7]]
    assert found[0].score >= found[1].score


def test_the_search_page_uses_an_index_for_many_texts(searched, monkeypatch):
    from st_dimreduce.apps import search_page

    path, texts, _ = searched
    exact = search_page.Corpus(path, texts).search(texts[7], 5, "int8")
    monkeypatch.setattr(search_page, "FEWEST_INDEXED", 100)
    corpus = search_page.Corpus(path, texts)
    assert type(next(iter(corpus._models.values())).finders[Precision.FLOAT32].__self__).__name__ == "CodeIndex"
    found = corpus.search(texts[7], 5, "int8")
    assert found["reduced"]["answers"][0]["text"] == texts[7]
    assert found["full"]["answers"] == exact["full"]["answers"]
    assert len(found["reduced"]["answers"]) == 5
    assert [found[side]["searched"] for side in ("full", "reduced")] == ["every vector", "through an index"]
    monkeypatch.setattr(search_page.importlib.util, "find_spec", lambda _: None)
    assert (
        search_page.Corpus(path, texts).search(texts[7], 5, "int8")["reduced"]["answers"] == exact["reduced"]["answers"]
    )


def test_numbers_of_numpy_are_numbers(index, queries):
    wanted = index.search(queries, 5, effort=3, threads=1)
    found = index.search(queries, np.int64(5), effort=np.int32(3), threads=np.int64(10**6))
    assert np.array_equal(found[0], wanted[0])
    assert np.array_equal(found[1], wanted[1])


def test_ids_from_any_iterable(head, vectors, tmp_path):
    names = [f"a{row}" for row in range(5)]
    for number, given in enumerate((iter(names), dict.fromkeys(names), np.array(names), names)):
        assert "a3" in build_index(vectors[:5], head, tmp_path / str(number), ids=given)
    assert len(build_index(vectors[:5], head, tmp_path / "numbers", ids=iter(range(5)))) == 5
    assert "" in build_index(vectors[:1], head, tmp_path / "empty", ids=[""])


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "flat"])
def test_float_codes_of_any_norm_and_type(kind, vectors, head, tmp_path):
    """What was not scaled is found by its cosine, as exact search finds it."""
    reduced = head.reduce_stored(vectors[:2000])
    lengths = np.random.default_rng(0).uniform(0.01, 100, (2000, 1))
    queries = head.reduce_stored(drawn(50, 2))
    truth = search(queries, quantize(reduced, "float32"), "float32", 10)
    for dtype in (np.float32, np.float64, np.float16):
        given = (reduced * lengths).astype(dtype)
        index = build_index(given, head, tmp_path / np.dtype(dtype).name, kind=kind, precision="float32")
        index.add((reduced[:3] * 7).astype(dtype), ids=[5000, 5001, 5002])
        scores, ids = index.search(queries, 10, effort=EXACT, ids=range(2000))
        assert recall(ids, truth[1]) > (0.9 if dtype is np.float16 else 0.99)
        assert np.abs(scores[:, 0] - truth[0][:, 0]).max() < 1e-3
        assert recall(index.search(queries, 10, effort=EXACT)[1], truth[1]) > 0.9
    unit = quantize(reduced, "float32")
    kept = build_index(unit, head, tmp_path / "unit", kind=kind, precision="float32")
    kept.remove([0])
    for _ in range(2):  # not a bit of these changes
        assert np.array_equal(kept.codes(range(1, 2000)), unit[1:])
        kept.compact()


def test_a_graph_is_not_given_memory_for_more_than_it_holds(head, vectors, tmp_path, monkeypatch):
    from st_dimreduce.codes import scan

    index, given = build_index(vectors[:500], head, tmp_path / "index", kind="hnsw"), []
    make = scan._FAISS.SearchParametersHNSW

    def noted(**options):
        given.append(options["efSearch"])
        return make(**options)

    monkeypatch.setattr(scan._FAISS, "SearchParametersHNSW", noted)
    index.search(head.reduce_stored(vectors[:2]), 5, effort=2**31 - 2)
    assert given == [500]


def test_many_queries_are_searched_for_in_parts(index, queries, monkeypatch):
    wanted = index.search(queries, 5)
    monkeypatch.setattr("st_dimreduce.codes.index._FOUND", 1000)
    found = index.search(queries, 5)
    assert np.array_equal(found[0], wanted[0])
    assert np.array_equal(found[1], wanted[1])
    assert index.search(queries[:0], 5)[1].shape == (0, 5)


def test_indexes_from_which_all_was_removed(head, vectors, tmp_path):
    for name, rows in (("a", range(500)), ("b", range(500, 1500)), ("c", range(1500, 2000))):
        build_index(vectors[rows.start : rows.stop], head, tmp_path / name, ids=rows)
    for name, rows in (("a", range(500)), ("c", range(1500, 2000))):
        open_index(tmp_path / name).remove(rows)
    assert len(merge_indexes([tmp_path / "b", tmp_path / "a"], tmp_path / "two")) == 1000
    assert len(merge_indexes([tmp_path / "a", tmp_path / "b"], tmp_path / "three")) == 1000
    none = merge_indexes([tmp_path / "a", tmp_path / "c"], tmp_path / "none")
    assert len(none) == 0
    assert (none.search(head.reduce_stored(vectors[:2]), 5)[1] == -1).all()
    with pytest.raises(ValueError, match="holds no vector to measure recall with: add some first"):
        none.calibrate()
    none.add(quantize(head.reduce_stored(vectors[:3]), "int2"))
    assert none.search(head.reduce_stored(vectors[:1]), 1)[1] == [[2000]]


def test_a_retriever_without_one_of_the_documents(index, queries):
    from st_dimreduce.integrations.documents import found_documents

    first = int(index.search(queries[:1], 1)[1][0, 0])
    assert found_documents(index, queries[0].tolist(), 1, {first: "text"})[0][0] == "text"
    for documents in ({}, []):
        with pytest.raises(ValueError, match=f"the index found id {first}, which no document has: give a document"):
            found_documents(index, queries[0].tolist(), 1, documents)


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "flat"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_query_of_zeros_scores_zero_everywhere(kind, precision, vectors, head, tmp_path):
    index = build_index(vectors[:200], head, tmp_path / "index", kind=kind, precision=precision)
    scores, ids = index.search(np.zeros((2, K), np.float32), 5)
    assert (scores == 0).all()
    assert all(len(set(row)) == 5 and min(row) >= 0 for row in ids.tolist())


def test_one_id_is_not_taken_for_several(index):
    for change in (index.remove, index.codes):
        for given in ("12", b"12", 12):
            with pytest.raises(ValueError, match="expected several, as in a list"):
                change(given)
    assert len(index) == ROWS
    with pytest.raises(ValueError, match="codes are of type list: expected an array, as quantize gives it"):
        index.add([[1] * 16])
    with pytest.raises(ValueError, match="id 7000 and 1 others is not in the index"):
        index.remove(np.array([7000, 7001]))
