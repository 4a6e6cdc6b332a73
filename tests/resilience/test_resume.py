"""A run that is killed, runs out of disk or meets a change goes on, or says why it does not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import feather

from st_dimreduce.vectors.sinks import NpyFile, Parts
from tests.helpers.resuming import (
    HEAD,
    ROWS,
    SINKS,
    WIDTH,
    Killed,
    X,
    begin,
    content,
    interrupt,
    reduce_vectors,
    reduced_rows,
    write_folder,
)


@pytest.fixture
def source(tmp_path):
    return write_folder(tmp_path / "x")


def tables(folder):
    folder.mkdir()
    whole = pa.table({"id": np.arange(ROWS), "v": pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), WIDTH)})
    pq.write_table(whole[:1234], folder / "a.parquet", row_group_size=300)
    pq.write_table(whole[1234:], folder / "b.parquet", row_group_size=1000)
    feather.write_feather(whole, folder.parent / "x.feather", chunksize=333)
    with pa.ipc.new_stream(str(folder.parent / "x.arrow"), whole.schema) as writer:
        writer.write_table(whole, max_chunksize=200)
    return folder


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("kind", ["x", "tables", "x.feather", "x.arrow"])
@pytest.mark.parametrize(
    ("method", "call", "complete"), [("write", 60, 7), ("end_part", 4, 3), ("finish", 1, 9), ("_check_sink", 2, 10)]
)
def test_a_run_goes_on_where_it_was(sink, kind, method, call, complete, source, tmp_path, monkeypatch):
    tables(tmp_path / "tables")
    given, sink = tmp_path / kind, tmp_path / sink
    with monkeypatch.context() as patch:
        interrupt(patch, method, call)
        with pytest.raises(Killed):
            reduce_vectors(given, HEAD, sink, "int8")
    assert not sink.exists()
    with monkeypatch.context() as patch:
        counted = reduced_rows(patch)
        done = reduce_vectors(given, HEAD, sink, "int8")
    assert sum(counted) == max(ROWS - 512 * complete, 0)
    assert done.rows == ROWS
    whole = tmp_path / f"whole{sink.suffix}"
    reduce_vectors(given, HEAD, whole, "int8")
    assert content(sink) == content(whole)
    assert not list(tmp_path.glob(".*")), "parts were left behind"


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("name", "kept"), [("part-00002.npy", 1024), ("job.json", 1536), ("sink.npy", ROWS)])
def test_ctrl_c_between_two_changes_keeps_what_it_says(name, kept, after, source, tmp_path, monkeypatch):
    sink, parts, replace = tmp_path / "sink.npy", tmp_path / ".sink.npy.parts", Path.replace

    def interrupted(path, target):
        too_early = name == "job.json" and not (parts / "new" / "part-00002.npy").exists()
        if target.name != name or too_early:
            return replace(path, target)
        patch.undo()
        if after:
            replace(path, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        patch.setattr(Path, "replace", interrupted)
        reduce_vectors(source, HEAD, sink, overwrite=True)
    if name == "sink.npy" and after:  # the sink is there
        assert not caught.value.args
        assert not parts.exists()
        kept = 0
    else:
        assert f"{kept:,} rows are kept, call again as before to go on" in str(caught.value)
        assert sorted(path.name for path in parts.iterdir()) == ["job.json", "new"]
        assert len(list(parts.glob("new/*"))) == (1 if name == "sink.npy" else kept // 512)
    with monkeypatch.context() as patch:
        counted = reduced_rows(patch)
        reduce_vectors(source, HEAD, sink, overwrite=True)
    assert sum(counted) == ROWS - kept
    reduce_vectors(source, HEAD, tmp_path / "whole.npy")
    assert content(sink) == content(tmp_path / "whole.npy")


@pytest.mark.parametrize("sink", SINKS)
def test_ctrl_c_when_the_sink_is_there_keeps_it(sink, source, tmp_path, monkeypatch):
    def interrupted(folder, **options):
        patch.undo()
        shutil.rmtree(folder, **options)
        raise KeyboardInterrupt

    sink = tmp_path / sink
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        patch.setattr(shutil, "rmtree", interrupted)
        reduce_vectors(source, HEAD, sink)
    assert not caught.value.args
    assert not list(tmp_path.glob(".*"))
    whole = tmp_path / f"whole{sink.suffix}"
    reduce_vectors(source, HEAD, whole)
    assert content(sink) == content(whole)


@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("exchanges", [True, False])
def test_killed_while_it_puts_the_sink_in_place(sink, exchanges, source, tmp_path, monkeypatch):
    """Where the system cannot exchange two folders in one step there is a moment between two."""
    sink = tmp_path / sink
    reduce_vectors(X[:9], HEAD, sink)
    before = content(sink)
    if not exchanges:
        monkeypatch.setattr("st_dimreduce.files._EXCHANGES", {})
    for step in ("joined", "old is away", "new is in place"):
        if step == "old is away" and (sink.suffix or exchanges):
            continue  # one step replaces it
        with monkeypatch.context() as patch:
            patch.setattr(Parts, "__exit__", lambda *_: None)
            if step == "joined":
                patch.setattr("st_dimreduce.vectors.sinks.put_in_place", killing(None, "", sink))
            elif step == "old is away":
                patch.setattr(Path, "rename", killing(Path.rename, "new", sink))
                patch.setattr("st_dimreduce.files.give_back", lambda *_: None)
            else:
                patch.setattr(shutil, "rmtree", killing(shutil.rmtree, ".parts", sink))
            with pytest.raises(Killed):
                reduce_vectors(source, HEAD, sink, "int8", overwrite=True)
        if step == "old is away":
            assert not sink.exists()
            with monkeypatch.context() as patch, pytest.raises(ValueError, match="with another precision"):
                reduce_vectors(source, HEAD, sink, "int4")
            assert content(sink) == before, "what was moved aside has its name again"
        done = reduce_vectors(source, HEAD, sink, "int8", overwrite=True)
        before = content(sink)
        assert done.rows == ROWS
        assert not list(tmp_path.glob(".*"))
    reduce_vectors(source, HEAD, tmp_path / f"whole{sink.suffix}", "int8")
    assert content(sink) == content(tmp_path / f"whole{sink.suffix}")


def killing(original, word, sink):
    def function(path, *arguments, **options):
        if word in Path(path).name:
            raise Killed
        return original(path, *arguments, **options)

    return function


SCRIPT = """
import sys, time
from st_dimreduce.vectors.sources import NpySource
from tests.helpers.resuming import HEAD, reduce_vectors
chunks = NpySource.chunks
def slow(*arguments):
    for chunk in chunks(*arguments):
        time.sleep(0.005)
        yield chunk
