"""Evidence from held-out data: how well a strength, a dimension and a precision retrieve, before a head is fitted."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from st_dimreduce.codes.metrics import TOP_K, nearest, overlaps, retrieval
from st_dimreduce.codes.precision import dequantize, quantize
from st_dimreduce.codes.search import search
from st_dimreduce.codes.stores import Column
from st_dimreduce.enums import Objective, Precision
from st_dimreduce.fitting.closed_form import DEFAULT_STRENGTH, directions, rotate, usable_pairs
from st_dimreduce.fitting.pairs import Pairs
from st_dimreduce.fitting.summary import Summary
from st_dimreduce.progress import progress_bar

_FOLDS = 3
_MOST_DOCUMENTS, _MOST_QUERIES = 10_000, 500
_STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25)
_NOISE = 1.5  # standard errors of a difference that count as noise
_FLOAT = Column(Precision.FLOAT32)


class Evidence:
    """Held-out queries, the documents they search, and directions that were fitted on the rest.

    Given pairs, each is held out once, in one of three folds, and searched for among the other documents; without,
    held-out vectors search for their neighbours.

    Args:
        summary: Summary of vectors of size d.
        objective: As in :meth:`st_dimreduce.Head.fit`.
        pairs: Labelled pairs, embedded.
        cloze_pairs: Cloze pairs, embedded; used where there are no labelled pairs.
        seed: Seed of what is held out.

    Attributes:
        metric: ``"nDCG@10"`` of the pairs, or ``"overlap@10"`` with the full embeddings.
    """

    def __init__(
        self, summary: Summary, objective: Objective, pairs: Pairs | None, cloze_pairs: Pairs | None, seed: int
    ) -> None:
        self._summary, self._seed = summary, seed
        given = cloze_pairs if pairs is None else pairs
        self._pairs = usable_pairs(given) if objective is Objective.QUALITY else None
        self.metric = "overlap@10" if self._pairs is None else "nDCG@10"
        self._default = DEFAULT_STRENGTH if objective is Objective.QUALITY else 0.0
        self._may_choose = pairs is None and self._pairs is not None

    def retention(self, out_features: int, column: Column, strength: float) -> tuple[float, float]:
        """Return the retention, a share of the full embedding's metric, and the lower end of its 95 % interval.

        The interval is that of a ratio of means of the same queries, by its standard error.
        """
        found, full = self._found(out_features, column, strength), self._full
        mean = max(float(full.mean()), 1e-9)
        share = float(found.mean()) / mean
        error = float((found - share * full).std()) / math.sqrt(len(found)) / mean
        return share, share - 1.96 * error

    def best_strength(self, out_features: int) -> float:
        """Return the smallest strength that is as good as the best, up to noise.

        Noise is up to 1.5 standard errors of the difference, a little more than the one-standard-error rule (Breiman et
        al., "Classification and Regression Trees", 1984, section 3.4.3), which favours weaker strengths. It is 0, as
        for fidelity, only if no other finds more; and 1 for quality where there are no cloze pairs to choose by.
        """
        if not self._may_choose:
            return self._default
        found = {
            strength: self._found(out_features, _FLOAT, strength)
            for strength in progress_bar("Choosing", "strengths", (0.0, *_STRENGTHS))
        }
        best = found[max(_STRENGTHS, key=lambda strength: found[strength].mean())]
        noise = {strength: _NOISE * (best - some).std() / math.sqrt(len(best)) for strength, some in found.items()}
        smallest = next(strength for strength in _STRENGTHS if best.mean() - found[strength].mean() <= noise[strength])
        return smallest if found[smallest].mean() > found[0.0].mean() else 0.0

    @cached_property
    def _folds(self) -> list[_Fold]:
        if self._pairs is None:
            return [_neighbours(self._summary, self._seed)]
        return [_pairs(self._summary, *fold, self._seed) for fold in self._pairs.folds(_FOLDS, self._seed)]

    @cached_property
    def _full(self) -> np.ndarray:
        return np.concatenate([fold.full for fold in self._folds])

    def _found(self, out_features: int, column: Column, strength: float) -> np.ndarray:
        return np.concatenate([fold.found(out_features, column, strength) for fold in self._folds])


class _Fold:
    def __init__(
        self,
        fitted: Summary,
        paired: Pairs | None,
        queries: np.ndarray,
        documents: np.ndarray,
        relevant: np.ndarray | None,
        seed: int,
    ) -> None:
        self._fitted, self._paired, self._seed = fitted, paired, seed
        self._queries, self._documents, self._relevant = queries, documents, relevant
        self._directions: dict[float, np.ndarray] = {}
        self._nearest = nearest(queries, documents)
        self.full = self._values(self._nearest)

    def found(self, out_features: int, column: Column, strength: float) -> np.ndarray:
        """Return the metric of each query."""
        if strength not in self._directions:
            self._directions[strength] = directions(self._fitted, self._paired, strength).astype(np.float32)
        projection = self._directions[strength][:, :out_features]
        if column.precision is not Precision.FLOAT32:  # a rotation changes no cosine
            projection = projection @ rotate(self._documents[:1] @ projection, "random", self._seed).astype(np.float32)
        codes = quantize(self._documents @ projection, column.precision)
        queries = dequantize(quantize(self._queries @ projection, column.query), column.query, out_features)
        return self._values(search(queries, codes, column.precision, TOP_K)[1])

    def _values(self, found: np.ndarray) -> np.ndarray:
        if self._relevant is None:
            return overlaps(self._nearest, found)
        return retrieval(found, self._relevant.tolist())[0]


def _neighbours(summary: Summary, seed: int) -> _Fold:
    sample = summary.sample
    count = min(_MOST_QUERIES, len(sample) // 4)
    fitted = Summary.of(sample[count:], sample_size=_MOST_DOCUMENTS, seed=seed)
    return _Fold(fitted, None, sample[:count], sample[count:][:_MOST_DOCUMENTS], None, seed)


def _pairs(summary: Summary, fitted: Pairs, held_out: Pairs, seed: int) -> _Fold:
    corpus = summary.sample[:_MOST_DOCUMENTS]
    first, relevant = np.unique(held_out.ids()[1], return_index=True, return_inverse=True)[1:]
    documents = held_out.documents[first]
    # The document of a pair is a text of the corpus, or a part of one: the text itself would be found instead.
    others = np.ones(len(corpus), bool)
    others[(documents @ corpus.T).argmax(axis=1)] = False
    return _Fold(summary, fitted, held_out.queries, np.concatenate([documents, corpus[others]]), relevant, seed)
