"""What a search found, as figures, one a query, and how sure their means are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache

import numpy as np
import torch
from scipy.stats import rankdata
from torch.nn import functional as F  # noqa: N812, the name everybody gives it

TOP_K = 10
FIGURE_NAMES = {"ndcg": "nDCG@10", "sts": "Spearman with people's scores", "overlap": "overlap@10 with the base model"}
_RESAMPLES = 1000
_BLOCK = 2**25  # scores held at a time: 128 MB

Relevant = Sequence[int | Collection[int]]


def nearest(queries: torch.Tensor, documents: torch.Tensor, asking: np.ndarray | None) -> np.ndarray:
    """Return the rows of the 10 documents with the highest cosine, the nearest first.

    Args:
        queries: Shape (q, k).
        documents: Shape (n, k).
        asking: For each query its own row among the documents, which is not counted as found; None if it has none.
    """
    queries, documents = F.normalize(queries), F.normalize(documents)
    kept = min(TOP_K, len(documents) - (asking is not None))
    step = max(1, _BLOCK // len(documents))
    found = []
    for start in range(0, len(queries), step):
        scores = queries[start : start + step] @ documents.T
        if asking is not None:
            scores[torch.arange(len(scores)), torch.from_numpy(asking[start : start + step])] = -torch.inf
        found.append(scores.topk(kept).indices)
    return torch.cat(found).numpy()


def cosines(one: torch.Tensor, other: torch.Tensor) -> np.ndarray:
    """Return the cosine of each row of one with the same row of the other."""
    return F.cosine_similarity(one, other).numpy()


def overlaps(reference: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return for each query the share in [0, 1] of the reference's rows that were found too."""
    shared = [len(np.intersect1d(a, b)) for a, b in zip(reference, found, strict=True)]
    return np.array(shared) / reference.shape[1]


def labelled(found: np.ndarray, relevant: Relevant) -> tuple[np.ndarray, np.ndarray]:
    """Return nDCG@10 (Jarvelin and Kekalainen, 2002, gains of 0 and 1) and recall@10 of each query; NaN without answer.

    Args:
        found: Rows found, shape (q, 10) or fewer, the nearest first.
        relevant: For each query the row it should find, or a collection of rows.
    """
    discounts = 1 / np.log2(np.arange(2, TOP_K + 2))
    ndcg, recall = np.full((2, len(found)), np.nan)
    for query, (top, rows) in enumerate(zip(found, answers(relevant), strict=True)):
        if rows:
            hits = np.isin(top, list(rows))
            ndcg[query] = discounts[: len(top)][hits].sum() / discounts[: len(rows)].sum()
            recall[query] = hits.sum() / len(rows)
    return ndcg, recall


def answers(relevant: Relevant) -> list[set[int]]:
    """Return for each query the rows of what it should find."""
    return [{rows} if isinstance(rows, (int, np.integer)) else set(rows) for rows in relevant]


class Mean:
    """The mean of one figure a query; a query whose figure is NaN does not count."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values[~np.isnan(values)]
        self.value = float(self._values.mean())

    def resampled(self) -> np.ndarray:
        """Return the mean over each bootstrap sample of the queries."""
        return _samples(len(self._values)) @ self._values


class RankCorrelation:
    """Spearman's correlation of two figures a pair, ties sharing a mean rank.

    In a bootstrap sample, ranks are still those among all pairs.
    """

    def __init__(self, given: np.ndarray, true: np.ndarray) -> None:
        x, y = ((ranks - ranks.mean()) / max(ranks.std(), 1e-12) for ranks in (rankdata(given), rankdata(true)))
        self._products = np.stack([x, y, x * x, y * y, x * y], axis=1)
        self.value = float((x * y).mean())

    def resampled(self) -> np.ndarray:
        """Return the correlation over each bootstrap sample of the pairs."""
        mean_x, mean_y, xx, yy, xy = (_samples(len(self._products)) @ self._products).T
        variances = (xx - mean_x**2) * (yy - mean_y**2)
        return (xy - mean_x * mean_y) / np.sqrt(np.maximum(variances, 1e-24))


Estimate = Mean | RankCorrelation


def interval(estimate: Estimate, base: Estimate | None = None) -> tuple[float, float]:
    """Return the 95 % interval of a figure, or of its share of the base model's, over the same queries.

    Efron's percentile bootstrap with 1,000 samples of the queries; seed 0.
    """
    figures = estimate.resampled()
    if base is not None:
        figures = figures / np.maximum(base.resampled(), 1e-12)
    low, high = np.percentile(figures, [2.5, 97.5])
    return float(low), float(high)


@lru_cache(maxsize=2)
def _samples(count: int) -> np.ndarray:
    """Return for each bootstrap sample the share of each query in it, shape (1,000, count)."""
    rng = np.random.default_rng(0)
    weights = np.empty((_RESAMPLES, count), np.float32)
    for row in weights:
        row[:] = np.bincount(rng.integers(count, size=count), minlength=count)
    return weights / count
