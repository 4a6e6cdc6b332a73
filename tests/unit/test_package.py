"""The house: which wing imports which, as CONTRIBUTING.md shows it."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path("st_dimreduce")
DOOR = PACKAGE / "__init__.py"
WINGS = re.findall(r"^\| `([a-z_]+)(?:\.py|/)` \|", Path("CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
FILES = sorted(PACKAGE.rglob("*.py"))
INSIDE = [path for path in FILES if path != DOOR]


def wing(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def files_of(path, text):
    """Yield the files of the package that the text of a file imports, wherever in it and for whatever reason."""
    for node in ast.walk(ast.parse(text)):
        names = []
        if isinstance(node, ast.ImportFrom):
            above = (
                [PACKAGE.name, *path.parent.relative_to(PACKAGE).parts][: -node.level + 1 or None] if node.level else []
            )
            module = ".".join([*above, *([node.module] if node.module else [])])
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            place = Path(*name.split("."))
            if place.parts[0] == PACKAGE.name:
                yield from (file for file in (place.with_suffix(".py"), place / "__init__.py") if file.exists())


def imports(path):
    """Yield the files that a file imports; for the door, the modules of the public names, which its stub lists."""
    text = (path.with_suffix(".pyi") if path == DOOR else path).read_text(encoding="utf-8")
    yield from (file for file in files_of(path, text) if file != path)


def test_the_wings_are_those_that_contributing_shows():
    assert {wing(path) for path in INSIDE} == set(WINGS)
    assert len(WINGS) == len(set(WINGS)) <= 20


@pytest.mark.parametrize("path", INSIDE, ids=str)
def test_a_wing_imports_only_from_wings_above_it_in_the_table(path):
    allowed = WINGS[: WINGS.index(wing(path)) + 1]
    for file in imports(path):
        if file == DOOR:
            assert wing(path) == "cli", f"{path} imports a name from st_dimreduce: take it from its module"
        else:
            assert wing(file) in allowed, f"{path} imports {file}, but {wing(file)} comes after {wing(path)}"


def test_no_files_import_one_another_in_a_circle():
    TopologicalSorter({path: set(imports(path)) for path in FILES}).prepare()


def test_the_door_leads_to_every_public_name_and_to_nothing_else():
    stub = ast.parse(DOOR.with_suffix(".pyi").read_text(encoding="utf-8"))
    listed = [alias for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert 10 < len(listed) <= 20
    assert all(alias.asname == alias.name for alias in listed), "a stub exports `X as X`"
    assert list(files_of(DOOR, DOOR.read_text(encoding="utf-8"))) == []


def test_the_package_of_a_wing_imports_nothing():
    for path in PACKAGE.glob("*/__init__.py"):
        assert path.parent.name == "cli" or not list(imports(path)), path


@pytest.mark.parametrize("wing", [path.parent for path in PACKAGE.glob("*/__init__.py")], ids=str)
def test_unit_tests_mirror_the_wings(wing):
    slow = {"integrations"}  # whose tests need the real frameworks and stores
    assert wing.name in slow or list(Path("tests/unit", wing.name).glob("test_*.py")), f"no unit tests of {wing}"
