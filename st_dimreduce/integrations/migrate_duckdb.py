"""DuckDB: codes in a new table with the same ids."""

# ruff: noqa: S608, names are quoted by _quoted
from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from st_dimreduce.codes.stores import Column
from st_dimreduce.enums import Precision, Store
from st_dimreduce.errors import MissingExtraError, UserError
from st_dimreduce.integrations.migrate import Database, Encode, Names, packed

try:
    import duckdb
    import pyarrow as pa
except ModuleNotFoundError as error:
    raise MissingExtraError("DuckDB needs duckdb and pyarrow: pip install 'st_dimreduce[databases]'") from error

_FULL = re.compile(r"(?:FLOAT|DOUBLE)\[(\d*)\]")
_SEARCHED = "search of st_dimreduce"
_COLUMNS = """
    SELECT column_name, data_type FROM duckdb_columns()
    WHERE table_oid = (SELECT table_oid FROM duckdb_tables() WHERE database_name = current_database()
    AND table_name = $1 AND schema_name = coalesce($2, current_schema())) AND database_name = current_database()"""
_KEYS = """
    SELECT constraint_column_names FROM duckdb_constraints() WHERE database_name = current_database()
    AND table_name = $1 AND schema_name = coalesce($2, current_schema()) AND constraint_type = 'PRIMARY KEY'"""


