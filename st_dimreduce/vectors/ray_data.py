"""Fitting on and reducing the vectors of a Ray dataset, for any number of vectors on any number of machines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import numpy as np

from st_dimreduce.base_head import BaseHead
from st_dimreduce.codes.origin import Origin
from st_dimreduce.enums import OnBadRow, Precision
from st_dimreduce.errors import MissingExtraError, UserError
from st_dimreduce.fitting.summary import Summary
from st_dimreduce.vectors.batches import Source
from st_dimreduce.vectors.fit import NO_GOOD_ROWS, read_summary
from st_dimreduce.vectors.reduce import reduce_batch
from st_dimreduce.vectors.sources import open_source

try:
    import pyarrow as pa
    import ray
    from ray.data import Dataset
except ModuleNotFoundError as error:
    raise MissingExtraError("Ray Data is missing: pip install 'st_dimreduce[ray]'") from error

from st_dimreduce.codes.tables import code_array, code_field

SUMMARISED_ROWS = 1 << 16  # at a time: for 200 MB of 768 dimensions, a Gram matrix of 4.7 MB is sent
_ERROR = "UserError: "

Result = TypeVar("Result")


def summarize(
    dataset: Dataset,
    *,
    column: str | None = None,
    sample_size: int = 50_000,
    seed: int = 0,
    on_bad_row: OnBadRow | str = OnBadRow.RAISE,
) -> Summary:
    """Summarise the vectors of a Ray dataset where they are: all that :meth:`st_dimreduce.Head.fit` needs of them.

    The workers make a summary per 65,536 rows, with 1.5 times its share of ``sample_size`` and 100 rows; these are sent
    here and merged as they come. The result is that of one machine, but for the order in which its sums are added and
    for the rows that the sample draws.

    Args:
        dataset: Dataset with a column of vectors: lists of equally many floats, or Ray's tensors (n, d).
        column: As in :meth:`st_dimreduce.Head.fit`.
        sample_size: Rows in the summary's sample at most. Defaults to 50,000.
        seed: Seed of the sample. Defaults to 0.
        on_bad_row: As in :meth:`st_dimreduce.Head.fit`.

    Raises:
        UserError: If the dataset is empty, or as :meth:`st_dimreduce.Head.fit`. Row numbers in the message count from
            the start of a worker's batch.
    """
    rows = dataset.count()
    if not rows:
        raise UserError("the dataset has no rows: give one that holds at least one vector")
    share, settings = min(1.5 * sample_size / rows, 1.0), (column, seed, OnBadRow(on_bad_row))
    # What the other columns hold would be gathered with so many rows.
    vectors = dataset.map_batches(partial(_vectors, column=column), batch_size=None, batch_format="pyarrow")
    summarise = partial(_summarize, share=share, settings=settings)
    parts = vectors.map_batches(summarise, batch_size=SUMMARISED_ROWS, batch_format="pyarrow")
    summary = _raised(partial(_merged, parts, sample_size, seed))
    if not summary.count:
        raise UserError(NO_GOOD_ROWS)
    return summary


def transform(
    dataset: Dataset,
    head: BaseHead,
    precision: Precision | str | None = None,
    *,
    column: str | None = None,
    on_bad_row: OnBadRow | str = OnBadRow.RAISE,
) -> Dataset:
    """Replace the vectors of a Ray dataset by codes, as :meth:`st_dimreduce.Head.transform_file` does.

    Args:
        dataset: As in :func:`summarize`.
        head: The head, for vectors of size d.
        precision: How the codes are stored. Defaults to None: as the head was fitted for.
        column: As in :meth:`st_dimreduce.Head.fit`.
        on_bad_row: As in :meth:`st_dimreduce.Head.transform_file`.

    Returns:
        A dataset that reduces when it is consumed, for example by ``write_parquet``: other columns are copied, float32
        and int8 are fixed-size lists, packed codes fixed-size binary. Ray keeps the order of rows only where
        ``DataContext.execution_options.preserve_order`` is set: have a column of ids.

    Raises:
        UserError: If the precision is unknown. Vectors are checked when they are read.
    """
    precision = head.precision if precision is None else Precision(precision)
    reduce = partial(_reduce, head=head, precision=precision, column=column, on_bad_row=OnBadRow(on_bad_row))
    # Blocks as they are, which Ray bounds by their bytes: a number of rows may be of any size.
    return dataset.map_batches(reduce, batch_size=None, batch_format="pyarrow")


def _raised(call: Callable[[], Result]) -> Result:
    """Return what a call of Ray returns; a ``UserError`` of a worker is raised as one."""
    try:
        return call()
    except (ray.exceptions.RayTaskError, ray.exceptions.RayActorError) as error:
        causes = [line for line in str(error).splitlines() if _ERROR in line]
        if not causes:
            raise
        raise UserError(causes[-1].partition(_ERROR)[2]) from error


def _merged(parts: Dataset, sample_size: int, seed: int) -> Summary:
    rows = (row["summary"] for row in parts.iter_rows())
    first = next(rows)
    summary = Summary(first.width, sample_size, seed).merge(first)
    for each in rows:
        summary.merge(each)
    return summary


def _summarize(table: pa.Table, share: float, settings: tuple[str | None, int, OnBadRow]) -> dict[str, np.ndarray]:
    column, seed, on_bad_row = settings
    sample_size = math.ceil(share * table.num_rows) + 100
    return {"summary": np.array([read_summary(_plain(table), column, sample_size, seed, on_bad_row)], object)}


def _vectors(table: pa.Table, column: str | None) -> pa.Table:
    plain = _plain(table)
    return plain.select([_opened(plain, column)[1]])


def _reduce(
    table: pa.Table, head: BaseHead, precision: Precision, column: str | None, on_bad_row: OnBadRow
) -> Iterator[pa.Table]:
    plain = _plain(table)
    source, name = _opened(plain, column)
    field = code_field(name, Origin(precision, head.out_features, head.fingerprint))
    for batch in source.batches():
        codes, _ = reduce_batch(head, batch, precision, on_bad_row)
        others = plain.slice(batch.first_row, len(codes)).drop_columns([name])
        yield others.append_column(field, code_array(codes, field.type))


def _opened(table: pa.Table, column: str | None) -> tuple[Source, str]:
    """Return the vectors of a table, and the name of their column."""
    source = open_source(table, column)
    return source, str(source.column)


def _plain(table: pa.Table) -> pa.Table:
    """Return the table with Ray's one-dimensional tensors as the lists that they are stored as."""
    for place, field in enumerate(table.schema):
        if isinstance(field.type, pa.ExtensionType) and len(getattr(field.type, "shape", None) or ()) == 1:
            chunks = [chunk.storage for chunk in table.column(place).chunks]
            table = table.set_column(place, field.name, pa.chunked_array(chunks, field.type.storage_type))
    return table
