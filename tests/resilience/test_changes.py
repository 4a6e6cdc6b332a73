"""A source, a target or a disk that changes between two runs or within one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from st_dimreduce import Head
from st_dimreduce.vectors import sinks
from st_dimreduce.vectors.sinks import Sink
from tests.helpers.disk import content, no_large_files
from tests.helpers.resuming import (
    HEAD,
    ROWS,
    TARGETS,
    WIDTH,
    X,
    begin,
    rows_done,
    transform,
    write_folder,
)


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
    "another precision": (lambda s: None, {"precision": "int4"}, r"with another precision:"),
    "another content": (lambda s: touch(s / "b.npy", X[1:4301]), {}, r"with another source:"),
    "another time": (lambda s: touch(s / "a.npy"), {}, r"with another source:"),
    "one more file": (lambda s: np.save(s / "c.npy", X), {}, r"with another source:"),
    "an array": (lambda s: None, {"source": X}, r"with another source and"),
    "source and precision": (
        lambda s: touch(s / "a.npy"),
        {"precision": "int4"},
        r"with another source and precision:",
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_match_is_named(target, name, source, tmp_path, monkeypatch):
    change, options, message = CHANGES[name]
    target = tmp_path / target
    begin(source, target, monkeypatch)
    change(source)
    arguments = {"source": source, "head": HEAD, "target": target, "precision": "int8", **options}
    with pytest.raises(ValueError, match=message) as caught:
        transform(**arguments)
    assert "start anew with overwrite=True (--force)" in str(caught.value)
    assert rows_done(target) >= 1536, "the parts were touched"
    rows = transform(**arguments, overwrite=True).rows
    assert rows == (ROWS + 5000 if name == "one more file" else ROWS)
    transform(**(arguments | {"target": tmp_path / f"whole{target.suffix}"}))
    assert content(target) == content(tmp_path / f"whole{target.suffix}")


def test_another_column(tmp_path, monkeypatch):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), WIDTH)
    pq.write_table(pa.table({"a": vectors, "b": vectors}), tmp_path / "x.parquet")
    begin(tmp_path / "x.parquet", tmp_path / "target", monkeypatch, column="a")
    with pytest.raises(ValueError, match="with another column:"):
        transform(tmp_path / "x.parquet", tmp_path / "target", "int8", column="b")


@pytest.mark.parametrize("target", TARGETS)
def test_what_appears_meanwhile_is_not_replaced(target, source, tmp_path, monkeypatch):
    place, target = sinks._place, tmp_path / target
    monkeypatch.setattr(sinks, "_place", lambda *arguments: target.touch() or place(*arguments))
    with pytest.raises(FileExistsError, match="has appeared meanwhile"):
        transform(source, target)
    assert target.read_bytes() == b""


@pytest.mark.parametrize("change", ["time", "gone", "cut", "new"])
def test_a_source_that_changes_meanwhile(change, source, tmp_path, monkeypatch):
    original, calls = Sink.end_part, []

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

    monkeypatch.setattr(Sink, "end_part", end_part)
    errors = {"time": "b.npy changed while", "gone": "No such file.*b.npy", "cut": "b.npy", "new": "c.npy changed"}
    with pytest.raises((ValueError, OSError), match=errors[change]):
        transform(source, tmp_path / "target.npy")
    assert not (tmp_path / "target.npy").exists()
    assert (tmp_path / ".target.npy.parts").exists()


@pytest.mark.parametrize("target", TARGETS)
def test_a_disk_that_fills_up(target, source, disk, tmp_path):
    disk.remount("size=48k")
    full = rf"{target} could not be written \(No space left on device\): free some space there and call again"
    with pytest.raises(OSError, match=full) as caught:
        transform(source, disk.path / target)
    assert caught.value.errno == errno.ENOSPC
    assert "\n" not in str(caught.value)
    done = rows_done(disk.path / target)
    assert done >= 1024
    assert f"{done:,} rows are done" in str(caught.value)
    disk.remount("size=1m")
    del caught  # holds the frames, and so the maps, of what failed
    assert transform(source, disk.path / target).rows == ROWS
    whole = tmp_path / f"whole{Path(target).suffix}"
    transform(source, whole)
    assert content(disk.path / target) == content(whole)


@pytest.mark.parametrize("target", [name for name in TARGETS if "." in name])
def test_a_file_that_may_not_grow(target, tmp_path):
    message = rf"{target} could not be written \(File too large\): fix that and call again$"
    with no_large_files(), pytest.raises(OSError, match=message):
        transform(X, tmp_path / target)
    assert not list(tmp_path.iterdir())
