from __future__ import annotations

import numpy as np
import pytest

from st_dimreduce import Summary, fit_head

RNG = np.random.default_rng(0)
SPREAD = np.linspace(3, 0.2, 24)


def vectors(count=2000):
    return (RNG.standard_normal((count, 24)) * SPREAD + 0.5).astype(np.float32)


X = vectors()
SUMMARY = Summary.of(X)


def cosines(x):
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit @ unit.T


def test_all_dimensions_without_whitening_keep_every_cosine():
    head = fit_head(SUMMARY, 24, whitening=0, gain=0.01)
    unit = X[:200] / np.linalg.norm(X[:200], axis=1, keepdims=True)
    assert np.allclose(cosines(head.reduce(unit)), cosines(unit), atol=1e-3)


@pytest.mark.parametrize("rotation", ["itq", "random", None])
def test_spans_the_uncentred_subspace_whatever_the_rotation(rotation):
    weight = fit_head(SUMMARY, 6, whitening=0, rotation=rotation).linear.weight.detach().numpy()
    _, directions = np.linalg.eigh(SUMMARY.gram)
    top = directions[:, -6:]
    inside = np.linalg.norm(weight @ top) / np.linalg.norm(weight)
    assert inside == pytest.approx(1, abs=1e-5)


def test_whitening_divides_by_the_power_of_the_eigenvalue():
    values = np.linalg.eigvalsh(SUMMARY.gram)[::-1][:6]
    weight = fit_head(SUMMARY, 6, whitening=0.25, rotation=None).linear.weight.detach().numpy()
    lengths = np.linalg.norm(weight, axis=1) * values**0.25
    assert np.allclose(lengths, lengths[0], rtol=1e-4)


@pytest.mark.parametrize("gain", [0.03, 0.1, 1.0])
def test_gain_is_the_root_mean_square_of_the_pre_activations(gain):
    head = fit_head(SUMMARY, 8, gain=gain)
    before_tanh = SUMMARY.sample @ head.linear.weight.detach().numpy().T
    assert np.sqrt((before_tanh**2).mean()) == pytest.approx(gain, rel=1e-4)
    assert head.linear.bias is None


def test_a_rotation_spreads_the_variance_and_itq_suits_signs_best():
    def deviation(rotation):
        head = fit_head(SUMMARY, 20, whitening=0, rotation=rotation)
        return (SUMMARY.sample @ head.linear.weight.detach().numpy().T).std(axis=0)

    assert deviation(None).max() / deviation(None).min() > 2
    assert deviation("itq").max() / deviation("itq").min() < 1.5

    def cosine_after_signs(rotation):
        reduced = fit_head(SUMMARY, 20, whitening=0, rotation=rotation).reduce(SUMMARY.sample)
        centred = reduced - reduced.mean(axis=0)
        return (np.abs(centred).sum(axis=1) / np.linalg.norm(centred, axis=1)).mean() / np.sqrt(20)

    assert cosine_after_signs("itq") > cosine_after_signs("random") > cosine_after_signs(None)


def test_same_seed_same_head():
    weights = [fit_head(SUMMARY, 8, seed=seed).linear.weight for seed in (1, 1, 2)]
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])


def test_merged_summaries_fit_the_same_subspace():
    merged = Summary.of(X[:700]).merge(Summary.of(X[700:]))
    one, two = (fit_head(s, 8, rotation=None, gain=0.1).reduce(X[:50]) for s in (SUMMARY, merged))
    assert np.allclose(cosines(one), cosines(two), atol=1e-4)


def test_vectors_of_a_lower_rank_than_asked_for():
    flat = X.copy()
    flat[:, 4:] = 0
    reduced = fit_head(Summary.of(flat), 8, whitening=0.5).reduce(flat[:50])
    assert np.isfinite(reduced).all()


def test_every_vector_alike():
    reduced = fit_head(Summary.of(np.ones((50, 24), np.float32)), 4).reduce(np.ones((2, 24), np.float32))
    assert np.isfinite(reduced).all()
    assert np.abs(reduced).sum() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_features": 0}, "out_features=0: choose a size from 1 to in_features=24"),
        ({"out_features": 25}, "out_features=25: choose a size from 1 to in_features=24"),
        ({"whitening": -0.1}, "whitening=-0.1: choose a power from 0"),
        ({"whitening": 1.1}, "whitening=1.1: choose a power from 0"),
        ({"gain": 0}, "gain=0: choose a root mean square greater than 0"),
        ({"gain": float("nan")}, "gain=nan"),
        ({"rotation": "itk"}, "rotation='itk': choose 'itq', 'random' or None"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_head(SUMMARY, **{"out_features": 8, **arguments})


def test_too_few_vectors():
    with pytest.raises(ValueError, match="5 vectors cannot fit out_features=8: give more, or choose fewer"):
        fit_head(Summary.of(X[:5]), 8)
