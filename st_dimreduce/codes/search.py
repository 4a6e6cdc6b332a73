"""Exact search: float queries scored against every code."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from st_dimreduce.codes.precision import bytes_to_levels, dequantize
from st_dimreduce.enums import Precision

if TYPE_CHECKING:
    from torch import Tensor

_GROUP = 16  # scores represented by their maximum until the best groups are known
_SPARE = 32  # candidates beyond top_k where a faster product is rescored in float32
_TINY = np.float32(1e-30)


def search(
    queries: np.ndarray | Tensor,
    codes: np.ndarray,
    precision: Precision | str,
    top_k: int = 10,
    *,
    block_size: tuple[int, int] = (1024, 8192),
) -> tuple[np.ndarray, np.ndarray]:
    """Find the codes nearest to each query, by the cosine of the float query with the decoded code.

    Queries stay float: scored against codes they find far more than codes against codes do (asymmetric distance;
    Jegou et al., "Product quantization for nearest neighbor search", PAMI 2011). Every code is scored, a block at a
    time.

    Args:
        queries: Float array of shape (q, k), of any norm, encoded by the model whose head gave the codes. For a torch
            tensor the products are computed by torch: in bfloat16 where the CPU has AMX, which multiplies it several
            times as fast; the best codes are then rescored in float32.
        codes: What :func:`st_dimreduce.quantize` returned for n documents.
        precision: The precision of the codes.
        top_k: How many to find; fewer where there are fewer codes. Defaults to 10.
        block_size: Queries and codes scored at a time. Defaults to (1024, 8192): 32 MB of scores.

    Returns:
        Cosines, float32, and rows of ``codes``, int64, both of shape (q, min(top_k, n)), the nearest first.

    Raises:
        ValueError: If the codes are not those of vectors as wide as the queries, a query holds NaN or infinity, or
            ``top_k`` is less than 1.
    """
    precision = Precision(precision)
    product, exact, queries = _product(queries, precision)
    _check(queries, top_k)
    size = queries.shape[1]
    dequantize(codes[:0], precision, size)  # checks the width, also where there is no code
    queries = np.ascontiguousarray(queries, np.float32)
    unit = queries / np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), _TINY)
    kept = min(top_k if exact else top_k + _SPARE, len(codes))
    scores = np.full((len(queries), kept), -np.inf, np.float32)
    rows = np.zeros((len(queries), kept), np.int64)
    some, many = block_size
    starts = range(0, len(codes), many)
    with ThreadPoolExecutor(1) as thread:  # decodes the next block meanwhile
        decoded = [thread.submit(_decode, codes[start : start + many], precision, size) for start in starts[:1]]
        for start in starts:
            documents, inverse = decoded.pop().result()
            following = codes[start + many : start + 2 * many]
            decoded.append(thread.submit(_decode, following, precision, size))
            for first in range(0, len(queries), some):
                block = slice(first, first + some)
                best, found = _best(product(unit[block], documents) * inverse, kept)
                best, found = (
                    np.concatenate([scores[block], best], axis=1),
                    np.concatenate([rows[block], found + start], axis=1),
                )
                order = np.argsort(-best, axis=1, kind="stable")[:, :kept]
                scores[block] = np.take_along_axis(best, order, axis=1)
                rows[block] = np.take_along_axis(found, order, axis=1)
    if exact:
        return scores, rows
    return _rescored(queries, lambda found: dequantize(codes[found], precision, size), rows, top_k)


def _product(queries: Any, precision: Precision) -> tuple[Callable[..., np.ndarray], bool, np.ndarray]:
    """Return how to multiply, whether that is exact to float32, and the queries as an array."""
    if isinstance(queries, np.ndarray):
        return lambda one, other: one @ other.T, True, queries
    import torch  # noqa: PLC0415, the caller has it

    amx = getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    kind = torch.bfloat16 if amx and precision is not Precision.FLOAT32 else torch.float32

    def product(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return (torch.from_numpy(one).to(kind) @ torch.from_numpy(other).to(kind).T).float().numpy()

    return product, kind == torch.float32, queries.detach().float().cpu().numpy()


def _decode(codes: np.ndarray, precision: Precision, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the decoded codes, (n, size), not scaled to norm 1, and one over their norm, (n,)."""
    if precision in (Precision.FLOAT32, Precision.INT8):
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


def _best(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the greatest of each row of scores, (q, n), in no order, and where they are; all where n < count."""
    rows, size = scores.shape
    if count >= size:
        return scores, np.broadcast_to(np.arange(size), scores.shape)
    if size % _GROUP or size < 4 * _GROUP * count:
        inside = np.argpartition(scores, size - count, axis=1)[:, size - count :]
        return np.take_along_axis(scores, inside, axis=1), inside
    # The greatest lie in the groups with the greatest maxima: most scores are only compared.
    maxima = scores.reshape(rows, -1, _GROUP).max(axis=2)
    groups = np.argpartition(maxima, maxima.shape[1] - count, axis=1)[:, maxima.shape[1] - count :]
    inside = (groups[:, :, None] * _GROUP + np.arange(_GROUP)).reshape(rows, -1)
    best = np.take_along_axis(scores, inside, axis=1)
    order = np.argpartition(best, best.shape[1] - count, axis=1)[:, best.shape[1] - count :]
    return np.take_along_axis(best, order, axis=1), np.take_along_axis(inside, order, axis=1)


def rescore(
    queries: np.ndarray, vectors: np.ndarray, candidates: np.ndarray, top_k: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Order candidates that :func:`search` found by the cosines of stored float vectors.

    Args:
        queries: Float array of shape (q, d).
        vectors: Float vectors of all n documents, shape (n, d): reduced ones, or the base model's with its queries. A
            memory-mapped file will do, only candidates are read.
        candidates: Rows of ``vectors``, int array of shape (q, c).
        top_k: How many of the candidates to keep. Defaults to 10.

    Returns:
        Cosines and rows, both of shape (q, min(top_k, c)), the nearest first.

    Raises:
        ValueError: If the shapes do not fit, a query holds NaN or infinity, or ``top_k`` is less than 1.
    """
    _check(queries, top_k)
    if vectors.ndim != 2 or vectors.shape[1] != queries.shape[1] or len(candidates) != len(queries):
        shapes = f"{queries.shape}, {vectors.shape} and {candidates.shape}"
        raise ValueError(f"queries, vectors and candidates have shapes {shapes}: expected (q, d), (n, d) and (q, c)")
    return _rescored(queries, lambda found: np.asarray(vectors[found], np.float32), candidates, top_k)


def _rescored(
    queries: np.ndarray, read: Callable[[np.ndarray], np.ndarray], candidates: np.ndarray, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    kept = min(top_k, candidates.shape[1])
    scores, rows = np.empty((len(queries), kept), np.float32), np.empty((len(queries), kept), np.int64)
    for number, (query, found) in enumerate(zip(queries, candidates, strict=True)):
        some = read(found)
        norms = np.linalg.norm(some, axis=1) * np.linalg.norm(query)
        cosines = some @ query.astype(np.float32) / np.maximum(norms, np.float32(1e-30))
        order = np.argsort(-cosines, kind="stable")[:kept]
        scores[number], rows[number] = cosines[order], found[order]
    return scores, rows


def _check(queries: np.ndarray, top_k: int) -> None:
    if queries.ndim != 2 or not np.isfinite(queries).all():
        raise ValueError(f"queries have shape {queries.shape}: expected finite vectors of shape (q, k)")
    if top_k < 1:
        raise ValueError(f"top_k={top_k}: ask for at least 1")
