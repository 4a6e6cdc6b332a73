"""The two passes on a Ray of two workers, beside the same on one machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from st_dimreduce import Codes, Head, Precision, Size, Summary
from st_dimreduce.codes.fingerprint import same_head
from st_dimreduce.codes.precision import quantize
from st_dimreduce.vectors import fit as local

pa = pytest.importorskip("pyarrow")
ray = pytest.importorskip("ray")

from st_dimreduce.codes.tables import codes_of  # noqa: E402
from st_dimreduce.vectors.ray_data import summarize, transform  # noqa: E402

pytestmark = [pytest.mark.component("Ray"), pytest.mark.wings("vectors", "fitting/summary.py")]
RNG = np.random.default_rng(0)
X = (RNG.standard_normal((150_000, 24)) * np.linspace(3, 0.2, 24) + 0.5).astype(np.float32)
HEAD = Head.fit(Summary.of(X), 16)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=200_000_000, _node_ip_address="127.0.0.1",
    )  # fmt: skip
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    yield
    ray.shutdown()


def table(x=X, **others):
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1])
    return pa.table({"id": np.arange(len(x)), "embedding": column, **others})


def dataset(x=X, blocks=5):
    whole = table(x)
    size = -(-len(x) // blocks)
    return ray.data.from_arrow([whole.slice(i, size) for i in range(0, len(x), size)])


def whole(some):
    return pa.concat_tables(ray.get(some.to_arrow_refs())).combine_chunks().sort_by("id")


def same_summary(one, other):
    assert one.count == other.count
    assert np.abs(one.gram - other.gram).max() <= 1e-5 * np.abs(other.gram).max()
    assert np.allclose(one.mean, other.mean, atol=1e-6)
    assert one.mean_norm == pytest.approx(other.mean_norm)


def same_codes(codes, precision):
    """But for what BLAS rounds otherwise in a batch of another size, which turns a level or a bit here and there."""
    expected = quantize(HEAD.transform(X), precision)
    assert codes.dtype == expected.dtype
    if precision == "float32":
        assert np.abs(codes - expected).max() < 1e-6
    else:
        assert np.mean(codes != expected) < 1e-4


def test_the_summary_is_the_local_one():
    same_summary(summarize(dataset(), column="embedding", sample_size=2000), local.summarize(X))


def test_the_sample_is_uniform_and_the_same_again():
    first, again = (summarize(dataset(), sample_size=2000) for _ in range(2))
    assert np.array_equal(first.sample, again.sample)
    assert len(first.sample) == 2000
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    place = {row.tobytes(): i for i, row in enumerate(unit.round(5))}
    drawn = np.array([place.get(row.tobytes(), -1) for row in first.sample.round(5)])
    drawn = drawn[drawn >= 0]
    assert len(drawn) > 1500, "most rows are found again whatever the rounding"
    assert np.histogram(drawn, 5, (0, len(X)))[0].min() > 0.8 * len(drawn) / 5


def test_few_rows_are_all_in_the_sample():
    few = summarize(dataset(X[:300], blocks=3))
    assert len(few.sample) == few.count == 300


@pytest.mark.parametrize("precision", Precision)
def test_codes_are_the_local_ones_and_ids_stay_with_them(precision):
    out = whole(transform(dataset(), HEAD, precision))
    assert np.array_equal(out["id"], np.arange(len(X)))
    same_codes(codes_of(out["embedding"]), precision)


def test_a_head_fitted_on_it_is_stored_in_its_own_precision():
    head = Head.fit(summarize(dataset(X[:5000])), Size(bytes=4))
    assert head.precision is not Precision.FLOAT32
    out = whole(transform(dataset(X[:5000]), head))
    assert np.array_equal(codes_of(out["embedding"]), head.encode(X[:5000]).values)


def test_rays_own_tensors_are_read_as_well():
    few = ray.data.from_numpy(X[:5000])
    same_summary(summarize(few), local.summarize(X[:5000]))
    out = pa.concat_tables(ray.get(transform(few, HEAD, "int8").to_arrow_refs()))
    assert np.array_equal(codes_of(out["data"]), quantize(HEAD.transform(X[:5000]), "int8"))


def test_through_parquet(tmp_path):
    dataset(X[:20_000]).write_parquet(str(tmp_path / "full"))
    transform(ray.data.read_parquet(str(tmp_path / "full")), HEAD, "int4").write_parquet(str(tmp_path / "small"))
    expected = local.summarize(tmp_path / "full", column="embedding")
    same_summary(summarize(ray.data.read_parquet(str(tmp_path / "full"))), expected)
    out = whole(ray.data.read_parquet(str(tmp_path / "small")))
    assert np.array_equal(codes_of(out["embedding"]), quantize(HEAD.transform(X[:20_000]), "int4"))
    codes = Codes.load(tmp_path / "small")
    assert (codes.precision, codes.out_features) == ("int4", 16)
    assert same_head(codes.head, HEAD.fingerprint)


def test_a_killed_worker_changes_nothing(tmp_path):
    middle = len(X) // 2

    def dying(name):
        marker = str(tmp_path / name)

        def kill_once(batch):
            if (batch["id"].to_numpy() == middle).any() and not os.path.exists(marker):  # noqa: PTH110
                os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.SIGKILL)
            return batch

        return dataset().map_batches(kill_once, batch_format="pyarrow", batch_size=None)

    same_summary(summarize(dying("summary")), local.summarize(X))
    out = whole(transform(dying("vectors"), HEAD, "int8"))
    assert (tmp_path / "summary").exists(), "nobody was killed"
    assert (tmp_path / "vectors").exists(), "nobody was killed"
    same_codes(codes_of(out["embedding"]), "int8")


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda: dataset(np.where(X[77_777] == X, np.nan, X)), {}, "the vector in row .* holds NaN"),
        (lambda: dataset(0 * X[:10]), {"on_bad_row": "zero"}, "every vector of the .* is NaN, infinite or zero"),
        (lambda: dataset(X[:10]), {"column": "vector"}, "'vector'"),
        (lambda: dataset(X[:10]).filter(lambda row: False), {}, "the dataset has no rows"),
        (lambda: dataset(X[:10]), {"on_bad_row": "drop"}, "unknown on_bad_row 'drop'"),
    ],
)
def test_an_error_of_a_worker_is_one_line(make, arguments, message):
    with pytest.raises(ValueError, match=message) as raised:
        summarize(make(), **arguments)
    assert "\n" not in str(raised.value)


def test_bad_rows_are_left_out_where_asked():
    holed = X[:1000].copy()
    holed[[3, 700]] = 0
    assert summarize(dataset(holed), on_bad_row="zero").count == 998
    assert summarize(dataset(np.concatenate([0 * X[:70_000], X[:10]])), on_bad_row="zero").count == 10
    codes = codes_of(whole(transform(dataset(holed), HEAD, on_bad_row="zero"))["embedding"])
    assert np.array_equal(np.flatnonzero(~codes.any(axis=1)), [3, 700])


def test_without_ray_the_extra_is_named():
    code = "import sys; sys.modules['ray'] = None; import st_dimreduce.vectors.ray_data"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "MissingExtraError: Ray Data is missing: pip install 'st_dimreduce[ray]'" in done.stderr