class DuckDB(Database):
    """A table with a column of floats; codes are in ``FLOAT[k]``, ``BIT``, or a ``BLOB`` that ``search`` reads.

    A table of its own: DuckDB appends fast, and changes rows that are there slowly.
    """

    store = Store.DUCKDB
    errors = (duckdb.Error,)
    batch_size = 1 << 14

    def _connect(self, source: str, read_only: bool) -> None:
        self._connection = duckdb.connect(source, read_only=read_only)

    def _describe(self, names: Names) -> None:
        schema, _, table = names.table.rpartition(".")
        columns = dict(self._fetch(_COLUMNS, [table, schema or None]))
        if not columns:
            raise UserError(f"there is no table {names.table}: expected its name, or schema.name")
        full = {name: match for name, kind in columns.items() if (match := _FULL.fullmatch(kind))}
        if names.column is None and len(full) != 1:
            raise UserError(f"{names.table} has the columns of floats {', '.join(full) or 'none'}: give --column")
        name = names.column or next(iter(full))
        if name not in full:
            raise UserError(f"{names.table} has no column {name} of floats: it has {', '.join(full) or 'none'}")
        key = names.id_column
        if key is None:
            keys = [columns_of_key for (columns_of_key,) in self._fetch(_KEYS, [table, schema or None])]
            if len(keys) != 1 or len(keys[0]) != 1:
                raise UserError(f"{names.table} has no primary key of one column: give a unique one with --id-column")
            [[key]] = keys
        elif key not in columns:
            raise UserError(f"{names.table} has no column {key}: it has {', '.join(columns)}")
        self.reduced = names.to or f"{names.table}_reduced"
        if self.reduced == names.table:
            raise UserError(f"--to {self.reduced} is the table of the full vectors: name a new one")
        self.full, self.full_type = f"{names.table}.{name}", columns[name]
        self._table, self._to = _quoted(*names.table.split(".", 1)), _quoted(*self.reduced.split(".", 1))
        self._key, self._name, self._key_type, self._column_name = _quoted(key), _quoted(name), columns[key], name
        measured = f"SELECT len({self._name}) FROM {self._table} WHERE {self._name} IS NOT NULL LIMIT 1"
        self.dimensions = int(full[name][1] or next(iter(self._fetch(measured)), [0])[0])

    def close(self) -> None:
        self._connection.close()

    def _fetch(self, statement: str, given: Any = None) -> list[Any]:
        return self._connection.execute(statement, given).fetchall()

    def columns(self) -> dict[Precision, Column]:
        blobs = (Precision.INT8, Precision.INT4, Precision.INT2)
        return super().columns() | {each: Column(each, "BLOB", distance=_SEARCHED) for each in blobs}

    @property
    def reduced_type(self) -> str:
        return self.column.type.replace("k", str(self.out_features))

    def found_type(self) -> str | None:
        schema, _, table = self.reduced.rpartition(".")
        columns = dict(self._fetch(_COLUMNS, [table, schema or None]))
        return columns.get(self._column_name, f"a table without {self._column_name}") if columns else None

    def count(self) -> tuple[int, int]:
        full = self._number(f"count({self._name})", self._table)
        return full, 0 if self.found_type() is None else self._number("count(*)", self._to)

    def _number(self, expression: str, table: str) -> int:
        return int(self._fetch(f"SELECT coalesce({expression}, 0) FROM {table}")[0][0])

    def sizes(self) -> tuple[int, int]:
        each = 8 if self.full_type.startswith("DOUBLE") else 4
        full = each * self._number(f"sum(len({self._name}))", self._table)
        if self.found_type() is None:
            return full, 0
        floats = self.column.precision is Precision.FLOAT32
        codes = f"sum(4 * len({self._name}))" if floats else f"sum(octet_length({self._name}))"
        return full, self._number(codes, self._to)

    def _floats(self, relation: str = "") -> str:
        """Return the full vectors as an expression of one type."""
        return f"{relation}{self._name}::FLOAT[{self.dimensions}]"

    def sample(self, rows: int) -> Iterator[np.ndarray]:
        chosen = f"WHERE {self._name} IS NOT NULL ORDER BY hash({self._key}) LIMIT {rows}"
        relation = self._connection.sql(f"SELECT {self._floats()} FROM {self._table} {chosen}")
        for batch in relation.arrow(self.batch_size):
            yield self._rows(batch.column(0))

    def _rows(self, column: Any, size: int | None = None) -> np.ndarray:
        return column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, size or self.dimensions)

    def pairs(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        code = f"there.{self._name}::VARCHAR" if self.column.precision is Precision.BINARY else f"there.{self._name}"
        joined = f"{self._table} AS here JOIN {self._to} AS there USING ({self._key})"
        chosen = f"WHERE here.{self._name} IS NOT NULL ORDER BY hash({self._key}) LIMIT {rows}"
        found = self._connection.sql(
            f"SELECT {self._floats('here.')} AS full, {code} AS code FROM {joined} {chosen}"
        ).to_arrow_table()
        vectors, codes = self._rows(found["full"].combine_chunks()), found["code"].combine_chunks()
        if self.column.precision is Precision.FLOAT32:
            return vectors, self._rows(codes, self.out_features)
        if self.column.precision is Precision.BINARY:
            return vectors, packed(codes.to_pylist(), self.out_features)
        kind = np.int8 if self.column.precision is Precision.INT8 else np.uint8
        width = self.column.precision.bytes_per_vector(self.out_features)
        return vectors, np.frombuffer(b"".join(codes.to_pylist()), kind).reshape(-1, width)

    def create(self) -> None:
        self._connection.execute(
            f"CREATE TABLE IF NOT EXISTS {self._to} ({self._key} {self._key_type} PRIMARY KEY, "
            f"{self._name} {self.reduced_type} NOT NULL)"
        )

    def fill(self, encode: Encode, batch_size: int) -> Iterator[int]:
        missing = f"FROM {self._table} ANTI JOIN {self._to} USING ({self._key}) WHERE {self._name} IS NOT NULL"
        # A cursor is a connection of its own: writing through one does not end a result that the other is reading.
        with self._connection.cursor() as reading:
            relation = reading.sql(f"SELECT {self._key} AS id, {self._floats()} AS full {missing}")
            for batch in relation.arrow(batch_size):
                ids = batch.column(0)
                codes = encode(_Ids(ids), self._rows(batch.column(1)))
                self._connection.register("st_dimreduce_batch", pa.table({"id": ids, "code": self._column(codes)}))
                # One statement is one transaction.
                self._connection.execute(
                    f"INSERT INTO {self._to} SELECT id, code::{self.reduced_type} FROM st_dimreduce_batch"
                )
                yield len(codes)

    def _column(self, codes: np.ndarray) -> Any:
        if self.column.precision is Precision.FLOAT32:
            return pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), self.out_features)
        if self.column.precision is Precision.BINARY:
            bits = np.unpackbits(codes, axis=1, count=self.out_features) + ord("0")
            return pa.array([row.tobytes().decode() for row in bits])
        return pa.array([row.tobytes() for row in codes])

    @property
    def index(self) -> None:
        return None  # it scores every row; its extension vss would have an index of FLOAT[k]

    def query(self, head: str) -> str:
        precision, imports = self.column.precision, "load_head"
        if self.column.distance == _SEARCHED:
            imports = "load_head, search"
            kind = "int8" if precision is Precision.INT8 else "uint8"
            found = f"""\
table = connection.sql({f"SELECT {self._key} AS id, {self._name} AS code FROM {self._to}"!r}).to_arrow_table()
codes = np.frombuffer(b"".join(table["code"].to_pylist()), np.{kind}).reshape(len(table), -1)
[scores], [rows] = search(reduced[None], codes, {precision.value!r})
table["id"].take(rows).to_pylist()"""
        else:
            score = f"array_cosine_distance({self._name}, $1::{self.reduced_type})"
            given = "reduced.tolist()"
            if precision is Precision.BINARY:
                score, given = (
                    f"bit_count(xor({self._name}, $1::BIT))",
                    '"".join("01"[int(number > 0)] for number in reduced)',
                )
            nearest = f"SELECT {self._key} FROM {self._to} ORDER BY {score} LIMIT 10"
            found = f"connection.execute({nearest!r}, [{given}]).fetchall()"
        numpy = "import numpy as np\n" if self.column.distance == _SEARCHED else ""
        return f"""\
{numpy}from st_dimreduce import {imports}
[reduced] = load_head({head!r}).transform(vector[None])
{found}"""


class _Ids(Sequence[Any]):
    """Ids of a batch, of which a message may name one."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __getitem__(self, row: Any) -> Any:
        return self._column[int(row)].as_py()

    def __len__(self) -> int:
        return len(self._column)


def _quoted(*names: str) -> str:
    return ".".join(f'"{name}"' for name in (name.replace('"', '""') for name in names))
