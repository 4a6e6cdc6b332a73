"""Exact search: float queries scored against every code."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from st_dimreduce.codes.precision import bytes_to_levels, check_codes
from st_dimreduce.codes.rows import as_array, as_count, check_finite, refuse_masked, refuse_multi_vector, scale_rows
from st_dimreduce.enums import Precision
from st_dimreduce.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_GROUP = 16  # scores represented by their maximum until the best groups are found
_TINY = np.float32(1e-30)


def search(
    queries: np.ndarray | Tensor,
    codes: np.ndarray,
    precision: Precision | str,
    k: int = 10,
    *,
    block_size: tuple[int, int] = (1024, 8192),
) -> tuple[np.ndarray, np.ndarray]:
    """Find the codes nearest to each query, by the cosine of the float query with the decoded code.

    Queries stay float: scored against codes they find far more than codes against codes do (asymmetric distance;
    Jegou et al., "Product quantization for nearest neighbor search", PAMI 2011). Every code is scored, a block at a
    time.

    Args:
        queries: Float array or torch tensor of shape (q, k), of any norm, encoded by the model whose head gave the
            codes. A query of zeros scores 0 everywhere.
        codes: What :func:`st_dimreduce.codes.precision.quantize` returned for n documents.
        precision: The precision of the codes.
        k: Results per query; fewer if there are fewer codes. Defaults to 10.
        block_size: Queries and codes scored at a time. Defaults to (1024, 8192): 32 MB of scores.

    Returns:
        Cosines, float32, and rows of ``codes``, int64, both of shape (q, min(k, n)), the nearest first.

    Raises:
        UserError: If the codes do not have the width of the queries and the type of the precision, a query holds NaN
            or infinity, entries are masked, or ``k`` is less than 1.
    """
    precision = Precision(precision)
    unit = unit_queries(queries, k)
    size = unit.shape[1]
    check_codes(codes, precision, size)
    count = min(k, len(codes))
    scores = np.full((len(unit), count), -np.inf, np.float32)
    rows = np.zeros((len(unit), count), np.int64)
    some, many = block_size
    if some < 1 or many < 1:
        raise UserError(f"block_size={block_size}: score at least 1 query and 1 code at a time")
    starts = range(0, len(codes), many)
    with ThreadPoolExecutor(1) as thread:  # decodes the next block while this one is scored
        decoded = [thread.submit(decode, codes[start : start + many], precision, size) for start in starts[:1]]
        for start in starts:
            documents, inverse = decoded.pop().result()
            following = codes[start + many : start + 2 * many]
            decoded.append(thread.submit(decode, following, precision, size))
            for first in range(0, len(unit), some):
                block = slice(first, first + some)
                keep_best(scores[block], rows[block], unit[block] @ documents.T * inverse, start)
    return scores, rows


def decode(codes: np.ndarray, precision: Precision, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the decoded codes, (n, size), not scaled to norm 1, and one over their norm, (n,)."""
    if precision is Precision.FLOAT32:
        return scale_rows(codes), np.ones(len(codes), np.float32)
    if precision is Precision.INT8:
        rows = codes.astype(np.float32)
        squares = np.einsum("ij,ij->i", rows, rows)
    else:
        levels = bytes_to_levels(precision)
        values = np.take(levels, codes, axis=0).reshape(len(codes), codes.shape[1] * levels.shape[1])
        rows = values[:, :size]
        if rows.shape[1] == values.shape[1]:
            squares = np.take(np.square(levels).sum(axis=1), codes).sum(axis=1)
        else:  # the last byte is padded
            squares = np.square(rows).sum(axis=1)
    return rows, 1 / np.sqrt(np.maximum(squares, _TINY))


def keep_best(scores: np.ndarray, rows: np.ndarray, new: np.ndarray, start: int) -> None:
    """Merge new scores into the best so far, in place, the greatest first.

    Args:
        scores: The best so far, (q, k); -inf where there is none yet.
        rows: Their rows, int64 of shape (q, k).
        new: Scores of shape (q, n).
        start: The row of the first of them.
    """
    best, found = _best(new, scores.shape[1])
    best, found = np.concatenate([scores, best], axis=1), np.concatenate([rows, found + start], axis=1)
    order = np.argsort(-best, axis=1, kind="stable")[:, : scores.shape[1]]
    scores[:] = np.take_along_axis(best, order, axis=1)
    rows[:] = np.take_along_axis(found, order, axis=1)


