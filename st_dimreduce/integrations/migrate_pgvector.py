"""pgvector: codes in a new column of the table that holds the full vectors, or in a table of their own."""

# ruff: noqa: S608, names are quoted by psycopg
from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from st_dimreduce.enums import Precision, Store
from st_dimreduce.errors import MissingExtraError, UserError
from st_dimreduce.integrations.migrate import Database, Encode, Names, packed

try:
    import psycopg
    from pgvector import Bit, HalfVector
    from pgvector.psycopg import register_vector
    from psycopg import sql
except ModuleNotFoundError as error:
    raise MissingExtraError("pgvector needs its clients: pip install 'st_dimreduce[databases]'") from error

_FULL = re.compile(r"(?:\w+\.)?(vector|halfvec)(?:\((\d+)\))?")
_FETCHED = 1000  # rows of a sample at a time
_LOCK_SECONDS = 5  # that others may have to wait
_BATCH = "st_dimreduce_batch"
_ATTRIBUTES = """
    SELECT attname, format_type(atttypid, atttypmod), atttypid::int FROM pg_attribute
    WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum"""
_KEY = """
    SELECT attname FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY (indkey)
    WHERE indrelid = %s AND indisprimary AND indnkeyatts = 1"""
_IS_KEY = """
    SELECT FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
    WHERE indrelid = %s AND attname = %s AND indisunique AND indnkeyatts = 1 AND indpred IS NULL AND attnotnull"""
_INDEXES = """
    SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    JOIN pg_am ON pg_am.oid = relam WHERE indrelid = %s AND amname IN ('hnsw', 'ivfflat')"""


