"""What CI leaves out: tests of wings that were not changed, and those for which no time is left."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.changes import ROOT, changed_files, place, touched

MARKS = {
    name: path
    for path in sorted(Path("tests").rglob("test_*.py"))
    for arguments in re.findall(r"mark\.wings\(([^)]*)\)", path.read_text(encoding="utf-8"))
    for name in re.findall(r'"([^"]+)"', arguments)
}


def git(folder, *arguments):
    options = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *options, *arguments], cwd=folder, check=True, capture_output=True)


def commit(folder, name):
    (folder / name).write_text(name)
    git(folder, "add", name)
    git(folder, "commit", "--message", name)


@pytest.mark.parametrize("name", MARKS)
def test_a_wing_that_a_mark_names_is_there(name):
    assert (ROOT / place(name)).exists(), f"{MARKS[name]} names {name}"


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("st_dimreduce/integrations/mteb.py", True),
        ("examples/stores/faiss_.py", True),
        ("pyproject.toml", True),
        ("tests/integration/test_x.py", True),
        ("st_dimreduce/integrations_too.py", False),
        ("README.md", False),
    ],
)
def test_a_wing_is_touched_by_its_files_its_tests_and_the_dependencies(file, expected):
    assert touched(["integrations", "examples/stores"], "tests/integration/test_x.py", {file}) is expected
    assert touched(["integrations"], "tests/integration/test_x.py", None), "nobody knows what was changed"


def test_a_branch_is_compared_with_main_and_main_with_the_commit_before(tmp_path, monkeypatch):
    monkeypatch.delenv("ST_DIMREDUCE_BASE", raising=False)
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    origin.mkdir()
    assert changed_files(tmp_path) is None
    git(origin, "init", "--initial-branch", "main")
    commit(origin, "one")
    assert changed_files(origin) is None, "the first commit"
    for name in ("two", "three"):
        commit(origin, name)
    assert changed_files(origin) == {"three"}
    git(tmp_path, "clone", origin, clone)
    assert changed_files(clone) == {"three"}
    git(clone, "checkout", "-b", "branch")
    for name in ("four", "five"):
        commit(clone, name)
    assert changed_files(clone) == {"four", "five"}
    (clone / "one").write_text("not committed")
    assert changed_files(clone) == {"one", "four", "five"}
    monkeypatch.setenv("ST_DIMREDUCE_BASE", "HEAD~1")
    assert changed_files(clone) == {"one", "five"}


TESTS = """
import pytest

@pytest.mark.wings("integrations")
def test_changed(): pass

@pytest.mark.wings("codes")
def test_not_changed(): raise AssertionError

def test_without_a_mark(): raise AssertionError
"""


@pytest.mark.parametrize(("until", "outcome"), [([], "1 passed"), (["--until", "1"], "1 skipped")])
def test_tests_of_what_was_not_changed_are_named_and_left_out(until, outcome, tmp_path):
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "plugin.py").write_text(
        "import tests.helpers.changes as changes\n"
        "changes.changed_files = lambda: {'st_dimreduce/integrations/mteb.py'}\n"
        "from tests.helpers.changes import *\n"
    )
    options = ["-q", "-rs", "-p", "xdist.plugin", "-p", "plugin", "-p", "no:cacheprovider", "--numprocesses", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--rootdir", tmp_path, *until, tmp_path],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert outcome in done.stdout
    assert "left out: what they test was not changed" in done.stdout
    assert ("no time was left" in done.stdout) == bool(until)