def _best(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``count`` greatest of each row of scores, (q, n), unordered, with their columns; all if n is less."""
    rows, size = scores.shape
    if count >= size:
        return scores, np.broadcast_to(np.arange(size), scores.shape)
    if size % _GROUP or size < 4 * _GROUP * count:
        inside = np.argpartition(scores, size - count, axis=1)[:, size - count :]
        return np.take_along_axis(scores, inside, axis=1), inside
    # The greatest scores are in the groups with the greatest maxima: most scores are compared only once.
    maxima = scores.reshape(rows, -1, _GROUP).max(axis=2)
    groups = np.argpartition(maxima, maxima.shape[1] - count, axis=1)[:, maxima.shape[1] - count :]
    inside = (groups[:, :, None] * _GROUP + np.arange(_GROUP)).reshape(rows, -1)
    best = np.take_along_axis(scores, inside, axis=1)
    order = np.argpartition(best, best.shape[1] - count, axis=1)[:, best.shape[1] - count :]
    return np.take_along_axis(best, order, axis=1), np.take_along_axis(inside, order, axis=1)


def rescore(
    queries: np.ndarray | Tensor, vectors: np.ndarray, candidates: np.ndarray, k: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Reorder candidates from :func:`search` by the cosines of stored float vectors.

    Args:
        queries: Float array or torch tensor of shape (q, d), of any norm.
        vectors: Float vectors of all n documents, shape (n, d), of any norm: reduced ones, or the base model's with its
            queries. They may be memory-mapped: only candidates are read.
        candidates: Rows of ``vectors``, int array of shape (q, c).
        k: Results per query. Defaults to 10.

    Returns:
        Cosines, float32, and rows, int64, both of shape (q, min(k, c)), the nearest first. A row of zeros scores 0.

    Raises:
        UserError: If the shapes do not fit, a candidate is not a row of ``vectors``, a query or a candidate's vector
            holds NaN or infinity, entries are masked, or ``k`` is less than 1.
    """
    unit = unit_queries(queries, k)
    vectors = as_array(vectors, "the vectors", "(n, d)")
    refuse_masked(candidates, "the candidates")
    fits = vectors.ndim == candidates.ndim == 2 and vectors.shape[1] == unit.shape[1] and len(candidates) == len(unit)
    if not fits:
        shapes = f"{unit.shape}, {vectors.shape} and {candidates.shape}"
        raise UserError(f"queries, vectors and candidates have shapes {shapes}: expected (q, d), (n, d) and (q, c)")
    if candidates.dtype.kind not in "iu":
        raise UserError(f"candidates are of type {candidates.dtype}: expected whole numbers, rows of vectors")
    outside = candidates[(candidates < 0) | (candidates >= len(vectors))]
    if outside.size:
        rows = f"rows of vectors, 0 to {len(vectors) - 1}" if len(vectors) else "none, there is no vector"
        raise UserError(f"candidates hold {outside[0]}: expected {rows}")
    count = min(k, candidates.shape[1])
    scores, found = np.empty((len(unit), count), np.float32), np.empty((len(unit), count), np.int64)
    for number, (query, some) in enumerate(zip(unit, candidates, strict=True)):
        read = np.asarray(vectors[some])
        finite = np.isfinite(read).all(axis=1)
        if not finite.all():
            raise UserError(f"row {some[finite.argmin()]} of vectors holds NaN or infinity: expected finite vectors")
        cosines = scale_rows(read) @ query
        order = np.argsort(-cosines, kind="stable")[:count]
        scores[number], found[number] = cosines[order], some[order]
    return scores, found


def unit_queries(queries: Any, k: int) -> np.ndarray:
    """Return queries, an array or a tensor, scaled to norm 1."""
    refuse_multi_vector(queries, "queries")
    queries = as_array(queries, "the queries", "(q, k)")
    check_finite(queries, "the queries")
    as_count(k, "k", "ask for at least 1")
    return scale_rows(queries)
