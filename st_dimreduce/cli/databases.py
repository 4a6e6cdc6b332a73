"""A command for vectors in a database: write reduced ones beside them."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from st_dimreduce.cli.main import Done, command, hide_loading_bars, quoted, show, show_next
from st_dimreduce.cli.options import BadRows, Goal, Quiet
from st_dimreduce.enums import Objective, OnBadRow, Precision


@command
def migrate(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE-URL",
            help="postgresql://... (pgvector), http://... (Qdrant, with its key in QDRANT_API_KEY), or the folder of "
            "Qdrant's local mode.",
        ),
    ],
    table: Annotated[str, typer.Option("--table", "--collection", help="Table or collection of the full vectors.")],
    head: Annotated[
        str,
        typer.Option("--head", help="Folder of a head, or name or folder of a reduced model; with --bytes, a new one."),
    ],
    bytes_: Annotated[
        int | None,
        typer.Option("--bytes", help="Where --head does not exist: fit one for so many bytes per vector."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="New column, or TABLE.COLUMN of a new table (pgvector), or new collection (Qdrant); the old name and "
            "_reduced if not given.",
        ),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Column, or named vector, of the full vectors; the only one if not given.")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option("--id-column", help="Column of the ids; the primary key if not given.")
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Precision of the stored vectors; the head's if not given.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows per transaction.")] = 500,
    objective: Goal = Objective.QUALITY,
    on_bad_row: BadRows = OnBadRow.RAISE,
    prune: Annotated[bool, typer.Option("--prune", help="Delete codes whose full vector is gone.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, change nothing.")] = False,
    quiet: Quiet = False,
) -> Done:
    """Reduce the vectors in a database, beside the full ones. After an interruption, the same command resumes.

    For pgvector and Qdrant. The full vectors are never changed. Called again later, it reduces what was added.

    Example: st-dimreduce migrate postgresql://localhost/shop --table documents --head head --bytes 256
    """
    from st_dimreduce.integrations.migrate import Plan
    from st_dimreduce.integrations.migrate import migrate as migrate_database

    if bytes_ is None and not Path(head).is_dir():  # it may be downloaded
        hide_loading_bars(quiet)
    plan = Plan(table, column, id_column, to, precision, bytes_, objective, on_bad_row, batch_size, prune)
    done = migrate_database(source, head, plan, dry_run=dry_run)
    show(*done.lines())
    if Path(head).is_dir() and not Path(head, "modules.json").exists():  # not a model itself
        show_next(quoted("st-dimreduce", "attach", head, "MODEL", "--output", "reduced-model"))
    return Done(asdict(done))
