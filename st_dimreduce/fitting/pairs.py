"""Embedded pairs of a query and the document it should find, with or without negatives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from st_dimreduce.codes.rows import as_array, check_rows
from st_dimreduce.errors import UserError


@dataclass(frozen=True, eq=False)
class Pairs:
    """Queries and their documents, embedded by the base model and scaled to norm 1.

    Args:
        queries: Float array of shape (m, d).
        documents: Float array of shape (m, d): row i answers query i.
        negatives: Float array of shape (m, d): row i is a hard negative of query i. Defaults to None.

    Raises:
        UserError: If there are no pairs, the shapes differ, a row has no direction, or all pairs are the same.
    """

    queries: np.ndarray
    documents: np.ndarray
    negatives: np.ndarray | None = None

    def __post_init__(self) -> None:
        names = [name for name in ("queries", "documents", "negatives") if getattr(self, name) is not None]
        for name in names:
            object.__setattr__(self, name, as_array(getattr(self, name), f"the {name} of pairs", "(m, d)"))
        for name in names[1:]:
            shapes = self.queries.shape, getattr(self, name).shape
            if shapes[0] != shapes[1] or not shapes[0][0]:
                asked = "expected two equal shapes (m, d), m >= 1"
                raise UserError(f"queries and {name} of pairs have shapes {shapes[0]} and {shapes[1]}: {asked}")
        for name in names:
            rows = np.asarray(getattr(self, name), np.float32)
            object.__setattr__(self, name, rows / check_rows(rows)[:, None].astype(np.float32))
        if len(self) > 1 and not (np.ptp(self.queries, axis=0).any() or np.ptp(self.documents, axis=0).any()):
            raise UserError(f"all {len(self)} pairs are the same: give pairs that differ")

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def width(self) -> int:
        """Size d of an embedding."""
        return self.queries.shape[1]

    def ids(self) -> tuple[np.ndarray, np.ndarray]:
        """Return an id for every query and every document, equal for equal ones: two int arrays of shape (m,)."""
        return _ids(self.queries), _ids(self.documents)

    def split(self, held_out: float, seed: int = 0) -> tuple[Pairs, Pairs]:
        """Hold out about the given share of the pairs from a fit.

        Pairs that share a query or a document stay on the same side.

        Returns:
            The pairs to fit on, and those held out.

        Raises:
            UserError: If all pairs are connected by texts they share.
        """
        groups, sizes = self._groups()
        wanted, taken = max(1, round(held_out * len(self))), np.zeros(len(sizes), bool)
        for group in np.random.default_rng(seed).permutation(len(sizes)):
            if sizes[taken].sum() + sizes[group] <= wanted:
                taken[group] = True
        if not taken.any():
            taken[sizes.argmin()] = True
        return self._rows(~taken[groups]), self._rows(taken[groups])

    def folds(self, count: int, seed: int = 0) -> list[tuple[Pairs, Pairs]]:
        """Split the pairs into folds: for each, the pairs to fit on and the pairs held out; each pair is held out once.

        Pairs that share a query or a document stay together.

        Raises:
            UserError: As :meth:`split`, or if there are fewer than ``count`` groups of pairs that share no text.
        """
        groups, sizes = self._groups()
        if len(sizes) < count:
            raise UserError(f"the pairs fall into {len(sizes)} groups that share no text: expected {count} or more")
        fold, filled = np.empty(len(sizes), int), np.zeros(count, int)
        for group in np.random.default_rng(seed).permutation(len(sizes)):
            fold[group] = filled.argmin()
            filled[fold[group]] += sizes[group]
        return [(self._rows(fold[groups] != i), self._rows(fold[groups] == i)) for i in range(count)]

    def _groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the group of each pair, within which texts are shared, and the size of each group."""
        queries, documents = self.ids()
        size = len(self)
        graph = coo_array((np.ones(size, bool), (queries, documents + size)), shape=(2 * size, 2 * size))
        groups = np.unique(connected_components(graph, directed=False)[1][queries], return_inverse=True)[1]
        sizes = np.bincount(groups)
        if len(sizes) == 1:
            raise UserError(f"all {size} pairs share texts with one another: none can be held out, give others too")
        return groups, sizes

    def _rows(self, chosen: np.ndarray) -> Pairs:
        negatives = None if self.negatives is None else self.negatives[chosen]
        return Pairs(self.queries[chosen], self.documents[chosen], negatives)


def _ids(rows: np.ndarray) -> np.ndarray:
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(row.tobytes(), len(first)) for row in rows])
