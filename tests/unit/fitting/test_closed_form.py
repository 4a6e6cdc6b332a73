from __future__ import annotations

import numpy as np
import pytest

from st_dimreduce import Pairs, Precision, Summary
from st_dimreduce.codes.precision import dequantize, quantize
from st_dimreduce.fitting import closed_form
from st_dimreduce.fitting.closed_form import closed_form_head as fit_head

RNG = np.random.default_rng(0)
SPREAD = np.linspace(3, 0.2, 24)


def vectors(count=2000):
    return (RNG.standard_normal((count, 24)) * SPREAD + 0.5).astype(np.float32)


X = vectors()
SUMMARY = Summary.of(X)


@pytest.fixture
def linear(monkeypatch):
    """A gain at which the Tanh changes nothing that could be measured."""
    monkeypatch.setattr(closed_form, "GAIN", 0.01)


def cosines(x):
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.usefixtures("linear")
def test_all_dimensions_without_whitening_keep_every_cosine():
    head = fit_head(SUMMARY, 24, strength=0)
    unit = X[:200] / np.linalg.norm(X[:200], axis=1, keepdims=True)
    assert np.allclose(cosines(head.forward(unit)), cosines(unit), atol=1e-3)


@pytest.mark.parametrize("rotation", ["itq", "random", None])
def test_spans_the_uncentred_subspace_whatever_the_rotation(rotation):
    weight = fit_head(SUMMARY, 6, strength=0, rotation=rotation).weight
    _, directions = np.linalg.eigh(SUMMARY.gram)
    top = directions[:, -6:]
    inside = np.linalg.norm(weight @ top) / np.linalg.norm(weight)
    assert inside == pytest.approx(1, abs=1e-5)


def test_whitening_divides_by_the_power_of_the_eigenvalue():
    values = np.linalg.eigvalsh(SUMMARY.gram)[::-1][:6]
    weight = fit_head(SUMMARY, 6, whitening=0.25, rotation=None, strength=0).weight
    lengths = np.linalg.norm(weight, axis=1) * values**0.25
    assert np.allclose(lengths, lengths[0], rtol=1e-4)


@pytest.mark.usefixtures("linear")
@pytest.mark.parametrize("precision", Precision)
def test_nested_outputs_are_cut_where_they_were_nested(precision):
    nested = fit_head(SUMMARY, 24, nested=(8, 16, 24))
    assert nested.record.nested == (8, 16, 24)
    rows = SUMMARY.sample[:300]
    outputs = nested.forward(rows)
    for size in (8, 16):
        own = fit_head(SUMMARY, size)
        assert np.allclose(cosines(outputs[:, :size]), cosines(own.forward(rows)), atol=1e-3)
        width = quantize(outputs[:1, :size], precision).shape[1]
        cut = dequantize(quantize(outputs, precision)[:, :width], precision, size)
        shorter = dequantize(quantize(outputs[:, :size], precision), precision, size)
        assert (cut * shorter).sum(axis=1).mean() > 0.93
    whole = fit_head(SUMMARY, 24).forward(rows)
    assert np.allclose(cosines(outputs), cosines(whole), atol=1e-3)


@pytest.mark.parametrize("nested", [(8, 8, 24), (16, 8, 24), (8, 16), (0, 24)])
def test_nested_sizes_ascend_to_the_whole(nested):
    with pytest.raises(ValueError, match="give ascending sizes, of which the last is dim=24"):
        fit_head(SUMMARY, 24, nested=nested)


@pytest.mark.parametrize("gain", [0.03, 0.1, 1.0])
def test_gain_is_the_root_mean_square_of_the_pre_activations(gain, monkeypatch):
    monkeypatch.setattr(closed_form, "GAIN", gain)
    head = fit_head(SUMMARY, 8)
    before_tanh = SUMMARY.sample @ head.weight.T
    assert np.sqrt((before_tanh**2).mean()) == pytest.approx(gain, rel=1e-4)
    assert head.bias is None
    assert head.record.gain == gain


def test_a_rotation_spreads_the_variance_and_itq_suits_signs_best():
    def deviation(rotation):
        head = fit_head(SUMMARY, 20, whitening=0, rotation=rotation)
        return (SUMMARY.sample @ head.weight.T).std(axis=0)

    assert deviation(None).max() / deviation(None).min() > 2
    assert deviation("itq").max() / deviation("itq").min() < 1.5

    def cosine_after_signs(rotation):
        reduced = fit_head(SUMMARY, 20, whitening=0, rotation=rotation).forward(SUMMARY.sample)
        centred = reduced - reduced.mean(axis=0)
        return (np.abs(centred).sum(axis=1) / np.linalg.norm(centred, axis=1)).mean() / np.sqrt(20)

    assert cosine_after_signs("itq") > cosine_after_signs("random") > cosine_after_signs(None)


def test_same_seed_same_head():
    weights = [fit_head(SUMMARY, 8, seed=seed).weight for seed in (1, 1, 2)]
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


@pytest.mark.parametrize("strength", [0, 1])
@pytest.mark.parametrize("rotation", ["itq", "random", None])
def test_rounding_in_the_vectors_stays_rounding_in_the_head(strength, rotation):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((9000, 96)) * np.geomspace(1, 0.1, 96) + 0.05).astype(np.float32)
    rounded = x * (1 + 1e-6 * rng.standard_normal(x.shape)).astype(np.float32)
    reduced = []
    for rows in (x, rounded):
        head = fit_head(Summary.of(rows), 64, strength=strength, rotation=rotation)
        reduced.append(head.transform(x[:500]))
    assert (reduced[0] * reduced[1]).sum(axis=1).min() > 0.9999
    codes = [quantize(rows, "binary") for rows in reduced]
    assert np.unpackbits(codes[0] ^ codes[1]).mean() < 0.002


