"""Stored vectors through a head: from a source to codes in a file or folder."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from st_dimreduce.base_head import BaseHead
from st_dimreduce.codes.codes import COLUMN, Codes
from st_dimreduce.codes.metrics import cosines
from st_dimreduce.codes.origin import Origin
from st_dimreduce.codes.precision import dequantize, quantize
from st_dimreduce.codes.rows import check_rows, row_norms
from st_dimreduce.enums import OnBadRow, Precision
from st_dimreduce.errors import UserError
from st_dimreduce.files import exclusive_run
from st_dimreduce.progress import progress_bar
from st_dimreduce.vectors.batches import Batch, Source, rows_per_batch
from st_dimreduce.vectors.fit import check_width, suggest_on_bad_row
from st_dimreduce.vectors.sinks import Output, append_sink, open_sink, size_of
from st_dimreduce.vectors.sources import open_source

_PART_BATCHES = 8
_CHECKED_PLACES, _CHECKED_ROWS = 8, 256  # of a target that is appended to
_SAME = 0.7  # cosine of codes of one vector, where one of few bits may differ


@dataclass(frozen=True)
class Transformed:
    """What a run wrote.

    Attributes:
        path: The file or folder.
        rows: Number of vectors in it.
        bad_rows: Number of those without a direction, stored as zero vectors, among the rows that were written; rows
            that are appended to are not counted.
        bytes: Size of the file, or of all files in the folder.
        seconds: Duration of this run.
    """

    path: Path
    rows: int
    bad_rows: int
    bytes: int
    seconds: float


def transform_file(
    head: BaseHead,
    source: Any,
    target: str | os.PathLike[str],
    precision: Precision | str | None = None,
    *,
    column: str | None = None,
    on_bad_row: OnBadRow | str = OnBadRow.RAISE,
    overwrite: bool = False,
    append: bool = False,
) -> Transformed:
    """Reduce stored vectors and write them as codes; see :meth:`st_dimreduce.Head.transform_file`."""
    begin = time.perf_counter()
    precision = head.precision if precision is None else Precision(precision)
    on_bad_row, opened = OnBadRow(on_bad_row), open_source(source, column)
    identity = {
        "source": opened.files.states if opened.files else None,
        "column": opened.column,
        "head": head.fingerprint,
        "precision": precision.value,
    }
    output = Output(
        Path(target),
        Origin(precision, head.out_features, head.fingerprint),
        opened.schema,
        opened.column or COLUMN,
        _PART_BATCHES * rows_per_batch(head.in_features),
        identity if opened.files else None,
    )
    if not output.is_table:
        opened.leave_out_others()
    if opened.files:
        output.check_source(opened.files.path)
    with exclusive_run(output.target):
        appended_to = append and os.path.lexists(output.target)
        kept = _rows_to_keep(opened, head, output, on_bad_row) if appended_to else 0
        if kept and kept == opened.rows:
            return Transformed(Path(target), kept, 0, size_of(output.target), time.perf_counter() - begin)
        with append_sink(output, kept) if appended_to else open_sink(output, overwrite) as sink:
            if sink.done.bad_rows and on_bad_row is OnBadRow.RAISE:
                raise UserError(
                    f"{sink.done.bad_rows} rows of the unfinished run are zeros, as on_bad_row='zero' asked for: pass "
                    "that again (--on-bad-row zero), or start anew with overwrite=True (--force)"
                )
            start = kept + sink.done.rows
            batches = encoded_batches(opened, head, precision, on_bad_row, start)
            bar = progress_bar("Transforming", "rows", total=opened.rows, done=start)
            with bar, closing(batches):
                for codes, others, bad in batches:
                    sink.write(codes, others, bad)
                    bar.update(len(codes))
        size = size_of(output.target)
    return Transformed(Path(target), kept + sink.done.rows, sink.done.bad_rows, size, time.perf_counter() - begin)


def encoded_batches(
    source: Source, head: BaseHead, precision: Precision, on_bad_row: OnBadRow, start: int = 0
) -> Generator[tuple[np.ndarray, Any, int], None, None]:
    """Yield the codes of each batch from a row on, the other columns of a table, and the number of bad rows."""
    with closing(source.batches(start)) as batches:
        for batch in batches:
            codes, bad = reduce_batch(head, batch, precision, on_bad_row)
            yield codes, batch.others, bad


def reduce_batch(head: BaseHead, batch: Batch, precision: Precision, on_bad_row: OnBadRow) -> tuple[np.ndarray, int]:
    """Return the codes of a batch, and the number of its vectors that have no direction.

    Raises:
        UserError: If the vectors are not of the head's size, or one has no direction and none is expected.
    """
    check_width(head, batch)
    bad = row_norms(batch.vectors)[1]
    if len(bad) and on_bad_row is OnBadRow.RAISE:
        with suggest_on_bad_row():
            check_rows(batch.vectors, batch.first_row)
    with np.errstate(over="ignore", invalid="ignore"):  # in bad rows, which are replaced
        reduced = head.transform(batch.vectors)
    reduced[bad] = 0
    return quantize(reduced, precision), len(bad)


def _rows_to_keep(source: Source, head: BaseHead, output: Output, on_bad_row: OnBadRow) -> int:
    """Return how many rows a target has, after comparing some of them, from the first to the last, with the source.

    Raises:
        UserError: If the source cannot be read from a row on, has fewer, or the codes are not those of its rows.
    """
    target, precision = output.target, output.origin.precision
    if source.files is None:
        raise UserError("append reads the source from a row on: give files, or leave it out")
    stored = Codes.load(target, output.column if output.is_table else None)
    stored.origin.check(head.fingerprint, target)
    if stored.precision is not precision:
        made = stored.precision.value
        asked = f"pass precision={made!r} (--precision {made})"
        raise UserError(f"{target} holds {made} codes, not {precision}: {asked}, or start anew")
    if source.rows is not None and source.rows < len(stored):
        raise UserError(f"{target} has {len(stored):,} rows, the source {source.rows:,}: give the whole source")
    last = max(len(stored) - _CHECKED_ROWS, 0)
    for start in sorted({round(last * place / (_CHECKED_PLACES - 1)) for place in range(_CHECKED_PLACES)}):
        with closing(source.batches(start)) as batches:
            vectors = next(batches).vectors[:_CHECKED_ROWS]
        there = stored.values[start : start + len(vectors)]
        here = reduce_batch(head, Batch(start, vectors[: len(there)]), precision, on_bad_row)[0]
        one, other = (dequantize(codes, precision, head.out_features) for codes in (here, there))
        if cosines(one, other)[one.any(axis=1)].min(initial=1.0) < _SAME:
            found = f"the codes in {target} from row {start:,} on are not those of the same rows of the source"
            raise UserError(f"{found}: start anew with overwrite=True (--force)")
    return len(stored)
