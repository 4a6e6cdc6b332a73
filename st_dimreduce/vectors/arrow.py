"""Vectors and codes in Arrow tables and Parquet files: all that needs pyarrow, imported when one of them is met.

A reduced column keeps its name and place. ``float32`` and ``int8`` become fixed-size lists of k numbers, packed codes
fixed-size binary; the field's metadata says ``st_dimreduce.precision`` and ``st_dimreduce.out_features``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from st_dimreduce.codes.precision import Precision

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("Arrow and Parquet need pyarrow: pip install 'st_dimreduce[parquet]'") from error

_READ_ROWS = 2048  # of a Parquet file at a time: what is decoded beside the vectors stays small
_READ_BUFFER = 1 << 20  # bytes; without it a whole column of a row group is held at once
_DATASET_ROWS = 8192


class Tables:
    """Record batches that share a schema, one column of which holds the vectors.

    Args:
        schema: The schema.
        read: From a row to the record batches from there on.
        rows: How many rows there are; None if that is not known.
        column: The column of vectors; None for the only one.

    Raises:
        ValueError: If the column is not there, holds no lists of floats, or None could be several.
    """

    def __init__(
        self, schema: pa.Schema, read: Callable[[int], Iterator[pa.RecordBatch]], rows: int | None, column: str | None
    ) -> None:
        self.schema, self.rows, self._read = schema, rows, read
        self.column = _vector_column(schema, column)
        self.others = [field.name for field in schema if field.name != self.column]

    def chunks(self, start: int = 0) -> Iterator[tuple[np.ndarray, pa.Table | None]]:
        """Yield the vectors, without a copy, and a table of the other columns, None if there are none."""
        for batch in self._read(start):
            if batch.num_rows:
                # Made anew of the arrays: what the fields of two files say beside their types may differ.
                others = pa.table([batch.column(name) for name in self.others], self.others) if self.others else None
                yield _vectors_of(batch.column(self.column), start), others
            start += batch.num_rows


def open_parquet(paths: Sequence[Path], column: str | None) -> Tables:
    """Open Parquet files of one schema, to be read as if they were one.

    Raises:
        ValueError: As :class:`Tables`, or if a file is no Parquet file or differs from the first.
    """
    files = [_parquet_metadata(path) for path in paths]
    schemas = [metadata.schema.to_arrow_schema() for metadata in files]
    rows = [metadata.num_rows for metadata in files]

    def read(start: int) -> Iterator[pa.RecordBatch]:
        for path, count in zip(paths, rows, strict=True):
            if start < count:
                with pq.ParquetFile(path, pre_buffer=False, buffer_size=_READ_BUFFER) as file:
                    yield from _row_groups(file, start)
            start = max(start - count, 0)

    tables = Tables(schemas[0], read, sum(rows), column)
    _check_schemas(paths, schemas, tables.column)
    return tables


def open_ipc(paths: Sequence[Path], column: str | None) -> Tables:
    """Open Arrow IPC files of one schema, of the file or the stream format, to be read as if they were one.

    They are memory-mapped: a file may be one batch larger than the memory.

    Raises:
        ValueError: As :class:`Tables`, or if a file is no Arrow file or differs from the first.
    """
    schemas, rows = [], []
    for path in paths:
        with _ipc(path) as reader:
            schemas.append(reader.schema)
            rows.append(reader.count_rows() if isinstance(reader, pa.RecordBatchFileReader) else None)

    def read(start: int) -> Iterator[pa.RecordBatch]:
        for path in paths:
            with _ipc(path) as reader:
                for batch in _batches(reader):
                    yield batch[start:]
                    start = max(start - batch.num_rows, 0)

    known = [count for count in rows if count is not None]
    tables = Tables(schemas[0], read, sum(known) if len(known) == len(rows) else None, column)
    _check_schemas(paths, schemas, tables.column)
    return tables


def open_memory(source: Any, column: str | None) -> Tables:
    """Open an Arrow Table, RecordBatch or RecordBatchReader, or a ``datasets.Dataset``.

    Raises:
        ValueError: As :class:`Tables`, or if it is none of these.
    """
    if isinstance(source, pa.RecordBatchReader):
        return Tables(source.schema, lambda start: iter(source), None, column)
    if isinstance(source, pa.RecordBatch):
        return Tables(source.schema, lambda start: iter([source]), source.num_rows, column)
    if isinstance(source, pa.Table):
        return Tables(source.schema, lambda start: iter(source.to_batches()), source.num_rows, column)
    if type(source).__name__ != "Dataset":
        kind = f"{type(source).__module__.partition('.')[0]}.{type(source).__name__}"
        raise ValueError(f"{kind} holds no vectors to read: give a Table, record batches, or one split as a Dataset")
    dataset = source.with_format("arrow")

    def read(start: int) -> Iterator[pa.RecordBatch]:
        for table in dataset.iter(_DATASET_ROWS):
            yield from table.to_batches()

    return Tables(dataset[:0].schema, read, len(dataset), column)


def code_schema(schema: pa.Schema | None, column: str, precision: Precision, out_features: int) -> pa.Schema:
    """Return the schema of reduced vectors: as it was (None: one column), with codes in the column of vectors.

    Dictionaries become what they encode, since those of two files may differ; the schema's own metadata, which other
    libraries would hold against the changed column, is left out.
    """
    kind = {Precision.FLOAT32: pa.float32(), Precision.INT8: pa.int8()}.get(precision)
    codes = pa.binary(precision.bytes_per_vector(out_features)) if kind is None else pa.list_(kind, out_features)
    about = {"st_dimreduce.precision": precision.value, "st_dimreduce.out_features": str(out_features)}
    fields = [pa.field(column, codes)] if schema is None else list(schema)
    return pa.schema(
        field.with_type(codes).with_metadata(about) if field.name == column else _decoded(field) for field in fields
    )


def code_batch(schema: pa.Schema, column: str, codes: np.ndarray, others: pa.Table | None) -> pa.RecordBatch:
    """Return codes, shape (n, width), and the rows of the other columns as one record batch of the schema."""
    kind, flat = schema.field(column).type, np.ascontiguousarray(codes).reshape(-1)
    if pa.types.is_fixed_size_binary(kind):
        array = pa.Array.from_buffers(kind, len(codes), [None, pa.py_buffer(flat)])
    else:
        array = pa.FixedSizeListArray.from_arrays(pa.array(flat), kind.list_size)
    arrays = [array if name == column else _column(others, schema.field(name)) for name in schema.names]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def codes_of(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return the codes that a reduced column holds, as :func:`st_dimreduce.quantize` gave them, shape (n, width)."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    if not pa.types.is_fixed_size_binary(column.type):
        return np.concatenate([chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in chunks])
    width = column.type.byte_width
    raw = [np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * width :] for chunk in chunks]
    return np.concatenate(
        [rows[: len(chunk) * width].reshape(-1, width) for rows, chunk in zip(raw, chunks, strict=True)]
    )


def open_writer(path: Path, schema: pa.Schema) -> Any:
    """Return a writer of record batches, by the path's suffix to Parquet or to Arrow IPC, with write and close."""
    if path.suffix == ".parquet":
        return pq.ParquetWriter(path, schema, use_dictionary=[field.name for field in schema if not _is_codes(field)])
    return pa.ipc.new_file(str(path), schema)


