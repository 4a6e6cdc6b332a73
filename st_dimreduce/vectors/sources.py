"""Where vectors come from: arrays, files, tables and iterables, read in batches that do not depend on the source."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")
Chunks = Callable[[int], Iterator[tuple[np.ndarray, Any]]]

_BATCH_BYTES, _MOST_ROWS = 1 << 25, 1 << 14
_BFLOAT16_ON_DISK = np.dtype("V2")  # .npy has no word for it: NumPy writes its two bytes
_SUFFIXES = {".npy": ".npy", ".parquet": ".parquet", ".arrow": ".arrow", ".feather": ".arrow"}
_EXPECTED = "give an array, .npy, .parquet or .arrow files, a folder of one kind, a table or an iterable of arrays"


@dataclass(frozen=True)
class Batch:
    """Vectors of successive rows, float32 of shape (n, d), and the rows of a table's other columns (or None)."""

    first_row: int
    vectors: np.ndarray
    others: Any = None


@dataclass(frozen=True)
class Source:
    """Vectors, wherever they are.

    Attributes:
        chunks: From a row, 0 where there are no files, to arrays (n, d) of any float type from there on, each with an
            Arrow table of the other columns or None.
        rows: How many there are; None if that is not known.
        path: The file or folder they are in, if any.
        files: What is known of each file: name, bytes and time of the last change. Tells whether one has changed.
        column: The column of vectors in a table; None for arrays.
        schema: The table's Arrow schema; None for arrays.
    """

    chunks: Chunks
    rows: int | None = None
    path: Path | None = None
    files: tuple[tuple[str, int, int], ...] = ()
    column: str | None = None
    schema: Any = None


def open_source(source: Any, column: str | None = None) -> Source:
    """Look at what was given, without reading a vector.

    Args:
        source: As in :func:`st_dimreduce.reduce_vectors`.
        column: The column of vectors in a table; None for the only one.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ModuleNotFoundError: If it is a table and pyarrow is missing.
        ValueError: If it is nothing that vectors can be read from; says what it is.
    """
    if isinstance(source, (str, os.PathLike)):
        return _open_path(Path(source), column)
    library = type(source).__module__.partition(".")[0]
    if library in ("pyarrow", "datasets"):
        from st_dimreduce.vectors.arrow import open_memory  # noqa: PLC0415, optional

        return _of_tables(open_memory(source, column))
    if column is not None:
        raise ValueError(f"a column ({column!r}) was named for a {type(source).__name__}: only tables have columns")
    if isinstance(source, (np.ndarray, torch.Tensor)):
        _check_array(source, f"the {type(source).__name__}")
        return Source(lambda start: _slices(lambda rows: _as_array(source[rows]), len(source)), len(source))
    if library == "faiss":
        flat = _flat(source)
        return Source(
            lambda start: _slices(lambda rows: flat.reconstruct_n(rows.start, rows.stop - rows.start), flat.ntotal),
            flat.ntotal,
        )
    if hasattr(source, "__iter__"):
        return Source(lambda start: _items(source))
    raise ValueError(f"{type(source).__name__} holds no vectors: {_EXPECTED}")


