"""Heads fitted on stored vectors alone."""

from __future__ import annotations

import numpy as np
import pytest

from st_dimreduce import attach_head, fit_head, fit_on_vectors, reduce_vectors, summarize
from tests.helpers.tiny import SENTENCES

X = np.random.default_rng(0).standard_normal((400, 32)).astype(np.float32) * np.linspace(2, 0.1, 32, dtype=np.float32)
UNIT = X / np.linalg.norm(X, axis=1, keepdims=True)


@pytest.mark.parametrize("norm", [1, 7])
def test_a_head_fits_vectors_of_the_norm_they_have(norm):
    head = fit_on_vectors(norm * UNIT, 8)
    assert head.record.mean_norm == pytest.approx(norm)
    assert np.sqrt(np.square(np.arctanh(head.reduce(norm * UNIT))).mean()) == pytest.approx(0.03, rel=1e-3)
    assert head.reduce(UNIT[:9]).shape == (9, 8)
    assert fit_on_vectors(UNIT, bytes_per_vector=4).record.choice["best"]["bytes_per_vector"] <= 4
    assert fit_on_vectors(X, 8, objective="fidelity", seed=3).record.seed == 3


@pytest.mark.parametrize("norm", [1, 30, 100, 1000, 1e-20, 1e20])
def test_a_reduced_vector_depends_on_its_direction_alone(norm):
    # As sentence embeddings, most of whose variance lies along few directions.
    rows = X * np.geomspace(10, 0.1, 32, dtype=np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    heads = [fit_head(summarize(norm * unit), 8), fit_on_vectors(norm * unit, 8), fit_on_vectors(unit, 8)]
    expected = np.concatenate(list(reduce_vectors(unit, fit_head(summarize(unit), 8))))
    mixed = unit * np.geomspace(1, norm, len(unit), dtype=np.float32)[:, None]
    for head in heads:
        for stored in (norm * unit, unit, mixed):
            reduced = np.concatenate(list(reduce_vectors(stored, head)))
            assert (reduced * expected).sum(axis=1).min() > 0.99999


def test_stored_and_encoded_vectors_agree_whatever_the_norm(tiny):
    stored = tiny.encode(SENTENCES)
    for norm in (1, 100):
        head = fit_head(summarize(norm * stored), 8, objective="fidelity", train=False)
        reduced = np.concatenate(list(reduce_vectors(norm * stored, head)))
        assert (attach_head(tiny, head).encode(SENTENCES, normalize_embeddings=True) * reduced).sum(
            axis=1
        ).min() >= 0.9999


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_features": 8, "keep": 0.9}, "out_features and keep were given: give exactly one"),
        ({"out_features": 0}, "out_features=0: choose a size of at least 1"),
        ({"out_features": 33}, "out_features=33: choose a size from 1 to in_features=32"),
        ({}, "out_features=128: choose a size from 1 to in_features=32"),
        ({"out_features": 8, "objective": "speed"}, "unknown objective 'speed'"),
        ({"out_features": 8, "on_bad_row": "skip"}, "unknown on_bad_row 'skip'"),
    ],
)
def test_what_cannot_be_fitted(options, message):
    with pytest.raises(ValueError, match=message):
        fit_on_vectors(X, **options)


@pytest.mark.parametrize("scale", [np.ones(300), np.linspace(0.5, 9, 300)])
def test_vectors_that_do_not_differ_are_refused(scale):
    one = np.random.default_rng(0).standard_normal(24)
    with pytest.raises(ValueError, match=r"^all 300 vectors point the same way: give vectors of texts that differ$"):
        fit_on_vectors(np.float32(scale[:, None] * one), 8)
