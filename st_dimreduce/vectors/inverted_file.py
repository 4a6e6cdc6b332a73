"""Codes in a FAISS inverted file: an index whose codebooks are the fixed grids, and the codes in its lists by id.

FAISS's fast scan (Andre, Kermarrec and Le Scouarnec, "Cache locality is not enough", VLDB 2015) scans 4-bit codes of a
product quantiser (Jegou et al., "Product quantization for nearest neighbor search", PAMI 2011). One dimension of int4,
two of int2 and four of binary fill such a code, so the grids of :mod:`st_dimreduce.codes.precision` are the codebooks,
and nothing is trained but the centroids of the cells.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np

from st_dimreduce.codes.codes import Codes
from st_dimreduce.codes.origin import Origin
from st_dimreduce.codes.precision import INT8_STEPS, bytes_to_levels, thresholds
from st_dimreduce.codes.search import decode, keep_best
from st_dimreduce.enums import Precision
from st_dimreduce.errors import MissingExtraError

try:
    import faiss as _faiss
except ModuleNotFoundError as error:
    raise MissingExtraError("an index needs FAISS: pip install 'st_dimreduce[faiss]'") from error

faiss: Any = _faiss  # its type stubs lack attributes that it has

_TRAINED_PER_CELL = 64  # vectors; more move the centroids, but not what is found
_K_MEANS_STEPS = 10  # likewise
_BLOCK = 1 << 14  # codes decoded at a time
_QUERY_BLOCK = 1 << 10  # queries scored against them at a time
_CACHED_BYTES = 1 << 22  # of decoded candidates, which stay in the processor's cache


def train_centroids(codes: Codes, cells: int, seed: int) -> np.ndarray:
    """Return centroids of the directions of a sample, float32 of shape (cells, out_features), by spherical k-means."""
    count = min(cells * _TRAINED_PER_CELL, len(codes))
    drawn = np.sort(np.random.default_rng(seed).choice(len(codes), count, replace=False))
    rows, inverse = decode(np.asarray(codes.values[drawn]), codes.precision, codes.out_features)
    rows *= inverse[:, None]
    options = {"niter": _K_MEANS_STEPS, "seed": seed + 1, "spherical": True, "min_points_per_centroid": 1}
    means = faiss.Kmeans(codes.out_features, cells, **options)
    means.train(rows)
    return means.centroids


def new_index(origin: Origin, centroids: np.ndarray) -> Any:
    """Return an empty FAISS index for codes, which it decodes to vectors of norm near 1.

    Args:
        origin: What the codes are.
        centroids: Centroids of the cells, float32 of shape (cells, out_features).

    Returns:
        ``IndexIVFFlat`` for float32, ``IndexIVFScalarQuantizer`` for int8, else ``IndexIVFPQFastScan``. Its dimensions
        are those that fill the last byte of a code, up to 7 more than ``out_features``.
    """
    precision, size, cells = origin.precision, _padded_size(origin), len(centroids)
    quantizer = faiss.IndexFlatIP(size)
    quantizer.add(pad(centroids, size))
    metric = faiss.METRIC_INNER_PRODUCT
    if precision is Precision.FLOAT32:
        return faiss.IndexIVFFlat(quantizer, size, cells, metric)
    if precision is Precision.INT8:
        uniform = faiss.ScalarQuantizer.QT_8bit_uniform
        index = faiss.IndexIVFScalarQuantizer(quantizer, size, cells, uniform, metric, False)
        # Byte b stands for the middle of its step, -128.5 + (b + 0.5) steps: a code c is stored as the byte c + 128.
        faiss.copy_array_to_vector(np.array([-128.5, 255], np.float32) * _scale(origin), index.sq.trained)
    else:
        levels = bytes_to_levels(precision)[:16, 4 // -precision.bits :]  # of the lower half of a byte
        parts = size // levels.shape[1]
        index = faiss.IndexIVFPQFastScan(quantizer, size, cells, parts, 4, metric)
        index.by_residual = False
        codebooks = np.tile(levels * _scale(origin), (parts, 1, 1))
        faiss.copy_array_to_vector(codebooks.ravel(), index.pq.centroids)
    index.is_trained = True
    return index


def codebook(index: Any) -> np.ndarray:
    """Return the values that the codes of an index stand for; none for an index of floats."""
    values = index.pq.centroids if hasattr(index, "pq") else index.sq.trained if hasattr(index, "sq") else None
    return np.empty(0, np.float32) if values is None else faiss.vector_to_array(values)


def to_faiss(values: np.ndarray, origin: Origin) -> np.ndarray:
    """Return the vectors that FAISS codes as these values: entries of its codebooks, float32."""
    rows, _ = decode(np.asarray(values), origin.precision, _padded_size(origin))
    return np.ascontiguousarray(rows * _scale(origin), np.float32)


def pad(rows: np.ndarray, size: int) -> np.ndarray:
    """Return rows as FAISS takes them, float32 of shape (n, size), with zeros behind."""
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, size - rows.shape[1]))), np.float32)


def _padded_size(origin: Origin) -> int:
    return origin.precision.bytes_per_vector(origin.out_features) * 8 // origin.precision.bits


def _scale(origin: Origin) -> np.float32:
    """Return what decoded codes are multiplied by for a norm near 1."""
    precision = origin.precision
    if precision is Precision.FLOAT32:
        return np.float32(1)
    square = INT8_STEPS**2  # mean square of an entry
    if precision is not Precision.INT8:
        shares = np.diff([0.0, *map(NormalDist().cdf, thresholds(precision).tolist()), 1.0])
        square = float(shares @ bytes_to_levels(precision)[: 2**precision.bits, -1] ** 2)
    return np.float32(1 / math.sqrt(square * origin.out_features))


class Lists:
    """The lists of a FAISS inverted file as arrays, in which a code is found by its id.

    A rank is the position of an id among the ascending ids, a place that of its code through all lists.

    Args:
        index: The inverted file. Once it changes, the arrays are no longer valid.
        origin: What its codes are.
    """

    def __init__(self, index: Any, origin: Origin) -> None:
        self._index, self._origin = index, origin  # the former owns the memory of the codes
        lists = faiss.downcast_InvertedLists(index.invlists)
        self._blocked = isinstance(lists, faiss.BlockInvertedLists)
        sizes = [lists.list_size(cell) for cell in range(index.nlist)]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._codes: list[np.ndarray] = []
        ids, width = np.empty(self._starts[-1], np.int64), index.code_size
        for cell, (start, size) in enumerate(zip(self._starts.tolist(), sizes, strict=False)):
            if not size:
                self._codes.append(np.empty(0, np.uint8))
                continue
            ids[start : start + size] = faiss.rev_swig_ptr(lists.get_ids(cell), size)
            stored = -(-size // 32) * 32 * width if self._blocked else size * width
            codes = faiss.rev_swig_ptr(lists.get_codes(cell), stored)
            self._codes.append(_halves(codes, width) if self._blocked else codes.reshape(size, width))
        kind = np.uint32 if len(ids) < 2**32 else np.int64
        if ids.max(initial=-1) == len(ids) - 1:  # 0 to n - 1: an id is its own rank
            self._ids = None
            self._places = np.empty(len(ids), kind)
            self._places[ids] = np.arange(len(ids), dtype=kind)
        else:
            order = np.argsort(ids, kind="stable")
            self._ids, self._places = ids[order], order.astype(kind)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def ids(self) -> np.ndarray:
        """All ids, ascending, int64."""
        return np.arange(len(self)) if self._ids is None else self._ids

    def ranks(self, ids: np.ndarray) -> np.ndarray:
        """Return the ranks of ids that are there."""
        return ids if self._ids is None else np.searchsorted(self._ids, ids)

    def contains(self, ids: np.ndarray) -> np.ndarray:
        """Return which of some ids are there."""
        if self._ids is None:
            return (ids >= 0) & (ids < len(self))
        return self._ids[np.minimum(np.searchsorted(self._ids, ids), len(self) - 1)] == ids

    def codes(self, ranks: np.ndarray) -> np.ndarray:
        """Return the codes of some ranks, int array of shape (n,), as :class:`st_dimreduce.Codes` holds them."""
        places = self._places[ranks]
        order = np.argsort(places)  # each list is looked up once
        places = places[order].astype(np.int64)
        cells = np.searchsorted(self._starts, places, side="right") - 1
        inside = places - self._starts[cells]
        width, precision = self._index.code_size, self._origin.precision
        first = _first_byte(inside, width) if self._blocked else inside
        found = np.empty((len(ranks), 2, width) if self._blocked else (len(ranks), width), np.uint8)
        bounds = [*np.flatnonzero(np.diff(cells, prepend=-1)).tolist(), len(cells)]
        for start, stop in pairwise(bounds):
            found[order[start:stop]] = self._codes[cells[start]][first[start:stop]]
        if self._blocked:
            late = np.empty((len(ranks), 1), bool)
            late[order, 0] = inside % 32 >= 16
            return _joined(found[:, 0], found[:, 1], late)
        return (found ^ 0x80).view(np.int8) if precision is Precision.INT8 else found.view(np.float32)

    def score(self, unit: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Return the cosines of queries with the codes of ids, float32 of shape (q, c); -inf for the id -1."""
        scores = np.empty(ids.shape, np.float32)
        size, count = unit.shape[1], ids.shape[1]
        values = self.codes(np.maximum(self.ranks(ids), 0).reshape(-1))

        def score(first: int) -> None:
            rows = slice(first, first + step)
            block = scores[rows]
            decoded, inverse = decode(values[first * count : first * count + block.size], self._origin.precision, size)
            block[:] = np.matmul(decoded.reshape(*block.shape, size), unit[rows, :, None])[..., 0]
            block *= inverse.reshape(block.shape)

        step = max(_CACHED_BYTES // (4 * size * max(count, 1)), 1)
        starts = range(0, len(unit), step)
        if len(starts) > 1:
            with ThreadPoolExecutor(faiss.omp_get_max_threads()) as pool:
                list(pool.map(score, starts))
        elif len(unit):
            score(0)
        scores[ids < 0] = -np.inf
        return scores

    def search(self, unit: np.ndarray, k: int, ranks: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Score all codes, or those of some ranks: returns the k best cosines and their ids, both (q, k)."""
        ranks = np.arange(len(self)) if ranks is None else ranks
        ranks = ranks[np.argsort(self._places[ranks])]  # each list is read once
        scores, found = np.full((len(unit), k), -np.inf, np.float32), np.zeros((len(unit), k), np.int64)
        for start in range(0, len(ranks), _BLOCK):
            values = self.codes(ranks[start : start + _BLOCK])
            rows, inverse = decode(values, self._origin.precision, unit.shape[1])
            for first in range(0, len(unit), _QUERY_BLOCK):
                block = slice(first, first + _QUERY_BLOCK)
                keep_best(scores[block], found[block], unit[block] @ rows.T * inverse, start)
        return scores, self.ids[ranks[found]] if len(ranks) else found


def _halves(codes: np.ndarray, width: int) -> np.ndarray:
    """Return a view of a list in FAISS's blocks of 32 codes: by the byte at which a code begins, its halves of bytes.

    A block holds 32 bytes for each byte of a code: 16 with its upper half, then 16 with its lower one. A byte holds two
    codes, the 16th after the first one in its high bits, and the 16 bytes are in the order 0, 8, 1, 9, ... 7, 15.

    Returns:
        uint8 of shape (bytes, 2, width); the view overlaps itself.
    """
    shape = (len(codes) - 32 * (width - 1) - 16, 2, width)
    return np.ndarray(shape, np.uint8, codes, strides=(1, 16, 32))


def _first_byte(inside: np.ndarray, width: int) -> np.ndarray:
    """Return the bytes of a list at which codes begin, by their positions in the list."""
    block, place = inside // 32, inside % 16
    return block * 32 * width + 2 * (place % 8) + place // 8


def _joined(upper: np.ndarray, lower: np.ndarray, late: np.ndarray) -> np.ndarray:
    """Return bytes of which the halves are in ``upper`` and ``lower``: in the high bits for codes that come late."""
    return np.where(late, (upper & 0xF0) | (lower >> 4), (upper << 4) | (lower & 15))
