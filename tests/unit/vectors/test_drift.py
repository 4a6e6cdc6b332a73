"""Whether a head still fits the vectors that arrive: logic, on made vectors; real ones are in integration."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest

from st_dimreduce import FitRecord, Head, Pairs, Size, Summary
from st_dimreduce.enums import Verdict
from st_dimreduce.fitting.fit import fit_head
from st_dimreduce.fitting.reference import Losses, measure, neighbours_found
from st_dimreduce.vectors.drift import Drift, Figure, measure_drift

D, K = 32, 8
RNG = np.random.default_rng(0)
AXES, REVERSED = np.eye(D), np.eye(D)[::-1]
SPECTRUM = np.geomspace(3, 0.05, D)


def draw(count, axes=AXES, seed=None, mean=1.0):
    """Vectors that vary most along the first of these axes, around a mean along the last but one."""
    rng = RNG if seed is None else np.random.default_rng(seed)
    rows = rng.standard_normal((count, D)) * SPECTRUM
    rows[:, D - 2] += mean
    return (rows @ axes).astype(np.float32)


SEEN, LATER, FOREIGN = draw(2000, seed=1), draw(3000, seed=2), draw(3000, REVERSED, 3)
HEAD = fit_head(Summary.of(SEEN), K)


def by_name(found):
    return {figure.name: figure for figure in found.figures}


@pytest.mark.parametrize("count", [200, 500, 3000])
@pytest.mark.parametrize("scale", [1, 50])
def test_vectors_like_those_fitted_on_fit(count, scale):
    found = measure_drift(HEAD, scale * LATER[:count])
    assert (found.verdict, found.vectors) == ("fits", count)
    assert "A refit is due above" in found.explanation
    for figure in found.figures:
        assert figure.now == pytest.approx(figure.at_fit, rel=0.2)
        assert abs(figure.now - figure.at_fit) < 3 * figure.error


@pytest.mark.parametrize("count", [200, 3000])
def test_vectors_of_another_kind_ask_for_a_refit(count):
    found = measure_drift(HEAD, FOREIGN[:count])
    assert found.verdict is Verdict.REFIT
    assert all(figure.verdict is Verdict.REFIT for figure in found.figures)
    assert "of the variance of these vectors" in found.explanation
    assert "A refit is due above" in found.explanation
    assert measure_drift(fit_head(Summary.of(FOREIGN), K), FOREIGN[:count]).verdict is Verdict.FITS, "refitted it fits"


def test_codes_that_miss_neighbours_ask_for_a_refit_where_no_variance_is_lost():
    """All vectors lie in the head's subspace, but so near one another that two bits cannot tell them apart."""
    head = fit_head(Summary.of(SEEN), Size(K, precision="int2"))
    basis = np.linalg.qr(head.weight.T)[0].T
    close = (5 * basis.sum(axis=0) + 0.05 * RNG.standard_normal((1000, K)) @ basis).astype(np.float32)
    found = measure_drift(head, close)
    assert [figure.verdict for figure in found.figures] == ["fits", "refit"]
    assert found.verdict is Verdict.REFIT
    assert "of the ten nearest neighbours among 200" in found.explanation


def test_the_same_share_of_others_is_judged_alike_whatever_the_number():
    """An effect counts by its size, not by how sure it is."""
    for share, verdict in ((0.01, "fits"), (0.06, "watch"), (0.2, "refit")):
        for count in (3000, 20_000):
            few = round(share * count)
            mixed = np.concatenate([draw(count - few), draw(few, REVERSED)])
            assert measure_drift(HEAD, mixed).verdict == verdict, share


@pytest.mark.parametrize(
    ("now", "error", "verdict"),
    [(0.2, 0, "fits"), (0.27, 0, "watch"), (0.27, 0.02, "fits"), (0.32, 0, "refit"), (0.32, 0.1, "watch")],
)
def test_two_standard_errors_are_left_to_chance(now, error, verdict):
    assert Figure("f", 0.2, now, error, 0.25, 0.3).verdict == verdict


