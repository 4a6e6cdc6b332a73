"""The part of an index that FAISS does: cells are trained, rows assigned to them, lists scanned, graphs walked.

Nothing but the cells is trained. FAISS reads the codes as they are: a packed byte is an entry of a codebook that holds
the fixed levels of :mod:`st_dimreduce.codes.precision`. The files of an index are read by NumPy, never by FAISS.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from st_dimreduce.codes.lists import BLOCK, Lists
from st_dimreduce.codes.precision import INT8_STEPS, bytes_to_levels
from st_dimreduce.codes.rows import as_count
from st_dimreduce.enums import Precision
from st_dimreduce.errors import MissingExtraError, UserError

try:
    import faiss
except ModuleNotFoundError as error:
    raise MissingExtraError("an index of codes needs FAISS: pip install 'st_dimreduce[faiss]'") from error

_FAISS: Any = faiss  # whose types say less than it can

_STEPS = 10  # of k-means; more change the cells, but not what is found
_LINKS, _EF_CONSTRUCTION = 32, 100  # of a graph
_BYTES = np.array([-128.5, 255], np.float32)  # byte b stands for -128.5 + (b + 0.5), as int8 codes are stored


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


def _after_fork() -> None:
    """Use one thread in a forked process: GNU OpenMP waits for ever for its others, which a fork leaves behind."""
    global _most_threads  # noqa: PLW0603, of this process
    _most_threads = 1
    faiss.omp_set_num_threads(1)


_most_threads = max(os.cpu_count() or 1, faiss.omp_get_max_threads())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """Let FAISS use so many threads in this thread's calls; as many as it likes if None. Yields how many it uses."""
    before = faiss.omp_get_max_threads()
    if count is not None:
        # Not more than there are processors: if the system refuses a thread, OpenMP ends the process.
        faiss.omp_set_num_threads(min(as_count(count, "threads", "use at least 1"), _most_threads))
    try:
        yield faiss.omp_get_max_threads()
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
        try:
            mapped.do_mmap()
        except RuntimeError as error:  # a writer has removed it meanwhile
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
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
        # Not its grid of whole numbers, for which it rounds queries.
        uniform = faiss.ScalarQuantizer.QT_8bit_uniform
        index: Any = faiss.IndexIVFScalarQuantizer(quantizer, size, cells, uniform, inner_product, False)
        faiss.copy_array_to_vector(_BYTES, index.sq.trained)
    else:
        halves = bytes_to_levels(precision)[:16, 4 // -precision.bits :]  # of the lower half of a byte
        parts = size // halves.shape[1]
        index = faiss.IndexIVFPQFastScan(quantizer, size, cells, parts, 4, inner_product, BLOCK)
        index.by_residual = False
        faiss.copy_array_to_vector(np.tile(halves, (parts, 1, 1)).ravel(), index.pq.centroids)
    index.is_trained = True
    return index


class Graph:
    """Codes and links between near ones (HNSW; Malkov and Yashunin, PAMI 2020), in memory.

    Args:
        precision: Precision of the codes.
        width: Bytes of a code.
        out_features: Dimensions of a vector.
    """

    def __init__(self, precision: Precision, width: int, out_features: int) -> None:
        self._size = _scanned_features(precision, width)
        # Codes have nearly the same norm: near by Euclidean distance, from a query of that norm, is near by cosine.
        steps = {Precision.FLOAT32: 1 / math.sqrt(out_features), Precision.INT8: INT8_STEPS}
        self._norm = steps.get(precision, 1.0) * math.sqrt(out_features)
        self._storage = _storage(precision, width, self._size)
        self._index: Any = _FAISS.IndexHNSW(self._storage, _LINKS)
        self._index.hnsw.efConstruction = _EF_CONSTRUCTION

    def grow(self, rows: np.ndarray) -> None:
        """Add codes and link them; equal ones in the same order give equal graphs.

        Args:
            rows: Decoded codes, not scaled, float32 of shape (n, k).
        """
        padded = np.pad(rows, ((0, 0), (0, self._size - rows.shape[1])))
        self._index.add(np.ascontiguousarray(padded, np.float32))

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the number of levels of each code, int32 of shape (n,); all links, int32; and where to enter, (1,)."""
        graph = self._index.hnsw
        return (
            faiss.vector_to_array(graph.levels),
            faiss.vector_to_array(graph.neighbors),
            np.array([graph.entry_point], np.int32),
        )

    def load(self, codes: np.ndarray, levels: np.ndarray, links: np.ndarray, entry: int) -> None:
        """Take codes and the arrays of their graph, after checking that no link leads out of it.

        Args:
            codes: Stored codes, uint8 of shape (n, width).
            levels: As :meth:`arrays` returned it.
            links: As :meth:`arrays` returned it.
            entry: As :meth:`arrays` returned it.

        Raises:
            ValueError: If they do not fit one another.
        """
        graph, count = self._index.hnsw, len(codes)
        before = faiss.vector_to_array(graph.cum_nneighbor_per_level).astype(np.int64)  # links of the levels below
        fits = len(levels) == count > entry >= 0 and levels.min() >= 1 and levels.max() < len(before)
        if not fits or levels[entry] != levels.max():
            raise UserError("its levels do not fit its codes")
        offsets = np.concatenate([[0], np.cumsum(before[levels])])
        if len(links) != offsets[-1] or links.min() < -1 or links.max() >= count:
            raise UserError("its links do not fit its codes")
        for level in range(1, int(levels.max())):
            rows = np.flatnonzero(levels > level)
            own = links[(offsets[rows] + before[level])[:, None] + np.arange(before[level + 1] - before[level])]
            if (levels[own[own >= 0]] <= level).any():
                raise UserError("its links lead to levels that are not there")
        self._storage.add_sa_codes(np.ascontiguousarray(codes))
        faiss.copy_array_to_vector(np.ascontiguousarray(levels), graph.levels)
        faiss.copy_array_to_vector(offsets.astype(np.uint64), graph.offsets)
        faiss.copy_array_to_vector(np.ascontiguousarray(links), graph.neighbors)
        graph.entry_point, graph.max_level = entry, int(levels.max()) - 1
        self._index.ntotal = count

    def candidates(self, queries: np.ndarray, count: int, effort: int, allowed: np.ndarray | None) -> np.ndarray:
        """Return the positions of likely nearest codes, as :meth:`CellScan.candidates` does.

        Args:
            queries: Unit vectors, float32 of shape (q, k).
            count: How many.
            effort: Candidates that the walk keeps (FAISS's ``efSearch``); ``count`` at least.
            allowed: A bit per position, the lowest first; None for all.
        """
        padded = np.pad(queries * np.float32(self._norm), ((0, 0), (0, self._size - queries.shape[1])))
        effort = min(max(effort, count), self._index.ntotal)  # which FAISS reserves memory for
        parameters = _FAISS.SearchParametersHNSW(efSearch=effort, sel=_selector(allowed))
        return self._index.search(np.ascontiguousarray(padded), count, params=parameters)[1]


def _storage(precision: Precision, width: int, size: int) -> Any:
    if precision is Precision.FLOAT32:
        return faiss.IndexFlatL2(size)
    if precision is Precision.INT8:
        storage: Any = faiss.IndexScalarQuantizer(size, faiss.ScalarQuantizer.QT_8bit_uniform, faiss.METRIC_L2)
        faiss.copy_array_to_vector(_BYTES, storage.sq.trained)
    else:
        storage = faiss.IndexPQ(size, width, 8, faiss.METRIC_L2)
        levels = np.tile(bytes_to_levels(precision), (width, 1, 1))
        faiss.copy_array_to_vector(levels.ravel(), storage.pq.centroids)
        storage.pq.compute_sdc_table()  # distances between codes, for their links
    storage.is_trained = True
    return storage
