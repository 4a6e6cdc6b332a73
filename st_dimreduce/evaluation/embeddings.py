"""Embeddings of the texts of a comparison, and how the documents among them are stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from st_dimreduce.codes.precision import dequantize, quantize
from st_dimreduce.enums import Precision
from st_dimreduce.models.encoding import Role, SharedEncoder
from st_dimreduce.progress import progress_bar

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@dataclass(frozen=True)
class Embedded:
    """The embeddings that one model gives of the texts of a comparison.

    Attributes:
        queries: float32 of shape (q, k), or None where the documents are the queries, each searching the others.
        documents: float32 of shape (n, k).
        seconds: Seconds it took to encode documents and queries, or to read them from a cache; what models share counts
            for each. None where they were not encoded for the comparison.
        scored_pairs: The first and the second texts of the scored pairs, float32 of shape (p, k) each.
    """

    queries: np.ndarray | None
    documents: np.ndarray
    seconds: float | None = None
    scored_pairs: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Stored:
    """Embeddings, and the codes that their documents are stored in.

    Attributes:
        name: Name of the row in the comparison.
        embedded: The embeddings.
        precision: The precision of the codes, or the name of codes of another kind.
        bytes_per_vector: Bytes per vector in codes of another kind.
        round_trip: Encodes and decodes rows in codes of another kind, float32 of shape (n, k) to the same.
        search: Searches codes of another kind: takes queries of shape (q, k) and a number of results, returns scores
            and rows. Defaults to None: the cosines of the decoded rows.
    """

    name: str
    embedded: Embedded
    precision: Precision | str = Precision.FLOAT32
    bytes_per_vector: int | None = None
    round_trip: Callable[[np.ndarray], np.ndarray] | None = None
    search: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]] | None = None

    def decoded(self, rows: np.ndarray) -> np.ndarray:
        """Return what the codes of rows decode to, float32 of the same shape (n, k)."""
        if self.round_trip is not None:
            return self.round_trip(rows)
        return dequantize(quantize(rows, self.precision), self.precision, rows.shape[1])


def embed(
    model: SentenceTransformer,
    documents: Sequence[str],
    queries: Sequence[str] | None = None,
    batch_size: int = 32,
    scored_pairs: tuple[Sequence[str], Sequence[str]] | None = None,
) -> Embedded:
    """Encode the texts of a comparison: documents and queries with the model's own prompts, scored pairs without.

    Args:
        model: The model.
        documents: Texts to search.
        queries: Texts to search with; None (the default) where the documents search one another.
        batch_size: Texts encoded at a time. Defaults to 32.
        scored_pairs: The first and the second texts of the scored pairs. Defaults to None.
    """
    encoder = SharedEncoder({"": model}, batch_size)
    return embed_all(encoder, documents, queries, scored_pairs)[""]


def embed_all(
    encoder: SharedEncoder,
    documents: Sequence[str],
    queries: Sequence[str] | None = None,
    scored_pairs: tuple[Sequence[str], Sequence[str]] | None = None,
) -> dict[str, Embedded]:
    """Encode the texts of a comparison, as :func:`embed` does, with all models of an encoder."""
    passes: list[tuple[Sequence[str], Role]] = [(documents, "document")]
    passes += [] if queries is None else [(queries, "query")]
    passes += [(side, "plain") for side in scored_pairs or ()]
    total = sum(len(texts) * len(encoder.groups(role)) for texts, role in passes)
    with progress_bar("Encoding", "texts", total=total) as bar:
        document_rows = encoder.encode(documents, "document", bar)
        query_rows = None if queries is None else encoder.encode(queries, "query", bar)
        seconds = dict(encoder.seconds)
        sides = [encoder.encode(side, "plain", bar) for side in scored_pairs or ()]
    return {
        name: Embedded(
            queries=None if query_rows is None else query_rows[name],
            documents=rows,
            seconds=seconds[name],
            scored_pairs=(sides[0][name], sides[1][name]) if sides else None,
        )
        for name, rows in document_rows.items()
    }
