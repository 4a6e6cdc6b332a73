"""An HTML page of a comparison: the verdict, a plot, the table, and the queries that it hurt and helped most."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, NamedTuple

from st_dimreduce.codes.metrics import METRIC_NAMES, TOP_K
from st_dimreduce.enums import Precision
from st_dimreduce.evaluation.compare import Change, Comparison, Row
from st_dimreduce.files import new_file
from st_dimreduce.texts import Question

_SHOWN = 3  # documents shown per query
_NBSP = "\N{NO-BREAK SPACE}"


class Column(NamedTuple):
    """A column of a comparison's table.

    Attributes:
        title: Its title.
        value: Returns a row's value, None where it was not measured.
        interval: Name of the interval that goes with it.
    """

    title: str
    value: Callable[[Row], str | None]
    interval: str | None = None

    def cell(self, row: Row) -> tuple[str, str | None]:
        """Return a row's value and its 95 % interval, None where it has no width."""
        low, high = row.intervals.get(self.interval or "", (0.0, 0.0))
        return self.value(row) or "", f"{percent(low)}-{percent(high)}" if low != high else None


def columns_of(comparison: Comparison, vectors: int, price: float | None) -> list[Column]:
    """Return the columns of a comparison's table that have a value in any row.

    Args:
        comparison: The comparison.
        vectors: Number of vectors whose memory is shown.
        price: Price of a gigabyte of memory per month; None for no such column.
    """

    def gigabytes(row: Row) -> float:
        return row.bytes_per_vector * vectors / 1e9

    def retention(row: Row) -> str | None:
        return None if comparison.metric == "overlap" else percent(row.retention)  # the same as the overlap

    columns = [
        Column("bytes", lambda row: f"{row.bytes_per_vector:,}"),
        Column(f"GB for {_short(vectors)}", lambda row: f"{gigabytes(row):.2f}"),
        Column("price per month", lambda row: None if price is None else f"{gigabytes(row) * price:,.2f}"),
        Column("nDCG@10", lambda row: percent(row.ndcg), "ndcg"),
        Column("recall@10", lambda row: percent(row.recall), "recall"),
        Column("STS", lambda row: percent(row.sts), "sts"),
        Column("overlap@10", lambda row: percent(row.overlap), "overlap"),
        Column("retention", retention, "retention"),
    ]
    return [column for column in columns if any(column.value(row) is not None for row in comparison.rows)]


def percent(share: float | None) -> str | None:
    """Return a share in percent with one decimal; None for None."""
    return None if share is None else f"{100 * share:.1f}"


def _short(count: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:g}{letter}"
    return str(count)


