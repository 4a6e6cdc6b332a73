"""Targets that grow with their source, and codes of which nothing, or something else, says what made them."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from st_dimreduce import Codes, Head
from st_dimreduce.base_head import BaseHead
from st_dimreduce.codes.fingerprint import abbreviate
from st_dimreduce.codes.origin import beside, origin_beside
from tests.helpers.disk import content
from tests.helpers.resuming import transform

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3000, 16)).astype(np.float32)
HEAD, OTHER = Head.fit(X, 8), Head.fit(X[::-1] * np.geomspace(1, 9, 16, dtype=np.float32), 8)
TARGETS = ("s.npy", "s", "s.parquet", "s.arrow")
SMALL = 1 << 12  # bytes of a batch: several parts


@pytest.mark.parametrize(
    "content", [{"precision": "int9"}, {"out_features": "many"}, {"head": 7}, {"head": "../x"}, {"precision": None}]
)
def test_a_damaged_origin_is_an_error(content, tmp_path):
    HEAD.transform_file(X, tmp_path / "s.npy", "int4")
    place = beside(tmp_path / "s.npy")
    place.write_text(json.dumps(json.loads(place.read_text()) | content))
    with pytest.raises(ValueError, match=r"codes\.json is damaged"):
        Codes.load(tmp_path / "s.npy")


def test_a_target_that_is_replaced_has_the_origin_of_the_new_codes(tmp_path):
    for head in (HEAD, OTHER):
        head.transform_file(X, tmp_path / "s.npy", "int4", overwrite=True)
        assert origin_beside(tmp_path / "s.npy").head == head.fingerprint


def test_files_of_two_heads_are_not_read_as_one(tmp_path):
    for number, head in enumerate((HEAD, OTHER)):
        head.transform_file(X, tmp_path / f"{number}.parquet", "int4")
    with pytest.raises(ValueError, match="holds codes of several heads or precisions"):
        Codes.load(tmp_path)


@pytest.fixture
def grown(tmp_path):
    """A function that writes a source of so many rows, as an array or a table."""

    def grown(rows, name="x.npy"):
        if name.endswith("npy"):
            np.save(tmp_path / name, X[:rows])
        else:
            column = pa.FixedSizeListArray.from_arrays(pa.array(X[:rows].ravel()), 16)
            pq.write_table(pa.table({"id": range(rows), "v": column}), tmp_path / name)
        return tmp_path / name

    return grown


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", ["x.npy", "x.parquet"])
@pytest.mark.parametrize("precision", ["float32", "binary"])
def test_a_source_that_grew_is_appended(source, target, precision, grown, tmp_path):
    target, options = tmp_path / target, {"head": HEAD, "batch_bytes": SMALL, "append": True}
    assert transform(grown(1000, source), target, precision, **options).rows == 1000
    for rows in (2300, 2300, 3000):
        done = transform(grown(rows, source), target, precision, **options)
        assert done.rows == rows
        stored = Codes.load(target)
        assert np.allclose(stored.values, HEAD.encode(X[:rows], precision).values, atol=1e-6)
        assert (stored.head, stored.precision) == (HEAD.fingerprint, precision)
    if source == "x.parquet" and target.suffix != ".npy":
        table = pq.read_table(target) if target.suffix != ".arrow" else pa.ipc.open_file(target.read_bytes()).read_all()
        assert table["id"].to_pylist() == list(range(3000))
    assert not list(tmp_path.glob(".*")), "something was left behind"
    assert not target.is_dir() or not list(target.glob(".*"))


@pytest.mark.parametrize("target", TARGETS)
def test_an_append_that_does_not_fit_changes_nothing(target, grown, tmp_path):
    target = tmp_path / target
    HEAD.transform_file(grown(1000), target, "int4")
    before, beside_it = content(target), content(beside(target))
    changed = X[:2000].copy()
    changed[300:600] = X[2000:2300]
    np.save(tmp_path / "end.npy", np.concatenate([X[:990], X[2000:]]))
    np.save(tmp_path / "middle.npy", changed)
    for source, head, precision, message in (
        (
            grown(2000),
            OTHER,
            "int4",
            f"made by head {abbreviate(HEAD.fingerprint)}, not by {abbreviate(OTHER.fingerprint)}",
        ),
        (grown(2000), HEAD, "int8", "holds int4 codes, not int8: pass precision='int4'"),
        (tmp_path / "end.npy", HEAD, "int4", "are not those of the same rows of the source"),
        (tmp_path / "middle.npy", HEAD, "int4", "are not those of the same rows of the source"),
        (X, HEAD, "int4", "append reads the source from a row on: give files"),
        (grown(900), HEAD, "int4", "has 1,000 rows, the source 900"),
    ):
        with pytest.raises(ValueError, match=message):
            head.transform_file(source, target, precision, append=True)
    assert (content(target), content(beside(target))) == (before, beside_it)


def test_codes_that_nothing_is_known_of_are_not_appended_to(grown, tmp_path):
    np.save(tmp_path / "s.npy", HEAD.encode(X[:1000], "int4").values)
    with pytest.raises(ValueError, match=r"nothing beside .*s\.npy says what its codes are"):
        HEAD.transform_file(grown(2000), tmp_path / "s.npy", "int4", append=True)


@pytest.mark.parametrize("target", TARGETS)
def test_an_append_that_was_stopped_goes_on(target, grown, tmp_path, monkeypatch):
    target = tmp_path / target
    options = {"precision": "int4", "head": HEAD, "batch_bytes": SMALL}
    transform(grown(500), target, **options)
    source, reduced, original = grown(3000), [], BaseHead.transform

    def stopped(self, rows):
        reduced.append(len(rows))
        if len(reduced) == 30:
            raise KeyboardInterrupt
        return original(self, rows)

    monkeypatch.setattr(BaseHead, "transform", stopped)
    with pytest.raises(KeyboardInterrupt, match="rows are done, the same call resumes"):
        transform(source, target, append=True, **options)
    there = Codes.load(target)
    assert np.array_equal(there.values, HEAD.encode(X[: len(there)], "int4").values)
    if target.suffix in ("", ".npy"):
        assert len(there) > 1000, "part by part"
    else:
        assert len(there) == 500
    count = len(reduced)
    assert transform(source, target, append=True, **options).rows == 3000
    assert sum(reduced[count:]) < 2500, "of these a thousand were done, and some of the first 500 are compared"
    assert np.array_equal(Codes.load(target).values, HEAD.encode(X, "int4").values)
    assert not list(tmp_path.glob(".*"))
