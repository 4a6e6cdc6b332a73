"""Vectors that are stored already: summarised and reduced a batch at a time, whatever holds them."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from tqdm import tqdm

from st_dimreduce.enums import Choice
from st_dimreduce.dim_reduce import DimReduce
from st_dimreduce.codes.precision import Precision, quantize
from st_dimreduce.progress import progress_bar
from st_dimreduce.vectors.sinks import Parts, only_run, part_suffix
from st_dimreduce.vectors.sources import Batch, Source, batch_rows, batches, open_source
from st_dimreduce.fitting.summary import Summary, check_rows, row_norms

_PART_BATCHES = 8
_NEW_COLUMN = "embedding"  # the column of codes where the source has no columns


class OnBadRow(Choice):
    """What to do with a vector that has no direction: NaN, infinite or zero."""

    RAISE = "raise"
    ZERO = "zero"


@dataclass(frozen=True)
class Reduced:
    """What a run wrote.

    Attributes:
        path: The file or folder.
        rows: How many vectors it holds.
        bad_rows: How many of them had no direction and are zeros.
        bytes: Size of the file, or of the folder's files.
        seconds: How long this run took.
    """

    path: Path
    rows: int
    bad_rows: int
    bytes: int
    seconds: float


def summarize(
    source: Any,
    *,
    column: str | None = None,
    sample_size: int = 50_000,
    seed: int = 0,
    on_bad_row: OnBadRow | str = OnBadRow.RAISE,
    show_progress_bar: bool | None = None,
) -> Summary:
    """Summarise vectors in one pass, a batch of about 32 MB at a time.

    Args:
        source: As in :func:`reduce_vectors`.
        column: As in :func:`reduce_vectors`.
        sample_size: Rows the summary's sample holds at most. Defaults to 50,000.
        seed: Seed of the sample. Defaults to 0.
        on_bad_row: ``"raise"`` (the default) stops at the first vector that is NaN, infinite or zero; ``"zero"`` leaves
            such vectors out.
        show_progress_bar: Whether to show progress; only on a terminal if None (the default).

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ModuleNotFoundError: If the source is a table and pyarrow is missing.
        ValueError: If the source cannot be read as vectors of one size, or holds one without a direction; says where.
    """
    on_bad_row, opened = OnBadRow(on_bad_row), open_source(source, column)
    summary: Summary | None = None
    with _bar("Summarising", opened, 0, show_progress_bar) as bar, closing(batches(opened)) as reading:
        for batch in reading:
            summary = summary or Summary(batch.vectors.shape[1], sample_size, seed)
            summary.update(good_rows(batch, on_bad_row))
            bar.update(len(batch.vectors))
    if summary is None or not summary.count:
        raise ValueError("every vector of the source is NaN, infinite or zero: nothing can be fitted on them")
    return summary


@overload
def reduce_vectors(
    source: Any,
    head: DimReduce,
    sink: None = None,
    precision: Precision | str = ...,
    *,
    column: str | None = ...,
    on_bad_row: OnBadRow | str = ...,
    overwrite: bool = ...,
    show_progress_bar: bool | None = ...,
) -> Generator[Any, None, None]: ...


@overload
def reduce_vectors(
    source: Any,
    head: DimReduce,
    sink: str | os.PathLike[str],
    precision: Precision | str = ...,
    *,
    column: str | None = ...,
    on_bad_row: OnBadRow | str = ...,
    overwrite: bool = ...,
    show_progress_bar: bool | None = ...,
) -> Reduced: ...


def reduce_vectors(
    source: Any,
    head: DimReduce,
    sink: str | os.PathLike[str] | None = None,
    precision: Precision | str = Precision.FLOAT32,
    *,
    column: str | None = None,
    on_bad_row: OnBadRow | str = OnBadRow.RAISE,
    overwrite: bool = False,
    show_progress_bar: bool | None = None,
) -> Reduced | Generator[Any, None, None]:
    """Reduce vectors and store them as codes, in the order they come, a batch of about 32 MB at a time.

    What is stored is ``quantize(head.reduce(vectors), precision)``: float32 rows of length 1, or the codes that
    :func:`st_dimreduce.search` reads.

    A run from a file to a file that was killed goes on where it was when it is called again, and ends with the same
    bytes as one that was not. Until the end, its parts are in ``.NAME.parts`` beside the sink. The disk must hold the
    reduced vectors twice, a folder only once.

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
            default). Other columns are carried along.
        on_bad_row: ``"raise"`` (the default) stops at the first vector that is NaN, infinite or zero; ``"zero"`` stores
            the code of a zero vector in its place, and counts it.
        overwrite: Replace a sink that is there, and the parts of another run. Defaults to False.
        show_progress_bar: Whether to show progress; only on a terminal if None (the default).

    Returns:
        What was written; with no sink, the iterator.

    Raises:
        FileExistsError: If the sink exists and ``overwrite`` is False.
        FileNotFoundError: If there is no such file or folder to read.
        ModuleNotFoundError: If source or sink is a table and pyarrow is missing.
        OSError: If the disk is full; what is complete is kept.
        ValueError: If the source cannot be read as vectors of the head's size, holds one without a direction, or
            changes meanwhile, or an unfinished run was begun with something else; says which.
    """
    start, precision, on_bad_row = time.perf_counter(), Precision(precision), OnBadRow(on_bad_row)
    opened = open_source(source, column)
    if sink is None:
        reading = _reduced(opened, head, precision, on_bad_row, opened.schema is not None)
        return _items_of(reading, _bar("Reducing", opened, 0, show_progress_bar))
    path = Path(sink)
    suffix = part_suffix(path, opened.schema is not None)
    part_rows = _PART_BATCHES * batch_rows(head.in_features)
    identity = {
        "source": opened.files or None,
        "column": opened.column,
        "head": _digest(head),
        "precision": precision.value,
        "rows of a part": part_rows,
    }
    with only_run(path), Parts(path, suffix, identity, opened.path, overwrite) as parts:
        if parts.bad_rows and on_bad_row is OnBadRow.RAISE:
            raise ValueError(
                f"{parts.folder} was begun with on_bad_row='zero' and holds {parts.bad_rows} bad rows as zeros: "
                "pass that again (--on-bad-row zero), or start anew with overwrite=True (--force)"
            )
        reading = _reduced(opened, head, precision, on_bad_row, suffix != ".npy", parts.rows)
        with _bar("Reducing", opened, parts.rows, show_progress_bar) as bar, closing(reading):
            held = 0
            for item, rows, bad in reading:
                parts.write(item, rows, bad)
                bar.update(rows)
                held += rows
                if held == part_rows:
                    parts.end_part()
                    held = 0
            parts.end_part()
        size = parts.finish(show_progress_bar)
    return Reduced(path, parts.rows, parts.bad_rows, size, time.perf_counter() - start)


def reduce_batch(
    head: DimReduce,
    vectors: np.ndarray,
    precision: Precision | str,
    first_row: int = 0,
    on_bad_row: OnBadRow | str = OnBadRow.RAISE,
) -> tuple[np.ndarray, int]:
    """Return the codes of float32 vectors of shape (n, d), and how many of them had no direction.

    Raises:
        ValueError: If a vector has no direction and ``on_bad_row`` is ``"raise"``; counts from ``first_row``.
    """
    bad = bad_rows(vectors, first_row, on_bad_row)
    reduced = head.reduce(vectors)
    reduced[bad] = 0
    return quantize(reduced, precision), len(bad)


def good_rows(batch: Batch, on_bad_row: OnBadRow | str) -> np.ndarray:
    """Return the vectors of a batch that have a direction; raises as :func:`bad_rows` does."""
    bad = bad_rows(batch.vectors, batch.first_row, on_bad_row)
    return np.delete(batch.vectors, bad, axis=0) if len(bad) else batch.vectors


def bad_rows(vectors: np.ndarray, first_row: int, on_bad_row: OnBadRow | str) -> np.ndarray:
    """Return which of the float32 vectors, shape (n, d), have no direction: positions, mostly none.

    Raises:
        ValueError: If there are any and ``on_bad_row`` is ``"raise"``; names the first, counting from ``first_row``.
    """
    if OnBadRow(on_bad_row) is OnBadRow.ZERO:
        return row_norms(vectors)[1]
    try:
        check_rows(vectors, first_row)
    except ValueError as error:
        raise ValueError(f"{error}; or pass on_bad_row='zero' (--on-bad-row zero)") from error
    return np.empty(0, np.int64)


def _reduced(
    opened: Source, head: DimReduce, precision: Precision, on_bad_row: OnBadRow, tabular: bool, start: int = 0
) -> Generator[tuple[Any, int, int], None, None]:
    """Yield codes, as arrays or as record batches, with the number of their rows and of the bad ones among them."""
    column, schema = opened.column or _NEW_COLUMN, None
    if tabular:
        from st_dimreduce.vectors.arrow import code_batch, code_schema  # noqa: PLC0415, optional

        schema = code_schema(opened.schema, column, precision, head.out_features)
    with closing(batches(opened, start)) as reading:
        for batch in reading:
            width = batch.vectors.shape[1]
            if width != head.in_features:
                raise ValueError(f"the vectors have {width} dimensions, the head takes {head.in_features}: use its own")
            codes, bad = reduce_batch(head, batch.vectors, precision, batch.first_row, on_bad_row)
            item = code_batch(schema, column, codes, batch.others) if tabular else codes
            yield item, len(codes), bad


def _items_of(reading: Generator[tuple[Any, int, int], None, None], bar: tqdm) -> Generator[Any, None, None]:
    with bar, closing(reading):
        for item, rows, _ in reading:
            bar.update(rows)
            yield item


def _digest(head: DimReduce) -> str:
    """Tell heads apart by all that their output depends on."""
    digest = hashlib.sha256(repr(head.activation_function).encode())
    for name, value in sorted(head.linear.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _bar(what: str, opened: Source, start: int, shown: bool | None) -> tqdm:
    return progress_bar(what, "rows", shown, total=opened.rows, done=start)
