"""Whether ``drift`` notices that a head no longer fits what arrives, and stays silent where it does.

    python -m benchmarks.drift [--data FOLDER] [--corpora CISI CACM ...]

Writes benchmarks/DRIFT.md. Vectors are kept in benchmarks/.cache, like those of ``benchmarks.quality``.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

import numpy as np

from benchmarks.data import DATASETS, SHARED, vectors
from benchmarks.printing import header, paragraph, table, write
from st_dimreduce import Size, Summary
from st_dimreduce.apps.docstrings import PACKAGES, package_pairs
from st_dimreduce.base_head import BaseHead
from st_dimreduce.enums import Verdict
from st_dimreduce.fitting.fit import fit_head
from st_dimreduce.fitting.reference import measure
from st_dimreduce.vectors.drift import Drift, measure_drift

MINILM, USE = "all-MiniLM-L6-v2", "USE"
CHOSEN_ON = ("docstrings", "CISI")  # with MiniLM: where the limits were chosen
ENGLISH, KOREAN = ("docstrings", "CISI", "CACM", "STS-B"), ("KorSTS", "KorQuAD")
CORPORA = {MINILM: (*ENGLISH, *KOREAN), USE: ("docstrings", "CISI", *KOREAN)}
SIZES, SAMPLES, SPLITS, MIXED = (200, 500, 1000, 3000), 20, 2, (0.1, 0.25, 0.5)
USE_TEXTS = 5000  # of a corpus: the encoder takes a tenth of a second per text

Fit = Callable[[Summary], BaseHead]
HEADS: dict[str, Fit] = {
    "quality, 128": partial(fit_head, size=128),
    "quality, 32 bytes": partial(fit_head, size=Size(bytes=32)),
    "fidelity, 128": partial(fit_head, size=128, strength=0),
    "fidelity, 128, distilled": partial(fit_head, size=128, objective="fidelity"),
    "quality, 256": partial(fit_head, size=256),
}
DISTILLED, WIDE = "fidelity, 128, distilled", "quality, 256"


@cache
def corpus(model: str, name: str, data: Path) -> np.ndarray:
    """Return the vectors of a corpus, in random order."""
    found = list(dict.fromkeys(filter(None, DATASETS[name](data).train)))
    found = found[:USE_TEXTS] if model == USE else found
    return np.random.default_rng(0).permutation(vectors(model, name, "drift", found))


@cache
def halves(model: str, name: str, data: Path, split: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the half of a corpus to fit on, and the half that comes later."""
    rows = np.random.default_rng(split).permutation(corpus(model, name, data))
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


@cache
def head(model: str, name: str, data: Path, split: int, way: str) -> BaseHead:
    """Return a head fitted on half of a corpus."""
    return HEADS[way](Summary.of(halves(model, name, data, split)[0]))


def judged(
    model: str, name: str, data: Path, way: str, size: int, other: str | None = None, share: float = 1.0
) -> list[Drift] | None:
    """Return what drift says of 20 samples, of the half that the head was not fitted on or with a share of others.

    None where there are fewer vectors than a sample takes.
    """
    foreign = round(share * size) if other else 0
    rows = [] if other is None else corpus(model, other, data)
    if len(rows) < foreign or len(halves(model, name, data, 0)[1]) < size - foreign:
        return None
    said = []
    for sample in range(SAMPLES):
        split = sample % SPLITS
        rng = np.random.default_rng(sample)
        own = halves(model, name, data, split)[1]
        drawn = [own[rng.permutation(len(own))[: size - foreign]]]
        drawn += [rows[rng.permutation(len(rows))[:foreign]]] if foreign else []
        said.append(measure_drift(head(model, name, data, split, way), np.concatenate(drawn)))
    return said


def cell(said: list[Drift] | None) -> str:
    """Return how many samples of 20 are to be refitted, and in brackets watched."""
    if said is None:
        return ""
    counts = Counter(one.verdict for one in said)
    watched = f" ({counts[Verdict.WATCH]})" if counts[Verdict.WATCH] else ""
    return f"{counts[Verdict.REFIT]}{watched}"


