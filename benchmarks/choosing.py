"""Comparing methods fairly: a setting that was chosen on other queries, and differences that the queries support."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from st_dimreduce.codes.metrics import Estimate, difference


def random_half(count: int, seed: int = 0) -> np.ndarray:
    """Return for each of ``count`` queries whether it is in a random half of them."""
    return np.random.default_rng(seed).permutation(count) < count // 2


def two_fold(count: int, value: Callable[[int, np.ndarray], float], half: np.ndarray) -> np.ndarray:
    """Return for each query which of ``count`` settings is the best on the half of the queries that it is not in.

    Args:
        count: Number of settings.
        value: Returns the metric of a setting over the queries of a mask; higher is better.
        half: Mask of one half of the queries.
    """

    def best(rows: np.ndarray) -> int:
        return max(range(count), key=lambda setting: value(setting, rows))

    return np.where(half, best(~half), best(half))


def verdict(ours: Estimate, peer: Estimate) -> str:
    """Return "ahead" or "behind" if the interval of the paired difference leaves out 0, else "even"."""
    low, high = difference(ours, peer)
    return "ahead" if low > 0 else "behind" if high < 0 else "even"
