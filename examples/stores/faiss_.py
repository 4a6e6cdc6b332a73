"""Vectors of docstrings in FAISS: flat, HNSW, and binary codes by Hamming distance, alone and rescored with int8.

python examples/stores/faiss_.py [VECTORS [MODEL [COUNT]]]
"""

import sys

import faiss
import numpy as np
from corpus import CANDIDATES, Corpus

from st_dimreduce import quantize, rescore


def with_floats(corpus: Corpus, kind: str, model: str, documents: np.ndarray) -> None:
    """Index float vectors of norm 1, whose inner product is the cosine."""
    index = faiss.index_factory(documents.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    index.add(documents)
    path = corpus.place(kind, model)
    faiss.write_index(index, str(path))
    corpus.measure("FAISS", kind, model, lambda query: index.search(query[None], 10)[1][0], path)


def with_bits(corpus: Corpus, model: str, documents: np.ndarray) -> None:
    """Index binary codes, and store int8 codes in a file of which only the candidates are read."""
    index, bits, codes = faiss.IndexBinaryFlat(documents.shape[1]), corpus.place(model), corpus.place(f"{model}.npy")
    index.add(quantize(documents, "binary"))
    faiss.write_index_binary(index, str(bits))
    np.save(codes, quantize(documents, "int8"))
    stored = np.load(codes, mmap_mode="r")

    def near(query: np.ndarray, count: int) -> np.ndarray:
        return index.search(quantize(query[None], "binary"), count)[1]

    def rescored(query: np.ndarray) -> np.ndarray:
        return rescore(query[None], stored, near(query, CANDIDATES))[1][0]

    corpus.measure("FAISS", "bits", model, lambda query: near(query, 10)[0], bits)
    corpus.measure("FAISS", "bits, then int8", model, rescored, bits, codes)


def main(corpus: Corpus) -> None:
    """Index the vectors of both models in each way."""
    for model, documents in corpus:
        with_floats(corpus, "Flat", model, documents)
        with_floats(corpus, "HNSW32", model, documents)
        with_bits(corpus, model, documents)


if __name__ == "__main__":
    main(Corpus(*sys.argv[1:]))
