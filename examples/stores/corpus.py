"""Shared by the store examples: vectors of 2,000 docstrings, full and reduced, and the measurements of an index."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

CANDIDATES = 200  # found by binary codes, then rescored
COLUMNS = "| store | index | model | MB on disk | overlap@10 | ms per query |\n| --- | --- | --- | --: | --: | --: |"


class Corpus:
    """Unit vectors of documents and queries by the full and the reduced model, and a temporary folder for stores.

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
        there = len(self._arrays["full"])
        if there != int(count):
            sys.exit(f"{vectors} holds {there} documents, {count} were asked for: name another file")
        print(COLUMNS)
        self._stores = tempfile.TemporaryDirectory()  # removed when the example ends
        scores = self.queries("full") @ self._arrays["full"].T
        self._nearest = np.argsort(-scores, axis=1)[:, :10].tolist()

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the name and the document vectors of each model: float32 of shape (n, 384), then (n, 128)."""
        return ((model, self._arrays[model]) for model in ("full", "reduced"))

    def queries(self, model: str) -> np.ndarray:
        """Return the query vectors of a model."""
        return self._arrays[f"{model} queries"]

    def place(self, *names: str) -> Path:
        """Return a path in the temporary folder."""
        return Path(self._stores.name, "-".join(names).replace(" ", "-"))

    def measure(
        self, store: str, index: str, model: str, find: Callable[[np.ndarray], Sequence[int]], *stored: Path | int
    ) -> None:
        """Print a row of the table: size on disk, neighbour overlap@10, and median time per query.

        Args:
            store: The store's name.
            index: The kind of index.
            model: ``"full"`` or ``"reduced"``.
            find: Returns the rows of the ten nearest documents of a query vector.
            stored: The files and folders of the index, or their sizes in bytes.
        """
        size = sum(place if isinstance(place, int) else bytes_on_disk(place) for place in stored)
        seconds: list[float] = []

        def timed(query: np.ndarray) -> Sequence[int]:
            start = time.perf_counter()
            found = find(query)
            seconds.append(time.perf_counter() - start)
            return found

        cells = store, index, model, f"{size / 1e6:.2f}", self.overlap(model, timed), f"{1000 * np.median(seconds):.2f}"
        print(f"| {' | '.join(cells)} |", flush=True)

    def overlap(self, model: str, find: Callable[[np.ndarray], Sequence[int]]) -> str:
        """Return the share of the full model's exact ten nearest neighbours that ``find`` returns, in percent."""
        found = [find(query) for query in self.queries(model)]
        return f"{np.mean([len({*near} & {*best}) / 10 for near, best in zip(found, self._nearest, strict=True)]):.1%}"


def bytes_on_disk(place: Path) -> int:
    """Return the bytes of a file or folder on disk, which for sparse files is less than their size."""
    return sum(path.stat().st_blocks * 512 for path in [place, *place.rglob("*")] if path.is_file())
