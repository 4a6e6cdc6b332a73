"""Tables that commands print, with rich."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from st_dimreduce.evaluation.report import columns_of, percent

if TYPE_CHECKING:
    from st_dimreduce.evaluation.compare import Comparison, Row


def comparison_table(
    comparison: Comparison, title: str, vectors: int = 10_000_000, price: float | None = None
) -> Table:
    """Return a comparison in percent, with the 95 % interval of the retention or the overlap.

    It fits 80 columns of a terminal: recall and seconds are in ``comparison.rows`` and in the HTML report alone.

    Args:
        comparison: The comparison; metrics that were not measured have no column.
        title: Title of the table.
        vectors: Number of vectors whose memory is shown. Defaults to 10 million.
        price: Price of a gigabyte of memory per month, shown instead of the memory. Defaults to None.
    """
    table = _table(title)
    table.add_column("", overflow="fold", min_width=13)
    table.add_column("stored as", no_wrap=True)
    left_out = ("recall", "price" if price is None else "GB")
    columns = [each for each in columns_of(comparison, vectors, price) if not each.title.startswith(left_out)]
    for column in columns:
        title = column.title.replace("@", "\n@").replace("per ", "per\n").replace("for ", "for\n")
        table.add_column(title, justify="right", no_wrap=True)
    main = "overlap" if comparison.metric == "overlap" else "retention"
    for row in comparison.rows:
        cells = [(column, *column.cell(row)) for column in columns]
        values = [f"{value} ({ends})" if ends and column.interval == main else value for column, value, ends in cells]
        table.add_row(row.name, _short_form(row), *values)
    return table


def _short_form(row: Row) -> str:
    """Return dimensions and precision: those stored, 64 RaBitQ1, where FAISS says PCA64,RR64,RaBitQ1."""
    *before, last = row.precision.split(",")
    pca = re.match(r"PCA(\d+)$", before[0]) if before else None
    return f"{pca[1] if pca else row.dimensions} {last}"


def comparison_notes(comparison: Comparison) -> list[str]:
    """Return what to know of the metrics of a comparison, a line each."""
    lines = []
    if comparison.metric == "ndcg":
        lines.append("nDCG@10: how far up the text that a query asks for is found, 100 if first.")
    lines.append("overlap@10: share of the base model's ten results that are found too. A head fitted")
    lines.append("for quality departs from them on purpose; --objective fidelity keeps more of them.")
    return lines


def choice_table(choice: dict[str, Any]) -> Table:
    """Return the options measured for a byte budget, with a star at the one chosen.

    Args:
        choice: What :meth:`st_dimreduce.fitting.budget.Choice.to_dict` returned.
    """
    store = choice.get("store")  # records of 0.1.0 have none
    table = _table(f"Chosen on held-out data, of what {store} stores" if store else "Chosen on held-out data")
    for name in ("bytes", "dims", "stored as", f"{choice['metric']} retention", ""):
        table.add_column(name, justify="right")
    for option in choice["measured"]:
        table.add_row(
            str(option["bytes_per_vector"]),
            str(option["out_features"]),
            f"{option['precision']} in {option['column']}" if option.get("column") else option["precision"],
            percent(option["retention"]),
            "*" if option == choice["best"] else "",
        )
    return table


def drift_table(drift: dict[str, Any]) -> Table:
    """Return the figures of new vectors beside those of the fit.

    Args:
        drift: What :meth:`st_dimreduce.vectors.drift.Drift.to_dict` returned.
    """
    table = _table(f"{drift['vectors']:,} vectors")
    table.add_column("figure")
    for name in ("at the fit", "now", "watch above", "refit above"):
        table.add_column(name, justify="right")
    for figure in drift["figures"]:
        table.add_row(figure["name"], *(f"{figure[name]:.1%}" for name in ("at_fit", "now", "watch", "refit")))
    return table


def publication_table(files: dict[str, int]) -> Table:
    """Return the files of a model and their sizes in bytes."""
    table = _table(f"{len(files)} files, {sum(files.values()):,} bytes")
    table.add_column("file")
    table.add_column("bytes", justify="right")
    for name, size in files.items():
        table.add_row(name, f"{size:,}")
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
