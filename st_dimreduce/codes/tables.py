"""Codes as a column of an Arrow table, whose metadata names the head that made them.

``float32`` and ``int8`` codes are a column of fixed-size lists of k numbers, packed codes one of fixed-size binary. The
field's metadata says ``st_dimreduce.precision``, ``st_dimreduce.out_features`` and ``st_dimreduce.head``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from st_dimreduce.codes.origin import PREFIX, Origin
from st_dimreduce.enums import Precision
from st_dimreduce.errors import MissingExtraError, UserError
from st_dimreduce.untrusted import printable

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise MissingExtraError("Arrow and Parquet need pyarrow: pip install 'st_dimreduce[parquet]'") from error


def code_field(column: str, origin: Origin) -> pa.Field:
    """Return the field of a column of codes, with their origin in its metadata."""
    precision, size = origin.precision, origin.out_features
    kind = {Precision.FLOAT32: pa.float32(), Precision.INT8: pa.int8()}.get(precision)
    codes = pa.binary(precision.bytes_per_vector(size)) if kind is None else pa.list_(kind, size)
    return pa.field(column, codes, metadata={PREFIX + name: value for name, value in origin.to_dict().items()})


def code_array(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Return codes, an array of shape (n, width), as an Arrow array of their field's type."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if pa.types.is_fixed_size_binary(kind):
        return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(flat)])
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), kind.list_size)


def codes_of(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return the codes in a column, an array of shape (n, width)."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    if not pa.types.is_fixed_size_binary(column.type):
        return np.concatenate([chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in chunks])
    width = column.type.byte_width
    rows = [np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * width :] for chunk in chunks]
    return np.concatenate(
        [values[: len(chunk) * width].reshape(-1, width) for values, chunk in zip(rows, chunks, strict=True)]
    )


def is_codes(field: pa.Field) -> bool:
    """Whether a column holds codes that this package wrote."""
    return f"{PREFIX}precision".encode() in (field.metadata or {})


def field_origin(field: pa.Field) -> Origin | None:
    """Return the origin of the codes in a column; None if it was not written."""
    known = {
        key.decode(errors="replace").removeprefix(PREFIX): value.decode(errors="replace")
        for key, value in (field.metadata or {}).items()
        if key.startswith(PREFIX.encode())
    }
    return Origin.read(known, f"column {printable(repr(field.name))}")


def write_codes(values: np.ndarray, origin: Origin, column: str, path: Path) -> None:
    """Write codes as the only column of a ``.parquet`` or ``.arrow`` file."""
    field = code_field(column, origin)
    table = pa.table([code_array(values, field.type)], schema=pa.schema([field]))
    if path.suffix == ".parquet":
        pq.write_table(table, path, use_dictionary=False)
        return
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table)


def read_codes(path: Path, column: str | None) -> tuple[np.ndarray, Origin]:
    """Read a column of codes from a ``.parquet`` or ``.arrow`` file, or a folder of ``.parquet`` files.

    Raises:
        UserError: If the file is damaged, or does not hold exactly one column of codes where none is named.
    """
    try:
        if path.suffix in (".arrow", ".feather"):
            with pa.memory_map(str(path)) as file:
                table = pa.ipc.open_file(file).read_all()
        else:
            schemas = [pq.read_schema(file) for file in _files(path)]
            name = _column(schemas[0], column, path)
            if len({field_origin(schema.field(name)) for schema in schemas if name in schema.names}) > 1:
                raise UserError(f"{path} holds codes of several heads or precisions: keep them apart")
            table = pq.read_table(path, columns=[name])
    except pa.ArrowException as error:
        reason = printable(" ".join(str(error).split()))
        raise UserError(f"{path} cannot be read: expected a complete Parquet or Arrow file ({reason})") from error
    field = table.schema.field(_column(table.schema, column, path))
    origin = field_origin(field)
    if origin is None or table[field.name].null_count:
        raise UserError(f"{path} holds damaged codes in column {field.name!r}: write them again")
    return codes_of(table[field.name]), origin


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path} holds no .parquet or .npy file: give the file or folder that codes were written to")
    return files


def _column(schema: pa.Schema, column: str | None, path: Path) -> str:
    found = [field.name for field in schema if is_codes(field)]
    if column is None and len(found) == 1:
        return found[0]
    if column is not None and column in found:
        return column
    held = f"codes are in {printable(', '.join(found))}: name one of these" if found else "it holds none"
    raise UserError(f"{path}: expected one column of codes{f', {column!r}' if column else ''}; {held}")
