"""How the benchmark of quality chooses a peer's setting, and says who is ahead."""

from __future__ import annotations

import numpy as np

from benchmarks.choosing import random_half, two_fold, verdict
from st_dimreduce.codes.metrics import Mean


def test_a_query_does_not_choose_its_own_setting():
    half = np.array([True, True, False, False])
    values = np.array([[9, 9, 1, 1], [2, 2, 5, 5]])  # each setting is best on one half
    picks = two_fold(2, lambda setting, rows: values[setting, rows].mean(), half)
    assert picks.tolist() == [1, 1, 0, 0]
    assert values[picks, np.arange(4)].tolist() == [2, 2, 1, 1]


def test_halves_are_of_equal_size_and_seeded():
    half = random_half(101)
    assert half.sum() == 50
    assert np.array_equal(half, random_half(101))
    assert not np.array_equal(half, random_half(101, seed=1))


def test_ahead_needs_an_interval_above_zero():
    rng = np.random.default_rng(0)
    base, noise = rng.random(200), rng.standard_normal(200)
    noise -= noise.mean()
    assert verdict(Mean(base + 0.1 * noise + 0.1), Mean(base)) == "ahead"
    assert verdict(Mean(base + 0.1 * noise + 0.001), Mean(base)) == "even"
    assert verdict(Mean(base + 0.1 * noise - 0.1), Mean(base)) == "behind"