def queries_of(comparison: Comparison, cloze: bool = True) -> str:
    """Return in words what the documents of a comparison were searched with.

    Args:
        comparison: The comparison.
        cloze: Whether the queries were made of the documents. Defaults to True.
    """
    if comparison.metric == "ndcg":
        return f"{comparison.queries:,} queries" + (" made of them: a sentence, or keywords" if cloze else "")
    return "each a query for the others"


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
    """Write a comparison as one HTML file that opens offline.

    The file contains the texts of the queries shown and of the documents found: share it only with those who may read
    them.

    Args:
        comparison: The comparison.
        path: The file to write; an existing one is replaced.
        question: The texts that were compared on.
        title: Title of the page.
        vectors: Number of vectors whose memory is shown. Defaults to 10 million.
        price: Price of a gigabyte of memory per month. Defaults to None: no such column.
        chosen: For each reduced model the precision to store its vectors in, whose row is marked. Defaults to None: the
            row of the fewest bytes that is not behind the base model by more than chance.

    Raises:
        MissingExtraError: If matplotlib is not installed.
    """
    from jinja2 import Environment  # noqa: PLC0415, slow to import, and tables on the terminal do without

    from st_dimreduce.evaluation.plots import THEMES, plot_quality  # noqa: PLC0415, needs an optional dependency

    marked = _marked(comparison.rows, chosen or {})
    columns = columns_of(comparison, vectors, price)
    template = resources.files("st_dimreduce.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    groups: dict[str, list[dict[str, Any]]] = {}
    for number, row in enumerate(comparison.rows):
        cells = [column.cell(row) for column in columns]
        shown = {"stored": _stored_as(row), "chosen": number in marked, "cells": cells, "seconds": row.seconds}
        groups.setdefault(row.name, []).append(shown)
    plots = {theme: io.BytesIO() for theme in THEMES}
    for theme, file in plots.items():
        plot_quality(comparison.to_dict(), file, theme)
    text = page.render(
        title=title,
        verdict=_verdict(comparison, _best(comparison.rows, marked)),
        note=f"{comparison.documents:,} documents, {queries_of(comparison, question.cloze)}",
        metric=METRIC_NAMES[comparison.metric],
        columns=[column.title for column in columns],
        groups=groups,
        plots={theme: base64.b64encode(file.getvalue()).decode() for theme, file in plots.items()},
        models=[
            (
                f"{comparison.rows[number].name}, {_stored_as(comparison.rows[number])}",
                {
                    "lost most": [_shown(change, question) for change in comparison.hurt[number]],
                    "gained most": [_shown(change, question) for change in comparison.helped[number]],
                },
            )
            for number in marked
        ],
    )
    with new_file(path) as written:
        written.write_text(text, encoding="utf-8", errors="backslashreplace")  # half a surrogate pair in a text


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
    limits = f"95{_NBSP}% interval {percent(low)} to {percent(high)}"
    cost = f"{row.name} stored as {row.precision} takes {reduced:,} bytes per vector"
    if reduced < full:
        cost += f", 1/{full / reduced:.3g} of the base model's {full:,}"
    if comparison.metric == "overlap":
        return (
            f"{cost}, and finds {percent(row.overlap)}{_NBSP}% of the base model's ten nearest neighbours ({limits})."
        )
    than = "more" if low > 1 else "less" if high < 1 else "as much, give or take chance"
    if comparison.metric == "ndcg":
        found, now, before = f"finds {than}", row.ndcg, base.ndcg
    else:
        found, now, before = f"agrees with human scores {'as well' if low <= 1 <= high else than}", row.sts, base.sts
    figures = f"{METRIC_NAMES[comparison.metric]} {percent(now)} against {percent(before)}"
    return f"{cost}, and {found}: {figures}, {percent(row.retention)}{_NBSP}% of it ({limits})."


def _stored_as(row: Row) -> str:
    """Return how a row's vectors are stored, dimensions and precision, or the name of a peer's own codes."""
    if row.precision not in set(Precision):
        return row.precision
    return f"{row.dimensions} \N{MULTIPLICATION SIGN} {row.precision}"


def _shown(change: Change, question: Question) -> dict[str, Any]:
    """Return what the page shows of a query: the first documents of both models, and relevant ones further down."""
    relevant = set(question.relevant[change.query]) if question.relevant and question.queries else set()
    ranks = {row: (_rank(row, change.before), _rank(row, change.after)) for row in sorted(relevant)}
    moved = sorted(ranks, key=lambda row: -abs(1 / ranks[row][0] - 1 / ranks[row][1]))[:_SHOWN]

    def documents(found: list[int], others: list[int]) -> list[dict[str, Any]]:
        rows = found[:_SHOWN] + sorted(set(moved) & set(found[_SHOWN:]), key=found.index)
        return [
            {
                "rank": found.index(row) + 1,
                "text": question.documents[row],
                "relevant": row in relevant,
                "only": row not in others[:_SHOWN],
            }
            for row in rows
        ]

    return {
        "text": (question.queries or question.documents)[change.query],
        "change": f"{100 * change.change:+.1f}".replace("-", "\N{MINUS SIGN}"),
        "relevance": _relevance(list(ranks.values()), len(change.before)) if relevant else "",
        "before": documents(change.before, change.after),
        "after": documents(change.after, change.before),
    }


def _rank(row: int, found: list[int]) -> float:
    return found.index(row) + 1 if row in found else float("inf")


def _relevance(ranks: list[tuple[float, float]], depth: int) -> str:
    """Return how far the relevant document moved, or how many of several are among the first ten."""
    if len(ranks) == 1:
        before, after = (f"below {depth}" if rank > depth else str(rank) for rank in ranks[0])
        return f"relevant document: rank {before} → {after}"
    before, after = (str(sum(rank <= TOP_K for rank in side)) for side in zip(*ranks, strict=True))
    return f"relevant among the first ten: {before} → {after} of {len(ranks)}"
