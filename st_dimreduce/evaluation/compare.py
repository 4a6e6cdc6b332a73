"""A base model beside reduced ones, measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any, Literal

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from st_dimreduce.evaluation.metrics import (
    Estimate,
    Mean,
    RankCorrelation,
    Relevant,
    answers,
    cosines,
    interval,
    labelled,
    nearest,
    overlaps,
)
from st_dimreduce.codes.precision import Precision
from st_dimreduce.progress import progress_bar
from st_dimreduce.evaluation.embeddings import Embedded, Stored, embed, peers

Figure = Literal["ndcg", "sts", "overlap"]
_MOST_QUERIES = 1000  # documents that serve as queries where none are given
_PAIRS = 20_000  # pairs of a query and a document whose cosines are correlated
_HURT = 10


@dataclass(frozen=True)
class Row:
    """What one model, stored in one precision, costs and finds.

    Attributes:
        name: What the row is called.
        dimensions: Size of an embedding.
        precision: How the documents' embeddings are stored; queries stay float.
        bytes_per_vector: Bytes a stored vector takes.
        overlap: Share in [0, 1] of the base model's 10 nearest neighbours that are among this one's.
        spearman: Rank correlation of cosines with the base model's, over random pairs of query and document.
        ndcg: nDCG@10 against the relevant documents; None without labels.
        recall: Recall@10 likewise.
        sts: Rank correlation of cosines with people's scores of pairs; None without such pairs. The first text of a
            pair stays float, the second is stored.
        retention: The comparison's main figure as a share of the base model's.
        intervals: 95 % intervals (bootstrap over queries or pairs) of ``overlap``, ``ndcg``, ``recall``, ``sts`` and
            ``retention``, as far as they were measured.
        seconds: Seconds it took to encode the texts; None where they were not encoded for this row.
    """

    name: str
    dimensions: int
    precision: str
    bytes_per_vector: int
    overlap: float
    spearman: float
    ndcg: float | None = None
    recall: float | None = None
    sts: float | None = None
    retention: float = 1.0
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True)
class Hurt:
    """A query that lost by the reduction.

    Attributes:
        query: Its row among the queries, or among the documents where these search one another.
        loss: What it lost of its nDCG@10, or of its overlap@10 without labels.
        before: Rows of the documents the base model finds, the nearest first.
        after: Rows of those the reduced model finds.
    """

    query: int
    loss: float
    before: list[int]
    after: list[int]


@dataclass(frozen=True)
class Comparison:
    """Rows of figures, the base model's first.

    Attributes:
        rows: One a model and precision.
        documents: Number of documents searched.
        queries: Number of queries.
        figure: The main figure: ``"ndcg"`` with relevant documents, else ``"sts"`` with scored pairs, else
            ``"overlap"``.
        hurt: For each row the ten queries that lost most, those that lost nothing left out.
        cosines: For each row the cosines of the same random pairs of a query and a document, float32.
    """

    rows: list[Row]
    documents: int
    queries: int
    figure: Figure = "overlap"
    hurt: list[list[Hurt]] = field(default_factory=list, repr=False)
    cosines: list[np.ndarray] = field(default_factory=list, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON can hold them; nothing that a text or a query can be told from."""
        rows = [asdict(row) for row in self.rows]
        return {"figure": self.figure, "documents": self.documents, "queries": self.queries, "rows": rows}


