"""A base model beside its reduced one, measured."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.util import cos_sim

from st_dimreduce.precision import Precision, dequantize, quantize

TOP_K = 10
_MOST_QUERIES = 1000  # documents that serve as queries where none are given
_PAIRS = 20_000  # pairs of a query and a document whose cosines are correlated


@dataclass(frozen=True)
class Row:
    """What one model, stored in one precision, costs and finds.

    Attributes:
        name: What the row is called.
        dimensions: Size of an embedding.
        precision: How the documents' embeddings are stored; queries stay float.
        bytes_per_vector: Bytes a stored vector takes.
        gigabytes: Gigabytes (1e9 bytes) that 10 million stored vectors take.
        overlap: Share in [0, 1] of the base model's 10 nearest neighbours that are among this one's.
        spearman: Rank correlation of cosines with the base model's, over random pairs of query and document.
        ndcg: nDCG@10 against the relevant documents; None without labels.
        recall: Recall@10 likewise.
        seconds: Seconds it took to encode the texts; None where they were not encoded for this row.
    """

    name: str
    dimensions: int
    precision: str
    bytes_per_vector: int
    gigabytes: float
    overlap: float
    spearman: float
    ndcg: float | None = None
    recall: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Rows of figures, the base model's first.

    Attributes:
        rows: One a model and precision.
        documents: Number of documents searched.
        queries: Number of queries.
    """

    rows: list[Row]
    documents: int
    queries: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON can hold them."""
        return asdict(self)


@dataclass(frozen=True)
class Embedded:
    """Queries and documents as one model embeds them.

    Attributes:
        queries: float32 of shape (q, k), or None where the documents are the queries, each searching the others.
        documents: float32 of shape (n, k).
        seconds: Seconds the encoding took.
    """

    queries: np.ndarray | None
    documents: np.ndarray
    seconds: float | None = None


def compare(
    base: SentenceTransformer,
    reduced: SentenceTransformer,
    documents: Sequence[str],
    queries: Sequence[str] | None = None,
    relevant: Sequence[int | Collection[int]] | None = None,
    *,
    precision: Precision | str = Precision.FLOAT32,
    batch_size: int = 32,
    show_progress_bar: bool | None = None,
) -> Comparison:
    """Measure what a reduced model costs and finds beside its base model, by exact cosine search over the documents.

    Args:
        base: The base model.
        reduced: The reduced model.
        documents: Texts to search, 2 or more. To judge a fit, give texts it has not seen.
        queries: Texts to search with. If None (the default), up to 1,000 documents each search the others.
        relevant: For each query the row of the document it should find, or a collection of rows. Needs ``queries``.
        precision: How the reduced documents are stored. Defaults to ``"float32"``.
        batch_size: Texts encoded at a time. Defaults to 32.
        show_progress_bar: Whether to show progress; only on a terminal if None (the default).

    Returns:
        A row for each model: size, overlap with the base model, and, given ``relevant``, nDCG@10 and recall@10.

    Raises:
        ValueError: If the arguments do not fit one another.
    """
    relevant = _check_relevant(documents, queries, relevant)
    embedded = [embed(model, documents, queries, batch_size, show_progress_bar) for model in (base, reduced)]
    return compare_embeddings(embedded[0], {"reduced model": (embedded[1], Precision(precision))}, relevant)


def embed(
    model: SentenceTransformer,
    documents: Sequence[str],
    queries: Sequence[str] | None = None,
    batch_size: int = 32,
    show_progress_bar: bool | None = None,
) -> Embedded:
    """Encode documents and queries, each with the model's own prompt."""
    bar = sys.stderr.isatty() if show_progress_bar is None else show_progress_bar
    options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": bar}
    start = time.perf_counter()
    document_rows = model.encode_document(list(documents), **options)
    query_rows = None if queries is None else model.encode_query(list(queries), **options)
    return Embedded(query_rows, document_rows, time.perf_counter() - start)


