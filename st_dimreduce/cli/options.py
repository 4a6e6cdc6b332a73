"""What the commands share: the options that mean the same in several, and errors in one line."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Annotated, ParamSpec

import typer
from huggingface_hub.utils import disable_progress_bars
from transformers.utils import logging as transformers_logging

P = ParamSpec("P")

app = typer.Typer(
    help="Shrink sentence embeddings: one fitted layer behind any Sentence Transformers model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Force = Annotated[bool, typer.Option("--force", help="Replace the output that is there.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
Dim = Annotated[int | None, typer.Option("--dim", help="Dimensions of a reduced vector; 128 if no size is given.")]
Bytes = Annotated[int | None, typer.Option("--bytes", help="Instead: bytes a stored vector may take.")]
Keep = Annotated[float | None, typer.Option(help="Instead: share to keep of what the full embeddings find.")]
Goal = Annotated[
    str, typer.Option("--objective", help="quality: what people look for; fidelity: what the base model finds.")
]
Seed = Annotated[int, typer.Option(help="Seed: the same seed gives the same result.")]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run code that comes with the base model: only if you have read it.")
]
Source = Annotated[
    str, typer.Argument(help="Vectors: a .npy, .parquet or .arrow file, or a folder of one of these kinds.")
]
Column = Annotated[str | None, typer.Option(help="Column of the vectors in a table that has several.")]
BadRows = Annotated[
    str, typer.Option("--on-bad-row", help="A vector that is NaN, infinite or zero: raise, or pass it as zero.")
]


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Add a command; what its user can mend is one line on standard error and exit status 2."""

    @app.command()
    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        if kwargs.get("quiet") or not sys.stderr.isatty():  # the bars of loading and downloading
            transformers_logging.disable_progress_bar()
            disable_progress_bars()
        try:
            function(*args, **kwargs)
        except (ValueError, OSError, ModuleNotFoundError) as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as interrupt:
            typer.echo(
                f"interrupted: {str(interrupt) or 'no output is left half written, call again to start anew'}", err=True
            )
            raise typer.Exit(130) from interrupt

    return wrapped
