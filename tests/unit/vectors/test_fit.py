"""Heads fitted on stored vectors alone."""

from __future__ import annotations

import numpy as np
import pytest

from st_dimreduce import Head, Size
from st_dimreduce.vectors.fit import summarize
from tests.helpers.tiny import SENTENCES

X = np.random.default_rng(0).standard_normal((400, 32)).astype(np.float32) * np.linspace(2, 0.1, 32, dtype=np.float32)
UNIT = X / np.linalg.norm(X, axis=1, keepdims=True)


@pytest.mark.parametrize("norm", [1, 7])
def test_a_head_fits_vectors_of_the_norm_they_have(norm):
    head = Head.fit(norm * UNIT, 8)
    assert head.record.mean_norm == pytest.approx(norm)
    assert np.sqrt(np.square(np.arctanh(head.forward(norm * UNIT))).mean()) == pytest.approx(0.03, rel=1e-3)
    assert head.forward(UNIT[:9]).shape == (9, 8)
    assert Head.fit(UNIT, Size(bytes=4)).record.choice["best"]["bytes_per_vector"] <= 4
    assert Head.fit(X, 8, objective="fidelity", seed=3).record.seed == 3


@pytest.mark.parametrize("norm", [1, 30, 100, 1000, 1e-20, 1e20])
def test_a_reduced_vector_depends_on_its_direction_alone(norm):
    # As sentence embeddings, most of whose variance lies along few directions.
    rows = X * np.geomspace(10, 0.1, 32, dtype=np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    heads = [Head.fit(summarize(norm * unit), 8), Head.fit(norm * unit, 8), Head.fit(unit, 8)]
    expected = Head.fit(summarize(unit), 8).transform(unit)
    mixed = unit * np.geomspace(1, norm, len(unit), dtype=np.float32)[:, None]
    for head in heads:
        for stored in (norm * unit, unit, mixed):
            reduced = head.transform(stored)
            assert (reduced * expected).sum(axis=1).min() > 0.99999


def test_stored_and_encoded_vectors_agree_whatever_the_norm(tiny):
    stored = tiny.encode(SENTENCES)
    for norm in (1, 100):
        head = Head.fit(norm * stored, 8, objective="fidelity")
        reduced = head.transform(norm * stored)
        assert (head.attach(tiny).encode(SENTENCES, normalize_embeddings=True) * reduced).sum(axis=1).min() >= 0.9999


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (33, {}, "dim=33: choose a size from 1 to 32"),
        (128, {}, "dim=128: choose a size from 1 to 32"),
        (8, {"objective": "speed"}, "unknown objective 'speed'"),
        (8, {"on_bad_row": "skip"}, "unknown on_bad_row 'skip'"),
    ],
)
def test_what_cannot_be_fitted(size, options, message):
    with pytest.raises(ValueError, match=message):
        Head.fit(X, size, **options)


@pytest.mark.parametrize("scale", [np.ones(300), np.linspace(0.5, 9, 300)])
def test_vectors_that_do_not_differ_are_refused(scale):
    one = np.random.default_rng(0).standard_normal(24)
    with pytest.raises(ValueError, match=r"^all 300 vectors point the same way: give vectors of texts that differ$"):
        Head.fit(np.float32(scale[:, None] * one), 8)
