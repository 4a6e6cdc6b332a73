"""Killed with signal 9: no folder that loads but is wrong, no source changed, the next run succeeds."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from st_dimreduce import Head
from st_dimreduce.files import new_folder
from st_dimreduce.vectors import sinks
from tests.helpers.disk import content
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


@pytest.mark.wings("files.py", "portable", "vectors")
def test_killed_at_fifty_random_moments(tiny, tmp_path):
    jobs = ["save_portable", "reduce", "transform"]
    assert kills("times", jobs, tiny, tmp_path) == dict.fromkeys(jobs, MOMENTS)


@pytest.mark.parametrize(
    "job",
    [
        pytest.param("save_portable", marks=pytest.mark.slow),
        pytest.param("transform to a folder", marks=pytest.mark.slow),
        *(
            pytest.param(job, marks=pytest.mark.wings("files.py", "portable", "vectors"))
            for job in ("save_portable to a new folder", "transform in another's place", "transform to a table")
        ),
    ],
)
def test_killed_before_each_change_of_the_disk(job, tiny, tmp_path):
    assert kills("events", [job], tiny, tmp_path)[job] > 15


def test_a_later_run_clears_up_behind_killed_ones_and_touches_nothing_else(tmp_path):
    def left(name, *inside, age=3600):
        made = tmp_path / name
        for folder in (made, *(made / one for one in inside)):
            folder.mkdir(mode=0o700)
        for folder in inside:
            (made / folder / "modules.json").write_text(folder)
        os.utime(made, (time.time() - age, time.time() - age))
        return made

    left(".model.abandone", "new")
    for name, *inside in ((".model.theonly_", "new", "old"), (".model.abandone",), (".model.working_", "new")):
        made = tmp_path / name if inside == [] else left(name, *inside)
        (made / "st_dimreduce.lock").touch()
        os.utime(made, (0, 0))
    left(".model.nothing_")
    left(".model.fresh123", "new", age=0)
    left(".model.personal", "letters")
    left(".models.abandon", "new")
    (tmp_path / ".model.foreign_").symlink_to(tmp_path / ".models.abandon")
    stays = {".model.fresh123", ".model.personal", ".models.abandon", ".model.foreign_", ".model.working_", "model"}
    with FileLock(tmp_path / ".model.working_" / "st_dimreduce.lock"):
        os.utime(tmp_path / ".model.working_", (0, 0))
        with pytest.raises(FileExistsError, match=r"exists: choose another folder"), new_folder(tmp_path / "model"):
            raise AssertionError("what a killed run had moved aside is there again, and not replaced")
        assert (tmp_path / "model" / "modules.json").read_text() == "old"
        with new_folder(tmp_path / "model", overwrite=True) as folder:
            assert {path.name for path in tmp_path.iterdir()} == stays | {folder.parent.name}, "first: it may need room"
            (folder / "modules.json").write_text("newest")
    assert {path.name for path in tmp_path.iterdir()} == stays
    assert (tmp_path / "model" / "modules.json").read_text() == "newest"


@pytest.mark.wings("files.py")
def test_everything_that_a_thousand_kills_left_is_cleared_up(tmp_path):
    """At whatever moment, that of removing what was replaced included."""
    folder = tmp_path / "model"
    with new_folder(folder) as new:
        for name in range(50):
            (new / f"{name}.json").write_text("old")
        (new / "modules.json").touch()
    killed = 0
    for moment in range(1000):
        child = os.fork()
        if not child:
            try:
                with new_folder(folder, overwrite=True) as new:
                    for name in range(50):
                        (new / f"{name}.json").write_text("new")
                    (new / "modules.json").touch()
            finally:
                os._exit(0)
        time.sleep(moment % 100 / 4000)
        os.kill(child, signal.SIGKILL)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
        assert len(list(folder.iterdir())) == 51, f"at kill {moment}"
    assert killed > 300
    for left in tmp_path.glob(".model.*"):
        os.utime(left, (0, 0))
    with new_folder(folder, overwrite=True) as new:
        (new / "modules.json").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["target.npy", "target.parquet", "target"])
@pytest.mark.parametrize("removed", range(3))
def test_killed_while_it_removes_its_parts(removed, name, overwrite, tmp_path, monkeypatch):
    source, target = tmp_path / "x.npy", tmp_path / name
    np.save(source, np.eye(8, dtype=np.float32))
    left = [removed]

    class Killed(BaseException):
        pass

    def killing(function):
        def remove(*arguments, **options):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return function(*arguments, **options)

        return remove

    def discard(work):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", killing(Path.unlink))
            patch.setattr("st_dimreduce.vectors.sinks.shutil.rmtree", killing(shutil.rmtree))
            original(work)

    original = sinks._discard
    with monkeypatch.context() as patch:
        patch.setattr(sinks, "_discard", discard)
        with contextlib.suppress(Killed):
            Head(np.eye(4, 8)).transform_file(source, target)
    whole = content(target)
    if not overwrite:
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    Head(np.eye(4, 8)).transform_file(source, target, overwrite=overwrite)
    assert content(target) == whole
    assert not (tmp_path / f".{name}.parts").exists()
