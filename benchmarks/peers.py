"""How others store sentence embeddings in few bytes: the peers of ``benchmarks.quality``.

A peer is a generator over the settings of one method that suit a byte budget. It fits each setting on ``task.train``
without labels, and yields how to search with it, or why it was refused. The benchmark judges each half of the queries
with the setting that is best on the other half. Nothing is yielded where the method cannot use the budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import faiss
import numpy as np
import torch
from sentence_transformers.util import quantize_embeddings
from sklearn.decomposition import PCA

from benchmarks.data import Find, Task
from st_dimreduce import DimReduce, Precision
from st_dimreduce.codes.precision import quantize
from st_dimreduce.codes.search import search
from st_dimreduce.evaluation.peers import (
    inner_index,
    make_index,
    opq,
    pq,
    rabitq,
    rabitq_sizes,
    search_index,
    train_index,
)

BUDGETS = (16, 32, 64, 128)  # and, above them, the full float vector
_RESCORE_MULTIPLIER = 4  # candidates that are rescored, per result


@dataclass(frozen=True)
class Found:
    """A fitted method.

    Attributes:
        setting: The setting of the method.
        find: Searches with all queries.
        bytes: Bytes per stored vector.
        side_bytes: Bytes of what is stored once: matrices, codebooks, means.
        seconds: Seconds of the fit.
    """

    setting: str
    find: Find
    bytes: int
    side_bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Refused:
    """A setting that a library refused, and its reason."""

    setting: str
    reason: str


Peer = Callable[[Task, int, int], Iterator[Found | Refused]]


def fits(size: int, budget: int) -> bool:
    """Whether a fixed size belongs to this budget: the smallest budget that holds it."""
    return max((b for b in BUDGETS if b < budget), default=0) < size <= budget


def splits(width: int, budget: int, precisions: tuple[Precision, ...]) -> list[tuple[int, Precision]]:
    """Return every pair of dimensions and precision that uses a budget to the byte."""
    sizes = [(budget * 8 // precision.bits, precision) for precision in precisions]
    return [(size, precision) for size, precision in sizes if 0 < size <= width]


_PLAIN = (Precision.FLOAT32, Precision.INT8)


def full(task: Task, budget: int, _: int) -> Iterator[Found]:
    """The full vectors in float32."""
    if budget == 4 * task.width:
        yield Found(f"{task.width} x float32", partial(search, task.queries, task.documents, "float32"), budget)


def truncation(task: Task, budget: int, _: int) -> Iterator[Found]:
    """The first k dimensions."""
    for size, precision in splits(task.width, budget, _PLAIN):
        if size < task.width or precision is not Precision.FLOAT32:
            yield _stored(task, lambda rows, k=size: rows[:, :k], size, precision)


def random_projection(task: Task, budget: int, seed: int) -> Iterator[Found]:
    """A Gaussian matrix (Johnson and Lindenstrauss)."""
    for size, precision in splits(task.width, budget, _PLAIN):
        matrix = np.random.default_rng(seed).standard_normal((task.width, size)).astype(np.float32)
        yield _stored(task, lambda rows, m=matrix: rows @ m, size, precision, side=matrix.nbytes)


def untrained_tanh(task: Task, budget: int, seed: int) -> Iterator[Found]:
    """An untrained head: Linear -> Tanh with the initial weights of ``nn.Linear``."""
    for size, precision in splits(task.width, budget, _PLAIN):
        torch.manual_seed(seed)
        head = DimReduce(task.width, size)
        yield _stored(task, head.reduce, size, precision, side=4 * size * (task.width + 1))


def pca_dense(task: Task, budget: int, _: int) -> Iterator[Found]:
    """scikit-learn's PCA: as the weight of a Dense (Sentence Transformers' recipe), and centred as its transform is."""
    for size, precision in splits(task.width, budget, _PLAIN):
        start = time.perf_counter()
        pca = PCA(size, random_state=0).fit(task.train)
        seconds = time.perf_counter() - start
        components = pca.components_.astype(np.float32)
        shift = pca.mean_.astype(np.float32)
        matrix = components.nbytes
        yield _stored(task, lambda x, c=components: x @ c.T, size, precision, "", matrix, seconds)
        centred = ", queries and documents centred"
        side = matrix + shift.nbytes
        yield _stored(task, lambda x, c=components, m=shift: (x - m) @ c.T, size, precision, centred, side, seconds)


def _stored(
    task: Task,
    reduce: Callable[[np.ndarray], np.ndarray],
    size: int,
    precision: Precision,
    note: str = "",
    side: int = 0,
    seconds: float = 0.0,
) -> Found:
    codes = quantize(reduce(task.documents), precision)
    find = partial(search, reduce(task.queries), codes, precision)
    return Found(f"{size} x {precision.value}{note}", find, precision.bytes_per_vector(size), side, seconds)


def st_int8(task: Task, budget: int, _: int) -> Iterator[Found]:
    """Sentence Transformers' int8, calibrated on the documents: int8 queries, then rescored with float queries."""
    if not fits(task.width, budget):
        return
    start = time.perf_counter()
    ranges = np.vstack([task.train.min(axis=0), task.train.max(axis=0)])
    seconds = time.perf_counter() - start
    codes, asked = (_quantized(rows, "int8", ranges) for rows in (task.documents, task.queries))
    first = asked.astype(np.float32) @ codes.astype(np.float32).T
    second = task.queries @ _decoded(codes, ranges).T
    yield Found("int8", _ranked(first), task.width, ranges.nbytes, seconds)
    yield Found("int8, rescored", _ranked(first, second), task.width, ranges.nbytes, seconds)


