"""The plot of a comparison, and the style of all plots of this project. Needs the extra ``report`` (matplotlib)."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Literal

import numpy as np

from st_dimreduce.codes.metrics import METRIC_NAMES
from st_dimreduce.errors import MissingExtraError
from st_dimreduce.files import new_file

try:
    from matplotlib import rc_context, rcParams
    from matplotlib.figure import Figure
except ModuleNotFoundError as error:
    raise MissingExtraError("matplotlib is not installed: pip install 'st_dimreduce[report]'") from error

ThemeName = Literal["light", "dark"]

_LINE = 1.3  # height of a line of text, in font sizes
_LONGEST_LABEL = 30  # characters, so that the plot keeps most of the width
_AXES = 0.8  # share of a plot's height that its axes take, about


@dataclass(frozen=True)
class Theme:
    """The colours of a plot.

    Attributes:
        back: The page behind it.
        ink: Text and axes.
        soft: Lines to compare with.
        grid: The grid.
        colours: Lines and their labels: the palette of Okabe and Ito ("Color universal design", 2008), which
            colour-blind readers tell apart, darkened or lightened until the labels are readable.
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
        "text.parse_math": False,  # a model's name may hold dollar signs
        "svg.hashsalt": "st_dimreduce",  # the same plot is the same file
    }
    with rc_context(colours | backs | options):
        yield chosen


def plot_quality(
    figures: dict[str, Any], target: str | os.PathLike[str] | IO[bytes], theme: ThemeName = "light"
) -> None:
    """Plot the main metric of each row, with its 95 % interval, against its bytes per vector.

    Rows of one name are joined by a line. The base model is a dashed line.

    Args:
        figures: What :meth:`st_dimreduce.Comparison.to_dict` returned.
        target: The path of a PNG file to write, or an open file, which gets SVG.
        theme: The page that it is made for. Defaults to ``"light"``.
    """
    metric = figures.get("metric", "overlap")
    base, *rows = figures["rows"]
    with style(theme) as chosen:
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel="bytes per vector", ylabel=f"{METRIC_NAMES[metric]}, %")
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
        if isinstance(target, (str, os.PathLike)):
            with new_file(target) as file:
                figure.savefig(file, dpi=150, format="png")
        else:
            figure.savefig(target, format="svg", metadata={"Date": None})


def label_ends(axes: Any, ends: Mapping[str, tuple[float, float, str]], bold: Collection[str] = ()) -> None:
    """Label each line beside the plot, at its end, with the labels moved apart.

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
    """Move places apart until they are at least ``gap`` from each other; their order and mean stay."""
    names = sorted(places, key=lambda name: places[name])
    moved = np.array([places[name] for name in names])
    for _ in range(1000):
        short = np.maximum(gap - np.diff(moved), 0) / 2
        if short.max(initial=0) < 1e-3 * gap:
            break
        moved[:-1] -= short
        moved[1:] += short
    return dict(zip(names, moved.tolist(), strict=True))