def test_figures_are_those_of_a_direct_computation():
    variance, neighbours = measure_drift(HEAD, LATER).figures
    unit = LATER / np.linalg.norm(LATER, axis=1, keepdims=True)
    centred = unit - unit.mean(axis=0)
    solved = np.linalg.lstsq(HEAD.weight.T.astype(np.float64), centred.T, rcond=None)[0]
    left = centred.T - HEAD.weight.T.astype(np.float64) @ solved
    assert variance.now == pytest.approx(np.square(left).sum() / np.square(centred).sum(), rel=1e-4)
    reduced = HEAD.transform(unit)
    shares = []
    for start in range(0, 3000, 200):
        both = []
        for rows in (unit[start : start + 200], reduced[start : start + 200]):
            cosines = rows @ rows.T
            np.fill_diagonal(cosines, -2)
            both.append(np.argsort(-cosines, axis=1)[:, :10])
        shares += [len(set(a) & set(b)) / 10 for a, b in zip(*both, strict=True)]
    assert neighbours.now == pytest.approx(1 - np.mean(shares), abs=0.01), "of other groups of 200"


def test_the_reference_is_what_is_lost_of_vectors_that_the_fit_has_not_seen():
    few = draw(400, seed=5)
    head = fit_head(Summary.of(few), 24)
    held_out = head.record.reference["variance_lost"]
    seen = measure(head, Summary.of(few)).variance_lost
    later = measure(head, Summary.of(LATER)).variance_lost
    assert seen < 0.95 * later
    assert 0.95 * later < held_out < 1.3 * later, "found on half as many"


def test_held_out_vectors_leave_the_sums_of_the_others():
    whole = Summary.of(SEEN)
    rest = whole.without(whole.sample[:300])
    others = Summary.of(whole.sample[300:])
    assert rest.count == others.count == 1700
    assert rest.gram == pytest.approx(others.gram, abs=1e-6)
    assert rest.mean == pytest.approx(others.mean, abs=1e-6)
    assert whole.count == 2000, "it is left as it was"


def pairs():
    return Pairs(SEEN[:600] + 0.1 * draw(600, seed=6), SEEN[:600])


@pytest.mark.parametrize(
    "options",
    [
        {"size": K, "objective": "fidelity"},
        {"size": K, "strength": 0},
        {"size": Size(nested=(4, 8))},
        {"size": Size(bytes=2)},
        {"size": Size(K, precision="binary")},
        {"size": K, "pairs": pairs()},
        {"size": K, "cloze_pairs": pairs()},
    ],
    ids="-".join,
)
def test_every_way_to_fit_leaves_a_reference(options):
    head = fit_head(Summary.of(SEEN), **options)
    assert head.record.reference["vectors"] == 200
    assert head.record.reference["precision"] == head.precision
    assert measure_drift(head, LATER).verdict is Verdict.FITS
    assert measure_drift(head, FOREIGN).verdict is Verdict.REFIT
    losses = measure(head, Summary.of(LATER))
    assert head.record.reference["neighbours_lost"] == pytest.approx(losses.neighbours_lost, abs=0.04)


@pytest.mark.parametrize(
    ("count", "size", "known"), [(399, K, False), (400, K, True), (430, 32, True), (100, K, False)]
)
def test_too_few_vectors_leave_no_reference(count, size, known):
    head = fit_head(Summary.of(SEEN[:count]), size)
    assert (head.record.reference is not None) is known


def test_a_head_for_all_dimensions_loses_no_variance():
    found = measure_drift(fit_head(Summary.of(SEEN), D, strength=0), LATER)
    assert found.figures[0].now == pytest.approx(0, abs=1e-6)
    assert found.verdict is Verdict.FITS


def test_the_reference_survives_another_norm_another_precision_and_rounding():
    expected = [figure.now for figure in measure_drift(HEAD, LATER).figures]
    for head in (
        HEAD.for_norm(30.0),
        HEAD.with_record(precision="binary"),
        replace(HEAD, weight=HEAD.weight.astype(np.float16)),
    ):
        assert [figure.now for figure in measure_drift(head, LATER).figures] == pytest.approx(expected, abs=2e-3)


def test_a_head_that_was_trained_since_is_refused():
    noise = RNG.standard_normal(HEAD.weight.shape) * np.sqrt(np.square(HEAD.weight).mean())
    with pytest.raises(ValueError, match=r"the head was trained, .* after its losses were measured: fit it again"):
        measure_drift(replace(HEAD, weight=HEAD.weight + 0.3 * noise), LATER)


