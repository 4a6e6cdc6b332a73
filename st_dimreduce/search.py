"""Exact search: float queries over stored codes."""

from __future__ import annotations

import numpy as np
import torch

from st_dimreduce.precision import Precision, dequantize

_DOCUMENTS, _QUERIES = 8192, 1024  # rows of a block: its scores take 32 MB


def search(
    queries: np.ndarray, codes: np.ndarray, precision: Precision | str, top_k: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Find the codes nearest to each query, by the cosine of the float query with what the code stands for.

    Queries stay float: scored against codes they find far more than codes against codes do (asymmetric distance;
    Jegou et al., "Product quantization for nearest neighbor search", PAMI 2011). Every code is scored, block by block.

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
    kept = min(top_k, len(codes))
    scores = torch.full((len(queries), kept), -torch.inf)
    rows = torch.zeros((len(queries), kept), dtype=torch.int64)
    for start in range(0, len(codes), _DOCUMENTS):
        documents = torch.from_numpy(dequantize(codes[start : start + _DOCUMENTS], precision, size)).T
        for first in range(0, len(queries), _QUERIES):
            some = slice(first, first + _QUERIES)
            block = (unit[some] @ documents).topk(min(kept, documents.shape[1]))
            merged = torch.cat([scores[some], block.values], dim=1).topk(kept)
            rows[some] = torch.cat([rows[some], block.indices + start], dim=1).gather(1, merged.indices)
            scores[some] = merged.values
    return scores.numpy(), rows.numpy()


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
    kept = min(top_k, candidates.shape[1])
    scores, rows = np.empty((len(queries), kept), np.float32), np.empty((len(queries), kept), np.int64)
    for number, (query, found) in enumerate(zip(queries, candidates, strict=True)):
        some = np.asarray(vectors[found], np.float32)
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
