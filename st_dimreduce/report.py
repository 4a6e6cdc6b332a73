"""A comparison for people to read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from st_dimreduce.compare import Comparison, Row

_COLUMNS: dict[str, Callable[[Row], str | None]] = {
    "dims": lambda row: str(row.dimensions),
    "stored\nas": lambda row: row.precision,
    "bytes": lambda row: f"{row.bytes_per_vector:,}",
    "GB for\n10M": lambda row: f"{row.gigabytes:.2f}",
    "nDCG\n@10": lambda row: _percent(row.ndcg),
    "recall\n@10": lambda row: _percent(row.recall),
    "overlap\n@10": lambda row: _percent(row.overlap),
    "encoding\nseconds": lambda row: None if row.seconds is None else f"{row.seconds:.1f}",
}


def comparison_table(comparison: Comparison, title: str) -> Table:
    """Lay the figures out as a rich table, a row a model; figures that were not measured have no column."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("")
    columns = {name: cell for name, cell in _COLUMNS.items() if any(cell(row) is not None for row in comparison.rows)}
    for name in columns:
        table.add_column(name, justify="right")
    for row in comparison.rows:
        table.add_row(row.name, *(cell(row) or "" for cell in columns.values()))
    return table


def choice_table(choice: dict[str, Any]) -> Table:
    """Lay out what a budget was chosen by, the option chosen marked with a star."""
    table = Table(title="Chosen on held-out data", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("bytes", "dims", "stored as", f"{choice['figure']} kept", ""):
        table.add_column(name, justify="right")
    for option in choice["measured"]:
        star = "*" if option == choice["best"] else ""
        size, kept = str(option["out_features"]), _percent(option["kept"])
        table.add_row(str(option["bytes_per_vector"]), size, option["precision"], kept, star)
    return table


def publication_table(files: dict[str, int]) -> Table:
    """Lay out the files of a model and their sizes in bytes."""
    title = f"{len(files)} files, {sum(files.values()):,} bytes"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("file")
    table.add_column("bytes", justify="right")
    for name, size in files.items():
        table.add_row(name, f"{size:,}")
    return table


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}"
