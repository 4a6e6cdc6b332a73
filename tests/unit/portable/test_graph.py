"""Codes that a graph computes are those of the model's embeddings, entry by entry."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from st_dimreduce import Precision
from st_dimreduce.codes.precision import INT8_STEPS, quantize, thresholds
from st_dimreduce.portable.graph import Codes

CODES = [precision for precision in Precision if precision is not Precision.FLOAT32]


def clear(embeddings, precision):
    """Which rows have no entry so near the edge between two codes that rounding decides."""
    scaled = quantize(embeddings, "float32") * np.sqrt(embeddings.shape[1])
    if precision == "int8":
        distance = np.abs(scaled * INT8_STEPS % 1 - 0.5) / INT8_STEPS
    else:
        distance = np.abs(scaled[..., None] - thresholds(precision)).min(axis=-1)
    return distance.min(axis=1) > 1e-5


@pytest.mark.parametrize("precision", CODES)
@pytest.mark.parametrize("size", [1, 5, 13, 32])
def test_codes_are_those_of_quantize(precision, size):
    vectors = np.random.default_rng(size).standard_normal((3000, size), np.float32)
    vectors *= np.float32(10.0) ** np.arange(-12, 12, dtype=np.float32).repeat(125)[:, None]
    vectors[0] = 0
    codes = Codes(precision, size)(torch.from_numpy(vectors)).numpy()
    expected, rows = quantize(vectors, precision), clear(vectors, precision) | (np.arange(3000) == 0)
    assert rows.mean() > 0.5
    assert codes.dtype == expected.dtype
    assert np.array_equal(codes[rows], expected[rows])
