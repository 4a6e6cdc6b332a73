from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from st_dimreduce import (
    DimReduce,
    Head,
    Precision,
    Summary,
    build_index,
    dequantize,
    quantize,
    reduce_vectors,
    search,
    summarize,
)

faiss = pytest.importorskip("faiss")

from st_dimreduce.codes.precision import bytes_to_levels  # noqa: E402
from st_dimreduce.integrations import faiss_index  # noqa: E402

pytestmark = [pytest.mark.component("FAISS"), pytest.mark.wings("integrations")]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((3000, 32)).astype(np.float32)
QUERIES = X[:50] + 0.3 * RNG.standard_normal((50, 32)).astype(np.float32)
IDS = RNG.permutation(10**6)[: len(X)]
HEAD = Head(RNG.standard_normal((12, 32)) / 8)
reduce_index = partial(faiss_index.reduce_index, batch_bytes=512 * 4 * 32)


def flat(kind=faiss.IndexFlatIP):
    index = kind(32)
    index.add(X)
    return index


def with_ids(kind=faiss.IndexIDMap):
    index = kind(faiss.IndexFlatL2(32))
    index.add_with_ids(X, IDS)
    return index


def asked(precision):
    return quantize(HEAD.reduce(QUERIES), "binary" if precision == "binary" else "float32")


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_scores_are_cosines(precision, tmp_path):
    reduced = reduce_index(flat(), HEAD, precision)
    assert (reduced.d, reduced.ntotal, reduced.metric_type) == (12, len(X), faiss.METRIC_INNER_PRODUCT)
    assert type(reduced) is (faiss.IndexFlatIP if precision == "float32" else faiss.IndexScalarQuantizer)
    assert reduced.sa_code_size() == (48 if precision == "float32" else 12)
    scores, rows = reduced.search(asked(precision), 10)
    codes = quantize(HEAD.reduce(X), precision)
    ours = search(HEAD.reduce(QUERIES), codes, precision)
    assert np.allclose(scores, ours[0], atol=1e-5 if precision == "float32" else 0.01)
    assert (rows[:, 0] == ours[1][:, 0]).mean() > 0.95
    faiss.write_index(reduced, str(tmp_path / "x.faiss"))
    assert np.array_equal(faiss.read_index(str(tmp_path / "x.faiss")).search(asked(precision), 10)[1], rows)


def test_the_8_bit_grid_is_the_fixed_one():
    reduced = reduce_index(flat(), HEAD, "int8")
    stored = reduced.reconstruct_n(0, len(X))
    unit = quantize(HEAD.reduce(X), "float32")
    assert np.allclose(faiss.vector_to_array(reduced.sq.trained), [-4 / np.sqrt(12), 8 / np.sqrt(12)])
    assert np.abs(stored - unit).max() <= 1.01 * 4 / np.sqrt(12) / 255
    ours = dequantize(quantize(HEAD.reduce(X), "int8"), "int8", 12)
    assert np.abs(stored - ours).max() <= 2.2 * 4 / np.sqrt(12) / 255


def test_binary_codes_are_ours():
    reduced = reduce_index(flat(), HEAD, "binary")
    codes = quantize(HEAD.reduce(X), "binary")
    assert (reduced.d, reduced.ntotal) == (16, len(X))
    assert np.array_equal(faiss.vector_to_array(reduced.xb).reshape(len(X), 2), codes)
    distances, _ = reduced.search(asked("binary"), 1)
    apart = np.unpackbits(asked("binary")[:, None] ^ codes[None], axis=2).sum(axis=2)
    assert np.array_equal(distances[:, 0], apart.min(axis=1))


@pytest.mark.parametrize("precision", ["float32", "int8", "binary"])
@pytest.mark.parametrize("kind", [faiss.IndexIDMap, faiss.IndexIDMap2])
def test_ids_stay_with_their_vectors(precision, kind, tmp_path):
    plain = reduce_index(flat(), HEAD, precision).search(asked(precision), 5)
    reduced = reduce_index(with_ids(kind), HEAD, precision)
    scores, ids = reduced.search(asked(precision), 5)
    assert np.array_equal(ids, IDS[plain[1]])
    assert np.array_equal(scores, plain[0])
    write, read = (faiss.write_index, faiss.read_index)
    if precision == "binary":
        write, read = faiss.write_index_binary, faiss.read_index_binary
    write(reduced, str(tmp_path / "x.faiss"))
    assert np.array_equal(read(str(tmp_path / "x.faiss")).search(asked(precision), 5)[1], ids)


