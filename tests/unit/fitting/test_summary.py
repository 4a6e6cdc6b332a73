from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from st_dimreduce import Summary


def vectors(count, width=5, seed=0, dtype=np.float32):
    return (np.random.default_rng(seed).standard_normal((count, width)) + 0.5).astype(dtype)


def assert_same_statistics(one, other):
    assert one.count == other.count
    assert np.allclose(one.mean, other.mean, atol=1e-7)
    assert np.allclose(one.gram, other.gram, atol=1e-7)
    assert one.mean_norm == pytest.approx(other.mean_norm, rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_matches_the_definition(dtype):
    x = vectors(1000, dtype=dtype)
    exact = x.astype(np.float64)
    unit = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    summary = Summary.of(x)
    assert summary.count == 1000
    assert np.allclose(summary.mean, unit.mean(axis=0), atol=1e-6)
    assert np.allclose(summary.gram, unit.T @ unit / 1000, atol=1e-6)
    assert np.trace(summary.gram) == pytest.approx(1, abs=1e-6)
    assert summary.mean_norm == pytest.approx(np.linalg.norm(exact, axis=1).mean(), rel=1e-6)
    assert sorted(map(tuple, summary.sample)) == sorted(map(tuple, unit.astype(np.float32))) or np.allclose(
        np.sort(summary.sample, axis=0), np.sort(unit, axis=0), atol=1e-6
    )


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    sample_size=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_merging_equals_one_pass(counts, sample_size, seed):
    x = vectors(sum(counts), seed=seed)
    parts = np.split(x, np.cumsum(counts)[:-1])
    merged = Summary(5, sample_size, seed)
    for part in parts:
        before = Summary.of(part, sample_size, seed)
        merged.merge(before)
        assert before.count == len(part)
    assert_same_statistics(merged, Summary.of(x, sample_size, seed))
    assert len(merged.sample) == min(sample_size, len(x))
    rows = {tuple(row) for row in Summary.of(x, len(x)).sample}
    assert {tuple(row) for row in merged.sample} <= rows


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=5), sample_size=st.integers(1, 40))
def test_batches_make_no_difference(counts, sample_size):
    x = vectors(sum(counts))
    whole, pieces = Summary.of(x, sample_size), Summary(5, sample_size)
    for part in np.split(x, np.cumsum(counts)[:-1]):
        pieces.update(part)
    assert_same_statistics(whole, pieces)
    assert np.array_equal(whole.sample, pieces.sample)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 60), more=st.integers(1, 60), sample_size=st.integers(1, 40), seed=st.integers(0, 99))
def test_save_and_load_round_trip(tmp_path_factory, count, more, sample_size, seed):
    path = tmp_path_factory.mktemp("summary") / "s.safetensors"
    summary = Summary(5, sample_size, seed)
    if count:
        summary.update(vectors(count))
    summary.save(path)
    loaded = Summary.load(path)
    for one in (summary, loaded):
        one.update(vectors(more, seed=1))
    assert loaded.count == summary.count
    assert np.array_equal(loaded.gram, summary.gram)
    assert np.array_equal(loaded.mean, summary.mean)
    assert loaded.mean_norm == summary.mean_norm
    assert np.array_equal(loaded.sample, summary.sample)


def inclusion(make, trials=3000):
    """How often each of 20 rows is in the sample of 5 that ``make`` draws: expected a quarter of the time."""
    x = np.eye(20, dtype=np.float32)
    return np.mean([make(x, seed).sample.sum(axis=0) for seed in range(trials)], axis=0)


def test_the_sample_is_uniform_over_one_pass():
    # Standard deviation of a share of 1/4 over 3,000 trials: 0.008. Five of them.
    assert np.abs(inclusion(lambda x, seed: Summary.of(x, 5, seed)) - 0.25).max() < 0.04


