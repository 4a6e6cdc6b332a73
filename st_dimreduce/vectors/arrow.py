"""Vectors and codes in Arrow tables and Parquet files: all that needs pyarrow.

A reduced column keeps its name and place. ``float32`` and ``int8`` become fixed-size lists of k numbers, packed codes
fixed-size binary; the field's metadata says ``st_dimreduce.precision`` and ``st_dimreduce.out_features``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from st_dimreduce.enums import Precision
from st_dimreduce.vectors.sinks import CodesFile
from st_dimreduce.vectors.sources import Files, Source, library

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("Arrow and Parquet need pyarrow: pip install 'st_dimreduce[parquet]'") from error

_READ_ROWS = 2048  # of a Parquet file at a time: what is decoded beside the vectors stays small
_READ_BUFFER = 1 << 20  # bytes; without it a whole column of a row group is held at once
_DATASET_ROWS = 8192


class TableSource(Source):
    """Record batches of one schema, one column of which holds the vectors.

    Args:
        schema: The schema.
        rows: Number of rows; None if it is not known.
        column: The column of vectors; None for the only one.

    Raises:
        ValueError: If the column does not exist or holds no lists of floats, or if None could be several.
    """

    def __init__(self, schema: pa.Schema, rows: int | None, column: str | None) -> None:
        self.schema, self.rows = schema, rows
        self.column = _vector_column(schema, column)
        self._others = [field.name for field in schema if field.name != self.column]

    @abstractmethod
    def record_batches(self, start: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows from ``start`` on."""

    def chunks(self, start: int, batch_bytes: int) -> Iterator[tuple[np.ndarray, pa.Table | None]]:
        for batch in self.record_batches(start):
            if batch.num_rows:
                # A new table of the arrays: the metadata of two files' fields may differ.
                arrays = [batch.column(name) for name in self._others]
                others = pa.table(arrays, self._others) if arrays else None
                yield _vectors_of(batch.column(self.column), start), others
            start += batch.num_rows

    def join_others(self, tables: Sequence[pa.Table]) -> pa.Table | None:
        return pa.concat_tables(tables) if tables else None


class ParquetSource(TableSource):
    """Parquet files of one schema, read as if they were one.

    Raises:
        ValueError: As :class:`TableSource`, or if a file is not a complete Parquet file or differs from the first.
    """

    def __init__(self, files: Files, column: str | None = None) -> None:
        self.files, self._paths = files, files.paths
        self._metadata = [_parquet_metadata(path) for path in files.paths]
        schemas = [metadata.schema.to_arrow_schema() for metadata in self._metadata]
        super().__init__(schemas[0], sum(metadata.num_rows for metadata in self._metadata), column)
        _check_schemas(files.paths, schemas, self.column)

    @classmethod
    def accepts(cls, given: Any) -> bool:
        return isinstance(given, Files) and given.paths[0].suffix.lower() == ".parquet"

    def record_batches(self, start: int) -> Iterator[pa.RecordBatch]:
        for path, metadata in zip(self._paths, self._metadata, strict=True):
            first = 0  # row group to begin with
            while first < metadata.num_row_groups and start >= metadata.row_group(first).num_rows:
                start -= metadata.row_group(first).num_rows
                first += 1
            if first < metadata.num_row_groups:
                # Not pyarrow.dataset: for a row group of 300 MB it takes 1,100 to 1,450 MB, this way 70 MB.
                with pq.ParquetFile(path, pre_buffer=False, buffer_size=_READ_BUFFER) as file:
                    groups = range(first, metadata.num_row_groups)
                    yield from _rows_from(start, file.iter_batches(_READ_ROWS, row_groups=groups))
                start = 0


class IpcSource(TableSource):
    """Arrow IPC files of one schema, of the file or the stream format, read as if they were one.

    They are memory-mapped: a file may be one batch larger than the memory.

    Raises:
        ValueError: As :class:`TableSource`, or if a file is not a complete Arrow file or differs from the first.
    """

    def __init__(self, files: Files, column: str | None = None) -> None:
        self.files, self._paths = files, files.paths
        schemas, counts = [], []
        for path in files.paths:
            with _open_ipc(path) as reader:
                schemas.append(reader.schema)
                counts.append(reader.count_rows() if isinstance(reader, pa.RecordBatchFileReader) else None)
        known = [count for count in counts if count is not None]
        super().__init__(schemas[0], sum(known) if len(known) == len(counts) else None, column)
        _check_schemas(files.paths, schemas, self.column)

    @classmethod
    def accepts(cls, given: Any) -> bool:
        return isinstance(given, Files) and given.paths[0].suffix.lower() in (".arrow", ".feather")

    def record_batches(self, start: int) -> Iterator[pa.RecordBatch]:
        return _rows_from(start, self._all_batches())

    def _all_batches(self) -> Iterator[pa.RecordBatch]:
        for path in self._paths:
            with _open_ipc(path) as reader:
                if isinstance(reader, pa.RecordBatchFileReader):
                    yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
                else:
                    yield from reader


class MemorySource(TableSource):
    """An Arrow Table, RecordBatch or RecordBatchReader."""

    def __init__(self, table: pa.Table | pa.RecordBatch | pa.RecordBatchReader, column: str | None = None) -> None:
        super().__init__(table.schema, getattr(table, "num_rows", None), column)
        self._table = table

    @classmethod
    def accepts(cls, given: Any) -> bool:
        return isinstance(given, (pa.Table, pa.RecordBatch, pa.RecordBatchReader))

    def record_batches(self, start: int) -> Iterator[pa.RecordBatch]:
        if isinstance(self._table, pa.RecordBatch):
            return iter([self._table])
        return iter(self._table.to_batches() if isinstance(self._table, pa.Table) else self._table)