def st_binary(task: Task, budget: int, _: int, rescored: bool = False) -> Iterator[Found]:
    """Sentence Transformers' ubinary by Hamming distance; rescored with float queries over the bits, or over int8."""
    bits, asked = (_quantized(rows, "ubinary") for rows in (task.documents, task.queries))
    size = bits.shape[1]
    if not fits(size, budget) and not (rescored and fits(size + task.width, budget)):
        return
    ones, query_ones = (np.unpackbits(rows, axis=1).astype(np.float32) for rows in (bits, asked))
    agreement = (2 * query_ones - 1) @ (2 * ones - 1).T  # the number of equal bits minus that of different bits
    if fits(size, budget):
        second = task.queries @ ones.T if rescored else None
        yield Found("ubinary, rescored" if rescored else "ubinary", _ranked(agreement, second), size)
    if rescored and fits(size + task.width, budget):
        ranges = np.vstack([task.train.min(axis=0), task.train.max(axis=0)])
        second = task.queries @ _decoded(_quantized(task.documents, "int8", ranges), ranges).T
        yield Found("ubinary, int8 rescored", _ranked(agreement, second), size + task.width, ranges.nbytes)


def _quantized(rows: np.ndarray, precision: Any, ranges: np.ndarray | None = None) -> np.ndarray:
    return np.asarray(quantize_embeddings(rows, precision, ranges))


