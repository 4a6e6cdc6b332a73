"""The part of an index that FAISS does: cells are trained, rows assigned to them, lists scanned, graphs searched.

Nothing but the cells is trained. FAISS reads the codes as they are: a packed byte is an entry of a codebook that holds
the fixed levels of :mod:`st_dimreduce.codes.precision`. The files of an index are read by NumPy, never by FAISS.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from st_dimreduce.codes.lists import BLOCK, Lists
from st_dimreduce.codes.precision import bytes_to_levels
from st_dimreduce.enums import Precision

try:
    import faiss
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("an index of codes needs FAISS: pip install 'st_dimreduce[faiss]'") from error

_FAISS: Any = faiss  # whose types say less than it can

_STEPS = 10  # of k-means; more change the cells, but not what is found


def train_cells(sample: np.ndarray, cells: int, seed: int) -> np.ndarray:
    """Return the centres of cells, by spherical k-means.

    Args:
        sample: Unit vectors, float32 of shape (n, k), n >= cells.
        cells: Number of cells.
        seed: Seed of the k-means.

    Returns:
        float32 of shape (cells, k).
    """
    means = faiss.Clustering(sample.shape[1], cells)
    means.niter, means.seed, means.spherical, means.min_points_per_centroid = _STEPS, seed + 1, True, 1
    means.max_points_per_centroid = len(sample)
    means.train(sample, faiss.IndexFlatIP(sample.shape[1]))
    return faiss.vector_to_array(means.centroids).reshape(cells, -1)


def assign(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the cell of each row, by the greatest inner product; int64 of shape (n,)."""
    return _flat(centres).search(np.ascontiguousarray(rows), 1)[1][:, 0]


def _flat(vectors: np.ndarray) -> Any:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, np.float32))
    return index


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let FAISS use so many threads in this thread's calls; as many as it likes if None."""
    if count is not None and count < 1:
        raise ValueError(f"threads={count}: use at least 1")
    before = faiss.omp_get_max_threads()
    if count is not None:
        faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _selector(allowed: np.ndarray | None) -> Any:
    """Return what lets FAISS look at some positions only, by a bit of each; the array must outlive it."""
    return None if allowed is None else faiss.IDSelectorBitmap(len(allowed), faiss.swig_ptr(allowed))


class CellScan:
    """An inverted file whose lists stay on the disk, mapped into memory.

    Args:
        path: The file of the lists.
        lists: Where the codes are in it.
        centres: Centres of the cells, float32 of shape (cells, k).
        precision: Precision of the codes.
    """

    def __init__(self, path: Path, lists: Lists, centres: np.ndarray, precision: Precision) -> None:
        cells, size = len(lists.sizes), _scanned_features(precision, lists.width)
        self._quantizer = _flat(np.pad(centres, ((0, 0), (0, size - centres.shape[1]))))
        self._index = _inverted_file(self._quantizer, size, cells, precision)
        mapped = _FAISS.OnDiskInvertedLists()
        mapped.nlist, mapped.code_size, mapped.filename = cells, lists.width, str(path)
        mapped.read_only, mapped.totsize = True, int(lists.offsets[-1])
        mapped.prefetch_nthread = 0  # 32 threads would read every list that is looked into a second time
        mapped.lists.resize(cells)
        # FAISS's only function for this leaves no room behind a list, which blocks need.
        where: Any = (ctypes.c_size_t * (3 * cells)).from_address(int(mapped.lists.data().this))
        np.frombuffer(where, np.uint64).reshape(cells, 3)[:] = np.stack(
            [lists.sizes, lists.capacities, lists.offsets[:-1]], axis=1
        )
        mapped.do_mmap()
        self._lists, self._size = mapped, size
        self._index.replace_invlists(mapped, False)
        self._index.ntotal = int(lists.starts[-1])

    def candidates(self, queries: np.ndarray, count: int, effort: int, allowed: np.ndarray | None) -> np.ndarray:
        """Return the positions of likely nearest codes, int64 of shape (q, count); -1 where there are fewer.

        Args:
            queries: Unit vectors, float32 of shape (q, k).
            count: How many.
            effort: Cells to look into per query.
            allowed: A bit per position, the lowest first; None for all.
        """
        padded = np.pad(queries, ((0, 0), (0, self._size - queries.shape[1])))
        effort = min(effort, self._index.nlist)
        selector = _selector(allowed)
        parameters = _FAISS.SearchParametersIVF(nprobe=effort, sel=selector)
        return self._index.search(np.ascontiguousarray(padded), count, params=parameters)[1]


def _scanned_features(precision: Precision, width: int) -> int:
    """Return how many dimensions FAISS sees: those that fill the last byte are more than the vectors have."""
    return width * 8 // precision.bits


def _inverted_file(quantizer: Any, size: int, cells: int, precision: Precision) -> Any:
    inner_product = faiss.METRIC_INNER_PRODUCT
    if precision is Precision.FLOAT32:
        return faiss.IndexIVFFlat(quantizer, size, cells, inner_product)
    if precision is Precision.INT8:
        # Not its grid of whole numbers, for which it rounds queries: byte b stands for (b + 0.5) - 128.5.
        uniform = faiss.ScalarQuantizer.QT_8bit_uniform
        index: Any = faiss.IndexIVFScalarQuantizer(quantizer, size, cells, uniform, inner_product, False)
        faiss.copy_array_to_vector(np.array([-128.5, 255], np.float32), index.sq.trained)
    else:
        halves = bytes_to_levels(precision)[:16, 4 // -precision.bits :]  # of the lower half of a byte
        parts = size // halves.shape[1]
        index = faiss.IndexIVFPQFastScan(quantizer, size, cells, parts, 4, inner_product, BLOCK)
        index.by_residual = False
        faiss.copy_array_to_vector(np.tile(halves, (parts, 1, 1)).ravel(), index.pq.centroids)
    index.is_trained = True
    return index
