"""Where vectors come from: the base class of all sources, and the sources that need NumPy only.

A source yields its vectors in chunks of whatever size it reads them in. The base class makes batches of them that
depend on the rows alone, so that results do not depend on how the source is read. The sources of tables are in
``arrow.py``; ``kinds.py`` picks the class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from st_dimreduce.codes.rows import refuse_masked
from st_dimreduce.errors import UserError

T = TypeVar("T")
FileState = tuple[str, int, int, int, int]

DEFAULT_BATCH_BYTES = 1 << 25
EXPECTED = (
    "give an array, .npy, .parquet or .arrow files, a folder of one kind of them, an Arrow table, one split of a "
    "dataset, a FAISS index of whole vectors or an iterable of arrays"
)
_MOST_ROWS = 1 << 14  # in a batch
_MOST_CARRIED = 1 << 25  # bytes of other columns in a batch, unless one row has more
_BFLOAT16_ON_DISK = np.dtype("V2")  # .npy has no name for it: NumPy writes its two bytes


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
            content and of anything about it, and inode.
    """

    path: Path
    suffixes: Sequence[str]
    paths: tuple[Path, ...]
    states: tuple[FileState, ...]

    @classmethod
    def at(cls, path: Path, suffixes: Sequence[str]) -> Files:
        """Look which files there are; hidden ones, and those that begin with an underscore, are left out.

        Raises:
            FileNotFoundError: If there is no such file or folder.
        """
        if not path.exists():
            raise FileNotFoundError(f"no file or folder {path}: {EXPECTED}")
        inside = [file for file in path.iterdir() if file.name[0] not in "._"] if path.is_dir() else [path]
        paths = tuple(sorted(file for file in inside if file.is_file() and file.suffix.lower() in suffixes))
        return cls(path, suffixes, paths, tuple(_state(file) for file in paths))

    def check_unchanged(self) -> None:
        """Raise ``ValueError`` if a file was changed, added or removed since the source was opened."""
        now = Files.at(self.path, self.suffixes).states
        for name, *_ in sorted(set(self.states) ^ set(now)):
            raise UserError(f"{name} has changed while it was read: start again when nothing writes to it any more")


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

    @classmethod
    @abstractmethod
    def accepts(cls, given: Any) -> bool:
        """Whether the class reads what was given; a path is given as :class:`Files`."""

    @abstractmethod
    def chunks(self, start: int, batch_bytes: int) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield arrays of shape (n, d) and any float type, each with an Arrow table of the other columns or None.

        Args:
            start: The row to begin with; 0 if the source is not in files.
            batch_bytes: Bytes of vectors to read at a time, where the source reads as much as it is asked for.
        """

    def leave_out_others(self) -> None:  # noqa: B027, arrays have none
        """Read the vectors alone from now on, without a table's other columns."""

    def row_bytes(self, others: Any) -> np.ndarray:
        """Return the bytes of each row's other columns, shape (n,), by its values alone; arrays have none."""
        raise NotImplementedError

    def join_others(self, tables: Sequence[Any]) -> Any:
        """Join the other columns of successive rows; arrays have none."""
        return None

    def batches(self, start: int = 0, batch_bytes: int = DEFAULT_BATCH_BYTES) -> Generator[Batch, None, None]:
        """Yield all rows from ``start`` on in batches of :func:`batch_rows`, the last one shorter.

        Where the other columns of so many rows have more than 32 MiB, a batch ends before the row that exceeds them.
        Which row that is depends on the rows from the batch's first on and on nothing else: a run that is resumed
        behind any batch goes on with the same batches.

        The next batch of a file is read in a thread while the caller works on the one before. A batch may be a view of
        the source: do not change it.

        Raises:
            ValueError: If there are no rows, a row has another size than the first, or a file has changed since the
                source was opened.
        """
        batches = self._batches(start, batch_bytes)
        # The caller's own iterable stays in the caller's thread: it may be a database cursor.
        yield from _read_ahead(batches) if self.files else batches

    def _batches(self, start: int, batch_bytes: int) -> Iterator[Batch]:
        coming = _Coming(start)
        for vectors, others in self._checked_chunks(start, batch_bytes):
            size, used = batch_rows(vectors.shape[1], batch_bytes), 0
            carried_to = np.zeros(len(vectors) + 1, np.int64)  # bytes of other columns up to each row
            if others is not None:
                np.cumsum(self.row_bytes(others), out=carried_to[1:])
            while used < len(vectors):
                rows = coming.next_rows(carried_to, used, size)
                if rows:
                    coming.add(vectors[used : used + rows], size)
                    if others is not None:
                        coming.tables.append(others.slice(used, rows))
                    used += rows
                if coming.rows == size or not rows:
                    yield Batch(coming.first_row, coming.vectors[: coming.rows], self.join_others(coming.tables))
                    coming = _Coming(coming.first_row + coming.rows)
        if coming.rows:
            yield Batch(coming.first_row, coming.vectors[: coming.rows], self.join_others(coming.tables))
        if self.files:
            self.files.check_unchanged()

    def _checked_chunks(self, start: int, batch_bytes: int) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield the chunks that hold rows, after checking that all vectors have the same size."""
        row, width = start, 0
        for vectors, others in self.chunks(start, batch_bytes):
            if not len(vectors):
                continue
            width = width or vectors.shape[1]
            if vectors.shape[1] != width or not width:
                expected = width or "1 or more"
                raise UserError(
                    f"the vectors from row {row} on have {vectors.shape[1]} dimensions, expected {expected}"
                )
            yield vectors, others
            row += len(vectors)
        if row == 0:
            raise UserError(f"there is no vector in the source: {EXPECTED} with at least one vector")


class _Coming:
    """The next batch, as far as its rows have come."""

    def __init__(self, first_row: int) -> None:
        self.first_row, self.rows, self.vectors = first_row, 0, np.empty((0, 0), np.float32)
        self.tables: list[Any] = []
        self._carried = 0  # bytes of other columns

    def next_rows(self, carried_to: np.ndarray, used: int, size: int) -> int:
        """Return how many rows of a chunk the batch takes from the row ``used`` on; 0 if it ends before that row."""
        most = carried_to[used] + _MOST_CARRIED - self._carried
        end = min(used + size - self.rows, int(np.searchsorted(carried_to, most, side="right")) - 1)
        if end <= used:
            end = used if self.rows else used + 1  # one row is a batch however much it carries
        self._carried += int(carried_to[end] - carried_to[used])
        return end - used

    def add(self, vectors: np.ndarray, size: int) -> None:
        """Add rows to a batch of ``size`` rows at most; a whole batch is not copied."""
        if len(vectors) == size and vectors.dtype == np.float32 and vectors.flags.c_contiguous:
            self.vectors = vectors
        else:
            if not self.rows:
                self.vectors = np.empty((size, vectors.shape[1]), np.float32)
            with np.errstate(over="ignore", invalid="ignore"):  # what overflows is reported as a bad row
                self.vectors[self.rows : self.rows + len(vectors)] = vectors
        self.rows += len(vectors)


class ArraySource(Source):
    """A NumPy array or a torch tensor."""

    def __init__(self, array: Any) -> None:
        refuse_masked(array, "the vectors")
        check_array(array, f"the {type(array).__name__}")
        self._array, self.rows = array, len(array)

    @classmethod
    def accepts(cls, given: Any) -> bool:
        return isinstance(given, np.ndarray) or _is_tensor(given)

    def chunks(self, start: int, batch_bytes: int) -> Iterator[tuple[np.ndarray, None]]:
        width = self._array.shape[1]
        for rows in slices(start, len(self._array), batch_rows(width, batch_bytes)):
            yield as_array(self._array[rows]), None


class FaissSource(Source):
    """A FAISS index of whole vectors: flat, an inverted file or a graph, in an ``IndexIDMap`` or not.

    Attributes:
        ids: Ids of the vectors in the order in which they come, int64; None where they are the numbers 0 to n - 1.

    Raises:
        ValueError: If the index does not hold whole vectors.
    """

    def __init__(self, index: Any) -> None:
        import faiss  # noqa: PLC0415, the caller has it

        holds: Any = faiss.downcast_index(index.index) if hasattr(index, "id_map") else index
        graph = isinstance(holds, faiss.IndexHNSWFlat)
        flat: Any = faiss.downcast_index(holds.storage) if graph else holds
        if not isinstance(flat, (faiss.IndexFlat, faiss.IndexIVFFlat)):
            kind = type(index).__name__
            raise UserError(
                f"{kind} does not hold whole vectors: give a flat FAISS index, IndexFlatIP or IndexFlatL2, an "
                "IndexIVFFlat or an IndexHNSWFlat"
            )
        self._index: Any = flat
        self.rows = flat.ntotal
        self.ids: np.ndarray | None = None
        if isinstance(flat, faiss.IndexIVFFlat):
            self.ids = np.concatenate([np.empty(0, np.int64), *(ids for ids, _ in self._lists())])
        if hasattr(index, "id_map"):
            named = faiss.vector_to_array(index.id_map)
            self.ids = named if self.ids is None else named[self.ids]

    @classmethod
    def accepts(cls, given: Any) -> bool:
        return library(given) == "faiss"

    def chunks(self, start: int, batch_bytes: int) -> Iterator[tuple[np.ndarray, None]]:
        rows = batch_rows(self._index.d, batch_bytes)
        if hasattr(self._index, "invlists"):
            for _, vectors in self._lists():
                for some in slices(0, len(vectors), rows):
                    yield vectors[some].copy(), None
            return
        for some in slices(start, self._index.ntotal, rows):
            yield self._index.reconstruct_n(some.start, some.stop - some.start), None

    def _lists(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the ids and the vectors of each list of an inverted file, as views."""
        import faiss  # noqa: PLC0415, the caller has it

        lists = self._index.invlists
        width = self._index.d
        for number in range(lists.nlist):
            if size := lists.list_size(number):
                ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
                codes = faiss.rev_swig_ptr(lists.get_codes(number), size * 4 * width)
                yield ids.copy(), codes.view(np.float32).reshape(size, width)


