"""Commands that show what a reduced model is worth."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from st_dimreduce.cli.options import Force, command
from st_dimreduce.demo import run_demo


@command
def demo(
    pairs: Annotated[int, typer.Option(help="How many docstrings to search.")] = 2500,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Folder to leave the reduced model in.")] = None,
    force: Force = False,
) -> None:
    """Reduce all-MiniLM-L6-v2 on this machine's docstrings and show what it finds. Downloads nothing."""
    run_demo(Console(), pairs, output, force)
