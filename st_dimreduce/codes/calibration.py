"""How much of what exact search finds an index finds, by the effort that it takes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import ndtr, ndtri

from st_dimreduce.codes.lists import is_packed
from st_dimreduce.codes.precision import thresholds
from st_dimreduce.codes.rows import scale_rows
from st_dimreduce.enums import Precision

EXACT = 2**31 - 1  # an effort that misses nothing
DEPTHS = (10, 100)  # results for which recall is measured
# From a number of results, an effort, and candidates per result to the scores of what is found, (q, results).
Found = Callable[[int, int, int], np.ndarray]

_FACTORS = (2, 4, 8, 16, 32)  # candidates that are scored exactly, per result
ALL = 64  # likewise; so many lose none of the true neighbours
# Share of a document's true neighbours that must be among its candidates. Questions need more candidates still.
_ENOUGH = 0.9995
_EFFORTS = sorted({round(2 ** (step / 2)) for step in range(41)})  # that are measured
_COMPLETE = 0.9995
_ROUNDING = 1e-6  # of a cosine
_LIKENESS = np.float32(0.65)  # cosine of a question and the document that it is about


def enough_candidates(found: Found, most: int) -> int:
    """Return how many candidates per result must be scored exactly, so that hardly a true neighbour is missing.

    Args:
        found: Searches with all queries.
        most: The greatest effort.
    """
    truth = found(DEPTHS[0], EXACT, ALL)
    enough = (factor for factor in _FACTORS if share_found(truth, found(DEPTHS[0], most, factor)) >= _ENOUGH)
    return next(enough, ALL)


def measure(found: Found, candidates: int, least: int, most: int) -> tuple[tuple[int, ...], dict[str, list[float]]]:
    """Return the efforts that were measured, ascending, and by number of results the recall at each.

    Args:
        found: Searches with all queries.
        candidates: Candidates per result.
        least: The smallest effort.
        most: The greatest effort.
    """
    truths = [found(depth, EXACT, ALL) for depth in DEPTHS]
    efforts: list[int] = []
    recalls: dict[str, list[float]] = {str(depth): [] for depth in DEPTHS}
    for effort in [effort for effort in _EFFORTS if least <= effort < most] + [most]:
        efforts.append(effort)
        for depth, truth in zip(DEPTHS, truths, strict=True):
            recalls[str(depth)].append(round(share_found(truth, found(depth, effort, candidates)), 4))
        if min(measured[-1] for measured in recalls.values()) >= _COMPLETE:
            break
    return tuple(efforts), recalls


def share_found(truth: np.ndarray, found: np.ndarray) -> float:
    """Return the share of results whose scores are as good as the true ones: one of two equal codes will do."""
    least = truth.min(axis=1, where=np.isfinite(truth), initial=np.inf) - _ROUNDING
    there = np.isfinite(truth).sum()
    return float((found >= least[:, None]).sum() / there) if there else 1.0


def likely_queries(levels: np.ndarray, precision: Precision, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors of norm 1 of which the codes are these, and others that lie to them as questions do.

    A question is about a document, but near it only to a degree: it finds less easily than another document does.

    Args:
        levels: Decoded codes, not scaled, float32 of shape (n, k).
        precision: Their precision.
        seed: Seed of what is drawn.

    Returns:
        Two arrays, float32 of shape (n, k).
    """
    rng = np.random.default_rng(seed)
    documents = scale_rows(_likely_vectors(levels, precision, rng))
    others = scale_rows(rng.standard_normal(levels.shape).astype(np.float32))
    return documents, scale_rows(_LIKENESS * documents + math.sqrt(1 - _LIKENESS**2) * others)


def _likely_vectors(levels: np.ndarray, precision: Precision, rng: np.random.Generator) -> np.ndarray:
    """Return vectors of which the codes are these.

    The entries of a reduced vector, times sqrt(k), are close to a standard Gaussian. Each is drawn from the part of it
    that its code stands for.
    """
    if not is_packed(precision):
        return levels
    edges = np.array([-np.inf, *thresholds(precision), np.inf])
    number = np.searchsorted(edges[1:-1], levels)
    low, high = ndtr(edges[number]), ndtr(edges[number + 1])
    return ndtri(low + (high - low) * rng.random(levels.shape)).astype(np.float32)