def batch_rows(width: int) -> int:
    """How many rows of this width are a batch: a power of two, about 32 MB, whatever the source and the machine."""
    return min(1 << max(_BATCH_BYTES // (4 * width), 1).bit_length() - 1, _MOST_ROWS)


def batches(source: Source, start: int = 0) -> Generator[Batch, None, None]:
    """Yield all rows from ``start`` on in batches of :func:`batch_rows`, the last one shorter.

    The next batch of a file is read while the one before is worked on. A batch may be a view of the source: it is to
    be left as it is.

    Raises:
        ValueError: If there are no rows, a row is no vector as wide as the first, or a file has changed since the
            source was opened.
    """
    reading = _batches(source, start)
    # An iterable of the caller's own stays in the caller's thread: it may be a database cursor.
    yield from _ahead(reading) if source.files else reading


def _batches(source: Source, start: int) -> Iterator[Batch]:
    first, held, size, width = start, 0, 0, 0
    buffer, tables = np.empty(0, np.float32), list[Any]()
    for vectors, others in source.chunks(start):
        if not len(vectors):
            continue
        width = width or vectors.shape[1]
        if vectors.shape[1] != width or not width:
            row, wanted = first + held, width or "1 or more"
            raise ValueError(f"the vectors from row {row} on have {vectors.shape[1]} dimensions, expected {wanted}")
        size, used = size or batch_rows(width), 0
        while used < len(vectors):
            taken = min(size - held, len(vectors) - used)
            rows, used = slice(used, used + taken), used + taken
            tables.append(None if others is None else others.slice(rows.start, taken))
            if taken == size and vectors.dtype == np.float32 and vectors.flags.c_contiguous:
                whole = vectors[rows]
            else:
                buffer = buffer if held else np.empty((size, width), np.float32)
                with np.errstate(over="ignore", invalid="ignore"):  # what overflows is reported as a row
                    buffer[held : held + taken] = vectors[rows]
                whole = buffer
            held += taken
            if held == size:
                yield Batch(first, whole, _joined(tables))
                first, held, tables = first + size, 0, []
    if held:
        yield Batch(first, buffer[:held], _joined(tables))
    if not first + held:
        raise ValueError(f"there is no vector in the source: {_EXPECTED} that holds at least one")
    check_unchanged(source)


def check_unchanged(source: Source) -> None:
    """Raise ``ValueError`` if a file has changed, come or gone since the source was opened."""
    now = () if source.path is None else tuple(_state(path) for path in _files(source.path))
    for name, *_ in sorted(set(source.files) ^ set(now)):
        raise ValueError(f"{name} has changed while it was read: begin anew when nothing writes to it any more")


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items, the next one being made in a thread meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


def _joined(tables: Sequence[Any]) -> Any:
    if len(tables) == 1 or tables[0] is None:
        return tables[0]
    from st_dimreduce.vectors.arrow import pa  # noqa: PLC0415, optional

    return pa.concat_tables(tables)


def _open_path(path: Path, column: str | None) -> Source:
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}: {_EXPECTED}")
    paths = _files(path)
    kinds = {_SUFFIXES[p.suffix.lower()] for p in paths}
    if len(kinds) != 1:
        raise ValueError(f"{path} holds {' and '.join(sorted(kinds)) or 'no vectors'}: {_EXPECTED}")
    files = tuple(_state(p) for p in paths)
    if kinds == {".npy"}:
        if column is not None:
            raise ValueError(f"a column ({column!r}) was named for {path}: .npy files have no columns")
        shapes = [_mapped(p).shape for p in paths]
        for p, shape in zip(paths, shapes, strict=True):
            if shape[1] != shapes[0][1]:
                wanted = f"expected {shapes[0][1]} as in {paths[0].name}"
                raise ValueError(f"{p} holds vectors of {shape[1]} dimensions, {wanted}")
        return Source(lambda start: _npy_chunks(paths, start), sum(n for n, _ in shapes), path, files)
    from st_dimreduce.vectors.arrow import open_ipc, open_parquet  # noqa: PLC0415, optional

    return _of_tables(open_parquet(paths, column) if kinds == {".parquet"} else open_ipc(paths, column), path, files)


def _files(path: Path) -> list[Path]:
    inside = [p for p in path.iterdir() if p.name[0] not in "._"] if path.is_dir() else [path]
    return sorted(p for p in inside if p.is_file() and p.suffix.lower() in _SUFFIXES)


def _of_tables(tables: Any, path: Path | None = None, files: tuple[tuple[str, int, int], ...] = ()) -> Source:
    return Source(tables.chunks, tables.rows, path, files, tables.column, tables.schema)


def _state(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return path.name, status.st_size, status.st_mtime_ns


def _mapped(path: Path) -> np.memmap:
    """Map a .npy file into memory, none of which is read yet; never a pickled one."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no whole .npy file of numbers: {error}") from error
    if not isinstance(array, np.memmap):
        raise ValueError(f"{path} is an archive: save each array in a .npy file")
    if array.dtype != _BFLOAT16_ON_DISK or array.ndim != 2:
        _check_array(array, str(path))
    return array


def _npy_chunks(paths: Sequence[Path], start: int) -> Iterator[tuple[np.ndarray, None]]:
    for path in paths:
        array = _mapped(path)
        rows, width = array.shape
        size = batch_rows(max(width, 1))
        for first in range(start, rows, size):
            count = min(size, rows - first)
            if array.flags.c_contiguous:  # read, not mapped: mapped pages would stay in memory
                offset = array.offset + first * width * array.itemsize
                chunk = np.fromfile(path, array.dtype, count * width, offset=offset)
            else:
                chunk = np.array(_mapped(path)[first : first + count], order="C").reshape(-1)
            if chunk.size < count * width:
                raise ValueError(f"{path.name} ends before row {first + count}: it was cut while it was read")
            chunk = _from_bfloat16(chunk) if array.dtype == _BFLOAT16_ON_DISK else chunk
            yield chunk.reshape(count, width), None
        start = max(start - rows, 0)


def _from_bfloat16(raw: np.ndarray) -> np.ndarray:
    """A bfloat16 is the upper half of a float32."""
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _slices(read: Callable[[slice], np.ndarray], rows: int) -> Iterator[tuple[np.ndarray, None]]:
    for first in range(0, rows, _MOST_ROWS):
        yield read(slice(first, min(first + _MOST_ROWS, rows))), None


def _items(source: Any) -> Iterator[tuple[np.ndarray, None]]:
    for number, item in enumerate(source):
        name = f"item {number} of the {type(source).__name__}"
        if not isinstance(item, torch.Tensor) and not hasattr(item, "__array__"):
            raise ValueError(f"{name} is a {type(item).__name__}: expected arrays of shape (n, d)")
        array = _as_array(item)
        _check_array(array, name)
        yield array, None


def _as_array(given: Any) -> np.ndarray:
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu()
        return (given.float() if given.dtype == torch.bfloat16 else given).numpy()
    return np.asarray(given)


def _check_array(array: Any, name: str) -> None:
    if array.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(array.shape)}: expected vectors as rows, (n, d)")
    kind = str(array.dtype).removeprefix("torch.")
    if not kind.lstrip("<>").startswith(("float", "bfloat", "f")):
        raise ValueError(f"{name} holds {kind}: expected floats, convert it first")


def _flat(index: Any) -> Any:
    """Return the flat FAISS index in which the vectors lie, in the order they were added."""
    import faiss  # noqa: PLC0415, optional

    kind, index = type(index).__name__, faiss.downcast_index(index.index) if hasattr(index, "id_map") else index
    if not isinstance(index, faiss.IndexFlat):
        raise ValueError(f"{kind} does not hold whole vectors: give a flat FAISS index, IndexFlatIP or IndexFlatL2")
    return index
