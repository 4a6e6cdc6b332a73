"""The command line as a whole: help, choices, completion, and what becomes of errors."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
from typer.testing import CliRunner

from st_dimreduce.cli import app
from st_dimreduce.cli.main import hide_loading_bars, show
from st_dimreduce.cli.tables import publication_table
from st_dimreduce.errors import MissingExtraError, UserError
from st_dimreduce.portable.check import Check
from tests.helpers.command import run

COMMAND = str(Path(sys.executable).with_name("st-dimreduce"))


def raising(code):
    """A function that runs a line of code."""
    namespace = {"UserError": UserError, "MissingExtraError": MissingExtraError}
    exec(f"def check(folder, *_):\n    {code}", namespace)  # noqa: S102, the code of the test
    return namespace["check"]


@pytest.fixture
def check_does(monkeypatch):
    """Let ``check`` run a line of code; what it returns are the problems."""

    def replace(code):
        problems_of = raising(code)
        fake = types.SimpleNamespace(check=lambda *given, **_: Check(problems_of(*given), []))
        monkeypatch.setitem(sys.modules, "st_dimreduce.portable.check", fake)

    return replace


def test_help_names_the_commands_and_the_exit_statuses():
    done = run("--help")
    assert done.exit_code == 0
    for words in ("Shrink sentence embeddings", "--debug", "--install-completion", "0: the command succeeded"):
        assert words in done.output
    for status in ("1: check found problems", "2: an error that you can correct", "130: interrupted by Ctrl-C"):
        assert status in done.output
    names = ("demo", "reduce", "compare", "serve", "encode", "search", "fit", "transform", "attach", "drift", "index")
    names += ("check", "export", "publish", "info")
    places = [done.output.index(f"│ {name} ") for name in names]
    assert places == sorted(places)


def test_without_a_command_it_says_how_to_begin():
    done = run()
    assert done.exit_code == 0
    for line in ("st-dimreduce reduce MODEL texts.txt", "st-dimreduce fit vectors.parquet", "st-dimreduce demo"):
        assert line in done.output
    assert run("reduce").exit_code == 2


@pytest.mark.parametrize(
    ("command", "option", "choices"),
    [
        ("reduce", "--objective", ["quality", "fidelity"]),
        ("fit", "--objective", ["quality", "fidelity"]),
        ("fit", "--on-bad-row", ["raise", "zero"]),
        ("transform", "--on-bad-row", ["raise", "zero"]),
        ("transform", "--precision", ["float32", "int8", "int4", "int2", "binary"]),
        ("export", "--precision", ["float32", "int8", "int4", "int2", "binary"]),
        ("compare", "--precision", ["float32", "int8", "int4", "int2", "binary"]),
        ("export", "--variant", ["fp32", "fp16", "int8"]),
    ],
)
def test_choices_are_listed_checked_and_completed(command, option, choices):
    assert "|".join(choices) in run(command, "--help").output
    arguments = {"reduce": ["b", "t", "-o", "o"], "fit": ["x", "-o", "o"], "transform": ["h", "x", "y"]}
    done = run(command, *arguments.get(command, ["a", "b"]), option, "best")
    assert done.exit_code == 2
    assert "'best'" in done.stderr
    assert all(f"'{choice}'" in done.stderr for choice in choices)
    environment = {"_ST_DIMREDUCE_COMPLETE": "complete_bash", "COMP_WORDS": f"st-dimreduce {command} {option} "}
    done = CliRunner().invoke(app, [], env=environment | {"COMP_CWORD": "3"}, prog_name="st-dimreduce")
    assert done.output.split() == choices


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise UserError('size is 0:\\n give 1 or more')", "size is 0: give 1 or more"),
        ("raise FileNotFoundError('no file x')", "no file x"),
        ("open('/no/such/file')", "[Errno 2] No such file or directory: '/no/such/file'"),
        ("import shutil; shutil.rmtree('/no/such')", "[Errno 2] No such file or directory: '/no/such'"),
        ("raise MissingExtraError('plots need matplotlib')", "plots need matplotlib"),
        ("from st_dimreduce.enums import Precision; Precision('int9')", "unknown precision 'int9': choose from"),
    ],
)
@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_what_the_user_can_correct_is_one_line_and_status_2(code, message, debug, check_does):
    check_does(code)
    done = run(*debug, "check", "folder")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_control_characters_and_markup_in_names_are_escaped(check_does, capsys):
    check_does("return ['[/x] :smile: \\x1b[2Jevery reader gives\\ttwo\\nlines', folder]")
    done = run("check", "a[/x]")
    assert (done.exit_code, done.stdout) == (1, "[/x] :smile: \\x1b[2Jevery reader gives\\ttwo\nlines\na[/x]\n")
    check_does("raise UserError('\\x1b[2J[/x]\\udcff')")
    done = run("check", "folder")
    assert (done.exit_code, done.stderr) == (2, "error: \\x1b[2J[/x]\\udcff\n")
    table = publication_table({"[/x] :smile:": 1})
    table.title = "[/y]"
    show(table)
    shown = capsys.readouterr().out
    assert "[/x] :smile:" in shown
    assert "[/y]" in shown


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ValueError('too small')", "ValueError: too small"),
        ("raise ModuleNotFoundError('broken')", "ModuleNotFoundError: broken"),
        ("import torch; torch.optim.SGD([])", "ValueError: optimizer got an empty parameter list"),
        ("import json; json.loads('{')", "JSONDecodeError: Expecting property name"),
        ("int('x')", "ValueError: invalid literal for int()"),
        ("import numpy as np; np.ones(2) @ np.ones(3)", "ValueError: matmul"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise TypeError('two\\nlines')", "TypeError: two lines"),
        ("{}['x']", "KeyError: 'x'"),
        ("assert False", "AssertionError"),
    ],
)
def test_what_the_user_cannot_correct_is_one_line_and_status_1(code, message, check_does):
    check_does(code)
    done = run("check", "folder")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"unexpected error: {message}")
    assert done.stderr.endswith("; run again with --debug (st-dimreduce --debug check ...) to see the traceback\n")
    assert done.stderr.count("\n") == 1
    done = run("--debug", "check", "folder")
    assert done.exit_code == 1
    assert type(done.exception).__name__ == message.partition(":")[0]
    assert done.stderr == ""


def test_debug_shows_the_traceback(tmp_path):
    code = """
