"""Texts as a model embeds them, and what is left of the embeddings once they are stored."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from st_dimreduce.codes.precision import Precision, dequantize, quantize

_FEWEST_TO_TRAIN = 39 * 256  # FAISS's own minimum: with fewer documents it learns each of them by heart


@dataclass(frozen=True)
class Embedded:
    """Texts as one model embeds them.

    Attributes:
        queries: float32 of shape (q, k), or None where the documents are the queries, each searching the others.
        documents: float32 of shape (n, k).
        seconds: Seconds the encoding took.
        pairs: Both sides of the scored pairs, float32 of shape (p, k) each.
    """

    queries: np.ndarray | None
    documents: np.ndarray
    seconds: float | None = None
    pairs: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Stored:
    """Embeddings, and how they are stored.

    Attributes:
        name: Name of the row.
        embedded: The embeddings.
        precision: The precision the documents are stored in, or the name of another kind of code.
        bytes_per_vector: Bytes a stored vector takes in that other code.
        code: What that other code leaves of rows.
    """

    name: str
    embedded: Embedded
    precision: Precision | str = Precision.FLOAT32
    bytes_per_vector: int | None = None
    code: Callable[[np.ndarray], np.ndarray] | None = None

    def read_back(self, rows: np.ndarray) -> torch.Tensor:
        """Return what a search sees of stored rows."""
        if self.code:
            return torch.from_numpy(self.code(rows))
        return torch.from_numpy(dequantize(quantize(rows, self.precision), self.precision, rows.shape[1]))


def embed(
    model: SentenceTransformer,
    documents: Sequence[str],
    queries: Sequence[str] | None = None,
    batch_size: int = 32,
    show_progress_bar: bool | None = None,
    pairs: tuple[Sequence[str], Sequence[str]] | None = None,
) -> Embedded:
    """Encode documents and queries, each with the model's own prompt, and the two sides of scored pairs with none."""
    bar = sys.stderr.isatty() if show_progress_bar is None else show_progress_bar
    options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": bar}
    start = time.perf_counter()
    document_rows = model.encode_document(list(documents), **options)
    query_rows = None if queries is None else model.encode_query(list(queries), **options)
    seconds = time.perf_counter() - start
    sides = None if pairs is None else tuple(model.encode(list(side), prompt="", **options) for side in pairs)
    return Embedded(query_rows, document_rows, seconds, sides)


def peers(base: Embedded, sizes: Sequence[int]) -> Iterator[Stored]:
    """Store the base model's own embeddings as others do, to compare with.

    Args:
        base: The base model's embeddings.
        sizes: Bytes a vector to compare at.

    Yields:
        The first numbers of each embedding in int8, as for a model trained to be cut (Matryoshka; Kusupati et al.,
        NeurIPS 2022); one sign bit a number, as Sentence Transformers' ``ubinary``; and where faiss is installed, its
        product quantisation (Jegou et al., PAMI 2011) and PCA with int8, both fitted on these very documents; the
        former on no fewer than 9,984.
    """
    base, width = replace(base, seconds=None), base.documents.shape[1]
    yield Stored("signs of all numbers", base, Precision.BINARY)
    for size in sizes:
        if size < width:
            queries = None if base.queries is None else base.queries[:, :size]
            sides = None if base.pairs is None else (base.pairs[0][:, :size], base.pairs[1][:, :size])
            first = Embedded(queries, base.documents[:, :size], pairs=sides)
            yield Stored("first numbers", first, Precision.INT8)
            yield from _faiss(base, size)


def _faiss(base: Embedded, size: int) -> Iterator[Stored]:
    try:
        import faiss  # noqa: PLC0415, an optional dependency
    except ModuleNotFoundError:
        return
    rows = quantize(base.documents, Precision.FLOAT32)
    width = rows.shape[1]
    for name, spec in (("FAISS PQ", f"PQ{size}"), ("FAISS PCA", f"PCA{size},SQ8")):
        if len(rows) < size or (name == "FAISS PQ" and (width % size or len(rows) < _FEWEST_TO_TRAIN)):
            continue
        index: Any = faiss.index_factory(width, spec)
        if name == "FAISS PQ":
            index.do_polysemous_training = False  # minutes, for a filter that is not used here
        index.train(rows)
        yield Stored(name, base, spec, size, partial(_through, index))


def _through(index: Any, rows: np.ndarray) -> np.ndarray:
    return index.sa_decode(index.sa_encode(quantize(rows, Precision.FLOAT32)))
