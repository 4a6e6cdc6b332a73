"""Millions of vectors that are like real ones: docstrings of the installed packages, and mixtures of near ones.

A mixture is x + w (y - z), scaled to norm 1, where x is a real vector, y and z are two of its 16 nearest, and w is
drawn between 1/4 and 3/4: it lies as far from x, and in the same directions, as its neighbours do, so that spectrum and
neighbourhoods stay nearly the same (compare SMOTE; Chawla et al., JAIR 2002). No two mixtures are equal.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.data import Task
from st_dimreduce.codes.search import search

MODEL = "all-MiniLM-L6-v2"
_NEAR = 16
_BLOCK = 1 << 16  # drawn at a time
_YIELDED = 1 << 13


def real() -> tuple[np.ndarray, np.ndarray]:
    """Return the unit vectors of all documents, those that the queries should find first, and of 1,500 queries."""
    task = Task(MODEL, "packages")
    return task.documents, task.queries


def near(rows: np.ndarray) -> np.ndarray:
    """Return the rows of the 16 nearest of each unit vector, itself left out; int64 of shape (n, 16)."""
    return search(rows, rows, "float32", _NEAR + 1)[1][:, 1:]


def widened(known: np.ndarray, neighbours: np.ndarray, rows: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield the real vectors and then mixtures, in blocks, until there are so many rows."""
    for first in range(0, min(len(known), rows), _YIELDED):
        yield known[first : min(first + _YIELDED, rows)]
    rng = np.random.default_rng(seed)
    for start in range(len(known), rows, _BLOCK):
        count = min(_BLOCK, rows - start)
        own = rng.integers(len(known), size=count)
        one, then = rng.integers(_NEAR, size=count), rng.integers(1, _NEAR, size=count)
        one, other = neighbours[own, one], neighbours[own, (one + then) % _NEAR]
        weight = rng.uniform(0.25, 0.75, (count, 1)).astype(np.float32)
        for first in range(0, count, _YIELDED):
            some = slice(first, first + _YIELDED)
            mixed = known[own[some]] + weight[some] * (known[one[some]] - known[other[some]])
            yield mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
