"""Plots of a comparison, all in one style. Needs the extra ``report`` (matplotlib).

Each is written as PNG where a path is given, and as SVG into an open file, on a light or on a dark page.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Literal

import numpy as np

from st_dimreduce.codes.metrics import METRIC_NAMES
from st_dimreduce.enums import Precision
from st_dimreduce.errors import MissingExtraError
from st_dimreduce.evaluation.compare import Comparison
from st_dimreduce.files import new_file

try:
    from matplotlib import rc_context, rcParams
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise MissingExtraError("matplotlib is not installed: pip install 'st_dimreduce[report]'") from error

Target = str | os.PathLike[str] | IO[bytes]
ThemeName = Literal["light", "dark"]

_MOST_POINTS = 2000  # more hide one another
_LINE = 1.3  # height of a line of text, in font sizes
_LONGEST_LABEL = 30  # characters: more would leave the plot no place
_AXES = 0.8  # share of a plot's height that its axes take, about
_PRECISIONS = [precision.value for precision in Precision]


@dataclass(frozen=True)
class Theme:
    """The colours of a plot.

    Attributes:
        back: The page behind it.
        ink: Text and axes.
        soft: Lines to compare with.
        grid: The grid.
        colours: What is plotted: of Okabe and Ito's palette ("Color universal design", 2008), which colour-blind
            readers tell apart, as dark or as light as a label in them must be to be read.
    """

    back: str
    ink: str
    soft: str
    grid: str
    colours: tuple[str, ...]


THEMES: dict[ThemeName, Theme] = {
    "light": Theme(
        "#ffffff", "#1f2328", "#59636e", "#e4e7eb", ("#0072b2", "#b84f00", "#007a5a", "#aa4499", "#7a6000", "#59636e")
    ),
    "dark": Theme(
        "#0d1117", "#e6edf3", "#9aa4af", "#2b313a", ("#56b4e9", "#f0994a", "#2fc79a", "#e08bc1", "#d9c54a", "#9aa4af")
    ),
}


@contextmanager
def style(theme: ThemeName, size: float = 11) -> Iterator[Theme]:
    """Set the style of the plots made and saved within.

    Args:
        theme: The page that they are made for.
        size: Size of the text in points. Defaults to 11.
    """
    chosen = THEMES[theme]
    inked = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    colours = dict.fromkeys(inked, chosen.ink)
    backs = dict.fromkeys(("axes.facecolor", "figure.facecolor", "savefig.facecolor"), chosen.back)
    options: dict[str, Any] = {
        "font.size": size,
        "axes.titlesize": size,
        "axes.titlelocation": "left",
        "axes.edgecolor": chosen.soft,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": chosen.grid,
        "text.parse_math": False,  # the name of a model may hold dollar signs
        "svg.hashsalt": "st_dimreduce",  # the same plot is the same file
    }
    with rc_context(colours | backs | options):
        yield chosen


def plot_quality(figures: dict[str, Any], path: Target, theme: ThemeName = "light") -> None:
    """Plot the main metric of each row, with its 95 % interval, against its bytes per vector.

    Rows of one name are joined by a line. The base model is a dashed line.

    Args:
        figures: What :meth:`Comparison.to_dict` returned.
        path: The PNG file to write, by its path, or a file open for SVG.
        theme: The page that it is made for. Defaults to ``"light"``.
    """
    metric = figures.get("metric", "overlap")
    name = METRIC_NAMES[metric]
    base, *rows = figures["rows"]
    with style(theme) as chosen:
        figure, axes = _axes("bytes per vector", f"{name}, %")
        axes.axhline(100 * base[metric], color=chosen.soft, linestyle="--", linewidth=1)
        sizes = sorted({row["bytes_per_vector"] for row in rows})
        ends = {f"{base['name']}, {base['bytes_per_vector']:,} bytes": (sizes[-1], 100 * base[metric], chosen.soft)}
        for number, model in enumerate(dict.fromkeys(row["name"] for row in rows)):
            points = sorted((row for row in rows if row["name"] == model), key=lambda row: row["bytes_per_vector"])
            x, y = [row["bytes_per_vector"] for row in points], np.array([100 * row[metric] for row in points])
            limits = [row.get("intervals", {}).get(metric, (row[metric], row[metric])) for row in points]
            colour = chosen.colours[number % len(chosen.colours)]
            ours = points[0].get("seconds") is not None
            axes.errorbar(
                x,
                y,
                yerr=np.abs(100 * np.array(limits).T - y),
                color=colour,
                marker="o" if number < len(chosen.colours) else "s",
                markersize=7 if ours else 5,
                linewidth=2.5 if ours else 1.2,
                elinewidth=1,
                capsize=2,
                zorder=3 if ours else 2,
            )
            ends[model] = x[-1], float(y[-1]), colour
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes if len(sizes) < 9 else sizes[::2])
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        label_ends(axes, ends)
        _save(figure, path)


def plot_retention(comparison: Comparison, path: Target, theme: ThemeName = "light") -> None:
    """Plot the retention of the reduced models against their dimensions, one line per precision.

    Peers have no place in it: what they store is not the reduced model in another size.

    Args:
        comparison: The comparison.
        path: As in :func:`plot_quality`.
        theme: As in :func:`plot_quality`.
    """
    with style(theme) as chosen:
        figure, axes = _axes("dimensions", f"% of the base model's {METRIC_NAMES[comparison.metric]}")
        axes.axhline(100, color=chosen.soft, linestyle="--", linewidth=1)
        rows = [row for row in comparison.rows[1:] if row.precision in _PRECISIONS and row.seconds is not None]
        ends = {}
        for number, precision in enumerate(dict.fromkeys(row.precision for row in rows)):
            points = sorted((row for row in rows if row.precision == precision), key=lambda row: row.dimensions)
            x, y = [row.dimensions for row in points], [100 * row.retention for row in points]
            colour = chosen.colours[number % len(chosen.colours)]
            axes.plot(x, y, "o-", color=colour, markersize=5, linewidth=1.5)
            ends[precision] = x[-1], y[-1], colour
        axes.set_xticks(sorted({row.dimensions for row in rows}))
        label_ends(axes, ends)
        _save(figure, path)


def plot_changes(comparison: Comparison, row: int, path: Target, theme: ThemeName = "light") -> None:
    """Plot a histogram of what the queries gained and lost with one row; those without a change are counted only.

    Args:
        comparison: The comparison.
        row: The row's number.
        path: As in :func:`plot_quality`.
        theme: As in :func:`plot_quality`.
    """
    changes = 100 * comparison.changes[row]
    changes = changes[~np.isnan(changes)]
    lost, gained = changes[changes < 0], changes[changes > 0]
    with style(theme) as chosen:
        metric = METRIC_NAMES["ndcg" if comparison.metric == "ndcg" else "overlap"]
        figure, axes = _axes(f"change of a query's {metric}, in points", "queries", height=2.8)
        edges = np.linspace(-100, 100 if comparison.metric == "ndcg" else 0, 41 if comparison.metric == "ndcg" else 21)
        axes.hist(lost, edges, color=chosen.colours[1], rwidth=0.9)
        axes.hist(gained, edges, color=chosen.colours[0], rwidth=0.9)
        axes.axvline(0, color=chosen.soft, linewidth=1)
        same = f"{len(changes) - len(lost) - len(gained):,} unchanged"
        axes.set_title(f"{len(lost):,} lost", color=chosen.colours[1])
        if comparison.metric == "ndcg":
            axes.set_title(same, loc="center", color=chosen.soft)
            axes.set_title(f"{len(gained):,} gained", loc="right", color=chosen.colours[0])
        else:  # of ten neighbours none can be gained
            axes.set_title(same, loc="right", color=chosen.soft)
        _save(figure, path)


def plot_cosines(comparison: Comparison, row: int, path: Target, theme: ThemeName = "light") -> None:
    """Plot the cosines of one row against the base model's of the same pairs, and both histograms.

    Args:
        comparison: The comparison.
        row: The row's number.
        path: As in :func:`plot_quality`.
        theme: As in :func:`plot_quality`.
    """
    with style(theme) as chosen:
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        scatter, histogram = figure.subplots(1, 2)
        base, reduced = comparison.cosines[0], comparison.cosines[row]
        blue = chosen.colours[0]
        points = base[:_MOST_POINTS], reduced[:_MOST_POINTS]
        scatter.plot(*points, ".", color=blue, alpha=0.3, markersize=4, rasterized=True)
        ends = [float(min(base.min(), reduced.min())), 1.0]
        scatter.plot(ends, ends, color=chosen.soft, linestyle="--", linewidth=1)
        scatter.set(xlabel="cosine by the base model", ylabel="by the reduced model, of the same pairs")
        edges = np.linspace(ends[0], 1, 60)
        histogram.hist(base, edges, color=chosen.soft, alpha=0.5)
        histogram.hist(reduced, edges, color=blue, alpha=0.5)
        histogram.set(xlabel="cosine", ylabel=f"of {len(base):,} pairs")
        histogram.set_title("base model", color=chosen.soft)
        histogram.set_title("reduced model", loc="right", color=blue)
        _save(figure, path)


def label_ends(axes: Any, ends: Mapping[str, tuple[float, float, str]], bold: Collection[str] = ()) -> None:
    """Label each line beside the plot, where it ends, the labels moved apart.

    Args:
        axes: Axes with a linear y-axis.
        ends: For each label the end of its line, and its colour.
        bold: Labels in bold type. Defaults to none.
    """
    low, high = axes.get_ylim()
    gap = _LINE * rcParams["font.size"] / (72 * axes.figure.get_size_inches()[1] * _AXES)
    places = spread({label: (y - low) / (high - low) for label, (_, y, _) in ends.items()}, gap)
    for label, (x, y, colour) in ends.items():
        axes.annotate(
            label if len(label) <= _LONGEST_LABEL else f"{label[:_LONGEST_LABEL]} …",
            (x, y),
            (1.05, places[label]),
            textcoords="axes fraction",
            color=colour,
            va="center",
            fontweight="bold" if label in bold else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.8,
                "alpha": 0.7,
                "shrinkA": 2,
                "shrinkB": 5,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


def spread(places: Mapping[str, float], gap: float) -> dict[str, float]:
    """Move places apart until they are at least ``gap`` from each other, their order and mean kept."""
    names = sorted(places, key=lambda name: places[name])
    moved = np.array([places[name] for name in names])
    for _ in range(1000):
        short = np.maximum(gap - np.diff(moved), 0) / 2
        if short.max(initial=0) < 1e-3 * gap:
            break
        moved[:-1] -= short
        moved[1:] += short
    return dict(zip(names, moved.tolist(), strict=True))


def _axes(x: str, y: str, height: float = 3.6) -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    return figure, axes


def _save(figure: Figure, path: Target) -> None:
    if not isinstance(path, (str, os.PathLike)):
        figure.savefig(path, format="svg", metadata={"Date": None})
        return
    with new_file(path) as file:
        figure.savefig(file, dpi=150, format="png")
