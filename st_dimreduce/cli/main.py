"""The Typer application: its global options, how errors are reported, and printing.

A command imports what it calls when it runs, so that ``--help`` and commands that need no model start quickly. What
takes seconds to import comes after the checks that can fail at once.
"""

from __future__ import annotations

import inspect
import json
import shlex
import sys
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


_TABLE_WIDTH = 80  # no table is wider, so that no figure is cut; in a narrower terminal lines wrap

# Typer imports Pydantic to convert a value, None for a flag that is not given: as False it needs no conversion, and the
# help of a command takes half the time.
_FLAGS = dict.fromkeys(("help", "install_completion", "show_completion"), False)

# In the order in which they are used.
_ORDER: tuple[str, ...] = (
    "demo",
    "reduce",
    "compare",
    "serve",
    "encode",
    "search",
    "fit",
    "transform",
    "attach",
    "drift",
    "migrate",
)
_ORDER += ("index", "check", "export", "publish", "info")

_silent = ContextVar("silent", default=False)


class _Group(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=_ORDER.index) if ctx.parent is None else names

    def get_params(self, ctx: Any) -> list[Any]:
        return _flags_alone(super().get_params(ctx))


def _flags_alone(params: list[Any]) -> list[Any]:
    """Have the help show a flag without a type."""
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""
    return params


app = typer.Typer(cls=_Group, pretty_exceptions_enable=False, context_settings={"default_map": _FLAGS})


_BEGIN = """Shrink sentence embeddings. Three ways to begin:

  A model and texts       st-dimreduce reduce MODEL texts.txt --bytes 64 --output small
  Vectors that you store  st-dimreduce fit vectors.parquet --bytes 64 --output head
                          st-dimreduce transform head vectors.parquet small.parquet
  Just looking            st-dimreduce demo

st-dimreduce --help lists all commands, st-dimreduce COMMAND --help the options of one."""


def _version(given: bool) -> None:
    if given:
        from st_dimreduce import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Shrink sentence embeddings: one fitted layer behind any Sentence Transformers model.

    Exit status:

    0: the command succeeded.
    1: check found problems, drift asks for a refit, or an unexpected error occurred.
    2: an error that you can correct, such as a missing file or an invalid option.
    3: nothing kept the share that --keep asked for; the best was written.
    130: interrupted by Ctrl-C.
    """
    if context.invoked_subcommand is None:
        typer.echo(_BEGIN)


class _Command(TyperCommand):
    """A command that reports errors on standard error, in one line, with the exit statuses of :func:`main`."""

    def get_params(self, ctx: Any) -> list[Any]:
        return _flags_alone(super().get_params(ctx))

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):  # the last is of `| head`, which wants no more
            raise
        except Exception as error:
            from st_dimreduce.errors import MissingExtraError, UserError
            from st_dimreduce.untrusted import printable

            message = printable(" ".join(str(error).split()))
            if isinstance(error, (OSError, UserError, MissingExtraError)):
                typer.echo(f"error: {message}", err=True)
                raise typer.Exit(2) from error
            if ctx.find_root().params.get("debug"):
                raise
            name = ctx.command_path.partition(" ")[2]
            again = f"run again with --debug (st-dimreduce --debug {name} ...) to see the traceback"
            typer.echo(f"unexpected error: {type(error).__name__}: {message}; {again}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as interrupt:
            kept = str(interrupt) or "no output is left half written, call again to start anew"
            typer.echo(f"interrupted: {kept}", err=True)
            raise typer.Exit(130) from interrupt


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning in one line, without the place in the code that it comes from."""
    from st_dimreduce.untrusted import printable

    typer.echo(f"warning: {printable(' '.join(str(message).split()))}", err=True)


class Done(NamedTuple):
    """What a command returns: its figures as JSON can hold them, and the exit status."""

    figures: dict[str, Any]
    status: int = 0


Command = Callable[..., Done]


def command(function: Command) -> Callable[..., None]:
    """Add a function to the application as a command, with ``--json``; it returns what is printed then."""
    return app.command(cls=_Command)(_with_json(function))


def group(name: str, about: str) -> Callable[[Command], Callable[..., None]]:
    """Add a group of commands to the application; returns what adds a function to it as :func:`command` does."""
    commands = typer.Typer(cls=_Group, no_args_is_help=True, help=about)
    app.add_typer(commands, name=name)
    return lambda function: commands.command(cls=_Command)(_with_json(function))


def _with_json(function: Command) -> Callable[..., None]:
    """Return a function with one more option; with it, figures are printed in place of tables and lines."""

    @wraps(function)
    def run(*, json_: bool, **arguments: Any) -> None:
        quiet = bool(arguments.get("quiet"))
        token = _silent.set(json_ or quiet)
        if quiet:
            from st_dimreduce.progress import disable_progress_bars

            disable_progress_bars()
        try:
            done = function(**arguments)
        finally:
            _silent.reset(token)
        if json_:
            typer.echo(json.dumps(done.figures, default=str))
        if done.status:
            raise typer.Exit(done.status)

    option = Annotated[bool, typer.Option("--json", help="Print the figures as JSON on standard output, nothing else.")]
    given = inspect.signature(function)
    added = inspect.Parameter("json_", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
    run.__signature__ = given.replace(parameters=[*given.parameters.values(), added])  # type: ignore[attr-defined]
    run.__annotations__ = {**function.__annotations__, "json_": option}
    return run


def hide_loading_bars(quiet: bool = False) -> None:
    """Hide the progress bars of downloading and loading a model, if ``quiet`` or where there is no terminal."""
    if quiet or not sys.stderr.isatty():
        from huggingface_hub.utils import disable_progress_bars
        from transformers.utils import logging

        disable_progress_bars()
        logging.disable_progress_bar()


def console() -> Console:
    """Return a console on standard output that is wide enough for every table and shows [b] as it is."""
    from rich.console import Console

    width = max(_TABLE_WIDTH, Console().width)
    return Console(width=width, markup=False, emoji=False, highlight=False, quiet=_silent.get())


def show(*items: str | Table) -> None:
    """Print lines and tables on standard output unless it is to be silent; of what others have named no character acts.

    A command without ``--quiet`` or ``--json`` begins with what it will do and ends with what to do next.
    """
    from st_dimreduce.untrusted import printable

    for item in () if _silent.get() else items:
        if isinstance(item, str):
            typer.echo("\n".join(map(printable, item.split("\n"))))
        else:
            console().print(item)


def show_row(*cells: object) -> None:
    """Print a line of cells with tabs between them, as :func:`show` prints."""
    from st_dimreduce.untrusted import printable

    if not _silent.get():
        typer.echo("\t".join(printable(str(cell)) for cell in cells))


def show_next(*lines: str) -> None:
    """Print lines of code or commands, ready to paste, with which people go on."""
    show("\nNext:", *(f"  {line}" for line in lines))


def quoted(*words: object) -> str:
    """Return words as a shell reads them."""
    return shlex.join(map(str, words))
