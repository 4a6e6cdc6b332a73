"""Quantisation of reduced vectors: one fixed grid per precision, the same for every model and corpus.

A head rotates its output so that the entries of a unit vector of size k, times sqrt(k), are close to a standard
Gaussian. One grid therefore serves all: uniform over -4 to 4 for int8, and for fewer bits the levels of least squared
error for a Gaussian (Max, "Quantizing for minimum distortion", IRE Trans. Inf. Theory 1960). Nothing is calibrated on a
batch.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from statistics import NormalDist

import numpy as np

from st_dimreduce.codes.rows import as_array, refuse_masked, refuse_multi_vector, scale_rows
from st_dimreduce.enums import Precision
from st_dimreduce.errors import UserError

INT8_STEPS = 127 / 4.0  # steps of the int8 grid per standard deviation
_WHOLE = (Precision.FLOAT32, Precision.INT8)  # precisions stored as one number per dimension
_BLOCK = 1024  # rows whose values stay in the cache


def quantize(embeddings: np.ndarray, precision: Precision | str) -> np.ndarray:
    """Quantise the direction of every embedding, independent of the other rows.

    The norm of a row is dropped. NaN counts as 0, infinity as the largest float32. In a row of zeros every entry takes
    the code nearest to 0, the lower of two: such a row has no direction, and its code no meaning.

    Args:
        embeddings: Float array of shape (n, k).
        precision: A ``Precision`` or its name.

    Returns:
        Codes: float32 unit rows of shape (n, k) for float32, int8 of shape (n, k) for int8, else uint8 of shape
        (n, ceil(k * bits / 8)), the first dimension in the highest bits of the first byte. ``binary`` equals
        ``numpy.packbits(embeddings > 0)``, as in Sentence Transformers' ``ubinary`` and FAISS's binary indexes.

    Raises:
        UserError: If the precision is unknown, the shape is not (n, k), or entries are masked.
    """
    precision = Precision(precision)
    refuse_multi_vector(embeddings, "embeddings")
    embeddings = as_array(embeddings, "the embeddings", "(n, out_features)")
    if precision is Precision.BINARY:
        return np.packbits(embeddings > 0, axis=1)
    if precision is Precision.FLOAT32:
        return scale_rows(embeddings)
    codes = np.empty((len(embeddings), precision.bytes_per_vector(embeddings.shape[1])), np.uint8)
    for start in range(0, len(embeddings), _BLOCK):
        rows = slice(start, start + _BLOCK)
        scaled = scale_rows(embeddings[rows], math.sqrt(embeddings.shape[1]))
        if precision is Precision.INT8:
            np.rint(np.multiply(scaled, INT8_STEPS, out=scaled), out=scaled)
            codes[rows] = np.clip(scaled, -127, 127, out=scaled).astype(np.int8).view(np.uint8)
            continue
        numbers = np.zeros(scaled.shape, np.uint8)
        for threshold in thresholds(precision):
            numbers += scaled > threshold
        codes[rows] = _pack(numbers, precision.bits)
    return codes.view(np.int8) if precision is Precision.INT8 else codes


def dequantize(codes: np.ndarray, precision: Precision | str, out_features: int) -> np.ndarray:
    """Return the unit vectors that codes stand for, float32 of shape (n, out_features).

    Args:
        codes: What :func:`quantize` returned, of shape (n, width).
        precision: The precision they were stored in.
        out_features: Dimensions of the vectors.

    Raises:
        UserError: As :func:`check_codes`.
    """
    precision = Precision(precision)
    check_codes(codes, precision, out_features)
    if precision in _WHOLE:
        return scale_rows(codes)
    levels = np.take(bytes_to_levels(precision), codes, axis=0)  # several times as fast as an index in brackets
    return scale_rows(levels.reshape(len(codes), codes.shape[1] * 8 // precision.bits)[:, :out_features])


def check_codes(codes: np.ndarray, precision: Precision, out_features: int) -> None:
    """Check that an array can be the codes of vectors of size ``out_features``.

    Raises:
        UserError: If the codes do not have the type or width of the precision, or entries are masked.
    """
    refuse_multi_vector(codes, "codes")
    if not isinstance(codes, np.ndarray):
        kind = type(codes).__name__
        raise UserError(f"codes are of type {kind}: expected an array, as quantize gives it")
    refuse_masked(codes, "the codes")
    width = out_features if precision in _WHOLE else precision.bytes_per_vector(out_features)
    if codes.ndim != 2 or codes.shape[1] != width:
        raise UserError(
            f"codes have shape {codes.shape}, expected (n, {width}) for {out_features} dimensions in {precision.value}"
        )
    kind = str(codes.dtype)
    expected = {Precision.FLOAT32: "floats", Precision.INT8: "int8"}.get(precision, "uint8")
    if kind != expected and not (precision is Precision.FLOAT32 and "float" in kind):
        raise UserError(
            f"codes are of type {kind}, {precision.value} codes are {expected}: read them as quantize gave them"
        )


def _pack(values: np.ndarray, bits: int) -> np.ndarray:
    per_byte = 8 // bits
    values = np.pad(values, ((0, 0), (0, -values.shape[1] % per_byte)))
    parts = values.reshape(len(values), values.shape[1] // per_byte, per_byte)
    packed = parts[..., 0]
    for part in range(1, per_byte):
        packed = (packed << bits) | parts[..., part]
    return packed


def thresholds(precision: Precision) -> np.ndarray:
    """Return the thresholds of a grid: an entry times sqrt(k) is coded by the number of thresholds that it exceeds.

    float32 of shape (2^bits - 1,), half way between neighbouring levels.
    """
    levels = _gaussian_levels(precision.bits)
    return (levels[1:] + levels[:-1]) / 2


@cache
def bytes_to_levels(precision: Precision) -> np.ndarray:
    """Return the levels that each of the 256 values of a packed byte stands for: float32 of shape (256, 8 / bits)."""
    bits = precision.bits
    shifts = np.arange(8 - bits, -1, -bits)
    return _gaussian_levels(bits)[(np.arange(256)[:, None] >> shifts) & (2**bits - 1)]


@cache
def _gaussian_levels(bits: int) -> np.ndarray:
    """Return the 2^bits levels of least squared error for a standard Gaussian, by the Lloyd-Max iteration; float32."""
    normal = NormalDist()
    levels = [normal.inv_cdf((i + 0.5) / 2**bits) for i in range(2**bits)]
    for _ in range(500):
        edges = [-math.inf, *((a + b) / 2 for a, b in pairwise(levels)), math.inf]
        density = [0.0 if math.isinf(edge) else normal.pdf(edge) for edge in edges]
        mass = [normal.cdf(edge) if not math.isinf(edge) else float(edge > 0) for edge in edges]
        levels = [(density[i] - density[i + 1]) / (mass[i + 1] - mass[i]) for i in range(len(levels))]
    return np.array([(a - b) / 2 for a, b in zip(levels, reversed(levels), strict=True)], np.float32)
