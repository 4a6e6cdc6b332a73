"""What CI installs is what the package asks for: `make lock` was run after the last change of either."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

# The environment that requirements-ci.txt was made for, whatever this one is.
CI = {"python_version": "3.11", "python_full_version": "3.11.7", "sys_platform": "linux", "platform_machine": "x86_64"}
LINES = Path("requirements-ci.txt").read_text(encoding="utf-8").splitlines()
PINS = [line for line in LINES if not line.startswith("#")]


@pytest.fixture(scope="module")
def locked():
    found = [re.fullmatch(r"([\w.-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line) for line in PINS]
    assert all(found), "a line without a hash"
    return {canonicalize_name(one[1]): Version(one[2]) for one in found}


def test_each_version_that_was_tested_is_the_one_with_a_hash(locked):
    constraints = [line for line in Path("constraints.txt").read_text().splitlines() if not line.startswith("#")]
    asked = [Requirement(line) for line in constraints]
    asked = {canonicalize_name(one.name): one for one in asked if one.marker is None or one.marker.evaluate(CI)}
    assert len(asked) > 40
    assert {name: str(locked.get(name)) for name, one in asked.items() if locked.get(name) not in one.specifier} == {}


@pytest.mark.parametrize("extra", ["", "dev", "test-all"])
def test_whatever_the_tests_need_is_among_the_files_with_a_hash(locked, extra):
    asked = [Requirement(line) for line in requirements(extra)]
    assert asked
    missing = [str(one) for one in asked if locked.get(canonicalize_name(one.name)) not in one.specifier]
    assert missing == []


def requirements(extra):
    """What pyproject.toml asks for with an extra, and with those that it includes."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for line in project["optional-dependencies"][extra] if extra else project["dependencies"]:
        one = Requirement(line)
        if canonicalize_name(one.name) == canonicalize_name(project["name"]):
            found += [line for inner in one.extras for line in requirements(inner)]
        elif one.marker is None or one.marker.evaluate(CI):
            found.append(line)
    return found
