"""A plugin of pytest for `make test-changed`: of tests marked ``wings``, those run whose wing was changed.

The others are named and left out, as are those for which no time is left.
"""

from __future__ import annotations

import math
import os
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ALWAYS = ("pyproject.toml", "constraints.txt")
LEFT_OUT = pytest.StashKey[list]()


def place(name):
    """Return the path in the repository of a wing, ``"codes"`` or ``"files.py"``, or of another file or folder."""
    return name if (ROOT / name).exists() else f"st_dimreduce/{name}"


def changed_files(root=ROOT):
    """Return the files that differ from main, or on main from the commit before; None where that cannot be told.

    ``ST_DIMREDUCE_BASE`` names another commit to compare with.
    """

    def git(*arguments):
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    base = os.environ.get("ST_DIMREDUCE_BASE") or git("merge-base", "HEAD", "origin/main")
    if base in (None, git("rev-parse", "HEAD")):
        base = git("rev-parse", "--verify", "--quiet", "HEAD~1")
    names = None if base is None else git("diff", "--name-only", "--no-renames", base)
    return None if names is None else set(names.splitlines())


def touched(wings, test_file, files):
    """Whether a change of these files asks for the tests of these wings; it does where the files are not known."""
    if files is None:
        return True
    places = [*ALWAYS, test_file, *map(place, wings)]
    return any(file == path or file.startswith(f"{path}/") for file in files for path in places)


def pytest_addoption(parser):
    parser.addoption("--until", type=float, default=math.inf, help="begin no test after this second of the clock")


def pytest_collection_modifyitems(config, items):
    files, chosen, left_out = changed_files(), [], []
    for item in items:
        marks = list(item.iter_markers("wings"))
        wings = [wing for mark in marks for wing in mark.args]
        name = item.path.relative_to(config.rootpath).as_posix()
        (chosen if marks and touched(wings, name, files) else left_out).append(item)
    items[:] = chosen
    config.hook.pytest_deselected(items=left_out)
    config.stash[LEFT_OUT] = sorted({item.path.name for item in left_out if item.get_closest_marker("wings")})
    if hasattr(config, "workeroutput"):
        config.workeroutput["left out"] = config.stash[LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left out", [])


def pytest_runtest_setup(item):
    if time.time() > item.config.getoption("until"):
        pytest.skip("left out, no time was left: make test-slow runs it")


def pytest_terminal_summary(terminalreporter, config):
    if names := config.stash.get(LEFT_OUT, []):
        terminalreporter.section("left out: what they test was not changed (make test-slow runs them)")
        terminalreporter.line(", ".join(names))