@pytest.mark.parametrize("precision", ["int4", "int2"])
def test_packed_codes_are_ours(precision, tmp_path):
    reduced = reduce_index(flat(), HEAD, precision)
    codes = quantize(HEAD.reduce(X), precision)
    assert np.array_equal(faiss.vector_to_array(reduced.codes).reshape(codes.shape), codes)
    scores, rows = reduced.search(asked(precision), 10)
    decoded = bytes_to_levels(Precision(precision))[codes].reshape(len(X), 12) / np.sqrt(12)
    expected = np.sort(asked(precision) @ decoded.T, axis=1)[:, :-11:-1]
    assert np.allclose(scores, expected, atol=1e-5)
    truth = search(HEAD.reduce(QUERIES), codes, precision, 10)[0]
    assert np.abs(scores - truth).mean() < 0.1  # the norms of codes of so few dimensions
    faiss.write_index(reduced, str(tmp_path / "x.faiss"))
    assert np.array_equal(faiss.read_index(str(tmp_path / "x.faiss")).search(asked(precision), 10)[1], rows)


@pytest.mark.parametrize("precision", ["float32", "int4", "binary"])
def test_inverted_files_and_graphs_of_whole_vectors(precision):
    graph = faiss.index_factory(32, "HNSW8")
    graph.add(X)
    inverted = faiss.index_factory(32, "IVF16,Flat")
    inverted.train(X)
    inverted.add_with_ids(X, IDS)
    mapped = faiss.IndexIDMap(faiss.index_factory(32, "HNSW8"))
    mapped.add_with_ids(X, IDS)
    truth = reduce_index(flat(), HEAD, precision).search(asked(precision), 1)
    assert np.array_equal(reduce_index(graph, HEAD, precision).search(asked(precision), 1)[1], truth[1])
    for index in (inverted, mapped):
        scores, ids = reduce_index(index, HEAD, precision).search(asked(precision), 1)
        assert np.allclose(scores, truth[0], atol=1e-6)
        assert (ids == IDS[truth[1]]).mean() > (0.4 if precision == "binary" else 0.99)  # bits tie
    assert inverted.direct_map.type == faiss.DirectMap.NoMap


def test_an_index_of_codes_keeps_the_ids_of_a_faiss_index():
    inverted = faiss.index_factory(32, "IVF16,Flat")
    inverted.train(X)
    inverted.add_with_ids(X, IDS)
    for index in (inverted, with_ids()):
        built = build_index(index, HEAD, precision="int4", kind="flat")
        assert np.array_equal(built.codes(IDS[:50]), quantize(HEAD.reduce(X[:50]), "int4"))
    assert np.array_equal(build_index(flat(), HEAD, precision="int4").codes([7]), quantize(HEAD.reduce(X[7:8]), "int4"))


def test_the_source_is_left_as_it_was():
    index = with_ids()
    reduce_index(index, HEAD)
    assert np.array_equal(faiss.downcast_index(index.index).reconstruct_n(0, len(X)), X)
    codes = np.concatenate(list(reduce_vectors(index, HEAD, precision="int4")))
    assert np.array_equal(codes, quantize(HEAD.reduce(X), "int4"))


@pytest.mark.parametrize("kind", [faiss.IndexFlatIP, faiss.IndexFlatL2])
def test_a_flat_index_is_a_source_of_vectors(kind):
    summary = summarize(flat(kind), batch_bytes=512 * 4 * 32)
    assert summary.count == len(X)
    assert np.allclose(summary.gram, Summary.of(X).gram, atol=1e-7)
    assert len(summary.sample) == len(X)
    codes = list(reduce_vectors(flat(kind), HEAD, precision="int4", batch_bytes=512 * 4 * 32))
    assert [len(batch) for batch in codes] == [512] * 5 + [440]
    assert np.array_equal(np.concatenate(codes), quantize(HEAD.reduce(X), "int4"))


def test_a_trained_index_is_no_source_of_vectors(tmp_path):
    index = faiss.index_factory(32, "PQ8")
    message = "IndexPQ does not hold whole vectors: give a flat FAISS index"
    with pytest.raises(ValueError, match=message) as caught:
        reduce_vectors(index, HEAD, tmp_path / "sink.npy")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        summarize(index)
    assert not list(tmp_path.iterdir()), "something was left behind"


def test_what_cannot_be_reduced():
    with pytest.raises(ValueError, match="5 dimensions in int2: FAISS takes a multiple of 4, or use build_index"):
        reduce_index(flat(), Head(np.eye(5, 32)), "int2")
    with pytest.raises(ValueError, match="unknown precision 'int9'"):
        reduce_index(flat(), HEAD, "int9")
    with pytest.raises(ValueError, match="IndexHNSWSQ does not hold whole vectors: give a flat FAISS index"):
        reduce_index(faiss.index_factory(32, "HNSW8_SQ8"), HEAD)
    with pytest.raises(ValueError, match="IndexIDMap does not hold whole vectors"):
        reduce_index(faiss.IndexIDMap(faiss.index_factory(32, "SQ8")), HEAD)
    with pytest.raises(ValueError, match="there is no vector in the source"):
        reduce_index(faiss.IndexFlatIP(32), HEAD)
    with pytest.raises(ValueError, match="the vectors have 32 dimensions, the head takes 31"):
        reduce_index(flat(), DimReduce(31, 4))
    bad = flat()
    bad.add(np.zeros((1, 32), np.float32))
    with pytest.raises(ValueError, match="row 3000 is all zeros"):
        reduce_index(bad, HEAD)
