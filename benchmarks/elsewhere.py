"""Heads fitted on other texts than they are used on, and how few of the right ones are enough.

    python -m benchmarks.elsewhere [--data FOLDER]

Writes benchmarks/ELSEWHERE.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.data import SHARED, Task, fit_unit_vectors
from benchmarks.peers import PEERS, Refused
from benchmarks.printing import header, paragraph, table, write
from st_dimreduce import Size, Summary
from st_dimreduce.codes.precision import quantize
from st_dimreduce.codes.search import search

MODEL, CORPORA = "all-MiniLM-L6-v2", ("docstrings", "CISI", "CACM")
RIGHT, BUDGET = (50, 200, 1000), 128
MOST_OTHERS = 3000
OTHER, ALL = "other texts", "all of the right texts"
RIVALS = ("FAISS PQ", "FAISS RaBitQ")


def mixed(task: Task, others: list[Task], right: int) -> Task:
    """Return a task that is fitted on texts of other corpora and on so many of its own, which count as much."""
    some = [(text, row) for other in others for text, row in zip(other.texts.train, other.train, strict=True)]
    general = [some[i] for i in np.random.default_rng(0).permutation(len(some))[:MOST_OTHERS]]
    own = own_texts(task, right)
    return task.fitted_on(general + own * (len(general) // max(len(own), 1)))


def own_texts(task: Task, right: int) -> list[tuple[str, np.ndarray]]:
    """Return so many texts of a task with their vectors, drawn at random."""
    rows = np.random.default_rng(0).permutation(len(task.train))[:right]
    return [(task.texts.train[row], task.train[row]) for row in rows]


def ways(task: Task, others: list[Task]) -> Iterator[tuple[str, Task]]:
    """Yield what to fit on, by name."""
    yield OTHER, mixed(task, others, 0)
    for right in RIGHT:
        if right > RIGHT[0]:
            yield f"{right:,} of the right texts", task.fitted_on(own_texts(task, right))
        yield f"{right:,} of the right texts and others", mixed(task, others, right)
    yield ALL, task


def ours(task: Task) -> float:
    """Return nDCG@10 of a head fitted within the byte budget."""
    summary, size = Summary.of(task.train), Size(bytes=BUDGET)
    head = fit_unit_vectors(summary, size, cloze_pairs=task.cloze_pairs)
    codes = quantize(head.forward(task.documents), head.precision)
    return task.judge(partial(search, head.forward(task.queries), codes, head.precision))["ndcg"]


def rival(task: Task, name: str) -> float:
    """Return nDCG@10 of a peer's best setting."""
    found = (each for each in PEERS[name](task, BUDGET, 0) if not isinstance(each, Refused))
    return max(task.judge(each.find)["ndcg"] for each in found)


def rows(shared: Path) -> Iterator[list[str]]:
    """Yield the rows of the table: what was fitted on, and the share of the full model's nDCG@10 per corpus."""
    tasks = {name: Task(MODEL, name, shared) for name in CORPORA}
    shares: dict[tuple[str, str], list[float]] = {}
    for corpus, task in tasks.items():
        full = task.judge(partial(search, task.queries, task.documents, "float32"))["ndcg"]
        others = [other for name, other in tasks.items() if name != corpus]
        for way, fitted in ways(task, others):
            rivals = {name: partial(rival, name=name) for name in RIVALS if way in (OTHER, ALL)}
            for name, fit in {"st_dimreduce": ours, **rivals}.items():
                share = 100 * fit(fitted) / full
                shares.setdefault((way, name), []).append(share)
                print(corpus, way, name, f"{share:.1f}", flush=True)
    for (way, name), found in shares.items():
        yield [way, name, *(f"{share:.1f}" for share in found), f"{np.mean(found):.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="folder of the data files")
    given = parser.parse_args()
    method = f"""
        nDCG@10 in percent of the full model's, {MODEL}, documents in codes of {BUDGET} bytes, queries in float. Fitted
        on {MOST_OTHERS:,} texts of the other two corpora, on a few of the right ones, or on both, where the few are
        repeated until they count as much as the others; cloze pairs are made of the texts that are fitted on. Of a peer
        the best setting is shown, selected by the figure itself. One random draw of the texts: a difference of a point
        or two means little. Fewer than 60 texts alone are too few to choose within a byte budget."""
    found = table(["fitted on", "method", *CORPORA, "mean"], list(rows(given.data)), left=2)
    blocks = ["# Fitted elsewhere", header("elsewhere", ("st_dimreduce", "faiss-cpu")), paragraph(method), found]
    write("ELSEWHERE.md", blocks)
    print("\n\n".join(blocks))


if __name__ == "__main__":
    main()
