"""Commands for vectors that exist already."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from st_dimreduce.files import check_target
from st_dimreduce.cli.options import (
    BadRows,
    Bytes,
    Column,
    Dim,
    Force,
    Goal,
    Keep,
    Quiet,
    Seed,
    Source,
    Trust,
    command,
)
from st_dimreduce.models.encoder import load_model
from st_dimreduce.models.heads import fit_on_vectors, load_head, save_head
from st_dimreduce.portable import RECORD, save_portable
from st_dimreduce.evaluation.report import choice_table
from st_dimreduce.models.attach import attach_head
from st_dimreduce.vectors.reduce import reduce_vectors


@command
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


@command
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


@command
def attach(
    head: Annotated[str, typer.Argument(help="Folder of a head.")],
    model: Annotated[str, typer.Argument(help="Name or path of the model that the vectors came from.")],
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write the reduced model to.")],
    trust_remote_code: Trust = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Put a head behind its model, to encode queries that agree with the reduced vectors."""
    check_target(output, force)
    base = load_model(model, trust_remote_code=trust_remote_code)
    save_portable(attach_head(base, load_head(head)), output, overwrite=force)
    Console(quiet=quiet).print(f"Wrote {output}: SentenceTransformer({output!r}) loads it.", highlight=False)
