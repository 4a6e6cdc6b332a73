"""The base model's embeddings in as many bytes by other methods: binary quantization, truncation, FAISS."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from st_dimreduce.codes.precision import quantize
from st_dimreduce.enums import Precision
from st_dimreduce.evaluation.embeddings import Embedded, Stored

_FEWEST_TO_TRAIN_PQ = 39 * 256  # FAISS's own minimum: from fewer documents a codebook of 256 learns them by heart


def peers(base: Embedded, sizes: Sequence[int]) -> Iterator[Stored]:
    """Yield the base model's embeddings as other methods store them, to compare with.

    Binary quantization is one sign bit per dimension, as Sentence Transformers' ``ubinary``. Truncation is the first
    dimensions in int8, as for a Matryoshka model (Kusupati et al., "Matryoshka Representation Learning", NeurIPS 2022).
    Where faiss is installed, FAISS PQ is its product quantization (Jegou et al., "Product quantization for nearest
    neighbor search", PAMI 2011) and FAISS PCA its PCA with int8, both trained on these very documents, and the former
    on no fewer than 9,984.

    Args:
        base: The base model's embeddings.
        sizes: Bytes per vector to compare at. Those that a method cannot use are left out.
    """
    base, width = replace(base, seconds=None), base.documents.shape[1]
    yield Stored("binary quantization", base, Precision.BINARY)
    for size in sizes:
        if size < width:
            yield Stored("truncation", _truncated(base, size), Precision.INT8)
            yield from _faiss(base, size)


def _truncated(base: Embedded, size: int) -> Embedded:
    queries, pairs = base.queries, base.scored_pairs
    return Embedded(
        queries=None if queries is None else queries[:, :size],
        documents=base.documents[:, :size],
        scored_pairs=None if pairs is None else (pairs[0][:, :size], pairs[1][:, :size]),
    )


def _faiss(base: Embedded, size: int) -> Iterator[Stored]:
    try:
        import faiss  # noqa: PLC0415, an optional dependency
    except ModuleNotFoundError:
        return
    rows = quantize(base.documents, Precision.FLOAT32)
    count, width = rows.shape
    if width % size == 0 and count >= _FEWEST_TO_TRAIN_PQ:
        index: Any = faiss.index_factory(width, f"PQ{size}")
        index.do_polysemous_training = False  # minutes, for a filter that is not used here
        index.train(rows)
        yield Stored("FAISS PQ", base, f"PQ{size}", size, partial(_round_trip, index))
    if count >= size:
        index = faiss.index_factory(width, f"PCA{size},SQ8")
        index.train(rows)
        yield Stored("FAISS PCA", base, f"PCA{size},SQ8", size, partial(_round_trip, index))


def _round_trip(index: Any, rows: np.ndarray) -> np.ndarray:
    return index.sa_decode(index.sa_encode(quantize(rows, Precision.FLOAT32)))
