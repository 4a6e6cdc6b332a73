"""Retrieval metrics per query and rank correlations, with bootstrap confidence intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np

from st_dimreduce.codes.search import search
from st_dimreduce.enums import Precision

TOP_K = 10
METRIC_NAMES = {
    "ndcg": "nDCG@10",
    "sts": "Spearman with human scores",
    "overlap": "overlap@10 with the base model",
}
_RESAMPLES = 1000

Relevant = Sequence[int | Collection[int] | Mapping[int, float]]


def nearest(
    queries: np.ndarray, documents: np.ndarray, own: np.ndarray | None = None, top_k: int = TOP_K
) -> np.ndarray:
    """Return the rows of the documents with the highest cosine, the nearest first.

    Args:
        queries: Shape (q, k).
        documents: Float vectors of shape (n, k).
        own: For each query its own row among the documents, which is left out. Defaults to None: the queries are not
            among the documents.
        top_k: Number of documents. Defaults to 10.
    """
    return closest(lambda queries, count: search(queries, documents, Precision.FLOAT32, count), queries, own, top_k)


def closest(
    find: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]],
    queries: np.ndarray,
    own: np.ndarray | None = None,
    top_k: int = TOP_K,
) -> np.ndarray:
    """Return the rows that a search for a number of results finds, as in :func:`nearest`."""
    return find(queries, top_k)[1] if own is None else others(find(queries, top_k + 1)[1], own)


def others(found: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return the rows found, shape (q, n), without each query's own: shape (q, n - 1).

    If a query's own row is not among them, because equal documents came first, the last one is dropped instead.
    """
    dropped = np.where((found == own[:, None]).any(axis=1), (found == own[:, None]).argmax(axis=1), found.shape[1] - 1)
    return found[np.arange(found.shape[1]) != dropped[:, None]].reshape(len(found), -1)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the cosine of each row of one array with the same row of the other."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.einsum("ij,ij->i", one, other) / np.maximum(norms, np.float32(1e-16))


