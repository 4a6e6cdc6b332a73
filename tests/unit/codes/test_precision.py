from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.util.quantization import quantize_embeddings

from st_dimreduce import Precision
from st_dimreduce.codes.precision import dequantize, quantize

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2000, 64)).astype(np.float32)
ALL = [precision.value for precision in Precision]


def cosine(one, other):
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


# For a Gaussian, the cosine after quantising to the best 2^b levels is the square root of 1 - distortion, and the
# distortions are 0.3634 (1 bit), 0.1175 (2 bits) and 0.009497 (4 bits): Max 1960, table I.
@pytest.mark.parametrize(
    ("precision", "expected"),
    [("binary", 0.798), ("int2", 0.9394), ("int4", 0.99524), ("int8", 0.9998), ("float32", 1.0)],
)
def test_error_is_what_theory_says(precision, expected):
    got = dequantize(quantize(X, precision), precision, 64)
    assert cosine(got, X).mean() == pytest.approx(expected, abs=4e-3)
    assert np.allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("precision", ALL)
@pytest.mark.parametrize("size", [1, 7, 64])
def test_takes_exactly_the_bytes_it_says(precision, size):
    codes = quantize(X[:10, :size], precision)
    assert codes.nbytes == 10 * Precision(precision).bytes_per_vector(size)
    assert dequantize(codes, precision, size).shape == (10, size)
    assert Precision("int4").bytes_per_vector(128) == 64
    assert Precision("binary").bytes_per_vector(100) == 13


@pytest.mark.parametrize("precision", ALL)
@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.integers(0, 1999), min_size=1, max_size=20), scale=st.floats(1e-20, 1e20))
def test_a_code_depends_on_the_direction_of_its_row_alone(precision, rows, scale):
    together = quantize(X, precision)[rows]
    alone = quantize((X[rows].astype(np.float64) * scale).astype(np.float32), precision)
    if precision == "float32":
        assert np.allclose(alone, together, atol=1e-6)
    else:
        differ = (alone != together).sum()
        assert differ <= 1 + together.size // 100, "rounding at a threshold aside, codes are equal"


@pytest.mark.parametrize("precision", ["int8", "int4", "int2", "binary"])
def test_codes_of_codes_are_the_same(precision):
    codes = quantize(X, precision)
    if precision in ("int8", "binary"):
        assert np.mean(quantize(dequantize(codes, precision, 64), precision) != codes) < 0.01
    again = dequantize(quantize(dequantize(codes, precision, 64), precision), precision, 64)
    assert cosine(again, dequantize(codes, precision, 64)).min() > 0.97


def test_binary_is_that_of_sentence_transformers():
    assert np.array_equal(quantize(X, "binary"), quantize_embeddings(X, "ubinary"))


def test_int4_and_int2_are_packed_first_dimension_highest():
    row = np.array([[3, -3, 0.1, -0.1]], np.float32)
    (byte,) = quantize(row, "int2")[0]
    assert [byte >> 6, byte >> 4 & 3, byte >> 2 & 3, byte & 3] == [3, 0, 2, 1]
    high, low = quantize(row, "int4")[0]
    assert high >> 4 > 8 > high & 15
    assert (low >> 4, low & 15) == (8, 7)


@pytest.mark.parametrize("precision", ALL)
def test_zero_nan_and_infinity(precision):
    row = np.array([[0, 0, 0, 0], [1, np.nan, -1, 2], [np.inf, 1, -np.inf, 0]], np.float32)
    codes = quantize(row, precision)
    assert np.isfinite(dequantize(codes, precision, 4)).all()
    without = quantize(np.array([[1, 0, -1, 2]], np.float32), precision)
    assert np.allclose(codes[1:2], without, rtol=0, atol=1e-6 if precision == "float32" else 0)
    if precision not in ("int2", "binary"):
        assert np.sign(dequantize(codes, precision, 4)[2]).tolist()[::2] == [1, -1]


def test_no_rows_or_no_dimensions_at_all():
    for precision in ALL:
        assert dequantize(quantize(np.empty((3, 0), np.float32), precision), precision, 0).shape == (3, 0)
        assert dequantize(quantize(np.empty((0, 8), np.float32), precision), precision, 8).shape == (0, 8)


@pytest.mark.parametrize("precision", ALL)
@pytest.mark.parametrize("given", [np.float64, np.float32, np.float16])
def test_codes_and_vectors_are_of_one_type_whatever_is_given(precision, given):
    codes = quantize(X[:50].astype(given), precision)
    assert codes.dtype == {"float32": np.float32, "int8": np.int8}.get(precision, np.uint8)
    assert dequantize(codes, precision, 64).dtype == np.float32
    exact = quantize(X[:50].astype(given).astype(np.float64) / 7, precision)
    assert (np.abs(codes.astype(np.float64) - exact) > 1e-6).mean() < 0.01


def test_float32_rows_are_of_length_one():
    assert np.allclose(np.linalg.norm(quantize(X, "float32"), axis=1), 1, atol=1e-6)


def test_a_row_of_zeros_takes_the_lower_of_the_two_codes_nearest_to_zero():
    zeros = np.zeros((1, 4), np.float32)
    expected = {
        "float32": [0, 0, 0, 0],
        "int8": [0, 0, 0, 0],
        "int4": [0x77, 0x77],
        "int2": [0b01010101],
        "binary": [0],
    }
    assert {precision: quantize(zeros, precision)[0].tolist() for precision in ALL} == expected


@pytest.mark.parametrize("precision", ALL)
def test_numpys_error_state_of_the_caller_does_not_matter(precision):
    rows = np.array([[0, 0], [1e30, 1], [1e-30, 1e-25], [np.nan, 1], [np.inf, -np.inf]], np.float32)
    with np.errstate(all="raise"):
        quantize(rows, precision)


@pytest.mark.parametrize("precision", ALL)
@pytest.mark.parametrize("norm", [1e-300, 1e300])
def test_directions_that_only_float64_holds(precision, norm):
    rows = norm * X[:50].astype(np.float64)
    assert cosine(dequantize(quantize(rows, precision), precision, 64), X[:50]).min() > 0.7
    assert (np.abs(quantize(rows, precision) - quantize(X[:50], precision).astype(float)) > 1e-6).mean() < 0.01


def test_bad_input():
    with pytest.raises(
        ValueError, match=r"the embeddings: got a masked array with \d+ masked entries: drop those rows"
    ):
        quantize(np.ma.masked_less(X, -2), "int8")
    assert np.array_equal(quantize(np.ma.masked_less(X, -99), "int8"), quantize(X, "int8"))
    with pytest.raises(ValueError, match="codes are of type uint8, int8 codes are int8"):
        dequantize(quantize(X, "int8").view(np.uint8), "int8", 64)
    with pytest.raises(ValueError, match="unknown precision 'int3': choose from float32, int8, int4, int2, binary"):
        quantize(X, "int3")
    with pytest.raises(ValueError, match=r"shape \(64,\), expected \(n, out_features\)"):
        quantize(X[0], "int8")
    with pytest.raises(ValueError, match=r"shape \(2000, 32\), expected \(n, 64\) for 128 dimensions in int4"):
        dequantize(quantize(X, "int4"), "int4", 128)