NpySource.chunks = slow
reduce_vectors(sys.argv[1], HEAD, sys.argv[2], "int4")
"""


def test_killed_with_signal_9(source, tmp_path):
    sink, parts = tmp_path / "sink.npy", tmp_path / ".sink.npy.parts"
    command = [sys.executable, "-c", SCRIPT, source, sink]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while len(list(parts.glob("new/part-*"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not sink.exists()
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("new/part-*")}
    assert 3 <= len(kept) < 10
    subprocess.run(command, check=True)
    reduce_vectors(source, HEAD, tmp_path / "whole.npy", "int4")
    assert content(sink) == content(tmp_path / "whole.npy")
    assert not parts.exists()


def test_bad_rows_are_counted_over_both_runs(source, tmp_path, monkeypatch):
    rows = X.copy()
    rows[[3, 600, 4999]] = 0
    np.save(tmp_path / "x.npy", rows)
    sink = tmp_path / "sink.npy"
    begin(tmp_path / "x.npy", sink, monkeypatch, on_bad_row="zero")
    with pytest.raises(ValueError, match="was begun with on_bad_row='zero' and holds 2 bad rows as zeros"):
        reduce_vectors(tmp_path / "x.npy", HEAD, sink, "int8")
    assert reduce_vectors(tmp_path / "x.npy", HEAD, sink, "int8", on_bad_row="zero").bad_rows == 3


@pytest.mark.parametrize("damage", ["cut", "zeros"])
def test_a_part_that_is_not_whole_is_made_again(damage, source, tmp_path, monkeypatch):
    sink = tmp_path / "sink.npy"
    begin(source, sink, monkeypatch)
    second = tmp_path / ".sink.npy.parts/new/part-00001.npy"
    whole = second.read_bytes()
    second.write_bytes(whole[:-1] if damage == "cut" else whole[:128] + bytes(len(whole) - 128))
    counted = reduced_rows(monkeypatch)
    reduce_vectors(source, HEAD, sink, "int8")
    assert sum(counted) == ROWS - 512
    reduce_vectors(source, HEAD, tmp_path / "whole.npy", "int8")
    assert content(sink) == content(tmp_path / "whole.npy")


@pytest.mark.parametrize("damage", ["none", "longer", "zeros", "header"])
def test_a_join_goes_on_where_it_was_and_trusts_nothing(damage, source, tmp_path, monkeypatch):
    sink, parts = tmp_path / "sink.npy", tmp_path / ".sink.npy.parts/new"
    with monkeypatch.context() as patch:
        interrupt(patch, "_save", 16)  # one at the start, one a part, then one a part that is joined
        with pytest.raises(Killed):
            reduce_vectors(source, HEAD, sink, "int8")
    whole = parts / "whole.npy"
    assert sorted(path.name for path in parts.glob("part-*"))[0] == "part-00004.npy", "joined parts take no room"
    assert whole.stat().st_size == 128 + 5 * 512 * 4, "the fifth is joined, and nothing says so"
    if damage == "longer":
        with whole.open("ab") as file:
            file.write(b"rest of a part")
    elif damage == "zeros":
        with whole.open("r+b") as file:
            file.seek(128 + 512 * 4)
            file.write(bytes(100))
    elif damage == "header":
        whole.write_bytes(whole.read_bytes().replace(b"|i1", b"|u1"))
        (parts / "part-00007.npy").write_bytes(bytes(128) + (parts / "part-00007.npy").read_bytes()[128:])
    with monkeypatch.context() as patch:
        counted = reduced_rows(patch)
        reduce_vectors(source, HEAD, sink, "int8")
    assert sum(counted) == {"zeros": ROWS - 512, "header": ROWS - 7 * 512}.get(damage, 0)
    reduce_vectors(source, HEAD, tmp_path / "whole.npy", "int8")
    assert content(sink) == content(tmp_path / "whole.npy")
    assert not list(tmp_path.glob(".*"))


def test_another_file_of_the_same_name_size_and_time_is_another_source(tmp_path, monkeypatch):
    source, sink = tmp_path / "x.npy", tmp_path / "sink.npy"
    np.save(source, X)
    about = source.stat()
    begin(source, sink, monkeypatch)
    np.save(tmp_path / "other.npy", X[::-1].copy())
    os.utime(tmp_path / "other.npy", ns=(about.st_atime_ns, about.st_mtime_ns))
    (tmp_path / "other.npy").replace(source)
    assert (source.stat().st_size, source.stat().st_mtime_ns) == (about.st_size, about.st_mtime_ns)
    with pytest.raises(ValueError, match="with another source"):
        reduce_vectors(source, HEAD, sink, "int8")


def test_a_sink_takes_its_room_once(tmp_path, monkeypatch):
    source, sink = tmp_path / "x.npy", tmp_path / "sink.npy"
    np.save(source, X)
    most, append = [0], NpyFile.append

    def measured(self, part):
        append(self, part)
        most[0] = max(most[0], sum(file.stat().st_size for file in tmp_path.glob(".sink.npy.parts/new/*")))

    monkeypatch.setattr(NpyFile, "append", measured)
    size = reduce_vectors(source, HEAD, sink, "int8").bytes
    assert size <= most[0] <= size + 12 * (512 * 4 + 128) // 10 + 10 * 128


def test_a_folder_that_is_not_ours_is_left_alone(source, tmp_path):
    parts = tmp_path / ".sink.npy.parts"
    (parts / "new").mkdir(parents=True)
    for job in (None, "{", "3", json.dumps({"format": "?", "parts": []})):
        if job is not None:
            (parts / "job.json").write_text(job)
        with pytest.raises(ValueError, match=r"\.sink\.npy\.parts is in the way and holds no job.json of this version"):
            reduce_vectors(source, HEAD, tmp_path / "sink.npy")
    assert parts.exists()


@pytest.mark.parametrize("given", ["array", "generator"])
def test_what_is_in_memory_starts_anew(given, tmp_path, monkeypatch):
    def make():
        return X if given == "array" else iter([X])

    sink = tmp_path / "sink.npy"
    begin(make(), sink, monkeypatch)
    counted = reduced_rows(monkeypatch)
    assert reduce_vectors(make(), HEAD, sink, "int8").rows == ROWS
    assert sum(counted) == ROWS


def test_an_error_keeps_what_can_go_on_and_nothing_else(source, tmp_path):
    rows = X.copy()
    rows[2000] = np.nan
    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(ValueError, match="row 2000 holds NaN"):
        reduce_vectors(tmp_path / "x.npy", HEAD, tmp_path / "sink.npy")
    parts = tmp_path / ".sink.npy.parts"
    assert sorted(path.name for path in parts.rglob("*.npy")) == ["part-00000.npy", "part-00001.npy", "part-00002.npy"]
    assert reduce_vectors(tmp_path / "x.npy", HEAD, tmp_path / "sink.npy", on_bad_row="zero").bad_rows == 1
    with pytest.raises(ValueError, match="row 2000 holds NaN"):
        reduce_vectors(rows, HEAD, tmp_path / "other.npy")
    assert not list(tmp_path.glob(".*"))
