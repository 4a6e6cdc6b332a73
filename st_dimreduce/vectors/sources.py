"""Where vectors come from: arrays, ``.npy`` files, FAISS indexes and iterables. ``tables.py`` reads tables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from st_dimreduce.codes.rows import as_array, is_tensor, map_array
from st_dimreduce.errors import UserError
from st_dimreduce.vectors.batches import EXPECTED, Files, Source, library, rows_per_batch, slices

_FORMATS = {".npy": ".npy", ".parquet": ".parquet", ".arrow": ".arrow", ".feather": ".arrow"}  # of files, by suffix
_BFLOAT16_ON_DISK = np.dtype("V2")  # .npy has no name for it: NumPy writes its two bytes


def open_source(source: Any, column: str | None = None) -> Source:
    """Find out what was given, without reading a vector.

    Args:
        source: As in :meth:`st_dimreduce.Head.fit`.
        column: The column of vectors in a table; None (the default) for the only one.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ModuleNotFoundError: If it is a table and pyarrow is missing.
        UserError: If vectors cannot be read from it.
    """
    name, suffix = type(source).__name__, ""
    if isinstance(source, (str, os.PathLike)):
        name, source = str(source), Files.at(Path(source), tuple(_FORMATS))
        formats = sorted({_FORMATS[path.suffix.lower()] for path in source.paths})
        if len(formats) != 1:
            raise UserError(f"{name} holds {' and '.join(formats) or 'no vectors'}: {EXPECTED}")
        suffix = formats[0]
    if suffix in (".parquet", ".arrow") or library(source) in ("pyarrow", "datasets"):
        from st_dimreduce.vectors.tables import open_table  # noqa: PLC0415, optional

        return open_table(source, column)
    if column is not None:
        raise UserError(f"column {column!r} was named, but {name} is not a table: leave the column out")
    if suffix == ".npy":
        return NpySource(source)
    if isinstance(source, np.ndarray) or is_tensor(source):
        return ArraySource(source)
    if library(source) == "faiss":
        return ArraySource(_faiss_vectors(source))
    if hasattr(source, "__iter__"):
        return IterableSource(source)
    raise UserError(f"{name} holds no vectors: {EXPECTED}")


class ArraySource(Source):
    """A NumPy array or a torch tensor of shape (n, d)."""

    def __init__(self, array: Any) -> None:
        # Of a tensor no row is copied yet.
        as_array(array[:0] if is_tensor(array) and array.ndim == 2 else array, f"the {type(array).__name__}")
        self._array, self.rows = array, len(array)

    def read(self, start: int) -> Iterator[tuple[np.ndarray, None]]:
        for rows in slices(start, len(self._array), rows_per_batch(self._array.shape[1])):
            yield as_array(self._array[rows], "the vectors"), None


class IterableSource(Source):
    """Any iterable of arrays or tensors of shape (n, d), read once."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items

    def read(self, start: int) -> Iterator[tuple[np.ndarray, None]]:
        for number, item in enumerate(self._items):
            array = as_array(item, f"item {number} of the {type(self._items).__name__}")
            for rows in slices(0, len(array), rows_per_batch(array.shape[1])):
                with np.errstate(over="ignore"):  # reported as a bad row
                    yield np.array(array[rows], np.float32), None  # a copy: the caller may use its buffer again


class NpySource(Source):
    """One or more ``.npy`` files, read as if they were one.

    Raises:
        UserError: If a file is not a complete .npy file of vectors, or their sizes differ.
    """

    def __init__(self, files: Files) -> None:
        self.files, self.rows = files, 0
        arrays = [_vectors_in(path) for path in files.paths]
        for path, array in zip(files.paths, arrays, strict=True):
            if array.shape[1] != arrays[0].shape[1]:
                expected = f"expected {arrays[0].shape[1]} as in {files.paths[0].name}"
                raise UserError(f"{path} holds vectors of {array.shape[1]} dimensions, {expected}")
            self.rows += len(array)

    def read(self, start: int) -> Iterator[tuple[np.ndarray, None]]:
        for path in self.files.paths if self.files else ():
            length, width = _vectors_in(path).shape
            for rows in slices(start, length, rows_per_batch(width)):
                # A copy of a new map: the pages of a map that stays would stay in memory.
                values = np.array(_vectors_in(path)[rows])
                if values.dtype == _BFLOAT16_ON_DISK:  # the upper half of a float32
                    values = (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
                yield values, None
            start = max(start - length, 0)


def _vectors_in(path: Path) -> np.memmap:
    array = map_array(path)
    if array.dtype != _BFLOAT16_ON_DISK or array.ndim != 2:
        as_array(array, str(path))
    return array


def _faiss_vectors(index: Any) -> np.ndarray:
    """Return the vectors of a flat FAISS index, or of a graph, in their order, as a view of its memory."""
    import faiss  # noqa: PLC0415, the caller has it

    flat: Any = faiss.downcast_index(index.index) if hasattr(index, "id_map") else index
    flat = faiss.downcast_index(flat.storage) if isinstance(flat, faiss.IndexHNSWFlat) else flat
    if not isinstance(flat, faiss.IndexFlat):
        instead = "give index.reconstruct_n(0, index.ntotal) if it stores whole vectors"
        raise UserError(f"{type(index).__name__} is not a flat FAISS index: {instead}")
    view: np.ndarray = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
    return view
