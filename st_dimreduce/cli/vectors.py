"""Commands for stored vectors: fit a head on them, apply it to them, attach it to their model, judge new ones."""

from pathlib import Path
from typing import Annotated

import typer

from st_dimreduce.cli.main import command, hide_loading_bars, show
from st_dimreduce.cli.options import (
    BadRows,
    Bytes,
    Dim,
    Force,
    Goal,
    InStore,
    Json,
    Keep,
    Output,
    Quiet,
    Seed,
    Source,
    Trust,
    VectorColumn,
)
from st_dimreduce.enums import Objective, OnBadRow, Precision, Verdict


@command
def fit(
    source: Source,
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write the head to.")],
    dim: Dim = None,
    bytes_: Bytes = None,
    keep: Keep = None,
    store: InStore = None,
    objective: Goal = Objective.QUALITY,
    column: VectorColumn = None,
    seed: Seed = 0,
    on_bad_row: BadRows = OnBadRow.RAISE,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Fit a head on stored vectors, without a model or texts."""
    from st_dimreduce.files import check_target
    from st_dimreduce.head import RECORD
    from st_dimreduce.vectors.fit import fit_on_vectors

    check_target(output, force, marker=RECORD)
    head = fit_on_vectors(
        source,
        dim,
        bytes_per_vector=bytes_,
        keep=keep,
        store=store,
        objective=objective,
        column=column,
        seed=seed,
        on_bad_row=on_bad_row,
        show_progress_bar=False if quiet else None,
    )
    head.save(output, overwrite=force)
    if head.record.choice:
        from st_dimreduce.evaluation.report import choice_table

        show(choice_table(head.record.choice), quiet=quiet)
    vectors = f"{head.record.vectors:,} vectors of {head.in_features} dimensions"
    show(f"Wrote {output}: {head.out_features} dimensions from {vectors}.", quiet=quiet)


@command
def apply(
    head: Annotated[str, typer.Argument(help="Folder of a head, or name or folder of a reduced model.")],
    source: Source,
    sink: Annotated[str, typer.Argument(help="Output: a .npy, .parquet or .arrow file, or a folder of part files.")],
    precision: Annotated[
        Precision | None, typer.Option(help="Precision of the stored vectors; the head's if not given.")
    ] = None,
    column: VectorColumn = None,
    on_bad_row: BadRows = OnBadRow.RAISE,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Reduce stored vectors. After an interruption, the same command resumes."""
    from st_dimreduce.models.load import load_head
    from st_dimreduce.vectors.reduce import reduce_vectors

    if not Path(head).is_dir():  # it is downloaded
        hide_loading_bars(quiet)
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
    zeros = f", {done.bad_rows:,} of them stored as zeros" if done.bad_rows else ""
    size = f"{done.rows:,} vectors of {loaded.out_features} dimensions in {precision.value}, {done.bytes:,} bytes"
    show(f"Wrote {sink}: {size}{zeros}; {done.seconds:.1f} s.", quiet=quiet)


@command
def attach(
    head: Annotated[str, typer.Argument(help="Folder of a head.")],
    model: Annotated[str, typer.Argument(help="Name or path of the model that the vectors came from.")],
    output: Output,
    trust_remote_code: Trust = False,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Attach a head to the model that its vectors came from, to encode queries for the reduced vectors."""
    from st_dimreduce.files import check_target
    from st_dimreduce.models.load import load_head, load_model

    check_target(output, force)
    loaded = load_head(head)

    from st_dimreduce.models.attach import attach_head
    from st_dimreduce.portable.save import save_portable

    hide_loading_bars(quiet)
    base = load_model(model, trust_remote_code=trust_remote_code)
    save_portable(attach_head(base, loaded), output, overwrite=force)
    show(f"Wrote {output}: SentenceTransformer({output!r}) loads it.", quiet=quiet)


@command
def drift(
    head: Annotated[str, typer.Argument(help="Folder of a head, or name or folder of a reduced model.")],
    source: Source,
    reference: Annotated[
        str | None,
        typer.Option(help="Vectors that the head is good for, to compare with instead of those of its fit."),
    ] = None,
    column: VectorColumn = None,
    seed: Seed = 0,
    on_bad_row: BadRows = OnBadRow.RAISE,
    json_: Json = None,
    quiet: Quiet = False,
) -> None:
    """Judge whether a head still fits the vectors that arrive: it fits, is to be watched, or should be refitted.

    The exit status is 1 if it should be refitted.
    """
    from st_dimreduce.files import check_place
    from st_dimreduce.models.load import load_head
    from st_dimreduce.vectors.drift import drift as judge

    if json_:
        check_place(json_)
    if not Path(head).is_dir():  # it is downloaded
        hide_loading_bars(quiet)
    found = judge(
        load_head(head),
        source,
        reference=reference,
        column=column,
        seed=seed,
        on_bad_row=on_bad_row,
        show_progress_bar=False if quiet else None,
    )

    from st_dimreduce.evaluation.report import drift_table, write_figures

    if json_:
        write_figures(found.to_dict(), json_)
    show(drift_table(found.to_dict()), f"{found.verdict.value}: {found.explanation}", quiet=quiet)
    if found.verdict is Verdict.REFIT:
        raise typer.Exit(1)
