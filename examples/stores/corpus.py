"""Shared by the store examples: vectors of docstrings, full and reduced, and the measurements of an index."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from st_dimreduce.codes.metrics import retrieval

CANDIDATES = 200  # found by binary codes, then rescored
FULL = "full"  # in place of a number of dimensions: the base model's vectors
COLUMNS = ["store", "stored as", "vectors", "bytes searched", "bytes on disk", "nDCG@10", "ms per query"]


class Corpus:
    """Unit vectors of documents and queries, full and reduced, and a temporary folder for stores.

    Args:
        vectors: File of the vectors; made if it does not exist.
        model: Name or path of the base model; all-MiniLM-L6-v2 from its package if None (the default).
        count: Number of documents.
    """

    def __init__(self, vectors: str = "stores.npz", model: str | None = None, count: str = "2000") -> None:
        if not Path(vectors).exists():
            from encode import encode  # noqa: PLC0415, imports torch, which is needed only to make vectors

            encode(vectors, model, int(count))
        with np.load(vectors) as arrays:
            self._arrays = dict(arrays)
        there = len(self._arrays[FULL])
        if there != int(count):
            sys.exit(f"{vectors} holds {there} documents, {count} were asked for: name another file")
        print(f"| {' | '.join(COLUMNS)} |\n| --- | --- | --- | --: | --: | --: | --: |")
        # Removed when the example ends, but for what a store's threads may still be writing.
        self._stores = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        asked, wanted = self._arrays["relevant"].T
        self._relevant = [wanted[asked == query].tolist() for query in range(len(self.queries(FULL)))]
        exact = np.argsort(-self.queries(FULL) @ self._arrays[FULL].T, axis=1, kind="stable")[:, :10]
        self._exact = retrieval(exact, self._relevant)[0].mean()

    def documents(self, size: int | str) -> np.ndarray:
        """Return document vectors, float32 of norm 1: ``FULL``, or reduced to a size."""
        return self._arrays[f"{size}"]

    def queries(self, size: int | str) -> np.ndarray:
        """Return the query vectors that go with them."""
        return self._arrays[f"{size} queries"]

    def place(self, *names: object) -> Path:
        """Return a path in the temporary folder."""
        return Path(self._stores.name, "-".join(map(str, names)).replace(" ", "-"))

    def measure(
        self,
        store: str,
        kind: str,
        size: int | str,
        searched: float,
        find: Callable[[np.ndarray], Sequence[int]],
        *stored: Path | int,
        quantised: bool = False,
    ) -> None:
        """Print a row of the table: bytes per vector, share of the full vectors' nDCG@10, median time per query.

        Args:
            store: The store's name.
            kind: How the vectors are stored.
            size: Which vectors: ``FULL``, or their dimensions.
            searched: Bytes per vector that are scored, without ids and graph.
            find: Returns the rows of the ten nearest documents of a query vector.
            stored: The files and folders of the index, or their sizes in bytes.
            quantised: Whether the store's own quantiser made the codes. Defaults to False.
        """
        disk = sum(place if isinstance(place, int) else bytes_on_disk(place) for place in stored)
        seconds: list[float] = []

        def timed(query: np.ndarray) -> Sequence[int]:
            start = time.perf_counter()
            found = find(query)
            seconds.append(time.perf_counter() - start)
            return found

        share = self.share(size, timed)
        vectors = (FULL if size == FULL else f"reduced to {size}") + (", quantised" if quantised else "")
        each = f"{disk / len(self.documents(size)):,.0f}"
        cells = store, kind, vectors, f"{searched:,.0f}", each, share, f"{1000 * np.median(seconds):.2f}"
        print(f"| {' | '.join(cells)} |", flush=True)

    def share(self, size: int | str, find: Callable[[np.ndarray], Sequence[int]]) -> str:
        """Return the nDCG@10 of what ``find`` returns, in percent of an exact search of the full vectors."""
        found = [list(map(int, find(query))) for query in self.queries(size)]
        most = max(map(len, found))
        rows = np.array([near + [-1] * (most - len(near)) for near in found])
        return f"{retrieval(rows, self._relevant)[0].mean() / self._exact:.1%}"


def bytes_on_disk(place: Path) -> int:
    """Return the bytes of a file or folder on disk, which for sparse files is less than their size."""
    return sum(path.stat().st_blocks * 512 for path in [place, *place.rglob("*")] if path.is_file())
