"""The lowest versions that the metadata allows, torch left as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tomllib

from tests.helpers.environments import packages, run_python

pytestmark = pytest.mark.wings()  # of what pyproject.toml asks for

# What these versions themselves ask for, where that is not among our own requirements.
THEIRS = ["tokenizers==0.22.2", "pandas==2.2.3", "pytz==2025.2", "datasets==4.4.1"]
TESTS = [
    "tests/unit/test_dim_reduce.py",
    "tests/unit/test_head.py",
    "tests/unit/codes",
    "tests/unit/fitting/test_closed_form.py",
    "tests/unit/models/test_attach.py",
    "tests/unit/models/test_load.py",
    "tests/unit/portable/test_save.py",
    "tests/unit/portable/test_record.py",
    "tests/unit/cli/test_vectors.py",
]
CODE = """
import sys
from importlib.metadata import version
import pytest
sys.path.insert(0, sys.argv[1])
for requirement in sys.argv[2].split():
    name, wanted = requirement.split("==")
    assert version(name) == wanted, f"{name} is {version(name)}, expected {wanted}"
options = ["-q", "-p", "no:cacheprovider"]
sys.exit(pytest.main([*options, *sys.argv[3:]]))
"""


def lowest():
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    bounds = [re.fullmatch(r"([\w-]+)>=([\w.]+)", requirement) for requirement in project["dependencies"]]
    assert all(bounds), "every dependency has a lowest version"
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound[1] != "torch"]


def test_the_core_works_with_the_lowest_versions_allowed():
    requirements = lowest()
    folder = packages(*requirements, *THEIRS)
    printed = run_python(folder, CODE, Path.cwd(), " ".join(requirements), *TESTS, timeout=900)
    assert int(re.search(r"^(\d+) passed", printed, re.MULTILINE)[1]) > 120
    assert "failed" not in printed
