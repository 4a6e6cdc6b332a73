"""``st-dimreduce``: a thin face on the package's functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, ParamSpec

import typer
from rich.console import Console
from transformers.utils import logging as transformers_logging

from st_dimreduce.atomic import check_target
from st_dimreduce.demo import run_demo
from st_dimreduce.dim_reduce import DimReduce
from st_dimreduce.fitting import Objective
from st_dimreduce.heads import fit_on_vectors, load_head, save_head
from st_dimreduce.portable import RECORD, save_portable
from st_dimreduce.recipe import reduce_and_compare
from st_dimreduce.report import choice_table, comparison_table
from st_dimreduce.stack import attach_head
from st_dimreduce.texts import read_texts
from st_dimreduce.vectors import reduce_vectors

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
Source = Annotated[
    str, typer.Argument(help="Vectors: a .npy, .parquet or .arrow file, or a folder of one of these kinds.")
]
Column = Annotated[str | None, typer.Option(help="Column of the vectors in a table that has several.")]
BadRows = Annotated[
    str, typer.Option("--on-bad-row", help="A vector that is NaN, infinite or zero: raise, or pass it as zero.")
]


def _one_line_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what a user can mend into one line on standard error and exit status 2."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        transformers_logging.disable_progress_bar()
        try:
            command(*args, **kwargs)
        except (ValueError, OSError, ModuleNotFoundError) as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as interrupt:
            typer.echo("interrupted: the output was not written", err=True)
            raise typer.Exit(130) from interrupt

    return wrapped


@app.command()
@_one_line_errors
def reduce(
    model: Annotated[str, typer.Argument(help="Name or path of the base model.")],
    texts: Annotated[str, typer.Argument(help="File with a text a line, .jsonl or .csv; - for standard input.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write the reduced model to.")],
    dim: Dim = None,
    bytes_: Bytes = None,
    keep: Keep = None,
    objective: Goal = "quality",
    column: Annotated[str | None, typer.Option(help="Field of .jsonl or .csv that holds the text.")] = None,
    seed: Seed = 0,
    batch_size: Annotated[int, typer.Option(help="Texts encoded at a time.")] = 32,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Fit a smaller model on your texts, say what that cost, and write it for any consumer to load."""
    console = Console(quiet=quiet)
    check_target(output, force)
    sentences = read_texts(texts, column)
    reduced, comparison = reduce_and_compare(
        model,
        sentences,
        dim,
        bytes_per_vector=bytes_,
        keep=keep,
        objective=objective,
        seed=seed,
        batch_size=batch_size,
        show_progress_bar=False if quiet else None,
    )
    save_portable(reduced, output, figures=comparison.to_dict(), overwrite=force)
    choice = DimReduce.from_model(reduced).fitted.get("choice")
    if choice:
        console.print(choice_table(choice))
    title = f"{comparison.documents:,} texts held out of {len(sentences):,}, each searching the others (percent)"
    console.print(comparison_table(comparison, title))
    if objective == Objective.QUALITY:
        console.print("Made to find what people look for; --objective fidelity agrees more with the base model.")
    console.print(f"Wrote {output}: SentenceTransformer({output!r}) loads it.", highlight=False)


@app.command()
@_one_line_errors
def fit(
    source: Source,
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write the head to.")],
    dim: Dim = None,
    bytes_: Bytes = None,
    keep: Keep = None,
    objective: Goal = "quality",
    column: Column = None,
    seed: Seed = 0,
    on_bad_row: BadRows = "raise",
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Fit a head on stored vectors, with no model and no text."""
    console = Console(quiet=quiet)
    check_target(output, force, marker=RECORD)
    head = fit_on_vectors(
        source,
        dim,
        bytes_per_vector=bytes_,
        keep=keep,
        objective=objective,
        column=column,
        seed=seed,
        on_bad_row=on_bad_row,
        show_progress_bar=False if quiet else None,
    )
    save_head(head, output, overwrite=force)
    if "choice" in head.fitted:
        console.print(choice_table(head.fitted["choice"]))
    vectors = f"{head.fitted['vectors']:,} vectors of {head.in_features} dimensions"
    console.print(f"Wrote {output}: {head.out_features} dimensions from {vectors}.", highlight=False)


@app.command()
@_one_line_errors
def apply(
    head: Annotated[str, typer.Argument(help="Folder of a head, or name or folder of a reduced model.")],
    source: Source,
    sink: Annotated[str, typer.Argument(help="A .npy, .parquet or .arrow file, or a folder of part files.")],
    precision: Annotated[
        str | None, typer.Option(help="float32, int8, int4, int2 or binary; what the head was fitted for if not given.")
    ] = None,
    column: Column = None,
    on_bad_row: BadRows = "raise",
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Reduce stored vectors. Interrupted or killed, the same command goes on where it was."""
    loaded = load_head(head)
    precision = precision or loaded.precision
    done = reduce_vectors(
        source,
        loaded,
        sink,
        precision,
        column=column,
        on_bad_row=on_bad_row,
        overwrite=force,
        show_progress_bar=False if quiet else None,
    )
    zeros = f", {done.bad_rows:,} of them without a direction and stored as zeros" if done.bad_rows else ""
    size = f"{done.rows:,} vectors of {loaded.out_features} dimensions in {precision}, {done.bytes:,} bytes{zeros}"
    Console(quiet=quiet).print(f"Wrote {sink}: {size}; {done.seconds:.1f} s.", highlight=False)


@app.command()
@_one_line_errors
def attach(
    head: Annotated[str, typer.Argument(help="Folder of a head.")],
    model: Annotated[str, typer.Argument(help="Name or path of the model that the vectors came from.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write the reduced model to.")],
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Put a head behind its model, to encode queries that agree with the reduced vectors."""
    check_target(output, force)
    save_portable(attach_head(model, load_head(head)), output, overwrite=force)
    Console(quiet=quiet).print(f"Wrote {output}: SentenceTransformer({output!r}) loads it.", highlight=False)


@app.command()
@_one_line_errors
def demo(
    pairs: Annotated[int, typer.Option(help="How many docstrings to search.")] = 2500,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Folder to leave the reduced model in.")] = None,
    force: Force = False,
) -> None:
    """Reduce all-MiniLM-L6-v2 on this machine's docstrings and show what it finds. Downloads nothing."""
    run_demo(Console(), pairs, output, force)
