"""What a head does with vectors that it was not fitted on: measured at the fit, to be compared with later vectors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from st_dimreduce.base_head import BaseHead
from st_dimreduce.codes.metrics import TOP_K, nearest, others, overlaps
from st_dimreduce.codes.precision import quantize, thresholds
from st_dimreduce.codes.search import search
from st_dimreduce.enums import Precision
from st_dimreduce.errors import UserError
from st_dimreduce.fitting.summary import Summary
from st_dimreduce.untrusted import short

FEWEST = 200  # vectors that can be judged; overlap falls with the number of documents, so it is measured among as many
_MOST = 3000  # vectors that neighbours are looked for among, 200 at a time
_HELD_OUT, _MOST_FITTED = 1 / 4, 20_000
_SKETCHES, _TRAINED = 8, 0.05  # of the weights, and the relative change from which on a head is another one
_DIGITS = 5


@dataclass(frozen=True)
class Reference:
    """What a head does with a sample of vectors.

    A summary of :func:`measure`, small enough for the record of a head.

    Attributes:
        vectors: Number of vectors measured.
        variance_lost: Share of the variance of the unit vectors, around their own mean, outside the row space of the
            head's weight.
        variance_error: Standard error of ``variance_lost``.
        precision: Precision of the codes.
        neighbours_lost: 1 - neighbour overlap@10: share of the full vectors' ten nearest among 200 that the head's
            codes do not find.
        neighbours_error: Standard error of ``neighbours_lost``.
        mean: Mean of the reduced vectors of norm 1, k numbers.
        mean_vectors: Number of vectors that ``mean`` was taken over.
        bits_used: Entropy of the levels that a dimension's codes are at, in bits, mean of all dimensions. At most the
            precision's bits, and 4: where it has more, the grid of int4 is looked at.
        sketch: Eight random projections of the head's weight, which tell whether it was trained since.
    """

    vectors: int
    variance_lost: float
    variance_error: float
    precision: Precision
    neighbours_lost: float
    neighbours_error: float
    mean: tuple[float, ...]
    mean_vectors: int
    bits_used: float
    sketch: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it, in five digits."""
        return {name: _rounded(value) for name, value in asdict(self).items()} | {"precision": self.precision.value}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], out_features: int) -> Reference:
        """Read what :meth:`to_dict` returned.

        Raises:
            ValueError: If a value is missing, of the wrong type or out of range, or does not fit the head.
        """
        sizes = {"mean": out_features, "sketch": _SKETCHES}
        values: dict[str, Any] = {"precision": Precision(content.get("precision"))}
        for name in (each.name for each in fields(cls) if each.name != "precision"):
            value: Any = content.get(name)
            if name in sizes:
                good = isinstance(value, (list, tuple)) and len(value) == sizes[name] and all(map(_number, value))
                value = tuple(value) if good else value
            elif name in ("vectors", "mean_vectors"):
                good = _number(value) and isinstance(value, int) and value > 0
            else:
                good = _number(value) and 0 <= value <= (4 if name == "bits_used" else 1)
            if not good:
                raise UserError(
                    f"the head's reference says {name} {short(value)}, which does not fit the head: fit it again, "
                    "or pass reference, vectors that the head is good for (--reference)"
                )
            values[name] = value
        return cls(**values)

    def is_of(self, head: BaseHead) -> bool:
        """Whether the head has the weights that were measured, up to scale and rounding."""
        change = np.asarray(sketch(head)) - np.asarray(self.sketch)
        return float(np.sqrt(np.mean(np.square(change)))) < _TRAINED


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e9


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    return [_rounded(one) for one in value] if isinstance(value, tuple) else value


def _bits_used(reduced: np.ndarray, precision: Precision) -> float:
    """Return the mean entropy of a dimension's levels, with the correction of Miller (1955) for few vectors."""
    grid = precision if precision.bits <= 4 else Precision.INT4
    levels = np.searchsorted(thresholds(grid), reduced * np.float32(math.sqrt(reduced.shape[1])))
    shares = np.array([(levels == level).mean(axis=0) for level in range(2**grid.bits)])
    entropy = -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=0)
    missed = (np.count_nonzero(shares, axis=0) - 1) / (2 * len(reduced) * math.log(2))
    return float(np.minimum(entropy + missed, grid.bits).mean())