def overlaps(reference: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return for each query the share in [0, 1] of the reference's rows that are among the found."""
    return (reference[:, :, None] == found[:, None, :]).any(axis=2).mean(axis=1)


def retrieval(found: np.ndarray, relevant: Relevant) -> tuple[np.ndarray, np.ndarray]:
    """Return nDCG@10 and recall@10 of each query; NaN for a query without relevant documents.

    nDCG as in Jarvelin and Kekalainen, "Cumulated gain-based evaluation of IR techniques", ACM TOIS 2002, with the
    grades as gains, as trec_eval and BEIR have it; 1 for every document that has no grade. A document is relevant if
    its grade is greater than 0.

    Args:
        found: Rows found, shape (q, 10) or fewer, the nearest first.
        relevant: For each query the row it should find, a collection of rows, or their grades by row.
    """
    discounts = 1 / np.log2(np.arange(2, TOP_K + 2))
    ndcg, recall = np.full((2, len(found)), np.nan)
    for query, (top, graded) in enumerate(zip(found.tolist(), grades(relevant), strict=True)):
        if graded:
            gains = np.array([graded.get(row, 0.0) for row in top])
            best = np.sort(list(graded.values()))[::-1][:TOP_K]
            ndcg[query] = discounts[: len(top)] @ gains / (discounts[: len(best)] @ best)
            recall[query] = np.count_nonzero(gains) / len(graded)
    return ndcg, recall


def grades(relevant: Relevant) -> list[dict[int, float]]:
    """Return for each query the grades of its relevant documents by row."""
    graded = []
    for rows in relevant:
        if isinstance(rows, (int, np.integer)):
            graded.append({int(rows): 1.0})
        elif isinstance(rows, Mapping):
            graded.append({row: float(grade) for row, grade in rows.items() if grade > 0})
        else:
            graded.append(dict.fromkeys(rows, 1.0))
    return graded


@dataclass(frozen=True, eq=False)
class Mean:
    """The mean of a metric over the queries; a query whose value is NaN does not count.

    Args:
        per_query: float array of shape (q,).
    """

    per_query: np.ndarray

    @cached_property
    def data(self) -> tuple[np.ndarray, ...]:
        """What is resampled, one array per variable."""
        return (self.per_query[~np.isnan(self.per_query)],)

    @property
    def value(self) -> float:
        """The mean."""
        return float(self.data[0].mean())

    @staticmethod
    def statistic(values: np.ndarray, *, axis: int = -1) -> np.ndarray:
        """Return the mean of each resample."""
        return values.mean(axis=axis)


@dataclass(frozen=True, eq=False)
class RankCorrelation:
    """Spearman's correlation of two values per pair, ties sharing a mean rank.

    In a bootstrap sample the ranks are still those among all pairs.

    Args:
        given: float array of shape (p,); or (s, p), of s runs: the mean of their correlations.
        true: float array of shape (p,).
        group: array of shape (p,): a pair is ranked among those of its group only. Defaults to None: among all pairs.
    """

    given: np.ndarray
    true: np.ndarray
    group: np.ndarray | None = None

    @cached_property
    def data(self) -> tuple[np.ndarray, ...]:
        """What is resampled, one array per variable: the ranks of each run, and last the true ones."""
        return tuple(map(self._ranks, [*np.atleast_2d(self.given), self.true]))

    def _ranks(self, values: np.ndarray) -> np.ndarray:
        from scipy.stats import rankdata  # noqa: PLC0415, takes half a second to import, which a fit need not pay

        group = np.zeros(len(values)) if self.group is None else self.group
        ranks = np.empty(len(values))
        for rows in (group == one for one in np.unique(group)):
            rank = rankdata(values[rows])
            ranks[rows] = (rank - rank.mean()) / max(rank.std(), 1e-12)
        return ranks

    @property
    def value(self) -> float:
        """The correlation."""
        *runs, true = self.data
        return float(np.mean([(run * true).mean() for run in runs]))

    @staticmethod
    def statistic(*ranks: np.ndarray, axis: int = -1) -> np.ndarray:
        """Return the correlation of each resample."""
        *runs, true = ranks
        return np.mean([_correlation(run, true, axis) for run in runs], axis=0)


def _correlation(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
    mean_x, mean_y = x.mean(axis=axis), y.mean(axis=axis)
    variances = ((x * x).mean(axis=axis) - mean_x**2) * ((y * y).mean(axis=axis) - mean_y**2)
    return ((x * y).mean(axis=axis) - mean_x * mean_y) / np.sqrt(np.maximum(variances, 1e-24))


Estimate = Mean | RankCorrelation


def interval(estimate: Estimate, base: Estimate | None = None) -> tuple[float, float]:
    """Return the 95 % confidence interval of an estimate, or of its ratio to the base model's, over the same queries.

    The percentile bootstrap (Efron) of ``scipy.stats.bootstrap`` with 1,000 resamples of the queries; seed 0.
    """
    if base is None:
        return _bootstrap(lambda value: value, estimate)
    return _bootstrap(lambda value, of: value / np.maximum(of, 1e-12), estimate, base)


def difference(estimate: Estimate, other: Estimate) -> tuple[float, float]:
    """Return the 95 % confidence interval of an estimate minus another, over the same queries, as in `interval`."""
    return _bootstrap(np.subtract, estimate, other)


def _bootstrap(combine: Callable[..., np.ndarray], *estimates: Estimate) -> tuple[float, float]:
    """Resample the queries, the same for all estimates, and return the interval of what their values combine to."""
    from scipy.stats import bootstrap  # noqa: PLC0415, as above

    data = [values for estimate in estimates for values in estimate.data]

    def statistic(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        left = iter(samples)
        return combine(*(e.statistic(*islice(left, len(e.data)), axis=axis) for e in estimates))

    if len(data[0]) < 2:  # nothing to resample
        value = float(statistic(*data))
        return value, value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where all values are equal, the interval is that value
        found = bootstrap(
            data, statistic, paired=True, vectorized=True, n_resamples=_RESAMPLES, method="percentile", rng=0
        )
    low, high = found.confidence_interval
    return float(low), float(high)
