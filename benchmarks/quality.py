"""Quality per byte: this package beside its peers, on the same vectors, in one run.

    python -m benchmarks.quality [--models M ...] [--datasets D ...] [--bytes N ...] [--seeds N ...] [--rows TEXT ...]
    python -m benchmarks.quality --half

Writes benchmarks/QUALITY.md and benchmarks/quality.png; or with ``--half``, where every method is fitted on half of the
documents and all are stored, benchmarks/UNSEEN.md. Every measurement is kept in benchmarks/.cache, in a file per
method, budget and seed, so that an interrupted run resumes; ``--again`` measures anew, ``--kept`` measures nothing. The
report covers what the options select.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from benchmarks.data import (
    CACHE,
    DATASETS,
    GAIN,
    MODELS,
    RETRIEVAL,
    SHARED,
    TEST_QUERIES,
    Task,
    fit_unit_vectors,
    measured,
)
from benchmarks.peers import BUDGETS, OPQ_STEPS, PEERS, SEEDED, Found, Peer, Refused
from benchmarks.printing import FOLDER, header, paragraph, table, write
from st_dimreduce import Objective, Precision, Size, Summary, quantize, search
from st_dimreduce.evaluation.compare import compare_embeddings
from st_dimreduce.evaluation.embeddings import Embedded, Stored
from st_dimreduce.files import new_file

OURS = "st_dimreduce"
PACKAGES = ("st_dimreduce", "sentence-transformers", "torch", "numpy", "scikit-learn", "faiss-cpu")
HALF_BUDGETS = (16, 32, 64, 128)
TITLES = {"ndcg": "nDCG@10", "recall": "recall@10", "spearman": "Spearman", "overlap": "overlap@10"}


def ours(task: Task, budget: int, seed: int) -> Iterator[Found]:
    """``fit_head`` within a byte budget, in closed form, for either objective; default settings but for the gain."""
    for objective in Objective:
        start = time.perf_counter()
        summary = Summary.of(task.train, seed=seed)
        head = fit_unit_vectors(
            summary,
            Size(bytes_per_vector=budget),
            objective=objective,
            cloze_pairs=task.cloze_pairs,
            train=False,
            seed=seed,
        )
        seconds = time.perf_counter() - start
        precision = head.precision
        find = partial(search, head.reduce(task.queries), quantize(head.reduce(task.documents), precision), precision)
        setting = f"{objective.value}, {head.out_features} x {precision.value}"
        yield Found(setting, find, precision.bytes_per_vector(head.out_features), head.weight.nbytes, seconds)


METHODS: dict[str, Peer] = {"full model": PEERS["full model"], OURS: ours, **PEERS}


def measure(task: Task, budget: int, method: str, seed: int, chosen: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the metrics of a method's settings at one budget, measured now or kept before; empty if neither."""
    name = f"{budget}-{method}-{seed}".replace(" ", "_").replace(",", "")
    path = CACHE / "quality" / f"{task.model}-{task.dataset}-{task.digest}" / f"{name}.json"
    if chosen.kept or (path.exists() and not chosen.again):
        return [json.loads(path.read_text())] if path.exists() else []
    start = time.perf_counter()
    row: dict[str, Any] = {"budget": budget, "method": method, "seed": seed, "found": [], "refused": []}
    for found in METHODS[method](task, budget, seed):
        if isinstance(found, Refused):
            row["refused"].append([found.setting, found.reason])
            continue
        sizes = {"bytes": found.bytes, "side": found.side_bytes / len(task.documents), "fit": found.seconds}
        values = {name: list(map(_rounded, of)) for name, of in task.per_query(found.find).items()}
        row["found"].append({"setting": found.setting, "per_query": values} | sizes)
    row["wall"] = time.perf_counter() - start
    with new_file(path) as file:
        file.write_text(json.dumps(row))
    result = f"{len(row['found'])} settings"
    label = f"{task.model}, {task.dataset}, {budget} bytes, {method}, seed {seed}"
    print(f"{label}: {result}, {row['wall']:.1f} s", flush=True)
    return [row]


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)