def compare_embeddings(
    base: Embedded,
    reduced: dict[str, tuple[Embedded, Precision]],
    relevant: Sequence[int | Collection[int]] | None = None,
    seed: int = 0,
) -> Comparison:
    """Measure embeddings that are there already; :func:`compare` says how.

    Args:
        base: The base model's embeddings.
        reduced: Name of a row, to embeddings of the same texts and the precision the documents are stored in.
        relevant: As in :func:`compare`.
        seed: Seed of the documents that serve as queries and the pairs correlated. Defaults to 0.

    Returns:
        The base model's row, then one for each of ``reduced``.
    """
    count, rng = len(base.documents), np.random.default_rng(seed)
    asking = rng.permutation(count)[:_MOST_QUERIES] if base.queries is None else None
    asked = _queries(base, asking).shape[0]
    pairs = rng.integers(asked, size=_PAIRS), rng.integers(count, size=_PAIRS)
    reference: tuple[np.ndarray, np.ndarray] | None = None
    rows = []
    for name, (embedded, precision) in {"base model": (base, Precision.FLOAT32), **reduced}.items():
        size = embedded.documents.shape[1]
        documents = torch.from_numpy(dequantize(quantize(embedded.documents, precision), precision, size))
        queries = torch.from_numpy(_queries(embedded, asking))
        scores = cos_sim(queries, documents)
        found = (_nearest(scores, asking), scores[pairs].numpy())
        reference = reference or found
        labelled = _labelled(queries, documents, relevant) if relevant is not None else (None, None)
        width = precision.bytes_per_vector(size)
        rows.append(
            Row(
                name=name,
                dimensions=size,
                precision=precision.value,
                bytes_per_vector=width,
                gigabytes=width / 100,
                overlap=_overlap(reference[0], found[0]),
                spearman=float(spearmanr(reference[1], found[1]).statistic),
                ndcg=labelled[0],
                recall=labelled[1],
                seconds=embedded.seconds,
            )
        )
    return Comparison(rows, count, asked)


def _queries(embedded: Embedded, asking: np.ndarray | None) -> np.ndarray:
    rows = embedded.documents[asking] if embedded.queries is None else embedded.queries
    return rows.astype(np.float32)


def _nearest(scores: torch.Tensor, asking: np.ndarray | None) -> np.ndarray:
    """Return the rows of the 10 documents with the highest scores, a document that asks not counted as found."""
    if asking is not None:
        scores = scores.clone()
        scores[torch.arange(len(asking)), torch.from_numpy(asking)] = -torch.inf
    most = scores.shape[1] - (asking is not None)
    return scores.topk(min(TOP_K, most)).indices.numpy()


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    shared = [len(np.intersect1d(a, b)) for a, b in zip(one, other, strict=True)]
    return float(np.mean(shared) / one.shape[1])


class _Evaluator(InformationRetrievalEvaluator):
    """Sentence Transformers' evaluator over embeddings that exist: its texts are row numbers, its model the rows."""

    def embed_inputs(self, model: Any, sentences: Any, encode_fn_name: str | None = None, *_: Any, **__: Any) -> Any:
        return model[encode_fn_name][sentences]


def _labelled(
    queries: torch.Tensor, documents: torch.Tensor, relevant: Sequence[int | Collection[int]]
) -> tuple[float, float]:
    answers = [{rows} if isinstance(rows, (int, np.integer)) else set(rows) for rows in relevant]
    evaluator = _Evaluator(
        queries={str(row): row for row in range(len(queries))},
        corpus={str(row): row for row in range(len(documents))},
        relevant_docs={str(row): {str(answer) for answer in rows} for row, rows in enumerate(answers)},
        accuracy_at_k=[TOP_K],
        precision_recall_at_k=[TOP_K],
        map_at_k=[TOP_K],
        score_functions={"cosine": cos_sim},
    )
    embedded: Any = {"query": queries, "document": documents}
    figures: Any = evaluator.compute_all_metrics(embedded)["cosine"]
    return float(figures["ndcg@k"][TOP_K]), float(figures["recall@k"][TOP_K])


def _check_relevant(
    documents: Sequence[str], queries: Sequence[str] | None, relevant: Sequence[int | Collection[int]] | None
) -> Sequence[int | Collection[int]] | None:
    if len(documents) < 2:
        raise ValueError(f"{len(documents)} documents to search: give at least 2")
    if queries is not None and not len(queries):
        raise ValueError("queries is empty: give texts to search with, or None to search with the documents")
    if relevant is None:
        return None
    if queries is None or len(queries) != len(relevant):
        given = "no" if queries is None else len(queries)
        raise ValueError(f"relevant has {len(relevant)} entries for {given} queries: give one entry a query")
    rows = {row for rows in relevant for row in ([rows] if isinstance(rows, (int, np.integer)) else rows)}
    wrong = [row for row in rows if not 0 <= row < len(documents)]
    if wrong or not rows:
        raise ValueError(
            f"relevant names {wrong[:3] or 'no rows'}: expected rows of documents, 0 to {len(documents) - 1}"
        )
    return relevant
