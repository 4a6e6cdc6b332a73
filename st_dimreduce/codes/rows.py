"""Rows of vectors: taken as arrays, checked for a direction, scaled to one norm."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import numpy as np

from st_dimreduce.errors import UserError

_EXACT_SQUARES = 1e-20, 1e20  # squared norms that float32 holds to full precision
_EXACT_NORMS = 1e-15, 1e15  # norms whose square float32 holds to full precision
SMALLEST_NORM, LARGEST_NORM = 1e-30, 1e30  # norms whose inverse float32 holds


def scale_rows(rows: np.ndarray, norm: float = 1.0, out: np.ndarray | None = None) -> np.ndarray:
    """Return rows scaled to a norm, from any norm that their type can hold.

    NaN counts as 0, infinity as the largest float; a row of zeros is not changed.

    Args:
        rows: Float array of shape (n, d).
        norm: The norm to give them. Defaults to 1.
        out: Where to put them, float32 of shape (n, d). Defaults to None: a new array.

    Returns:
        The scaled rows, float32 of shape (n, d).
    """
    with np.errstate(all="ignore"):  # in rows that take the slow path below
        single = np.asarray(rows, np.float32)
        squares = np.einsum("ij,ij->i", single, single)
        scaled = np.multiply(single, (np.float32(norm) / np.sqrt(squares))[:, None], out=out)
        doubtful = np.flatnonzero(~((squares > _EXACT_SQUARES[0]) & (squares < _EXACT_SQUARES[1])))
        if len(doubtful):
            # float64 for its range: float16 and bfloat16 are held by float32, where infinity is cut to its largest.
            wide = rows[doubtful] if rows.dtype.itemsize > single.itemsize else single[doubtful]
            some = np.nan_to_num(wide).astype(np.float64)
            largest = np.abs(some).max(axis=1, keepdims=True, initial=0)
            some /= np.where(largest > 0, largest, 1)
            scaled[doubtful] = some * (norm / np.maximum(np.linalg.norm(some, axis=1, keepdims=True), 1e-30))
    return scaled


def as_count(value: Any, name: str, what: str) -> int:
    """Return a whole number of at least 1, of Python or of NumPy.

    Args:
        value: The number.
        name: Name of the argument, for the message.
        what: What to do, for the message.

    Raises:
        UserError: If it is anything else.
    """
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1 or isinstance(value, bool):
        raise UserError(f"{name}={value}: {what}")
    return count


def refuse_masked(array: Any, name: str) -> None:
    """Raise ``UserError`` if a masked array has masked entries, which most of NumPy would read."""
    if np.ma.is_masked(array):
        count = np.ma.count_masked(array)
        raise UserError(f"{name}: got a masked array with {count} masked entries: drop those rows, or fill them")


def refuse_multi_vector(vectors: Any, name: str) -> None:
    """Raise ``UserError`` if these are several vectors per text."""
    listed = isinstance(vectors, (list, tuple)) and len(vectors) > 0 and np.ndim(vectors[0]) == 2
    if listed or getattr(vectors, "ndim", None) == 3:
        raise UserError(
            f"{name} are several vectors per text, as of a MultiVectorEncoder: give one row per token, as "
            "examples/7_late_interaction.py does"
        )


def as_array(vectors: Any, name: str, shape: str = "(n, d)") -> np.ndarray:
    """Return vectors as an array: an array unchanged, a tensor of any device, float type and gradient as a copy.

    Args:
        vectors: Array or torch tensor of floats with two dimensions.
        name: What they are, for the message.
        shape: The shape to expect, for the message. Defaults to ``"(n, d)"``.

    Raises:
        UserError: If they are anything else, or entries are masked.
    """
    refuse_masked(vectors, name)
    if is_tensor(vectors):
        tensor = vectors.detach().cpu()
        # NumPy has no bfloat16.
        vectors = (tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize == 2 else tensor).numpy()
    if not isinstance(vectors, np.ndarray):
        raise UserError(f"{name}: got a {type(vectors).__name__}, expected an array or tensor of floats, {shape}")
    if vectors.ndim != 2:
        raise UserError(f"{name}: got shape {vectors.shape}, expected {shape}, one vector per row")
    if "float" not in vectors.dtype.name:
        raise UserError(f"{name}: got {vectors.dtype}, expected floats: convert them first")
    return vectors


def check_finite(vectors: np.ndarray, name: str) -> None:
    """Raise ``UserError`` if an entry is NaN or infinite."""
    if not np.isfinite(vectors).all():
        raise UserError(f"{name}: got NaN or infinity, expected finite numbers")


def is_tensor(value: Any) -> bool:
    """Whether this is a torch tensor; imports nothing."""
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def map_array(path: Path) -> np.memmap:
    """Map a ``.npy`` file into memory without reading its values; pickles and archives are refused.

    Raises:
        UserError: If it is not a complete ``.npy`` file of numbers.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # NumPy documents no particular one: a damaged header may raise TokenError
        reason = " ".join(str(error).split())
        if "pickle" in reason:  # NumPy advises to allow pickles
            reason = "expected a file that numpy.save wrote"
        raise UserError(f"{path} is not a complete .npy file of numbers: {reason}") from error
    if not isinstance(array, np.memmap):
        raise UserError(f"{path} is an archive: save each array to a .npy file of its own")
    return array


def row_norms(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the norm of every vector, and the positions of those without a direction.

    Args:
        vectors: Float array of shape (n, d).

    Returns:
        float64 array of shape (n,), and the positions of the rows that hold NaN, infinity or zeros only, or whose norm
        is below 1e-30 or above 1e30.
    """
    if vectors.dtype.itemsize < 4:  # a square of float16 overflows at 256
        vectors = vectors.astype(np.float32)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors).astype(np.float64))
        doubtful = np.flatnonzero(~((norms > _EXACT_NORMS[0]) & (norms < _EXACT_NORMS[1])))
        if len(doubtful):
            norms[doubtful] = np.linalg.norm(vectors[doubtful].astype(np.float64), axis=1)
    return norms, np.flatnonzero(~((norms >= SMALLEST_NORM) & (norms <= LARGEST_NORM)))


def check_rows(vectors: np.ndarray, first_row: int = 0) -> np.ndarray:
    """Return the norm of every vector, shape (n,), after checking that each has a direction.

    Raises:
        UserError: If a row has none; names the first, counting from ``first_row``.
    """
    norms, bad = row_norms(vectors)
    if len(bad):
        norm = norms[bad[0]]
        kind = "is all zeros" if norm == 0 else f"has norm {norm:g}" if norm > 0 else "holds NaN"
        raise UserError(f"the vector in row {first_row + bad[0]} {kind}: drop or repair it, it has no direction")
    return norms
