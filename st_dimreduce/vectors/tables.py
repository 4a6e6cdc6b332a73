"""Vectors and codes in Arrow tables and Parquet files: all that needs pyarrow.

A reduced column keeps its name and place; ``codes/tables.py`` says how codes are stored in it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from st_dimreduce.codes.origin import Origin
from st_dimreduce.codes.tables import code_array, code_field, is_codes
from st_dimreduce.errors import MissingExtraError, UserError
from st_dimreduce.untrusted import printable
from st_dimreduce.vectors.batches import EXPECTED, Files, Source, rows_per_read

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise MissingExtraError("Arrow and Parquet need pyarrow: pip install 'st_dimreduce[parquet]'") from error

_STREAMED = {"pre_buffer": False, "buffer_size": 1 << 20}  # else a whole column of a row group is in memory at once
_VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


def open_table(source: Any, column: str | None = None) -> TableSource:
    """Open :class:`Files`, an Arrow table, or one split of a dataset; raises as :class:`TableSource`."""
    if isinstance(source, Files):
        return FileSource(source, column)
    if isinstance(source, (pa.Table, pa.RecordBatch, pa.RecordBatchReader)) or type(source).__name__ == "Dataset":
        return MemorySource(source, column)
    raise UserError(f"{type(source).__name__} holds no vectors: {EXPECTED}")


class TableSource(Source):
    """Record batches of one schema, one column of which holds the vectors.

    Args:
        schema: The schema.
        rows: Number of rows; None if it is not known.
        column: The column of vectors; None for the only one.

    Raises:
        UserError: If the column does not exist or holds no lists of floats, or if None could be several.
    """

    def __init__(self, schema: pa.Schema, rows: int | None, column: str | None) -> None:
        self.schema, self.rows, self.column = schema, rows, vector_column(schema, column)
        self._others = [field.name for field in schema if field.name != self.column]
        if len(set(self._others)) < len(self._others):
            raise UserError(f"several columns have one name: rename all but one of {_listed(schema)}")

    def leave_out_others(self) -> None:
        self._others = []

    @abstractmethod
    def record_batches(self, start: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows from ``start`` on, after :func:`_valid`."""

    def read(self, start: int) -> Iterator[tuple[np.ndarray, pa.Table | None]]:
        for batch in self.record_batches(start):
            if batch.num_rows:
                # A new table of the arrays: the metadata of two files' fields may differ.
                others = pa.table([batch.column(name) for name in self._others], self._others) if self._others else None
                yield _vectors_of(batch.column(self.column), start), others
            start += batch.num_rows


class FileSource(TableSource):
    """Parquet files, or Arrow IPC files of the file or the stream format, of one schema, read as if they were one.

    Raises:
        UserError: As :class:`TableSource`, or if a file is damaged or its columns differ from those of the first.
    """

    def __init__(self, files: Files, column: str | None = None) -> None:
        self._table_files = self.files = files
        self._columns: list[str] | None = None  # all
        schemas, self._counts = zip(*map(schema_and_rows, files.paths), strict=True)
        super().__init__(schemas[0], sum(self._counts), column)
        for path, schema in zip(files.paths, schemas, strict=True):
            if not _same_columns(schema, schemas[0], str(self.column)):
                expected = f"expected those of {files.paths[0].name}, {_listed(schemas[0])}"
                raise UserError(f"{path} has the columns {_listed(schema)}: {expected}")

    def leave_out_others(self) -> None:
        super().leave_out_others()
        self._columns = [str(self.column)]

    def record_batches(self, start: int) -> Iterator[pa.RecordBatch]:
        for path, rows in zip(self._table_files.paths, self._counts, strict=True):
            if start < rows:
                yield from (_parquet_batches if _is_parquet(path) else _ipc_batches)(path, start, self._columns)
            start = max(start - rows, 0)


class MemorySource(TableSource):
    """An Arrow Table, RecordBatch or RecordBatchReader, or a ``datasets.Dataset``, one split of a dataset."""

    def __init__(self, table: Any, column: str | None = None) -> None:
        self._table = table
        if not hasattr(table, "schema"):
            self._table = table.with_format("arrow")
        schema = self._table[:0].schema if not hasattr(table, "schema") else table.schema
        super().__init__(schema, getattr(table, "num_rows", None), column)

    def record_batches(self, start: int) -> Iterator[pa.RecordBatch]:
        name = type(self._table).__name__
        with _one_line(f"the {name}", name):
            for batch in _valid(self._unchecked()):
                yield from _slices_of(batch)

    def _unchecked(self) -> Iterable[pa.RecordBatch]:
        table = self._table
        if isinstance(table, pa.RecordBatch):
            return [table]
        if isinstance(table, pa.RecordBatchReader):
            return table
        if isinstance(table, pa.Table):
            table.validate()  # or the next line may end the process
            return table.to_batches()
        rows = rows_per_read(table.data.nbytes, table.data.num_rows)
        return (batch for some in table.iter(rows) for batch in some.to_batches())


