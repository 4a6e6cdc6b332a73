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

from st_dimreduce.codes.codes import Codes
from st_dimreduce.codes.origin import origin_beside
from st_dimreduce.vectors import sinks
from tests.helpers.disk import content
from tests.helpers.resuming import (
    ROWS,
    TARGETS,
    WIDTH,
    Killed,
    X,
    begin,
    do_not_tidy,
    interrupt,
    reduced_rows,
    rows_done,
    transform,
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


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["x", "tables", "x.feather", "x.arrow"])
@pytest.mark.parametrize(
    ("name", "call", "least"), [("write", 20, 1024), ("end_part", 4, 1500), ("save", 5, 1500), ("_place", 1, ROWS)]
)
def test_a_killed_run_resumes_and_gives_the_same_bytes(target, kind, name, call, least, source, tmp_path, monkeypatch):
    tables(tmp_path / "tables")
    given, target = tmp_path / kind, tmp_path / target
    with monkeypatch.context() as patch:
        interrupt(patch, name, call)
        with pytest.raises(Killed):
            transform(given, target, "int8")
    assert not target.exists()
    done = rows_done(target)
    assert done >= least
    with monkeypatch.context() as patch:
        counted = reduced_rows(patch)
        assert transform(given, target, "int8").rows == ROWS
    assert sum(counted) == ROWS - done
    whole = tmp_path / f"whole{target.suffix}"
    transform(given, whole, "int8")
    assert content(target) == content(whole)
    assert not list(tmp_path.glob(".*")), "parts were left behind"


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("name", "done"), [("job.json", 1536), ("target.npy", ROWS)])
def test_ctrl_c_between_two_changes_keeps_the_rows_that_it_reports(name, done, after, source, tmp_path, monkeypatch):
    target, parts, replace = tmp_path / "target.npy", tmp_path / ".target.npy.parts", Path.replace

    def interrupted(path, to):
        if to.name != name or (name == "job.json" and json.loads(path.read_text())["done"]["rows"] < done):
            return replace(path, to)
        patch.undo()
        if after:
            replace(path, to)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        patch.setattr(Path, "replace", interrupted)
        transform(source, target, overwrite=True)
    if name == "target.npy" and after:  # the target is there
        assert not caught.value.args
        assert not parts.exists()
        done = 0
    else:
        done = rows_done(target)
        assert done >= 1024
        assert f"{done:,} rows are done, the same call resumes" in str(caught.value) or name == "job.json"
    with monkeypatch.context() as patch:
        counted = reduced_rows(patch)
        transform(source, target, overwrite=True)
    assert sum(counted) == ROWS - done
    transform(source, tmp_path / "whole.npy")
    assert content(target) == content(tmp_path / "whole.npy")


@pytest.mark.parametrize("target", TARGETS)
def test_ctrl_c_when_the_target_is_there_keeps_it(target, source, tmp_path, monkeypatch):
    def interrupted(work):
        discard(work)
        raise KeyboardInterrupt

    target, discard = tmp_path / target, sinks._discard
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        patch.setattr(sinks, "_discard", interrupted)
        transform(source, target)
    assert not caught.value.args
    assert not list(tmp_path.glob(".*"))
    whole = tmp_path / f"whole{target.suffix}"
    transform(source, whole)
    assert content(target) == content(whole)


@pytest.mark.parametrize("target", TARGETS)
def test_a_run_killed_while_it_replaces_the_target_can_be_repeated(target, source, tmp_path, monkeypatch):
    target = tmp_path / target
    transform(X[:9], target)
    before = content(target)
    for step in ("old is away", "new is in place"):
        if step == "old is away" and target.suffix:
            continue  # one rename replaces a file
        with monkeypatch.context() as patch:
            do_not_tidy(patch)
            if step == "old is away":
                patch.setattr(sinks, "put_in_place", moved_aside)
            else:
                patch.setattr(sinks, "_discard", killed)
            with pytest.raises(Killed):
                transform(source, target, "int8", overwrite=True)
        if step == "old is away":
            assert not target.exists()
            with pytest.raises(ValueError, match="with another precision"):
                transform(source, target, "int4")
            assert content(target) == before, "what was moved aside has its name again"
        assert transform(source, target, "int8", overwrite=True).rows == ROWS
        before = content(target)
        assert not list(tmp_path.glob(".*"))
    transform(source, tmp_path / f"whole{target.suffix}", "int8")
    assert content(target) == content(tmp_path / f"whole{target.suffix}")


def moved_aside(new, target, _):
    target.rename(new.with_name("old"))
    raise Killed


def killed(*_):
    raise Killed


SCRIPT = """
import sys, time
from st_dimreduce.vectors.sources import NpySource
from tests.helpers.resuming import transform
read = NpySource.read
def slow(*arguments):
    for some in read(*arguments):
        time.sleep(0.005)
        yield some
NpySource.read = slow
transform(sys.argv[1], sys.argv[2], "int4", append=len(sys.argv) > 3)
"""


def kill_after(command, is_time):
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while not is_time():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()


@pytest.mark.parametrize("target", TARGETS)
def test_killed_with_signal_9(target, source, tmp_path):
    target, parts = tmp_path / target, tmp_path / f".{target}.parts"
    command = [sys.executable, "-c", SCRIPT, source, target]
    kill_after(command, lambda: (parts / "job.json").exists() and rows_done(target) >= 1536)
    assert not target.exists()
    assert 1536 <= rows_done(target) < ROWS
    subprocess.run(command, check=True)
    transform(source, tmp_path / f"whole{target.suffix}", "int4")
    assert content(target) == content(tmp_path / f"whole{target.suffix}")
    assert not parts.exists()


