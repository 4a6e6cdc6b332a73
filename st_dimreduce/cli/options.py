"""Options and arguments that several commands share, and what several of them say of a head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from st_dimreduce.cli.main import show
from st_dimreduce.enums import Objective, OnBadRow, Precision, Store, Variant
from st_dimreduce.errors import UserError

if TYPE_CHECKING:
    from st_dimreduce.record import FitRecord

_FEW = 1000  # texts: with fewer, what is chosen depends on which ones are held out

Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")]
Dim = Annotated[int | None, typer.Option("--dim", help="Dimension of the reduced embeddings; 128 if no size is given.")]
Bytes = Annotated[int | None, typer.Option("--bytes", help="Instead of --dim: bytes per stored vector.")]
Keep = Annotated[
    float | None,
    typer.Option(help="Instead of --dim: retention to reach, as a share of the full embeddings' quality such as 0.99."),
]
InStore = Annotated[
    Store | None,
    typer.Option("--store", help="With --bytes or --keep: the vector store, whose types alone are considered."),
]
Stored = Annotated[
    Precision | None,
    typer.Option(
        "--precision", help="Precision to store the vectors in; with --bytes or --keep the only one that is considered."
    ),
]
Device = Annotated[str | None, typer.Option("--device", help="Where to encode, such as cuda; the best there is.")]
Goal = Annotated[
    Objective,
    typer.Option(
        "--objective", help="Fit for retrieval quality, or for fidelity: the neighbours that the base model finds."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Random seed: the same seed gives the same result.")]
Trust = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run code that comes with the base model. Read that code before."),
]
TextColumn = Annotated[str | None, typer.Option("--column", help="Field of .jsonl or .csv that holds the texts.")]
BatchSize = Annotated[int, typer.Option(help="Number of texts encoded at a time.")]
Output = Annotated[str, typer.Option("--output", "-o", help="Folder to write the reduced model to.")]
Source = Annotated[
    str, typer.Argument(help="Vectors: a .npy, .parquet or .arrow file, or a folder of files of one of these formats.")
]
VectorColumn = Annotated[str | None, typer.Option("--column", help="Column of the vectors, in a table with several.")]
BadRows = Annotated[
    OnBadRow,
    typer.Option(
        "--on-bad-row",
        help="What to do with a vector that is NaN, infinite or zero: raise an error, or leave it out of the fit and "
        "store it as zeros.",
    ),
]
BestEffort = Annotated[
    bool, typer.Option("--best-effort", help="With --keep: exit with 0 even where nothing keeps the share.")
]
CacheFolder = Annotated[
    str | None, typer.Option("--cache", help="Folder to keep embeddings in, so that no text is encoded twice.")
]
Variants = Annotated[
    list[Variant] | None,
    typer.Option("--variant", help="A smaller ONNX file to write as well; may be given twice."),
]


def say_choice(record: FitRecord, keep: float | None, best_effort: bool) -> int:
    """Show what a budget was chosen of; returns the exit status, 3 where nothing keeps the share asked for."""
    if not record.choice:
        return 0
    from st_dimreduce.cli.tables import choice_table

    show(choice_table(record.choice))
    best = record.choice["best"]
    if keep is None or best["low"] >= keep:
        return 0
    had = f"{best['retention']:.1%}, by the lower end of its interval {best['low']:.1%}"
    texts = record.choice["metric"] == "nDCG@10"
    advice = "more texts narrow the interval" if texts else "with texts (reduce) queries can be made, of vectors not"
    show(f"--keep {keep:g} is not kept: the best keeps {had}.")
    show(f"The best is written all the same; {advice}. --best-effort exits with 0.")
    return 0 if best_effort else 3


def cautions(record: FitRecord, texts: int | None = None) -> list[str]:
    """Return what a user should know before a head is used, a line each; mostly nothing.

    Args:
        record: The record of the head.
        texts: Number of texts that were given to fit and measure on. Defaults to None: it was fitted on vectors.
    """
    lines = []
    if texts is not None and texts < _FEW:
        lines.append(f"Note: {texts:,} texts are few: with {_FEW:,} and more, the fit and these figures are surer.")
    if record.objective == Objective.QUALITY and record.strength == 0 and texts is not None:
        lines.append("Note: on these texts quality finds no more than fidelity, and the head is fidelity's.")
    store = (record.choice or {}).get("store")
    if record.precision in (Precision.INT4, Precision.INT2) and store is None:
        lines.append(
            f"Note: {record.precision.value} codes are searched by st_dimreduce (search, an index) and by FAISS; for a"
        )
        lines.append("database, --store NAME chooses among what that searches by itself.")
    return lines


def read_sizes(given: str | None) -> list[int] | None:
    """Read sizes that commas separate.

    Raises:
        ValueError: If one is not a number.
    """
    if given is None:
        return None
    try:
        return [int(size) for size in given.split(",")]
    except ValueError as error:
        raise UserError(f"--nested {given}: expected sizes with commas between, such as 64,128,256") from error
