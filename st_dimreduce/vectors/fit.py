"""Summaries of stored vectors, and heads fitted on them."""

from __future__ import annotations

from contextlib import closing
from itertools import chain
from typing import Any

from st_dimreduce.enums import Objective, OnBadRow, Precision, Store
from st_dimreduce.fitting.budget import Size
from st_dimreduce.fitting.fit import fit_head
from st_dimreduce.fitting.summary import Summary
from st_dimreduce.head import Head
from st_dimreduce.progress import progress_bar
from st_dimreduce.vectors.kinds import open_source
from st_dimreduce.vectors.rows import check_width, good_rows, naming_zero
from st_dimreduce.vectors.sources import DEFAULT_BATCH_BYTES

NO_GOOD_ROWS = "every vector of the source is NaN, infinite or zero: nothing can be fitted on them"


def fit_on_vectors(
    source: Any,
    out_features: int | None = None,
    *,
    bytes_per_vector: int | None = None,
    keep: float | None = None,
    store: Store | str | None = None,
    precision: Precision | str | None = None,
    objective: Objective | str = Objective.QUALITY,
    column: str | None = None,
    seed: int = 0,
    on_bad_row: OnBadRow | str = OnBadRow.RAISE,
    batch_bytes: int = DEFAULT_BATCH_BYTES,
    show_progress_bar: bool | None = None,
) -> Head:
    """Fit a head on vectors alone, without texts or a model, in one pass over them.

    Args:
        source: As in :func:`st_dimreduce.reduce_vectors`.
        out_features: Size k of the reduced vectors. Defaults to 128 where no other size is given.
        bytes_per_vector: Instead of ``out_features``, a byte budget; see :class:`st_dimreduce.Size`.
        keep: Instead of ``out_features``, a share to keep; see :class:`st_dimreduce.Size`.
        store: The vector store, such as ``"pgvector"``, to which the byte budget or the share is restricted; see
            :class:`st_dimreduce.Size`.
        precision: Precision that the vectors will be stored in; see :class:`st_dimreduce.Size`. Defaults to None: what
            a budget finds best, float32 with a dimension.
        objective: As in :func:`st_dimreduce.fit_head`. Defaults to ``"quality"``.
        column: As in :func:`st_dimreduce.reduce_vectors`.
        seed: Seed of the sample and the fit. Defaults to 0.
        on_bad_row: As in :func:`st_dimreduce.summarize`.
        batch_bytes: As in :func:`st_dimreduce.summarize`.
        show_progress_bar: Whether to show progress; only on a terminal if None (the default).

    Returns:
        A head for vectors as they are in the source; their mean norm is in ``head.record.mean_norm``.

    Raises:
        ValueError: As :class:`st_dimreduce.Size`, :func:`st_dimreduce.summarize` and :func:`st_dimreduce.fit_head`.
    """
    size, objective = Size(out_features, bytes_per_vector, keep, store=store, precision=precision), Objective(objective)
    common: dict[str, Any] = {"seed": seed, "show_progress_bar": show_progress_bar}
    summary = summarize(source, column=column, on_bad_row=on_bad_row, batch_bytes=batch_bytes, **common)
    return fit_head(summary, size, objective=objective, **common)


def summarize(
    source: Any,
    *,
    column: str | None = None,
    sample_size: int = 50_000,
    seed: int = 0,
    on_bad_row: OnBadRow | str = OnBadRow.RAISE,
    batch_bytes: int = DEFAULT_BATCH_BYTES,
    show_progress_bar: bool | None = None,
) -> Summary:
    """Summarise vectors in one pass and in bounded memory.

    Args:
        source: As in :func:`st_dimreduce.reduce_vectors`.
        column: As in :func:`st_dimreduce.reduce_vectors`.
        sample_size: Rows in the summary's sample at most. Defaults to 50,000.
        seed: Seed of the sample. Defaults to 0.
        on_bad_row: ``"raise"`` (the default) stops at the first vector that is NaN, infinite or zero; ``"zero"`` leaves
            such vectors out.
        batch_bytes: Bytes of float32 vectors read at a time. Defaults to 32 MiB.
        show_progress_bar: Whether to show progress; only on a terminal if None (the default).

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ModuleNotFoundError: If the source is a table and pyarrow is missing.
        ValueError: If the source cannot be read as vectors of one size, or holds one without a direction; says where.
    """
    summary = read_summary(source, column, sample_size, seed, OnBadRow(on_bad_row), batch_bytes, show_progress_bar)
    if not summary.count:
        raise ValueError(NO_GOOD_ROWS)
    return summary


def read_summary(
    source: Any,
    column: str | None,
    sample_size: int,
    seed: int,
    on_bad_row: OnBadRow,
    batch_bytes: int = DEFAULT_BATCH_BYTES,
    show_progress_bar: bool | None = None,
    head: Head | None = None,
) -> Summary:
    """Summarise vectors as :func:`summarize`, which takes these arguments; returns an empty summary if all are bad.

    With a head, vectors of another width than it takes are refused before all are read.
    """
    opened = open_source(source, column)
    opened.leave_out_others()
    bar = progress_bar("Summarising", "rows", show_progress_bar, total=opened.rows)
    with bar, closing(opened.batches(0, batch_bytes)) as batches:
        first = next(batches)  # an empty source raises an error here
        if head is not None:
            check_width(head, first)
        summary = Summary(first.vectors.shape[1], sample_size, seed)
        for batch in chain([first], batches):
            if on_bad_row is OnBadRow.ZERO:
                summary.update(good_rows(batch))
            else:
                with naming_zero():
                    summary.update(batch.vectors)
            bar.update(len(batch.vectors))
    return summary