def test_the_sample_is_uniform_after_a_merge_of_unequal_parts():
    def merge(x, seed):
        return Summary.of(x[:3], 5, seed).merge(Summary.of(x[3:], 5, seed))

    assert np.abs(inclusion(merge) - 0.25).max() < 0.04


def test_workers_with_one_seed_draw_different_rows():
    x = np.eye(20, dtype=np.float32)
    both = np.mean(
        [
            (row := Summary.of(x[:10], 5, s).merge(Summary.of(x[10:], 5, s)).sample.sum(axis=0))[0] * row[10]
            for s in range(3000)
        ]
    )
    assert both == pytest.approx(5 / 20 * 4 / 19, abs=0.025), "rows at the same place of two workers come together"


def test_any_slice_of_the_sample_is_uniform():
    x = np.eye(20, dtype=np.float32)
    first = np.mean([Summary.of(x, 20, seed).sample[:5].sum(axis=0) for seed in range(3000)], axis=0)
    assert np.abs(first - 0.25).max() < 0.04


@pytest.mark.parametrize("batch", [7, 1000, 6000])
def test_the_sample_holds_the_rows_with_the_smallest_keys(batch):
    x = vectors(6000)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    summary = Summary(5, 40, seed=3)
    for start in range(0, len(x), batch):
        summary.update(x[start : start + batch])
    stream = zlib.crc32(np.rint(2 * np.sqrt(5) * unit[0]).astype(np.int32).tobytes())
    keys = np.random.Generator(np.random.PCG64(np.random.SeedSequence([3, stream]))).random(6000)
    assert np.allclose(summary.sample, unit[np.argsort(keys)[:40]], atol=1e-6)
    assert (Summary(5).sample_size, Summary(5).seed) == (50_000, 0)


def test_rounding_in_the_vectors_changes_no_row_of_the_sample():
    x = np.random.default_rng(0).standard_normal((300, 384)).astype(np.float32)
    rounded = x * (1 + 1e-6 * np.random.default_rng(1).standard_normal(x.shape)).astype(np.float32)
    one, other = (Summary.of(rows, 40).sample for rows in (x, rounded))
    assert not np.array_equal(one, other)
    assert np.allclose(one, other, atol=1e-6)


def test_masked_entries_are_refused():
    x = vectors(10)
    for masked in (np.ma.masked_equal(x, x[3, 3]), np.ma.masked_array(x, mask=True)):
        with pytest.raises(
            ValueError, match=r"the vectors: got a masked array with .* masked entries: drop those rows"
        ):
            Summary.of(masked)
    assert Summary.of(np.ma.masked_array(x)).count == 10, "no entry is masked"


def test_a_bad_row_is_counted_over_batches_and_blocks():
    x = vectors(9000)
    x[5000] = np.nan
    with pytest.raises(ValueError, match=r"^the vector in row 5010 holds NaN: drop or repair it, it has no direction$"):
        Summary.of(vectors(10)).update(x)


def test_seeds_and_merging_with_itself():
    x = vectors(500)
    assert np.array_equal(Summary.of(x, 50, 1).sample, Summary.of(x, 50, 1).sample)
    assert not np.array_equal(Summary.of(x, 50, 1).sample, Summary.of(x, 50, 2).sample)
    twice = Summary.of(x, 600).merge(Summary.of(x, 600))
    itself = Summary.of(x, 600)
    assert_same_statistics(itself.merge(itself), twice)


