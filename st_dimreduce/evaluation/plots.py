"""Plots of a comparison as PNG, in a file by its path or open. Needs the extra ``report`` (matplotlib)."""

from __future__ import annotations

import os
from typing import IO, Any

import numpy as np

from st_dimreduce.enums import Precision
from st_dimreduce.evaluation.compare import Comparison
from st_dimreduce.evaluation.metrics import METRIC_NAMES
from st_dimreduce.files import new_file

try:
    from matplotlib import rc_context
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("matplotlib is not installed: pip install 'st_dimreduce[report]'") from error

Target = str | os.PathLike[str] | IO[bytes]

# Distinct for the colour-blind too: Okabe and Ito, "Color universal design", 2008.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = "os^Dv"
_MOST_POINTS = 2000  # more hide one another
_PRECISIONS = [precision.value for precision in Precision]

_plain_text = rc_context({"text.parse_math": False})  # the name of a model may hold dollar signs


@_plain_text
def plot_quality(figures: dict[str, Any], path: Target) -> None:
    """Plot the main metric of each row, with its 95 % interval, against its bytes per vector.

    Rows of one name are joined by a line. The base model is a dashed line.

    Args:
        figures: What :meth:`Comparison.to_dict` returned.
        path: The PNG file to write, by its path or open.
    """
    metric = figures.get("metric", "overlap")
    name = METRIC_NAMES[metric]
    figure, axes = _axes(f"{name} by bytes per vector", "bytes per stored vector", f"{name}, %")
    base, *rows = figures["rows"]
    axes.axhline(100 * base[metric], color="grey", linestyle="--", linewidth=1, label=f"{base['name']}, float32")
    for number, model in enumerate(dict.fromkeys(row["name"] for row in rows)):
        points = sorted((row for row in rows if row["name"] == model), key=lambda row: row["bytes_per_vector"])
        x, y = [row["bytes_per_vector"] for row in points], np.array([100 * row[metric] for row in points])
        ends = [row.get("intervals", {}).get(metric, (row[metric], row[metric])) for row in points]
        axes.errorbar(
            x,
            y,
            yerr=np.abs(100 * np.array(ends).T - y),
            label=model,
            color=_COLOURS[number % len(_COLOURS)],
            marker=_MARKERS[number // len(_COLOURS) % len(_MARKERS)],
            markersize=5,
            linewidth=1.2,
            capsize=3,
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.legend(fontsize=8)
    _save(figure, path)


@_plain_text
def plot_retention(comparison: Comparison, path: Target) -> None:
    """Plot the retention of each row against its dimensions, one line per precision, as a PNG."""
    name = METRIC_NAMES[comparison.metric]
    figure, axes = _axes("Retention by dimensions", "dimensions", f"% of the base model's {name}")
    axes.axhline(100, color="grey", linestyle="--", linewidth=1)
    rows = [row for row in comparison.rows[1:] if row.precision in _PRECISIONS]
    for number, precision in enumerate(dict.fromkeys(row.precision for row in rows)):
        points = sorted((row for row in rows if row.precision == precision), key=lambda row: row.dimensions)
        x, y = [row.dimensions for row in points], [100 * row.retention for row in points]
        axes.plot(x, y, "o-", label=precision, color=_COLOURS[number % len(_COLOURS)], markersize=5, linewidth=1.2)
    axes.legend(fontsize=8)
    _save(figure, path)


@_plain_text
def plot_cosines(comparison: Comparison, row: int, path: Target) -> None:
    """Plot the cosines of one row against the base model's of the same pairs, and both histograms, as a PNG."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    scatter, histogram = figure.subplots(1, 2)
    base, reduced = comparison.cosines[0], comparison.cosines[row]
    name = f"{comparison.rows[row].name}, {comparison.rows[row].precision}"
    scatter.plot(base[:_MOST_POINTS], reduced[:_MOST_POINTS], ".", color=_COLOURS[0], alpha=0.3, markersize=4)
    ends = [float(min(base.min(), reduced.min())), 1.0]
    scatter.plot(ends, ends, color="grey", linestyle="--", linewidth=1)
    scatter.set(title="Cosine of the same pairs of texts", xlabel="base model", ylabel=name)
    edges = np.linspace(ends[0], 1, 60)
    histogram.hist(base, edges, label="base model", color="grey", alpha=0.5)
    histogram.hist(reduced, edges, label=name, color=_COLOURS[0], alpha=0.5)
    histogram.set(title="Histogram of the cosines", xlabel="cosine", ylabel=f"of {len(base):,} pairs")
    histogram.legend(fontsize=8)
    _save(figure, path)


def _axes(title: str, x: str, y: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def _save(figure: Figure, path: Target) -> None:
    if not isinstance(path, (str, os.PathLike)):
        figure.savefig(path, dpi=150, format="png")
        return
    with new_file(path) as file:
        figure.savefig(file, dpi=150, format="png")
