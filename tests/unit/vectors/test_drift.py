"""Whether a head still fits the vectors that arrive: logic, on made vectors; real ones are in integration."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from st_dimreduce import (
    Drift,
    FitRecord,
    Head,
    Pairs,
    Size,
    Summary,
    Verdict,
    drift,
    fit_head,
    fit_on_vectors,
    quantize,
    reduce_vectors,
)
from st_dimreduce.fitting.reference import Reference, measure, neighbours_found, sketch
from st_dimreduce.vectors.drift import DriftSample, Figure

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


SEEN, LATER = draw(2000, seed=1), draw(3000, seed=2)
HEAD = fit_head(Summary.of(SEEN), K)
# What varies most is what it was, but the mean has moved into the subspace.
MOVED = LATER + 3 * np.eye(D, dtype=np.float32)[2]


def by_name(found):
    return {figure.name: figure for figure in found.figures}


@pytest.mark.parametrize("count", [200, 500, 3000])
@pytest.mark.parametrize("scale", [1, 50])
def test_vectors_like_those_fitted_on_fit(count, scale):
    found = drift(HEAD, scale * LATER[:count])
    assert (found.verdict, found.vectors) == ("fits", count)
    assert "a refit is due above" in found.explanation
    names = by_name(found)
    assert names["mean norm"].now == pytest.approx(scale * np.linalg.norm(LATER[:count], axis=1).mean(), rel=1e-4)
    assert names["variance lost"].now == pytest.approx(names["variance lost"].at_fit, rel=0.15)
    assert names["shift of the mean"].now < 0.1


@pytest.mark.parametrize("count", [200, 3000])
@pytest.mark.parametrize(
    ("vectors", "name", "words"),
    [
        (draw(3000, REVERSED, 3), "variance lost", "of the variance of these vectors"),
        (MOVED, "shift of the mean", "has moved by"),
    ],
)
def test_vectors_of_another_kind_ask_for_a_refit(count, vectors, name, words):
    found = drift(HEAD, vectors[:count])
    assert found.verdict is Verdict.REFIT
    assert by_name(found)[name].verdict is Verdict.REFIT
    assert drift(fit_head(Summary.of(vectors), K), vectors[:count]).verdict is Verdict.FITS, "refitted it fits"
    worst = max((f for f in found.figures if f.refit), key=lambda f: (f.now - 2 * f.error) / f.refit)
    assert worst.name == name
    assert words in found.explanation
    assert "refit is due above" in found.explanation


def test_the_same_share_of_others_is_judged_alike_whatever_the_number():
    """An effect counts by its size, not by how sure it is."""
    for share, verdict in ((0.01, "fits"), (0.06, "watch"), (0.2, "refit")):
        for count in (3000, 20_000):
            few = round(share * count)
            assert drift(HEAD, np.concatenate([draw(count - few), draw(few, REVERSED)])).verdict == verdict, share


@pytest.mark.parametrize(
    ("now", "error", "verdict"),
    [(0.2, 0, "fits"), (0.27, 0, "watch"), (0.27, 0.02, "fits"), (0.32, 0, "refit"), (0.32, 0.1, "watch")],
)
def test_two_standard_errors_are_left_to_chance(now, error, verdict):
    assert Figure("f", 0.2, now, error, 0.25, 0.3).verdict == verdict
    assert Figure("f", 0.2, now, error).verdict == "fits", "a figure without limits is not judged"


def test_figures_are_those_of_a_direct_computation():
    found = by_name(drift(HEAD, LATER))
    unit = LATER / np.linalg.norm(LATER, axis=1, keepdims=True)
    centred = unit - unit.mean(axis=0)
    solved = np.linalg.lstsq(HEAD.weight.T.astype(np.float64), centred.T, rcond=None)[0]
    left = centred.T - HEAD.weight.T.astype(np.float64) @ solved
    assert found["variance lost"].now == pytest.approx(np.square(left).sum() / np.square(centred).sum(), rel=1e-4)
    reduced = HEAD.reduce_stored(unit, normalize_embeddings=True)
    shift = np.linalg.norm(reduced.mean(axis=0) - HEAD.reduce_stored(SEEN, True).mean(axis=0))
    assert found["shift of the mean"].now == pytest.approx(shift, abs=0.03)
    shares = []
    for start in range(0, 3000, 200):
        both = []
        for rows in (unit[start : start + 200], reduced[start : start + 200]):
            cosines = rows @ rows.T
            np.fill_diagonal(cosines, -2)
            both.append(np.argsort(-cosines, axis=1)[:, :10])
        shares += [len(set(a) & set(b)) / 10 for a, b in zip(*both, strict=True)]
    assert found["neighbours lost"].now == pytest.approx(1 - np.mean(shares), abs=0.01), "of other groups of 200"
    bits = []
    for dimension in quantize(reduced, "int4").repeat(2, axis=1).T:
        first = len(bits) % 2 == 0
        shares = np.bincount(dimension >> 4 if first else dimension & 15, minlength=16) / 3000
        bits.append(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())
    assert found["bits used per dimension"].now == pytest.approx(np.mean(bits), abs=0.005)


def test_what_is_seen_is_fitted_better_than_what_comes_later_and_the_reference_is_of_the_latter():
    few = draw(400, seed=5)
    head = fit_head(Summary.of(few), 24)
    held_out, seen = head.record.reference["variance_lost"], measure(head, Summary.of(few)).variance_lost
    later = measure(head, Summary.of(LATER)).variance_lost
    assert seen < 0.95 * later
    assert 0.95 * later < held_out < 1.3 * later, "the second head saw half as many"


def pairs():
    return Pairs(SEEN[:600] + 0.1 * draw(600, seed=6), SEEN[:600])


@pytest.mark.parametrize(
    "options",
    [
        {"size": K, "objective": "fidelity"},
        {"size": K, "objective": "fidelity", "train": False},
        {"size": Size(nested=(4, 8))},
        {"size": Size(bytes_per_vector=2)},
        {"size": K, "pairs": pairs()},
        {"size": K, "cloze_pairs": pairs()},
        {"size": K, "rotation": None, "gain": 0.5},
    ],
    ids="-".join,
)
def test_every_way_to_fit_leaves_a_reference(options):
    head = fit_head(Summary.of(SEEN), **options)
    kept = Reference.from_dict(json.loads(json.dumps(head.record.reference)), head.out_features)
    assert (kept.precision, kept.vectors) == (head.precision, 500)
    assert kept.is_of(head)
    assert drift(head, LATER).verdict is Verdict.FITS
    assert drift(head, draw(1000, REVERSED)).verdict is Verdict.REFIT


def test_a_pair_whose_document_is_held_out_trains_no_second_head():
    made = pairs()
    left = made.without(SEEN[:100] / np.linalg.norm(SEEN[:100], axis=1, keepdims=True))
    assert np.allclose(left.documents, made.documents[100:], atol=1e-6)
    assert np.allclose(left.queries, made.queries[100:], atol=1e-6)
    unit = SEEN[:500] / np.linalg.norm(SEEN[:500], axis=1, keepdims=True)
    assert len(made.without(unit)) == 600, "fewer than half would be too few"


@pytest.mark.parametrize(
    ("count", "size", "known"), [(399, K, False), (400, K, True), (430, 32, True), (100, K, False)]
)
def test_too_few_vectors_leave_no_reference(count, size, known):
    head = fit_head(Summary.of(SEEN[:count]), size)
    assert (head.record.reference is not None) is known


def test_a_head_for_all_dimensions_loses_nothing_and_can_still_be_off():
    head = fit_head(Summary.of(SEEN), D, objective="fidelity", train=False)
    found = by_name(drift(head, LATER))
    assert found["variance lost"].now == pytest.approx(0, abs=1e-6)
    assert drift(head, LATER).verdict is Verdict.FITS
    assert drift(head, MOVED).verdict is Verdict.REFIT


def test_the_reference_survives_another_norm_another_precision_and_rounding():
    found = drift(HEAD, LATER).to_dict()["figures"][:4]
    for head in (HEAD.for_norm(30.0), HEAD.with_record(precision="binary")):
        again = drift(head, LATER).to_dict()["figures"][:4]
        assert [figure["now"] for figure in again] == pytest.approx([figure["now"] for figure in found], abs=2e-3)
    rounded = replace(HEAD, weight=HEAD.weight.astype(np.float16))
    assert drift(rounded, LATER).verdict is Verdict.FITS
    module = HEAD.to_module()
    assert drift(module, LATER).to_dict() == drift(HEAD, LATER).to_dict()


def test_a_head_that_was_trained_since_is_refused():
    noise = RNG.standard_normal(HEAD.weight.shape) * np.sqrt(np.square(HEAD.weight).mean())
    for share, same in ((0.01, True), (0.3, False)):
        head = replace(HEAD, weight=HEAD.weight + share * noise)
        change = np.sqrt(np.mean(np.square(np.subtract(sketch(head), sketch(HEAD)))))
        assert change == pytest.approx(share, rel=0.6)
        if same:
            assert drift(head, LATER).verdict is Verdict.FITS
        else:
            with pytest.raises(ValueError, match="the head was trained after its reference was measured: fit it again"):
                drift(head, LATER)


def test_a_reference_of_ones_own():
    plain = Head(HEAD.weight)
    with pytest.raises(ValueError, match=r"record has no reference to compare with .*pass reference"):
        drift(plain, LATER)
    assert drift(plain, LATER, reference=draw(500, seed=7)).verdict is Verdict.FITS
    found = drift(plain, 3 * LATER, reference=draw(500, seed=7))
    assert found.verdict is Verdict.REFIT, "a head that knows no norm reduces the rows as they are"
    assert "The mean norm is" in found.explanation
    assert drift(HEAD, 3 * LATER, reference=draw(500, seed=7)).verdict is Verdict.FITS
    assert drift(HEAD, LATER, reference=draw(500, REVERSED)).verdict is Verdict.REFIT, "it comes before the record"


def test_one_pass_over_any_source(tmp_path):
    np.save(tmp_path / "x.npy", LATER)
    assert drift(HEAD, tmp_path / "x.npy") == drift(HEAD, LATER)
    assert drift(HEAD, (LATER[start : start + 100] for start in range(0, 3000, 100))).vectors == 3000
    bad = LATER.copy()
    bad[7] = 0
    with pytest.raises(ValueError, match="row 7 is all zeros"):
        drift(HEAD, bad)
    assert drift(HEAD, bad, on_bad_row="zero").vectors == 2999


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (LATER[:199], "there are 199 vectors, too few to judge: give at least 200"),
        (np.zeros((300, D), np.float32), "all zeros"),
        (np.ones((300, D + 1), np.float32), "the vectors have 33 dimensions, the head takes 32: use its own"),
        (np.empty((0, D), np.float32), "there is no vector in the source"),
        ("nothing.npy", "no file or folder nothing.npy"),
    ],
)
def test_what_cannot_be_judged(source, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        drift(HEAD, source)
    assert "\n" not in str(error.value)


def test_too_few_vectors_to_compare_with():
    with pytest.raises(ValueError, match="the reference has 20 vectors, too few to judge: give at least 200"):
        drift(HEAD, LATER, reference=LATER[:20])


GOOD = HEAD.record.reference


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({name: None}, f"reference says {name} None") for name in GOOD if name != "precision"),
        ({"precision": None}, "unknown precision None"),
        ({"precision": ["int4"]}, "unknown precision"),
        ({"mean": [0.0] * 7}, "reference says mean"),
        ({"mean": [float("nan")] * K}, "reference says mean"),
        ({"mean": ["a"] * K}, "reference says mean"),
        ({"mean": 5}, "reference says mean 5"),
        ({"sketch": [10**400] * 8}, "reference says sketch"),
        ({"vectors": 0}, "reference says vectors 0"),
        ({"vectors": 2.5}, "reference says vectors 2.5"),
        ({"vectors": True}, "reference says vectors 1"),
        ({"variance_lost": 1.5}, "reference says variance_lost 1.5"),
        ({"variance_lost": -0.1}, "reference says variance_lost -0.1"),
        ({"neighbours_error": float("inf")}, "reference says neighbours_error huge"),
        ({"bits_used": 10**400}, "reference says bits_used huge"),
    ],
)
def test_a_reference_that_is_damaged_or_hostile(change, message):
    head = HEAD.with_record(reference=GOOD | change)
    with pytest.raises(ValueError, match=message) as error:
        drift(head, LATER)
    assert len(str(error.value)) < 500
    assert "\n" not in str(error.value)


def test_the_record_keeps_it_small_and_a_head_reads_it_back(tmp_path):
    head = fit_on_vectors(7 * SEEN, K)
    head.save(tmp_path / "head")
    assert Head.load(tmp_path / "head").record == head.record
    assert drift(Head.load(tmp_path / "head"), LATER) == drift(head, LATER)
    assert "reference" not in head.record.to_dict(large=False)
    wide = fit_head(Summary.of(RNG.standard_normal((1000, 256))), 256)
    assert len(json.dumps(wide.record.reference, indent=2)) < 6000
    assert FitRecord.from_dict(head.record.to_dict()).reference == head.record.reference


def test_it_can_be_written_as_json():
    found = drift(HEAD, LATER)
    written = json.loads(json.dumps(found.to_dict()))
    assert written["verdict"] == "fits"
    assert [figure["name"] for figure in written["figures"]] == [figure.name for figure in found.figures]
    assert isinstance(found, Drift)


def test_neighbours_are_looked_for_among_200_whatever_the_number():
    reduced = HEAD.reduce_stored(LATER, True)
    assert len(neighbours_found(LATER[:399], reduced[:399], HEAD.precision)) == 200
    few, many = (neighbours_found(LATER[:n], reduced[:n], HEAD.precision).mean() for n in (400, 3000))
    assert few == pytest.approx(many, abs=0.03)


def test_a_record_without_a_norm_judges_none():
    head = HEAD.with_record(mean_norm=None)
    found = drift(head, 1000 * LATER)
    assert by_name(found)["mean norm"].refit is None
    assert "mean norm" not in found.explanation


@pytest.mark.parametrize(("vectors", "verdict"), [(LATER, "fits"), (MOVED, "refit")])
def test_a_run_judges_what_it_reduces(vectors, verdict, tmp_path):
    done = reduce_vectors(vectors, HEAD, tmp_path / "codes.npy", "int4", batch_bytes=1 << 14)
    assert done.drift.verdict == verdict
    assert done.drift == drift(HEAD, vectors), "so few are all judged"
    bad = vectors.copy()
    bad[3], bad[400] = 0, np.nan
    done = reduce_vectors(bad, HEAD, tmp_path / "bad.npy", on_bad_row="zero")
    assert (done.bad_rows, done.drift.vectors, done.drift.verdict) == (2, len(vectors) - 2, verdict)


def test_a_run_that_appends_judges_what_is_new(tmp_path):
    np.save(tmp_path / "x.npy", LATER)
    assert reduce_vectors(tmp_path / "x.npy", HEAD, tmp_path / "codes.npy").drift.verdict is Verdict.FITS
    np.save(tmp_path / "x.npy", np.concatenate([LATER, MOVED[:300]]))
    done = reduce_vectors(tmp_path / "x.npy", HEAD, tmp_path / "codes.npy", append=True)
    assert (done.rows, done.drift.vectors, done.drift.verdict) == (3300, 300, "refit")
    assert reduce_vectors(tmp_path / "x.npy", HEAD, tmp_path / "codes.npy", append=True).drift is None


@pytest.mark.parametrize("head", [HEAD, HEAD.with_record(reference=None), replace(HEAD, weight=-HEAD.weight)])
def test_a_run_that_cannot_be_judged_says_nothing(head, tmp_path):
    count = 199 if head is HEAD else 3000
    assert reduce_vectors(LATER[:count], head, tmp_path / "codes.npy").drift is None


def test_a_sample_is_spread_from_the_first_to_the_last():
    sample = DriftSample(HEAD)
    numbered = np.repeat(np.arange(100_000, dtype=np.float32)[:, None], D, axis=1)
    for rows in np.array_split(numbered, [1, 2, 5, 3000, 3001, 50_000]):
        sample.add(rows)
    kept = np.concatenate(sample._rows)[:, 0]
    assert 2000 < len(kept) <= 4000
    assert np.array_equal(kept, np.arange(0, 100_000, 32))