def test_a_head_without_a_reference_is_refused():
    with pytest.raises(ValueError, match=r"no losses at its fit to compare with .*fit it again"):
        measure_drift(Head(HEAD.weight), LATER)


def test_one_pass_over_any_source(tmp_path):
    np.save(tmp_path / "x.npy", LATER)
    assert measure_drift(HEAD, tmp_path / "x.npy") == measure_drift(HEAD, LATER)
    assert measure_drift(HEAD, (LATER[start : start + 100] for start in range(0, 3000, 100))).vectors == 3000
    bad = LATER.copy()
    bad[7] = 0
    with pytest.raises(ValueError, match="row 7 is all zeros"):
        measure_drift(HEAD, bad)
    assert measure_drift(HEAD, bad, on_bad_row="zero").vectors == 2999


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (LATER[:199], "there are 199 vectors, too few to judge: give at least 200"),
        (np.zeros((300, D), np.float32), "all zeros"),
        (np.ones((300, D + 1), np.float32), "the vectors have 33 dimensions, the head takes 32"),
        (np.empty((0, D), np.float32), "there is no vector in the source"),
        ("nothing.npy", "no file or folder nothing.npy"),
    ],
)
def test_vectors_that_cannot_be_judged(source, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        measure_drift(HEAD, source)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({field.name: None}, f"its {field.name} is not a share from 0 to 1") for field in fields(Losses)),
        ({"variance_lost": 1.5}, "variance_lost"),
        ({"variance_lost": -0.1}, "variance_lost"),
        ({"variance_lost": float("nan")}, "variance_lost"),
        ({"neighbours_error": float("inf")}, "neighbours_error"),
        ({"neighbours_lost": 10**400}, "neighbours_lost"),
        ({"neighbours_lost": "0.1"}, "neighbours_lost"),
        ({"precision": None}, "unknown precision"),
        ({"precision": ["int4"]}, "unknown precision"),
        ({"head": None}, "the head was trained"),
        ({"head": 10**400}, "the head was trained"),
    ],
)
def test_a_reference_that_is_damaged_or_hostile(change, message):
    head = HEAD.with_record(reference=HEAD.record.reference | change)
    with pytest.raises(ValueError, match=message) as error:
        measure_drift(head, LATER)
    assert len(str(error.value)) < 500
    assert "\n" not in str(error.value)


def test_the_record_keeps_it_small_and_a_head_reads_it_back(tmp_path):
    head = Head.fit(7 * SEEN, K)
    head.save(tmp_path / "head")
    assert Head.load(tmp_path / "head").record == head.record
    assert Head.load(tmp_path / "head").drift(LATER) == head.drift(LATER) == measure_drift(head, LATER)
    assert "reference" not in head.record.to_dict(large=False)
    assert len(json.dumps(head.record.reference)) < 400
    assert FitRecord.from_dict(head.record.to_dict()).reference == head.record.reference


def test_it_can_be_written_as_json():
    found = measure_drift(HEAD, LATER)
    written = json.loads(json.dumps(found.to_dict()))
    assert written["verdict"] == "fits"
    assert [figure["name"] for figure in written["figures"]] == ["variance lost", "neighbours lost"]
    assert isinstance(found, Drift)


def test_neighbours_are_looked_for_among_200_whatever_the_number():
    reduced = HEAD.transform(LATER)
    assert len(neighbours_found(LATER[:399], reduced[:399], HEAD.precision)) == 200
    few, many = (neighbours_found(LATER[:n], reduced[:n], HEAD.precision).mean() for n in (400, 3000))
    assert few == pytest.approx(many, abs=0.03)


def test_the_grid_of_few_bits_is_turned_as_the_head_is():
    """The subspace found without the held-out vectors gives codes as good as the head's own."""
    for precision in ("int2", "binary"):
        head = fit_head(Summary.of(SEEN), Size(K, precision=precision))
        lost = measure(head, Summary.of(LATER)).neighbours_lost
        assert head.record.reference["neighbours_lost"] == pytest.approx(lost, abs=0.03)