class DatasetSource(TableSource):
    """A ``datasets.Dataset``: one split of a dataset of Hugging Face."""

    def __init__(self, dataset: Any, column: str | None = None) -> None:
        self._dataset = dataset.with_format("arrow")
        super().__init__(self._dataset[:0].schema, len(dataset), column)

    @classmethod
    def accepts(cls, given: Any) -> bool:
        return library(given) == "datasets" and type(given).__name__ == "Dataset"

    def record_batches(self, start: int) -> Iterator[pa.RecordBatch]:
        for table in self._dataset.iter(_DATASET_ROWS):
            yield from table.to_batches()


TABLES = (ParquetSource, IpcSource, MemorySource, DatasetSource)


class IpcFile(CodesFile):
    """An Arrow IPC file."""

    suffix = ".arrow"
    tabular = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None

    def write(self, codes: pa.RecordBatch | pa.Table) -> None:
        self._writer = self._writer or self._open(codes.schema)
        self._writer.write(codes)

    def append(self, part: Path) -> None:
        with _open_ipc(part) as reader:
            self.write(reader.read_all().combine_chunks())

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _open(self, schema: pa.Schema) -> Any:
        return pa.ipc.new_file(str(self._path), schema)


class ParquetFile(IpcFile):
    """A Parquet file, with a row group for each write; joined of Arrow IPC files."""

    suffix = ".parquet"

    def _open(self, schema: pa.Schema) -> Any:
        return pq.ParquetWriter(
            self._path, schema, use_dictionary=[field.name for field in schema if not _is_codes(field)]
        )


def code_schema(schema: pa.Schema | None, column: str, precision: Precision, out_features: int) -> pa.Schema:
    """Return the schema of reduced vectors: that of the source (None: one column), with codes in the vectors' column.

    Dictionaries become what they encode, since those of two files may differ. The metadata of the schema as a whole is
    left out: other libraries describe the columns there, and one of these has changed.
    """
    kind = {Precision.FLOAT32: pa.float32(), Precision.INT8: pa.int8()}.get(precision)
    codes = pa.binary(precision.bytes_per_vector(out_features)) if kind is None else pa.list_(kind, out_features)
    metadata = {"st_dimreduce.precision": precision.value, "st_dimreduce.out_features": str(out_features)}
    fields = [pa.field(column, codes)] if schema is None else list(schema)
    return pa.schema(
        field.with_type(codes).with_metadata(metadata) if field.name == column else _decoded(field) for field in fields
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
    """Return the codes in a reduced column as :func:`st_dimreduce.quantize` gave them, shape (n, width)."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    if not pa.types.is_fixed_size_binary(column.type):
        return np.concatenate([chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in chunks])
    width = column.type.byte_width
    rows = [np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * width :] for chunk in chunks]
    return np.concatenate(
        [values[: len(chunk) * width].reshape(-1, width) for values, chunk in zip(rows, chunks, strict=True)]
    )


def _rows_from(start: int, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if start < batch.num_rows:
            yield batch[start:]
        start = max(start - batch.num_rows, 0)


def _vector_column(schema: pa.Schema, column: str | None) -> str:
    columns = _listed(schema) or "none"
    fitting = [field.name for field in schema if _is_vectors(field.type)]
    if column is None:
        if len(fitting) != 1:
            count = "several columns hold" if fitting else "no column holds"
            raise ValueError(f"{count} lists of floats: name the one to reduce; the columns are {columns}")
        column = fitting[0]
    if schema.names.count(column) != 1:
        raise ValueError(f"{schema.names.count(column)} columns are named {column!r}: name one of {columns}")
    if column not in fitting:
        raise ValueError(f"column {column!r} holds {schema.field(column).type}, expected lists of floats, of {columns}")
    return column


def _listed(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


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
    """Return a read-only view of a list column, shape (n, d), after checking that every row is complete."""
    if column.null_count:
        row = first_row + column.is_null().to_numpy(zero_copy_only=False).argmax()
        raise ValueError(f"row {row} holds null instead of a vector: drop or fill it")
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
    else:
        sizes = np.diff(column.offsets.to_numpy())
        width, ragged = int(sizes[0]), sizes != sizes[0]
        if ragged.any():
            row = int(ragged.argmax())
            raise ValueError(
                f"row {first_row + row} holds {sizes[row]} numbers, row {first_row} {width}: expected equally many"
            )
    values = column.flatten()
    if values.null_count:
        row = first_row + values.is_null().to_numpy(zero_copy_only=False).argmax() // width
        raise ValueError(f"the vector in row {row} holds null: drop or repair it")
    return values.to_numpy().reshape(len(column), width)


def _check_schemas(paths: Sequence[Path], schemas: Sequence[pa.Schema], column: str | None) -> None:
    first = schemas[0]
    for path, schema in zip(paths, schemas, strict=True):
        same = schema.names == first.names and all(
            field.type == other.type or (field.name == column and _is_vectors(field.type))
            for field, other in zip(schema, first, strict=True)
        )
        if not same:
            expected = f"expected those of {paths[0].name}, {_listed(first)}"
            raise ValueError(f"{path} has the columns {_listed(schema)}: {expected}")


def _parquet_metadata(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a complete Parquet file: {error}") from error


@contextmanager
def _open_ipc(path: Path) -> Iterator[Any]:
    """Open a reader of record batches; the batches remain valid when it is closed."""
    try:
        with pa.memory_map(str(path)) as file:
            magic = file.read(6)
            file.seek(0)
            yield pa.ipc.open_file(file) if magic == b"ARROW1" else pa.ipc.open_stream(file)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a complete Arrow IPC file: {error}") from error
