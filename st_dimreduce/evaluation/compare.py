"""Comparison of reduced models with their base model: what they cost, and what an exact search finds with them."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from st_dimreduce.codes.metrics import (
    TOP_K,
    Estimate,
    Mean,
    RankCorrelation,
    Relevant,
    closest,
    cosines,
    grades,
    interval,
    nearest,
    overlaps,
    retrieval,
)
from st_dimreduce.enums import Precision
from st_dimreduce.errors import UserError
from st_dimreduce.evaluation.embeddings import Embedded, Stored, embed_all
from st_dimreduce.evaluation.peers import peers
from st_dimreduce.models.cache import Cache
from st_dimreduce.models.encoding import SharedEncoder
from st_dimreduce.progress import progress_bar
from st_dimreduce.texts import check_texts
from st_dimreduce.untrusted import printable

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_log = logging.getLogger(__name__)

Metric = Literal["ndcg", "sts", "overlap"]
_MOST_QUERIES = 1000  # documents that serve as queries where none are given
_SAMPLED_PAIRS = 20_000  # pairs of a query and a document whose cosines are correlated
_DEPTH = 100  # documents found, so that a relevant one is seen to fall out of the first 10
_MOST_CHANGED = 10


@dataclass(frozen=True)
class Row:
    """What one model costs in one precision, and what it finds.

    Attributes:
        name: Name of the row.
        dimensions: Dimensions of an embedding.
        precision: How the documents' embeddings are stored; queries stay float.
        bytes_per_vector: Bytes per stored vector.
        overlap: Neighbour overlap@10: share in [0, 1] of the base model's 10 nearest neighbours that are among this
            row's.
        spearman: Spearman's correlation of the cosines with the base model's, over random pairs of a query and a
            document.
        ndcg: nDCG@10 against the relevant documents; None without labels.
        recall: Recall@10 likewise.
        sts: Spearman's correlation of the cosines with human scores of pairs; None without scored pairs. The first
            text of a pair stays float, the second is stored.
        retention: The comparison's main metric as a share of the base model's.
        intervals: 95 % confidence intervals (bootstrap over queries or pairs) of ``overlap``, ``ndcg``, ``recall``,
            ``sts`` and ``retention``, as far as they were measured.
        seconds: Seconds it took to encode the texts, what models share counted for each; None where they were not
            encoded for this row.
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
class Change:
    """A query that lost or gained by the reduction.

    Attributes:
        query: Its row among the queries, or among the documents where these search one another.
        change: The change of its nDCG@10, or of its overlap@10 without labels.
        before: Rows of up to 100 documents that the base model finds, the nearest first.
        after: Rows of up to 100 documents that the reduced model finds, the nearest first.
    """

    query: int
    change: float
    before: list[int]
    after: list[int]


