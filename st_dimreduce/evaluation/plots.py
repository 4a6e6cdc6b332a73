"""A comparison as pictures. Needs the extra ``report`` (matplotlib)."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from st_dimreduce.files import new_file
from st_dimreduce.evaluation.compare import Comparison
from st_dimreduce.evaluation.metrics import FIGURE_NAMES
from st_dimreduce.codes.precision import Precision

try:
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("matplotlib is not installed: pip install 'st_dimreduce[report]'") from error

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by the colour-blind too
_POINTS = 2000
_PRECISIONS = [precision.value for precision in Precision]


def plot_quality(figures: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Draw what each row finds, with its 95 % interval, against the bytes of a stored vector, as a PNG.

    Rows of one name are joined by a line, the best at each size where one has several. Dashed: the base model.

    Args:
        figures: What :meth:`Comparison.to_dict` returned.
        path: The file to write.
    """
    name = figures.get("figure", "overlap")
    figure, axes = _axes(f"{FIGURE_NAMES[name]} by bytes a vector", "bytes a stored vector", f"{FIGURE_NAMES[name]}, %")
    base, *rows = figures["rows"]
    axes.axhline(100 * base[name], color="grey", linestyle="--", linewidth=1, label=f"{base['name']}, float32")
    for number, model in enumerate(dict.fromkeys(row["name"] for row in rows)):
        mine = sorted((row for row in rows if row["name"] == model), key=lambda row: row["bytes_per_vector"])
        x, y = [row["bytes_per_vector"] for row in mine], np.array([100 * row[name] for row in mine])
        ends = [row.get("intervals", {}).get(name, (row[name], row[name])) for row in mine]
        spread = np.abs(100 * np.array(ends).T - y)
        style = {"color": _COLOURS[number % len(_COLOURS)], "marker": "os^Dv"[number // len(_COLOURS) % 5]}
        axes.errorbar(x, y, spread, label=model, capsize=3, markersize=5, linewidth=1.2, **style)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.legend(fontsize=8)
    _save(figure, path)


def plot_retention(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Draw what is kept of the base model's main figure against the dimensions, a line a precision, as a PNG."""
    figure, axes = _axes(
        "What is kept, by dimensions", "dimensions", f"% of the base model's {FIGURE_NAMES[comparison.figure]}"
    )
    axes.axhline(100, color="grey", linestyle="--", linewidth=1)
    rows = [row for row in comparison.rows[1:] if row.precision in _PRECISIONS]
    for number, precision in enumerate(dict.fromkeys(row.precision for row in rows)):
        mine = sorted((row for row in rows if row.precision == precision), key=lambda row: row.dimensions)
        x, y = [row.dimensions for row in mine], [100 * row.retention for row in mine]
        axes.plot(x, y, "o-", label=precision, color=_COLOURS[number % len(_COLOURS)], markersize=5, linewidth=1.2)
    axes.legend(fontsize=8)
    _save(figure, path)


def plot_cosines(comparison: Comparison, row: int, path: str | os.PathLike[str]) -> None:
    """Draw the cosines of one row against the base model's, pair by pair, and the histograms of both, as a PNG."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    scatter, histogram = figure.subplots(1, 2)
    base, reduced = comparison.cosines[0], comparison.cosines[row]
    name = f"{comparison.rows[row].name}, {comparison.rows[row].precision}"
    scatter.plot(base[:_POINTS], reduced[:_POINTS], ".", color=_COLOURS[0], alpha=0.3, markersize=4)
    ends = [float(min(base.min(), reduced.min())), 1.0]
    scatter.plot(ends, ends, color="grey", linestyle="--", linewidth=1)
    scatter.set(title="Cosine of the same pairs of texts", xlabel="base model", ylabel=name)
    edges = np.linspace(ends[0], 1, 60)
    for cosines, label, colour in ((base, "base model", "grey"), (reduced, name, _COLOURS[0])):
        histogram.hist(cosines, edges, label=label, color=colour, alpha=0.5)
    histogram.set(title="How often each cosine occurs", xlabel="cosine", ylabel=f"of {len(base):,} pairs")
    histogram.legend(fontsize=8)
    _save(figure, path)


def _axes(title: str, x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    with new_file(path) as file:
        figure.savefig(file, dpi=150, format="png")
