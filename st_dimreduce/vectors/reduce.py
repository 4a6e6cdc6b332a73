"""Reducing stored vectors: from a source, through a head, to a sink of codes."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from st_dimreduce.codes.precision import dequantize, quantize
from st_dimreduce.enums import OnBadRow, Precision
from st_dimreduce.evaluation.metrics import cosines
from st_dimreduce.files import followed, only_run
from st_dimreduce.head import Head, HeadLike
from st_dimreduce.progress import progress_bar
from st_dimreduce.vectors.drift import Drift, DriftSample
from st_dimreduce.vectors.kinds import open_source, sink_files
from st_dimreduce.vectors.origin import Origin
from st_dimreduce.vectors.rows import bad_rows, check_width
from st_dimreduce.vectors.sinks import Parts, size_of
from st_dimreduce.vectors.sources import DEFAULT_BATCH_BYTES, Batch, Source, batch_rows
from st_dimreduce.vectors.stored import open_codes

_PART_BATCHES = 8
_CHECKED = 1024  # rows at either end of a sink that is to grow
_SAME = 0.7  # cosine of codes of one vector, where one of few bits may differ
NEW_COLUMN = "embedding"  # the column of codes where the source has no columns


@dataclass(frozen=True)
class Reduced:
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


@overload
def reduce_vectors(
    source: Any,
    head: HeadLike,
    sink: None = None,
    precision: Precision | str = ...,
    *,
    column: str | None = ...,
    on_bad_row: OnBadRow | str = ...,
    overwrite: bool = ...,
    batch_bytes: int = ...,
    show_progress_bar: bool | None = ...,
) -> Generator[Any, None, None]: ...


@overload
def reduce_vectors(
    source: Any,
    head: HeadLike,
    sink: str | os.PathLike[str],
    precision: Precision | str = ...,
    *,
    column: str | None = ...,
    on_bad_row: OnBadRow | str = ...,
    overwrite: bool = ...,
    append: bool = ...,
    batch_bytes: int = ...,
    show_progress_bar: bool | None = ...,
) -> Reduced: ...


def reduce_vectors(
    source: Any,
    head: HeadLike,
    sink: str | os.PathLike[str] | None = None,
    precision: Precision | str = Precision.FLOAT32,
    *,
    column: str | None = None,
    on_bad_row: OnBadRow | str = OnBadRow.RAISE,
    overwrite: bool = False,
    append: bool = False,
    batch_bytes: int = DEFAULT_BATCH_BYTES,
    show_progress_bar: bool | None = None,
) -> Reduced | Generator[Any, None, None]:
    """Reduce vectors and store them as codes, in their order and in bounded memory.

    The result is ``quantize(head.reduce_stored(vectors), precision)``: float32 rows of norm 1, or the codes that
    :func:`st_dimreduce.search` reads. The norms of the vectors make no difference, unless the head's record has no
    mean norm.

    A run from a file to a file can be killed: called again with the same arguments it continues where it was, and the
    result has the same bytes as one that was not killed. Until the end, its parts are in ``.NAME.parts`` beside the
    sink. The disk must hold the reduced vectors once, and one part of them; twice if the sink is one ``.arrow`` or
    ``.parquet`` file. A sink that is replaced keeps its permissions.

    Args:
        source: Vectors of size d, in float64, 32, 16 or bfloat16: a NumPy array or torch tensor of shape (n, d); a
            ``.npy`` file, a ``.parquet`` file, an ``.arrow`` or ``.feather`` file (Arrow IPC), or a folder of one of
            these kinds, read in the order of their names; an Arrow Table, RecordBatch or RecordBatchReader; a
            ``datasets.Dataset``; a flat FAISS index; or any iterable of arrays of shape (n, d).
        head: The head, for vectors of size d.
        sink: A path that ends in ``.npy`` (the codes only), ``.parquet`` or ``.arrow`` for one file, or in no suffix
            for a folder of part files, ``.npy`` from arrays and ``.parquet`` from tables. None (the default) for an
            iterator: of arrays of codes, or from tables of Arrow record batches with the vectors replaced.
        precision: How the codes are stored. Defaults to ``"float32"``.
        column: The column of vectors in a table, lists of equally many floats; the only such column if None (the
            default). Other columns are copied.
        on_bad_row: ``"raise"`` (the default) stops at the first vector that is NaN, infinite or zero; ``"zero"`` stores
            the code of a zero vector in its place, and counts it.
        overwrite: Replace a sink that exists, and the parts of another run. Defaults to False.
        append: Of a source that has grown since the sink was written, reduce what has come behind the rows that the
            sink has; a sink that is not there is made. Defaults to False.
        batch_bytes: Bytes of float32 vectors read at a time, rounded down to a power of two of rows, 1 to 16,384.
            Defaults to 32 MiB; fewer rows where other columns of a table have more than 32 MiB. A run that was killed
            can only be resumed with the same.
        show_progress_bar: Whether to show progress; only on a terminal if None (the default).

    Returns:
        What was written; with no sink, the iterator.

    Raises:
        BlockingIOError: If another run is writing the sink.
        FileExistsError: If the sink exists and ``overwrite`` is False.
        FileNotFoundError: If there is no such file or folder to read.
        ModuleNotFoundError: If source or sink is a table and pyarrow is missing.
        OSError: If the disk is full; complete parts are kept.
        ValueError: If the source cannot be read as vectors of the head's size, holds one without a direction, or
            changes meanwhile, or an unfinished run was begun with something else; says which. With ``append``, if the
            sink's codes are not those that the head gives for the source's first rows.
    """
    begin = time.perf_counter()
    head, precision, on_bad_row = head.to_head(), Precision(precision), OnBadRow(on_bad_row)
    opened = open_source(source, column)
    if sink is None:
        tabular = opened.schema is not None
        return _stream(
            opened, _reduced(opened, head, precision, on_bad_row, tabular, 0, batch_bytes), show_progress_bar
        )
    path = followed(sink) if Path(sink).suffix else Path(sink)
    part, whole = sink_files(path, opened.schema is not None)
    part_rows = _PART_BATCHES * batch_rows(head.in_features, batch_bytes)
    kept = _rows_kept(path, opened, head, precision, on_bad_row) if append and os.path.lexists(path) else 0
    if kept and kept == opened.rows:
        return Reduced(Path(sink), kept, 0, size_of(path), time.perf_counter() - begin)
    identity = {
        "source": opened.files.states if opened.files else None,
        "column": opened.column,
        "head": head.digest,
        "precision": precision.value,
        **({"rows before": kept} if kept else {}),
    }
    source_path = opened.files.path if opened.files else None
    asked: dict[str, Any] = {"overwrite": overwrite, "origin": Origin.of(head, precision), "append": kept > 0}
    sample = DriftSample(head)
    with only_run(path), Parts(path, part, whole, part_rows, identity, source_path, **asked) as parts:
        if parts.bad_rows and on_bad_row is OnBadRow.RAISE:
            raise ValueError(
                f"{parts.folder} was begun with on_bad_row='zero' and holds {parts.bad_rows} bad rows as zeros: "
                "pass that again (--on-bad-row zero), or start anew with overwrite=True (--force)"
            )
        reduced = _reduced(opened, head, precision, on_bad_row, part.tabular, kept + parts.rows, batch_bytes, sample)
        bar = progress_bar("Reducing", "rows", show_progress_bar, total=opened.rows, done=kept + parts.rows)
        with bar, closing(reduced):
            for codes, bad in reduced:
                parts.write(codes, bad)
                bar.update(len(codes))
        size = parts.finish(show_progress_bar)
    return Reduced(Path(sink), kept + parts.rows, parts.bad_rows, size, time.perf_counter() - begin, sample)


def _rows_kept(path: Path, opened: Source, head: Head, precision: Precision, on_bad_row: OnBadRow) -> int:
    """Return how many rows a sink has, after checking the first and the last of them against the source.

    Raises:
        ValueError: If the source cannot be read from a row on, has fewer, or the codes are not those of its rows.
    """
    stored = open_codes(path)
    if opened.files is None or stored is None or stored.rows is None:
        raise ValueError(f"append: {path} or the source cannot be read from a row on: give files, or leave it out")
    stored.check(head, precision)
    rows = stored.rows
    if opened.rows is not None and opened.rows < rows:
        raise ValueError(
            f"{path} has {rows:,} rows, the source {opened.rows:,}: it has not grown, give the whole of it"
        )
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
            raise ValueError(f"the codes in {path} from row {start:,} on {made}: start anew with --force")
    return rows


def _least_cosine(here: np.ndarray, there: np.ndarray, precision: Precision, size: int) -> float:
    """Return the least cosine between codes of the same rows; a bit may differ where a number lies between two."""
    one, other = (dequantize(codes, precision, size) for codes in (here, there))
    return float(cosines(one, other)[one.any(axis=1)].min(initial=1.0))


def reduce_batch(head: Head, batch: Batch, precision: Precision, on_bad_row: OnBadRow) -> tuple[np.ndarray, int]:
    """Return the codes of a batch, and the number of its vectors that have no direction.

    Raises:
        ValueError: If the vectors are not of the head's size, or as :func:`bad_rows`.
    """
    check_width(head, batch)
    bad = bad_rows(batch, on_bad_row)
    with np.errstate(over="ignore", invalid="ignore"):  # in bad rows, which are replaced
        reduced = head.reduce_stored(batch.vectors)
    reduced[bad] = 0
    return quantize(reduced, precision), len(bad)


def _reduced(
    opened: Source,
    head: Head,
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
        schema = code_schema(opened.schema, column, Origin.of(head, precision))
    with closing(opened.batches(start, batch_bytes)) as batches:
        for batch in batches:
            codes, bad = reduce_batch(head, batch, precision, on_bad_row)
            if sample is not None:
                sample.add(batch.vectors)
            yield code_batch(schema, column, codes, batch.others) if tabular else codes, bad


def _stream(
    opened: Source, reduced: Generator[tuple[Any, int], None, None], show_progress_bar: bool | None
) -> Generator[Any, None, None]:
    with progress_bar("Reducing", "rows", show_progress_bar, total=opened.rows) as bar, closing(reduced):
        for codes, _ in reduced:
            bar.update(len(codes))
            yield codes
