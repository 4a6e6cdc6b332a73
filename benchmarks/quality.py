"""Quality per byte: this package beside its peers, on the same vectors, in one run.

    python -m benchmarks.quality [--models M ...] [--datasets D ...] [--bytes N ...] [--seeds N ...] [--rows TEXT ...]
        [--protocols all unseen]
    python -m benchmarks.quality --draw

Writes benchmarks/QUALITY.md, the tables behind it, benchmarks/QUALITY-tables.md, and the picture of the summary,
benchmarks/readme-light.png and readme-dark.png, which ``--draw`` draws again from the summary as it is printed. In the
protocol "all" every method is fitted on all documents that it stores; in "unseen" on half of them, as if the others
came later. Every measurement is kept in benchmarks/.cache, in a file per method, budget and seed, so that an
interrupted run resumes; ``--again`` measures anew, ``--kept`` measures
nothing. The report covers what the options select.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.choosing import random_half, two_fold, verdict
from benchmarks.data import (
    CACHE,
    DATASETS,
    GAIN,
    MODELS,
    RETRIEVAL,
    SHARED,
    TUNED,
    TUNING_STEPS,
    Task,
    fit_unit_vectors,
    fit_untrained,
    measured,
)
from benchmarks.peers import BUDGETS, PEERS, SEEDED, Found, Peer, Refused
from benchmarks.printing import FOLDER, header, paragraph, table, write
from benchmarks.training import BATCH
from st_dimreduce import Precision, Size, Summary
from st_dimreduce.codes.metrics import Estimate, Mean, RankCorrelation, interval
from st_dimreduce.codes.precision import quantize
from st_dimreduce.codes.search import search
from st_dimreduce.enums import Objective
from st_dimreduce.evaluation.compare import compare_embeddings
from st_dimreduce.evaluation.embeddings import Embedded, Stored
from st_dimreduce.evaluation.peers import OPQ_STEPS
from st_dimreduce.evaluation.plots import THEMES, ThemeName, label_ends, style
from st_dimreduce.files import new_file

OURS = "st_dimreduce"
PACKAGES = ("st_dimreduce", "sentence-transformers", "torch", "numpy", "scikit-learn", "faiss-cpu")
PROTOCOLS = {"all": "All documents fitted", "unseen": "Unseen documents"}
TITLES = {
    "ndcg": "nDCG@10",
    "recall": "recall@10",
    "seen": "nDCG@10, seen",
    "unseen": "nDCG@10, unseen",
    "spearman": "Spearman",
    "overlap": "overlap@10",
}
SHORT = {"all-MiniLM-L6-v2": "MiniLM", "all-mpnet-base-v2": "mpnet"}
MARKS = {"ahead": ">", "even": "≈", "behind": "<"}


def ours(task: Task, budget: int, seed: int) -> Iterator[Found]:
    """``fit_head`` within a byte budget, in closed form, for either objective; default settings but for the gain."""
    for objective in Objective:
        start = time.perf_counter()
        summary = Summary.of(task.train, seed=seed)
        head = fit_untrained(summary, Size(bytes=budget), objective, task.cloze_pairs, seed)
        seconds = time.perf_counter() - start
        precision = head.precision
        find = partial(search, head.forward(task.queries), quantize(head.forward(task.documents), precision), precision)
        setting = f"{objective.value}, {head.out_features} x {precision.value}"
        yield Found(setting, find, precision.bytes_per_vector(head.out_features), head.weight.nbytes, seconds)


METHODS: dict[str, Peer] = {"full model": PEERS["full model"], OURS: ours, **PEERS}
QUALITY, FIDELITY = (f"{OURS}, {objective.value}" for objective in (Objective.QUALITY, Objective.FIDELITY))
RIVALS = [name for name in PEERS if name != "full model"]
NAMES = ["full model", QUALITY, FIDELITY, *RIVALS]


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
    queries, documents = head.forward(task.queries), head.forward(task.documents)
    reduced = [Stored("reduced", Embedded(queries, documents), Precision.INT8)]
    row = compare_embeddings(Embedded(task.queries, task.documents), reduced, task.texts.relevant).rows[1]
    here = task.judge(partial(search, queries, quantize(documents, Precision.INT8), Precision.INT8))
    near = max(1e-3, 0.2 / len(queries))  # a tie of one query may end either way
    for name, compared in (("ndcg", row.ndcg), ("recall", row.recall), ("overlap", row.overlap)):
        assert compared is not None
        assert abs(here[name] - compared) < near, f"{name}: {here[name]}, compare says {compared}"


@dataclass
class Entry:
    """A method within a byte budget, with the setting that was chosen for each query.

    Attributes:
        name: A name of ``NAMES``.
        budget: The largest budget, up to the given one, that the method can use.
        runs: What was found, by setting and seed.
        picks: For each query the row of its setting.
    """

    name: str
    budget: int
    runs: list[list[dict[str, Any]]]
    picks: np.ndarray

    def values(self, metric: str) -> np.ndarray:
        """Return the values of shape (s, q): by seed and query."""
        values = np.array([[run["per_query"][metric] for run in runs] for runs in self.runs], dtype=float)
        return values[self.picks, :, np.arange(len(self.picks))].T

    def mean(self, name: str) -> float:
        """Return the mean of a figure that is no metric over the queries and seeds."""
        return float(np.mean([np.mean([run[name] for run in runs]) for runs in self.runs] @ self._shares))

    @property
    def settings(self) -> str:
        """The settings that were chosen."""
        used = [runs for runs, share in zip(self.runs, self._shares, strict=True) if share]
        return " or ".join(dict.fromkeys(run["setting"] for runs in used for run in runs))

    @property
    def _shares(self) -> np.ndarray:
        return np.bincount(self.picks, minlength=len(self.runs)) / len(self.picks)


@dataclass(eq=False)
class Part:
    """The measurements of a model on a data set in one protocol."""

    protocol: str
    task: Task
    rows: list[dict[str, Any]]

    def __post_init__(self) -> None:
        self.half = random_half(len(self.task.queries))
        self.title = f"{SHORT.get(self.task.model, self.task.model)}, {self.task.dataset}"
        self.metric = "unseen" if self.protocol == "unseen" else self.task.metric
        self._entries: dict[tuple[str, int, str], Entry | None] = {}

    @cached_property
    def full(self) -> dict[str, np.ndarray]:
        """The full model's metrics, query by query."""
        return self.task.per_query(partial(search, self.task.queries, self.task.documents, "float32"))

    def estimate(self, metric: str, values: np.ndarray) -> Estimate:
        """Return a metric over the queries, whose values have the shape (s, q) or (q,)."""
        if metric == "spearman":
            return RankCorrelation(values, np.asarray(self.task.texts.scores), self.half)
        return Mean(np.atleast_2d(values).mean(axis=0))

    def entry(self, name: str, budget: int, metric: str | None = None) -> Entry | None:
        """Return a method within a budget, its settings chosen by a metric, ours as it is; None if not measured."""
        by = metric or self.metric
        if (name, budget, by) not in self._entries:
            self._entries[name, budget, by] = self._chosen(name, budget, by)
        return self._entries[name, budget, by]

    def _chosen(self, name: str, budget: int, metric: str) -> Entry | None:
        found: dict[int, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
        for row in self.rows:
            for run in row["found"] if row["budget"] <= budget else []:
                label = f"{OURS}, {run['setting'].split(',')[0]}" if row["method"] == OURS else row["method"]
                if label == name:
                    # The dimension and precision that an objective chooses may change with the seed.
                    found[row["budget"]][name if row["method"] == OURS else run["setting"]].append(run)
        if not found:
            return None
        used = max(found)  # a method that cannot use all bytes, such as one bit per dimension, uses fewer
        seeds = max(map(len, found[used].values()))
        runs = [some for some in found[used].values() if len(some) == seeds]
        values = [np.array([run["per_query"][metric] for run in some], dtype=float) for some in runs]

        def value(setting: int, rows: np.ndarray) -> float:
            if metric == "spearman":
                return RankCorrelation(values[setting][:, rows], np.asarray(self.task.texts.scores)[rows]).value
            return Mean(values[setting][:, rows].mean(axis=0)).value

        return Entry(name, used, runs, two_fold(len(runs), value, self.half))

    def value(self, entry: Entry, metric: str | None = None) -> Estimate:
        """Return a metric of a method."""
        return self.estimate(metric or self.metric, entry.values(metric or self.metric))

    def share(self, entry: Entry, metric: str | None = None) -> float:
        """Return a metric of a method in percent of the full model's."""
        metric = metric or self.metric
        return 100 * self.value(entry, metric).value / self.estimate(metric, self.full[metric]).value

    def limits(self, entry: Entry, metric: str | None = None) -> str:
        """Return the 95 % interval of the share."""
        metric = metric or self.metric
        low, high = interval(self.value(entry, metric), self.estimate(metric, self.full[metric]))
        return f"{100 * low:.1f}-{100 * high:.1f}"

    def rival(self, budget: int, metric: str | None = None) -> Entry | None:
        """Return the best peer within a budget."""
        entries = [entry for name in RIVALS if (entry := self.entry(name, budget, metric))]
        return max(entries, key=lambda entry: self.share(entry, metric), default=None)

    def verdict(self, name: str, budget: int, metric: str | None = None) -> str | None:
        """Return whether ours is ahead of the best peer, even or behind; None if either is missing."""
        entry, rival = self.entry(name, budget, metric), self.rival(budget, metric)
        if entry is None or rival is None:
            return None
        return verdict(self.value(entry, metric), self.value(rival, metric))


def cells(parts: list[Part], budgets: list[int], name: str = QUALITY, metric: str | None = None) -> str:
    """Return the table of ours beside the best peer of every cell."""
    rows = []
    for part in parts:
        of = metric or part.metric
        row = [part.title, *([] if of == "overlap" else [f"{100 * part.estimate(of, part.full[of]).value:.1f}"])]
        for budget in budgets:
            entry, rival = part.entry(name, budget, metric), part.rival(budget, metric)
            if entry is None or rival is None:
                row.append("-")
                continue
            mark = MARKS[str(part.verdict(name, budget, metric))]
            mine = f"{part.share(entry, metric):.1f} ({part.limits(entry, metric)})"
            row.append(f"{mine} **{mark}** {part.share(rival, metric):.1f} {rival.name.removeprefix('FAISS ')}")
        rows.append(row)
    full = [] if metric == "overlap" else ["full model"]
    return table(["", *full, *[f"{budget} bytes" for budget in budgets]], rows)


def corpora_of(parts: list[Part]) -> list[Part]:
    """Return the parts that the means are over."""
    return [part for part in parts if part.task.dataset in RETRIEVAL and part.task.model != TUNED]


def shares(parts: list[Part], name: str, budget: int) -> dict[str, float]:
    """Return the shares of the full model's metric that a method reaches, by cell."""
    found = [(part, part.entry(name, budget)) for part in parts]
    return {part.title: part.share(entry) for part, entry in found if entry}


def best_rivals(parts: list[Part], budgets: list[int]) -> list[str]:
    """Return the three peers of the best mean over all cells, of those that were measured in every cell."""
    means = {}
    for name in RIVALS:
        found = [part.share(entry) for part in parts for budget in budgets if (entry := part.entry(name, budget))]
        if len(found) == len(parts) * len(budgets):
            means[name] = np.mean(found)
    return sorted(means, key=lambda name: -means[name])[:3]


def summary(parts: list[Part], budgets: list[int], rivals: list[str]) -> str:
    """Return the table of the mean and the worst share at every budget, and of how often ours is ahead."""
    rows = []
    for name in (QUALITY, FIDELITY, *rivals):
        row = [f"**{name}**" if name == QUALITY else name]
        for budget in budgets:
            found = shares(parts, name, budget)
            worst = min(found, key=found.__getitem__, default="")
            mean = f"{np.mean(list(found.values())):.1f}" if found else "-"
            bold = "**" if found and name == QUALITY else ""
            row.append(f"{bold}{mean}{bold} ({found[worst]:.1f} {worst})" if found else "-")
        rows.append(row)
    row = ["quality: ahead / even / behind"]
    for budget in budgets:
        verdicts = [part.verdict(QUALITY, budget) for part in parts]
        row.append(" / ".join(str(verdicts.count(one)) for one in MARKS))
    return table(["", *[f"{budget} bytes" for budget in budgets]], [*rows, row])


def method(rows: list[dict[str, Any]]) -> str:
    """Return how it was measured, in a few lines."""
    count = len({row["seed"] for row in rows})
    seeds = f"{count} seeds" if count > 1 else "one seed"
    return paragraph(f"""
        No method sees labels or the queries, which stay float unless a method says otherwise. Figures are percent of
        the full model's nDCG@10; methods with a seed run with {seeds}. "All": fitted on all documents that
        are stored, or on STS on the sentences of another split. "Unseen": fitted on a random half and judged by the
        relevant documents of the other half, as documents are that come later; all are stored, but relevant ones of
        the first half do not count. Ours are the defaults, which choose dimension and precision by themselves (only
        the gain is {GAIN}), for either objective. Of a peer all settings were tried that suit the bytes: on each half
        of the queries (a random split) it is judged with the setting that is best on the other half, on STS by the
        ranks within the half. The best peer of a cell is the one that is then best there. (a-b) is a 95 % interval,
        from a bootstrap over the queries. `>`: ours is ahead of the best peer, which is named behind its figure: the
        interval of the paired difference is above 0; `<`: behind, it is below 0; `≈`: even. The rule that chooses the
        strength was set with all of these corpora at hand, and two others: expect slightly less on other texts.
        [TRIED.md](TRIED.md) lists what did not help.""")


def report(parts: list[Part], budgets: list[int]) -> list[str]:
    """Return the blocks of QUALITY.md."""
    rows = [row for part in parts for row in part.rows]
    corpora = corpora_of(parts)
    rivals = best_rivals(corpora, budgets)
    blocks = [
        "# Quality per byte",
        header("quality", PACKAGES, f"{sum(row['wall'] for row in rows):,.0f} seconds of fitting and searching."),
        method(rows),
        "The tables behind this page, every method with its settings, are in [QUALITY-tables.md](QUALITY-tables.md).",
    ]
    if drawn := curves(means(corpora, budgets, rivals)):
        about = """
            The mean over all models and corpora, and in brackets the worst of them. The peers are the three of the best
            mean over both protocols and all budgets, of those that were measured in every cell. The last row counts the
            cells of the tables below, against the best peer of each."""
        blocks += ["## Summary", *caption(drawn), paragraph(about)]
    by_protocol = {name: [part for part in corpora if part.protocol == name] for name in PROTOCOLS}
    for name, some in by_protocol.items():
        blocks += [f"### {PROTOCOLS[name]}", summary(some, budgets, rivals)] if some else []
    blocks.append("## Ours beside the best peer")
    for name, some in by_protocol.items():
        blocks += [f"### {PROTOCOLS[name]}: nDCG@10", cells(some, budgets)] if some else []
    similar = [part for part in parts if part.metric == "spearman"]
    if similar:
        blocks += ["### Sentence similarity: Spearman", cells(similar, budgets)]
    if by_protocol["all"]:
        about = "Of the full model's 10 nearest documents, the share that is found: ours with the objective fidelity."
        blocks += ["### Fidelity: overlap@10", about, cells(by_protocol["all"], budgets, FIDELITY, "overlap")]
    return [*blocks, *tuned(parts, budgets), "## Elsewhere", "More texts: [ELSEWHERE.md](ELSEWHERE.md)."]


def tuned(parts: list[Part], budgets: list[int]) -> list[str]:
    """Return the blocks on a base that was trained on labelled pairs of the corpus."""
    blocks = []
    for name, title in PROTOCOLS.items():
        some = [part for part in parts if part.task.model == TUNED and part.protocol == name]
        blocks += [f"### {title}", cells(some, budgets)] if some else []
    about = paragraph(f"""
        MiniLM after {TUNING_STEPS} steps of {BATCH} labelled pairs of docstrings (a first sentence and the text below
        it, not the test queries), reduced without labels. It is not part of the means above.""")
    return ["## A base trained on the corpus", about, *blocks] if blocks else []


def details(part: Part) -> str:
    """Return the table of every method in one part."""
    budgets = sorted({row["budget"] for row in part.rows})
    names = [name for name in TITLES if name in part.full]
    rows = []
    for budget in budgets:
        entries = [entry for name in NAMES if (entry := part.entry(name, budget)) and entry.budget == budget]
        for entry in sorted(entries, key=part.share, reverse=True):
            side = entry.mean("side")
            stored = f"{entry.mean('bytes'):.0f}" + (f" +{side:.1f}" if side else "")
            values = [f"{100 * part.value(entry, name).value:.1f}" for name in names]
            share = f"{part.share(entry):.1f} ({part.limits(entry)})"
            rows.append([f"{budget}", entry.name, entry.settings, share, *values, f"{entry.mean('fit'):.1f}", stored])
    titles = [TITLES[name] for name in names]
    return table(["bytes", "method", "setting", "% of full", *titles, "seconds to fit", "bytes stored"], rows, left=3)


def tables(parts: list[Part]) -> list[str]:
    """Return the blocks of QUALITY-tables.md."""
    method = f"""
        Metrics are in percent, each over the queries and seeds; the method is that of [QUALITY.md](QUALITY.md). "% of
        full" is the share of the full model's nDCG@10, of unseen documents in that protocol, or Spearman, with its 95 %
        interval; settings were chosen by it. Overlap is with the 10 nearest documents of the full model. "+x" is what
        is stored once (matrices, codebooks), divided by the number of vectors. FAISS trains PQ without the polysemous
        step, which changes no distance, and OPQ once, with {OPQ_STEPS} of its 50 steps. Seconds to fit are of single
        runs on a busy machine: right to a factor of two or three."""
    blocks = ["# Quality per byte: every method", header("quality", PACKAGES), paragraph(method)]
    for part in parts:
        count = f"{len(part.task.documents):,} documents, {len(part.task.queries):,} queries"
        full = f"full model {TITLES[part.metric]} {100 * part.estimate(part.metric, part.full[part.metric]).value:.2f}"
        title = f"## {PROTOCOLS[part.protocol]}: {part.task.model} ({part.task.width} dimensions), {part.task.dataset}"
        blocks += [title, f"{count}; {full}.", details(part), *not_run(part)]
    refused = {setting: reason for part in parts for row in part.rows for setting, reason in row["refused"]}
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


Means = dict[str, dict[str, list[float]]]  # by protocol and method, at every budget


def means(corpora: list[Part], budgets: list[int], rivals: list[str]) -> Means:
    """Return the mean share of the full model's metric that ours and the best peers keep, where all was measured."""
    found: Means = {}
    for protocol in PROTOCOLS if budgets else ():
        some = [part for part in corpora if part.protocol == protocol]
        for name in (QUALITY, *rivals) if some else ():
            values = [list(shares(some, name, budget).values()) for budget in budgets]
            if all(len(of) == len(some) for of in values):
                found.setdefault(protocol, {})[name] = [float(np.mean(of)) for of in values]
    return found


def printed(text: str) -> tuple[list[int], Means]:
    """Return the budgets and the means of the summary as QUALITY.md has it."""
    budgets: list[int] = []
    found: Means = {}
    for protocol, title in PROTOCOLS.items():
        section = text.partition(f"### {title}\n\n")[2].partition("\n\n")[0]
        head, _, *rows = section.splitlines()
        budgets = [int(number) for number in re.findall(r"(\d+) bytes", head)]
        for row in rows[:-1]:  # the last one counts cells
            name, *shown = row.replace("*", "").strip("| ").split(" | ")
            if name != FIDELITY:
                found.setdefault(protocol, {})[name] = [float(one.split(" ")[0]) for one in shown]
    return budgets, found


def curves(found: Means) -> dict[str, tuple[str, list[float]]]:
    """Return the protocol and the mean share at every budget of each line of the picture: ours first, in both.

    A peer is drawn in the protocol that is better for it, so that neither of our lines can profit from the choice.
    """
    drawn: dict[str, tuple[str, list[float]]] = {}
    for name in dict.fromkeys(name for of in found.values() for name in of):
        lines = {protocol: of[name] for protocol, of in found.items() if name in of}
        if name == QUALITY:
            drawn |= {OURS if p == "all" else f"{OURS}, {p}": (p, line) for p, line in lines.items()}
        else:
            protocol = max(lines, key=lambda protocol: np.mean(lines[protocol]))
            drawn[name] = protocol, lines[protocol]
    return drawn


def caption(drawn: dict[str, tuple[str, list[float]]]) -> list[str]:
    """Return the picture, and the line that explains it."""
    peers = ", ".join(f"{name}: {protocol}" for name, (protocol, _) in drawn.items() if not name.startswith(OURS))
    about = f"""
        The means of the tables below. Peers are drawn in the protocol that is better for them ({peers}); of ours, both
        are."""
    picture = """
        <picture><source media="(prefers-color-scheme: dark)" srcset="readme-dark.png"><img src="readme-light.png"
        alt="Mean share of the full model's nDCG@10 against bytes per vector"></picture>"""
    return [" ".join(picture.split()), paragraph(about)]


def draw(lines: dict[str, list[float]], budgets: list[int], theme: ThemeName) -> None:
    """Draw the mean share of the full model's nDCG@10 against bytes per vector, each line labelled at its end.

    Args:
        lines: The shares at every budget: ours, dashed for unseen documents, and of peers.
        budgets: Bytes per vector.
        theme: The page that it is drawn for.
    """
    with style(theme, size=13) as colours:
        figure = Figure(figsize=(8.4, 4.4), layout="constrained")
        panel = figure.subplots()
        panel.axhline(100, color=colours.ink, linewidth=1.2)
        ends = {"full model, float32": (budgets[-1], 100.0, colours.ink)}
        ours, *others = colours.colours
        peers = dict(zip((label for label in lines if not label.startswith(OURS)), others, strict=False))
        for label, shares in lines.items():
            mine = label not in peers
            colour = peers.get(label, ours)
            dashes: Any = (0, (3, 1.2)) if mine and label != OURS else "-"
            width = 3.2 if mine else 1.8
            panel.plot(budgets, shares, "o", color=colour, linewidth=width, linestyle=dashes, markersize=width + 4)
            ends[label] = budgets[-1], shares[-1], colour
        panel.set_xscale("log", base=2)
        panel.set_xticks(budgets, [f"{budget}" for budget in budgets])
        panel.minorticks_off()
        panel.set(xlabel="bytes per vector")
        panel.set_title("% of the full model's nDCG@10")
        label_ends(panel, ends, bold={OURS, f"{OURS}, unseen"})
        with new_file(FOLDER / f"readme-{theme}.png") as file:
            figure.savefig(file, dpi=150, format="png")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS))
    parser.add_argument("--bytes", nargs="+", type=int, help="byte budgets; 0 is the full vector. Defaults to all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=[""], help="parts of the names of methods. Defaults to all")
    parser.add_argument("--data", type=Path, default=SHARED, help="folder of the data files")
    parser.add_argument("--again", action="store_true", help="measure again what is kept")
    parser.add_argument("--draw", action="store_true", help="draw the picture from QUALITY.md, and do nothing else")
    parser.add_argument("--kept", action="store_true", help="measure nothing, report what is kept")
    return parser.parse_args()


def measured_part(protocol: str, model: str, dataset: str, chosen: argparse.Namespace) -> Part:
    """Return the measurements of a model on a data set, made now or kept."""
    task = Task(model, dataset, chosen.data, half=protocol == "unseen")
    check(task)
    part = Part(protocol, task, [])
    for budget in chosen.bytes or (BUDGETS if task.seen is not None else [*BUDGETS, 0]):
        for method in (name for name in METHODS if any(text in name for text in chosen.rows)):
            for seed in chosen.seeds if method == OURS or method in SEEDED else [0]:
                part.rows += measure(task, budget or 4 * task.width, method, seed, chosen)
    return part


def draw_printed() -> None:
    """Draw the summary of QUALITY.md, on a light and on a dark page; nothing if it has none."""
    text = (FOLDER / "QUALITY.md").read_text()
    if all(f"### {title}" in text.partition("## Ours")[0] for title in PROTOCOLS.values()):
        budgets, found = printed(text)
        for theme in THEMES:
            draw({label: line for label, (_, line) in curves(found).items()}, budgets, theme)


def main() -> None:
    chosen = options()
    if chosen.draw:
        draw_printed()
        return
    parts = [
        measured_part(protocol, model, dataset, chosen)
        for protocol in chosen.protocols
        for model in chosen.models
        for dataset in chosen.datasets
        if measured(model, dataset) and (protocol == "all" or dataset in RETRIEVAL)
    ]
    parts = [part for part in parts if part.rows]
    budgets = sorted(set(chosen.bytes or BUDGETS) - {0})
    blocks = report(parts, budgets)
    write("QUALITY.md", blocks)
    write("QUALITY-tables.md", tables(parts))
    draw_printed()
    print("\n\n".join(blocks))


if __name__ == "__main__":
    main()