import sys, types
def check(folder, *_, **__): raise RuntimeError(f"no {folder}")
sys.modules["st_dimreduce.portable.check"] = types.SimpleNamespace(check=check)
from st_dimreduce.cli import app
app()
"""
    command = [sys.executable, "-c", code, "--debug", "check", "folder"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Traceback (most recent call last):")
    assert "cli/models.py" in done.stderr
    assert done.stderr.endswith("RuntimeError: no folder\n")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise KeyboardInterrupt", "no output is left half written, call again to start anew"),
        ("raise KeyboardInterrupt('7 rows are kept')", "7 rows are kept"),
    ],
)
@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_ctrl_c_is_status_130(code, message, debug, check_does):
    check_does(code)
    done = run(*debug, "check", "folder")
    assert (done.exit_code, done.stdout, done.stderr) == (130, "", f"interrupted: {message}\n")


def test_check_exits_with_1_if_there_is_a_problem(check_does):
    check_does("return ['one', 'two']")
    done = run("check", "folder")
    assert (done.exit_code, done.stdout, done.stderr) == (1, "one\ntwo\n", "")
    check_does("return []")
    assert run("check", "folder").exit_code == 0


@pytest.mark.parametrize(("quiet", "terminal", "shown"), [(0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 0)])
def test_bars_of_loading_are_shown_on_a_terminal(quiet, terminal, shown, monkeypatch):
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    enable_progress_bars()
    logging.enable_progress_bar()
    monkeypatch.setattr(sys, "stderr", types.SimpleNamespace(isatty=lambda: bool(terminal)))
    hide_loading_bars(bool(quiet))
    assert (not are_progress_bars_disabled(), logging.is_progress_bar_enabled()) == (bool(shown), bool(shown))


def test_the_command_is_installed():
    done = subprocess.run([COMMAND, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "Shrink sentence embeddings" in done.stdout


def test_a_pipe_that_closes_early_is_no_error(tmp_path):
    (tmp_path / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "theirs.Module"}]')
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", "from st_dimreduce.cli import app; app()", "check", str(tmp_path)]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
