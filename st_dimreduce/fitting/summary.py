"""Summaries of vectors from one pass: all that a fit needs, for any number of vectors."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

import numpy as np
from safetensors.numpy import save_file

from st_dimreduce.codes.rows import LARGEST_NORM, SMALLEST_NORM, as_array, check_rows
from st_dimreduce.errors import UserError
from st_dimreduce.files import new_file
from st_dimreduce.untrusted import read_arrays

_BLOCK = 2048  # rows whose Gram matrix is summed in float32 before it is added in float64
_CACHED = 128  # rows that are still in the cache when they are scaled, right after their norms are taken
_FORMAT = "st_dimreduce.summary.1"
_ARRAYS = ("sum", "gram_sum", "rows", "keys")


def _blocks(start: int, stop: int) -> Iterator[slice]:
    for first in range(start, stop, _BLOCK):
        yield slice(first, min(first + _BLOCK, stop))


def _scale(vectors: np.ndarray, norms: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Return vectors of these norms scaled to norm 1, float32."""
    return np.multiply(vectors, (1 / norms).astype(np.float32)[:, None], out=out, dtype=np.float32)


class Summary:
    """Count, mean, Gram matrix, mean norm and a uniform sample of vectors, from one pass in bounded memory.

    Every vector is first scaled to norm 1, since a head preserves cosines; the mean norm is recorded. Blocks are summed
    in float32 and added up in float64, which is accurate to 6 digits over 10 million rows.

    The sample is a reservoir: each row draws a random key, and the rows with the smallest keys are kept (bottom-k
    sampling; Cohen and Kaplan, "Summarizing data using bottom-k sketches", PODC 2007), so that two samples merge into a
    uniform one. The keys depend on the seed and on the first row, to two digits, but not on the batches: workers that
    share a seed draw different keys.

    Args:
        width: Size d of a vector.
        sample_size: Largest size of the sample, in rows. Defaults to 50,000.
        seed: Seed of the sample. Defaults to 0.

    Attributes:
        count: Number of vectors seen.

    Raises:
        UserError: If ``width`` or ``sample_size`` is less than 1.
    """

    def __init__(self, width: int, sample_size: int = 50_000, seed: int = 0) -> None:
        if width < 1 or sample_size < 1:
            raise UserError(f"width={width}, sample_size={sample_size}: both must be at least 1")
        self.width, self.sample_size, self.seed = width, sample_size, seed
        self.count = 0
        self._norm_sum = 0.0
        self._sum = np.zeros(width)
        self._gram_sum = np.zeros((width, width))
        self._rows = np.empty((0, width), np.float32)
        self._keys = np.empty(0)
        self._stream: int | None = None  # digest of the first row: workers that share a seed draw different keys
        self._drawn = 0

    @classmethod
    def of(cls, vectors: np.ndarray, sample_size: int = 50_000, seed: int = 0) -> Summary:
        """Return the summary of an array or tensor of shape (n, d)."""
        vectors = as_array(vectors, "the vectors")
        return cls(vectors.shape[1], sample_size, seed).update(vectors)

    @property
    def mean(self) -> np.ndarray:
        """Mean of the unit vectors, float64 of shape (d,)."""
        return self._sum / max(self.count, 1)

    @property
    def gram(self) -> np.ndarray:
        """Gram matrix (1/n) sum u u^T of the unit vectors, not centred; float64 of shape (d, d), trace 1."""
        return self._gram_sum / max(self.count, 1)

    @property
    def mean_norm(self) -> float:
        """Mean norm of the vectors before scaling."""
        return self._norm_sum / max(self.count, 1)

    @property
    def sample(self) -> np.ndarray:
        """A uniform sample of the unit vectors, float32 of shape (min(count, sample_size), d), in random order."""
        return self._rows[np.argsort(self._keys)]

    def update(self, vectors: np.ndarray) -> Summary:
        """Add vectors of shape (n, d) and any float type, and return the summary itself.

        Raises:
            UserError: If the shape is wrong, entries are masked, or a row holds NaN, infinity or only zeros; nothing is
                added then.
        """
        vectors = as_array(vectors, "the vectors", f"(n, {self.width})")
        if vectors.shape[1] != self.width:
            raise UserError(f"the vectors: got shape {vectors.shape}, expected (n, {self.width})")
        if not len(vectors):
            return self
        held, room = len(self._keys), min(self.sample_size - len(self._keys), len(vectors))
        # Rows that the sample has room for are scaled in place; it grows without a copy.
        self._rows.resize((held + room, self.width), refcheck=False)
        try:
            norms, row_sum, gram_sum = self._sums(vectors, self._rows[held:])
        except BaseException:
            self._rows.resize((held, self.width), refcheck=False)
            raise
        keys = self._draw(_scale(vectors[:1], norms[:1]), len(vectors))
        self.count += len(vectors)
        self._norm_sum += float(norms.sum())
        self._sum += row_sum
        self._gram_sum += gram_sum
        self._keys = np.concatenate([self._keys, keys[:room]])
        for some in _blocks(room, len(vectors)):
            rows = some.start + np.flatnonzero(keys[some] < self._keys.max())
            self._keep(_scale(vectors[rows], norms[rows]), keys[rows])
        return self

    def _sums(self, vectors: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return norms, sum and Gram matrix of vectors, and write the first of them, scaled to norm 1, to ``out``."""
        norms, row_sum, gram_sum = np.empty(len(vectors)), np.zeros(self.width), np.zeros((self.width, self.width))
        # Fresh memory for every block would cost as much as the computation in it.
        buffer = np.empty((min(_BLOCK, max(len(vectors) - len(out), 1)), self.width), np.float32)
        product, ones = np.empty((self.width, self.width), np.float32), np.ones(_BLOCK, np.float32)
        for block in [*_blocks(0, len(out)), *_blocks(len(out), len(vectors))]:
            unit = out[block] if block.stop <= len(out) else buffer[: block.stop - block.start]
            for first in range(0, len(unit), _CACHED):
                some = slice(block.start + first, min(block.start + first + _CACHED, block.stop))
                norms[some] = check_rows(vectors[some], self.count + some.start)
                _scale(vectors[some], norms[some], unit[first : first + _CACHED])
            row_sum += ones[: len(unit)] @ unit
            gram_sum += np.matmul(unit.T, unit, out=product)
        return norms, row_sum, gram_sum

    def merge(self, other: Summary) -> Summary:
        """Add the vectors of another summary, which is left unchanged, and return the summary itself.

        Raises:
            UserError: If the two differ in width.
        """
        if other.width != self.width:
            raise UserError(f"summaries of {self.width} and {other.width} dimensions: only equal widths merge")
        self.count += other.count
        self._norm_sum += other._norm_sum
        self._sum += other._sum
        self._gram_sum += other._gram_sum
        self._keep(other._rows.copy() if other is self else other._rows, other._keys)
        return self

    def without(self, rows: np.ndarray) -> Summary:
        """Return the sums of the vectors other than these of the sample, shape (n, d): a summary without a sample."""
        rest = Summary(self.width, self.sample_size, self.seed)
        rest.count = self.count - len(rows)
        rest._norm_sum = self.mean_norm * rest.count  # the norms of single rows are not stored
        rest._sum = self._sum - rows.sum(axis=0, dtype=np.float64)
        rest._gram_sum = self._gram_sum - rows.T @ rows
        return rest

    def _draw(self, first: np.ndarray, count: int) -> np.ndarray:
        """Return ``count`` random keys, for rows of which ``first`` is the first."""
        if self._stream is None:
            # Rounded, since a model's embedding of a text depends in the last digits on the batch it is in.
            self._stream = zlib.crc32(np.rint(2 * np.sqrt(self.width) * first).astype(np.int32).tobytes())
        bits = np.random.PCG64(np.random.SeedSequence([self.seed, self._stream]))
        keys = np.random.Generator(bits.advance(self._drawn)).random(count)
        self._drawn += count
        return keys

    def _keep(self, rows: np.ndarray, keys: np.ndarray) -> None:
        """Replace the rows with the largest keys by those with smaller ones."""
        held = len(self._keys)
        fits = min(self.sample_size - held, len(keys))
        if fits:
            self._rows.resize((held + fits, self.width), refcheck=False)  # grows in place, without a copy
            self._rows[held:] = rows[:fits]
            self._keys = np.concatenate([self._keys, keys[:fits]])
            rows, keys = rows[fits:], keys[fits:]
        if not len(keys):
            return
        wanted = keys < self._keys.max()
        rows, keys = rows[wanted], keys[wanted]
        smallest = np.argpartition(np.concatenate([self._keys, keys]), self.sample_size - 1)[: self.sample_size]
        stays = np.zeros(len(self._keys) + len(keys), bool)
        stays[smallest] = True
        free, taken = np.flatnonzero(~stays[: self.sample_size]), np.flatnonzero(stays[self.sample_size :])
        self._rows[free], self._keys[free] = rows[taken], keys[taken]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the summary to a safetensors file, which appears once it is complete."""
        numbers = {
            "format": _FORMAT,
            "count": self.count,
            "norm_sum": self._norm_sum.hex(),
            "sample_size": self.sample_size,
            "seed": self.seed,
            "stream": "" if self._stream is None else self._stream,
            "drawn": self._drawn,
        }
        arrays: dict[str, np.ndarray] = dict(
            zip(_ARRAYS, (self._sum, self._gram_sum, self._rows, self._keys), strict=True)
        )
        with new_file(path) as file:
            save_file(arrays, file, {key: str(value) for key, value in numbers.items()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Summary:
        """Read a summary that :meth:`save` wrote; it can be updated as if it had never been saved.

        Raises:
            FileNotFoundError: If there is no such file.
            UserError: If the file is not a summary.
        """
        numbers, arrays = read_arrays(path, _FORMAT, _ARRAYS, "summary", "Summary.save")
        width, rows = arrays["sum"].size, arrays["keys"].size
        shapes = dict(zip(_ARRAYS, ((width,), (width, width), (rows, width), (rows,)), strict=True))
        if {name: array.shape for name, array in arrays.items()} != shapes:
            raise UserError(f"{path} is damaged: the shapes of its arrays do not fit one another")
        if any(array.dtype != (np.float32 if name == "rows" else np.float64) for name, array in arrays.items()):
            raise UserError(f"{path} is damaged: its arrays have the wrong types")
        try:
            summary = cls(width, int(numbers["sample_size"]), int(numbers["seed"]))
            summary.count, summary._drawn = int(numbers["count"]), int(numbers["drawn"])
            summary._norm_sum = float.fromhex(numbers["norm_sum"])
            summary._stream = int(numbers["stream"]) if numbers["stream"] else None
        except (KeyError, ValueError, OverflowError) as error:
            raise UserError(f"{path} is damaged: its numbers are missing or invalid ({error})") from error
        finite = np.isfinite(summary._norm_sum) and all(np.isfinite(array).all() for array in arrays.values())
        # A sum of norms at the very edge may be rounded beyond it.
        least, most = (0.0, 0.0) if not summary.count else (0.9 * SMALLEST_NORM, 1.1 * LARGEST_NORM)
        fits = summary.count < 2**63 and least <= summary.mean_norm <= most
        if not finite or not fits or not rows <= min(summary.count, summary.sample_size):
            raise UserError(f"{path} is damaged: its numbers are not finite, or do not fit one another")
        summary._sum, summary._gram_sum = arrays["sum"], arrays["gram_sum"]
        summary._rows, summary._keys = arrays["rows"].copy(), arrays["keys"]
        return summary