class TableWriter:
    """Writes codes, and the other columns of a source, to a ``.parquet`` or an ``.arrow`` file.

    Args:
        path: The file to write.
        suffix: ``".parquet"`` or ``".arrow"``.
        schema: Schema of the source; None if it is not a table.
        column: The column of codes.
        origin: What makes them.

    Raises:
        UserError: If Parquet has no type for one of the columns.
    """

    def __init__(self, path: Path, suffix: str, schema: pa.Schema | None, column: str, origin: Origin) -> None:
        self._schema, self._column = code_schema(schema, column, origin), column
        plain = [field.name for field in self._schema if not is_codes(field)]
        try:
            if suffix == ".parquet":
                self._writer = pq.ParquetWriter(path, self._schema, use_dictionary=plain)
            else:
                self._writer = pa.ipc.new_file(str(path), self._schema)
        except pa.ArrowException as error:
            reason = _in_one_line(error)
            raise UserError(f"a {suffix} file cannot hold the columns {_listed(self._schema)}: {reason}") from error

    def write(self, codes: np.ndarray, others: pa.Table | None) -> None:
        """Add codes, shape (n, width), and the same rows of the other columns."""
        self.write_table(code_table(self._schema, self._column, codes, others))

    def write_table(self, table: pa.Table) -> None:
        """Add rows that have all columns.

        Raises:
            UserError: If their columns are others.
        """
        if not table.schema.equals(self._schema):
            raise UserError(f"the columns are {_listed(table.schema)}: expected {_listed(self._schema)}")
        self._writer.write_table(table)

    def close(self) -> None:
        """Complete the file."""
        self._writer.close()


def stored_tables(path: Path) -> Iterator[pa.Table]:
    """Yield a ``.parquet`` file by row groups, or an ``.arrow`` file by record batches."""
    if _is_parquet(path):
        with _one_line(path, "Parquet"), pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)
        return
    with _open_ipc(path) as reader:
        for batch in _batches_of(reader):
            yield pa.Table.from_batches([batch])


def code_schema(schema: pa.Schema | None, column: str, origin: Origin) -> pa.Schema:
    """Return the schema of reduced vectors: that of the source (None: one column), with codes in the vectors' column.

    Dictionaries become what they encode, since those of two files may differ; so do views, since a batch of them is
    written with all the text that they are views of. The metadata of the schema as a whole is left out: other
    libraries describe the columns there, and one of these has changed.
    """
    codes = code_field(column, origin)
    fields = [codes] if schema is None else list(schema)
    return pa.schema(codes if field.name == column else _decoded(field) for field in fields)


def code_table(schema: pa.Schema, column: str, codes: np.ndarray, others: Any = None) -> pa.Table:
    """Return codes, shape (n, width), and the same rows of the other columns as a table of the schema.

    Raises:
        UserError: If a column cannot be copied.
    """
    array = code_array(codes, schema.field(column).type)
    columns = [array if field.name == column else _cast(others[field.name], field) for field in schema]
    return pa.table(columns, schema=schema)


def vector_column(schema: pa.Schema, column: str | None) -> str:
    """Return the name of the column of vectors: the one named, or the only one.

    Raises:
        UserError: As :class:`TableSource`.
    """
    columns, expected = _listed(schema) or "none", "lists of floats"
    fitting = [field.name for field in schema if _is_vectors(field.type)]
    if column is None:
        if not fitting:
            raise UserError(f"no column holds {expected}: the columns are {columns}")
        if len(fitting) > 1:
            named = ", ".join(map(repr, fitting))
            raise UserError(f"several columns hold {expected}: name one with column= (--column) of {printable(named)}")
        column = fitting[0]
    if column not in schema.names:
        raise UserError(f"there is no column {column!r}: name one of {columns}")
    if schema.names.count(column) != 1:
        raise UserError(f"{schema.names.count(column)} columns are named {column!r}: rename all but one")
    if column not in fitting:
        kind = printable(str(schema.field(column).type))
        raise UserError(f"column {column!r} holds {kind}, expected {expected}, of {columns}")
    return column