def _decoded(codes: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    return (codes.astype(np.float32) + 128) * ((ranges[1] - ranges[0]) / 255) + ranges[0]


def _ranked(first: np.ndarray, second: np.ndarray | None = None) -> Find:
    """Return a search over scores of shape (q, n): by ``first``, the candidates rescored by ``second`` if given."""

    def find(top_k: int) -> tuple[np.ndarray, np.ndarray]:
        scores = torch.from_numpy(first)
        if second is not None:
            candidates = scores.topk(min(top_k * _RESCORE_MULTIPLIER, scores.shape[1])).indices
            again = torch.from_numpy(second)
            scores = torch.full_like(again, -torch.inf).scatter_(1, candidates, again.gather(1, candidates))
        best = scores.topk(top_k)
        return best.values.numpy(), best.indices.numpy()

    return find


def faiss_sq(task: Task, budget: int, seed: int) -> Iterator[Found | Refused]:
    """PCA and a scalar quantiser of 8 or 4 bits per dimension."""
    for size, bits in ((budget, 8), (2 * budget, 4)):
        if size <= task.width:
            for norm in ("", "L2norm,"):
                yield from _faiss(task, f"PCA{size},{norm}SQ{bits}", seed)


def faiss_pq(task: Task, budget: int, seed: int) -> Iterator[Found | Refused]:
    """Product quantisation (Jegou et al.), 8 or 4 bits per subvector."""
    for parts, bits in ((budget, 8), (2 * budget, 4)):
        if parts <= task.width:
            yield from _faiss(task, pq(parts, bits), seed)


def faiss_opq(task: Task, budget: int, seed: int) -> Iterator[Found | Refused]:
    """Product quantisation after a learned rotation (OPQ; Ge et al.), to all dimensions and to four per subvector."""
    for parts, bits in ((budget, 8), (2 * budget, 4)):
        if 2 * parts <= task.width:
            for size in sorted({task.width // parts * parts, min(4, task.width // parts) * parts}):
                yield from _faiss(task, opq(parts, bits, size), seed)


def faiss_rabitq(task: Task, budget: int, seed: int) -> Iterator[Found | Refused]:
    """RaBitQ (Gao and Long) of 1 to 8 bits after a random rotation of all dimensions, or of fewer after PCA."""
    for size, bits, stored in rabitq_sizes(task.width, budget):
        if fits(stored, budget):
            yield from _faiss(task, rabitq(size, bits, task.width), seed)


def faiss_itq(task: Task, budget: int, seed: int) -> Iterator[Found | Refused]:
    """ITQ and sign bits by Hamming distance (Gong et al.)."""
    if 8 * budget <= task.width:
        for thresholds in ("", "t"):
            yield from _faiss(task, f"ITQ{8 * budget},LSH{thresholds}", seed)


def _faiss(task: Task, factory: str, seed: int) -> Iterator[Found | Refused]:
    """Train one index, and search it by Euclidean distance and by inner product."""
    trained: tuple[faiss.Index, float] | None = None
    for name, metric in (("L2", faiss.METRIC_L2), ("inner product", faiss.METRIC_INNER_PRODUCT)):
        setting = f"{factory}, {name}"
        try:
            if trained is None or "PQ" not in factory:  # the training of PQ does not depend on the metric
                index = make_index(factory, task.width, inner_product=metric == faiss.METRIC_INNER_PRODUCT)
                start = time.perf_counter()
                train_index(index, task.train, seed)
                trained = index, time.perf_counter() - start
            index = faiss.clone_index(trained[0]) if "PQ" in factory else trained[0]
        except RuntimeError as error:
            yield Refused(setting, " ".join(str(error).split("Error: ")[-1].split()))
            continue
        index.metric_type = inner_index(index).metric_type = metric
        side = len(faiss.serialize_index(index))
        index.add(task.documents)
        yield Found(setting, partial(search_index, index, task.queries), index.sa_code_size(), side, trained[1])


PEERS: dict[str, Peer] = {
    "full model": full,
    "truncation": truncation,
    "random projection": random_projection,
    "untrained Tanh": untrained_tanh,
    "PCA + Dense": pca_dense,
    "ST int8": st_int8,
    "ST ubinary": st_binary,
    "ST ubinary, rescored": partial(st_binary, rescored=True),
    "FAISS PCA,SQ": faiss_sq,
    "FAISS PQ": faiss_pq,
    "FAISS OPQ": faiss_opq,
    "FAISS RaBitQ": faiss_rabitq,
    "FAISS ITQ,LSH": faiss_itq,
}
# OPQ, which is random too, is fitted once: it takes as long as all others together.
SEEDED = {"random projection", "untrained Tanh", *(f"FAISS {name}" for name in ("PQ", "RaBitQ", "ITQ,LSH"))}
