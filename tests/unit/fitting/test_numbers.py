"""Vectors at the edge of what numbers can say, and what becomes of them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from st_dimreduce import Head, Precision, Summary
from st_dimreduce.codes.precision import dequantize, quantize
from st_dimreduce.fitting import closed_form
from st_dimreduce.fitting.closed_form import closed_form_head

RNG = np.random.default_rng(0)


def rows(count, width, seed=0):
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("strength", [0, 1])
def test_vectors_that_are_all_equal_stay_equal(strength):
    same = np.repeat(rows(1, 16), 50, axis=0)
    reduced = closed_form_head(Summary.of(same), 8, strength=strength).forward(same)
    assert np.isfinite(reduced).all()
    assert np.array_equal(reduced, np.repeat(reduced[:1], 50, axis=0))
    assert np.linalg.norm(reduced[0]) > 0, "they still have a direction"


@pytest.mark.parametrize("strength", [0, 1])
def test_a_rank_below_out_features_keeps_every_cosine(strength, monkeypatch):
    monkeypatch.setattr(closed_form, "GAIN", 0.01)
    low = rows(200, 3) @ rows(3, 32, seed=1)
    reduced = unit(closed_form_head(Summary.of(low), 16, strength=strength, whitening=0).forward(low))
    assert np.isfinite(reduced).all()
    if strength == 0:
        assert np.allclose(reduced @ reduced.T, unit(low) @ unit(low).T, atol=1e-2)


def test_one_outlier_counts_as_one_vector():
    plain = rows(500, 16)
    outlier = plain.copy()
    outlier[7] *= 1e6
    one, other = (closed_form_head(Summary.of(x), 8) for x in (plain, outlier))
    assert np.allclose(one.weight, other.weight, atol=1e-6), "only directions count"


def test_denormals_are_refused_by_a_fit_and_stored_by_a_grid():
    plain = rows(300, 16)
    tiny = (plain.astype(np.float64) * 1e-40).astype(np.float32)
    assert 0 < np.abs(tiny).max() < np.finfo(np.float32).tiny
    with pytest.raises(ValueError, match=r"row 0 has norm .*e-40: drop or repair it"):
        Summary.of(tiny)
    # So few digits are left of them that a code may fall one level beside.
    assert np.abs(quantize(plain, "int8").astype(int) - quantize(tiny, "int8")).max() <= 1


def test_float16_beyond_its_range_is_named():
    with np.errstate(over="ignore"):
        half = (rows(20, 8) * 1e5).astype(np.float16)
    assert np.isinf(half).any()
    with pytest.raises(ValueError, match="has norm inf: drop or repair it"):
        Summary.of(half)
    half = (rows(20, 8) * 1e4).astype(np.float16)
    assert np.isfinite(half).all()
    assert np.allclose(Summary.of(half).gram, Summary.of(half.astype(np.float64)).gram, atol=1e-5)


def test_as_many_vectors_as_dimensions_asked_for(monkeypatch):
    monkeypatch.setattr(closed_form, "GAIN", 0.01)
    few = rows(8, 32)
    reduced = unit(closed_form_head(Summary.of(few), 8, strength=0).forward(few))
    assert np.allclose(reduced @ reduced.T, unit(few) @ unit(few).T, atol=1e-2)


@pytest.mark.parametrize("strength", [0, 1])
def test_one_dimension_keeps_the_sign(strength):
    line = rows(40, 1)
    reduced = closed_form_head(Summary.of(line), 1, strength=strength).forward(line)
    assert (np.sign(reduced) == np.sign(line)).all() or (np.sign(reduced) == -np.sign(line)).all()
    for precision in Precision:
        back = dequantize(quantize(reduced, precision), precision, 1)
        assert (np.sign(back) == np.sign(reduced)).all()


@pytest.mark.parametrize("strength", [0, 1])
def test_a_wide_model_whose_last_directions_are_not_computed_gets_the_same_head(strength, monkeypatch):
    varied = rows(800, 256) * np.linspace(2, 0.1, 256, dtype=np.float32) + rows(1, 256) / 2
    low, basis = rows(100, 3) @ rows(3, 256, seed=1), np.eye(256, dtype=np.float32)[:20]
    expected = closed_form_head(Summary.of(varied), 16, strength=strength).weight
    monkeypatch.setattr("st_dimreduce.fitting.closed_form._WIDE", 100)
    monkeypatch.setattr(np.linalg, "eigh", None)  # finds all of them
    found = closed_form_head(Summary.of(varied), 16, strength=strength).weight
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    for x in (low, basis):  # eigenvalues that are equal, or zero
        one, other = (closed_form_head(Summary.of(x), 16, strength=strength, rotation=None) for _ in range(2))
        assert np.array_equal(one.weight, other.weight)
        assert np.isfinite(one.forward(x)).all()


@pytest.mark.parametrize("width", [1, 7, 384])
def test_all_dimensions_are_a_rotation(width, monkeypatch):
    monkeypatch.setattr(closed_form, "GAIN", 0.001)
    x = rows(width + 50, width)
    reduced = unit(closed_form_head(Summary.of(x), width, strength=0).forward(x))
    assert np.allclose(reduced @ reduced.T, unit(x) @ unit(x).T, atol=1e-4)


THREADS = """
import sys
import numpy as np
from st_dimreduce import Summary
from st_dimreduce.fitting.fit import fit_head
x = np.random.default_rng(0).standard_normal((3000, 96)) * np.linspace(3, 0.1, 96)
np.save(sys.argv[1], fit_head(Summary.of(x.astype(np.float32)), 32).weight)
"""


def test_one_thread_or_two_the_head_is_the_same(tmp_path, monkeypatch):
    weights = []
    for threads in ("1", "2"):
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            monkeypatch.setenv(name, threads)
        command = [sys.executable, "-c", THREADS, str(tmp_path / f"{threads}.npy")]
        subprocess.run(command, check=True, timeout=120)
        weights.append(np.load(tmp_path / f"{threads}.npy"))
    assert np.abs(weights[0] - weights[1]).max() < 1e-5 * np.abs(weights[0]).max()


def test_edge_vectors_are_written_as_finite_numbers(tmp_path):
    edge = np.concatenate([rows(5, 16), rows(5, 16) * 1e28, rows(5, 16) * np.float32(1e-28)])
    head = Head(rows(8, 16))
    head.transform_file(edge, tmp_path / "x.npy", "float32")
    assert np.isfinite(np.load(tmp_path / "x.npy")).all()