def join(parts: Iterable[Path], first: Path, path: Path) -> None:
    """Write Arrow IPC files, of the first one's schema, into one Arrow IPC or Parquet file: a row group each."""
    with _ipc(first) as reader:
        schema = reader.schema
    with closing(open_writer(path, schema)) as writer:
        for part in parts:
            with _ipc(part) as reader:
                writer.write(reader.read_all().combine_chunks())


def _vector_column(schema: pa.Schema, column: str | None) -> str:
    there = ", ".join(f"{field.name} ({field.type})" for field in schema) or "none"
    fitting = [field.name for field in schema if _is_vectors(field.type)]
    if column is None:
        if len(fitting) != 1:
            many = "several columns hold" if fitting else "no column holds"
            raise ValueError(f"{many} lists of floats: name the one to reduce; the columns are {there}")
        column = fitting[0]
    if schema.names.count(column) != 1:
        raise ValueError(f"{schema.names.count(column)} columns are named {column!r}: name one of {there}")
    if column not in fitting:
        raise ValueError(f"column {column!r} holds {schema.field(column).type}, expected lists of floats, of {there}")
    return column


def _is_vectors(kind: pa.DataType) -> bool:
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return lists and pa.types.is_floating(kind.value_type)


def _is_codes(field: pa.Field) -> bool:
    return b"st_dimreduce.precision" in (field.metadata or {})