def test_merged_summaries_fit_the_same_subspace():
    merged = Summary.of(X[:700]).merge(Summary.of(X[700:]))
    one, two = (fit_head(s, 8, rotation=None).forward(X[:50]) for s in (SUMMARY, merged))
    assert np.allclose(cosines(one), cosines(two), atol=1e-4)


def test_vectors_of_a_lower_rank_than_asked_for():
    flat = X.copy()
    flat[:, 4:] = 0
    reduced = fit_head(Summary.of(flat), 8, whitening=0.5).forward(flat[:50])
    assert np.isfinite(reduced).all()


def test_every_vector_alike():
    reduced = fit_head(Summary.of(np.ones((50, 24), np.float32)), 4).forward(np.ones((2, 24), np.float32))
    assert np.isfinite(reduced).all()
    assert np.abs(reduced).sum() > 0


def test_quality_drops_the_direction_that_all_vectors_share():
    shared = X + np.float32(2)
    summary = Summary.of(shared)
    for strength, expected in ((1, 0), (0, 1)):
        weight = fit_head(summary, 8, strength=strength, rotation=None).weight
        seen = (
            np.linalg.norm(weight @ summary.mean) / np.linalg.norm(weight, axis=1).max() / np.linalg.norm(summary.mean)
        )
        assert seen == pytest.approx(expected, abs=0.05)


def test_pairs_damp_the_directions_in_which_they_differ():
    # Subject in the first 12 dimensions, an equally loud but meaningless mood in the others.
    subject, moods = RNG.standard_normal((600, 24)), RNG.standard_normal((2, 600, 24))
    subject[:, 12:], moods[:, :, :12] = 0, 0
    pairs = Pairs(*(subject + mood for mood in moods))
    summary = Summary.of(np.concatenate([pairs.queries, pairs.documents]))

    def found(**settings):
        head = fit_head(summary, 12, **settings)
        queries, documents = (head.transform(rows) for rows in (pairs.queries, pairs.documents))
        return ((queries @ documents.T).argmax(axis=1) == np.arange(600)).mean()

    assert found(cloze_pairs=pairs) > found() + 0.05
    assert found(cloze_pairs=pairs, strength=0) == found(strength=0), "as for fidelity, which has no use for pairs"
    few = Pairs(pairs.queries[:199], pairs.documents[:199])
    assert found(cloze_pairs=few) == found(), "too few pairs to tell a covariance by"


@pytest.mark.parametrize(("shift", "dropped"), [(0.62, False), (0.75, True)])
def test_the_mean_is_dropped_where_it_is_more_than_two_directions_are(shift, dropped):
    """Its square against 2/d: that of the mean of a few random directions is 1/d for each."""
    rows = RNG.standard_normal((20_000, 24))
    rows[:, 0] += shift * 2
    summary = Summary.of(rows)
    square = summary.mean @ summary.mean
    assert (square > 2 / 24) == dropped
    assert abs(square - 2 / 24) < 0.035
    weight = fit_head(summary, 23, rotation=None).weight
    seen = np.linalg.norm(weight @ summary.mean) / np.linalg.norm(weight, 2) / np.sqrt(square)
    assert seen < 0.01 if dropped else seen > 0.5


def test_pairs_damp_by_the_formula():
    """M = (W + r tr(W)/d I)^-0.35 with r = 0.5, W the covariance within pairs; the head is that of M G M."""
    queries, documents = RNG.standard_normal((2, 400, 24)) * SPREAD
    pairs = Pairs(queries, documents)
    apart = (pairs.queries - pairs.documents).astype(np.float64)
    within = apart.T @ apart / 800
    values, vectors = np.linalg.eigh(within + 0.5 * np.trace(within) / 24 * np.eye(24))
    damping = vectors @ np.diag(values**-0.35) @ vectors.T
    summary = Summary.of(X + np.float32(2))
    mean = summary.mean / np.linalg.norm(summary.mean)
    metric = (np.eye(24) - np.outer(mean, mean)) @ damping
    values, vectors = np.linalg.eigh(metric.T @ summary.gram @ metric)
    expected = (metric @ vectors[:, ::-1][:, :6] * values[::-1][:6] ** -0.1).T
    weight = fit_head(summary, 6, cloze_pairs=pairs, rotation=None).weight
    for row, wanted in zip(weight / np.linalg.norm(weight), expected / np.linalg.norm(expected), strict=True):
        assert min(np.abs(row - wanted).max(), np.abs(row + wanted).max()) < 1e-5


def test_pairs_of_another_width():
    with pytest.raises(ValueError, match="pairs of 4 dimensions for a summary of 24"):
        fit_head(SUMMARY, 8, cloze_pairs=Pairs(np.eye(4), np.eye(4)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_features": 0}, "^dim=0: choose a size from 1 to 24, that of the vectors$"),
        ({"out_features": 25}, "^dim=25: choose a size from 1 to 24, that of the vectors$"),
        ({"whitening": -0.1}, "whitening=-0.1: choose a power from 0"),
        ({"whitening": 1.1}, "whitening=1.1: choose a power from 0"),
        ({"strength": -0.1}, r"strength=-0.1: choose 0 \(as for fidelity\) to 2"),
        ({"strength": float("nan")}, "strength=nan: choose 0"),
        ({"rotation": "itk"}, "rotation='itk': choose 'itq', 'random' or None"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_head(SUMMARY, **{"out_features": 8, **arguments})


def test_too_few_vectors():
    with pytest.raises(ValueError, match="5 vectors cannot fit dim=8: give more, or choose fewer"):
        fit_head(Summary.of(X[:5]), 8)
