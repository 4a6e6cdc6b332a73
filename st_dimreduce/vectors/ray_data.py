"""Summarising, reducing and encoding on Ray Data, for any number of vectors on any number of machines."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from st_dimreduce.codes.precision import quantize
from st_dimreduce.enums import OnBadRow, Precision
from st_dimreduce.fitting.summary import Summary
from st_dimreduce.head import Head, HeadLike
from st_dimreduce.vectors import reduce as local
from st_dimreduce.vectors.fit import NO_GOOD_ROWS, read_summary

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

try:
    import pyarrow as pa
    import ray
    from ray.data import ActorPoolStrategy, Dataset
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("Ray Data is missing: pip install 'st_dimreduce[ray]'") from error

from st_dimreduce.vectors.arrow import code_batch, code_schema, vector_column

SUMMARISED_ROWS = 1 << 16  # at a time: of 200 MB of 768 dimensions, a Gram matrix of 4.7 MB is sent
_MERGED = 16  # summaries at a time
_VALUE_ERROR = "ValueError: "


def summarize(
    dataset: Dataset,
    *,
    column: str | None = None,
    sample_size: int = 50_000,
    seed: int = 0,
    on_bad_row: OnBadRow | str = OnBadRow.RAISE,
) -> Summary:
    """Summarise the vectors of a Ray dataset: a summary per 65,536 rows, made by the workers and merged in a tree.

    Only summaries are sent between machines. Each has a sample of 1.5 times its share of ``sample_size``, and 100 rows.
    The result is that of :func:`st_dimreduce.summarize` on the same rows, but for the order in which its sums are
    added and for the rows that the sample draws.

    Args:
        dataset: Dataset with a column of vectors: lists of equally many floats, or Ray's tensors (n, d).
        column: As in :func:`st_dimreduce.reduce_vectors`.
        sample_size: Rows in the summary's sample at most. Defaults to 50,000.
        seed: Seed of the sample. Defaults to 0.
        on_bad_row: As in :func:`st_dimreduce.summarize`.

    Raises:
        ValueError: If the dataset is empty, or as :func:`st_dimreduce.summarize`. Row numbers in the message count from
            the start of a worker's batch.
    """
    rows = dataset.count()
    if not rows:
        raise ValueError("the dataset has no rows: give one that holds at least one vector")
    settings: dict[str, Any] = {"column": column, "seed": seed, "on_bad_row": OnBadRow(on_bad_row)}
    share = min(1.5 * sample_size / rows, 1.0)
    summarise = partial(_summarize, share=share, **settings)
    merge = partial(_merge, sample_size=sample_size, seed=seed)
    # What the other columns hold would be gathered with so many rows.
    vectors = dataset.map_batches(partial(_vectors, column=column), batch_size=None, batch_format="pyarrow")
    parts = vectors.map_batches(summarise, batch_size=SUMMARISED_ROWS, batch_format="pyarrow")
    for _ in range(math.ceil(math.log(math.ceil(rows / SUMMARISED_ROWS), _MERGED))):
        parts = parts.map_batches(merge, batch_size=_MERGED, batch_format="numpy")
    try:
        found = parts.take_all()
    except ray.exceptions.RayTaskError as error:
        causes = [line for line in str(error).splitlines() if line.startswith(_VALUE_ERROR)]
        if not causes:
            raise
        raise ValueError(causes[-1].removeprefix(_VALUE_ERROR)) from error
    merged = merge({"summary": np.array([row["summary"] for row in found], object)})["summary"][0]
    if not merged.count:
        raise ValueError(NO_GOOD_ROWS)
    return merged


def reduce_vectors(
    dataset: Dataset,
    head: HeadLike,
    precision: Precision | str = Precision.FLOAT32,
    *,
    column: str | None = None,
    on_bad_row: OnBadRow | str = OnBadRow.RAISE,
) -> Dataset:
    """Replace the vectors of a Ray dataset by codes, as :func:`st_dimreduce.reduce_vectors` does.

    Args:
        dataset: As in :func:`summarize`.
        head: The head, for vectors of size d.
        precision: How the codes are stored. Defaults to ``"float32"``.
        column: As in :func:`st_dimreduce.reduce_vectors`.
        on_bad_row: As in :func:`st_dimreduce.reduce_vectors`.

    Returns:
        A dataset that reduces when it is consumed, for example by ``write_parquet``: other columns are copied, float32
        and int8 are fixed-size lists, packed codes fixed-size binary. Ray keeps the order of rows only where
        ``DataContext.execution_options.preserve_order`` is set: have a column of ids.

    Raises:
        ValueError: If the precision is unknown. Vectors are checked when they are read.
    """
    settings: dict[str, Any] = {"precision": Precision(precision), "column": column, "on_bad_row": OnBadRow(on_bad_row)}
    reduce = partial(_reduce, head=head.to_head(), **settings)
    # Blocks as they are, which Ray bounds by their bytes: a number of rows may be of any size.
    return dataset.map_batches(reduce, batch_size=None, batch_format="pyarrow")


def encode_and_reduce(
    dataset: Dataset,
    model: SentenceTransformer | str | os.PathLike[str],
    precision: Precision | str = Precision.FLOAT32,
    *,
    text_column: str = "text",
    column: str = "embedding",
    batch_size: int = 32,
    workers: int | None = None,
) -> Dataset:
    """Encode the texts of a Ray dataset with a reduced model, loaded once per worker, and store them as codes.

    Args:
        dataset: Dataset with a column of strings.
        model: The reduced model. A name or path is loaded by each worker: it must hold the same on all machines.
        precision: How the embeddings are stored. Defaults to ``"float32"``.
        text_column: The column of texts. Defaults to ``"text"``.
        column: The column to add. Defaults to ``"embedding"``.
        batch_size: Texts encoded at a time. Defaults to 32.
        workers: Number of models to load at most. Defaults to one per GPU of the cluster, or per CPU if it has none.

    Returns:
        A dataset that encodes when it is consumed; all its columns are kept.

    Raises:
        ValueError: If the precision is unknown, there is no such column of texts, or ``column`` exists already.
    """
    precision, resources = Precision(precision), ray.cluster_resources()
    schema = dataset.schema()
    names = [] if schema is None else schema.names
    if text_column not in names or column in names:
        raise ValueError(
            f"the columns are {', '.join(names)}: expected {text_column!r} among them and no {column!r} yet"
        )
    gpus = int(resources.get("GPU", 0))
    return dataset.map_batches(
        _Encoder,
        fn_constructor_args=(model, precision, text_column, column, batch_size),
        compute=ActorPoolStrategy(min_size=1, max_size=workers or gpus or max(int(resources.get("CPU", 1)), 1)),
        num_gpus=1 if gpus else 0,
        num_cpus=1,
        batch_size=32 * batch_size,
        batch_format="pyarrow",
    )


def _summarize(
    table: pa.Table, share: float, column: str | None, seed: int, on_bad_row: OnBadRow
) -> dict[str, np.ndarray]:
    sample_size = math.ceil(share * table.num_rows) + 100
    return {"summary": np.array([read_summary(_plain(table), column, sample_size, seed, on_bad_row)], object)}


def _merge(batch: dict[str, Any], sample_size: int, seed: int) -> dict[str, Any]:
    merged = Summary(batch["summary"][0].width, sample_size, seed)
    for summary in batch["summary"]:
        merged.merge(summary)
    return {"summary": np.array([merged], object)}


def _vectors(table: pa.Table, column: str | None) -> pa.Table:
    plain = _plain(table)
    return plain.select([vector_column(plain.schema, column)])


def _reduce(table: pa.Table, head: Head, precision: Precision, **settings: Any) -> Iterator[pa.Table]:
    for batch in local.reduce_vectors(_plain(table), head, None, precision, **settings):
        yield pa.Table.from_batches([batch])


class _Encoder:
    """A worker that has loaded the model."""

    def __init__(self, model: Any, precision: Precision, text_column: str, column: str, batch_size: int) -> None:
        from st_dimreduce.models.load import load_model  # noqa: PLC0415, only workers that encode need torch

        self._model = load_model(model) if isinstance(model, (str, os.PathLike)) else model
        self._precision = precision
        self._text_column, self._column = text_column, column
        self._batch_size = batch_size

    def __call__(self, table: pa.Table) -> pa.Table:
        texts = table[self._text_column].to_pylist()
        embeddings = self._model.encode_document(texts, batch_size=self._batch_size, show_progress_bar=False)
        schema = code_schema(None, self._column, self._precision, embeddings.shape[1])
        codes = code_batch(schema, self._column, quantize(embeddings, self._precision), None)
        return table.append_column(codes.schema.field(0), codes.column(0))


def _plain(table: pa.Table) -> pa.Table:
    """Return the table with Ray's one-dimensional tensors as the lists that they are stored as."""
    for place, field in enumerate(table.schema):
        if isinstance(field.type, pa.ExtensionType) and len(getattr(field.type, "shape", None) or ()) == 1:
            chunks = [chunk.storage for chunk in table.column(place).chunks]
            table = table.set_column(place, field.name, pa.chunked_array(chunks, field.type.storage_type))
    return table