class IterableSource(Source):
    """Any iterable of arrays or tensors of shape (n, d), read once."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items

    @classmethod
    def accepts(cls, given: Any) -> bool:
        return hasattr(given, "__iter__")

    def chunks(self, start: int, batch_bytes: int) -> Iterator[tuple[np.ndarray, None]]:
        for number, item in enumerate(self._items):
            name = f"item {number} of the {type(self._items).__name__}"
            if not hasattr(item, "__array__"):
                raise UserError(f"{name} is a {type(item).__name__}: expected arrays of shape (n, d)")
            refuse_masked(item, f"the vectors in {name}")
            array = as_array(item)
            check_array(array, name)
            yield array, None


class NpySource(Source):
    """One or more ``.npy`` files, read as if they were one.

    Raises:
        ValueError: If a file is not a complete .npy file of vectors, or their sizes differ.
    """

    def __init__(self, files: Files) -> None:
        self.files, self._paths, self.rows = files, files.paths, 0
        width = None
        for path in files.paths:
            rows, columns = _vectors_in(path).shape
            width = columns if width is None else width
            if columns != width:
                expected = f"expected {width} as in {files.paths[0].name}"
                raise UserError(f"{path} holds vectors of {columns} dimensions, {expected}")
            self.rows += rows

    @classmethod
    def accepts(cls, given: Any) -> bool:
        return isinstance(given, Files) and all(path.suffix.lower() == ".npy" for path in given.paths)

    def chunks(self, start: int, batch_bytes: int) -> Iterator[tuple[np.ndarray, None]]:
        for path in self._paths:
            header = _vectors_in(path)
            for rows in slices(start, len(header), batch_rows(header.shape[1], batch_bytes)):
                yield _read_rows(path, header, rows), None
            start = max(start - len(header), 0)


def batch_rows(width: int, batch_bytes: int) -> int:
    """Return the number of rows in a batch of float32 vectors: a power of two, at least 1 and at most 16,384."""
    fitting = max(batch_bytes // (4 * max(width, 1)), 1)
    return min(1 << (fitting.bit_length() - 1), _MOST_ROWS)


def slices(start: int, stop: int, size: int) -> Iterator[slice]:
    """Yield slices of at most ``size`` rows from ``start`` to ``stop``."""
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def library(given: Any) -> str:
    """Return the name of the package that an object's class comes from."""
    return type(given).__module__.partition(".")[0]