def _decoded(field: pa.Field) -> pa.Field:
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field


def _column(others: pa.Table, field: pa.Field) -> pa.Array:
    column = others[field.name].cast(field.type)
    return pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)


def _vectors_of(column: pa.Array, first_row: int) -> np.ndarray:
    """Return a view of a list column, shape (n, d), having made sure that every row is whole."""
    if column.null_count:
        row = first_row + column.is_null().to_numpy(zero_copy_only=False).argmax()
        raise ValueError(f"row {row} holds no vector but null: drop or fill it")
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
    else:
        lengths = np.diff(column.offsets.to_numpy())
        width, ragged = int(lengths[0]), lengths != lengths[0]
        if ragged.any():
            row = int(ragged.argmax())
            raise ValueError(
                f"row {first_row + row} holds {lengths[row]} numbers, row {first_row} {width}: expected equally many"
            )
    values = column.flatten()
    if values.null_count:
        row = first_row + values.is_null().to_numpy(zero_copy_only=False).argmax() // width
        raise ValueError(f"the vector in row {row} holds null: drop or repair it")
    # NumPy would mark Arrow's memory as read-only, and the head copy it for that; DLPack does not.
    return torch.from_dlpack(values).numpy().reshape(len(column), width)


def _check_schemas(paths: Sequence[Path], schemas: Sequence[pa.Schema], column: str) -> None:
    for path, schema in zip(paths, schemas, strict=True):
        same = schema.names == schemas[0].names and all(
            field.type == other.type or (field.name == column and _is_vectors(field.type))
            for field, other in zip(schema, schemas[0], strict=True)
        )
        if not same:
            there, wanted = (", ".join(f"{f.name} ({f.type})" for f in one) for one in (schema, schemas[0]))
            raise ValueError(f"{path} has the columns {there}: expected those of {paths[0].name}, {wanted}")


def _parquet_metadata(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no whole Parquet file: {error}") from error


def _row_groups(file: pq.ParquetFile, start: int) -> Iterator[pa.RecordBatch]:
    group = 0
    while start >= file.metadata.row_group(group).num_rows:
        start -= file.metadata.row_group(group).num_rows
        group += 1
    for batch in file.iter_batches(_READ_ROWS, row_groups=range(group, file.num_row_groups)):
        yield batch[start:]
        start = max(start - batch.num_rows, 0)


@contextmanager
def _ipc(path: Path) -> Iterator[Any]:
    """Open a reader of record batches, which may outlive it."""
    try:
        with pa.memory_map(str(path)) as file:
            whole = file.read(6) == b"ARROW1"
            file.seek(0)
            yield pa.ipc.open_file(file) if whole else pa.ipc.open_stream(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no whole Arrow IPC file: {error}") from error


def _batches(reader: Any) -> Iterable[pa.RecordBatch]:
    if isinstance(reader, pa.RecordBatchFileReader):
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return reader