def ways(model: str, name: str) -> Iterator[str]:
    """Yield the heads that are fitted on a corpus."""
    yield from (way for way in HEADS if way != WIDE and (way != DISTILLED or name in CHOSEN_ON))


def fresh(data: Path) -> str:
    """Return the table of samples that a head should fit."""
    rows = [
        [f"{model}, {name}", way, *(cell(judged(model, name, data, way, size)) for size in SIZES)]
        for model, names in CORPORA.items()
        for name in names
        for way in ways(model, name)
    ]
    return table(["model, corpus", "head", *(f"{size:,}" for size in SIZES)], rows, 2)


def across(model: str, name: str, data: Path, way: str) -> list[str]:
    """Return the row of a head for samples of every other corpus."""
    names = CORPORA[model]
    said = {other: judged(model, name, data, way, 200, other) or [] for other in names if other != name}
    least, other = min((margin(one), other) for other, found in said.items() for one in found)
    cells = [cell(said.get(other) or None) for other in CORPORA[MINILM]]
    return [f"{model}, {name}", way, *cells, f"{other}, {least:.1f}"]


def foreign(data: Path) -> str:
    """Return the table of samples of another corpus than the head was fitted on."""
    rows = [
        across(model, name, data, way)
        for model, names in CORPORA.items()
        for name in names
        for way in ways(model, name)
    ]
    return table(["fitted on", "head", *CORPORA[MINILM], "weakest, times the limit"], rows, 2)


def wide(data: Path) -> str:
    """Return the same table for heads that keep most dimensions, with samples of the same corpus on the diagonal."""
    rows = []
    for model, names in CORPORA.items():
        for name in names:
            row = across(model, name, data, WIDE)
            row[2 + CORPORA[MINILM].index(name)] = f"own: {cell(judged(model, name, data, WIDE, 200))}"
            rows.append(row)
    return table(["fitted on", "head", *CORPORA[MINILM], "weakest, times the limit"], rows, 2)


def margin(said: Drift) -> float:
    """Return the largest share of its limit that a figure reaches."""
    return max(figure.now / figure.refit for figure in said.figures if figure.refit)


def mixed(data: Path) -> str:
    """Return the table of samples of which a share is of another corpus."""
    rows = []
    mixtures = {
        MINILM: (
            "docstrings CISI",
            "CISI docstrings",
            "CISI CACM",
            "CISI STS-B",
            "docstrings CACM",
            "docstrings KorQuAD",
        ),
        USE: ("docstrings CISI", "docstrings KorQuAD", "KorSTS docstrings"),
    }
    pairs = [(model, *mixture.split()) for model, mixed in mixtures.items() for mixture in mixed]
    for model, name, other in (pair for pair in pairs if set(pair[1:]) <= set(CORPORA.get(pair[0], ()))):
        for way in ways(model, name):
            cells = [
                " / ".join(cell(judged(model, name, data, way, n, other, share)) for n in (200, 1000))
                for share in MIXED
            ]
            rows.append([f"{model}, {name} + {other}", way, *cells])
    return table(["fitted on + others", "head", *(f"{share:.0%}" for share in MIXED)], rows, 2)


def packages() -> str:
    """Return the table of docstrings of a package that the head has not seen any of."""
    documents = {name: sorted({document for _, document in package_pairs(name)}) for name in PACKAGES}
    embedded = {name: vectors(MINILM, name, "drift", found) for name, found in documents.items()}
    rows = []
    for name in PACKAGES:
        others = np.concatenate([rows for package, rows in embedded.items() if package != name])
        cells = []
        for fit in (fit for way, fit in HEADS.items() if way != WIDE):
            found = measure_drift(fit(Summary.of(others)), embedded[name])
            lost = found.figures[0]
            cells.append(f"{found.verdict.value}, {100 * lost.now:.0f} ({100 * (lost.at_fit or 0):.0f})")
        rows.append([name, f"{len(embedded[name]):,}", *cells])
    return table(["new package", "documents", *(way for way in HEADS if way != WIDE)], rows)


def package_blocks() -> list[str]:
    """Return the part about packages, each of which is new to a fit on the others."""
    return [
        "## Docstrings of a package that the fit has seen none of",
        paragraph("Verdict, and the share of the variance that is lost, in percent, at the fit in brackets."),
        packages(),
    ]


