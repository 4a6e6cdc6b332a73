"""How much of what exact search finds an index finds, by the effort that it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import ndtr, ndtri

from st_dimreduce.codes.lists import is_packed
from st_dimreduce.codes.precision import thresholds
from st_dimreduce.enums import Precision

DEPTHS = (10, 100)  # results for which recall is measured
# From a number of results, an effort, and candidates per result to the scores of what is found, (q, results).
Found = Callable[[int, int, int], np.ndarray]

_FACTORS = (2, 4, 8, 16, 32)  # candidates that are scored exactly, per result
ALL = 64  # likewise; so many lose none of the true neighbours
_ENOUGH = 0.998  # share of the true neighbours that must be among the candidates where all cells are looked into
_EFFORTS = sorted({round(2 ** (step / 2)) for step in range(41)})  # that are measured
_COMPLETE = 0.9995
_ROUNDING = 1e-6  # of a cosine


def measure(
    found: Found, truths: Sequence[np.ndarray], least: int, most: int
) -> tuple[int, tuple[int, ...], dict[str, list[float]]]:
    """Measure recall at several efforts.

    Args:
        found: Searches with all queries.
        truths: The scores of what exact search finds, for each of ``DEPTHS``.
        least: The smallest effort.
        most: The greatest effort.

    Returns:
        The candidates to score per result; the efforts, ascending; and by number of results the recall at each.
    """
    enough = (factor for factor in _FACTORS if _recall(truths[0], found(DEPTHS[0], most, factor)) >= _ENOUGH)
    factor = next(enough, ALL)
    efforts: list[int] = []
    recalls: dict[str, list[float]] = {str(depth): [] for depth in DEPTHS}
    for effort in [effort for effort in _EFFORTS if least <= effort < most] + [most]:
        efforts.append(effort)
        for depth, truth in zip(DEPTHS, truths, strict=True):
            recalls[str(depth)].append(round(_recall(truth, found(depth, effort, factor)), 4))
        if min(measured[-1] for measured in recalls.values()) >= _COMPLETE:
            break
    return factor, tuple(efforts), recalls


def _recall(truth: np.ndarray, found: np.ndarray) -> float:
    """Return the share of results whose scores are as good as the true ones: one of two equal codes will do."""
    least = truth.min(axis=1, where=np.isfinite(truth), initial=np.inf) - _ROUNDING
    there = np.isfinite(truth).sum()
    return float((found >= least[:, None]).sum() / there) if there else 1.0


def likely_vectors(levels: np.ndarray, precision: Precision, seed: int) -> np.ndarray:
    """Return vectors of which the codes are these, float32 of shape (n, k).

    The entries of a reduced vector, times sqrt(k), are close to a standard Gaussian. Each is drawn from the part of it
    that its code stands for.

    Args:
        levels: Decoded codes, not scaled, float32 of shape (n, k).
        precision: Their precision.
        seed: Seed of what is drawn.
    """
    if not is_packed(precision):
        return levels
    edges = np.array([-np.inf, *thresholds(precision), np.inf])
    number = np.searchsorted(edges[1:-1], levels)
    low, high = ndtr(edges[number]), ndtr(edges[number + 1])
    return ndtri(low + (high - low) * np.random.default_rng(seed).random(levels.shape)).astype(np.float32)