@pytest.mark.parametrize("target", ["target.npy", "target"])
def test_an_append_that_is_killed_with_signal_9_leaves_fewer_rows_and_resumes(target, tmp_path):
    source, target = tmp_path / "x.npy", tmp_path / target
    np.save(source, X[:700])
    transform(source, target, "int4")
    np.save(source, X)
    command = [sys.executable, "-c", SCRIPT, source, target, "append"]
    kill_after(command, lambda: len(Codes.load(target)) > 1500)
    done = Codes.load(target)
    assert 1500 < len(done) < ROWS
    assert np.array_equal(done.values, Codes.load(target).values)
    subprocess.run(command, check=True)
    transform(source, tmp_path / "whole.npy", "int4")
    assert np.array_equal(Codes.load(target).values, np.load(tmp_path / "whole.npy"))
    assert origin_beside(target) == origin_beside(tmp_path / "whole.npy")
    assert not list(tmp_path.glob(".*"))


def test_bad_rows_are_counted_over_both_runs(tmp_path, monkeypatch):
    rows = X.copy()
    rows[[3, 600, 4999]] = 0
    np.save(tmp_path / "x.npy", rows)
    target = tmp_path / "target.npy"
    begin(tmp_path / "x.npy", target, monkeypatch, on_bad_row="zero")
    with pytest.raises(ValueError, match="2 rows of the unfinished run are zeros, as on_bad_row='zero' asked for"):
        transform(tmp_path / "x.npy", target, "int8")
    assert transform(tmp_path / "x.npy", target, "int8", on_bad_row="zero").bad_rows == 3


@pytest.mark.parametrize("target", TARGETS)
def test_what_was_written_behind_the_counted_rows_is_written_again(target, source, tmp_path, monkeypatch):
    target = tmp_path / target
    begin(source, target, monkeypatch)
    new = tmp_path / f".{target.name}.parts" / "new"
    if target.suffix == ".npy":
        with (new / "codes.npy").open("ab") as file:
            file.write(b"rest of a part")
    else:
        suffix = target.suffix or ".npy"
        shutil.copy(new / f"part-00000{suffix}", new / f"part-00003{suffix}")
        (new / ".writing").write_bytes(b"rest of a part")
    done, counted = rows_done(target), reduced_rows(monkeypatch)
    transform(source, target, "int8")
    assert sum(counted) == ROWS - done
    transform(source, tmp_path / f"whole{target.suffix}", "int8")
    assert content(target) == content(tmp_path / f"whole{target.suffix}")


def test_another_file_of_the_same_name_size_and_time_is_another_source(tmp_path, monkeypatch):
    source, target = tmp_path / "x.npy", tmp_path / "target.npy"
    np.save(source, X)
    about = source.stat()
    begin(source, target, monkeypatch)
    np.save(tmp_path / "other.npy", X[::-1].copy())
    os.utime(tmp_path / "other.npy", ns=(about.st_atime_ns, about.st_mtime_ns))
    (tmp_path / "other.npy").replace(source)
    assert (source.stat().st_size, source.stat().st_mtime_ns) == (about.st_size, about.st_mtime_ns)
    with pytest.raises(ValueError, match="with another source"):
        transform(source, target, "int8")


def test_a_folder_that_is_not_ours_is_left_alone(source, tmp_path):
    parts = tmp_path / ".target.npy.parts"
    parts.mkdir(parents=True)
    (parts / "thesis.txt").write_text("three years")
    for job in (None, "{", "3", json.dumps({"format": "?", "parts": []})):
        if job is not None:
            (parts / "job.json").write_text(job)
        with pytest.raises(
            ValueError, match=r"\.target\.npy\.parts is in the way and holds no job.json of this version"
        ):
            transform(source, tmp_path / "target.npy")
    assert (parts / "thesis.txt").exists()


@pytest.mark.parametrize("given", ["array", "generator"])
def test_what_is_in_memory_starts_anew(given, tmp_path, monkeypatch):
    def make():
        return X if given == "array" else iter([X])

    target = tmp_path / "target.npy"
    begin(make(), target, monkeypatch)
    counted = reduced_rows(monkeypatch)
    assert transform(make(), target, "int8").rows == ROWS
    assert sum(counted) == ROWS


def test_an_error_keeps_the_parts_of_a_run_that_can_resume(tmp_path):
    rows = X.copy()
    rows[2000] = np.nan
    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(ValueError, match="row 2000 holds NaN"):
        transform(tmp_path / "x.npy", tmp_path / "target")
    parts = tmp_path / ".target.parts"
    assert sorted(path.name for path in parts.rglob("*.npy")) == ["part-00000.npy", "part-00001.npy", "part-00002.npy"]
    assert transform(tmp_path / "x.npy", tmp_path / "target", on_bad_row="zero").bad_rows == 1
    with pytest.raises(ValueError, match="row 2000 holds NaN"):
        transform(rows, tmp_path / "other.parquet")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("target", TARGETS)
def test_parts_that_a_killed_run_had_begun_to_remove_are_made_again(target, source, tmp_path, monkeypatch):
    target = tmp_path / target
    begin(source, target, monkeypatch)
    parts = tmp_path / f".{target.name}.parts"
    next(path for path in sorted((parts / "new").iterdir()) if path.is_file() and path.name != ".writing").unlink()
    counted = reduced_rows(monkeypatch)
    transform(source, target, "int8")
    assert sum(counted) == ROWS
    transform(source, tmp_path / f"whole{target.suffix}", "int8")
    assert content(target) == content(tmp_path / f"whole{target.suffix}")