def measure(head: BaseHead, summary: Summary) -> Reference:
    """Measure what a head does with summarised vectors, in the precision of its record.

    The share of variance lost counts every vector; mean and bits those of the sample, and neighbours 3,000 of it at
    most. Neighbours are looked for among 200 vectors at a time, whatever the number of vectors: the more there are, the
    fewer of the nearest ten a code finds.

    Raises:
        ValueError: If there are fewer than 200 vectors.
    """
    sample = summary.sample
    basis = np.linalg.qr(head.weight.T.astype(np.float64))[0]
    kept = basis.T @ (summary.gram @ basis)
    mean = summary.mean
    inside = float(np.trace(kept) - np.square(basis.T @ mean).sum())
    around = max(float(np.trace(summary.gram) - mean @ mean), 1e-12)
    lost = min(max(1 - inside / around, 0.0), 1.0)
    centred = sample - mean
    whole = np.square(centred).sum(axis=1)
    outside = np.maximum(whole - np.square(centred @ basis).sum(axis=1), 0)
    error = float(np.std(outside - lost * whole)) / max(float(whole.mean()), 1e-12) / math.sqrt(summary.count)

    reduced = head.transform(sample)
    found = neighbours_found(sample[:_MOST], reduced[:_MOST], head.precision)
    return Reference(
        vectors=summary.count,
        variance_lost=lost,
        variance_error=min(error, 1.0),
        precision=head.precision,
        neighbours_lost=1 - float(found.mean()),
        neighbours_error=float(found.std()) / math.sqrt(len(found)),
        mean=tuple(reduced.mean(axis=0, dtype=np.float64).tolist()),
        mean_vectors=len(sample),
        bits_used=_bits_used(reduced, head.precision),
        sketch=sketch(head),
    )


def neighbours_found(full: np.ndarray, reduced: np.ndarray, precision: Precision) -> np.ndarray:
    """Return for each vector the share of its ten nearest, among 200, that its codes find; the rest is left out."""
    own, codes = np.arange(FEWEST), quantize(reduced, precision)
    shares = []
    for start in range(0, len(full) - FEWEST + 1, FEWEST):
        rows = slice(start, start + FEWEST)
        found = others(search(reduced[rows], codes[rows], precision, TOP_K + 1)[1], own)
        shares.append(overlaps(nearest(full[rows], full[rows], own), found))
    return np.concatenate(shares)


def sketch(head: BaseHead) -> tuple[float, ...]:
    """Return eight random projections of a head's weight of norm 1, each about a standard Gaussian.

    The root mean square difference of two sketches is about the relative difference of the two weights (Johnson and
    Lindenstrauss, 1984). The signs are raw bits of a generator, which NumPy keeps the same for ever.
    """
    weight = head.weight.ravel() / max(float(np.linalg.norm(head.weight)), 1e-30)
    words = -(-weight.size // 64)
    projections = []
    for seed in range(_SKETCHES):
        bits = np.unpackbits(np.random.Philox(key=seed).random_raw(words).astype("<u8").view(np.uint8))[: weight.size]
        projections.append(float(2 * weight[bits == 1].sum(dtype=np.float64) - weight.sum(dtype=np.float64)))
    return tuple(projections)


def held_out_reference(head: BaseHead, summary: Summary, fit: Callable[[Summary, np.ndarray], BaseHead]) -> Reference | None:
    """Measure what a head like this one does with vectors that it was not fitted on.

    A head fits the vectors that it saw better than those that come later. So a second one is fitted in the same way on
    three quarters of the sample, and measured on the last quarter.

    Args:
        head: The head, fitted on the whole summary.
        summary: The summary.
        fit: Fits a head like it on the summary of the other vectors; the second argument are the vectors held out.

    Returns:
        None if there are fewer than 400 vectors in the sample, or too few to fit the second head on.
    """
    sample = summary.sample
    count = min(max(FEWEST, int(len(sample) * _HELD_OUT)), _MOST)
    seen = sample[count:][:_MOST_FITTED]
    if len(seen) < max(FEWEST, head.out_features):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the first fit has warned
        second = fit(Summary.of(seen, seed=summary.seed), sample[:count])
    held_out = measure(second.with_record(precision=head.precision), Summary.of(sample[:count]))
    # Of the head itself: another rotation has another mean.
    mean = head.transform(sample[:_MOST_FITTED]).mean(axis=0, dtype=np.float64)
    own = {"mean": tuple(mean.tolist()), "mean_vectors": min(len(sample), _MOST_FITTED), "sketch": sketch(head)}
    return Reference(**{each.name: getattr(held_out, each.name) for each in fields(held_out)} | own)
