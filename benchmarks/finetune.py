"""Training the transformer too: whole models beside heads on a frozen body.

    python -m benchmarks.finetune [--model M] [--device D] [--steps N] [--seed N] [--data FOLDER] [--again]

Writes benchmarks/FINETUNE.md. Models and metrics are kept in benchmarks/.cache/finetune, under names that contain the
settings, so that an interrupted run resumes; ``--again`` measures anew.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, the name everybody gives it

from benchmarks.data import CACHE, SHARED, TEST_QUERIES, Task, fit_untrained, minilm_path, mpnet_path
from benchmarks.printing import header, paragraph, table, write
from benchmarks.training import BATCH, PAIRS_RATE, TRAIN_LENGTH, batches, train, train_on_pairs
from st_dimreduce import Head, Pairs, Summary, save_portable
from st_dimreduce.apps.docstrings import docstring_pairs
from st_dimreduce.codes.precision import quantize
from st_dimreduce.codes.search import search
from st_dimreduce.enums import Objective
from st_dimreduce.evaluation.compare import compare_embeddings
from st_dimreduce.evaluation.embeddings import Embedded, Stored, embed
from st_dimreduce.files import new_file
from st_dimreduce.fitting.fit import fit_head
from st_dimreduce.models.attach import attach_head

KEPT = CACHE / "finetune"
OUT_FEATURES, TEMPERATURE = 128, 0.05
HELD_OUT, POOL = 500, 2000  # pairs that choose the learning rate, and the documents that their queries search
RATES: dict[str, Any] = {"teacher": ("overlap", 1e-5, 2e-5), "pairs": ("ndcg", PAIRS_RATE)}  # metric, rates to try
TITLES = {
    "quality": "head in closed form, quality",
    "fidelity": "head in closed form, fidelity",
    "documents": "head distilled, documents",
    "teacher": "head distilled, documents and queries",
    "whole teacher": "whole model distilled, documents and queries",
    "pairs": "head on labelled pairs",
    "whole pairs": "whole model on labelled pairs",
}


MODEL_PATHS: dict[str, Callable[[], str]] = {"all-MiniLM-L6-v2": minilm_path, "all-mpnet-base-v2": mpnet_path}


class RankAsTeacher(nn.Module):
    """Loss that trains a student to rank all texts by cosine as its teacher does; the label is the row of a text.

    A batch contains few of a text's neighbours, so each text is compared with all texts as the student last embedded
    them (cross-batch memory; Wang et al., CVPR 2020).
    """

    def __init__(self, model: SentenceTransformer, teacher: np.ndarray, memory: np.ndarray) -> None:
        super().__init__()
        self.model = model
        self.teacher, self.memory = (torch.from_numpy(rows).to(model.device) for rows in (teacher, memory))

    def forward(self, sentence_features: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        self.model.eval()  # dropout would add noise to the cosines
        student = F.normalize(self.model(sentence_features[0])["sentence_embedding"].float(), dim=1)
        with torch.autocast(student.device.type, enabled=False):  # bfloat16 rounds cosines too coarsely to rank by
            itself = F.one_hot(labels, len(self.memory)).bool()
            target = (self.teacher[labels] @ self.teacher.T / TEMPERATURE).masked_fill(itself, -1e4).softmax(dim=1)
            given = (student @ self.memory.clone().T / TEMPERATURE).masked_fill(itself, -1e4).log_softmax(dim=1)
            self.memory[labels] = student.detach()
            return -(target * given).sum(dim=1).mean()


class Bench:
    """A base model and the docstrings: pairs to train on, held-out pairs to choose the settings by, test queries."""

    def __init__(self, name: str, device: str, shared: Path, seed: int) -> None:
        self.name, self.seed = name, seed
        self.base = SentenceTransformer(MODEL_PATHS[name](), device=device)
        self.tasks = [Task(name, dataset, shared) for dataset in ("docstrings", "CISI")]
        self.task, pairs = self.tasks[0], docstring_pairs()
        self.labelled, self.held_out = pairs[TEST_QUERIES:-HELD_OUT], pairs[-HELD_OUT:]
        queries, documents = self.task.vectors("asked", [q for q, _ in pairs[TEST_QUERIES:]]), self.task.documents
        self.texts = [*self.task.texts.documents, *(query for query, _ in self.labelled)]
        self.vectors = np.concatenate([documents, queries[:-HELD_OUT]])
        self.pairs = Pairs(queries[:-HELD_OUT], documents[TEST_QUERIES:-HELD_OUT])
        self.held_out_queries, self.pool = queries[-HELD_OUT:], documents[-POOL:]
        # CPU time rather than wall time on a CPU, whose cores other processes may use too.
        self.clock = time.process_time if self.base.device.type == "cpu" else time.perf_counter

    def fitted(self, kind: str) -> Head:
        """Fit a head on a frozen body."""
        summary = Summary.of(self.vectors if kind == "teacher" else self.task.documents, seed=self.seed)
        arguments: dict[str, dict[str, Any]] = {
            "quality": {"cloze_pairs": self.task.cloze_pairs},
            "documents": {"objective": Objective.FIDELITY},
            "teacher": {"objective": Objective.FIDELITY},
            "pairs": {"pairs": self.pairs},
        }
        if kind == "fidelity":
            return fit_untrained(summary, OUT_FEATURES, Objective.FIDELITY, seed=self.seed)
        return fit_head(summary, OUT_FEATURES, seed=self.seed, **arguments[kind])

    def frozen(self, kind: str) -> dict[str, Any]:
        """Return the row of a head on a frozen body."""
        begin = self.clock()
        head = self.fitted(kind)
        row: dict[str, Any] = {"seconds": self.clock() - begin}
        row["chosen"] = self.chosen(Embedded(head.forward(self.held_out_queries), head.forward(self.pool)))
        return row | {t.dataset: judged(t, head.forward(t.queries), head.forward(t.documents)) for t in self.tasks}

    def chosen(self, embedded: Embedded) -> dict[str, float]:
        """Return the metrics on the held-out pairs, by which settings are chosen."""
        reduced, relevant = [Stored("reduced", embedded)], range(POOL - HELD_OUT, POOL)
        row = compare_embeddings(Embedded(self.held_out_queries, self.pool), reduced, relevant).rows[1]
        return {"ndcg": float(row.ndcg or 0), "overlap": row.overlap}

    def whole(self, kind: str, rate: float, steps: int, folder: Path) -> dict[str, Any]:
        """Train body and head, save the model to a folder, and return its row, with metrics on the held-out pairs."""
        model = attach_head(self.base, self.fitted(kind), trainable=True)
        row = {"rate": rate, "seconds": self._train(kind, model, rate, steps)}
        save_portable(model, folder, overwrite=True)
        embedded = embed(model, self.task.texts.documents[-POOL:], [query for query, _ in self.held_out])
        return row | {"chosen": self.chosen(embedded)}

    def tested(self, folder: Path) -> dict[str, Any]:
        """Return the test metrics of a model that was trained whole."""
        model, row = SentenceTransformer(str(folder), device=str(self.base.device)), {}
        for task in self.tasks:
            found = embed(model, task.texts.documents, task.texts.queries)
            row[task.dataset] = judged(task, np.asarray(found.queries), found.documents)
        return row

    def _train(self, kind: str, model: SentenceTransformer, rate: float, steps: int) -> float:
        begin = self.clock()
        if kind == "pairs":
            train_on_pairs(model, self.labelled, rate, steps, self.seed)
        else:
            memory = Head.from_model(model).transform(self.vectors)
            loss = RankAsTeacher(model, self.vectors, memory)
            # Of a longer text the teacher embedded all, the student would embed only the beginning.
            rows = batches(model, self.texts, steps, self.seed, longest=TRAIN_LENGTH)
            train(model, loss, {"text": self.texts, "label": list(range(len(self.texts)))}, rows, rate, self.seed)
        return self.clock() - begin


def judged(task: Task, queries: np.ndarray, documents: np.ndarray) -> dict[str, dict[str, float]]:
    """Return nDCG@10 and overlap@10 of float queries, by the precision of the stored documents."""
    stored = ("float32", "int8")
    return {name: task.judge(partial(search, queries, quantize(documents, name), name)) for name in stored}


def kept(name: str, again: bool, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what was measured under this name, now or before."""
    path = KEPT / f"{name}.json"
    if again or not path.exists():
        found = make()
        with new_file(path) as file:
            file.write_text(json.dumps(found, indent=1))
    found = json.loads(path.read_text())
    print(name, json.dumps(found), flush=True)
    return found