def overlap(data: Path) -> str:
    """Return the table of the figures of a few heads, on their own corpus and on others."""
    rows = []
    for name in CHOSEN_ON:
        for way in ("quality, 128", DISTILLED):
            for other in (None, *CORPORA[MINILM]):
                if other == name or name not in CORPORA[MINILM]:
                    continue
                said = judged(MINILM, name, data, way, 700, other)
                if said is None:
                    continue
                cells = [
                    f"{100 * np.mean([f.now for f in found]):.1f} ({100 * np.mean([f.at_fit for f in found]):.1f})"
                    for found in ([one.figures[i] for one in said] for i in range(2))
                ]
                rows.append([f"{name}, {way}", other or "its own", *cells])
    return table(["fitted on, head", "new vectors", "variance lost, %", "neighbours lost, %"], rows, 2)


def seen(data: Path) -> str:
    """Return the table of what would be said if the reference were measured on vectors that the fit saw."""
    rows = []
    for name in (name for name in CHOSEN_ON if name in CORPORA[MINILM]):
        for way in ways(MINILM, name):
            counts = []
            for of_seen in (False, True):
                said = []
                for sample in range(SAMPLES):
                    split = sample % SPLITS
                    fitted, later = halves(MINILM, name, data, split)
                    drawn = later[np.random.default_rng(sample).permutation(len(later))[:500]]
                    known = head(MINILM, name, data, split, way)
                    if of_seen:
                        losses = asdict(measure(known, Summary.of(fitted)))
                        known = known.with_record(reference=(known.record.reference or {}) | losses)
                    said.append(measure_drift(known, drawn))
                counts.append(cell(said))
            rows.append([f"{name}, {way}", *counts])
    return table(["fitted on, head", "held out from the fit", "seen by the fit"], rows)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--corpora", nargs="+", help="those to measure, with all-MiniLM-L6-v2 alone; all by default")
    data, chosen = (given := parser.parse_args()).data, given.corpora
    if chosen:
        CORPORA.clear()
        CORPORA[MINILM] = tuple(chosen)
    about = f"""Every corpus is split in halves at random: a head is fitted on one, and samples of the other are what
        arrives. Cells count, of {SAMPLES} samples, those that drift says to refit the head for, and in brackets those
        that it says to watch. The {SAMPLES} samples are drawn for {SPLITS} splits. The limits were chosen on
        {" and ".join(CHOSEN_ON)} with {MINILM}; everything else judges them.
        {"Measured: " + ", ".join(chosen) + "." if chosen else f"With USE, {USE_TEXTS:,} texts of a corpus at most."}"""
    blocks = [
        "# Does a head still fit what arrives?",
        header("drift", ("numpy", "sentence-transformers"), about),
        "## Fresh samples of the same corpus",
        paragraph("Columns: vectors per sample. Every refit here is a false alarm."),
        fresh(data),
        "## Samples of another corpus",
        paragraph(f"200 vectors per sample. {SAMPLES} is right in every cell. Last: the sample of 200 that is "
                  "nearest to going unnoticed, and its largest figure as a multiple of the limit."),
        foreign(data),
        paragraph("256 dimensions of 384 or 512 lose so little that a head may nearly do for another corpus. On the "
                  "diagonal: samples of the same corpus."),
        wide(data),
        "## A share of another corpus",
        paragraph("200 / 1,000 vectors per sample, of which this share is of the other corpus."),
        mixed(data),
        *([] if chosen else package_blocks()),
        "## The figures",
        paragraph("Means of 20 samples of 700; at the fit, on vectors held out, in brackets. The overlap of a head for "
                  "quality does not fall on foreign texts, since such a head departs from the base model's neighbours "
                  "on purpose: so the variance lost is judged as well."),
        overlap(data),
        "## Why the reference is held out",
        paragraph("The same samples of 500, compared with vectors held out from the fit, as in the record, and with "
                  "those that the head was fitted on: false alarms of 20."),
        seen(data),
    ]  # fmt: skip
    write("DRIFT.md", blocks)


if __name__ == "__main__":
    main()
