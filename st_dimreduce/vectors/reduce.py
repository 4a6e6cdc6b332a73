"""Reducing stored vectors: from a source, through a head, to a sink of codes."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from st_dimreduce.base_head import BaseHead
from st_dimreduce.codes.metrics import cosines
from st_dimreduce.codes.origin import Origin
from st_dimreduce.codes.precision import dequantize, quantize
from st_dimreduce.enums import OnBadRow, Precision
from st_dimreduce.errors import UserError
from st_dimreduce.files import exclusive_run, resolve_target
from st_dimreduce.progress import progress_bar
from st_dimreduce.vectors.drift import Drift, DriftSample
from st_dimreduce.vectors.kinds import open_source, sink_files
from st_dimreduce.vectors.rows import bad_rows, check_width
from st_dimreduce.vectors.sinks import Parts, size_of
from st_dimreduce.vectors.sources import DEFAULT_BATCH_BYTES, Batch, Source, batch_rows
from st_dimreduce.vectors.stored import open_codes

_PART_BATCHES = 8
_CHECKED = 1024  # rows at either end of a sink that is to grow
_SAME = 0.7  # cosine of codes of one vector, where one of few bits may differ
NEW_COLUMN = "embedding"  # the column of codes where the source has no columns


@dataclass(frozen=True)
class Transformed:
    """What a run wrote.

    Attributes:
        path: The file or folder.
        rows: Number of vectors in it.
        bad_rows: Number of them that had no direction and are stored as zero vectors.
        bytes: Size of the file, or of all files in the folder.
        seconds: Duration of this run.
        sample: Up to 4,000 of the vectors that this run reduced; None where it reduced none.
    """

    path: Path
    rows: int
    bad_rows: int
    bytes: int
    seconds: float
    sample: DriftSample | None = field(default=None, repr=False, compare=False)

    @cached_property
    def drift(self) -> Drift | None:
        """How what this run reduced differs from what the head was fitted on; judged when it is asked for.

        None where :func:`st_dimreduce.drift` could not judge.
        """
        return None if self.sample is None else self.sample.judge()


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
    on_bad_row, batch_bytes = OnBadRow(on_bad_row), DEFAULT_BATCH_BYTES
    opened = open_source(source, column)
    path = resolve_target(target) if Path(target).suffix else Path(target)
    part, whole = sink_files(path, opened.schema is not None)
    part_rows = _PART_BATCHES * batch_rows(head.in_features, batch_bytes)
    kept = _rows_kept(path, opened, head, precision, on_bad_row) if append and os.path.lexists(path) else 0
    if kept and kept == opened.rows:
        return Transformed(Path(target), kept, 0, size_of(path), time.perf_counter() - begin)
    identity = {
        "source": opened.files.states if opened.files else None,
        "column": opened.column,
        "head": head.digest,
        "precision": precision.value,
        **({"rows before": kept} if kept else {}),
    }
    source_path = opened.files.path if opened.files else None
    asked: dict[str, Any] = {"overwrite": overwrite, "origin": Origin(precision, head.out_features, head.fingerprint), "append": kept > 0}
    sample = DriftSample(head)
    with exclusive_run(path), Parts(path, part, whole, part_rows, identity, source_path, **asked) as parts:
        if parts.bad_rows and on_bad_row is OnBadRow.RAISE:
            raise UserError(
                f"{parts.folder} was begun with on_bad_row='zero' and holds {parts.bad_rows} bad rows as zeros: "
                "pass that again (--on-bad-row zero), or start anew with overwrite=True (--force)"
            )
        reduced = _reduced(opened, head, precision, on_bad_row, part.tabular, kept + parts.rows, batch_bytes, sample)
        bar = progress_bar("Reducing", "rows", total=opened.rows, done=kept + parts.rows)
        with bar, closing(reduced):
            for codes, bad in reduced:
                parts.write(codes, bad)
                bar.update(len(codes))
        size = parts.finish()
    return Transformed(Path(target), kept + parts.rows, parts.bad_rows, size, time.perf_counter() - begin, sample)


def _rows_kept(path: Path, opened: Source, head: BaseHead, precision: Precision, on_bad_row: OnBadRow) -> int:
    """Return how many rows a sink has, after checking the first and the last of them against the source.

    Raises:
        ValueError: If the source cannot be read from a row on, has fewer, or the codes are not those of its rows.
    """
    stored = open_codes(path)
    if opened.files is None or stored is None or stored.rows is None:
        raise UserError(f"append: {path} or the source cannot be read from a row on: give files, or leave it out")
    stored.check(head, precision)
    rows = stored.rows
    if opened.rows is not None and opened.rows < rows:
        raise UserError(f"{path} has {rows:,} rows, the source {opened.rows:,}: it has not grown, give the whole of it")
    for start in (0, max(rows - _CHECKED, 0)):
        with closing(opened.batches(start, _CHECKED * 4 * head.in_features)) as batches:
            batch = next(batches)
        there = next(stored.chunks(start))[:_CHECKED]
        count = min(len(batch.vectors), len(there))
        here = reduce_batch(head, Batch(start, batch.vectors[:count]), precision, on_bad_row)[0]
        there = there[:count]
        same = here.shape == there.shape and here.dtype == there.dtype
        if not same or _least_cosine(here, there, precision, head.out_features) < _SAME:
            made = "are not what this head and precision give for the same rows of the source"
            raise UserError(f"the codes in {path} from row {start:,} on {made}: start anew with --force")
    return rows


def _least_cosine(here: np.ndarray, there: np.ndarray, precision: Precision, size: int) -> float:
    """Return the least cosine between codes of the same rows; a bit may differ where a number lies between two."""
    one, other = (dequantize(codes, precision, size) for codes in (here, there))
    return float(cosines(one, other)[one.any(axis=1)].min(initial=1.0))


def reduce_batch(head: BaseHead, batch: Batch, precision: Precision, on_bad_row: OnBadRow) -> tuple[np.ndarray, int]:
    """Return the codes of a batch, and the number of its vectors that have no direction.

    Raises:
        ValueError: If the vectors are not of the head's size, or as :func:`bad_rows`.
    """
    check_width(head, batch)
    bad = bad_rows(batch, on_bad_row)
    with np.errstate(over="ignore", invalid="ignore"):  # in bad rows, which are replaced
        reduced = head.transform(batch.vectors)
    reduced[bad] = 0
    return quantize(reduced, precision), len(bad)


def _reduced(
    opened: Source,
    head: BaseHead,
    precision: Precision,
    on_bad_row: OnBadRow,
    tabular: bool,
    start: int,
    batch_bytes: int,
    sample: DriftSample | None = None,
) -> Generator[tuple[Any, int], None, None]:
    """Yield the codes of each batch, as an array or a record batch, with the number of bad rows among them."""
    if tabular:
        from st_dimreduce.vectors.arrow import code_batch, code_schema  # noqa: PLC0415, optional

        column = opened.column or NEW_COLUMN
        schema = code_schema(opened.schema, column, Origin(precision, head.out_features, head.fingerprint))
    with closing(opened.batches(start, batch_bytes)) as batches:
        for batch in batches:
            codes, bad = reduce_batch(head, batch, precision, on_bad_row)
            if sample is not None:
                sample.add(batch.vectors)
            yield code_batch(schema, column, codes, batch.others) if tabular else codes, bad