def as_array(given: Any) -> np.ndarray:
    """Return an array or a torch tensor, on any device, as a NumPy array."""
    if not _is_tensor(given):
        return np.asarray(given)
    tensor = given.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # NumPy has no bfloat16


def check_array(array: Any, name: str) -> None:
    """Raise ``ValueError`` if an array or tensor is not of floats and of shape (n, d)."""
    if array.ndim != 2:
        raise UserError(f"{name} has shape {tuple(array.shape)}: expected vectors as rows, (n, d)")
    if "float" not in getattr(array.dtype, "name", str(array.dtype)):
        raise UserError(f"{name} holds {str(array.dtype).removeprefix('torch.')}: expected floats, convert it first")


def _is_tensor(given: Any) -> bool:
    return library(given) == "torch" and hasattr(given, "detach")


def _read_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items; a thread makes the next one meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _vectors_in(path: Path) -> np.memmap:
    array = mapped(path)
    if array.dtype != _BFLOAT16_ON_DISK or array.ndim != 2:
        check_array(array, str(path))
    return array


def mapped(path: Path) -> np.memmap:
    """Map a .npy file into memory, without reading what it holds; a pickled one is refused.

    Raises:
        ValueError: If it is no complete .npy file of numbers.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # NumPy promises no particular one: a header may end in a TokenError
        said = " ".join(str(error).split())
        # NumPy advises to allow pickles for whatever it does not know.
        why = "expected what numpy.save writes" if "pickle" in said else said
        raise UserError(f"{path} is not a complete .npy file of numbers: {why}") from error
    if not isinstance(array, np.memmap):
        raise UserError(f"{path} is an archive: save each array in a .npy file")
    return array


def _read_rows(path: Path, header: np.memmap, rows: slice) -> np.ndarray:
    """Read rows of a .npy file: mapped ones would stay in memory, all of them if they are stored by columns."""
    count, (length, width), by_columns = rows.stop - rows.start, header.shape, not header.flags.c_contiguous
    values = np.empty((width, count) if by_columns else (count, width), header.dtype)
    with path.open("rb") as file:
        for number, run in enumerate(values if by_columns else [values]):
            first = number * length + rows.start if by_columns else rows.start * width
            file.seek(header.offset + first * header.itemsize)
            if file.readinto(run.view(np.uint8)) < run.nbytes:
                raise UserError(f"{path.name} ends before row {rows.stop}: it was cut while it was read")
    if header.dtype == _BFLOAT16_ON_DISK:  # the upper half of a float32
        values = (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return values.T if by_columns else values
