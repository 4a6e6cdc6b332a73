"""More dimensions and more rows than usual."""

from __future__ import annotations

import numpy as np
import pytest

from st_dimreduce import Summary, quantize, search
from st_dimreduce.fitting.closed_form import closed_form_head


def rows(count, width, seed=0):
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.slow
def test_eight_thousand_dimensions():
    wide = rows(64, 8192)
    head = closed_form_head(Summary.of(wide), 32, rotation="random", objective="fidelity")
    assert (head.in_features, head.out_features) == (8192, 32)
    reduced = unit(head.reduce(wide))
    assert np.isfinite(reduced).all()
    codes = quantize(wide, "binary")
    assert codes.shape == (64, 1024)
    assert np.array_equal(search(wide, codes, "binary", 1)[1][:, 0], np.arange(64))


def test_ten_million_rows_in_float32_are_those_in_float64():
    width, block = 4, 1_000_000
    shift = np.array([1.0, 0.1, 0, 0])
    summary, gram, mean = Summary(width), np.zeros((width, width)), np.zeros(width)
    for seed in range(10):
        exact = np.random.default_rng(seed).standard_normal((block, width)) + shift
        summary.update(exact.astype(np.float32))
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
        gram, mean = gram + exact.T @ exact, mean + exact.sum(axis=0)
    assert summary.count == 10 * block
    assert np.allclose(summary.gram, gram / summary.count, rtol=0, atol=1e-7)
    assert np.allclose(summary.mean, mean / summary.count, rtol=0, atol=1e-7)
