from __future__ import annotations

import numpy as np
import pytest
import torch

from st_dimreduce import Precision, dequantize, quantize, rescore, search

RNG = np.random.default_rng(0)
DOCUMENTS = RNG.standard_normal((500, 24)).astype(np.float32)
QUERIES = DOCUMENTS[:40] + 0.3 * RNG.standard_normal((40, 24)).astype(np.float32)
ALL = [precision.value for precision in Precision]


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("precision", ALL)
@pytest.mark.parametrize("top_k", [1, 10, 600])
@pytest.mark.parametrize("blocks", [(3, 7), (1024, 8192)])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_equals_a_full_sort(precision, top_k, blocks, kind):
    codes = quantize(DOCUMENTS, precision)
    scores, rows = search(kind(QUERIES), codes, precision, top_k, block_size=blocks)
    everything = unit(QUERIES) @ dequantize(codes, precision, 24).T
    assert scores.shape == rows.shape == (40, min(top_k, 500))
    assert np.allclose(scores, -np.sort(-everything, axis=1)[:, :top_k], atol=1e-5)
    assert np.allclose(np.take_along_axis(everything, rows, axis=1), scores, atol=1e-5)
    assert all(len(set(found)) == len(found) for found in rows.tolist())


@pytest.mark.parametrize("amx", [False, True])
@pytest.mark.parametrize("precision", ["int8", "int4", "int2", "binary"])
@pytest.mark.parametrize("size", [22, 24])
def test_finds_the_best_of_many_whatever_the_cpu_multiplies_fastest(amx, precision, size, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    documents = RNG.standard_normal((20_000, size)).astype(np.float32)
    queries, codes = documents[:50] + 0.3, quantize(documents, precision)
    scores, rows = search(torch.from_numpy(queries), codes, precision)
    everything = unit(queries) @ dequantize(codes, precision, size).T
    assert np.allclose(scores, -np.sort(-everything, axis=1)[:, :10], atol=1e-5)
    assert np.allclose(np.take_along_axis(everything, rows, axis=1), scores, atol=1e-5)


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
    ("queries", "codes", "precision", "top_k", "message"),
    [
        (QUERIES, quantize(DOCUMENTS, "int4"), "int8", 10, r"expected \(n, 24\) for 24 dimensions in int8"),
        (QUERIES[:, :20], quantize(DOCUMENTS, "int4"), "int4", 10, r"expected \(n, 10\) for 20 dimensions in int4"),
        (QUERIES, quantize(DOCUMENTS, "int4"), "int3", 10, "unknown precision 'int3'"),
        (QUERIES, quantize(DOCUMENTS, "int4"), "int4", 0, "top_k=0: ask for at least 1"),
        (QUERIES[0], quantize(DOCUMENTS, "int4"), "int4", 10, r"shape \(24,\): expected finite vectors"),
        (QUERIES * np.nan, quantize(DOCUMENTS, "int4"), "int4", 10, "expected finite vectors"),
    ],
)
def test_bad_input(queries, codes, precision, top_k, message):
    with pytest.raises(ValueError, match=message):
        search(queries, codes, precision, top_k)


def test_bad_rescoring():
    with pytest.raises(ValueError, match=r"expected \(q, d\), \(n, d\) and \(q, c\)"):
        rescore(QUERIES, DOCUMENTS[:, :3], np.zeros((40, 2), int))
