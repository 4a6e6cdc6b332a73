"""What is wrong with rows of vectors that are read: their width, and rows without a direction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from st_dimreduce.base_head import BaseHead
from st_dimreduce.enums import OnBadRow
from st_dimreduce.errors import UserError
from st_dimreduce.fitting.summary import check_rows, row_norms
from st_dimreduce.vectors.sources import Batch


def check_width(head: BaseHead, batch: Batch) -> None:
    """Raise ``ValueError`` if the vectors are not of the head's size."""
    width = batch.vectors.shape[1]
    if width != head.in_features:
        raise UserError(f"the vectors have {width} dimensions, the head takes {head.in_features}: use its own")


def good_rows(batch: Batch) -> np.ndarray:
    """Return the vectors of a batch that have a direction."""
    bad = row_norms(batch.vectors)[1]
    return np.delete(batch.vectors, bad, axis=0) if len(bad) else batch.vectors


def bad_rows(batch: Batch, on_bad_row: OnBadRow) -> np.ndarray:
    """Return the positions, in a batch, of vectors without a direction; mostly there are none.

    Raises:
        ValueError: If there are any and ``on_bad_row`` is ``"raise"``; names the first by its row in the source.
    """
    if on_bad_row is OnBadRow.ZERO:
        return row_norms(batch.vectors)[1]
    with naming_zero():
        check_rows(batch.vectors, batch.first_row)
    return np.empty(0, np.int64)


@contextmanager
def naming_zero() -> Iterator[None]:
    """Add to the error of a vector without a direction that it may be stored as zeros."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{error}; or pass on_bad_row='zero' (--on-bad-row zero)") from error
