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
from st_dimreduce.texts import Question, check_texts
from st_dimreduce.untrusted import printable

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_log = logging.getLogger(__name__)

Metric = Literal["ndcg", "sts", "overlap"]
_MOST_QUERIES = 1000  # documents that serve as queries where none are given
_SAMPLED_PAIRS = 20_000  # pairs of a query and a document whose cosines are correlated
_DEPTH = 100  # documents found, to see how far down a relevant one falls
_MOST_CHANGED = 10


@dataclass(frozen=True)
class Row:
    """What one model costs in one precision, and what it finds.

    Attributes:
        name: Name of the row.
        dimensions: Dimensions of an embedding.
        precision: How the documents' embeddings are stored; queries stay floats.
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
    """A query for which the reduced model finds less, or more, than the base model.

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
        helped: For each row up to ten queries that gained most, the greatest gain first; empty without labels.
        encoded: One sentence that says which models encoded the texts; empty where the embeddings existed already.
    """

    rows: list[Row]
    documents: int
    queries: int
    metric: Metric = "overlap"
    hurt: list[list[Change]] = field(default_factory=list, repr=False)
    helped: list[list[Change]] = field(default_factory=list, repr=False)
    encoded: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as JSON can hold them, without texts and rows of documents."""
        rows = [asdict(row) for row in self.rows]
        return {"metric": self.metric, "documents": self.documents, "queries": self.queries, "rows": rows}


def compare(
    base: SentenceTransformer,
    reduced: SentenceTransformer | Mapping[str, SentenceTransformer],
    texts: Sequence[str] | None = None,
    queries: Sequence[str] | None = None,
    relevant: Relevant | None = None,
    *,
    pairs: Sequence[tuple[str, str, float]] | None = None,
    precision: Precision | str | Sequence[Precision | str] = Precision.FLOAT32,
    cache: str | os.PathLike[str] | None = None,
) -> Comparison:
    """Compare reduced models with their base model, by exact cosine search over the texts.

    A reduced model that has the base model's modules below its head does not encode: its head is applied to the base
    model's embeddings. One that was trained end to end, or has other prompts, encodes the texts itself.

    Args:
        base: The base model.
        reduced: The reduced model, or several by name.
        texts: Documents to search, 2 or more. To judge a fit, give texts that it has not seen. Defaults to None: the
            texts of ``pairs``.
        queries: Texts to search with. Defaults to None: up to 1,000 documents each search the others.
        relevant: For each query the row of the document it should find, a collection of rows, or their grades by row.
            Needs ``queries``. Defaults to None.
        pairs: Scored pairs: two texts and a human score of their similarity (STS) each, 2 or more. Defaults to None.
        precision: How the reduced documents are stored, or several precisions, one row each. Defaults to
            ``"float32"``.
        cache: Folder to keep embeddings in, and to take those from that are there. Defaults to None.

    Returns:
        A row for the base model, then one per model and precision: size, overlap with the base model, with
        ``relevant`` nDCG@10 and recall@10, and with ``pairs`` Spearman's correlation with their scores.

    Raises:
        UserError: If the arguments do not fit one another, all texts are the same, or the base model is a reduced one.
    """
    if texts is None:
        texts = list(dict.fromkeys(text for pair in pairs or () for text in pair[:2]))
    given: Any = texts, queries, relevant, pairs  # sequences, where Question says lists
    models = reduced if isinstance(reduced, Mapping) else {"reduced model": reduced}
    return compare_models(base, models, Question(*given), precision, cache=cache)


