"""Commands that show what a reduced model is worth."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from st_dimreduce.cli.options import Force, Quiet, command
from st_dimreduce.demo import run_demo
from st_dimreduce.texts import read_texts


@command
def demo(
    pairs: Annotated[int, typer.Option(help="How many docstrings to search.")] = 2500,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Folder to leave the reduced model in.")] = None,
    force: Force = False,
) -> None:
    """Reduce all-MiniLM-L6-v2 on this machine's docstrings and show what it finds. Downloads nothing."""
    run_demo(Console(), pairs, output, force)


@command
def serve(
    model: Annotated[str, typer.Argument(help="Folder or name of the reduced model.")],
    texts: Annotated[str, typer.Option("--texts", help="File with a text a line, .jsonl or .csv.")],
    column: Annotated[str | None, typer.Option(help="Field of .jsonl or .csv that holds the text.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Full model, where it is not the reduced one without its head: name or folder.")
    ] = None,
    port: Annotated[int, typer.Option(help="Port of 127.0.0.1; 0 for any that is free.")] = 8765,
    batch_size: Annotated[int, typer.Option(help="Texts encoded at a time.")] = 32,
    quiet: Quiet = False,
) -> None:
    """Open a page, for this machine only, that searches your texts with the full and the reduced model side by side."""
    from st_dimreduce.serve import Corpus, address, bind, make_app, run  # noqa: PLC0415, optional

    bound = bind(port)  # before the texts are encoded, which takes long
    shown = False if quiet else None
    corpus = Corpus(model, read_texts(texts, column), base=base, batch_size=batch_size, show_progress_bar=shown)
    Console(quiet=quiet).print(f"{address(bound)} is open; Ctrl-C ends it.", highlight=False)
    run(make_app(corpus), bound)
