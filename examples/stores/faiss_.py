"""Vectors of docstrings in FAISS: floats, its own quantisers, and our codes, as bits or in an index of codes.

python examples/stores/faiss_.py [VECTORS [MODEL [COUNT]]]
"""

import sys

import faiss
import numpy as np
from corpus import CANDIDATES, FULL, Corpus

from st_dimreduce import Codes, Index

# What index_factory makes of which vectors; a trained code is FAISS's own.
FLOATS = [(FULL, "Flat"), (FULL, "HNSW32"), (64, "SQfp16"), (128, "HNSW32")]
QUANTISERS = [(FULL, "SQ8"), (FULL, "PQ128x4fs"), (FULL, "RaBitQ")]
BOTH = [(128, "SQ8"), (256, "SQ4"), (256, "PQ128x4fs"), (384, "RaBitQ")]
OURS = [(256, "int4"), (256, "int2"), (384, "binary")]


def with_floats(corpus: Corpus, size: int | str, kind: str, quantised: bool) -> None:
    """Index float vectors of norm 1, whose inner product is the cosine."""
    documents = corpus.documents(size)
    index = faiss.index_factory(documents.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    index.train(documents)
    index.add(documents)
    path = corpus.place(kind, size)
    faiss.write_index(index, str(path))
    searched = 4 * documents.shape[1] if kind in ("Flat", "HNSW32") else index.code_size
    named = {"quantised": quantised}
    corpus.measure("FAISS", kind, size, searched, lambda query: index.search(query[None], 10)[1][0], path, **named)


def with_bits(corpus: Corpus, size: int | str, rescoring: bool = False) -> None:
    """Index binary codes; where asked, store int8 codes in a file of which only the candidates are read."""
    documents = corpus.documents(size)
    index, path, codes = faiss.IndexBinaryFlat(documents.shape[1]), corpus.place(size), corpus.place(f"{size}.npy")
    index.add(Codes.of(documents, "binary").values)
    faiss.write_index_binary(index, str(path))

    def near(query: np.ndarray, count: int = 10) -> np.ndarray:
        return index.search(Codes.of(query[None], "binary").values, count)[1][0]

    if not rescoring:
        corpus.measure("FAISS", "bits", size, index.code_size, near, path)
        return
    Codes.of(documents, "int8").save(codes)
    stored = Codes.load(codes)

    def rescored(query: np.ndarray) -> np.ndarray:
        rows = near(query, CANDIDATES)
        _, [best] = Codes(stored.values[rows], "int8", documents.shape[1]).search(query[None])
        return rows[best]

    corpus.measure("FAISS", "bits, then int8", size, index.code_size, rescored, path, codes)


def with_index(corpus: Corpus, size: int, precision: str) -> None:
    """Search codes with an index of ours, which is one of FAISS."""
    codes, path = Codes.of(corpus.documents(size), precision), corpus.place(f"{size}-{precision}")
    index = Index.build(codes)
    index.save(path)
    found = lambda query: index.search(query[None])[1][0]  # noqa: E731
    corpus.measure("FAISS", f"{precision}, index", size, codes.bytes_per_vector, found, path)


def with_search(corpus: Corpus, size: int, precision: str) -> None:
    """Search codes in a file with our own search, to compare with."""
    codes, path = Codes.of(corpus.documents(size), precision), corpus.place(f"{size}-{precision}.npy")
    codes.save(path)
    found = lambda query: codes.search(query[None])[1][0]  # noqa: E731
    corpus.measure("no store", f"{precision}, search", size, codes.bytes_per_vector, found, path)


def main(corpus: Corpus) -> None:
    """Index the vectors in each way."""
    for size, kind in FLOATS:
        with_floats(corpus, size, kind, quantised=False)
    for size, kind in QUANTISERS + BOTH:
        with_floats(corpus, size, kind, quantised=True)
    with_bits(corpus, FULL)
    with_bits(corpus, 384)
    with_bits(corpus, 256)
    with_bits(corpus, 256, rescoring=True)
    for size, precision in OURS:
        with_index(corpus, size, precision)
    for size, precision in OURS:
        with_search(corpus, size, precision)


if __name__ == "__main__":
    main(Corpus(*sys.argv[1:]))