def test_float32_keeps_six_digits_over_many_blocks():
    x = vectors(20_000) + 1  # far from centred, so that no sum is small by luck
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    summary = Summary(5, 10)
    for _ in range(100):
        summary.update(x)
    assert summary.count == 2_000_000
    assert np.allclose(summary.gram, unit.T @ unit / 20_000, rtol=1e-6)
    assert np.allclose(summary.mean, unit.mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "row 3 holds NaN"),
        (np.inf, "row 3 has norm inf"),
        (0, "row 3 is all zeros"),
        (1e-35, "row 3 has norm"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_added(value, message):
    x = vectors(10).astype(np.float64)
    summary = Summary.of(x[:2])
    x[1] = value
    with pytest.raises(ValueError, match=message):
        summary.update(x)
    assert summary.count == 2


def test_huge_and_tiny_vectors_have_a_direction():
    x = vectors(100).astype(np.float64)
    assert np.allclose(Summary.of(x * 1e25).gram, Summary.of(x * 1e-25).gram, atol=1e-6)


def test_wrong_shapes_and_sizes():
    with pytest.raises(ValueError, match=r"expected \(n, 5\)"):
        Summary(5).update(np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"expected \(n, d\)"):
        Summary.of(np.zeros(4))
    with pytest.raises(ValueError, match="summaries of 5 and 4 dimensions"):
        Summary(5).merge(Summary(4))
    with pytest.raises(ValueError, match="at least 1"):
        Summary(0)


def test_load_of_what_is_no_summary(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError):
        Summary.load(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="is not a summary"):
        Summary.load(path)
    save_file({"sum": np.zeros(3)}, path)
    with pytest.raises(ValueError, match="is not a summary"):
        Summary.load(path)
    Summary.of(vectors(10)).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


SHAPES, TYPES = "the shapes of its arrays do not fit one another", "its arrays have the wrong types"
MISSING = "its numbers are missing or invalid"
UNFIT = "its numbers are not finite, or do not fit one another"


@pytest.mark.parametrize(
    ("arrays", "numbers", "message"),
    [
        ({"sum": np.zeros(4)}, {}, f"is damaged: {SHAPES}"),
        ({"keys": np.zeros(9)}, {}, f"is damaged: {SHAPES}"),
        ({"sum": np.zeros((5, 1))}, {}, f"is damaged: {SHAPES}"),
        ({"sum": np.zeros(5, np.float32)}, {}, f"is damaged: {TYPES}"),
        ({"rows": np.zeros((10, 5))}, {}, f"is damaged: {TYPES}"),
        ({"gram_sum": np.full((5, 5), np.nan)}, {}, f"is damaged: {UNFIT}"),
        ({}, {"norm_sum": "inf"}, f"is damaged: {UNFIT}"),
        ({}, {"norm_sum": "0x0p0"}, f"is damaged: {UNFIT}"),
        ({}, {"norm_sum": "-0x1p3"}, f"is damaged: {UNFIT}"),
        ({}, {"norm_sum": "0x1p300"}, f"is damaged: {UNFIT}"),
        ({}, {"count": str(10**400)}, f"is damaged: {UNFIT}"),
        ({}, {"count": "9"}, f"is damaged: {UNFIT}"),
        ({}, {"sample_size": "9"}, f"is damaged: {UNFIT}"),
        ({}, {"count": "ten"}, rf"is damaged: {MISSING} \(invalid literal"),
        ({}, {"seed": None}, rf"is damaged: {MISSING} \('seed'\)"),
        ({}, {"sample_size": "0"}, rf"is damaged: {MISSING} \(width=5, sample_size=0: both must be at least 1\)"),
        ({}, {"norm_sum": "0x1p99999"}, rf"is damaged: {MISSING} \(hexadecimal value too large"),
        ({}, {"format": "st_dimreduce.fitting.summary.0"}, "is not a summary: expected a file written by Summary.save"),
        ({"more": np.zeros(1)}, {}, "is not a summary: expected a file written by Summary.save"),
    ],
)
def test_load_of_a_summary_that_is_damaged(tmp_path, arrays, numbers, message):
    path = tmp_path / "x.safetensors"
    Summary.of(vectors(10)).save(path)
    with safe_open(path, "numpy") as file:
        said = file.metadata() | numbers
    save_file(load_file(path) | arrays, path, {name: value for name, value in said.items() if value is not None})
    with pytest.raises(ValueError, match=f"^{path} {message}"):
        Summary.load(path)
