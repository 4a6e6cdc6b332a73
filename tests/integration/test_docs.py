"""The documentation is true: its code, commands, names and links work, and the site builds without a warning."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import st_dimreduce
from st_dimreduce.cli import app

PAGES = sorted([*Path().glob("*.md"), *Path("docs").rglob("*.md"), *Path("benchmarks").glob("*.md")], key=str)
BENCHMARKS = sorted(Path("benchmarks").glob("*.py"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)|src=\"([^\"]+)\"")


def blocks(language):
    found = [
        (page, number, code)
        for page in PAGES
        for number, (kind, code) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")), 1)
        if kind == language
    ]
    assert found
    return [pytest.param(code, id=f"{page}-{number}") for page, number, code in found]


def is_ours(module):
    return module.partition(".")[0] == "st_dimreduce"


def check_python(code, imported=lambda module: True):
    """Check that the names of imported modules exist, and that functions are called as their signature allows."""
    tree, names = ast.parse(code), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and imported(node.module):
            module = importlib.import_module(node.module)
            names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = names.get(getattr(call.func, "id", ""))
        unpacked = any(isinstance(argument, ast.Starred) for argument in call.args) or any(
            keyword.arg is None for keyword in call.keywords
        )
        if function is not None and not unpacked and "..." not in ast.unparse(call):
            inspect.signature(function).bind(*call.args, **{keyword.arg: None for keyword in call.keywords})
    return names


@pytest.mark.parametrize("code", blocks("python"))
def test_python_imports_what_there_is_and_calls_it_as_it_may_be_called(code):
    check_python(code, is_ours)  # calls of others are run: test_docs_run.py


@pytest.mark.parametrize("path", BENCHMARKS, ids=str)
def test_benchmarks_import_and_call_the_package_as_it_is(path):
    code = path.read_text(encoding="utf-8")
    names = check_python(code, is_ours)
    defined = {node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)}
    assert not defined & set(names), "a benchmark calls the shipped functions, it does not define them again"


def commands(code):
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["st-dimreduce"] and words[1:2] != ["--version"]:
            yield words[1:]


@pytest.mark.parametrize("code", blocks("bash"))
def test_commands_and_options_exist(code):
    group = typer.main.get_command(app)
    for name, *arguments in commands(code):
        command = group.commands[name]
        if hasattr(command, "commands"):  # a group of its own
            name, *arguments = arguments  # noqa: PLW2901
            command = command.commands[name]
        context = command.make_context(name, list(arguments), resilient_parsing=False)
        assert context.params


def test_commands_and_options_named_in_the_text_exist():
    group = typer.main.get_command(app)
    common = {option for parameter in group.params for option in parameter.opts} | {"--help"}
    options = {name: {o for p in command.params for o in p.opts} | common for name, command in group.commands.items()}
    pattern = re.compile(r"`st-dimreduce((?: --[\w-]+)*)(?: (\w[\w-]*)([^`]*))?`")
    named = [found for page in PAGES for found in pattern.findall(page.read_text(encoding="utf-8"))]
    assert named
    for before, name, after in named:
        assert set(re.findall(r"--[\w-]+", before)) <= common, before
        if name not in ("", "COMMAND"):
            assert name in options, name
            assert set(re.findall(r"--[\w-]+", after)) <= options[name], (name, after)


def test_targets_of_make_exist():
    targets = set(re.findall(r"^([\w-]+):", Path("Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        word
        for page in PAGES
        for word in re.findall(r"(?:^|`)make ([\w-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named
    assert named <= targets
    assert {"demo", "test"} <= {
        *re.findall(r"^make ([\w-]+)", Path("README.md").read_text(encoding="utf-8"), re.MULTILINE)
    }


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in filter(None, (one or other for one, other in LINK.findall(text))):
        target, _, anchor = link.partition("#")
        if target.startswith(("http://", "https://")):
            assert re.fullmatch(r"https://[\w.-]+(/\S*)?", target), link
        elif target:
            assert (page.parent / target).exists(), link
        else:
            titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            assert anchor in {re.sub(r"[^\w]+", "-", title.lower()).strip("-") for title in titles}, link


def test_files_that_are_named_exist():
    pattern = re.compile(r"`((?:benchmarks|examples|docs|tests)/[\w./]+)`")
    named = {path for page in PAGES for path in pattern.findall(page.read_text(encoding="utf-8"))}
    assert named
    assert [path for path in sorted(named) if not Path(path).exists()] == []


def test_files_of_the_package_that_contributing_names_exist():
    text = Path("CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:\w+/)*(?:\w+/|\w+\.py))`", text)) - {"site/"}
    assert len(named) > 30
    wings = [Path(), Path("st_dimreduce"), *(path for path in Path("st_dimreduce").iterdir() if path.is_dir())]
    assert [path for path in sorted(named) if not any((wing / path).exists() for wing in wings)] == []


def resolve(name):
    """Import the longest module of a dotted name, and look up the rest of it."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            thing = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if not name.startswith(str(error.name)):
                raise  # an optional dependency
            continue
        for part in parts[end:]:
            thing = getattr(thing, part)
        return thing
    raise AssertionError(name)


def named_things():
    dotted = re.compile(r"`(st_dimreduce(?:\.\w+)+)(?:\(\w*\))?`|^::: (st_dimreduce(?:\.\w+)+)", re.MULTILINE)
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    return sorted({one or other for one, other in dotted.findall(text)} - {"st_dimreduce.json"})  # a file


@pytest.mark.parametrize("name", named_things())
def test_names_of_the_package_exist(name):
    assert resolve(name).__doc__


def test_every_public_name_is_documented_once():
    documented = re.findall(r"^::: st_dimreduce\.(\w+)$", Path("docs/api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(documented) == sorted(st_dimreduce.__all__)


def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    for name in [*st_dimreduce.__all__, "integrations.migrate.migrate"]:
        assert f'id="st_dimreduce.{name}"' in api, name
    assert "https://fonts.googleapis.com" not in api
