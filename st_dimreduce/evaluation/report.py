"""A comparison for people to read."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment
from rich.box import SIMPLE_HEAD
from rich.table import Table

from st_dimreduce.files import new_file
from st_dimreduce.evaluation.compare import Comparison, Hurt, Row
from st_dimreduce.evaluation.metrics import FIGURE_NAMES
from st_dimreduce.portable import write_json
from st_dimreduce.texts import Question

_SHOWN = 3  # texts shown of what a query finds


@dataclass(frozen=True)
class _Column:
    """A column: what it says of a row, None where that was not measured, and the interval that goes with it."""

    cell: Callable[[Row], str | None]
    interval: str | None = None


def _columns(vectors: int, price: float | None) -> dict[str, _Column]:
    def gigabytes(row: Row) -> float:
        return row.bytes_per_vector * vectors / 1e9

    return {
        "dims": _Column(lambda row: str(row.dimensions)),
        "stored\nas": _Column(lambda row: row.precision),
        "bytes": _Column(lambda row: f"{row.bytes_per_vector:,}"),
        f"GB for\n{_short(vectors)}": _Column(lambda row: f"{gigabytes(row):.2f}"),
        "a month": _Column(lambda row: None if price is None else f"{gigabytes(row) * price:,.2f}"),
        "nDCG\n@10": _Column(lambda row: _percent(row.ndcg), "ndcg"),
        "recall\n@10": _Column(lambda row: _percent(row.recall), "recall"),
        "STS": _Column(lambda row: _percent(row.sts), "sts"),
        "overlap\n@10": _Column(lambda row: _percent(row.overlap), "overlap"),
        "kept": _Column(lambda row: _percent(row.retention), "retention"),
        "encoding\nseconds": _Column(lambda row: None if row.seconds is None else f"{row.seconds:.1f}"),
    }


def _cells(
    comparison: Comparison, vectors: int, price: float | None
) -> tuple[list[str], list[list[tuple[str, str | None]]]]:
    """Return the names of the columns that hold anything, and for each row what stands in them with its interval."""
    rows = comparison.rows
    kept = {name: c for name, c in _columns(vectors, price).items() if any(c.cell(row) is not None for row in rows)}
    if comparison.figure == "overlap":
        del kept["kept"]  # which says the same

    def interval(row: Row, column: _Column) -> str | None:
        low, high = row.intervals.get(column.interval or "", (None, None))
        return None if low is None or low == high else f"{_percent(low)}-{_percent(high)}"

    return list(kept), [[(c.cell(row) or "", interval(row, c)) for c in kept.values()] for row in rows]


def comparison_table(
    comparison: Comparison, title: str, vectors: int = 10_000_000, price: float | None = None
) -> Table:
    """Lay the figures out as a rich table, a row a model and precision, with the interval of what is kept.

    Args:
        comparison: The figures; those that were not measured have no column.
        title: What stands above them.
        vectors: Vectors whose memory is told. Defaults to 10 million.
        price: What a gigabyte of memory costs a month; no column of it if None (the default).
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    columns, rows = _cells(comparison, vectors, price)
    for name in columns:
        table.add_column(name, justify="right", no_wrap="\n" not in name)
    main = columns.index("kept" if "kept" in columns else "overlap\n@10")
    for row, cells in zip(comparison.rows, rows, strict=True):
        texts = [cell for cell, _ in cells]
        if cells[main][1]:
            texts[main] += f" ({cells[main][1]})"
        table.add_row(row.name, *texts)
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


def write_figures(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Write the figures of a comparison as JSON; a file that is there is replaced."""
    with new_file(path) as file:
        write_json(file, comparison.to_dict())


def write_html(
    comparison: Comparison,
    path: str | os.PathLike[str],
    asked: Question,
    *,
    title: str = "What the reduction cost",
    vectors: int = 10_000_000,
    price: float | None = None,
) -> None:
    """Write a comparison as one HTML file that opens offline: figures, plots and the queries that were hurt most.

    The texts of those queries and of what they found stand in the file: mind who gets it.

    Args:
        comparison: The figures.
        path: The file to write; one that is there is replaced.
        asked: The texts that were searched, the queries, and what these should find.
        title: Title of the page.
        vectors: Vectors whose memory is told. Defaults to 10 million.
        price: What a gigabyte of memory costs a month; None (the default) leaves it out.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    columns, rows = _cells(comparison, vectors, price)
    named = [[(row.name, None), *cells] for row, cells in zip(comparison.rows, rows, strict=True)]
    hurt = [
        (f"{row.name}, {row.precision}", [_hurt(query, asked) for query in worst])
        for row, worst in zip(comparison.rows, comparison.hurt, strict=True)
        if worst and row.seconds is not None  # a model that was encoded with, no peer
    ]
    template = resources.files("st_dimreduce").joinpath("report.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    with new_file(path) as file:
        text = page.render(
            title=title,
            note=f"{comparison.documents:,} texts, {comparison.queries:,} queries; figures in percent. What is kept is "
            f"the share of the base model's {FIGURE_NAMES[comparison.figure]}.",
            columns=["", *(name.replace("\n", " ") for name in columns)],
            rows=named,
            pictures=_pictures(comparison),
            hurt=hurt,
        )
        file.write_text(text, encoding="utf-8")


def write_plots(comparison: Comparison, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write ``quality.png``, ``retention.png`` and a ``cosines-N.png`` for each row of a reduced model into a folder.

    Returns:
        For each file what it shows.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    from st_dimreduce import plots  # noqa: PLC0415, needs an optional dependency

    quality, retention = Path(folder, "quality.png"), Path(folder, "retention.png")
    plots.plot_quality(comparison.to_dict(), quality)
    plots.plot_retention(comparison, retention)
    paths = {"Quality against bytes": quality, "What is kept by dimensions": retention}
    for number, row in enumerate(comparison.rows):
        if number == 0 or row.seconds is None:  # a peer, of whom the figures are enough
            continue
        caption = f"Cosines: {row.name}, {row.precision}"
        paths[caption] = Path(folder, f"cosines-{number}.png")
        plots.plot_cosines(comparison, number, paths[caption])
    return paths


def _pictures(comparison: Comparison) -> list[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        paths = write_plots(comparison, folder)
        return [(name, base64.b64encode(path.read_bytes()).decode()) for name, path in paths.items()]


def _hurt(hurt: Hurt, asked: Question) -> dict[str, Any]:
    answer = asked.relevant[hurt.query] if asked.relevant and asked.queries else ()

    def side(found: list[int], other: list[int]) -> list[tuple[str, bool, bool]]:
        return [(asked.documents[row], row not in other[:_SHOWN], row in answer) for row in found[:_SHOWN]]

    return {
        "text": (asked.queries or asked.documents)[hurt.query],
        "loss": _percent(hurt.loss),
        "before": side(hurt.before, hurt.after),
        "after": side(hurt.after, hurt.before),
    }


def _short(count: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:g}{letter}"
    return str(count)


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}"
