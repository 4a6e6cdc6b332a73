"""Long runs, at short: nothing grows as the same is done over and over, and whatever would grow is seen to.

`python -m benchmarks.soak` does the same for an hour.
"""

from __future__ import annotations

import mmap
import threading
import time

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.wings("files.py", "codes", "models", "vectors", "apps")]


@pytest.fixture(scope="module")
def soak():
    from benchmarks import soak

    return soak


@pytest.fixture
def flawed(soak, tmp_path):
    """Watch a job that does this in each of its rounds, and return its problems."""

    def flawed(work, answers=lambda: b"the same", rounds=0.002):
        class Flawed(soak.Job):
            def work(self):
                work()
                time.sleep(rounds)
                return 1

            def answers(self):
                return answers()

        return soak.watch(Flawed(tmp_path), 4).problems()

    return flawed


def test_what_keeps_nothing_has_no_problem(flawed, tmp_path):
    def work():
        (tmp_path / "new").write_bytes(bytes(100_000))
        (tmp_path / "new").unlink()

    assert flawed(work) == []


def test_a_list_that_grows_is_seen(flawed):
    kept = []

    def work():
        # New pages: a list of bytes may lie in what earlier tests of this process have freed.
        kept.append(mmap.mmap(-1, 10_000_000))
        kept[-1].write(bytes(10_000_000))

    (problem,) = flawed(work)
    assert problem.startswith("memory grows by ")


def test_a_file_that_is_not_closed_is_seen(flawed, tmp_path):
    kept = []
    (tmp_path / "read").write_text("read")
    try:
        (problem,) = flawed(lambda: kept.append((tmp_path / "read").open()), rounds=0.1)
    finally:
        for file in kept:
            file.close()
    assert problem.startswith("open files: ")


def test_a_thread_that_does_not_end_is_seen(flawed):
    end = threading.Event()
    try:
        (problem,) = flawed(lambda: threading.Thread(target=end.wait).start(), rounds=0.1)
    finally:
        end.set()
    assert problem.startswith("threads: ")


def test_a_temporary_file_that_is_left_is_seen(flawed, tmp_path):
    def work():
        (tmp_path / f".{time.monotonic_ns()}").touch()

    (problem,) = flawed(work, rounds=0.1)
    assert "files were left, such as ." in problem


def test_an_answer_that_changes_is_seen(flawed):
    assert flawed(lambda: None, lambda: str(time.monotonic_ns()).encode()) == ["answers changed"]


def test_nothing_grows_and_nothing_changes(soak):
    found = soak.soak_all(list(soak.JOBS), minutes=0.5)
    assert {name: one.problems() for name, one in found.items() if one.problems()} == {}
    assert min(one.operations for one in found.values()) >= 10
    assert len(soak.report(0.5, found)) == 5