def compare(
    base: SentenceTransformer,
    reduced: SentenceTransformer | Mapping[str, SentenceTransformer],
    documents: Sequence[str] | None = None,
    queries: Sequence[str] | None = None,
    relevant: Relevant | None = None,
    *,
    pairs: Sequence[tuple[str, str, float]] | None = None,
    precision: Precision | str | Sequence[Precision | str] = Precision.FLOAT32,
    with_peers: bool = False,
    batch_size: int = 32,
    show_progress_bar: bool | None = None,
) -> Comparison:
    """Measure what reduced models cost and find beside their base model, by exact cosine search over the documents.

    Args:
        base: The base model.
        reduced: The reduced model, or several by name.
        documents: Texts to search, 2 or more. To judge a fit, give texts it has not seen. If None (the default), the
            texts of ``pairs``.
        queries: Texts to search with. If None (the default), up to 1,000 documents each search the others.
        relevant: For each query the row of the document it should find, or a collection of rows. Needs ``queries``.
        pairs: Pairs of texts with a score of how alike people find them (STS), 2 or more.
        precision: How the reduced documents are stored, or several ways, a row each. Defaults to ``"float32"``.
        with_peers: Whether to add rows of what others make of the base model at the same bytes, as
            :func:`st_dimreduce.evaluation.embeddings.peers` says. Defaults to False.
        batch_size: Texts encoded at a time. Defaults to 32.
        show_progress_bar: Whether to show progress; only on a terminal if None (the default).

    Returns:
        A row for the base model, then one for each model and precision: size, overlap with the base model, given
        ``relevant`` nDCG@10 and recall@10, and given ``pairs`` Spearman's correlation with their scores.

    Raises:
        ValueError: If the arguments do not fit one another.
    """
    _check_pairs(pairs)
    if documents is None:
        documents = list(dict.fromkeys(text for one, other, _ in pairs or () for text in (one, other)))
    _check_relevant(documents, queries, relevant)
    precisions = [Precision(p) for p in ([precision] if isinstance(precision, str) else precision)]
    models = reduced if isinstance(reduced, Mapping) else {"reduced model": reduced}
    sides = None if pairs is None else ([one for one, _, _ in pairs], [other for _, other, _ in pairs])
    options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": show_progress_bar, "pairs": sides}
    full = embed(base, documents, queries, **options)
    embedded = {name: embed(model, documents, queries, **options) for name, model in models.items()}
    stored: Iterable[Stored] = [Stored(name, rows, p) for name, rows in embedded.items() for p in precisions]
    if with_peers:
        sizes = {p.bytes_per_vector(rows.documents.shape[1]) for rows in embedded.values() for p in precisions}
        stored = chain(stored, peers(full, sorted(sizes)))  # each is measured when it is made: some take minutes
    scores = None if pairs is None else [score for _, _, score in pairs]
    return compare_embeddings(full, stored, relevant, scores, show_progress_bar=show_progress_bar)


def compare_embeddings(
    base: Embedded,
    reduced: Iterable[Stored],
    relevant: Relevant | None = None,
    scores: Sequence[float] | None = None,
    seed: int = 0,
    show_progress_bar: bool | None = None,
) -> Comparison:
    """Measure embeddings that are there already; :func:`compare` says how.

    Args:
        base: The base model's embeddings.
        reduced: Embeddings of the same texts, and how the documents are stored.
        relevant: As in :func:`compare`.
        scores: People's scores of the embedded pairs.
        seed: Seed of the documents that serve as queries and the pairs correlated. Defaults to 0.
        show_progress_bar: As in :func:`compare`.

    Returns:
        The base model's row, then one for each of ``reduced``.
    """
    count, rng = len(base.documents), np.random.default_rng(seed)
    asking = rng.permutation(count)[:_MOST_QUERIES] if base.queries is None else None
    asked = min(count, _MOST_QUERIES) if base.queries is None else len(base.queries)
    pairs = rng.integers(asked, size=_PAIRS), rng.integers(count, size=_PAIRS)
    figure: Figure = "ndcg" if relevant is not None else "sts" if scores is not None else "overlap"
    all_stored = progress_bar("Measuring", "rows", show_progress_bar, chain([Stored("base model", base)], reduced))
    found = [_find(stored, asking, pairs, relevant, scores) for stored in all_stored]
    rows = [_row(one, found[0], figure) for one in progress_bar("Resampling", "rows", show_progress_bar, found)]
    hurt = [_hurt(one, found[0], figure, asking) for one in found]
    return Comparison(rows, count, asked, figure, hurt, [one.cosines for one in found])


@dataclass(frozen=True)
class _Found:
    stored: Stored
    top: np.ndarray
    cosines: np.ndarray
    per_query: dict[str, np.ndarray]
    sts: RankCorrelation | None

    def estimates(self, base: _Found) -> dict[str, Estimate]:
        values = {"overlap": overlaps(base.top, self.top), **self.per_query}
        return {name: Mean(value) for name, value in values.items()} | ({"sts": self.sts} if self.sts else {})


