"""Rows as vectors: scaled to one norm, whatever norm they have, and arrays whose mask would be lost."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from st_dimreduce.errors import UserError

_ROUNDING = 1e-5  # of a squared norm
_SURE = 1e-20, 1e20  # squared norms that float32 holds to full precision


def scale_rows(rows: np.ndarray, norm: float = 1.0, out: np.ndarray | None = None) -> np.ndarray:
    """Return rows scaled to a norm, from any norm that their type can hold.

    NaN counts as 0, infinity as the largest float; a row of zeros stays as it is.

    Args:
        rows: Float array of shape (n, d).
        norm: The norm to give them. Defaults to 1.
        out: Where to put them, float32 of shape (n, d). Defaults to None: a new array.

    Returns:
        The scaled rows, float32 of shape (n, d).
    """
    with np.errstate(all="ignore"):  # of rows that take the slower way
        single = np.asarray(rows, np.float32)
        squares = np.einsum("ij,ij->i", single, single)
        scaled = np.multiply(single, (np.float32(norm) / np.sqrt(squares))[:, None], out=out)
        doubtful = np.flatnonzero(~((squares > _SURE[0]) & (squares < _SURE[1])))
        if len(doubtful):
            # float64 for its range: float16 and bfloat16 are held by float32, where infinity is cut to its largest.
            wide = rows[doubtful] if rows.dtype.itemsize > single.itemsize else single[doubtful]
            some = np.nan_to_num(wide).astype(np.float64)
            largest = np.abs(some).max(axis=1, keepdims=True, initial=0)
            some /= np.where(largest > 0, largest, 1)
            scaled[doubtful] = some * (norm / np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-30))
    return scaled


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Return rows of norm 1, float32; those that have it already, but for rounding, keep every bit."""
    with np.errstate(over="ignore", invalid="ignore"):  # of rows that are scaled
        single = np.asarray(rows, np.float32)
        other = np.flatnonzero(~(np.abs(np.einsum("ij,ij->i", single, single) - 1) < _ROUNDING))
    if len(other):
        single = np.array(single)
        single[other] = scale_rows(rows[other])
    return single


def as_count(value: Any, name: str, what: str) -> int:
    """Return a whole number of at least 1, of Python or of NumPy.

    Args:
        value: The number.
        name: Of the argument.
        what: What to do, for the message.

    Raises:
        ValueError: If it is anything else.
    """
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1 or isinstance(value, bool):
        raise UserError(f"{name}={value}: {what}")
    return count


def refuse_masked(array: Any, name: str) -> None:
    """Raise ``ValueError`` if a masked array has masked entries, which NumPy's functions read as if they were not."""
    if np.ma.is_masked(array):
        count = np.ma.count_masked(array)
        raise UserError(f"{name} are a masked array with {count} masked entries: drop those rows, or fill them")


def refuse_multi_vector(vectors: Any, name: str) -> None:
    """Raise ``UserError`` if these are several vectors per text."""
    listed = isinstance(vectors, (list, tuple)) and len(vectors) > 0 and np.ndim(vectors[0]) == 2
    if listed or getattr(vectors, "ndim", None) == 3:
        raise UserError(
            f"{name} are several vectors per text, as of a MultiVectorEncoder: give one row per token, as "
            "examples/7_late_interaction.py does"
        )


def as_array(vectors: Any, name: str, shape: str) -> np.ndarray:
    """Return vectors, an array or a tensor with two dimensions, as an array of finite numbers.

    Args:
        vectors: The vectors.
        name: What they are, in the plural, for the message.
        shape: The shape to expect, such as ``"(n, k)"``, for the message.

    Raises:
        ValueError: If they are anything else, or entries are masked.
    """
    refuse_masked(vectors, f"the {name}")
    if not isinstance(vectors, np.ndarray):
        if not hasattr(vectors, "detach"):
            kind = type(vectors).__name__
            raise UserError(f"{name} are of type {kind}: expected an array or a tensor of floats, {shape}")
        tensor = vectors.detach().cpu()
        vectors = (tensor if tensor.dtype.itemsize > 2 else tensor.float()).numpy()  # NumPy has no bfloat16
    if vectors.dtype.kind not in "fiub":
        raise UserError(f"{name} are of type {vectors.dtype}: expected floats of shape {shape}")
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise UserError(f"{name} have shape {vectors.shape}: expected finite vectors of shape {shape}")
    return vectors