@dataclass(frozen=True)
class Comparison:
    """The metrics of a base model and of reduced models.

    Attributes:
        rows: The base model's row, then one per model and precision.
        documents: Number of documents searched.
        queries: Number of queries.
        metric: The main metric: ``"ndcg"`` with relevant documents, else ``"sts"`` with scored pairs, else
            ``"overlap"``.
        hurt: For each row up to ten queries that lost most, the greatest loss first.
        gained: For each row up to ten queries that gained most, the greatest gain first; none without labels.
        changes: For each row the change of every query's nDCG@10, or of its overlap@10 without labels, shape (q,);
            NaN for a query without relevant documents.
        cosines: For each row the cosines of the same random pairs of a query and a document, float32.
        encoded: In a sentence, which models encoded the texts and why; empty where the embeddings existed already.
    """

    rows: list[Row]
    documents: int
    queries: int
    metric: Metric = "overlap"
    hurt: list[list[Change]] = field(default_factory=list, repr=False)
    gained: list[list[Change]] = field(default_factory=list, repr=False)
    changes: list[np.ndarray] = field(default_factory=list, repr=False)
    cosines: list[np.ndarray] = field(default_factory=list, repr=False)
    encoded: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as JSON can hold them: no texts, no rows of documents, no cosines."""
        rows = [asdict(row) for row in self.rows]
        return {"metric": self.metric, "documents": self.documents, "queries": self.queries, "rows": rows}


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
    cache: str | os.PathLike[str] | None = None,
) -> Comparison:
    """Compare reduced models with their base model, by exact cosine search over the documents.

    A reduced model whose modules below its head are the base model's is not encoded with: its head is applied to the
    base model's embeddings. One that was trained end to end, or has other prompts, encodes the texts itself.

    Args:
        base: The base model.
        reduced: The reduced model, or several by name.
        documents: Texts to search, 2 or more. To judge a fit, give texts that it has not seen. If None (the default),
            the texts of ``pairs``.
        queries: Texts to search with. If None (the default), up to 1,000 documents each search the others.
        relevant: For each query the row of the document it should find, a collection of rows, or their grades by row.
            Needs ``queries``.
        pairs: Scored pairs: two texts and a human score of their similarity (STS) each, 2 or more.
        precision: How the reduced documents are stored, or several precisions, one row each. Defaults to
            ``"float32"``.
        with_peers: Whether to add rows of other methods that store the base model's embeddings in as many bytes, as
            :func:`st_dimreduce.evaluation.peers.peers` says. Defaults to False.
        batch_size: Texts encoded at a time. Defaults to 32.
        cache: Folder to keep embeddings in, and to take those from that are there. Defaults to None.

    Returns:
        A row for the base model, then one per model and precision: size, overlap with the base model, given
        ``relevant`` nDCG@10 and recall@10, and given ``pairs`` Spearman's correlation with their scores.

    Raises:
        ValueError: If the arguments do not fit one another, all documents are the same, or a reduced model is given as
            the base model of its own.
    """
    _check_scored_pairs(pairs)
    if documents is None:
        documents = list(dict.fromkeys(text for first, second, _ in pairs or () for text in (first, second)))
    _check_texts(documents, queries, relevant)
    precisions = [Precision(precision)] if isinstance(precision, str) else [Precision(each) for each in precision]
    models = reduced if isinstance(reduced, Mapping) else {"reduced model": reduced}
    # The base model has no name, which any reduced model may have.
    kept = None if cache is None else Cache(cache)
    encoder = SharedEncoder({"": base, **models}, batch_size, kept)
    _check_order(encoder, base, models)
    encoded = encoder.said()
    _log.info(encoded)
    sides = None if pairs is None else ([first for first, _, _ in pairs], [second for _, second, _ in pairs])
    embedded = embed_all(encoder, documents, queries, sides)
    full = embedded.pop("")
    stored: Iterable[Stored] = [Stored(name, rows, each) for name, rows in embedded.items() for each in precisions]
    if with_peers:
        sizes = {each.bytes_per_vector(rows.documents.shape[1]) for rows in embedded.values() for each in precisions}
        stored = chain(stored, peers(full, sorted(sizes)))  # each is measured when it is made: some take minutes
    scores = None if pairs is None else [score for _, _, score in pairs]
    comparison = compare_embeddings(full, stored, relevant, scores)
    return replace(comparison, encoded=encoded)


def compare_embeddings(
    base: Embedded,
    reduced: Iterable[Stored],
    relevant: Relevant | None = None,
    scores: Sequence[float] | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare embeddings that exist already, as :func:`compare` does those it encodes.

    Args:
        base: The base model's embeddings.
        reduced: Embeddings of the same texts, and how the documents are stored.
        relevant: As in :func:`compare`.
        scores: Human scores of the embedded pairs.
        seed: Seed of the documents that serve as queries and of the pairs whose cosines are correlated. Defaults to 0.

    Returns:
        The base model's row, then one for each of ``reduced``.
    """
    count, rng = len(base.documents), np.random.default_rng(seed)
    if base.queries is None:
        own = rng.permutation(count)[:_MOST_QUERIES]  # the queries' rows among the documents
        asked = len(own)
    else:
        own, asked = None, len(base.queries)
    sampled = rng.integers(asked, size=_SAMPLED_PAIRS), rng.integers(count, size=_SAMPLED_PAIRS)
    metric: Metric = "ndcg" if relevant is not None else "sts" if scores is not None else "overlap"
    all_stored = progress_bar("Measuring", "rows", chain([Stored("base model", base)], reduced))
    results = [_measure(stored, own, sampled, relevant, scores) for stored in all_stored]
    bar = progress_bar("Resampling", "rows", results)
    changes = [_changes(result, results[0], metric) for result in results]
    return Comparison(
        rows=[_row(result, results[0], metric) for result in bar],
        documents=count,
        queries=asked,
        metric=metric,
        hurt=[_changed(one, -1, result, results[0], own) for one, result in zip(changes, results, strict=True)],
        gained=[_changed(one, 1, result, results[0], own) for one, result in zip(changes, results, strict=True)],
        changes=changes,
        cosines=[result.cosines for result in results],
    )


@dataclass(frozen=True)
class _Result:
    """What was measured of one row by itself.

    Attributes:
        stored: The embeddings.
        found: Rows of the documents found, shape (q, 100) or fewer.
        cosines: Cosines of the sampled pairs of a query and a document.
        labelled: nDCG@10 and recall@10 of each query by the names of ``Row``; empty without relevant documents.
        sts: Correlation with human scores; None without.
    """

    stored: Stored
    found: np.ndarray
    cosines: np.ndarray
    labelled: dict[str, np.ndarray]
    sts: RankCorrelation | None

    def overlap(self, base: _Result) -> np.ndarray:
        """Return the neighbour overlap@10 of each query."""
        return overlaps(base.found[:, :TOP_K], self.found[:, :TOP_K])

    def estimates(self, base: _Result) -> dict[str, Estimate]:
        """Return the metrics that have an interval by the names of ``Row``."""
        estimates: dict[str, Estimate] = {"overlap": Mean(self.overlap(base))}
        estimates |= {name: Mean(per_query) for name, per_query in self.labelled.items()}
        if self.sts is not None:
            estimates["sts"] = self.sts
        return estimates


