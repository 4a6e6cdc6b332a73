"""A source, a sink or a disk that changes between two runs or within one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from st_dimreduce import Head
from st_dimreduce.vectors.sinks import Parts
from tests.helpers.disk import no_large_files
from tests.helpers.resuming import HEAD, ROWS, SINKS, WIDTH, X, begin, content, reduce_vectors, write_folder


@pytest.fixture
def source(tmp_path):
    return write_folder(tmp_path / "x")


def touch(path, rows=None):
    before = path.stat().st_mtime_ns
    if rows is not None:
        np.save(path, rows)
    os.utime(path, ns=(before + 1, before + 1))


CHANGES = {
    "another head": (lambda s: None, {"head": Head(HEAD.weight[::-1])}, r"with another head:"),
    "another bias": (lambda s: None, {"head": Head(HEAD.weight, np.zeros(4))}, r"with another head:"),
    "another activation": (lambda s: None, {"head": Head(HEAD.weight, None, "Identity")}, r"with another head:"),
    "another batch": (lambda s: None, {"batch_bytes": 32 * 4 * WIDTH}, r"with another rows of a part:"),
    "another precision": (lambda s: None, {"precision": "int4"}, r"with another precision:"),
    "another content": (lambda s: touch(s / "b.npy", X[1:4301]), {}, r"with another source \(\S+/b.npy differs\):"),
    "another time": (lambda s: touch(s / "a.npy"), {}, r"with another source \(\S+/a.npy differs\):"),
    "one more file": (lambda s: np.save(s / "c.npy", X), {}, r"with another source \(\S+/c.npy differs\):"),
    "an array": (lambda s: None, {"source": X}, r"with another source:"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_match_is_named(name, source, tmp_path, monkeypatch):
    change, options, message = CHANGES[name]
    sink = tmp_path / "sink.npy"
    begin(source, sink, monkeypatch)
    change(source)
    arguments = {"source": source, "head": HEAD, "sink": sink, "precision": "int8", **options}
    with pytest.raises(ValueError, match=message) as caught:
        reduce_vectors(**arguments)
    assert "start anew with overwrite=True (--force)" in str(caught.value)
    assert len(list(tmp_path.glob(".sink.npy.parts/new/part-*"))) == 3, "the parts were touched"
    rows = reduce_vectors(**arguments, overwrite=True).rows
    assert len(np.load(sink)) == rows
    assert rows == (ROWS + 5000 if name == "one more file" else ROWS)


def test_another_column(tmp_path, monkeypatch):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), WIDTH)
    pq.write_table(pa.table({"a": vectors, "b": vectors}), tmp_path / "x.parquet")
    begin(tmp_path / "x.parquet", tmp_path / "sink", monkeypatch, column="a")
    with pytest.raises(ValueError, match="with another column:"):
        reduce_vectors(tmp_path / "x.parquet", HEAD, tmp_path / "sink", "int8", column="b")


def test_what_appears_meanwhile_is_not_replaced(source, tmp_path, monkeypatch):
    finish = Parts.finish
    for sink in (tmp_path / "sink.npy", tmp_path / "sink"):
        monkeypatch.setattr(Parts, "finish", lambda self, *bar, sink=sink: sink.touch() or finish(self, *bar))
        with pytest.raises(FileExistsError, match="exists"):
            reduce_vectors(source, HEAD, sink)
        assert sink.read_bytes() == b""


@pytest.mark.parametrize("change", ["time", "gone", "cut", "new"])
def test_a_source_that_changes_meanwhile(change, source, tmp_path, monkeypatch):
    original, calls = Parts.end_part, []

    def end_part(self):
        original(self)
        calls.append(self)
        if len(calls) == 5:
            path = source / "b.npy"
            if change == "gone":
                path.unlink()
            elif change == "time":
                touch(path)
            elif change == "cut":
                os.truncate(path, 30_000)
            else:
                np.save(source / "c.npy", X)

    monkeypatch.setattr(Parts, "end_part", end_part)
    errors = {
        "time": "b.npy has changed while",
        "gone": "No such file.*b.npy",
        "cut": "b.npy",
        "new": "c.npy has changed",
    }
    with pytest.raises((ValueError, OSError), match=errors[change]):
        reduce_vectors(source, HEAD, tmp_path / "sink.npy")
    assert not (tmp_path / "sink.npy").exists()
    assert (tmp_path / ".sink.npy.parts").exists()


@pytest.mark.parametrize("sink", SINKS)
def test_a_disk_that_fills_up(sink, source, disk, tmp_path):
    disk.remount("size=48k")
    full = rf"{sink} could not be written \(No space left on device\): free some space there and call again"
    with pytest.raises(OSError, match=full) as caught:
        reduce_vectors(source, HEAD, disk.path / sink)
    assert caught.value.errno == errno.ENOSPC
    assert "\n" not in str(caught.value)
    kept = len(list((disk.path / f".{sink}.parts" / "new").glob("part-*")))
    assert kept >= 2
    assert f"the first {512 * kept:,} rows are kept" in str(caught.value)
    disk.remount("size=1m")
    del caught  # holds the frames, and so the maps, of what failed
    assert reduce_vectors(source, HEAD, disk.path / sink).rows == ROWS
    whole = tmp_path / f"whole{Path(sink).suffix}"
    reduce_vectors(source, HEAD, whole)
    assert content(disk.path / sink) == content(whole)


def test_a_file_that_may_not_grow(tmp_path):
    message = r"sink.npy could not be written \(File too large\): fix that and call again$"
    with no_large_files(), pytest.raises(OSError, match=message):
        reduce_vectors(X, HEAD, tmp_path / "sink.npy")
    assert not list(tmp_path.iterdir())
