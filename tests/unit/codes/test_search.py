from __future__ import annotations

import numpy as np
import pytest
import torch

from st_dimreduce import Precision
from st_dimreduce.codes.precision import dequantize, quantize
from st_dimreduce.codes.search import rescore, search

RNG = np.random.default_rng(0)
DOCUMENTS = RNG.standard_normal((500, 24)).astype(np.float32)
QUERIES = DOCUMENTS[:40] + 0.3 * RNG.standard_normal((40, 24)).astype(np.float32)
ALL = [precision.value for precision in Precision]


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("precision", ALL)
@pytest.mark.parametrize("k", [1, 10, 600])
@pytest.mark.parametrize("blocks", [(3, 7), (1024, 8192)])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_equals_a_full_sort(precision, k, blocks, kind):
    codes = quantize(DOCUMENTS, precision)
    scores, rows = search(kind(QUERIES), codes, precision, k, block_size=blocks)
    everything = unit(QUERIES) @ dequantize(codes, precision, 24).T
    assert scores.shape == rows.shape == (40, min(k, 500))
    assert np.allclose(scores, -np.sort(-everything, axis=1)[:, :k], atol=1e-5)
    assert np.allclose(np.take_along_axis(everything, rows, axis=1), scores, atol=1e-5)
    assert all(len(set(found)) == len(found) for found in rows.tolist())


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("precision", ["int8", "int4", "int2", "binary"])
@pytest.mark.parametrize("size", [22, 24])
@pytest.mark.parametrize("apart", [1.0, 0.02])
def test_a_tensor_of_queries_finds_the_best_of_many_also_among_near_duplicates(
    amx, precision, size, apart, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    documents = 1 + apart * RNG.standard_normal((20_000, size)).astype(np.float32)
    queries, codes = documents[:50] + 0.3, quantize(documents, precision)
    scores, rows = search(torch.from_numpy(queries), codes, precision)
    everything = unit(queries) @ dequantize(codes, precision, size).T
    assert np.allclose(scores, -np.sort(-everything, axis=1)[:, :10], atol=1e-5)
    assert np.allclose(np.take_along_axis(everything, rows, axis=1), scores, atol=1e-5)


NORMS = [(np.float64, 1e-300), (np.float64, 1e300), (np.float32, 1e-30), (np.float32, 1e30), (np.float16, 6e3)]


@pytest.mark.parametrize(("kind", "norm"), NORMS)
@pytest.mark.parametrize("precision", ALL)
def test_scores_are_cosines_whatever_the_norm_and_type_of_a_query(kind, norm, precision):
    queries = (norm * unit(QUERIES.astype(np.float64))).astype(kind)
    codes = quantize(DOCUMENTS, precision)
    exact = unit(queries.astype(np.longdouble)).astype(np.float32) @ dequantize(codes, precision, 24).T
    for given in (queries, torch.from_numpy(queries)):
        scores, rows = search(given, codes, precision)
        assert np.allclose(scores, -np.sort(-exact, axis=1)[:, :10], atol=1e-5)
        assert np.allclose(np.take_along_axis(exact, rows, axis=1), scores, atol=1e-5)


@pytest.mark.parametrize(("kind", "norm"), NORMS)
@pytest.mark.parametrize("stored", [np.float16, np.float32, np.float64])
def test_rescoring_gives_cosines_whatever_the_norms_and_types(kind, norm, stored):
    vectors = unit(DOCUMENTS.astype(np.float64)) * {np.float16: 6e3, np.float32: 1e30, np.float64: 1e-300}[stored]
    vectors, queries = vectors.astype(stored), (norm * unit(QUERIES.astype(np.float64))).astype(kind)
    exact = unit(queries.astype(np.longdouble)) @ unit(vectors.astype(np.longdouble)).T
    scores, rows = rescore(queries, vectors, np.tile(np.arange(500), (40, 1)))
    assert np.allclose(scores, -np.sort(-exact, axis=1)[:, :10].astype(float), atol=1e-6)
    assert np.allclose(np.take_along_axis(exact, rows, axis=1).astype(float), scores, atol=1e-6)


def test_stored_floats_of_any_norm_are_scored_by_their_direction():
    stored = DOCUMENTS * np.float32(10.0) ** np.arange(-25, 25, dtype=np.float32).repeat(10)[:, None]
    scores, rows = search(QUERIES, stored, "float32")
    expected = search(QUERIES, quantize(DOCUMENTS, "float32"), "float32")
    assert np.allclose(scores, expected[0], atol=1e-6)
    assert np.array_equal(rows, expected[1])


def test_a_zero_row_scores_zero_against_everything():
    queries, documents = QUERIES.copy(), DOCUMENTS.copy()
    queries[3], documents[5] = 0, 0
    assert (search(queries, quantize(documents, "int4"), "int4")[0][3] == 0).all()
    scores, rows = search(queries, quantize(documents, "float32"), "float32", 500)
    again, same = rescore(queries, documents, np.tile(np.arange(500), (40, 1)), 500)
    for found, where in ((scores, rows), (again, same)):
        assert (found[3] == 0).all()
        assert (found[where == 5] == 0).all()
    assert np.allclose(scores, again, atol=1e-6)


def test_float_queries_find_more_than_codes_against_codes():
    codes = quantize(DOCUMENTS, "binary")
    truth = np.argsort(-unit(QUERIES) @ unit(DOCUMENTS).T, axis=1)[:, :10]

    def overlap(rows):
        return np.mean([len(set(a) & set(b)) for a, b in zip(rows.tolist(), truth.tolist(), strict=True)])

    asymmetric = search(QUERIES, codes, "binary")[1]
    symmetric = search(dequantize(quantize(QUERIES, "binary"), "binary", 24), codes, "binary")[1]
    assert overlap(asymmetric) > overlap(symmetric)


def test_rescoring_candidates_with_stored_vectors():
    candidates = search(QUERIES, quantize(DOCUMENTS, "binary"), "binary", 500)[1]
    scores, rows = rescore(QUERIES, DOCUMENTS, candidates, 5)
    exact = unit(QUERIES) @ unit(DOCUMENTS).T
    assert np.array_equal(rows, np.argsort(-exact, axis=1)[:, :5])
    assert np.allclose(scores, -np.sort(-exact, axis=1)[:, :5], atol=1e-5)
    assert rescore(QUERIES, DOCUMENTS.astype(np.float16), candidates[:, :3])[1].shape == (40, 3)


def test_no_documents_and_no_queries():
    assert search(QUERIES, quantize(DOCUMENTS[:0], "int4"), "int4")[1].shape == (40, 0)
    assert search(QUERIES[:0], quantize(DOCUMENTS, "int4"), "int4")[1].shape == (0, 10)


@pytest.mark.parametrize(
    ("queries", "codes", "precision", "k", "message"),
    [
        (QUERIES, quantize(DOCUMENTS, "int4"), "int8", 10, r"expected \(n, 24\) for 24 dimensions in int8"),
        (QUERIES[:, :20], quantize(DOCUMENTS, "int4"), "int4", 10, r"expected \(n, 10\) for 20 dimensions in int4"),
        (QUERIES, quantize(DOCUMENTS, "int4"), "int3", 10, "unknown precision 'int3'"),
        (QUERIES, quantize(DOCUMENTS, "int4"), "int4", 0, "k=0: ask for at least 1"),
        (QUERIES[0], quantize(DOCUMENTS, "int4"), "int4", 10, r"^the queries: got shape \(24,\), expected \(q, k\)"),
        (
            QUERIES * np.nan,
            quantize(DOCUMENTS, "int4"),
            "int4",
            10,
            "^the queries: got NaN or infinity, expected finite",
        ),
        (
            QUERIES,
            quantize(DOCUMENTS, "int8").view(np.uint8),
            "int8",
            10,
            "codes are of type uint8, int8 codes .* int8",
        ),
        (QUERIES, quantize(DOCUMENTS, "int4").view(np.int8), "int4", 10, "codes are of type int8, int4 codes .* uint8"),
        (QUERIES, quantize(DOCUMENTS, "int8"), "float32", 10, "codes are of type int8, float32 codes .* floats"),
        (np.ma.masked_less(QUERIES, 0), quantize(DOCUMENTS, "int4"), "int4", 10, "the queries: got a masked array"),
        (QUERIES, np.ma.masked_equal(quantize(DOCUMENTS, "int8"), 1), "int8", 10, "the codes: got a masked array"),
    ],
)
def test_bad_input(queries, codes, precision, k, message):
    with pytest.raises(ValueError, match=message):
        search(queries, codes, precision, k)


def changed(candidate):
    candidates = np.zeros((40, 2), int)
    candidates[7, 1] = candidate
    return candidates


@pytest.mark.parametrize(
    ("queries", "vectors", "candidates", "message"),
    [
        (QUERIES, DOCUMENTS[:, :3], changed(0), r"expected \(q, d\), \(n, d\) and \(q, c\)"),
        (QUERIES, DOCUMENTS, changed(0)[0], r"expected \(q, d\), \(n, d\) and \(q, c\)"),
        (QUERIES, DOCUMENTS, changed(-1), "candidates hold -1: expected rows of vectors, 0 to 499"),
        (QUERIES, DOCUMENTS, changed(500), "candidates hold 500: expected rows of vectors, 0 to 499"),
        (QUERIES, DOCUMENTS[:0], changed(0), "candidates hold 0: .* there is no vector"),
        (QUERIES, DOCUMENTS, changed(0).astype(float), "candidates are of type float64: expected whole numbers"),
        (QUERIES * np.inf, DOCUMENTS, changed(0), "^the queries: got NaN or infinity, expected finite"),
        (QUERIES, DOCUMENTS * np.inf, changed(0), "row 0 of vectors holds NaN or infinity"),
        (np.ma.masked_less(QUERIES, 0), DOCUMENTS, changed(0), "the queries: got a masked array"),
        (QUERIES, np.ma.masked_less(DOCUMENTS, 0), changed(0), "the vectors: got a masked array"),
        (QUERIES, DOCUMENTS, np.ma.masked_equal(changed(9), 9), "the candidates: got a masked array"),
    ],
)
def test_bad_rescoring(queries, vectors, candidates, message):
    with pytest.raises(ValueError, match=message) as error:
        rescore(queries, vectors, candidates)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("block_size", [(0, 10), (10, 0), (10, -10)])
def test_blocks_of_nothing_are_refused(block_size):
    with pytest.raises(ValueError, match=r"block_size=.*: score at least 1 query and 1 code at a time"):
        search(QUERIES, quantize(DOCUMENTS, "int4"), "int4", block_size=block_size)
