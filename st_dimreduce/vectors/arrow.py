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

from st_dimreduce.codes.origin import Origin
from st_dimreduce.codes.tables import code_array, code_field, codes_of, field_origin, is_codes
from st_dimreduce.errors import MissingExtraError, UserError
from st_dimreduce.untrusted import printable
from st_dimreduce.vectors.sinks import CodesFile
from st_dimreduce.vectors.sources import Files, Source, library

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise MissingExtraError("Arrow and Parquet need pyarrow: pip install 'st_dimreduce[parquet]'") from error

_READ_ROWS = 2048  # of a Parquet file at a time: what is decoded beside the vectors stays small
_READ_BYTES = 1 << 25  # likewise; about as many as the rows hold on average
_PROBED_ROWS = 8
_READING = {"pre_buffer": False, "buffer_size": 1 << 20}  # without it a whole column of a row group is held at once
_DATASET_ROWS = 8192


class TableSource(Source):
    """Record batches of one schema, one column of which holds the vectors.

    Args:
        schema: The schema.
        rows: Number of rows; None if it is not known.
        column: The column of vectors; None for the only one.
        codes: Whether it holds codes.

    Raises:
        ValueError: If the column does not exist or holds no lists of floats (codes), or if None could be several.
    """

    def __init__(self, schema: pa.Schema, rows: int | None, column: str | None, codes: bool) -> None:
        self.schema, self.rows, self._codes = schema, rows, codes
        self.column = vector_column(schema, column, codes)
        self._others = [field.name for field in schema if field.name != self.column]
        if len(set(self._others)) < len(self._others):
            raise UserError(f"several columns have one name: rename all but one of {_listed(schema)}")
        for field in schema:
            if field.type not in _VIEWS and _holds_views(field.type):
                raise UserError(f"{_listed([field])} holds views: cast the column to plain strings or lists")

    def leave_out_others(self) -> None:
        self._others = []

    @property
    def origin(self) -> Origin | None:
        """What the codes were made by; None if it was not written."""
        return field_origin(self.schema.field(self.column))

    @abstractmethod
    def record_batches(self, start: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows from ``start`` on, after :func:`_valid`."""

    def chunks(self, start: int, batch_bytes: int) -> Iterator[tuple[np.ndarray, pa.Table | None]]:
        for batch in self.record_batches(start):
            if batch.num_rows:
                # A new table of the arrays: the metadata of two files' fields may differ.
                arrays = [batch.column(name) for name in self._others]
                others = pa.table(arrays, self._others) if arrays else None
                column = batch.column(self.column)
                yield codes_of(column) if self._codes else _vectors_of(column, start), others
            start += batch.num_rows

    def column_batches(self, name: str) -> Iterator[pa.Array]:
        """Yield the values of another column, in order."""
        for batch in self.record_batches(0):
            yield batch.column(name)

    def row_bytes(self, others: pa.Table) -> np.ndarray:
        return np.sum([_row_bytes(column.chunk(0)) for column in others.columns], axis=0)

    def join_others(self, tables: Sequence[pa.Table]) -> pa.Table | None:
        return pa.concat_tables(tables) if tables else None


class ParquetSource(TableSource):
    """Parquet files of one schema, read as if they were one.

    Raises:
        ValueError: As :class:`TableSource`, or if a file is not a complete Parquet file or differs from the first.
    """

    def __init__(self, files: Files, column: str | None = None, codes: bool = False) -> None:
        self.files, self._paths = files, files.paths
        self._metadata, schemas = [], []
        for path in files.paths:
            with _refusing(path, "Parquet"):
                self._metadata.append(pq.read_metadata(path))
                schemas.append(_readable(self._metadata[-1].schema.to_arrow_schema()))
        super().__init__(schemas[0], sum(metadata.num_rows for metadata in self._metadata), column, codes)
        self._columns: list[str] | None = None  # all
        _check_schemas(files.paths, schemas, self.column)

    @classmethod
    def accepts(cls, given: Any) -> bool:
        return isinstance(given, Files) and given.paths[0].suffix.lower() == ".parquet"

    def leave_out_others(self) -> None:
        super().leave_out_others()
        self._columns = [str(self.column)]

    def record_batches(self, start: int) -> Iterator[pa.RecordBatch]:
        for path, metadata in zip(self._paths, self._metadata, strict=True):
            with _refusing(path, "Parquet"):
                for number in range(metadata.num_row_groups):
                    group = metadata.row_group(number)
                    if start < group.num_rows:
                        # Not pyarrow.dataset: for a row group of 300 MB it takes 1,100 to 1,450 MB, this way 70 MB.
                        with pq.ParquetFile(path, metadata=metadata, **_READING) as file:
                            rows = _rows_at_a_time(file, group, number, self._columns)
                            batches = file.iter_batches(rows, [number], self._columns)
                            yield from _rows_from(start, _valid(batches))
                    start = max(start - group.num_rows, 0)

    def column_batches(self, name: str) -> Iterator[pa.Array]:
        for path, metadata in zip(self._paths, self._metadata, strict=True):
            with _refusing(path, "Parquet"), pq.ParquetFile(path, metadata=metadata, **_READING) as file:
                # "a.b" brings the column "a" as well, where that has a field "b".
                for batch in _valid(file.iter_batches(_READ_ROWS, columns=[name])):
                    yield batch.column(name)


class IpcSource(TableSource):
    """Arrow IPC files of one schema, of the file or the stream format, read as if they were one.

    They are memory-mapped: a file may be one batch larger than the memory.

    Raises:
        ValueError: As :class:`TableSource`, or if a file is not a complete Arrow file or differs from the first.
    """

    def __init__(self, files: Files, column: str | None = None, codes: bool = False) -> None:
        self.files, self._paths = files, files.paths
        schemas, counts = [], []
        for path in files.paths:
            with _open_ipc(path) as reader:
                schemas.append(_readable(reader.schema))
                counts.append(reader.count_rows() if isinstance(reader, pa.RecordBatchFileReader) else None)
        known = [count for count in counts if count is not None]
        super().__init__(schemas[0], sum(known) if len(known) == len(counts) else None, column, codes)
        _check_schemas(files.paths, schemas, self.column)

    @classmethod
    def accepts(cls, given: Any) -> bool:
        return isinstance(given, Files) and given.paths[0].suffix.lower() in (".arrow", ".feather")

    def record_batches(self, start: int) -> Iterator[pa.RecordBatch]:
        return _rows_from(start, self._all_batches())

    def _all_batches(self) -> Iterator[pa.RecordBatch]:
        for path in self._paths:
            with _open_ipc(path) as reader:
                yield from _valid(_batches_of(reader))


class MemorySource(TableSource):
    """An Arrow Table, RecordBatch or RecordBatchReader."""

    def __init__(
        self, table: pa.Table | pa.RecordBatch | pa.RecordBatchReader, column: str | None = None, codes: bool = False
    ) -> None:
        super().__init__(table.schema, getattr(table, "num_rows", None), column, codes)
        self._table = table

    @classmethod
    def accepts(cls, given: Any) -> bool:
        return isinstance(given, (pa.Table, pa.RecordBatch, pa.RecordBatchReader))

    def record_batches(self, start: int) -> Iterator[pa.RecordBatch]:
        table, name = self._table, type(self._table).__name__
        with _refusing(f"the {name}", name):
            if isinstance(table, pa.Table):
                table.validate()  # or the next line may end the process
                table = table.to_batches()
            yield from _valid([table] if isinstance(table, pa.RecordBatch) else table)


class DatasetSource(TableSource):
    """A ``datasets.Dataset``: one split of a dataset of Hugging Face."""

    def __init__(self, dataset: Any, column: str | None = None, codes: bool = False) -> None:
        self._dataset = dataset.with_format("arrow")
        super().__init__(self._dataset[:0].schema, len(dataset), column, codes)

    @classmethod
    def accepts(cls, given: Any) -> bool:
        return library(given) == "datasets" and type(given).__name__ == "Dataset"

    def record_batches(self, start: int) -> Iterator[pa.RecordBatch]:
        average = max(self._dataset.data.nbytes // max(self._dataset.data.num_rows, 1), 1)
        rows = min(max(_READ_BYTES // average, 1), _DATASET_ROWS)
        with _refusing("the Dataset", "Dataset"):
            for table in self._dataset.iter(rows):
                yield from _valid(table.to_batches())


_OFFSET = 4  # bytes
_VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}

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
            for batch in _batches_of(reader):
                self.write(batch)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _open(self, schema: pa.Schema) -> Any:
        return pa.ipc.new_file(str(self._path), schema)


class ParquetFile(IpcFile):
    """A Parquet file, with a row group for each write; joined of Arrow IPC files, each of which becomes one.

    One that grows is joined of what it was and of them.
    """

    suffix = ".parquet"

    def append(self, part: Path) -> None:
        if part.suffix == self.suffix:
            with _refusing(part, "Parquet"), pq.ParquetFile(part) as file:
                for group in range(file.num_row_groups):
                    self.write(file.read_row_group(group))
            return
        with _open_ipc(part) as reader:
            self.write(reader.read_all())  # mapped, not read; its batches stay apart: one array could not hold them

    def _open(self, schema: pa.Schema) -> Any:
        return pq.ParquetWriter(
            self._path, schema, use_dictionary=[field.name for field in schema if not is_codes(field)]
        )


def code_schema(schema: pa.Schema | None, column: str, origin: Origin) -> pa.Schema:
    """Return the schema of reduced vectors: that of the source (None: one column), with codes in the vectors' column.

    Dictionaries become what they encode, since those of two files may differ; so do views, since a batch of them is
    written with all the text that they are views of. The metadata of the schema as a whole is left out: other
    libraries describe the columns there, and one of these has changed.
    """
    codes = code_field(column, origin)
    fields = [codes] if schema is None else list(schema)
    return pa.schema(codes if field.name == column else _decoded(field) for field in fields)


def code_batch(schema: pa.Schema, column: str, codes: np.ndarray, others: pa.Table | None) -> pa.RecordBatch:
    """Return codes, shape (n, width), and the rows of the other columns as one record batch of the schema."""
    array = code_array(codes, schema.field(column).type)
    arrays = [array if name == column else _column(others, schema.field(name)) for name in schema.names]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _rows_from(start: int, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if start < batch.num_rows:
            yield batch[start:]
        start = max(start - batch.num_rows, 0)


class NoSuchColumnError(UserError):
    """A table has no column of vectors, or of codes, where one was looked for."""


def vector_column(schema: pa.Schema, column: str | None, codes: bool = False) -> str:
    """Return the name of the column of vectors, or of codes: the one named, or the only one.

    Raises:
        ValueError: As :class:`TableSource`.
    """
    columns = _listed(schema) or "none"
    fitting = [field.name for field in schema if (is_codes(field) if codes else _is_vectors(field.type))]
    held = "codes that reduce_vectors wrote" if codes else "lists of floats"
    if column is None:
        if not fitting:
            raise NoSuchColumnError(f"no column holds {held}: the columns are {columns}")
        if len(fitting) > 1:
            named = ", ".join(map(repr, fitting))
            raise UserError(f"several columns hold {held}: name one with column= (--column) of {printable(named)}")
        column = fitting[0]
    if column not in schema.names:
        raise UserError(f"there is no column {column!r}: name one of {columns}")
    if schema.names.count(column) != 1:
        raise UserError(f"{schema.names.count(column)} columns are named {column!r}: rename all but one")
    if column not in fitting:
        kind = printable(str(schema.field(column).type))
        raise NoSuchColumnError(f"column {column!r} holds {kind}, expected {held}, of {columns}")
    return column


def _listed(schema: Iterable[pa.Field]) -> str:
    return printable(", ".join(f"{field.name} ({field.type})" for field in schema))


def _is_vectors(kind: pa.DataType) -> bool:
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return lists and pa.types.is_floating(kind.value_type)


def _decoded(field: pa.Field) -> pa.Field:
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    return field.with_type(_VIEWS.get(kind, kind))


def _column(others: pa.Table, field: pa.Field) -> pa.Array:
    column = others[field.name]
    if column.type in _VIEWS:
        column = pa.chunked_array([_without_null_views(chunk) for chunk in column.chunks], column.type)
    try:
        if column.type != field.type:
            column = column.cast(field.type)
        # A copy even of one array: how much of the buffers of a slice is written depends on what lies beside it.
        return pa.concat_arrays([*column.chunks, pa.nulls(0, field.type)])
    except pa.ArrowException as error:
        said = printable(" ".join(str(error).split()))
        raise UserError(f"{_listed([field])} cannot be copied: {said}") from error


def _row_bytes(array: pa.Array) -> np.ndarray:
    """Return the bytes of each value, shape (n,), int64: by what it holds, wherever in which buffers that is."""
    kind, types = array.type, pa.types
    if (fixed := _fixed_bytes(kind)) is not None:
        sizes = np.full(len(array), fixed)
    elif isinstance(kind, pa.BaseExtensionType):
        sizes = _row_bytes(array.storage)
    elif types.is_dictionary(kind):
        places = array.indices.cast(pa.int64()).fill_null(-1).to_numpy()
        sizes = np.append(_row_bytes(array.dictionary), 0)[places]
    elif types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind):
        offsets, fixed = array.offsets.to_numpy().astype(np.int64), _fixed_bytes(array.values.type)
        up_to = None if fixed is not None else np.append(0, np.cumsum(_row_bytes(array.values)))
        sizes = _OFFSET + (np.diff(offsets) * fixed if up_to is None else np.diff(up_to[offsets]))
    elif types.is_fixed_size_list(kind):
        values = array.values.slice(array.offset * kind.list_size, len(array) * kind.list_size)
        sizes = _row_bytes(values).reshape(len(array), kind.list_size).sum(axis=1)
    elif types.is_struct(kind):
        fields = (_row_bytes(array.field(place)) for place in range(kind.num_fields))
        sizes = sum(fields, start=np.zeros(len(array), np.int64))
    elif kind in _VIEWS:
        sizes = _OFFSET + _views(_without_null_views(array))[:, 0]
    elif types.is_binary(kind) or types.is_string(kind) or types.is_large_binary(kind) or types.is_large_string(kind):
        sizes = _OFFSET + pc.binary_length(array).fill_null(0).to_numpy()
    else:  # unions, runs
        sizes = np.array([len(repr(value)) for value in array.to_pylist()])
    return sizes.astype(np.int64, copy=False)


def _holds_views(kind: pa.DataType) -> bool:
    """Whether a type holds views at any depth; written to a file, a few of them bring all that they are views of."""
    if pa.types.is_dictionary(kind):
        return _holds_views(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_views(kind.storage_type)
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind) or kind in _VIEWS:
        return True
    return any(_holds_views(kind.field(place).type) for place in range(kind.num_fields))


def _views(array: pa.Array) -> np.ndarray:
    """Return the views of an array, shape (n, 4), int32; the first number of each is the length of its text."""
    views = np.frombuffer(array.buffers()[1], np.int32).reshape(-1, 4)
    return views[array.offset : array.offset + len(array)]


def _without_null_views(array: pa.Array) -> pa.Array:
    """Return an array of views with empty ones for null: pyarrow checks none of these, and some functions follow them.

    They do in pyarrow 26.
    """
    if not array.null_count:
        return array
    views = _views(array).copy()
    views[array.is_null().to_numpy(zero_copy_only=False)] = 0
    data = [pc.is_valid(array).buffers()[1], pa.py_buffer(views), *array.buffers()[2:]]
    return pa.Array.from_buffers(array.type, len(array), data)


def _fixed_bytes(kind: pa.DataType) -> int | None:
    """Return the bytes of every value of a type; None if they differ."""
    if pa.types.is_null(kind):
        return 0
    if pa.types.is_fixed_size_list(kind):
        inner = _fixed_bytes(kind.value_type)
        return None if inner is None else inner * kind.list_size
    if pa.types.is_dictionary(kind) or pa.types.is_nested(kind):
        return None
    try:
        return -(-kind.bit_width // 8)
    except ValueError:
        return None


def _rows_at_a_time(file: pq.ParquetFile, group: pq.RowGroupMetaData, number: int, columns: list[str] | None) -> int:
    """Return how many rows of some columns of a row group to read at a time.

    What the file says of its size is that of the encoded values, of which one may stand for many rows: so the first
    rows are read.
    """
    first = next(_valid(file.iter_batches(_PROBED_ROWS, [number], columns)), None)
    probed = 0 if first is None else first.nbytes // max(first.num_rows, 1)
    average = max(probed, group.total_byte_size // max(group.num_rows, 1), 1)
    return min(max(_READ_BYTES // average, 1), _READ_ROWS)


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


def _check_schemas(paths: Sequence[Path], schemas: Sequence[pa.Schema], column: str | None) -> None:
    first = schemas[0]
    for path, schema in zip(paths, schemas, strict=True):
        same = schema.names == first.names and all(
            field.type == other.type or (field.name == column and _is_vectors(field.type))
            for field, other in zip(schema, first, strict=True)
        )
        if not same:
            expected = f"expected those of {paths[0].name}, {_listed(first)}"
            raise UserError(f"{path} has the columns {_listed(schema)}: {expected}")
        if column is not None and field_origin(schema.field(column)) != field_origin(first.field(column)):
            raise UserError(f"{path} holds codes of another head or precision than {paths[0].name}: keep them apart")


def _valid(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Check each batch before anything reads it: in what is damaged, an offset may lead out of its buffer.

    Raises:
        pyarrow.ArrowInvalid: If one is damaged; :func:`_refusing` says so in a line.
    """
    for batch in batches:
        batch.validate(full=True)
        yield batch


def _batches_of(reader: pa.RecordBatchFileReader | pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.RecordBatchFileReader):
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return iter(reader)


def _readable(schema: pa.Schema) -> pa.Schema:
    """Return a schema after reading the names in it, which need not be UTF-8."""
    _listed(schema)
    return schema


@contextmanager
def _open_ipc(path: Path) -> Iterator[Any]:
    """Open a reader of record batches; the batches remain valid when it is closed."""
    with _refusing(path, "Arrow IPC"), pa.memory_map(str(path)) as file:
        magic = file.read(6)
        file.seek(0)
        yield pa.ipc.open_file(file) if magic == b"ARROW1" else pa.ipc.open_stream(file)


@contextmanager
def _refusing(source: Path | str, kind: str) -> Iterator[None]:
    """Turn what pyarrow raises where a source is damaged, of whatever type, into one ``ValueError`` of one line."""
    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        if getattr(error, "errno", None) is not None:  # the system's, not pyarrow's
            raise
        what = f"{kind} file" if isinstance(source, Path) else kind
        raise UserError(f"{source} is not a complete {what}: {printable(' '.join(str(error).split()))}") from error


def columns_about(path: Path) -> tuple[int | None, list[dict[str, str]]]:
    """Return the number of rows of a file, where it says so, and of each column its name, its type and what it says.

    Raises:
        ValueError: If it is no complete Parquet or Arrow file.
    """
    if path.suffix.lower() == ".parquet":
        with _refusing(path, "Parquet"):
            metadata = pq.read_metadata(path)
            rows, schema = metadata.num_rows, metadata.schema.to_arrow_schema()
    else:
        with _open_ipc(path) as reader:
            rows = reader.count_rows() if isinstance(reader, pa.RecordBatchFileReader) else None
            schema = reader.schema
    origins = [(field, field_origin(field)) for field in schema]
    return rows, [
        {"name": field.name, "type": str(field.type), **(origin.said if origin else {})} for field, origin in origins
    ]