def measure(bench: Bench, steps: int, again: bool) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Return the row of every method, and the rows of all settings that were tried."""
    label = f"{bench.name}-{bench.task.digest}-{OUT_FEATURES}"
    heads = [kind for kind in TITLES if not kind.startswith("whole")]
    rows = {kind: kept(f"{label}-{kind}-{bench.seed}", again, partial(bench.frozen, kind)) for kind in heads}
    tried: dict[str, list[dict[str, Any]]] = {kind: [] for kind in RATES}
    for kind, (figure, *rates) in RATES.items():
        for rate in rates:
            name = f"{label}-whole-{kind}-{rate:g}-{steps}x{BATCH}x{TRAIN_LENGTH}-{bench.seed}"
            tried[kind].append(kept(name, again, partial(bench.whole, kind, rate, steps, KEPT / name)) | {"name": name})
        best = max(tried[kind], key=lambda row: row["chosen"][figure])
        tested = kept(f"{best['name']}-tested", again, partial(bench.tested, KEPT / best["name"]))
        rows[f"whole {kind}"] = best | tested
    return rows, tried


def results(bench: Bench, rows: dict[str, dict[str, Any]]) -> str:
    full = {task.dataset: judged(task, task.queries, task.documents)["float32"]["ndcg"] for task in bench.tasks}
    titles = [f"{dataset}: {title}" for dataset in full for title in ("nDCG@10", "% of full", "overlap@10")]
    base = [cell for ndcg in full.values() for cell in (f"{100 * ndcg:.1f}", "100", "100")]
    lines = [[f"base model, {bench.task.width} dimensions, float32", *base, ""]]
    for kind, title in TITLES.items():
        line = [title]
        for dataset, ndcg in full.items():
            figures = [rows[kind][dataset][stored] for stored in ("float32", "int8")]
            cells = {name: " / ".join(f"{100 * some[name]:.1f}" for some in figures) for name in ("ndcg", "overlap")}
            line += [cells["ndcg"], f"{100 * figures[0]['ndcg'] / ndcg:.1f}", cells["overlap"]]
        lines.append([*line, f"{rows[kind]['seconds']:.1f}"])
    return table(["", *titles, "seconds"], lines)


def settings(rows: dict[str, dict[str, Any]], tried: dict[str, list[dict[str, Any]]]) -> str:
    lines = []
    for kind, runs in tried.items():
        for row in [rows[kind], *runs]:
            title = TITLES[f"whole {kind}"] if "rate" in row else TITLES[kind]
            title = f"**{title}**" if row.get("name") == rows[f"whole {kind}"]["name"] else title
            chosen = [f"{100 * row['chosen'][name]:.1f}" for name in ("ndcg", "overlap")]
            lines.append([title, f"{row['rate']:g}" if "rate" in row else "", *chosen, f"{row['seconds']:.1f}"])
    return table(["", "learning rate", "held-out nDCG@10", "held-out overlap@10", "seconds"], lines)


def gained(rows: dict[str, dict[str, Any]], kind: str) -> str:
    """Return the change from also training the body, in points at float32."""
    said = []
    for dataset in ("docstrings", "CISI"):
        before, after = (rows[name][dataset]["float32"] for name in (kind, f"whole {kind}"))
        ndcg, overlap = (100 * (after[name] - before[name]) for name in ("ndcg", "overlap"))
        said.append(f"{ndcg:+.1f} nDCG@10 and {overlap:+.1f} overlap@10 on {dataset}")
    return ", ".join(said)


def report(
    bench: Bench, rows: dict[str, dict[str, Any]], tried: dict[str, list[dict[str, Any]]], steps: int
) -> list[str]:
    """Return the blocks of FINETUNE.md."""
    device = bench.base.device.type
    seconds = "CPU seconds" if device == "cpu" else "Seconds"
    about = f"""
        {device}, torch with {torch.get_num_threads()} threads. {bench.name}, {bench.task.width} -> {OUT_FEATURES}
        dimensions, seed {bench.seed}."""
    change = f"""
        Change from training the body as well, without labels: {gained(rows, "teacher")}; with labels:
        {gained(rows, "pairs")}. In points, one seed: differences below one point mean little."""
    method = f"""
        Tested with {TEST_QUERIES:,} queries of docstrings, never trained on, over {len(bench.task.documents):,}
        documents, and on CISI, which was not trained on, to see what is forgotten. In percent; overlap is with the
        base model's 10 nearest documents. a / b: documents in float32 / in int8 ({4 * OUT_FEATURES} / {OUT_FEATURES}
        bytes), queries in float. "Distilled": trained without labels to rank cosines as the base model does, on the
        documents, or also on {len(bench.labelled):,} other queries. "Labelled pairs": those queries and their
        documents, with `contrast_head` on the frozen body and MultipleNegativesRankingLoss on the whole model. A
        whole model starts as the row above it and is trained for {steps} steps of {BATCH} texts or pairs, up to
        {TRAIN_LENGTH} tokens each, in bfloat16. {seconds} of fitting and training, without encoding for the fit. The
        learning rate in bold below was chosen on {HELD_OUT} other pairs, searched among {POOL:,} documents: by
        overlap without labels, by nDCG@10 with them."""
    packages = ("st_dimreduce", "sentence-transformers", "torch")
    blocks = [
        "# Training the transformer too",
        header("finetune", packages, about),
        paragraph(change),
        paragraph(method),
    ]
    return [*blocks, results(bench, rows), "## Settings tried", settings(rows, tried)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODEL_PATHS, default="all-MiniLM-L6-v2")
    parser.add_argument("--device", default="cpu", help="cpu (the default), cuda, ...")
    parser.add_argument("--steps", type=int, default=300, help="training steps of a whole model. Defaults to 300")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=SHARED, help="folder of the data files")
    parser.add_argument("--again", action="store_true", help="measure again what is kept")
    given = parser.parse_args()
    bench = Bench(given.model, given.device, given.data, given.seed)
    blocks = report(bench, *measure(bench, given.steps, given.again), given.steps)
    write("FINETUNE.md", blocks)
    print("\n\n".join(blocks))


if __name__ == "__main__":
    main()
