"""Codes in files: the head that made them is written with them, and they grow with their source."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from st_dimreduce import Precision, build_index, fit_on_vectors, quantize, reduce_vectors
from st_dimreduce.codes.fingerprint import shown
from st_dimreduce.codes.origin import Origin, beside
from st_dimreduce.vectors.stored import open_codes

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3000, 16)).astype(np.float32)
HEAD, OTHER = fit_on_vectors(X, 8), fit_on_vectors(X[::-1] * np.geomspace(1, 9, 16), 8)
SINKS = ("s.npy", "s", "s.parquet", "s.arrow")
SMALL = 1 << 12  # bytes of a batch: several parts


def codes_in(path):
    return np.concatenate(list(open_codes(path).chunks()))


@pytest.mark.component("FAISS")
@pytest.mark.parametrize("name", SINKS)
def test_codes_of_another_head_are_refused(name, tmp_path):
    reduce_vectors(X, HEAD, tmp_path / name, "int4")
    assert open_codes(tmp_path / name).origin == Origin(Precision.INT4, 8, HEAD.fingerprint)
    with pytest.raises(ValueError, match=f"made by head {shown(HEAD.fingerprint)}, not by {shown(OTHER.fingerprint)}"):
        build_index(tmp_path / name, OTHER, tmp_path / "index", precision="int4")
    assert len(build_index(tmp_path / name, HEAD, tmp_path / "index", precision="int4")) == len(X)


def test_files_of_two_heads_are_not_read_as_one(tmp_path):
    for number, head in enumerate((HEAD, OTHER)):
        reduce_vectors(X, head, tmp_path / f"{number}.parquet", "int4")
    with pytest.raises(ValueError, match=r"1\.parquet holds codes of another head or precision than 0\.parquet"):
        open_codes(tmp_path).chunks().__next__()


@pytest.mark.component("FAISS")
def test_codes_of_other_programs_are_taken_as_they_are(tmp_path):
    np.save(tmp_path / "s.npy", quantize(HEAD.reduce(X), "int4"))
    assert open_codes(tmp_path / "s.npy").origin is None
    assert len(build_index(tmp_path / "s.npy", HEAD, tmp_path / "index", precision="int4")) == len(X)


@pytest.mark.parametrize(
    "content", [{"precision": "int9"}, {"out_features": "many"}, {"head": 7}, {"head": "../x"}, {"precision": None}]
)
def test_a_damaged_origin_is_an_error(content, tmp_path):
    reduce_vectors(X, HEAD, tmp_path / "s.npy", "int4")
    place = beside(tmp_path / "s.npy")
    place.write_text(json.dumps(json.loads(place.read_text()) | content))
    with pytest.raises(ValueError, match="it is damaged"):
        open_codes(tmp_path / "s.npy")


def test_a_sink_that_is_replaced_has_the_origin_of_the_new_codes(tmp_path):
    for head in (HEAD, OTHER):
        reduce_vectors(X, head, tmp_path / "s.npy", "int4", overwrite=True)
        assert open_codes(tmp_path / "s.npy").origin.head == head.fingerprint


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


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("source", ["x.npy", "x.parquet"])
@pytest.mark.parametrize("precision", ["float32", "binary"])
def test_a_source_that_grew_is_appended(source, sink, precision, grown, tmp_path):
    whole = tmp_path / f"whole{(tmp_path / sink).suffix}"
    first = reduce_vectors(grown(1000, source), HEAD, tmp_path / sink, precision, append=True, batch_bytes=SMALL)
    before = sorted(codes_in(tmp_path / sink).tolist())
    assert (first.rows, len(before)) == (1000, 1000)
    for rows in (2300, 2300, 3000):
        done = reduce_vectors(grown(rows, source), HEAD, tmp_path / sink, precision, append=True, batch_bytes=SMALL)
        assert done.rows == rows
    reduce_vectors(grown(3000, source), HEAD, whole, precision, batch_bytes=SMALL)
    assert np.allclose(codes_in(tmp_path / sink), codes_in(whole), atol=1e-6)
    assert open_codes(tmp_path / sink).origin == open_codes(whole).origin
    assert not list(tmp_path.glob(".*")), "something was left behind"


@pytest.mark.parametrize("sink", SINKS)
def test_an_append_that_does_not_fit_changes_nothing(sink, grown, tmp_path):
    sink = tmp_path / sink
    reduce_vectors(grown(1000), HEAD, sink, "int4")
    before = {path: path.read_bytes() for path in [sink, *sink.glob("*"), beside(sink)] if path.is_file()}
    np.save(tmp_path / "mixed.npy", np.concatenate([X[:990], X[2000:]]))
    for source, head, precision, message in (
        (grown(2000), OTHER, "int4", "made by head"),
        (grown(2000), HEAD, "int8", "holds int4 codes, not int8: pass precision='int4'"),
        (tmp_path / "mixed.npy", HEAD, "int4", "are not what this head and precision give for the same rows"),
        (X, HEAD, "int4", "cannot be read from a row on"),
        (grown(900), HEAD, "int4", "has 1,000 rows, the source 900"),
    ):
        with pytest.raises(ValueError, match=message):
            reduce_vectors(source, head, sink, precision, append=True)
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize("sink", SINKS)
def test_an_append_that_was_stopped_goes_on(sink, grown, tmp_path, monkeypatch):
    sink = tmp_path / sink
    reduce_vectors(grown(500), HEAD, sink, "int4", batch_bytes=SMALL)
    source = grown(3000)
    from st_dimreduce.vectors import reduce as reducing

    count, reduce_batch = iter(range(99)), reducing.reduce_batch

    def stopped(*arguments):
        if next(count) == 30:
            raise KeyboardInterrupt
        return reduce_batch(*arguments)

    monkeypatch.setattr(reducing, "reduce_batch", stopped)
    with pytest.raises(KeyboardInterrupt, match="rows are kept"):
        reduce_vectors(source, HEAD, sink, "int4", append=True, batch_bytes=SMALL)
    assert len(codes_in(sink)) == 500
    assert reduce_vectors(source, HEAD, sink, "int4", append=True, batch_bytes=SMALL).rows == 3000
    assert np.array_equal(codes_in(sink), quantize(HEAD.reduce_stored(X), "int4"))