def _measure(
    stored: Stored,
    own: np.ndarray | None,
    sampled: tuple[np.ndarray, np.ndarray],
    relevant: Relevant | None,
    scores: Sequence[float] | None,
) -> _Result:
    embedded = stored.embedded
    documents = stored.decoded(embedded.documents)
    queries = np.asarray(embedded.documents[own] if embedded.queries is None else embedded.queries, np.float32)
    if stored.search is None:
        found = nearest(queries, documents, own, _DEPTH)
    else:
        found = closest(stored.search, queries, own, _DEPTH)
    labelled = {}
    if relevant is not None:
        labelled["ndcg"], labelled["recall"] = retrieval(found[:, :TOP_K], relevant)
    sts = None
    if scores is not None and embedded.scored_pairs is not None:
        first, second = embedded.scored_pairs
        sts = RankCorrelation(cosines(first, stored.decoded(second)), np.asarray(scores))
    return _Result(stored, found, cosines(queries[sampled[0]], documents[sampled[1]]), labelled, sts)


def _row(result: _Result, base: _Result, metric: Metric) -> Row:
    estimates, reference = result.estimates(base), base.estimates(base)[metric]
    values = {name: estimate.value for name, estimate in estimates.items()}
    intervals = {name: interval(estimate) for name, estimate in estimates.items()}
    intervals["retention"] = interval(estimates[metric], reference)
    stored, dimensions = result.stored, result.stored.embedded.documents.shape[1]
    return Row(
        name=printable(stored.name),
        dimensions=dimensions,
        precision=stored.precision.value if isinstance(stored.precision, Precision) else stored.precision,
        bytes_per_vector=stored.bytes_per_vector or Precision(stored.precision).bytes_per_vector(dimensions),
        overlap=values["overlap"],
        spearman=RankCorrelation(result.cosines, base.cosines).value,
        ndcg=values.get("ndcg"),
        recall=values.get("recall"),
        sts=values.get("sts"),
        retention=values[metric] / max(reference.value, 1e-12),
        intervals=intervals,
        seconds=stored.embedded.seconds,
    )


def _changes(result: _Result, base: _Result, metric: Metric) -> np.ndarray:
    if metric == "ndcg":
        return np.asarray(result.labelled["ndcg"] - base.labelled["ndcg"])
    return result.overlap(base) - 1


def _changed(changes: np.ndarray, sign: int, result: _Result, base: _Result, own: np.ndarray | None) -> list[Change]:
    """Return the queries that lost most where the sign is -1, that gained most where it is 1."""
    wanted = np.nan_to_num(sign * changes)
    most = [query for query in np.argsort(-wanted, kind="stable")[:_MOST_CHANGED] if wanted[query] > 0]
    return [
        Change(
            query=int(query if own is None else own[query]),
            change=float(changes[query]),
            before=base.found[query].tolist(),
            after=result.found[query].tolist(),
        )
        for query in most
    ]


def _check_order(encoder: SharedEncoder, base: SentenceTransformer, models: Mapping[str, SentenceTransformer]) -> None:
    """Refuse a reduced model in the place of its base model, and warn of what is hardly meant."""
    width = base.get_embedding_dimension()
    for name, model in models.items():
        own = model.get_embedding_dimension()
        if encoder.continues(name, ""):
            raise UserError(
                f"the first model is {name!r} with a head: give the base model first, then the reduced ones"
            )
        if encoder.same("", name):
            warnings.warn(f"{name!r} is the base model itself: its rows show the precisions alone", stacklevel=3)
        elif width is not None and own is not None and own > width:
            warnings.warn(
                f"{name!r} gives {own} dimensions, more than the base model's {width}: the base model comes first",
                stacklevel=3,
            )


def _check_scored_pairs(pairs: Sequence[tuple[str, str, float]] | None) -> None:
    for row, pair in enumerate(pairs or ()):
        if len(pair) != 3 or not all(isinstance(text, str) for text in pair[:2]) or not np.isfinite(float(pair[2])):
            raise UserError(f"pair {row} is {pair!r:.80}: expected two texts and how similar they are, a number")
    if pairs is not None and len({score for _, _, score in pairs}) < 2:
        raise UserError(f"{len(pairs)} pairs without two different scores: give at least 2 that can be ranked")


def _check_texts(documents: Sequence[str], queries: Sequence[str] | None, relevant: Relevant | None) -> None:
    check_texts("documents", documents)
    if isinstance(queries, str):
        check_texts("queries", queries)
    if len(documents) < 2:
        raise UserError(f"{len(documents)} documents to search: give at least 2")
    if queries is not None and not len(queries):
        raise UserError("queries is empty: give texts to search with, or None to search with the documents")
    if relevant is None:
        return
    if queries is None or len(queries) != len(relevant):
        given = "no" if queries is None else len(queries)
        raise UserError(f"relevant has {len(relevant)} entries for {given} queries: give one entry per query")
    rows = {row for graded in grades(relevant) for row in graded}
    wrong = [row for row in rows if not 0 <= row < len(documents)]
    if wrong or not rows:
        raise UserError(
            f"relevant names {wrong[:3] or 'no rows'}: expected rows of documents, 0 to {len(documents) - 1}"
        )
