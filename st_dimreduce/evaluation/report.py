"""Reports for people: tables on the terminal, JSON, plots, and an HTML page of a comparison."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from st_dimreduce.evaluation.compare import Comparison, Hurt, Row
from st_dimreduce.evaluation.metrics import METRIC_NAMES
from st_dimreduce.files import new_file, write_json
from st_dimreduce.texts import Question

_SHOWN = 3  # documents shown per query
_NOT_ON_TERMINALS = ("dims", "stored\nas", "recall\n@10", "encoding\nseconds")

_Cell = tuple[str, str | None]  # a value, and its interval


@dataclass(frozen=True)
class _Column:
    """A column of a comparison's table.

    Attributes:
        title: Its title.
        value: Returns a row's value, None where it was not measured.
        interval: Name of the interval that goes with it.
    """

    title: str
    value: Callable[[Row], str | None]
    interval: str | None = None

    def cell(self, row: Row) -> _Cell:
        ends = row.intervals.get(self.interval or "")
        interval = f"{_percent(ends[0])}-{_percent(ends[1])}" if ends and ends[0] != ends[1] else None
        return self.value(row) or "", interval


def _columns(comparison: Comparison, vectors: int, price: float | None) -> list[_Column]:
    """Return the columns that have a value in any row."""

    def gigabytes(row: Row) -> float:
        return row.bytes_per_vector * vectors / 1e9

    def retention(row: Row) -> str | None:
        return None if comparison.metric == "overlap" else _percent(row.retention)  # the same as the overlap

    columns = [
        _Column("dims", lambda row: str(row.dimensions)),
        _Column("stored\nas", lambda row: row.precision),
        _Column("bytes", lambda row: f"{row.bytes_per_vector:,}"),
        _Column(f"GB for\n{_short(vectors)}", lambda row: f"{gigabytes(row):.2f}"),
        _Column("price per\nmonth", lambda row: None if price is None else f"{gigabytes(row) * price:,.2f}"),
        _Column("nDCG\n@10", lambda row: _percent(row.ndcg), "ndcg"),
        _Column("recall\n@10", lambda row: _percent(row.recall), "recall"),
        _Column("STS", lambda row: _percent(row.sts), "sts"),
        _Column("overlap\n@10", lambda row: _percent(row.overlap), "overlap"),
        _Column("retention", retention, "retention"),
        _Column("encoding\nseconds", lambda row: None if row.seconds is None else f"{row.seconds:.1f}"),
    ]
    return [column for column in columns if any(column.value(row) is not None for row in comparison.rows)]


def comparison_table(
    comparison: Comparison, title: str, vectors: int = 10_000_000, price: float | None = None
) -> Table:
    """Return a comparison as a rich table, in percent, with the 95 % interval of the retention or the overlap.

    It fits 80 columns of a terminal: recall and seconds are in ``comparison.rows`` and in the HTML report alone.

    Args:
        comparison: The comparison; metrics that were not measured have no column.
        title: Title of the table.
        vectors: Number of vectors whose memory is shown. Defaults to 10 million.
        price: Price of a gigabyte of memory per month; no column of it if None (the default).
    """
    table = _table(title)
    table.add_column("", overflow="fold", min_width=13)
    table.add_column("stored as", no_wrap=True)
    columns = [column for column in _columns(comparison, vectors, price) if column.title not in _NOT_ON_TERMINALS]
    if price is not None:
        columns = [column for column in columns if not column.title.startswith("GB")]
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    main = "overlap" if comparison.metric == "overlap" else "retention"
    for row in comparison.rows:
        cells = [(column, *column.cell(row)) for column in columns]
        values = [f"{value} ({ends})" if ends and column.interval == main else value for column, value, ends in cells]
        table.add_row(row.name, f"{row.dimensions} {row.precision}", *values)
    return table


def asked_with(comparison: Comparison, cloze: bool = True) -> str:
    """Return what the documents of a comparison were searched with, in words."""
    if comparison.metric == "ndcg":
        return f"{comparison.queries:,} queries" + (" made of them: a sentence, or keywords" if cloze else "")
    return "each a query for the others"


def notes(comparison: Comparison) -> list[str]:
    """Return what to know of the metrics of a comparison, a line each."""
    lines = []
    if comparison.metric == "ndcg":
        lines.append("nDCG@10: how far up the text that a query asks for is found, 100 if first.")
    lines.append("overlap@10: share of the base model's ten results that are found too. A head fitted")
    lines.append("for quality departs from them on purpose; --objective fidelity keeps more of them.")
    return lines


def choice_table(choice: dict[str, Any]) -> Table:
    """Return the options measured for a byte budget as a rich table, the chosen one marked with a star.

    Args:
        choice: What :meth:`st_dimreduce.Choice.to_dict` returned.
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
            _percent(option["retention"]),
            "*" if option == choice["best"] else "",
        )
    return table


def drift_table(drift: dict[str, Any]) -> Table:
    """Return the figures of new vectors beside those of the fit as a rich table.

    Args:
        drift: What :meth:`st_dimreduce.Drift.to_dict` returned.
    """
    table = _table(f"{drift['vectors']:,} vectors")
    table.add_column("figure")
    for name in ("at the fit", "now", "watch above", "refit above"):
        table.add_column(name, justify="right")
    for figure in drift["figures"]:
        form = "{:.1%}" if figure["name"].endswith("lost") else "{:.3g}"
        values = (figure[name] for name in ("at_fit", "now", "watch", "refit"))
        table.add_row(figure["name"], *("" if value is None else form.format(value) for value in values))
    return table


