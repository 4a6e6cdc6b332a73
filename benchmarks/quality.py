"""Quality per byte: this package beside its peers, on the same vectors, in one run.

    python benchmarks/quality.py [--models M ...] [--datasets D ...] [--bytes N ...] [--seeds N ...] [--rows TEXT ...]

Writes benchmarks/QUALITY.md and benchmarks/quality.png. What is measured is kept in benchmarks/.cache, a file a method,
budget and seed, so that a run that was stopped goes on where it was; ``--again`` measures anew, ``--kept`` measures
nothing. The report is about what the options name: a part alone, or, from what is kept, the whole.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import textwrap
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from data import CACHE, DATASETS, MODELS, SHARED, TEST_QUERIES, Task, pairing
from matplotlib import pyplot as plt
from peers import BUDGETS, OPQ_STEPS, PEERS, SEEDED, Found, Peer, Refused

from st_dimreduce.files import new_file
from st_dimreduce.evaluation.compare import compare_embeddings
from st_dimreduce.fitting import Objective, choose, fit_head
from st_dimreduce.codes.precision import Precision, quantize
from st_dimreduce.codes.search import search
from st_dimreduce.evaluation.embeddings import Embedded, Stored
from st_dimreduce.fitting.summary import Summary

OURS = "st_dimreduce"
PACKAGES = ("st_dimreduce", "sentence-transformers", "torch", "numpy", "scikit-learn", "faiss-cpu")
TITLES = {"ndcg": "nDCG@10", "recall": "recall@10", "spearman": "Spearman", "overlap": "overlap@10"}


def ours(task: Task, budget: int, seed: int) -> Iterator[Found]:
    """What ``reduce_model(bytes_per_vector=budget)`` does in closed form, for either objective and with no setting."""
    for objective in Objective:
        start = time.perf_counter()
        summary = Summary.of(task.train, seed=seed)
        options: dict[str, Any] = {"objective": objective, "pairs": task.pairs, "seed": seed}
        choice = choose(summary, bytes_per_vector=budget, **options).best
        head = fit_head(summary, choice.out_features, **options)
        seconds = time.perf_counter() - start
        codes = quantize(head.reduce(task.documents), choice.precision)
        find = partial(search, head.reduce(task.queries), codes, choice.precision)
        side = 4 * sum(weight.numel() for weight in head.parameters())
        setting = f"{objective.value}, {choice.out_features} x {choice.precision}"
        yield Found(setting, find, choice.bytes_per_vector, side, seconds)


METHODS: dict[str, Peer] = {"full model": PEERS["full model"], OURS: ours, **PEERS}


def measure(task: Task, budget: int, method: str, seed: int, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """One method at one budget, the figures of its settings, and what was refused, kept in a file; none if not kept."""
    name = f"{budget}-{method}-{seed}".replace(" ", "_").replace(",", "")
    path = CACHE / f"{task.model}-{task.dataset}-{task.digest}" / f"{name}.json"
    if chosen.kept or (path.exists() and not chosen.again):
        return [json.loads(path.read_text())] if path.exists() else []
    start = time.perf_counter()
    row: dict[str, Any] = {"budget": budget, "method": method, "seed": seed, "found": [], "refused": []}
    for found in METHODS[method](task, budget, seed):
        if isinstance(found, Refused):
            row["refused"].append([found.setting, found.reason])
            continue
        sizes = {"bytes": found.bytes, "side": found.side_bytes / len(task.documents), "fit": found.seconds}
        row["found"].append({"setting": found.setting} | sizes | task.judge(found.find))
    row["wall"] = time.perf_counter() - start
    with new_file(path) as file:
        file.write_text(json.dumps(row, indent=1))
    best = max((found[task.measure] for found in row["found"]), default=None)
    shown = "not possible" if best is None else f"{100 * best:.2f}"
    print(
        f"{task.model}, {task.dataset}, {budget} bytes, {method}, seed {seed}: {shown}, {row['wall']:.1f} s", flush=True
    )
    return [row]


def check(task: Task) -> None:
    """Make sure that the figures here are those of ``st_dimreduce.evaluation.compare``."""
    if task.texts.relevant is None:
        return
    head = fit_head(Summary.of(task.train), 64)
    queries, documents = head.reduce(task.queries), head.reduce(task.documents)
    reduced = [Stored("reduced", Embedded(queries, documents), Precision.INT8)]
    row = compare_embeddings(Embedded(task.queries, task.documents), reduced, task.texts.relevant).rows[1]
    here = task.judge(partial(search, queries, quantize(documents, Precision.INT8), Precision.INT8))
    for name, theirs in (("ndcg", row.ndcg), ("recall", row.recall), ("overlap", row.overlap)):
        assert theirs is not None and abs(here[name] - theirs) < 1e-3, f"{name}: {here[name]}, compare says {theirs}"


@dataclass
class Line:
    """A setting of a method at a budget, over the seeds."""

    budget: int
    method: str
    setting: str
    runs: list[dict[str, Any]]
    measure: str

    def mean(self, name: str) -> float:
        return float(np.mean([run[name] for run in self.runs]))

    @property
    def value(self) -> float:
        return self.mean(self.measure)

    def cell(self, name: str) -> str:
        shares = [100 * run[name] for run in self.runs]
        spread = f" ({min(shares):.1f}-{max(shares):.1f})" if len(shares) > 1 else ""
        return f"{np.mean(shares):.1f}{spread}"


@dataclass
class Part:
    """What was measured of a model on a data set."""

    task: Task
    rows: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def full(self) -> float:
        """What the full model reaches."""
        return self.task.judge(partial(search, self.task.queries, self.task.documents, "float32"))[self.task.measure]

    def lines(self) -> list[Line]:
        """Every split of ours, the best setting of each peer; the best first within a budget."""
        settings: dict[tuple[int, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
        for row in self.rows:
            for found in row["found"]:
                settings[row["budget"], row["method"]][found["setting"]].append(found)
        lines = []
        for (budget, method), runs in settings.items():
            some = [Line(budget, method, setting, of, self.task.measure) for setting, of in runs.items()]
            lines += some if method == OURS else [max(some, key=lambda line: line.value)]
        return sorted(lines, key=lambda line: (line.budget, -line.value))


def best(lines: list[Line], most: int, mine: bool) -> Line | None:
    """The best of ours, or of the peers, with at most so many bytes."""
    some = [line for line in lines if line.budget <= most and (line.method == OURS) == mine]
    return max(some, key=lambda line: line.value, default=None)


def table(part: Part) -> str:
    lines, full = part.lines(), part.full
    names = [name for name in TITLES if lines and name in lines[0].runs[0]]
    head = ["", "bytes", "method", *(TITLES[name] for name in names), "% of full", "seconds to fit", "bytes stored"]
    out = [f"| {' | '.join(head)} |", f"|{' --- |' * 3}{' ---: |' * (len(head) - 3)}"]
    for line in lines:
        same = [other for other in lines if other.budget == line.budget]
        mine = best(same, line.budget, mine=True)
        lost = mine is not None and line.method != OURS and line.value > mine.value
        cells = [line.cell(name) for name in names]
        if line.value == max(other.value for other in same):
            cells[names.index(line.measure)] = f"**{cells[names.index(line.measure)]}**"
        side = line.mean("side")
        stored = f"{line.mean('bytes'):.0f}" + (f" +{side:.1f}" if side else "")
        row = ["<" if lost else "", f"{line.budget}", f"{line.method}: {line.setting}", *cells]
        row += [f"{100 * line.value / full:.1f}", f"{line.mean('fit'):.1f}", stored]
        out.append(f"| {' | '.join(row)} |")
    return "\n".join(out)


def summary(parts: list[Part]) -> str:
    budgets = sorted({row["budget"] for part in parts for row in part.rows if row["budget"] in BUDGETS})
    titles = [f"{part.task.model}, {part.task.dataset}" for part in parts]
    out = [f"| bytes at most | {' | '.join(titles)} |", f"| ---: |{' --- |' * len(parts)}"]
    measured = [(part.lines(), part.full) for part in parts]
    for budget in budgets:
        cells = []
        for lines, full in measured:
            pair = [best(lines, budget, mine) for mine in (True, False)]
            top = max((line.value for line in pair if line), default=0)
            shown = [f"{100 * line.value / full:.1f}" if line else "-" for line in pair]
            bold = [f"**{s}**" if line and line.value == top else s for s, line in zip(shown, pair, strict=True)]
            named = [f" ({line.setting})" if line else "" for line in pair]
            cells.append(f"{bold[0]}{named[0]}; peer {bold[1]}{named[1]}")
        out.append(f"| {budget} | {' | '.join(cells)} |")
    return "\n".join(out)


def plot(parts: list[Part], path: Path) -> None:
    """Share of the full model's figure against bytes: a panel a model and data set."""
    mpl.use("Agg")
    figure, panels = plt.subplots(1, len(parts), figsize=(5.5 * len(parts), 5), squeeze=False, layout="constrained")
    colours = {method: plt.get_cmap("tab20")(i) for i, method in enumerate(METHODS)}
    for panel, part in zip(panels[0], parts, strict=True):
        lines, full = part.lines(), part.full
        for method in METHODS:
            points: dict[int, Line] = {}
            for line in lines:
                if line.method == method and (line.budget not in points or line.value > points[line.budget].value):
                    points[line.budget] = line
            x = [line.mean("bytes") for line in points.values()]
            y = [100 * line.value / full for line in points.values()]
            style: dict[str, Any] = {"linewidth": 3, "zorder": 3} if method == OURS else {"linewidth": 1}
            panel.plot(x, y, marker="o", markersize=4, color=colours[method], label=method, **style)
        panel.axhline(100, color="grey", linewidth=0.8)
        panel.set_xscale("log", base=2)
        panel.set_xticks([*BUDGETS, 4 * part.task.width], [*BUDGETS, 4 * part.task.width], rotation=90)
        panel.minorticks_off()
        panel.set(title=f"{part.task.model}, {part.task.dataset}", xlabel="bytes a vector", ylim=(40, None))
        panel.set_ylabel(f"{TITLES[part.task.measure]}, % of the full model")
    panels[0][-1].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def report(parts: list[Part]) -> str:
    wall = sum(row["wall"] for part in parts for row in part.rows)
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for part in parts for row in part.rows}))
    refused = {s: reason for part in parts for row in part.rows for s, reason in row["refused"]}
    text = f"""
        Printed by `python benchmarks/quality.py` on {date.today()}: {platform.machine()}, {os.cpu_count()} cores,
        Python {platform.python_version()}, {versions}; {wall:,.0f} seconds of fitting and searching.

        Every method is fitted without labels on the documents it stores (docstrings: all of them, the {TEST_QUERIES:,}
        test queries are never seen; CISI: all abstracts), for STS-B and KorSTS on the sentences of the part that is not
        tested (train, dev). Queries stay float, except where a method says otherwise; STS: the first sentence searches,
        the second is stored. Figures are in percent; overlap is with the full model's ten. Of a peer the best of its
        settings is shown, chosen by the very figure in the table; of ours what each objective chose by itself. The best
        at a budget is bold; `<` marks a peer that beats ours there. Of seeded methods the mean over the seeds
        of {seeds} that were run, with the lowest and highest in brackets where there is more than one. +x is what is
        stored once (matrices, codebooks), divided by the vectors. FAISS trains PQ without the polysemous step, which
        changes no distance, and OPQ with {OPQ_STEPS} steps of its 50, once.
        Seconds to fit are of single runs beside other work: right to a factor of two or three."""
    caution = """
        How hard to damp what differs within a pair, how much to whiten and whether to drop the mean was settled once,
        for all data, while docstrings and CISI were looked at: expect a little less on other texts. KorSTS had
        no part in it. Dimension and precision are chosen without any of the labels."""
    blocks = ["# Quality per byte", textwrap.dedent(text).strip(), textwrap.dedent(caution).strip()]
    blocks += ["## Ours beside the best peer", "Percent of the full model's figure.", summary(parts)]
    for part in parts:
        count = f"{len(part.task.documents):,} documents, {len(part.task.queries):,} queries"
        full = f"full model {TITLES[part.task.measure]} {100 * part.full:.2f}"
        title = f"## {part.task.model} ({part.task.width} dimensions), {part.task.dataset}"
        run = {row["method"] for row in part.rows}
        missing = [name for name in METHODS if name not in run]
        note = f"\n\nNot run here: {', '.join(missing)}." if missing else ""
        blocks += [title, f"{count}; {full}.", table(part) + note]
    if refused:
        reasons: dict[str, list[str]] = defaultdict(list)
        for setting, reason in refused.items():
            reasons[reason].append(f"`{setting}`")
        blocks += ["## What FAISS refused", "\n".join(f"- {', '.join(s)}: {r}" for r, s in sorted(reasons.items()))]
    return "\n\n".join(blocks) + "\n"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--bytes", nargs="+", type=int, help="byte budgets; 0 is the full vector. Defaults to all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=[""], help="parts of the names of methods. Defaults to all")
    parser.add_argument("--data", type=Path, default=SHARED, help="folder of the data files")
    parser.add_argument("--again", action="store_true", help="measure anew what is kept")
    parser.add_argument("--kept", action="store_true", help="measure nothing, report what is kept")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    parts = []
    for model in chosen.models:
        for dataset in filter(partial(pairing, model), chosen.datasets):
            task = Task(model, dataset, chosen.data)
            check(task)
            part = Part(task)
            for budget in chosen.bytes or [*BUDGETS, 0]:
                for method in (name for name in METHODS if any(text in name for text in chosen.rows)):
                    for seed in chosen.seeds if method == OURS or method in SEEDED else [0]:
                        size = budget or 4 * task.width
                        part.rows += measure(task, size, method, seed, chosen)
            parts.append(part)
    here = Path(__file__).parent
    text = report(parts)
    (here / "QUALITY.md").write_text(text)
    plot(parts, here / "quality.png")
    print(text)


if __name__ == "__main__":
    main()
