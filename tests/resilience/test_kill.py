"""Killed with signal 9: no folder that loads but is wrong, no source changed, the next run succeeds."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from filelock import FileLock

from st_dimreduce import Head, reduce_vectors
from st_dimreduce.files import new_folder
from tests.helpers.killing import LONGEST, MOMENTS
from tests.helpers.tiny import SENTENCES


def kills(how, jobs, tiny, folder):
    """How many runs of each job were killed, and what was left looked at."""
    tiny.save_pretrained(str(folder / "source" / "base"))
    command = [sys.executable, "-m", "tests.helpers.killing", how, ",".join(jobs), str(folder), *SENTENCES]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST + 60, check=False, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: int(count) for name, _, count in (line.rpartition(" ") for line in done.stdout.splitlines())}


@pytest.mark.slow
def test_killed_at_fifty_random_moments(tiny, tmp_path):
    jobs = ["save_portable", "reduce", "apply"]
    assert kills("times", jobs, tiny, tmp_path) == dict.fromkeys(jobs, MOMENTS)


@pytest.mark.slow
def test_killed_before_each_change_of_the_disk(tiny, tmp_path):
    jobs = ["save_portable", "save_portable to a new folder", "apply in another's place", "apply to a folder"]
    found = kills("events", jobs, tiny, tmp_path)
    assert list(found) == jobs
    assert min(found.values()) > 15, found


def test_a_later_run_removes_what_killed_runs_left_and_nothing_else(tmp_path):
    long_ago = time.time() - 3600

    def left(name, *inside, lock=long_ago):
        for folder in (name, *(f"{name}/{one}" for one in inside)):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "file").touch()
        (tmp_path / name / "lock").touch()
        os.utime(tmp_path / name / "lock", (lock, lock))
        return tmp_path / name / "lock"

    left(".model.abandone", "new")
    left(".model.theonly_", "new", "old")
    left(".model.fresh123", "new", lock=time.time())
    left(".model.backups")
    left(".models.abandon")
    (tmp_path / ".model.personal").mkdir()
    with FileLock(left(".model.working_", "new")):
        os.utime(tmp_path / ".model.working_" / "lock", (long_ago, long_ago))
        with new_folder(tmp_path / "model") as folder:
            assert not (tmp_path / ".model.abandone").exists(), "before anything is written: it may fill the disk"
            (folder / "modules.json").touch()
        stays = {".model.theonly_", ".model.fresh123", ".model.backups", ".models.abandon", ".model.personal"}
        assert {path.name for path in tmp_path.iterdir()} == stays | {".model.working_", "model"}
        with new_folder(tmp_path / "model", overwrite=True):
            pass
        assert {path.name for path in tmp_path.iterdir()} == stays - {".model.theonly_"} | {".model.working_", "model"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_while_it_removes_its_parts(overwrite, tmp_path, monkeypatch):
    """In whatever order the disk lists them: here what names the parts goes first, and they stay."""
    source, sink = tmp_path / "x.npy", tmp_path / "sink.npy"
    np.save(source, np.eye(8, dtype=np.float32))

    class Killed(BaseException):
        pass

    def rmtree(folder, **_):
        (folder / "job.json").unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("st_dimreduce.vectors.sinks.shutil.rmtree", rmtree)
        patch.setattr("st_dimreduce.vectors.sinks.Parts.__exit__", lambda *_: None)
        with pytest.raises(Killed):
            reduce_vectors(source, Head(np.eye(4, 8)), sink)
    whole = sink.read_bytes()
    if not overwrite:
        sink.unlink()
    reduce_vectors(source, Head(np.eye(4, 8)), sink, overwrite=overwrite)
    assert len(sink.read_bytes()) == len(whole)
    assert not (tmp_path / ".sink.npy.parts").exists()
