"""Figures as pictures, drawn with matplotlib where it is installed."""

from __future__ import annotations

import os
from typing import Any, BinaryIO

_COLOURS = {"ndcg": "#0072b2", "sts": "#009e73", "overlap": "#d55e00"}  # told apart by colour-blind eyes too
_NAMES = {"ndcg": "nDCG@10", "sts": "STS", "overlap": "overlap@10 with the base model"}


def plot_quality(figures: dict[str, Any], path: str | os.PathLike[str] | BinaryIO) -> None:
    """Draw what is found against the bytes a vector takes, and what the base model finds as squares and dashed lines.

    Args:
        figures: A comparison's ``to_dict()``, the base model's row first.
        path: The PNG to write, or a binary file: 1,200 by 800 pixels, to be read at half of that.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415, an extra
        from matplotlib.ticker import FuncFormatter, NullLocator  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("plots need matplotlib: pip install 'st_dimreduce[report]'") from error
    base, *rows = figures["rows"]
    drawn = sorted((row for row in rows if "untrained" not in row["name"]), key=lambda row: row["bytes_per_vector"])
    figure = Figure(figsize=(6, 4), dpi=200, layout="constrained")
    axes = figure.subplots()
    tops: dict[int, tuple[float, str]] = {}  # of the points above one another: the highest bears the name
    for key, colour in _COLOURS.items():
        points = [row for row in drawn if row.get(key) is not None]
        if not points or base.get(key) is None:
            continue
        widths, shares = [row["bytes_per_vector"] for row in points], [100 * row[key] for row in points]
        axes.errorbar(widths, shares, _spread(points, key), color=colour, marker="o", capsize=3, label=_NAMES[key])
        axes.plot(base["bytes_per_vector"], 100 * base[key], color=colour, marker="s", markersize=9, fillstyle="none")
        if key != "overlap":  # the base model agrees with itself in full, which says nothing
            axes.axhline(100 * base[key], color=colour, linestyle="--", linewidth=1)
        for row, share in [*zip(points, shares, strict=True), (base | {"precision": "base model"}, 100 * base[key])]:
            tops[row["bytes_per_vector"]] = max(tops.get(row["bytes_per_vector"], (0.0, "")), (share, row["precision"]))
    for width, (share, name) in tops.items():
        axes.annotate(name, (width, share), (0, 9), textcoords="offset points", ha="center", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(tops))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda width, _: f"{width:,.0f}"))
    axes.set_xlabel("bytes a vector")
    axes.set_ylabel("percent")
    axes.margins(0.1, 0.15)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, format="png")


def _spread(rows: list[dict[str, Any]], key: str) -> list[list[float]]:
    """Distances from each figure down and up to the ends of its interval, none where there is none."""
    ends = [(row.get("intervals") or {}).get(key) or (row[key], row[key]) for row in rows]
    pairs = list(zip(rows, ends, strict=True))
    down = [max(0.0, 100 * (row[key] - low)) for row, (low, _) in pairs]
    return [down, [max(0.0, 100 * (high - row[key])) for row, (_, high) in pairs]]
