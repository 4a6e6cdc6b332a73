"""A budget of bytes instead of a dimension: measured, not guessed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from st_dimreduce.fitting.pairs import Pairs
from st_dimreduce.fitting.subspace import DEFAULT_WHITENING, Objective, directions, rotate, usable_pairs
from st_dimreduce.precision import Precision, dequantize, quantize
from st_dimreduce.progress import progress_bar
from st_dimreduce.summary import Summary

FEWEST_VECTORS = 60  # fewer leave too few neighbours to tell two options apart
_LADDER = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
_PRECISIONS = (Precision.BINARY, Precision.INT2, Precision.INT4, Precision.INT8)
_SPLITS = 3  # of the pairs: what one of them says of two options alike is half chance
_MOST_DOCUMENTS, _MOST_QUERIES, _TOP_K = 10_000, 500, 10


@dataclass(frozen=True)
class Option:
    """A way to store a vector, and what of the full embedding's figure it keeps on held-out data.

    Attributes:
        out_features: Dimensions.
        precision: How each is stored.
        bytes_per_vector: Bytes of a vector.
        kept: Share of the full embedding's figure: nDCG@10 where there are pairs, else neighbour overlap@10.
    """

    out_features: int
    precision: str
    bytes_per_vector: int
    kept: float


@dataclass(frozen=True)
class Choice:
    """The option chosen, and all that were measured on the way.

    Attributes:
        best: The option to use.
        measured: Every option measured.
        figure: What ``kept`` is a share of.
    """

    best: Option
    measured: list[Option]
    figure: str

    def to_dict(self) -> dict[str, Any]:
        """Return the curve as JSON can hold it."""
        return asdict(self)


def choose(
    summary: Summary,
    *,
    bytes_per_vector: int | None = None,
    keep: float | None = None,
    objective: Objective | str = Objective.QUALITY,
    pairs: Pairs | None = None,
    seed: int = 0,
    show_progress_bar: bool | None = None,
) -> Choice:
    """Choose dimension and precision together, by what they find on data held out from the fit.

    More dimensions with fewer bits find more than fewer dimensions with more, but how far that goes depends on the
    texts. Given pairs, a third of them is held out and searched for among the other documents, three times over;
    without, held-out vectors search for their neighbours.

    Args:
        summary: Summary of at least 60 vectors of size d.
        bytes_per_vector: Bytes that a stored vector may take, 1 to 4 d. Takes the best option within it.
        keep: Share in (0, 1] of the full embedding's figure that must be kept. Takes the smallest option that does;
            warns and takes the best where none does.
        objective: As in :func:`st_dimreduce.fit_head`.
        pairs: As in :func:`st_dimreduce.fit_head`.
        seed: Seed of what is held out. Defaults to 0.
        show_progress_bar: Whether to show progress; only on a terminal if None (the default).

    Raises:
        ValueError: If not exactly one of ``bytes_per_vector`` and ``keep`` is given, it is out of range, or there are
            too few vectors.
    """
    if (bytes_per_vector is None) == (keep is None):
        raise ValueError("give either bytes_per_vector or keep")
    if bytes_per_vector is not None and not 1 <= bytes_per_vector <= 4 * summary.width:
        most = 4 * summary.width
        raise ValueError(f"bytes_per_vector={bytes_per_vector}: choose 1 to {most}, what the full float32 vector takes")
    if keep is not None and not 0 < keep <= 1:
        raise ValueError(f"keep={keep}: choose a share greater than 0 and at most 1, such as 0.99")
    if summary.count < FEWEST_VECTORS:
        raise ValueError(
            f"{summary.count} vectors hold too few out to choose by: give {FEWEST_VECTORS}, or a dimension"
        )
    objective = Objective(objective)
    splits = _SPLITS if usable_pairs(objective, pairs) else 1
    evidence = [
        _Evidence(summary, objective, pairs, seed + split)
        for split in progress_bar("Holding out", "splits", show_progress_bar, range(splits))
    ]
    measured: list[Option] = []
    with progress_bar("Choosing", "options", show_progress_bar) as bar:
        for budget in [bytes_per_vector] if bytes_per_vector is not None else _LADDER:
            for size, precision in _options(budget, summary):
                kept = float(np.mean([split.kept(size, precision) for split in evidence]))
                measured.append(Option(size, precision.value, precision.bytes_per_vector(size), kept))
                bar.update()
            if keep is not None and measured and max(option.kept for option in measured) >= keep:
                break
    if keep is not None:
        good = [option for option in measured if option.kept >= keep]
        if good:
            best = min(good, key=lambda option: (option.bytes_per_vector, -option.kept))
            return Choice(best, measured, evidence[0].figure)
        most_kept = max(option.kept for option in measured)
        warnings.warn(
            f"nothing keeps {keep:.1%} of the {evidence[0].figure}: the best keeps {most_kept:.1%}", stacklevel=2
        )
    return Choice(max(measured, key=lambda option: option.kept), measured, evidence[0].figure)


def _options(budget: int, summary: Summary) -> Iterator[tuple[int, Precision]]:
    """Every way to use the budget that neither wastes half of it nor needs more dimensions than there are."""
    widest = min(summary.width, summary.count)
    sizes = {precision: min(8 * budget // precision.bits, widest) for precision in _PRECISIONS}
    used = {precision: precision.bytes_per_vector(size) for precision, size in sizes.items() if size}
    for precision, size in used.items():
        if 2 * size > max(used.values()):
            yield sizes[precision], precision
    if budget >= 4 * summary.width:
        yield widest, Precision.FLOAT32


class _Evidence:
    """Held-out queries and the documents they search, with directions that were fitted on the rest."""

    def __init__(self, summary: Summary, objective: Objective, pairs: Pairs | None, seed: int) -> None:
        sample = summary.sample
        paired = usable_pairs(objective, pairs)
        self.figure = "overlap@10" if paired is None else "nDCG@10"
        self._seed = seed
        if paired is None:
            count = min(_MOST_QUERIES, len(sample) // 4)
            self._queries, self._documents = sample[:count], sample[count:][:_MOST_DOCUMENTS]
            fitted = Summary.of(sample[count:], sample_size=_MOST_DOCUMENTS, seed=seed)
            self._answers = None
        else:
            paired, unseen = paired.split(1 / 3, seed)
            paired = usable_pairs(objective, paired)
            fitted, corpus = summary, sample[:_MOST_DOCUMENTS]
            # A made pair's text is the corpus's own less a sentence: the whole text would be found in its stead.
            others = np.ones(len(corpus), bool)
            others[(unseen.documents @ corpus.T).argmax(axis=1)] = False
            self._queries, self._documents = unseen.queries, np.concatenate([unseen.documents, corpus[others]])
            self._answers = np.arange(len(unseen))
        self._directions = directions(fitted, objective, paired, DEFAULT_WHITENING[objective]).astype(np.float32)
        self._nearest = self._search(self._queries, self._documents)
        self._full = self._figure(self._nearest)

    def kept(self, out_features: int, precision: Precision) -> float:
        """Share of the full embedding's figure that is kept."""
        projection = self._directions[:, :out_features]
        projection = projection @ rotate(self._documents[:1] @ projection, "random", self._seed).astype(np.float32)
        codes = quantize(self._documents @ projection, precision)
        stored = dequantize(codes, precision, out_features)
        return self._figure(self._search(self._queries @ projection, stored)) / self._full

    def _search(self, queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
        scores = queries @ documents.T
        top = np.argpartition(-scores, _TOP_K - 1, axis=1)[:, :_TOP_K]
        return np.take_along_axis(top, np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1), axis=1)

    def _figure(self, found: np.ndarray) -> float:
        if self._answers is None:
            return float((found[:, :, None] == self._nearest[:, None, :]).any(axis=2).mean())
        gains = (found == self._answers[:, None]) / np.log2(np.arange(_TOP_K) + 2)
        return max(float(gains.sum(axis=1).mean()), 1e-9)
