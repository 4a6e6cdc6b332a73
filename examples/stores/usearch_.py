"""Vectors of docstrings in USearch, in its number types: floats, our int8 codes and our binary codes.

python examples/stores/usearch_.py [VECTORS [MODEL [COUNT]]]
"""

import sys

import numpy as np
from corpus import FULL, Corpus
from usearch.index import Index

from st_dimreduce import Codes

# Which vectors, the index's type, and the precision of the codes that it is given; None: it casts floats itself.
KINDS = [(FULL, "f32", "float32"), (FULL, "i8", None), (FULL, "b1", "binary"), (64, "f16", "float32")]
KINDS += [(128, "i8", "int8"), (64, "i8", "int8"), (384, "b1", "binary"), (256, "b1", "binary"), (128, "i8", None)]
BITS = {"f32": 32, "f16": 16, "i8": 8, "b1": 1}


def main(corpus: Corpus) -> None:
    """Index the vectors in each way."""
    for size, kind, precision in KINDS:
        documents, path = corpus.documents(size), corpus.place("usearch", size, kind, precision)
        metric = "hamming" if kind == "b1" else "cos"
        index = Index(ndim=documents.shape[1], metric=metric, dtype=kind, expansion_search=200)
        index.add(np.arange(len(documents)), Codes.of(documents, precision).values if precision else documents)
        index.save(str(path))

        def find(query: np.ndarray, index: Index = index, precision: str | None = precision) -> np.ndarray:
            return index.search(Codes.of(query[None], precision).values[0] if precision else query, 10).keys

        searched = BITS[kind] * documents.shape[1] / 8
        name = kind if precision else f"{kind}, cast"
        corpus.measure("USearch", name, size, searched, find, path, quantised=precision is None)


if __name__ == "__main__":
    main(Corpus(*sys.argv[1:]))