def _find(
    stored: Stored,
    asking: np.ndarray | None,
    pairs: tuple[np.ndarray, np.ndarray],
    relevant: Relevant | None,
    scores: Sequence[float] | None,
) -> _Found:
    embedded = stored.embedded
    documents = stored.read_back(embedded.documents)
    rows = embedded.documents[asking] if embedded.queries is None else embedded.queries
    queries = torch.from_numpy(np.ascontiguousarray(rows, np.float32))
    top = nearest(queries, documents, asking)
    per_query = {} if relevant is None else dict(zip(("ndcg", "recall"), labelled(top, relevant), strict=True))
    sts = None
    if scores is not None and embedded.pairs is not None:
        one, other = embedded.pairs
        sts = RankCorrelation(cosines(torch.from_numpy(one), stored.read_back(other)), np.asarray(scores))
    return _Found(stored, top, cosines(queries[pairs[0]], documents[pairs[1]]), per_query, sts)


def _row(found: _Found, base: _Found, figure: Figure) -> Row:
    estimates, reference = found.estimates(base), base.estimates(base)[figure]
    stored, size = found.stored, found.stored.embedded.documents.shape[1]
    width = stored.bytes_per_vector or Precision(stored.precision).bytes_per_vector(size)
    intervals = {name: interval(estimate) for name, estimate in estimates.items()}
    intervals["retention"] = interval(estimates[figure], reference)
    figures: dict[str, Any] = {name: estimate.value for name, estimate in estimates.items()}
    return Row(
        name=stored.name,
        dimensions=size,
        precision=getattr(stored.precision, "value", stored.precision),
        bytes_per_vector=width,
        spearman=RankCorrelation(found.cosines, base.cosines).value,
        retention=estimates[figure].value / max(reference.value, 1e-12),
        intervals=intervals,
        seconds=stored.embedded.seconds,
        **figures,
    )


def _hurt(found: _Found, base: _Found, figure: Figure, asking: np.ndarray | None) -> list[Hurt]:
    losses = 1 - overlaps(base.top, found.top)
    if figure == "ndcg":
        losses = np.nan_to_num(base.per_query["ndcg"] - found.per_query["ndcg"])
    worst = [query for query in np.argsort(-losses, kind="stable")[:_HURT] if losses[query] > 0]
    return [
        Hurt(
            query=int(query if asking is None else asking[query]),
            loss=float(losses[query]),
            before=base.top[query].tolist(),
            after=found.top[query].tolist(),
        )
        for query in worst
    ]


def _check_pairs(pairs: Sequence[tuple[str, str, float]] | None) -> None:
    for row, pair in enumerate(pairs or ()):
        if len(pair) != 3 or not all(isinstance(text, str) for text in pair[:2]) or not np.isfinite(float(pair[2])):
            raise ValueError(f"pair {row} is {pair!r:.80}: expected two texts and how alike they are, a number")
    if pairs is not None and len({score for _, _, score in pairs}) < 2:
        raise ValueError(f"{len(pairs)} pairs with no two scores that differ: give at least 2, to rank them")


def _check_relevant(documents: Sequence[str], queries: Sequence[str] | None, relevant: Relevant | None) -> None:
    if len(documents) < 2:
        raise ValueError(f"{len(documents)} documents to search: give at least 2")
    if queries is not None and not len(queries):
        raise ValueError("queries is empty: give texts to search with, or None to search with the documents")
    if relevant is None:
        return
    if queries is None or len(queries) != len(relevant):
        given = "no" if queries is None else len(queries)
        raise ValueError(f"relevant has {len(relevant)} entries for {given} queries: give one entry a query")
    rows = set().union(*answers(relevant))
    wrong = [row for row in rows if not 0 <= row < len(documents)]
    if wrong or not rows:
        raise ValueError(
            f"relevant names {wrong[:3] or 'no rows'}: expected rows of documents, 0 to {len(documents) - 1}"
        )