def publication_table(files: dict[str, int]) -> Table:
    """Return the files of a model and their sizes in bytes as a rich table."""
    table = _table(f"{len(files)} files, {sum(files.values()):,} bytes")
    table.add_column("file")
    table.add_column("bytes", justify="right")
    for name, size in files.items():
        table.add_row(name, f"{size:,}")
    return table


def write_figures(figures: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write figures as JSON, what the ``to_dict`` of a comparison or a drift returned; an existing file is replaced."""
    with new_file(path) as file:
        write_json(file, figures)


def write_html(
    comparison: Comparison,
    path: str | os.PathLike[str],
    question: Question,
    *,
    title: str = "Reduced models compared with their base model",
    vectors: int = 10_000_000,
    price: float | None = None,
) -> None:
    """Write a comparison as one HTML file that opens offline: metrics, plots, and the queries that lost most.

    Where a plot cannot be drawn, the page says why in its place.

    The file contains the texts of those queries and of the documents found: share it only with those who may read them.

    Args:
        comparison: The comparison.
        path: The file to write; an existing one is replaced.
        question: The texts that were compared on.
        title: Title of the page.
        vectors: Number of vectors whose memory is shown. Defaults to 10 million.
        price: Price of a gigabyte of memory per month; no column of it if None (the default).

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    from jinja2 import Environment  # noqa: PLC0415, slow to import, and tables on the terminal do without

    columns = _columns(comparison, vectors, price)
    measured = zip(comparison.rows, comparison.hurt, strict=True)
    template = resources.files("st_dimreduce.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    with new_file(path) as file:
        text = page.render(
            title=title,
            note=f"{comparison.documents:,} documents, {comparison.queries:,} queries; metrics in percent. "
            f"Retention is the share of the base model's {METRIC_NAMES[comparison.metric]}.",
            columns=["", *(column.title.replace("\n", " ") for column in columns)],
            rows=[[(row.name, None), *(column.cell(row) for column in columns)] for row in comparison.rows],
            plots=_plots(comparison),
            losses=[
                (f"{row.name}, {row.precision}", [_loss(hurt, question) for hurt in worst])
                for row, worst in measured
                if worst and row.seconds is not None  # a model that was encoded with, no peer
            ],
        )
        file.write_text(text, encoding="utf-8", errors="backslashreplace")  # half a surrogate pair in a text


def write_plots(comparison: Comparison, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write ``quality.png``, ``retention.png`` and a ``cosines-N.png`` for each row of a reduced model into a folder.

    Returns:
        The path of each plot by its caption.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    paths = {}
    for caption, name, draw in _drawings(comparison):
        paths[caption] = Path(folder, name)
        draw(paths[caption])
    return paths


def _drawings(comparison: Comparison) -> list[tuple[str, str, Callable[[Any], None]]]:
    """Return the caption of each plot, the name of its file, and what draws it to a path or a file."""
    from st_dimreduce.evaluation import plots  # noqa: PLC0415, needs an optional dependency

    figures = comparison.to_dict()
    drawings: list[tuple[str, str, Callable[[Any], None]]] = [
        ("Quality by bytes per vector", "quality.png", partial(plots.plot_quality, figures)),
        ("Retention by dimensions", "retention.png", partial(plots.plot_retention, comparison)),
    ]
    for number, row in enumerate(comparison.rows):
        if number == 0 or row.seconds is None:  # the base model, or a peer, of which the metrics are enough
            continue
        draw = partial(plots.plot_cosines, comparison, number)
        drawings.append((f"Cosines: {row.name}, {row.precision}", f"cosines-{number}.png", draw))
    return drawings


def _plots(comparison: Comparison) -> list[tuple[str, str, str]]:
    """Return the caption of each plot, its PNG in base64, and, where that is empty, why it could not be drawn."""
    drawn = []
    for caption, _, draw in _drawings(comparison):
        file = io.BytesIO()
        try:
            draw(file)
            drawn.append((caption, base64.b64encode(file.getvalue()).decode(), ""))
        except Exception as error:  # whatever it is, it must not cost what was measured
            drawn.append((caption, "", f"{type(error).__name__}: {error}"))
    return drawn


def _loss(hurt: Hurt, question: Question) -> dict[str, Any]:
    """Return what the page shows of a query: each document found with whether only this model and a label found it."""
    relevant: Collection[int] = question.relevant[hurt.query] if question.relevant and question.queries else ()

    def shown(found: list[int], others: list[int]) -> list[tuple[str, bool, bool]]:
        return [(question.documents[row], row not in others[:_SHOWN], row in relevant) for row in found[:_SHOWN]]

    return {
        "text": (question.queries or question.documents)[hurt.query],
        "loss": _percent(hurt.loss),
        "before": shown(hurt.before, hurt.after),
        "after": shown(hurt.after, hurt.before),
    }


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _short(count: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:g}{letter}"
    return str(count)


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}"
