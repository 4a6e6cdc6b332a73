"""Other ways to store sentence embeddings in few bytes, to compare a head with.

``st-dimreduce compare --peers`` and ``benchmarks/peers.py`` train and search the same FAISS indexes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from st_dimreduce.codes.precision import quantize
from st_dimreduce.enums import Precision
from st_dimreduce.evaluation.embeddings import Embedded, Stored

OPQ_STEPS = 20  # steps of OPQ's rotation; FAISS's default of 50 takes 2.5 times as long for an error about 1 % smaller
_PER_CENTROID = 39  # FAISS's own minimum: a codebook of fewer documents overfits
_MOST_TRAINED = 16_384  # documents that the rotation and the codebooks of the rows below are trained on
_FAISS = "FAISS PCA, PQ, OPQ and RaBitQ"


def peers(base: Embedded, sizes: Sequence[int]) -> Iterator[Stored]:
    """Yield the base model's embeddings as other methods store them, to compare with.

    Binary is one sign bit per dimension, as Sentence Transformers' ``ubinary``. Truncation is the first dimensions in
    int8, as for a Matryoshka model (Kusupati et al., "Matryoshka Representation Learning", NeurIPS 2022).

    With FAISS installed, also: PCA, scaled to norm 1, with int8; product quantization, PQ (Jegou et al., "Product
    quantization for nearest neighbor search", PAMI 2011); PQ after a learned rotation, OPQ (Ge et al., "Optimized
    Product Quantization", PAMI 2014); and RaBitQ after a random rotation (Gao and Long, "RaBitQ", SIGMOD 2024), with as
    many dimensions as its bits allow. They are trained on up to 16,384 of the documents that are searched, and searched
    by FAISS with float queries. PQ has codebooks of 256 centroids from 9,984 documents on, of 16 from 624 on.

    Args:
        base: The base model's embeddings.
        sizes: Bytes per vector to compare at. Sizes that a method cannot use are left out; RaBitQ takes the next
            smaller one that it can.

    Warns:
        UserWarning: If faiss is not installed, or there are too few documents to train PQ.
    """
    base, width = replace(base, seconds=None), base.documents.shape[1]
    used = [size for size in sizes if size < width]
    yield Stored("binary", base, Precision.BINARY)
    for size in used:
        yield Stored("truncation", _truncated(base, size), Precision.INT8)
    try:
        import faiss  # noqa: F401, PLC0415, an optional dependency
    except ModuleNotFoundError:
        warnings.warn(f"{_FAISS} are left out: pip install 'st_dimreduce[faiss]'", stacklevel=2)
        return
    rows = quantize(base.documents, Precision.FLOAT32)
    if len(rows) < _fewest(4):
        few = f"{len(rows):,} documents are too few to train their codebooks on, {_fewest(4)} are the least"
        warnings.warn(f"FAISS PQ and OPQ are left out: {few}", stacklevel=2)
    chosen: dict[str, str] = {}  # one row where two sizes lead to one setting
    for size in used:
        chosen |= {factory: name for name, factory in _settings(len(rows), width, size)}
    for factory, name in chosen.items():
        yield _trained(base, rows, name, factory)


def _truncated(base: Embedded, size: int) -> Embedded:
    queries, pairs = base.queries, base.scored_pairs
    return Embedded(
        queries=None if queries is None else queries[:, :size],
        documents=base.documents[:, :size],
        scored_pairs=None if pairs is None else (pairs[0][:, :size], pairs[1][:, :size]),
    )


def _settings(count: int, width: int, size: int) -> Iterator[tuple[str, str]]:
    """Yield each method that has a setting for a size, with that setting as ``index_factory`` spells it."""
    if count >= size:
        yield "PCA + int8", f"PCA{size},L2norm,SQ8"
    for bits, parts in ((8, size), (4, 2 * size)):
        if count >= _fewest(bits):
            if width % parts == 0:
                yield "PQ", pq(parts, bits)
            if 2 * parts <= width:
                yield "OPQ", opq(parts, bits, width // parts * parts)
            break
    fitting = [
        (dimensions, bits)
        for dimensions, bits, stored in rabitq_sizes(width, size)
        if 2 * stored > size and (dimensions == width or dimensions <= count)  # as many as PCA can have
    ]
    if fitting:
        yield "RaBitQ", rabitq(*max(fitting), width)


def _fewest(bits: int) -> int:
    return _PER_CENTROID * 2**bits


def _trained(base: Embedded, rows: np.ndarray, name: str, factory: str) -> Stored:
    index = make_index(factory, rows.shape[1])
    drawn = np.random.default_rng(0).permutation(len(rows))[:_MOST_TRAINED]
    train_index(index, rows[np.sort(drawn)])
    index.add(rows)
    return Stored(name, base, factory, index.sa_code_size(), partial(_round_trip, index), partial(search_index, index))


def _round_trip(index: Any, rows: np.ndarray) -> np.ndarray:
    return index.sa_decode(index.sa_encode(quantize(rows, Precision.FLOAT32)))


def pq(parts: int, bits: int) -> str:
    """Return what FAISS's ``index_factory`` calls product quantization with ``bits`` per part."""
    return f"PQ{parts}" if bits == 8 else f"PQ{parts}x{bits}"


def opq(parts: int, bits: int, size: int) -> str:
    """Return what it calls product quantization after a learned rotation to ``size`` dimensions."""
    return f"OPQ{parts}_{size},{pq(parts, bits)}"


def rabitq(size: int, bits: int, width: int) -> str:
    """Return what it calls RaBitQ after a random rotation of all dimensions, or of fewer after PCA."""
    pca = f"PCA{size}," if size < width else ""
    return f"{pca}RR{size},RaBitQ{bits}"


def rabitq_sizes(width: int, budget: int) -> Iterator[tuple[int, int, int]]:
    """Yield dimensions, bits per dimension and bytes of each RaBitQ setting that fills a budget."""
    for bits in range(1, 9):
        extra = 8 if bits == 1 else 20  # bytes of factors that FAISS stores with each code
        size = min((budget - extra) * 8 // bits // 8 * 8, width)
        if size > 0:
            yield size, bits, size * bits // 8 + extra


def make_index(factory: str, width: int, *, inner_product: bool = False) -> Any:
    """Return an untrained FAISS index.

    Args:
        factory: Its setting, as ``index_factory`` reads it.
        width: Dimensions of the vectors.
        inner_product: Whether it is searched by inner product, instead of Euclidean distance. Defaults to False.

    Raises:
        RuntimeError: If FAISS refuses the setting.
    """
    import faiss  # noqa: PLC0415, an optional dependency

    return faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2)


def train_index(index: Any, rows: np.ndarray, seed: int = 0) -> None:
    """Train an index on rows of norm 1, seeded, without the part of the training that changes no distance."""
    import faiss  # noqa: PLC0415, an optional dependency

    inner: Any = inner_index(index)
    kept = None
    if hasattr(inner, "do_polysemous_training"):
        inner.do_polysemous_training = False  # orders the centroids for search by Hamming distance; takes minutes
        inner.pq.cp.seed += seed
        inner.pq.cp.min_points_per_centroid = 1  # no warning about few vectors
    chain: Any = index.chain if isinstance(index, faiss.IndexPreTransform) else None
    for stage in (faiss.downcast_VectorTransform(chain.at(i)) for i in range(chain.size() if chain else 0)):
        if isinstance(stage, faiss.RandomRotationMatrix):
            stage.init(seed)
        elif isinstance(stage, faiss.ITQTransform):
            stage.itq.seed += seed
        elif isinstance(stage, faiss.OPQMatrix):
            stage.niter = OPQ_STEPS
            kept = faiss.ProductQuantizer(inner.pq.d, inner.pq.M, inner.pq.nbits)
            stage.pq, kept.cp = kept, inner.pq.cp  # the stage holds no reference of its own
    index.train(rows)
    del kept


def inner_index(index: Any) -> Any:
    """Return the index behind the transforms of another."""
    import faiss  # noqa: PLC0415, an optional dependency

    return faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index


def search_index(index: Any, queries: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scores, the higher the nearer, and rows, as :func:`st_dimreduce.search` does."""
    scores, rows = index.search(quantize(queries, Precision.FLOAT32), top_k)
    return (scores if index.metric_type == 0 else -scores), rows  # METRIC_INNER_PRODUCT is 0