def compare_models(
    base: SentenceTransformer,
    models: Mapping[str, SentenceTransformer],
    question: Question,
    precision: Precision | str | Sequence[Precision | str],
    *,
    with_peers: bool = False,
    batch_size: int = 32,
    cache: str | os.PathLike[str] | None = None,
) -> Comparison:
    """Compare models as :func:`compare` does, and with other ways to store the base model's embeddings.

    Args:
        base: The base model.
        models: Reduced models by name.
        question: The texts.
        precision: As in :func:`compare`.
        with_peers: Whether to add a row for each of :func:`st_dimreduce.evaluation.peers.peers` in as many bytes.
            Defaults to False.
        batch_size: Texts encoded at a time. Defaults to 32.
        cache: As in :func:`compare`.
    """
    _check_scored_pairs(question.scored_pairs)
    _check_texts(question.documents, question.queries, question.relevant)
    _check_order(base, models)
    precisions = [Precision(precision)] if isinstance(precision, str) else [Precision(each) for each in precision]
    # The base model has no name, so that a reduced model may have any.
    encoder = SharedEncoder({"": base, **models}, batch_size, None if cache is None else Cache(cache))
    encoded = encoder.summary()
    _log.info(encoded)
    scored = question.scored_pairs
    sides = None if scored is None else ([first for first, _, _ in scored], [second for _, second, _ in scored])
    embedded = embed_all(encoder, question.documents, question.queries, sides)
    full = embedded.pop("")
    for name, rows in embedded.items():
        if np.array_equal(rows.documents, full.documents):
            warnings.warn(f"{name!r} is the base model itself: its rows show the precisions alone", stacklevel=3)
    stored: Iterable[Stored] = [Stored(name, rows, each) for name, rows in embedded.items() for each in precisions]
    if with_peers:
        sizes = {each.bytes_per_vector(rows.documents.shape[1]) for rows in embedded.values() for each in precisions}
        stored = chain(stored, peers(full, sorted(sizes)))  # trained one at a time, some for minutes
    scores = None if scored is None else [score for _, _, score in scored]
    return replace(compare_embeddings(full, stored, question.relevant, scores), encoded=encoded)


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
        scores: Human scores of the embedded pairs. Defaults to None.
        seed: Seed of the documents that serve as queries and of the pairs whose cosines are correlated. Defaults to 0.

    Returns:
        The base model's row, then one for each of ``reduced``.
    """
    count, rng = len(base.documents), np.random.default_rng(seed)
    own = rng.permutation(count)[:_MOST_QUERIES] if base.queries is None else None  # rows of the queries
    asked = len(base.documents[own] if base.queries is None else base.queries)
    sampled = rng.integers(asked, size=_SAMPLED_PAIRS), rng.integers(count, size=_SAMPLED_PAIRS)
    metric: Metric = "ndcg" if relevant is not None else "sts" if scores is not None else "overlap"
    rows: list[Row] = []
    hurt, helped = list[list[Change]](), list[list[Change]]()
    first: _Measured | None = None
    for stored in progress_bar("Measuring", "rows", chain([Stored("base model", base)], reduced)):
        measured = _measure(stored, own, sampled, relevant, scores, first)
        first = first or measured
        rows.append(_row(stored, measured, first, metric))
        hurt.append(_most_changed(measured, first, own, -1))
        helped.append(_most_changed(measured, first, own, 1))
    return Comparison(rows, count, asked, metric, hurt, helped)


@dataclass(frozen=True, eq=False)
class _Measured:
    """What was measured of one row.

    Attributes:
        found: Rows of the documents found, shape (q, 100) or fewer.
        cosines: Cosines of the sampled pairs of a query and a document.
        estimates: The metrics that have an interval by the names of ``Row``.
    """

    found: np.ndarray
    cosines: np.ndarray
    estimates: dict[str, Estimate]

    @property
    def per_query(self) -> np.ndarray:
        """The nDCG@10 of each query, or its overlap@10 without labels."""
        mean = self.estimates.get("ndcg", self.estimates["overlap"])
        assert isinstance(mean, Mean)  # noqa: S101, for mypy
        return mean.per_query


def _measure(
    stored: Stored,
    own: np.ndarray | None,
    sampled: tuple[np.ndarray, np.ndarray],
    relevant: Relevant | None,
    scores: Sequence[float] | None,
    base: _Measured | None,
) -> _Measured:
    embedded = stored.embedded
    documents = stored.decoded(embedded.documents)
    queries = np.asarray(embedded.documents[own] if embedded.queries is None else embedded.queries, np.float32)
    if stored.search is None:
        found = nearest(queries, documents, own, _DEPTH)
    else:
        found = closest(stored.search, queries, own, _DEPTH)
    reference = found if base is None else base.found
    estimates: dict[str, Estimate] = {"overlap": Mean(overlaps(reference[:, :TOP_K], found[:, :TOP_K]))}
    if relevant is not None:
        ndcg, recall = retrieval(found[:, :TOP_K], relevant)
        estimates |= {"ndcg": Mean(ndcg), "recall": Mean(recall)}
    if scores is not None and embedded.scored_pairs is not None:
        left, right = embedded.scored_pairs
        estimates["sts"] = RankCorrelation(cosines(left, stored.decoded(right)), np.asarray(scores))
    return _Measured(found, cosines(queries[sampled[0]], documents[sampled[1]]), estimates)


def _row(stored: Stored, measured: _Measured, base: _Measured, metric: Metric) -> Row:
    values = {name: estimate.value for name, estimate in measured.estimates.items()}
    intervals = {name: interval(estimate) for name, estimate in measured.estimates.items()}
    intervals["retention"] = interval(measured.estimates[metric], base.estimates[metric])
    dimensions = stored.embedded.documents.shape[1]
    return Row(
        name=printable(stored.name),
        dimensions=dimensions,
        precision=stored.precision.value if isinstance(stored.precision, Precision) else stored.precision,
        bytes_per_vector=stored.bytes_per_vector or Precision(stored.precision).bytes_per_vector(dimensions),
        overlap=values["overlap"],
        spearman=RankCorrelation(measured.cosines, base.cosines).value,
        ndcg=values.get("ndcg"),
        recall=values.get("recall"),
        sts=values.get("sts"),
        retention=values[metric] / max(base.estimates[metric].value, 1e-12),
        intervals=intervals,
        seconds=stored.embedded.seconds,
    )


def _most_changed(measured: _Measured, base: _Measured, own: np.ndarray | None, sign: int) -> list[Change]:
    """Return the queries that lost most where the sign is -1, that gained most where it is 1."""
    changes = np.nan_to_num(measured.per_query - base.per_query)  # NaN for a query without relevant documents
    order = np.argsort(-sign * changes, kind="stable")[:_MOST_CHANGED]
    return [
        Change(
            query=int(query if own is None else own[query]),
            change=float(changes[query]),
            before=base.found[query].tolist(),
            after=measured.found[query].tolist(),
        )
        for query in order
        if sign * changes[query] > 0
    ]


def _check_order(base: SentenceTransformer, models: Mapping[str, SentenceTransformer]) -> None:
    """Refuse a reduced model in the place of its base model, and warn where one has more dimensions."""
    width = base.get_embedding_dimension()
    for name, model in models.items():
        if _is_reduced(base) and not _is_reduced(model):
            raise UserError(
                f"the first model has a fitted head and {name!r} has none: give the base model first, then the reduced "
                "ones"
            )
        own = model.get_embedding_dimension()
        if width is not None and own is not None and own > width:
            warnings.warn(
                f"{name!r} gives {own} dimensions, more than the base model's {width}: the base model comes first",
                stacklevel=4,
            )


def _is_reduced(model: SentenceTransformer) -> bool:
    from st_dimreduce.dim_reduce import head_of  # noqa: PLC0415, takes seconds to import

    try:
        return head_of(model)[1].method is not None
    except UserError:  # it has no head
        return False


def _check_scored_pairs(pairs: Sequence[tuple[str, str, float]] | None) -> None:
    for row, pair in enumerate(pairs or ()):
        if len(pair) != 3 or not all(isinstance(text, str) for text in pair[:2]) or not np.isfinite(float(pair[2])):
            raise UserError(f"pair {row} is {pair!r:.80}: expected two texts and how similar they are, a number")
    if pairs is not None and len({score for _, _, score in pairs}) < 2:
        raise UserError(f"{len(pairs)} pairs without two different scores: give at least 2 that can be ranked")


def _check_texts(texts: Sequence[str], queries: Sequence[str] | None, relevant: Relevant | None) -> None:
    check_texts("texts", texts)
    if isinstance(queries, str):
        check_texts("queries", queries)
    if len(texts) < 2:
        raise UserError(f"{len(texts)} texts to search: give at least 2")
    if queries is not None and not len(queries):
        raise UserError("queries is empty: give texts to search with, or None to search with the documents")
    if relevant is None:
        return
    if queries is None or len(queries) != len(relevant):
        given = "no" if queries is None else len(queries)
        raise UserError(f"relevant has {len(relevant)} entries for {given} queries: give one entry per query")
    rows = {row for graded in grades(relevant) for row in graded}
    wrong = [row for row in rows if not 0 <= row < len(texts)]
    if wrong or not rows:
        raise UserError(f"relevant names {wrong[:3] or 'no rows'}: expected rows of texts, 0 to {len(texts) - 1}")
