"""Batches of vectors: what every source yields, whatever it reads them from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from st_dimreduce.errors import UserError

T = TypeVar("T")
FileState = tuple[str, int, int, int, int]

BATCH_BYTES = 1 << 25  # of float32 vectors in a batch, and of the columns beside them
EXPECTED = (
    "give an array, .npy, .parquet or .arrow files, a folder of one kind of them, an Arrow table, one split of a "
    "dataset, a flat FAISS index or an iterable of arrays"
)
_MOST_ROWS = 1 << 14  # in a batch
_MOST_READ = 1 << 11  # rows of a table at a time: a page of a few bytes may decode to many


@dataclass(frozen=True)
class Batch:
    """Vectors of successive rows, float32 of shape (n, d), and the same rows of a table's other columns (or None)."""

    first_row: int
    vectors: np.ndarray
    others: Any = None


@dataclass(frozen=True)
class Files:
    """The files of a source: one file, or those of a folder in the order of their names.

    Attributes:
        path: The file or folder.
        suffixes: Suffixes, in lower case, of the files in a folder that belong to the source.
        paths: The files.
        states: What each file was when the source was opened: its path, size in bytes, times of the last change of its
            content and of its inode, and inode.
    """

    path: Path
    suffixes: Sequence[str]
    paths: tuple[Path, ...]
    states: tuple[FileState, ...]

    @classmethod
    def at(cls, path: Path, suffixes: Sequence[str]) -> Files:
        """List the files at a path; in a folder without those whose names begin with a dot or an underscore.

        Raises:
            FileNotFoundError: If there is no such file or folder.
        """
        if not path.exists():
            raise FileNotFoundError(f"no file or folder {path}: {EXPECTED}")
        inside = [file for file in path.iterdir() if file.name[0] not in "._"] if path.is_dir() else [path]
        paths = tuple(sorted(file for file in inside if file.is_file() and file.suffix.lower() in suffixes))
        return cls(path, suffixes, paths, tuple(_state(file) for file in paths))

    def check_unchanged(self) -> None:
        """Raise ``UserError`` if a file was changed, added or removed since the source was opened."""
        now = Files.at(self.path, self.suffixes).states
        for name, *_ in sorted(set(self.states) ^ set(now)):
            raise UserError(f"{name} changed while it was read: start again when nothing writes to it any more")


def _state(path: Path) -> FileState:
    status = path.stat()
    return str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


class Source(ABC):
    """Vectors of one size, to be read in order.

    Attributes:
        rows: Number of vectors; None if it is not known.
        files: The files that they are in; None if they are not in files.
        column: The column of vectors in a table; None for arrays.
        schema: The table's Arrow schema; None for arrays.
    """

    rows: int | None = None
    files: Files | None = None
    column: str | None = None
    schema: Any = None

    @abstractmethod
    def read(self, start: int) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield the rows from ``start`` on, a bounded number at a time.

        Where one read ends does not depend on ``start``, if that is where another read ended: so a run that resumes
        behind a batch reduces the same batches as one that was not interrupted.

        Args:
            start: The row to begin with; 0 if the source is not in files.

        Yields:
            An array of shape (n, d) and any float type, and an Arrow table of the other columns or None.
        """

    def leave_out_others(self) -> None:  # noqa: B027, arrays have none
        """Read the vectors alone from now on, without a table's other columns."""

    def batches(self, start: int = 0) -> Generator[Batch, None, None]:
        """Yield all rows from ``start`` on in batches: as many reads as give :func:`rows_per_batch` rows, or 32 MiB.

        The next batch of a file is read in a thread while the caller works on the one before. A batch may be a view of
        the source: do not change it.

        Raises:
            UserError: If there are no rows, a row has another size than the first, or a file has changed since the
                source was opened.
        """
        batches = self._batches(start)
        # The caller's own iterable stays in the caller's thread: it may be a database cursor.
        yield from _read_ahead(batches) if self.files else batches

    def _batches(self, start: int) -> Iterator[Batch]:
        row, width, first, size = start, 0, start, 0
        reads: list[tuple[np.ndarray, Any]] = []
        for vectors, others in self.read(start):
            if not len(vectors):
                continue
            width = width or vectors.shape[1]
            if vectors.shape[1] != width or not width:
                found = f"the vectors from row {row} on have {vectors.shape[1]} dimensions"
                raise UserError(f"{found}, expected {width or '1 or more'}")
            reads.append((vectors, others))
            row += len(vectors)
            size += 0 if others is None else others.nbytes
            if row - first >= rows_per_batch(width) or size >= BATCH_BYTES:
                yield _joined(first, reads)
                reads, first, size = [], row, 0
        if row == 0:
            raise UserError(f"there is no vector in the source: {EXPECTED} with at least one vector")
        if reads:
            yield _joined(first, reads)
        if self.files:
            self.files.check_unchanged()


def _joined(first_row: int, reads: Sequence[tuple[np.ndarray, Any]]) -> Batch:
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow is reported as a bad row
        arrays = [np.ascontiguousarray(vectors, np.float32) for vectors, _ in reads]
    tables = [others for _, others in reads if others is not None]
    vectors = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    if not tables:
        return Batch(first_row, vectors)
    import pyarrow as pa  # noqa: PLC0415, the source has it

    return Batch(first_row, vectors, pa.concat_tables(tables))


def rows_per_batch(width: int) -> int:
    """Return how many vectors of ``width`` dimensions make a batch: 32 MiB of float32, at least 1 and at most 16,384.

    A power of two, of which a head's own blocks are parts: batches give the codes that one array of all rows gives.
    """
    fitting = max(BATCH_BYTES // (4 * max(width, 1)), 1)
    return min(1 << (fitting.bit_length() - 1), _MOST_ROWS)


def rows_per_read(size: int, rows: int) -> int:
    """Return how many rows of a table, which has so many of this size in bytes, to read at a time: those of 32 MiB."""
    return min(max(BATCH_BYTES * rows // max(size, 1), 1), _MOST_READ)


def slices(start: int, stop: int, size: int) -> Iterator[slice]:
    """Yield slices of ``size`` rows that cover ``start`` to ``stop``, from multiples of ``size`` on."""
    while start < stop:
        end = min((start // size + 1) * size, stop)
        yield slice(start, end)
        start = end


def library(given: Any) -> str:
    """Return the name of the package that an object's class comes from."""
    return type(given).__module__.partition(".")[0]


def _read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items; a thread makes the next one meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item
