"""Exact search: float queries over stored codes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from st_dimreduce.precision import Precision, bytes_to_levels, dequantize

_DOCUMENTS, _QUERIES = 8192, 1024  # rows of a block: its scores take 32 MB
_GROUP = 16  # scores of which the greatest stands for all, until the best groups are known
_SPARE = 32  # more than are asked for, where scores are to be counted again
# AMX multiplies bfloat16 several times as fast as float32; without it a CPU may take longer.
_FAST = torch.bfloat16 if getattr(torch.cpu, "_is_amx_tile_supported", bool)() else torch.float32


def search(
    queries: np.ndarray, codes: np.ndarray, precision: Precision | str, top_k: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Find the codes nearest to each query, by the cosine of the float query with what the code stands for.

    Queries stay float: scored against codes they find far more than codes against codes do (asymmetric distance;
    Jegou et al., "Product quantization for nearest neighbor search", PAMI 2011). Every code is scored, block by block;
    where the CPU has tiles for bfloat16 (AMX), in it at first, and the best, with 32 to spare, once more in float32.

    Args:
        queries: Float array of shape (q, k), of any length, encoded by the model whose head gave the codes.
        codes: What :func:`st_dimreduce.quantize` returned for n documents.
        precision: The precision of the codes.
        top_k: How many to find; fewer where there are fewer codes. Defaults to 10.

    Returns:
        Cosines, float32, and rows of ``codes``, int64, both of shape (q, min(top_k, n)), the nearest first.

    Raises:
        ValueError: If the codes are not those of vectors as wide as the queries, a query holds NaN or infinity, or
            ``top_k`` is less than 1.
    """
    precision = Precision(precision)
    _check(queries, top_k)
    size = queries.shape[1]
    dequantize(codes[:0], precision, size)  # says so if the width is wrong, also where there is no code
    unit = torch.nn.functional.normalize(torch.from_numpy(np.ascontiguousarray(queries, np.float32)), dim=1)
    fast = torch.float32 if precision is Precision.FLOAT32 else _FAST
    kept = min(top_k + (_SPARE if fast != torch.float32 else 0), len(codes))
    scores = torch.full((len(queries), kept), -torch.inf)
    rows = torch.zeros((len(queries), kept), dtype=torch.int64)
    starts = range(0, len(codes), _DOCUMENTS)
    with ThreadPoolExecutor(1) as thread:  # decodes the next block meanwhile
        coming = [
            thread.submit(_decode, codes[start : start + _DOCUMENTS], precision, size, fast) for start in starts[:1]
        ]
        for start in starts:
            documents, inverse = coming.pop().result()
            after = codes[start + _DOCUMENTS : start + 2 * _DOCUMENTS]
            coming.append(thread.submit(_decode, after, precision, size, fast))
            for first in range(0, len(queries), _QUERIES):
                some = slice(first, first + _QUERIES)
                best, found = _best((unit[some].to(fast) @ documents.T).float() * inverse, kept)
                merged = torch.cat([scores[some], best], dim=1).topk(kept)
                rows[some] = torch.cat([rows[some], found + start], dim=1).gather(1, merged.indices)
                scores[some] = merged.values
    if fast == torch.float32:
        return scores.numpy(), rows.numpy()
    return _rescored(queries, lambda found: dequantize(codes[found], precision, size), rows.numpy(), top_k)


def _decode(codes: np.ndarray, precision: Precision, size: int, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """What codes stand for, (n, size), not scaled to length 1, and one over its length, (n,)."""
    if precision in (Precision.FLOAT32, Precision.INT8):
        values = codes.astype(np.float32)
        squares, rows = np.einsum("ij,ij->i", values, values), torch.from_numpy(values).to(kind)
    else:
        levels = torch.from_numpy(bytes_to_levels(precision)).to(kind)
        raw = levels.view(torch.int16 if kind == torch.bfloat16 else torch.int32).numpy()
        values = np.take(raw, codes, axis=0).reshape(len(codes), codes.shape[1] * levels.shape[1])
        rows = torch.from_numpy(values).view(kind)[:, :size]
        if rows.shape[1] == values.shape[1]:
            squares = np.take(levels.float().square().sum(dim=1).numpy(), codes).sum(axis=1)
        else:  # the last byte is filled up
            squares = rows.float().square().sum(dim=1).numpy()
    return rows, torch.from_numpy(1 / np.sqrt(np.maximum(squares, np.float32(1e-30))))


def _best(scores: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The greatest of each row of scores, (q, n), and where they are; fewer than count where there are fewer."""
    rows, size = scores.shape
    if size % _GROUP or size < 4 * _GROUP * count:
        best = scores.topk(min(count, size))
        return best.values, best.indices
    # The greatest lie in the groups whose own greatest are greatest: most scores are only compared.
    groups = scores.view(rows, -1, _GROUP).amax(dim=2).topk(count).indices
    inside = (groups[:, :, None] * _GROUP + torch.arange(_GROUP)).view(rows, -1)
    best = scores.gather(1, inside).topk(count)
    return best.values, inside.gather(1, best.indices)


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
        lengths = np.linalg.norm(some, axis=1) * np.linalg.norm(query)
        cosines = some @ query.astype(np.float32) / np.maximum(lengths, np.float32(1e-30))
        order = np.argsort(-cosines, kind="stable")[:kept]
        scores[number], rows[number] = cosines[order], found[order]
    return scores, rows


def _check(queries: np.ndarray, top_k: int) -> None:
    if queries.ndim != 2 or not np.isfinite(queries).all():
        raise ValueError(f"queries have shape {queries.shape}: expected finite vectors of shape (q, k)")
    if top_k < 1:
        raise ValueError(f"top_k={top_k}: ask for at least 1")
