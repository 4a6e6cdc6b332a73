"""The command line, called within the test's own process."""

from __future__ import annotations

from typer.testing import CliRunner

from st_dimreduce.cli import app


def run(*arguments, stdin=None):
    """Run ``st-dimreduce`` with these arguments on a wide terminal; returns exit code and output."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin, env={"COLUMNS": "200"})
