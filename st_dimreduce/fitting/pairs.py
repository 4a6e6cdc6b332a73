"""Embedded pairs: texts that should be found, beside what they should be found by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from st_dimreduce.summary import check_rows


@dataclass(frozen=True, eq=False)
class Pairs:
    """Queries and the documents that answer them, embedded by the base model and scaled to length 1.

    Args:
        queries: Float array of shape (m, d).
        documents: Float array of shape (m, d): row i answers query i.

    Raises:
        ValueError: If there are no pairs, the shapes differ, a row has no direction, or all pairs are the same.
    """

    queries: np.ndarray
    documents: np.ndarray

    def __post_init__(self) -> None:
        shapes = self.queries.shape, self.documents.shape
        if shapes[0] != shapes[1] or len(shapes[0]) != 2 or not shapes[0][0]:
            raise ValueError(f"pairs have shapes {shapes[0]} and {shapes[1]}: expected two equal shapes (m, d), m >= 1")
        for name in ("queries", "documents"):
            rows = np.asarray(getattr(self, name), np.float32)
            object.__setattr__(self, name, rows / check_rows(rows)[:, None].astype(np.float32))
        if len(self) > 1 and not (np.ptp(self.queries, axis=0).any() or np.ptp(self.documents, axis=0).any()):
            raise ValueError(f"all {len(self)} pairs are the same: give pairs that differ")

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def width(self) -> int:
        """Size d of a vector."""
        return self.queries.shape[1]

    def split(self, held_out: float, seed: int = 0) -> tuple[Pairs, Pairs]:
        """Return pairs to fit on, and the share of them (at least one) that the fit must not see."""
        order = np.random.default_rng(seed).permutation(len(self))
        seen, unseen = np.split(order, [len(self) - max(1, round(held_out * len(self)))])
        return (
            Pairs(self.queries[seen], self.documents[seen]),
            Pairs(self.queries[unseen], self.documents[unseen]),
        )