def check(task: Task) -> None:
    """Make sure that searching the codes gives the metrics that ``st_dimreduce.compare`` reports."""
    if task.texts.relevant is None:
        return
    head = fit_unit_vectors(Summary.of(task.train), 64)
    queries, documents = head.reduce(task.queries), head.reduce(task.documents)
    reduced = [Stored("reduced", Embedded(queries, documents), Precision.INT8)]
    row = compare_embeddings(Embedded(task.queries, task.documents), reduced, task.texts.relevant).rows[1]
    here = task.judge(partial(search, queries, quantize(documents, Precision.INT8), Precision.INT8))
    for name, compared in (("ndcg", row.ndcg), ("recall", row.recall), ("overlap", row.overlap)):
        assert compared is not None
        assert abs(here[name] - compared) < 1e-3, f"{name}: {here[name]}, compare says {compared}"


@dataclass
class Line:
    """A setting of a method at a budget, over the seeds."""

    budget: int
    method: str
    setting: str
    runs: list[dict[str, Any]]
    metric: str

    def mean(self, name: str) -> float:
        """Mean over the seeds."""
        return float(np.mean([run[name] for run in self.runs]))

    @property
    def value(self) -> float:
        """Mean of the metric against human labels."""
        return self.mean(self.metric)

    def cell(self, name: str) -> str:
        """The mean in percent, with the lowest and highest in brackets where there are several seeds."""
        shares = [100 * run[name] for run in self.runs]
        limits = f" ({min(shares):.1f}-{max(shares):.1f})" if len(shares) > 1 else ""
        return f"{np.mean(shares):.1f}{limits}"


