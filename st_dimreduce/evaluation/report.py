"""Reports for people: tables on the terminal, plots, and an HTML page of a comparison."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from st_dimreduce.codes.metrics import METRIC_NAMES, TOP_K
from st_dimreduce.enums import Precision
from st_dimreduce.evaluation.compare import Change, Comparison, Row
from st_dimreduce.files import new_file
from st_dimreduce.texts import Question

_SHOWN = 3  # documents shown per query
_NOT_ON_TERMINALS = "recall\n@10"
_NBSP = "\N{NO-BREAK SPACE}"
_FIELD_NAMES = {"binary quantization": "binary", "FAISS PCA": "PCA + int8"}

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
        _Column("bytes", lambda row: f"{row.bytes_per_vector:,}"),
        _Column(f"GB for\n{_short(vectors)}", lambda row: f"{gigabytes(row):.2f}"),
        _Column("price per\nmonth", lambda row: None if price is None else f"{gigabytes(row) * price:,.2f}"),
        _Column("nDCG\n@10", lambda row: _percent(row.ndcg), "ndcg"),
        _Column("recall\n@10", lambda row: _percent(row.recall), "recall"),
        _Column("STS", lambda row: _percent(row.sts), "sts"),
        _Column("overlap\n@10", lambda row: _percent(row.overlap), "overlap"),
        _Column("retention", retention, "retention"),
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
    columns = [column for column in _columns(comparison, vectors, price) if column.title != _NOT_ON_TERMINALS]
    if price is not None:
        columns = [column for column in columns if not column.title.startswith("GB")]
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    main = "overlap" if comparison.metric == "overlap" else "retention"
    for row in comparison.rows:
        cells = [(column, *column.cell(row)) for column in columns]
        values = [f"{value} ({ends})" if ends and column.interval == main else value for column, value, ends in cells]
        table.add_row(row.name, _short_form(row), *values)
    return table


def _short_form(row: Row) -> str:
    """Return dimensions and precision; of what FAISS calls PCA64,RR64,RaBitQ1 those that are stored, 64 RaBitQ1."""
    *before, last = row.precision.split(",")
    kept = re.match(r"PCA(\d+)$", before[0]) if before else None
    return f"{kept[1] if kept else row.dimensions} {last}"


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


def write_html(
    comparison: Comparison,
    path: str | os.PathLike[str],
    question: Question,
    *,
    title: str = "Reduced models compared with their base model",
    vectors: int = 10_000_000,
    price: float | None = None,
    chosen: Mapping[str, Precision | None] | None = None,
) -> None:
    """Write a comparison as one HTML file that opens offline: the verdict, metrics, plots, and what queries lost.

    Where a plot cannot be drawn, the page says why in its place.

    The file contains the texts of those queries and of the documents found: share it only with those who may read them.

    Args:
        comparison: The comparison.
        path: The file to write; an existing one is replaced.
        question: The texts that were compared on.
        title: Title of the page.
        vectors: Number of vectors whose memory is shown. Defaults to 10 million.
        price: Price of a gigabyte of memory per month; no column of it if None (the default).
        chosen: For each reduced model the precision to store its vectors in, whose row is marked. Defaults to None: the
            one of the fewest bytes that does not fall behind the base model by more than chance.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    from jinja2 import Environment  # noqa: PLC0415, slow to import, and tables on the terminal do without

    comparison = _in_field_names(comparison)
    marked = _marked(comparison.rows, chosen or {})
    columns = _columns(comparison, vectors, price)
    template = resources.files("st_dimreduce.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    plots = _plots(comparison, marked)

    def row_cells(row: Row) -> list[_Cell]:
        return [column.cell(row) for column in columns]

    with new_file(path) as file:
        text = page.render(
            title=title,
            verdict=_verdict(comparison, _best(comparison.rows, marked)),
            note=f"{comparison.documents:,} documents, {asked_with(comparison, question.cloze)}",
            metric=METRIC_NAMES[comparison.metric],
            columns=[column.title.replace("\n@", "@").replace("\n", " ") for column in columns],
            groups=[
                (name, seconds, [(_stored_as(row), number in marked, row_cells(row)) for number, row in rows])
                for name, seconds, rows in _groups(comparison.rows)
            ],
            first=plots[0],
            models=[
                (
                    f"{comparison.rows[number].name}, {_stored_as(comparison.rows[number])}",
                    plots[1 + place],
                    [
                        (heading, [_shown_change(change, question) for change in changes])
                        for heading, changes in (
                            ("lost most", comparison.hurt[number]),
                            ("gained most", comparison.gained[number]),
                        )
                        if changes
                    ],
                )
                for place, number in enumerate(marked)
            ],
            more=plots[1 + len(marked) :],
        )
        file.write_text(text, encoding="utf-8", errors="backslashreplace")  # half a surrogate pair in a text


def _in_field_names(comparison: Comparison) -> Comparison:
    """Return the comparison with the names of peers as the literature has them."""
    names = [_FIELD_NAMES.get(row.name, row.name.removeprefix("FAISS ")) for row in comparison.rows]
    rows = [
        replace(row, name=name) if row.seconds is None else row
        for row, name in zip(comparison.rows, names, strict=True)
    ]
    return replace(comparison, rows=rows)


def _marked(rows: list[Row], chosen: Mapping[str, Precision | None]) -> list[int]:
    """Return for each reduced model the number of the row that stores it as chosen, or of the best."""
    marked = []
    for name in dict.fromkeys(row.name for row in rows[1:] if row.seconds is not None):
        numbers = [number for number, row in enumerate(rows) if number and row.name == name]
        stored = [number for number in numbers if rows[number].precision == chosen.get(name)]
        marked.append(_best(rows, stored or numbers))
    return marked


def _best(rows: list[Row], numbers: list[int]) -> int:
    """Return the row of the fewest bytes that is not behind by more than chance; else that of the best retention."""
    even = [number for number in numbers if rows[number].intervals["retention"][1] >= 1]
    if even:
        return min(even, key=lambda number: (rows[number].bytes_per_vector, -rows[number].retention))
    return max(numbers, key=lambda number: rows[number].retention)


def _verdict(comparison: Comparison, number: int) -> str:
    """Return in one sentence what a row costs and finds."""
    base, row = comparison.rows[0], comparison.rows[number]
    full, reduced = base.bytes_per_vector, row.bytes_per_vector
    low, high = row.intervals["retention"]
    limits = f"95{_NBSP}% interval {_percent(low)} to {_percent(high)}"
    cost = f"{row.name} stored as {row.precision} takes {reduced:,} bytes per vector"
    if reduced < full:
        cost += f", 1/{full / reduced:.3g} of the base model's {full:,}"
    if comparison.metric == "overlap":
        return (
            f"{cost}, and finds {_percent(row.overlap)}{_NBSP}% of the base model's ten nearest neighbours ({limits})."
        )
    than = "more" if low > 1 else "less" if high < 1 else "as much, give or take chance"
    if comparison.metric == "ndcg":
        found, now, before = f"finds {than}", row.ndcg, base.ndcg
    else:
        found, now, before = f"agrees with human scores {'as well' if low <= 1 <= high else than}", row.sts, base.sts
    figures = f"{METRIC_NAMES[comparison.metric]} {_percent(now)} against {_percent(before)}"
    return f"{cost}, and {found}: {figures}, {_percent(row.retention)}{_NBSP}% of it ({limits})."


def _stored_as(row: Row) -> str:
    """Return how a row's vectors are stored, dimensions and precision, or the name of a peer's own codes."""
    if row.precision not in set(Precision):
        return row.precision
    return f"{row.dimensions} \N{MULTIPLICATION SIGN} {row.precision}"


def _groups(rows: list[Row]) -> list[tuple[str, str | None, list[tuple[int, Row]]]]:
    """Return the name of each method, the seconds that it took to encode, and its numbered rows."""
    numbered = list(enumerate(rows))
    groups = []
    for name in dict.fromkeys(row.name for row in rows):
        own = [(number, row) for number, row in numbered if row.name == name]
        seconds = own[0][1].seconds
        groups.append((name, None if seconds is None else f"encoded in {seconds:.1f} s", own))
    return groups


def write_plots(comparison: Comparison, folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Write plots of a comparison into a folder, as PNG.

    They are ``quality.png``, ``retention.png`` where the reduced models are of several dimensions, and for each of
    their rows a ``changes-N.png`` and a ``cosines-N.png``.

    Returns:
        The path of each plot by its caption.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    comparison = _in_field_names(comparison)
    # Of the base model and of peers the metrics are enough.
    numbers = [number for number, row in enumerate(comparison.rows) if number and row.seconds is not None]
    paths = {}
    for caption, name, draw in _drawings(comparison, numbers):
        paths[caption] = Path(folder, name)
        draw(paths[caption])
    return paths


def _drawings(comparison: Comparison, numbers: list[int]) -> list[tuple[str, str, Callable[..., None]]]:
    """Return the caption of each plot, the name of its file, and what draws it to a path or a file.

    First comes that of quality, then what the queries gained and lost with each of the numbered rows, then the rest.
    """
    from st_dimreduce.evaluation import plots  # noqa: PLC0415, needs an optional dependency

    metric = METRIC_NAMES[comparison.metric]
    drawings: list[tuple[str, str, Callable[..., None]]] = [
        (f"{metric} by bytes per vector", "quality.png", partial(plots.plot_quality, comparison.to_dict())),
    ]
    rest: list[tuple[str, str, Callable[..., None]]] = []
    if len({row.dimensions for row in comparison.rows[1:] if row.seconds is not None}) > 1:
        rest.append(("Retention by dimensions", "retention.png", partial(plots.plot_retention, comparison)))
    for number in numbers:
        row = comparison.rows[number]
        name = f"{row.name}, {_stored_as(row)}"
        draw = partial(plots.plot_changes, comparison, number)
        drawings.append((f"Change per query: {name}", f"changes-{number}.png", draw))
        rest.append((f"Cosines: {name}", f"cosines-{number}.png", partial(plots.plot_cosines, comparison, number)))
    return drawings + rest


@dataclass(frozen=True)
class _Plot:
    """A plot of the page.

    Attributes:
        caption: What it shows.
        themes: The SVG for a light page and for a dark one, each in base64, by its theme.
        problem: Why it could not be drawn.
    """

    caption: str
    themes: dict[str, str] = field(default_factory=dict)
    problem: str = ""


def _plots(comparison: Comparison, numbers: list[int]) -> list[_Plot]:
    return [_plot(caption, draw) for caption, _, draw in _drawings(comparison, numbers)]


def _plot(caption: str, draw: Callable[..., None]) -> _Plot:
    themes = {}
    try:
        for theme in ("light", "dark"):
            file = io.BytesIO()
            draw(file, theme)
            themes[theme] = base64.b64encode(file.getvalue()).decode()
    except Exception as error:  # whatever it is, it must not cost what was measured
        return _Plot(caption, problem=f"{type(error).__name__}: {error}")
    return _Plot(caption, themes)


@dataclass(frozen=True)
class _Found:
    """A document that a query found.

    Attributes:
        rank: Its rank, from 1.
        text: Its text.
        relevant: Whether a label says that it should be found.
        only: Whether only this model has it among its first three.
    """

    rank: int
    text: str
    relevant: bool
    only: bool


def _shown_change(change: Change, question: Question) -> dict[str, Any]:
    """Return what the page shows of a query: its first documents, and the relevant ones that moved most below them."""
    relevant = set(question.relevant[change.query]) if question.relevant and question.queries else set()

    def rank(row: int, found: list[int]) -> int | None:
        return found.index(row) + 1 if row in found else None

    ranks = {row: (rank(row, change.before), rank(row, change.after)) for row in sorted(relevant)}
    moved = sorted(ranks, key=lambda row: -abs(_reciprocal(ranks[row][0]) - _reciprocal(ranks[row][1])))[:_SHOWN]

    def shown(found: list[int], others: list[int]) -> list[_Found]:
        rows = [*found[:_SHOWN], *sorted((row for row in moved if row in found[_SHOWN:]), key=found.index)]
        return [
            _Found(found.index(row) + 1, question.documents[row], row in relevant, row not in others[:_SHOWN])
            for row in rows
        ]

    return {
        "text": (question.queries or question.documents)[change.query],
        "change": f"{100 * change.change:+.1f}".replace("-", "\N{MINUS SIGN}"),
        "relevant": _relevance(list(ranks.values()), len(change.before)) if relevant else "",
        "before": shown(change.before, change.after),
        "after": shown(change.after, change.before),
    }


def _reciprocal(rank: int | None) -> float:
    return 0 if rank is None else 1 / rank


def _relevance(ranks: list[tuple[int | None, int | None]], depth: int) -> str:
    """Return how far the relevant document moved, or how many of several are among the first ten."""
    if len(ranks) == 1:
        before, after = (f"below {depth}" if rank is None else str(rank) for rank in ranks[0])
        return f"relevant document: rank {before} → {after}"
    before, after = (str(sum(rank is not None and rank <= TOP_K for rank in side)) for side in zip(*ranks, strict=True))
    return f"relevant among the first ten: {before} → {after} of {len(ranks)}"


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _short(count: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:g}{letter}"
    return str(count)


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}"
