"""What the documentation shows is so: code, commands, links, and the site builds without a warning."""

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

from st_dimreduce.cli import app

PAGES = sorted([*Path().glob("*.md"), *Path("docs").glob("*.md"), *Path("benchmarks").glob("*.md")], key=str)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)|src=\"([^\"]+)\"")


def blocks(language):
    found = [
        (page, number, code)
        for page in PAGES
        for number, (kind, code) in enumerate(BLOCK.findall(page.read_text()), 1)
        if kind == language
    ]
    assert found
    return [pytest.param(code, id=f"{page}-{number}") for page, number, code in found]


@pytest.mark.parametrize("code", blocks("python"))
def test_python_imports_what_there_is_and_calls_it_as_it_may_be_called(code):
    tree, names = ast.parse(code), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        function = names.get(getattr(call.func, "id", ""))
        if function is not None:
            keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg}
            if "..." not in ast.unparse(call):
                inspect.signature(function).bind(*call.args, **keywords)


def commands(code):
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["st-dimreduce"]:
            yield words[1:]


@pytest.mark.parametrize("code", blocks("bash"))
def test_commands_and_options_exist(code):
    group = typer.main.get_command(app)
    for name, *arguments in commands(code):
        command = group.commands[name]
        context = command.make_context(name, list(arguments), resilient_parsing=False)
        assert context.params


def test_targets_of_make_exist():
    targets = set(re.findall(r"^(\w+):", Path("Makefile").read_text(), re.MULTILINE))
    named = {word for page in PAGES for word in re.findall(r"^make (\w+)", page.read_text(), re.MULTILINE)}
    assert named
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    for link in filter(None, (one or other for one, other in LINK.findall(page.read_text()))):
        target, _, anchor = link.partition("#")
        if target.startswith(("http://", "https://")):
            assert re.fullmatch(r"https://[\w.-]+(/\S*)?", target), link
        elif target:
            assert (page.parent / target).exists(), link
        else:
            titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w]+", "-", title.lower()).strip("-") for title in titles}, link


def test_files_that_are_named_exist():
    pattern = re.compile(r"`((?:benchmarks|examples|docs|tests)/[\w./]+)`")
    named = {path for page in PAGES for path in pattern.findall(page.read_text())}
    assert named
    assert [path for path in sorted(named) if not Path(path).exists()] == []


def test_the_site_builds_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    for name in ("reduce_model", "save_portable", "DimReduce", "write_html"):
        assert f"st_dimreduce.{name}" in api or f".{name}" in api
    assert "https://fonts.googleapis.com" not in api