@dataclass
class Part:
    """The measurements of a model on a data set."""

    task: Task
    metric: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def full(self) -> dict[str, float]:
        """The full model's metrics."""
        return self.task.judge(partial(search, self.task.queries, self.task.documents, "float32"))

    def lines(self) -> list[Line]:
        """Return all our settings and the best setting of each peer; the best first within a budget."""
        settings: dict[tuple[int, str], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
        for row in self.rows:
            for found in row["found"]:
                settings[row["budget"], row["method"]][found["setting"]].append(found)
        lines = []
        for (budget, method), runs in settings.items():
            some = [Line(budget, method, setting, of, self.metric) for setting, of in runs.items()]
            lines += some if method == OURS else [max(some, key=lambda line: line.value)]
        return sorted(lines, key=lambda line: (line.budget, -line.value))


def best(lines: list[Line], most: int, mine: bool) -> Line | None:
    """Return the best of our lines, or of the peers', within a budget."""
    some = [line for line in lines if line.budget <= most and (line.method == OURS) == mine]
    return max(some, key=lambda line: line.value, default=None)


def details(part: Part) -> str:
    """Return the table of one model and data set."""
    lines, full = part.lines(), part.full[part.metric]
    names = [name for name in TITLES if lines and name in lines[0].runs[0]]
    rows = []
    for line in lines:
        same = [other for other in lines if other.budget == line.budget]
        mine = best(same, line.budget, mine=True)
        lost = mine is not None and line.method != OURS and line.value > mine.value
        cells = [line.cell(name) for name in names]
        if line.value == max(other.value for other in same):
            cells[names.index(line.metric)] = f"**{cells[names.index(line.metric)]}**"
        side = line.mean("side")
        stored = f"{line.mean('bytes'):.0f}" + (f" +{side:.1f}" if side else "")
        row = ["<" if lost else "", f"{line.budget}", f"{line.method}: {line.setting}", *cells]
        rows.append([*row, f"{100 * line.value / full:.1f}", f"{line.mean('fit'):.1f}", stored])
    titles = [TITLES[name] for name in names]
    return table(["", "bytes", "method", *titles, "% of full", "seconds to fit", "bytes stored"], rows, left=3)


def overview(parts: list[Part]) -> str:
    """Return the table of our best line beside the best peer, at every budget."""
    budgets = sorted({row["budget"] for part in parts for row in part.rows if row["budget"] in BUDGETS})
    titles = [f"{part.task.model}, {part.task.dataset}" for part in parts]
    measured = [(part.lines(), part.full[part.metric]) for part in parts]
    rows = []
    for budget in budgets:
        cells = []
        for lines, full in measured:
            pair = [best(lines, budget, mine) for mine in (True, False)]
            top = max((line.value for line in pair if line), default=0)
            shares = [f"{100 * line.value / full:.1f}" if line else "-" for line in pair]
            bold = [f"**{s}**" if line and line.value == top else s for s, line in zip(shares, pair, strict=True)]
            named = [f" ({line.setting})" if line else "" for line in pair]
            cells.append(f"{bold[0]}{named[0]}; peer {bold[1]}{named[1]}")
        rows.append([f"{budget}", *cells])
    return table(["bytes at most", *titles], rows, left=1 + len(parts))


def plot(parts: list[Part], path: Path) -> None:
    """Draw the share of the full model's metric against bytes per vector, a panel per model and data set."""
    mpl.use("Agg")
    figure, panels = plt.subplots(1, len(parts), figsize=(5.5 * len(parts), 5), squeeze=False, layout="constrained")
    colours = {method: plt.get_cmap("tab20")(i) for i, method in enumerate(METHODS)}
    for panel, part in zip(panels[0], parts, strict=True):
        lines, full = part.lines(), part.full[part.metric]
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
        panel.set(title=f"{part.task.model}, {part.task.dataset}", xlabel="bytes per vector", ylim=(40, None))
        panel.set_ylabel(f"{TITLES[part.task.metric]}, % of the full model")
    panels[0][-1].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def report(parts: list[Part]) -> list[str]:
    """Return the blocks of QUALITY.md."""
    wall = sum(row["wall"] for part in parts for row in part.rows)
    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for part in parts for row in part.rows}))
    refused = {setting: reason for part in parts for row in part.rows for setting, reason in row["refused"]}
    method = f"""
        Every method is fitted without labels: for docstrings and CISI on the documents that it stores (the
        {TEST_QUERIES:,} test queries are never seen), for STS-B and KorSTS on the sentences of another split (train,
        dev). Queries stay float, except where a method says otherwise; on STS the first sentence is the query and
        the second is stored. Metrics are in percent; overlap is with the 10 nearest documents of the full model. Of
        a peer the best setting is shown, selected by the metric in the table; of ours the one that each objective
        chose without labels, with a gain of {GAIN}. The best result at a budget is bold; `<` marks a peer that is
        better than ours there. Seeded methods show the mean over the seeds that were run, of {seeds}, with the lowest
        and highest in
        brackets where there are several. "+x" is what is stored once (matrices, codebooks), divided by the number of
        vectors. FAISS trains PQ without the polysemous step, which changes no distance, and OPQ once, with
        {OPQ_STEPS} of its 50 steps. Seconds to fit are of single runs on a busy machine: right to a factor of two or
        three."""
    caution = """
        The strength of within-pair whitening, the power of whitening and whether to project out the mean were chosen
        once, for all data sets, with docstrings and CISI at hand: expect slightly less on other texts. KorSTS was
        not used for this. Dimension and precision are chosen without any labels."""
    blocks = [
        "# Quality per byte",
        header("quality", PACKAGES, f"{wall:,.0f} seconds of fitting and searching."),
        paragraph(method),
        paragraph(caution),
        "## Ours beside the best peer",
        "In percent of the full model's metric.",
        overview(parts),
    ]
    for part in parts:
        count = f"{len(part.task.documents):,} documents, {len(part.task.queries):,} queries"
        full = f"full model {TITLES[part.task.metric]} {100 * part.full[part.metric]:.2f}"
        title = f"## {part.task.model} ({part.task.width} dimensions), {part.task.dataset}"
        blocks += [title, f"{count}; {full}.", details(part), *not_run(part)]
    if refused:
        reasons: dict[str, list[str]] = defaultdict(list)
        for setting, reason in refused.items():
            reasons[reason].append(f"`{setting}`")
        items = [f"- {', '.join(settings)}: {reason}" for reason, settings in sorted(reasons.items())]
        blocks += ["## Settings that FAISS refused", "\n".join(items)]
    return blocks


