"""Summaries of stored vectors, in one pass and in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import chain
from typing import Any

import numpy as np

from st_dimreduce.base_head import BaseHead
from st_dimreduce.codes.rows import row_norms
from st_dimreduce.enums import OnBadRow
from st_dimreduce.errors import UserError
from st_dimreduce.fitting.summary import Summary
from st_dimreduce.progress import progress_bar
from st_dimreduce.vectors.batches import Batch
from st_dimreduce.vectors.sources import open_source

NO_GOOD_ROWS = "every vector of the source is NaN, infinite or zero: nothing can be fitted on them"


def summarize(
    source: Any,
    *,
    column: str | None = None,
    sample_size: int = 50_000,
    seed: int = 0,
    on_bad_row: OnBadRow | str = OnBadRow.RAISE,
) -> Summary:
    """Summarise vectors in one pass and in bounded memory.

    Args:
        source: As in :meth:`st_dimreduce.Head.fit`.
        column: As in :meth:`st_dimreduce.Head.fit`.
        sample_size: Rows in the summary's sample at most. Defaults to 50,000.
        seed: Seed of the sample. Defaults to 0.
        on_bad_row: ``"raise"`` (the default) stops at the first vector that is NaN, infinite or zero; ``"zero"`` leaves
            such vectors out.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ModuleNotFoundError: If the source is a table and pyarrow is missing.
        UserError: If the source cannot be read as vectors of one size, or holds one without a direction; says where.
    """
    summary = read_summary(source, column, sample_size, seed, OnBadRow(on_bad_row))
    if not summary.count:
        raise UserError(NO_GOOD_ROWS)
    return summary


def read_summary(
    source: Any,
    column: str | None,
    sample_size: int,
    seed: int,
    on_bad_row: OnBadRow,
    head: BaseHead | None = None,
) -> Summary:
    """Summarise vectors as :func:`summarize`, which takes these arguments; returns an empty summary if all are bad.

    With a head, vectors of another width than it takes are refused before all are read.
    """
    opened = open_source(source, column)
    opened.leave_out_others()
    bar = progress_bar("Summarising", "rows", total=opened.rows)
    with bar, closing(opened.batches()) as batches:
        first = next(batches)  # an empty source raises an error here
        if head is not None:
            check_width(head, first)
        summary = Summary(first.vectors.shape[1], sample_size, seed)
        for batch in chain([first], batches):
            if on_bad_row is OnBadRow.ZERO:
                summary.update(np.delete(batch.vectors, row_norms(batch.vectors)[1], axis=0))
            else:
                with suggest_on_bad_row():
                    summary.update(batch.vectors)
            bar.update(len(batch.vectors))
    return summary


def check_width(head: BaseHead, batch: Batch) -> None:
    """Raise ``UserError`` if the vectors are not of the head's size."""
    width = batch.vectors.shape[1]
    if width != head.in_features:
        raise UserError(f"the vectors have {width} dimensions, the head takes {head.in_features}: use its own")


@contextmanager
def suggest_on_bad_row() -> Iterator[None]:
    """Add to the error of a vector without a direction that it may be left out, or stored as zeros."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; or pass on_bad_row='zero' (--on-bad-row zero)") from error