def schema_and_rows(path: Path) -> tuple[pa.Schema, int]:
    """Return the schema of a Parquet or Arrow IPC file, and its number of rows.

    Raises:
        UserError: If it is not a complete file of its kind.
    """
    if _is_parquet(path):
        with _one_line(path, "Parquet"):
            metadata = pq.read_metadata(path)
            schema, rows = metadata.schema.to_arrow_schema(), metadata.num_rows
            _listed(schema)  # names need not be UTF-8
            return schema, rows
    with _open_ipc(path) as reader:
        _listed(reader.schema)
        return reader.schema, sum(batch.num_rows for batch in _batches_of(reader))


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _parquet_batches(path: Path, start: int, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    # Not pyarrow.dataset: for a row group of 300 MB it takes 1,100 to 1,450 MB, this way 70 MB.
    with _one_line(path, "Parquet"), pq.ParquetFile(path, **_STREAMED) as file:
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            if start < group.num_rows:
                rows = rows_per_read(group.total_byte_size, group.num_rows)
                yield from _rows_from(start, _valid(file.iter_batches(rows, [number], columns)))
            start = max(start - group.num_rows, 0)


def _ipc_batches(path: Path, start: int, _: list[str] | None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file, which is memory-mapped: it may be one record batch larger than the memory."""
    with _open_ipc(path) as reader:
        yield from _rows_from(start, (some for batch in _valid(_batches_of(reader)) for some in _slices_of(batch)))


def _slices_of(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    rows = rows_per_read(batch.nbytes, batch.num_rows)
    return (batch.slice(first, rows) for first in range(0, batch.num_rows, rows))


def _rows_from(start: int, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if start < batch.num_rows:
            yield batch[start:]
        start = max(start - batch.num_rows, 0)


def _valid(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Check each batch before anything reads it: in a damaged one, an offset may lead out of its buffer.

    Raises:
        pyarrow.ArrowInvalid: If one is damaged; :func:`_one_line` reports it.
    """
    for batch in batches:
        batch.validate(full=True)
        yield batch


def _batches_of(reader: pa.RecordBatchFileReader | pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.RecordBatchFileReader):
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return iter(reader)


def _listed(schema: Iterable[pa.Field]) -> str:
    return printable(", ".join(f"{field.name} ({field.type})" for field in schema))


def _is_vectors(kind: pa.DataType) -> bool:
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return lists and pa.types.is_floating(kind.value_type)


def _decoded(field: pa.Field) -> pa.Field:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    return field.with_type(_VIEWS.get(kind, kind))


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    if column.type in _VIEWS and column.null_count:
        # Arrow checks no view of a null, and its cast follows them all: in a damaged file it ends the process.
        return pa.chunked_array([pa.array(column.to_pylist(), field.type)])
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise UserError(f"{_listed([field])} cannot be copied: {_in_one_line(error)}") from error


def _vectors_of(column: pa.Array, first_row: int) -> np.ndarray:
    """Return a read-only view of a list column, shape (n, d), after checking that every row is complete."""
    if column.null_count:
        row = first_row + column.is_null().to_numpy(zero_copy_only=False).argmax()
        raise UserError(f"row {row} holds null instead of a vector: drop or fill it")
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
    else:
        sizes = np.diff(column.offsets.to_numpy())
        width, ragged = int(sizes[0]), sizes != sizes[0]
        if ragged.any():
            row = int(ragged.argmax())
            raise UserError(
                f"row {first_row + row} holds {sizes[row]} numbers, row {first_row} {width}: expected equally many"
            )
    values = column.flatten()
    if values.null_count:
        row = first_row + values.is_null().to_numpy(zero_copy_only=False).argmax() // width
        raise UserError(f"the vector in row {row} holds null: drop or repair it")
    return values.to_numpy().reshape(len(column), width)


def _same_columns(schema: pa.Schema, first: pa.Schema, column: str) -> bool:
    """Whether two files have the same columns; the float type of the vectors may differ."""
    return schema.names == first.names and all(
        field.type == other.type or (field.name == column and _is_vectors(field.type))
        for field, other in zip(schema, first, strict=True)
    )


@contextmanager
def _open_ipc(path: Path) -> Iterator[Any]:
    """Open a reader of record batches; the batches remain valid when it is closed."""
    with _one_line(path, "Arrow IPC"), pa.memory_map(str(path)) as file:
        magic = file.read(6)
        file.seek(0)
        yield pa.ipc.open_file(file) if magic == b"ARROW1" else pa.ipc.open_stream(file)


@contextmanager
def _one_line(source: Path | str, kind: str) -> Iterator[None]:
    """Turn the errors that pyarrow raises for a damaged source, of several types, into a ``UserError`` of one line."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if getattr(error, "errno", None) is not None:  # the system's, not pyarrow's
            raise
        what = f"{kind} file" if isinstance(source, Path) else kind
        raise UserError(f"{source} is not a complete {what}: {_in_one_line(error)}") from error


def _in_one_line(error: BaseException) -> str:
    return printable(" ".join(str(error).split()))
