"""Millions of vectors that are like real ones: the docstrings of every installed package, and mixtures of near ones.

A mixture is x + (y - z) / 2, scaled to norm 1, where x is a real vector and y and z are two of its 16 nearest: it lies
as far from x, and in the same directions, as its neighbours do, so that spectrum and neighbourhoods stay nearly the
same (compare SMOTE; Chawla et al., JAIR 2002).
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import packages_distributions

import numpy as np

from benchmarks.data import CACHE, MODELS, TEST_QUERIES, _digest
from st_dimreduce import search
from st_dimreduce.apps.docstrings import docstring_pairs, package_pairs
from st_dimreduce.files import new_file

MODEL = "all-MiniLM-L6-v2"
_NEAR = 16
_BLOCK = 1 << 16


def real() -> tuple[np.ndarray, np.ndarray]:
    """Return the unit vectors of all documents, those that the queries should find first, and of 1,500 queries."""
    pairs = docstring_pairs()
    known = [document for _, document in pairs]
    others = {document for name in sorted(packages_distributions()) for _, document in package_pairs(name)}
    documents = known + sorted(others - set(known))
    queries = [query for query, _ in pairs[:TEST_QUERIES]]
    encode = None
    found = []
    for name, texts in (("documents", documents), ("queries", queries)):
        path = CACHE / f"{MODEL}-packages-{name}-{_digest(texts)}.npy"
        if not path.exists():
            encode = encode or MODELS[MODEL]()
            with new_file(path) as file:
                np.save(file, encode(texts))
        vectors = np.load(path)
        found.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return found[0], found[1]


def near(vectors: np.ndarray) -> np.ndarray:
    """Return the rows of the 16 nearest of each unit vector, itself left out; int64 of shape (n, 16)."""
    return search(vectors, vectors, "float32", _NEAR + 1)[1][:, 1:]


def widened(vectors: np.ndarray, neighbours: np.ndarray, rows: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield the real vectors and then mixtures, in blocks, until there are so many rows."""
    yield vectors[:rows]
    rng = np.random.default_rng(seed)
    for start in range(len(vectors), rows, _BLOCK):
        count = min(_BLOCK, rows - start)
        own = rng.integers(len(vectors), size=count)
        one, other = neighbours[own, rng.integers(_NEAR, size=(2, count))]
        mixed = vectors[own] + (vectors[one] - vectors[other]) / 2
        yield mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