class PgVector(Database):
    """A table of PostgreSQL with a column ``vector`` or ``halfvec``; codes are in ``halfvec`` or ``bit``.

    Rows are read by their key, and locked until their codes are committed: no vector changes between.
    """

    store = Store.PGVECTOR
    errors = (psycopg.Error,)
    batch_size = 1000

    def _connect(self, source: str, read_only: bool) -> None:
        # Nothing is left to a session, which a pool of connections may exchange.
        self._connection: psycopg.Connection[Any] = psycopg.connect(source, autocommit=True, prepare_threshold=None)
        self._connection.read_only = read_only

    def _describe(self, names: Names) -> None:
        register_vector(self._connection)
        self._table = sql.Identifier(*names.table.split(".", 1))
        written = self._table.as_string(self._connection)
        [self._oid] = self._one("SELECT to_regclass(%s)::oid::bigint", [written])
        if self._oid is None:
            raise UserError(f"there is no table {names.table}: expected its name, or schema.name")
        columns = self._columns_of(self._table)
        full = {name: match for name, (kind, _) in columns.items() if (match := _FULL.fullmatch(kind))}
        name = names.column or _likely(list(full), names)
        if name not in full:
            raise UserError(
                f"{names.table} has no column {name} of type vector or halfvec: it has {', '.join(full) or 'none'}"
            )
        own_table, _, self._to = (names.to or f"{name}_reduced").rpartition(".")
        holder = own_table or names.table
        if (holder, self._to) == (names.table, name):
            raise UserError(f"--to {names.to} is the column of the full vectors: name a new one")
        self.full, self.full_type, self.reduced = f"{names.table}.{name}", columns[name][0], f"{holder}.{self._to}"
        key = self._key(names)
        self._key_type, self._key_oid = columns[key]
        self._own_table, self._holder = holder != names.table, sql.Identifier(*holder.split(".", 1))
        self._parts = {
            "table": self._table,
            "holder": self._holder,
            "id": sql.Identifier(key),
            "full": sql.Identifier(name),
            "to": sql.Identifier(self._to),
            "code": sql.Identifier("there" if self._own_table else "here", self._to),
            "batch": sql.Identifier(_BATCH),
        }
        self.dimensions = int(full[name][2] or self._measured())
        indexes = [name for (name,) in self._connection.execute(_INDEXES, [self._oid])]
        if indexes and not self._own_table:
            self.warning = (
                f"Note: {', '.join(indexes)} is updated with every row, which takes many times as long: "
                f"--to {names.table}_reduced.{name} writes to a new table instead."
            )

    def _columns_of(self, table: sql.Identifier) -> dict[str, tuple[str, int]]:
        """Return the type of each column of a table, and its number; nothing if there is no such table."""
        [oid] = self._one("SELECT to_regclass(%s)::oid::bigint", [table.as_string(self._connection)])
        found = self._connection.execute(_ATTRIBUTES, [oid]).fetchall()
        return {name: (kind, number) for name, kind, number in found}

    def _key(self, names: Names) -> str:
        if names.id_column is None:
            found = self._connection.execute(_KEY, [self._oid]).fetchone()
            if found is None:
                raise UserError(f"{names.table} has no primary key of one column: give a unique one with --id-column")
            return found[0]
        if self._connection.execute(_IS_KEY, [self._oid, names.id_column]).fetchone() is None:
            raise UserError(
                f"{names.table} has no column {names.id_column} that is unique and not null, by an index of its own: "
                "give another one with --id-column"
            )
        return names.id_column

    def _measured(self) -> int:
        found = self._fetch("SELECT vector_dims({full}) FROM {table} WHERE {full} IS NOT NULL LIMIT 1")
        return found[0][0] if found else 0

    def close(self) -> None:
        self._connection.close()

    def _one(self, statement: Any, given: Any = None) -> Any:
        found = self._connection.execute(statement, given).fetchone()
        assert found is not None  # noqa: S101, a statement that always gives a row
        return found

    def _sql(self, statement: str) -> sql.Composed:
        return sql.SQL(statement).format(**self._parts)

    def _fetch(self, statement: str, given: Any = None, binary: bool = False) -> list[Any]:
        return self._connection.execute(self._sql(statement), given, binary=binary).fetchall()

    @property
    def reduced_type(self) -> str:
        return f"{self.column.type}({self.out_features})"

    def found_type(self) -> str | None:
        columns = self._columns_of(self._holder)
        if self._to in columns:
            return columns[self._to][0].rpartition(".")[2]
        return f"a table without {self._to}" if columns and self._own_table else None

    def _both(self, further: str = "") -> str:
        """Return what full vectors and codes are selected from: the table ``here``, and that of the codes ``there``."""
        joined = f" LEFT JOIN {{holder}} AS there ON there.{{id}} = here.{{id}}{further}" if self._own_table else ""
        return "FROM {table} AS here" + joined

    def count(self) -> tuple[int, int]:
        if self.found_type() is None:
            return self._fetch("SELECT count({full}) FROM {table}")[0][0], 0
        counted = f"SELECT count(here.{{full}}), count({{code}}) {self._both()} WHERE here.{{full}} IS NOT NULL"
        return self._fetch(counted)[0]

    def sizes(self) -> tuple[int, int]:
        full = self._fetch("SELECT coalesce(sum(pg_column_size({full})), 0) FROM {table}")[0][0]
        if self.found_type() is None:
            return full, 0
        return full, self._fetch("SELECT coalesce(sum(pg_column_size({to})), 0) FROM {holder}")[0][0]

    def sample(self, rows: int) -> Iterator[np.ndarray]:
        chosen = "SELECT {full} FROM {table} WHERE {full} IS NOT NULL ORDER BY random() LIMIT %s"
        # A cursor of the server: the client holds a few rows at a time.
        with self._connection.transaction(), self._connection.cursor("st_dimreduce_sample", binary=True) as cursor:
            cursor.execute(self._sql(chosen), [rows])
            while found := cursor.fetchmany(_FETCHED):
                yield _vectors(vector for (vector,) in found)

    def pairs(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        code = "{code}::text" if self.column.precision is Precision.BINARY else "{code}"
        chosen = "WHERE here.{full} IS NOT NULL AND {code} IS NOT NULL ORDER BY random() LIMIT %s"
        found = self._fetch(f"SELECT here.{{full}}, {code} {self._both()} {chosen}", [rows], binary=True)
        vectors = _vectors(vector for vector, _ in found).reshape(-1, self.dimensions)
        if self.column.precision is Precision.BINARY:
            return vectors, packed((bits for _, bits in found), self.out_features)
        return vectors, _vectors(code for _, code in found).reshape(-1, self.out_features)

    def create(self) -> None:
        if self.found_type() is None:
            added = f"ALTER TABLE {{table}} ADD COLUMN {{to}} {self.reduced_type}"
            if self._own_table:
                key = f"{{id}} {self._key_type} PRIMARY KEY REFERENCES {{table}} ({{id}}) ON DELETE CASCADE"
                added = f"CREATE TABLE {{holder}} ({key}, {{to}} {self.reduced_type} NOT NULL)"
            self._add(added)

    def _add(self, statement: str) -> None:
        try:
            with self._connection.transaction():
                # Who comes later would wait behind this statement, while it waits for a transaction that is long.
                self._connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'")
                self._connection.execute(self._sql(statement))
        except psycopg.errors.LockNotAvailable as error:
            raise UserError(
                f"{self.reduced} could not be added within {_LOCK_SECONDS} s, another transaction uses the table: call "
                "again when that has ended"
            ) from error

    def fill(self, encode: Encode, batch_size: int) -> Iterator[int]:
        last = None
        while True:
            beyond = "" if last is None else " AND {}.{{id}} > %(last)s"
            # The second bound follows from the first; the planner does not see that and would read all codes again.
            missing = (
                f"SELECT here.{{id}}, here.{{full}} {self._both(beyond.format('there'))} WHERE here.{{full}} IS NOT "
                f"NULL AND {{code}} IS NULL{beyond.format('here')} ORDER BY here.{{id}} LIMIT {batch_size} "
                "FOR NO KEY UPDATE OF here"
            )
            with self._connection.transaction():
                rows = self._fetch(missing, {"last": last}, binary=True)
                if rows:
                    ids = [id_ for id_, _ in rows]
                    self._write(ids, encode(ids, _vectors(vector for _, vector in rows)))
            if not rows and last is None:
                return
            # What came meanwhile may have a lower id.
            last = rows[-1][0] if rows else None
            if rows:
                yield len(rows)

    def _write(self, ids: list[Any], codes: np.ndarray) -> None:
        if self.column.precision is Precision.BINARY:
            values: Any = map(Bit, np.unpackbits(codes, axis=1, count=self.out_features).astype(bool))
        else:
            values = map(HalfVector, codes)
        batch = "CREATE TEMPORARY TABLE {batch} ON COMMIT DROP AS SELECT {id} AS id, {to} AS code FROM {holder}"
        changed = (
            "INSERT INTO {holder} SELECT id, code FROM {batch} ON CONFLICT DO NOTHING"
            if self._own_table
            else "UPDATE {table} AS here SET {to} = code FROM {batch} AS batch WHERE here.{id} = batch.id"
        )
        with self._connection.cursor() as cursor:
            cursor.execute(self._sql(f"{batch} WITH NO DATA"))
            with cursor.copy(self._sql("COPY {batch} FROM STDIN (FORMAT BINARY)")) as copy:
                copy.set_types([self._key_oid, self.column.type])
                for row in zip(ids, values, strict=True):
                    copy.write_row(row)
            cursor.execute(self._sql(changed))

    @property
    def index(self) -> str:
        operators = "bit_hamming_ops" if self.column.precision is Precision.BINARY else "halfvec_cosine_ops"
        made = self._sql("CREATE INDEX CONCURRENTLY ON {holder} USING hnsw ({to} ").as_string(self._connection)
        return f"{made}{operators});"

    def query(self, head: str) -> str:
        found = self._sql(f"SELECT {{id}} FROM {{holder}} ORDER BY {{to}} {self.column.distance} ")
        given = ("HalfVector", "reduced") if self.column.precision is Precision.FLOAT32 else ("Bit", "reduced > 0")
        return f"""\
from pgvector import {given[0]}
from st_dimreduce import load_head
[reduced] = load_head({head!r}).transform(vector[None])
nearest = {found.as_string(self._connection) + "%s LIMIT 10"!r}
connection.execute(nearest, [{given[0]}({given[1]})]).fetchall()"""


def _likely(full: list[str], names: Names) -> str:
    """Return the column of full vectors among those of vectors: the only one that an earlier call did not make."""
    left = [name for name in full if name != names.to and name.removesuffix("_reduced") not in set(full) - {name}]
    left = left or full
    if len(left) != 1:
        raise UserError(f"{names.table} has the vector columns {', '.join(full) or 'none'}: give --column")
    return left[0]


def _vectors(found: Any) -> np.ndarray:
    return np.array([vector.to_numpy() for vector in found], np.float32)
