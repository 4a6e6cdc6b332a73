"""pgvector: codes in a new column of the table that holds the full vectors, or in a table of their own."""

# ruff: noqa: S608, psycopg quotes the names
from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from st_dimreduce.enums import Precision, Store
from st_dimreduce.errors import MissingExtraError, UserError
from st_dimreduce.integrations.database import Counts, Database, Plan, Row

try:
    import psycopg
    from psycopg import sql
except ModuleNotFoundError as error:
    raise MissingExtraError("pgvector needs its clients: pip install 'st_dimreduce[databases]'") from error

_BITS = {"vector": 32, "halfvec": 16}
_FETCHED = 1000  # rows of a sample at a time
_COLUMNS = """
    SELECT attname, typname, atttypmod, format_type(atttypid, atttypmod)
    FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
    WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum"""
_KEYS = """
    SELECT attname FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
    WHERE indrelid = to_regclass(%s) AND indisunique AND indnkeyatts = 1 AND indpred IS NULL AND attnotnull
    ORDER BY indisprimary DESC"""


class PgVector(Database):
    """A table of PostgreSQL with a column ``vector`` or ``halfvec``; codes are in ``halfvec`` or ``bit``.

    Rows are locked from when they are read until their codes are committed: no vector changes between. Keys pass as the
    text that PostgreSQL writes and reads of them, so that keys of any type come back as they were.
    """

    store = Store.PGVECTOR
    errors = (psycopg.Error,)

    def __init__(self, address: str, password: str, read_only: bool) -> None:
        secret: dict[str, Any] = {"password": password} if password else {}
        # Nothing is left to a session, which a pool of connections may exchange.
        self.connection: psycopg.Connection[Any] = psycopg.connect(
            address, autocommit=True, prepare_threshold=None, **secret
        )
        self.connection.read_only = read_only

    def find(self, plan: Plan) -> None:
        columns = self._columns(plan.table)
        if not columns:
            raise UserError(f"there is no table {plan.table}: expected its name, or schema.name, as it is stored")
        vectors = [name for name, (kind, _, _) in columns.items() if kind in _BITS]
        # Without those that earlier calls made.
        full = [name for name in vectors if name != plan.to and not name.endswith("_reduced")] or vectors
        name = plan.column or (full[0] if len(full) == 1 else "")
        if name not in vectors:
            lacks, there = f"column {name}" if name else "single column", ", ".join(vectors) or "none"
            raise UserError(f"{plan.table} has no {lacks} of type vector or halfvec: give --column, it has {there}")
        table, _, to = (plan.to or f"{name}_reduced").rpartition(".")
        holder, self._own_table = table or plan.table, table not in ("", plan.table)
        if (holder, to) == (plan.table, name):
            raise UserError(f"--to {plan.to} is the column of the full vectors: name a new one")
        key = self._key(plan)
        self._parts = {
            "table": _quoted(*plan.table.split(".", 1)),
            "holder": _quoted(*holder.split(".", 1)),
            "id": _quoted(key),
            "full": _quoted(name),
            "to": _quoted(to),
            "code": _quoted("there" if self._own_table else "here", to),
            "key_type": sql.SQL(columns[key][2].replace("%", "%%")),
        }
        kind, dimensions, self.full_type = columns[name]
        self.full, self.reduced, self.full_bits = f"{plan.table}.{name}", f"{holder}.{to}", _BITS[kind]
        measured = self._execute("SELECT vector_dims({full}) FROM {table} WHERE {full} IS NOT NULL LIMIT 1").fetchone()
        self.in_features = dimensions if dimensions > 0 or measured is None else measured[0]
        found = self._columns(holder)
        if found and to not in found and self._own_table:
            raise UserError(f"{holder} has no column {to}: name a new table, or a column of {plan.table}, with --to")
        self.found_type = found[to][2].rpartition(".")[2] if to in found else None

    def _columns(self, table: str) -> dict[str, tuple[str, int, str]]:
        """Return of each column the name of its type, the number in its brackets, and both as SQL writes them."""
        name = sql.Identifier(*table.split(".", 1)).as_string(self.connection)
        return {column: (*kind,) for column, *kind in self.connection.execute(_COLUMNS, [name])}

    def _key(self, plan: Plan) -> str:
        name = sql.Identifier(*plan.table.split(".", 1)).as_string(self.connection)
        keys = [key for (key,) in self.connection.execute(_KEYS, [name])]
        if plan.id_column is None and not keys:
            raise UserError(f"{plan.table} has no primary key of one column: give a unique one with --id-column")
        if plan.id_column not in (None, *keys):
            raise UserError(
                f"{plan.table} has no column {plan.id_column} that is unique and not null, by an index of its own: "
                "give another one with --id-column"
            )
        return plan.id_column or keys[0]

    def _sql(self, statement: str) -> sql.Composed:
        return sql.SQL(statement).format(**self._parts)

    def _execute(self, statement: str, **values: Any) -> psycopg.Cursor[Any]:
        # Always with values, if only none: then psycopg reads the %% of quoted names as %.
        return self.connection.execute(self._sql(statement), values, binary=True)

    def _both(self, further: str = "") -> str:
        """Return what full vectors and codes are selected from: the table ``here``, and that of the codes ``there``."""
        joined = f" LEFT JOIN {{holder}} AS there ON there.{{id}} = here.{{id}}{further}" if self._own_table else ""
        return "FROM {table} AS here" + joined

    @property
    def reduced_type(self) -> str:
        return f"{self.column.type}({self.out_features})"

    def count(self) -> Counts:
        if self.found_type is None:
            return Counts(*self._execute("SELECT count({full}), 0, 0 FROM {table}").fetchall()[0])
        codes = "(SELECT count({to}) FROM {holder})" if self._own_table else "count({code})"
        done = "count({code}) FILTER (WHERE here.{full} IS NOT NULL)"
        return Counts(*self._execute(f"SELECT count(here.{{full}}), {done}, {codes} {self._both()}").fetchall()[0])

    def sample(self, rows: int, coded: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        bits = coded and self.column.precision is Precision.BINARY
        code = "{code}::text" if bits else "{code}::real[]"
        condition = "here.{full} IS NOT NULL" + (" AND {code} IS NOT NULL" if coded else "")
        both = self._both() if coded else "FROM {table} AS here"
        # Keys are drawn first: to sort vectors at random would take their size on disk.
        keys = f"SELECT here.{{id}} {both} WHERE {condition} ORDER BY random() LIMIT {rows}"
        drawn = f"SELECT here.{{full}}::real[], {code if coded else 'NULL'} {both} WHERE here.{{id}} IN ({keys})"
        # A cursor of the server: the client holds a few rows at a time.
        with self.connection.transaction(), self.connection.cursor("st_dimreduce_sample", binary=True) as cursor:
            cursor.execute(self._sql(drawn), {})
            while found := cursor.fetchmany(_FETCHED):
                codes = np.array([list(code or ()) for _, code in found], np.float32)
                yield self._vectors([row for row, _ in found]), np.packbits(codes > 0, axis=1) if bits else codes

    def _vectors(self, found: list[Any]) -> np.ndarray:
        if any(len(vector) != self.in_features for vector in found):
            raise UserError(f"{self.full} holds vectors of several sizes: expected {self.in_features} in each")
        return np.array(found, np.float32).reshape(-1, self.in_features)

    def create(self) -> None:
        added = f"ALTER TABLE {{table}} ADD COLUMN {{to}} {self.reduced_type}"
        if self._own_table:
            key = "{id} {key_type} PRIMARY KEY REFERENCES {table} ({id}) ON DELETE CASCADE"
            added = f"CREATE TABLE {{holder}} ({key}, {{to}} {self.reduced_type} NOT NULL)"
        with self.connection.transaction():
            # Who comes later would wait behind this statement, while it waits for a transaction that is long.
            self.connection.execute("SET LOCAL lock_timeout = '5s'")
            self._execute(added)
        self.found_type = self.reduced_type

    def missing(self, batch_size: int) -> Generator[tuple[list[Row], np.ndarray], None, None]:
        beyond, last = "", None
        while True:
            # The second bound follows from the first; the planner does not see that and would read all codes again.
            wanted = (
                f"SELECT here.{{id}}::text, here.{{full}}::real[], here.{{id}} = here.{{id}}::text::{{key_type}} "
                f"{self._both(beyond.format('there'))} WHERE here.{{full}} IS NOT NULL AND {{code}} IS NULL"
                f"{beyond.format('here')} ORDER BY here.{{id}} LIMIT {batch_size} FOR NO KEY UPDATE OF here"
            )
            with self.connection.transaction():
                found = self._execute(wanted, last=last).fetchall()
                if not found:
                    return
                if changed := [key for key, _, same in found if not same]:
                    raise UserError(f"the key {changed[0]} is another when it is read back: give another --id-column")
                yield [Row(key) for key, _, _ in found], self._vectors([vector for _, vector, _ in found])
            beyond, last = " AND {}.{{id}} > %(last)s::text::{{key_type}}", found[-1][0]

    def write(self, rows: list[Row], codes: np.ndarray) -> None:
        if self.column.precision is Precision.BINARY:
            bits = np.unpackbits(codes, axis=1, count=self.out_features) + ord("0")
            texts = [row.tobytes().decode() for row in bits]
        else:
            texts = [json.dumps(row) for row in codes.astype(np.float16).tolist()]
        batch = "unnest(%(ids)s::text[], %(codes)s::text[]) AS batch (id, code)"
        key, code = "batch.id::{key_type}", f"batch.code::{self.reduced_type}"
        change = f"UPDATE {{table}} AS here SET {{to}} = {code} FROM {batch} WHERE here.{{id}} = {key}"
        if self._own_table:
            change = (
                f"INSERT INTO {{holder}} ({{id}}, {{to}}) SELECT {key}, {code} FROM {batch} "
                "ON CONFLICT ({id}) DO UPDATE SET {to} = excluded.{to}"
            )
        self._execute(change, ids=[row.id for row in rows], codes=texts)

    def prune(self) -> None:
        gone = "NOT EXISTS (SELECT FROM {table} AS here WHERE here.{id} = there.{id} AND here.{full} IS NOT NULL)"
        emptied = "UPDATE {table} SET {to} = NULL WHERE {full} IS NULL AND {to} IS NOT NULL"
        self._execute(f"DELETE FROM {{holder}} AS there WHERE {gone}" if self._own_table else emptied)

    def usage(self, head: str) -> tuple[str, str]:
        bits = self.column.precision is Precision.BINARY
        kind, given = ("Bit", "reduced > 0") if bits else ("HalfVector", "reduced")
        operators, distance = ("bit_hamming_ops", "<~>") if bits else ("halfvec_cosine_ops", "<=>")
        index = f"CREATE INDEX CONCURRENTLY ON {{holder}} USING hnsw ({{to}} {operators});"
        nearest = f"SELECT {{id}} FROM {{holder}} ORDER BY {{to}} {distance} %s LIMIT 10"
        index, nearest = (self._sql(text).as_string(self.connection) for text in (index, nearest))
        query = f"""\
from pgvector import {kind}
from pgvector.psycopg import register_vector
from st_dimreduce import Head
register_vector(connection)
[reduced] = Head.load({head!r}).transform(vector[None])
connection.execute({nearest!r}, [{kind}({given})]).fetchall()"""
        return index.replace("%%", "%"), query


def _quoted(*names: str) -> sql.Identifier:
    """Return a name as psycopg quotes it, for a statement with values, in which %% stands for %."""
    return sql.Identifier(*(name.replace("%", "%%") for name in names))