def not_run(part: Part) -> list[str]:
    """Return a block that names the methods that were not run at every budget; none if all were."""
    budgets = {row["budget"] for row in part.rows}
    run = {(row["method"], row["budget"]) for row in part.rows}
    missing = [name for name in METHODS if any((name, budget) not in run for budget in budgets)]
    return [f"Not run at every budget: {', '.join(missing)}."] if missing else []


def unseen(parts: list[Part]) -> list[str]:
    """Return the blocks of UNSEEN.md."""
    wall = sum(row["wall"] for part in parts for row in part.rows)
    method = """
        Trained codebooks remember the documents that they were trained on, and a small corpus that is fitted as a whole
        flatters them. Here every method is fitted on a random half of the documents, and all documents are stored.
        "Seen" is nDCG@10, in percent of the full model's, of the relevant documents that were in that half; "unseen" of
        those that were not, as documents are that come later. The other relevant ones do not count, as if they were not
        stored. Of a peer the best setting is shown, selected by "unseen"; of ours the one that each objective chose
        without labels. The best at a budget is bold."""
    blocks = ["# Documents that come later", header("quality", PACKAGES, f"{wall:,.0f} seconds."), paragraph(method)]
    for part in parts:
        lines = part.lines()
        best = {line.budget: max(other.value for other in lines if other.budget == line.budget) for line in lines}
        rows = []
        for line in lines:
            bold = "**" if line.value == best[line.budget] else ""
            seen, later = (f"{100 * line.mean(name) / part.full[name]:.1f}" for name in ("seen", "unseen"))
            rows.append([f"{line.budget}", f"{line.method}: {line.setting}", seen, f"{bold}{later}{bold}"])
        blocks += [
            f"## {part.task.model}, {part.task.dataset}",
            f"{len(part.task.documents):,} documents, {len(part.task.queries):,} queries.",
            table(["bytes", "method", "seen", "unseen"], rows, left=2),
            *not_run(part),
        ]
    return blocks


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--bytes", nargs="+", type=int, help="byte budgets; 0 is the full vector. Defaults to all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=[""], help="parts of the names of methods. Defaults to all")
    parser.add_argument("--data", type=Path, default=SHARED, help="folder of the data files")
    parser.add_argument("--half", action="store_true", help="fit on half of the documents, write UNSEEN.md")
    parser.add_argument("--again", action="store_true", help="measure again what is kept")
    parser.add_argument("--kept", action="store_true", help="measure nothing, report what is kept")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    parts = []
    for model in chosen.models:
        for dataset in filter(partial(measured, model), chosen.datasets):
            if chosen.half and dataset not in RETRIEVAL:
                continue
            task = Task(model, dataset, chosen.data, half=chosen.half)
            check(task)
            part = Part(task, "unseen" if chosen.half else task.metric)
            for budget in chosen.bytes or (HALF_BUDGETS if chosen.half else [*BUDGETS, 0]):
                for method in (name for name in METHODS if any(text in name for text in chosen.rows)):
                    for seed in chosen.seeds if method == OURS or method in SEEDED else [0]:
                        size = budget or 4 * task.width
                        part.rows += measure(task, size, method, seed, chosen)
            parts.append(part)
    blocks = unseen(parts) if chosen.half else report(parts)
    write("UNSEEN.md" if chosen.half else "QUALITY.md", blocks)
    if not chosen.half:
        plot(parts, FOLDER / "quality.png")
    print("\n\n".join(blocks))


if __name__ == "__main__":
    main()
