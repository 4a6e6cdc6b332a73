"""The house: which wing imports which, as CONTRIBUTING.md shows it."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path("st_dimreduce")
WINGS = re.findall(r"^\| `([a-z_]+)(?:\.py|/)` \|", Path("CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def wing(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Yield the files of the package that a file imports, wherever in it and for whatever reason."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            place = Path(*name.split("."))
            if place.parts[0] == PACKAGE.name and len(place.parts) > 1:
                yield from (file for file in (place.with_suffix(".py"), place / "__init__.py") if file.exists())


def test_the_wings_are_those_that_contributing_shows():
    assert {wing(path) for path in FILES} == set(WINGS)
    assert len(WINGS) == len(set(WINGS)) <= 20


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_wing_imports_only_from_wings_below(path):
    below = WINGS[: WINGS.index(wing(path)) + 1]
    for file in imports(path):
        assert wing(file) in below, f"{path} imports {file}: {wing(file)} is above {wing(path)}"


def test_no_files_import_one_another_in_a_circle():
    TopologicalSorter({path: set(imports(path)) - {path} for path in FILES}).prepare()


def test_a_wings_door_imports_nothing():
    for path in PACKAGE.glob("*/__init__.py"):
        assert path.parent.name == "cli" or not list(imports(path)), path


@pytest.mark.parametrize("wing", [path.parent for path in PACKAGE.glob("*/__init__.py")], ids=str)
def test_unit_tests_mirror_the_wings(wing):
    slow = {"runtimes", "integrations"}  # their tests need the real runtimes and stores
    assert wing.name in slow or list(Path("tests/unit", wing.name).glob("test_*.py")), f"no unit tests of {wing}"
