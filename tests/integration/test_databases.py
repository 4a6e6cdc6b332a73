"""``st-dimreduce migrate`` with the real databases: PostgreSQL with pgvector, and Qdrant."""

# ruff: noqa: S608, S102, S307, the names and the printed query are the tests' own

from __future__ import annotations

import ast
import json
import runpy
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from st_dimreduce import Head, Summary
from st_dimreduce.fitting.closed_form import closed_form_head
from tests.helpers.command import run

pytestmark = pytest.mark.wings("integrations", "examples/databases")

EXAMPLES = Path("examples", "databases").absolute()
WIDTH, SIZE = 64, 32

# Runs a script or a command, which ends as by `kill -9` when it is about to reduce its third batch.
DIES = """
import os, runpy, signal, sys
from st_dimreduce import Head

transform, calls = Head.transform, []

def transform_two_batches(self, rows):
    calls.append(len(rows))
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return transform(self, rows)

Head.transform = transform_two_batches
if sys.argv[1] == "migrate":
    from st_dimreduce.cli import app
    app()
else:
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


@cache
def all_clustered():
    """Unit vectors around fifty centres, in which few directions matter much: like embeddings of texts."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((50, WIDTH))[rng.integers(50, size=40_000)] + rng.standard_normal((40_000, WIDTH))
    vectors *= np.arange(1, WIDTH + 1) ** -0.7
    vectors @= np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clustered(rows):
    """The first rows of these."""
    return all_clustered()[:rows].copy()


def assert_same_codes(codes, expected):
    """A matrix product may round otherwise in batches of another size: one code in ten thousand may differ."""
    assert codes.shape == expected.shape
    assert np.mean(codes != expected) < 1e-4


def overlap(found, vectors, ids):
    """Share of the ten nearest to the first vectors, by exact search of all full vectors, that were found."""
    exact = np.argsort(-vectors[: len(found)] @ vectors.T, axis=1)[:, :10]
    return np.mean([len({ids[row] for row in rows} & set(near)) / 10 for rows, near in zip(exact, found, strict=True)])


class Searching(threading.Thread):
    """Searches again and again, until it is told to stop; keeps what failed, and the overlap of each search."""

    def __init__(self, search):
        super().__init__(daemon=True)
        self.search, self.overlaps, self.failures, self.stopped = search, [], [], threading.Event()

    def run(self):
        while not self.stopped.is_set():
            with self.kept():
                self.overlaps.append(self.search())

    @contextmanager
    def kept(self):
        try:
            yield
        except Exception as error:
            self.failures.append(error)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.join(60)


@pytest.fixture
def connect(postgres):
    """Connections to a database without tables, in which there will be none when the test ends."""
    import pgvector.psycopg
    import psycopg

    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute("CREATE SCHEMA search")
    with ExitStack() as stack:

        def connect():
            connection = stack.enter_context(psycopg.connect(postgres, autocommit=True))
            pgvector.psycopg.register_vector(connection)
            return connection

        yield connect
        connect().execute("DROP SCHEMA search CASCADE")


class Documents:
    """A table of documents in PostgreSQL, which grows; its names need quotes."""

    table, column = "search.My documents", 'em"bedding'
    full, quoted = f"{table}.{column}", 'search."My documents"'

    def __init__(self, connect, vectors, key="bigint", as_id=int):
        self.connection, self.vectors = connect(), vectors
        self.key, self.ids = key, [as_id(3 * row - 99) for row in range(len(vectors))]
        self.connection.execute(
            f'CREATE TABLE {self.quoted} ("The Id" {key} PRIMARY KEY, "em""bedding" vector({WIDTH}), title text)'
        )

    def add(self, rows):
        columns = f'COPY {self.quoted} ("The Id", "em""bedding") FROM STDIN (FORMAT BINARY)'
        with self.connection.cursor() as cursor, cursor.copy(columns) as copy:
            copy.set_types([self.key, "vector"])
            for row in rows:
                copy.write_row([self.ids[row], self.vectors[row]])

    def all(self):
        """Everything that is stored, and where: a row that is written anew has another place."""
        tables = self.connection.execute(
            "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid ="
            " relnamespace WHERE nspname = 'search' AND relkind = 'r' ORDER BY 1"
        ).fetchall()
        return [
            (table, self.connection.execute(f"SELECT ctid::text, * FROM {table} ORDER BY 1").fetchall())
            for (table,) in tables
        ]

    def codes(self, place):
        """The ids and codes of a place, as ``"table.column"``, in the order of the ids."""
        table, _, column = place.rpartition(".")
        found = self.connection.execute(
            f'SELECT "The Id", "{column}"::text FROM {table} WHERE "{column}" IS NOT NULL ORDER BY 1'
        ).fetchall()
        return [id_ for id_, _ in found], [code for _, code in found]


def save_head(vectors, size, path):
    """Save a head that is fitted in closed form, without training."""
    closed_form_head(Summary.of(vectors), size, strength=0).save(path)


@pytest.fixture
def head(tmp_path):
    """A head's folder."""
    save_head(clustered(2500), SIZE, tmp_path / "head")
    return str(tmp_path / "head")


def migrate(*arguments):
    """Run the command; returns what it printed."""
    done = run("migrate", *arguments)
    assert done.exit_code == 0, done.output
    return done.output


def figures_of(*arguments):
    """Run the command with ``--json``; returns its figures."""
    return json.loads(migrate(*arguments, "--json"))


def refused(*arguments):
    """Run the command, which refuses; returns its line."""
    done = run("migrate", *arguments)
    assert done.exit_code == 2, done.output
    [line] = done.stderr.splitlines()
    return line


def ask(figures, vectors, **names):
    """Run the query that was printed, for each vector; returns the ids that it finds."""
    *before, last = figures["query"].splitlines()
    found = []
    for vector in vectors:
        scope = {"vector": vector, **names}
        exec("\n".join(before), scope)
        found.append([row[0] if isinstance(row, tuple) else getattr(row, "id", row) for row in eval(last, scope)])
    return found


PLACES = {
    "a column": ([], f'{Documents.quoted}.em"bedding_reduced'),
    "a table of its own": (["--to", "search.small.code"], "search.small.code"),
}


@pytest.mark.component("pgvector")
@pytest.mark.parametrize("precision", ["float32", "binary"])
@pytest.mark.parametrize("place", PLACES)
def test_pgvector(connect, postgres, head, tmp_path, place, precision):
    vectors, (more, codes_at) = clustered(2500), PLACES[place]
    codes_at = codes_at.replace('em"bedding', 'em""bedding')
    as_id = str if precision == "binary" else int
    documents = Documents(connect, vectors, "text" if precision == "binary" else "bigint", as_id)
    connection, ids = documents.connection, documents.ids
    connection.execute(f"INSERT INTO {documents.quoted} VALUES (%s, NULL, 'later')", [as_id(100)])  # not encoded yet
    documents.add(np.random.default_rng(0).permutation(2400))
    arguments = [
        postgres,
        "--table",
        documents.table,
        "--head",
        head,
        "--precision",
        precision,
        "--batch-size",
        "500",
        *more,
    ]

    stored = documents.all()
    figures = figures_of(*arguments, "--dry-run")
    assert "Nothing was changed." in migrate(*arguments, "--dry-run")
    assert documents.all() == stored
    assert (figures["rows"], figures["migrated"], figures["dry_run"]) == (2400, 2400, True)

    killed = subprocess.run([sys.executable, "-c", DIES, "migrate", *arguments], timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    ordered = connection.execute(f'SELECT "The Id" FROM {documents.quoted} WHERE title IS NULL ORDER BY 1').fetchall()
    assert documents.codes(codes_at)[0] == [id_ for (id_,) in ordered[:1000]]

    documents.add(range(2400, 2500))
    figures = figures_of(*arguments)
    assert (figures["rows"], figures["migrated"], figures["missing"]) == (2500, 1500, 0)
    assert figures["full"] == f"{Documents.full}, vector({WIDTH})"
    assert figures["bytes_before"] == 2500 * 4 * WIDTH
    assert figures["bytes_after"] == 2500 * (2 * SIZE if precision == "float32" else SIZE // 8)
    found_ids, codes = documents.codes(codes_at)
    assert set(found_ids) == set(ids)
    reduced = Head.load(head).transform(vectors[[ids.index(id_) for id_ in found_ids]])
    if precision == "float32":
        floats = np.array([ast.literal_eval(code) for code in codes])
        np.testing.assert_allclose(floats, reduced, atol=1e-3)
    else:
        assert_same_codes(np.array([[int(bit) for bit in code] for code in codes]), (reduced > 0).astype(int))
    kept = connection.execute(f'SELECT "The Id", "em""bedding" FROM {documents.quoted} WHERE "em""bedding" IS NOT NULL')
    kept = dict(kept.fetchall())
    np.testing.assert_array_equal(np.stack([kept[id_].to_numpy() for id_ in ids]), vectors)

    stored, output = documents.all(), migrate(*arguments)
    assert "vectors     2,500, 0 of them reduced now" in output
    assert documents.all() == stored, "a second call wrote rows anew"

    connection.execute(figures["index"])
    with connect() as asking:
        asking.execute("SET enable_seqscan = off")
        asking.execute("SET hnsw.ef_search = 200")
        near = ask(figures, vectors[:50], connection=asking)
    measured = overlap(near, vectors, ids)
    assert measured > (0.7 if precision == "float32" else 0.3)
    assert abs(figures["overlap"] - measured) < 0.2
    assert figures["sampled"] == 1000
    for statement in (figures["index"], *figures["query"].splitlines()):
        assert statement in output.splitlines()


@pytest.mark.component("pgvector")
@pytest.mark.parametrize("place", PLACES)
def test_pgvector_does_not_wait_behind_a_long_transaction(connect, postgres, head, place):
    documents, other = Documents(connect, clustered(60)), connect()
    documents.add(range(50))
    stored, arguments = documents.all(), [postgres, "--table", documents.table, "--head", head, *PLACES[place][0]]
    with other.transaction():
        other.execute(f"LOCK TABLE {documents.quoted} IN ROW EXCLUSIVE MODE")  # as any change does
        assert "canceling statement due to lock timeout" in refused(*arguments)
    assert documents.all() == stored
    assert migrate(*arguments)


@pytest.mark.component("pgvector")
def test_pgvector_while_searches_and_additions_go_on(connect, postgres, head, tmp_path):
    vectors = clustered(2500)
    documents, ids = Documents(connect, vectors), [3 * row - 99 for row in range(2500)]
    documents.add(range(100, 2400))
    first = figures_of(postgres, "--table", documents.table, "--head", head)
    save_head(vectors, 16, tmp_path / "new")

    searching, original = connect(), Head.transform
    reductions = []

    def reduce_and_add(self, rows):
        if self.out_features == 16 and len(rows) > 1:
            reductions.append(len(rows))
            if len(reductions) == 2:
                documents.add(range(100))  # below what is done
                documents.add(range(2400, 2500))
        return original(self, rows)

    def search():
        return overlap(ask(first, vectors[100:105], connection=searching), vectors, ids)

    with pytest.MonkeyPatch.context() as patch, Searching(search) as searches:
        patch.setattr(Head, "transform", reduce_and_add)
        more = ["--column", documents.column, "--to", "second", "--head", tmp_path / "new"]
        second = figures_of(postgres, "--table", documents.table, *more)
        patch.undo()
        deadline = time.monotonic() + 60
        while len(searches.overlaps) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert searches.failures == []
    assert second["migrated"] == 2500
    found, _ = documents.codes(f"{documents.quoted}.second")
    assert found == ids
    assert documents.connection.execute(
        f'SELECT count(*) FROM {documents.quoted} WHERE "em""bedding_reduced" IS NULL'
    ).fetchone() == (200,)
    assert documents.codes(f"{documents.quoted}.second")[0] == ids


@pytest.mark.component("pgvector")
def test_pgvector_fits_a_head_and_keeps_to_it(connect, postgres, head, tmp_path):
    documents = Documents(connect, clustered(1200))
    documents.add(range(1000))
    stored, fitted = documents.all(), tmp_path / "fitted"
    arguments = [postgres, "--table", documents.table, "--head", fitted]
    assert "--bytes to fit a head" in refused(*arguments)
    migrate(*arguments, "--bytes", 16, "--dry-run")
    assert not fitted.exists()
    assert documents.all() == stored
    figures = figures_of(*arguments, "--bytes", 16)
    chosen = Head.load(fitted)
    assert chosen.record.choice["store"] == "pgvector"
    assert figures["precision"] == chosen.precision
    assert figures["bytes_after"] <= 1000 * 16
    documents.add(range(1000, 1200))
    assert figures_of(*arguments, "--bytes", 16)["migrated"] == 200
    taken = figures["bytes_after"] // 1000
    line = refused(*arguments, "--bytes", taken - 1)
    assert f"the head in {fitted} takes {taken} bytes per vector, --bytes {taken - 1} were given" in line

    # Of the same type, but of another head.
    replace(chosen, weight=chosen.weight[::-1].copy()).save(tmp_path / "other")
    line = refused(postgres, "--table", documents.table, "--head", tmp_path / "other")
    assert "holds codes of another head" in line
    line = refused(postgres, "--table", documents.table, "--head", tmp_path / "third", "--bytes", 16)
    assert "holds codes, and there is no" in line
    if chosen.out_features != SIZE or chosen.precision != "float32":
        line = refused(postgres, "--table", documents.table, "--head", head)
        assert f"expected halfvec({SIZE}): name another place with --to" in line


UNDONE = {
    "a trigger that resets the code": """
        CREATE FUNCTION search.undo() RETURNS trigger LANGUAGE plpgsql AS
        $$BEGIN NEW."em""bedding_reduced" = OLD."em""bedding_reduced"; RETURN NEW; END$$;
        CREATE TRIGGER undo BEFORE UPDATE ON search."My documents" FOR EACH ROW
        WHEN (OLD."The Id" < -90) EXECUTE FUNCTION search.undo()""",
    "a trigger that skips the update": """
        CREATE FUNCTION search.undo() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NULL; END$$;
        CREATE TRIGGER undo BEFORE UPDATE ON search."My documents" FOR EACH ROW
        WHEN (OLD."The Id" < -90) EXECUTE FUNCTION search.undo()""",
}


@pytest.mark.component("pgvector")
@pytest.mark.parametrize("undone", UNDONE)
def test_pgvector_ends_where_a_trigger_leaves_rows_unchanged(connect, postgres, head, undone):
    documents = Documents(connect, clustered(60))
    documents.add(range(60))  # three of them below -90
    documents.connection.execute(UNDONE[undone])
    arguments = [postgres, "--table", documents.table, "--head", head, "--batch-size", 7]
    figures = figures_of(*arguments)
    assert (figures["rows"], figures["migrated"], figures["missing"]) == (60, 57, 3)
    assert "no code     3: added meanwhile, or the database left them as they were" in migrate(*arguments)
    documents.connection.execute(f"DROP TRIGGER undo ON {documents.quoted}")
    figures = figures_of(*arguments)
    assert (figures["migrated"], figures["missing"]) == (3, 0)


@pytest.mark.component("pgvector")
def test_pgvector_ends_where_row_security_leaves_rows_unchanged(connect, postgres, head):
    documents = Documents(connect, clustered(60))
    documents.add(range(60))
    documents.connection.execute(f"""
        ALTER TABLE {documents.quoted} ADD COLUMN code halfvec({SIZE});
        ALTER TABLE {documents.quoted} ENABLE ROW LEVEL SECURITY;
        CREATE POLICY reads ON {documents.quoted} FOR SELECT USING (true);
        CREATE POLICY writes ON {documents.quoted} FOR UPDATE USING ("The Id" > -90);
        CREATE ROLE writer LOGIN; GRANT USAGE ON SCHEMA search TO writer;
        GRANT SELECT, UPDATE ON {documents.quoted} TO writer""")
    source = postgres.replace("postgres:", "writer:", 1)
    try:
        figures = figures_of(source, "--table", documents.table, "--head", head, "--to", "code")
    finally:
        documents.connection.execute("DROP OWNED BY writer; DROP ROLE writer")
    assert (figures["rows"], figures["migrated"], figures["missing"]) == (60, 56, 4)


@pytest.mark.component("pgvector")
@pytest.mark.parametrize("place", PLACES)
def test_pgvector_counts_and_prunes_codes_whose_vector_is_gone(connect, postgres, head, place):
    documents, (more, codes_at) = Documents(connect, clustered(60)), PLACES[place]
    documents.add(range(50))
    arguments = [postgres, "--table", documents.table, "--head", head, *more]
    assert figures_of(*arguments)["orphans"] == 0
    documents.connection.execute(f'UPDATE {documents.quoted} SET "em""bedding" = NULL WHERE "The Id" < -90')  # three
    documents.connection.execute(f'DELETE FROM {documents.quoted} WHERE "The Id" = 0')
    documents.add(range(50, 60))
    figures = figures_of(*arguments, "--dry-run")
    assert (figures["rows"], figures["migrated"], figures["orphans"]) == (56, 10, 3)
    assert "orphans     3 codes whose full vector is gone: --prune deletes them" in migrate(*arguments)
    assert len(documents.codes(codes_at.replace('em"b', 'em""b'))[0]) == 59
    assert "orphans     3 codes whose full vector is gone: deleted" in migrate(*arguments, "--prune")
    assert len(documents.codes(codes_at.replace('em"b', 'em""b'))[0]) == 56
    assert figures_of(*arguments)["orphans"] == 0


# Of tables, keys and vectors, as they are stored.
NAMES = ["plain", "Two Words", 'qu"ote', "100%", "%s", "semi;colon", "braces{0}", "naïve", "SELECT"]


@pytest.mark.component("pgvector")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["a column", "a table of its own"])
def test_pgvector_names(connect, postgres, head, name, place):
    from psycopg import sql

    connection, table = connect(), sql.Identifier("search", name)
    names = {"table": table, "id": sql.Identifier(name), "full": sql.Identifier(f"{name} full")}
    connection.execute(
        sql.SQL(f"CREATE TABLE {{table}} ({{id}} int PRIMARY KEY, {{full}} vector({WIDTH}))").format(**names)
    )
    with connection.cursor() as cursor, cursor.copy(sql.SQL("COPY {table} FROM STDIN").format(**names)) as copy:
        for row in enumerate(clustered(60)):
            copy.write_row(row)
    to = [] if place == "a column" else ["--to", f"search.{name} small.{name} code"]
    arguments = [postgres, "--table", f"search.{name}", "--head", head, *to]
    figures = figures_of(*arguments)
    assert (figures["migrated"], figures["missing"]) == (60, 0)
    assert figures_of(*arguments)["migrated"] == 0
    connection.execute(figures["index"].encode())
    [near] = ask(figures, clustered(1), connection=connection)
    assert near[0] == 0


KEYS = {
    "numeric": "1.50",
    "real": "0.1",
    "double precision": "0.1",
    "timestamp with time zone": "infinity",
    "date": "20000-01-01",
    "interval": "1 mon -3 days 04:05:06.7",
    "time with time zone": "24:00:00+02",
    "uuid": "7e57d004-2b97-0e7a-b45f-5387367791cd",
    "bytea": r"\x00ff",
    "character(5)": "ab",
    "text": " a 'quoted'\\\ttext ",
    "inet": "10.0.0.1/8",
    "int[]": "{1,2}",
    "boolean": "t",
    "jsonb": '{"a": [1]}',
    "search.mood": "so so",
    "search.pair": '(1,"x, y")',
}


@pytest.mark.component("pgvector")
@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("place", ["a column", "a table of its own"])
def test_pgvector_keys_come_back_equal(connect, postgres, head, kind, place):
    connection = connect()
    connection.execute("CREATE TYPE search.mood AS ENUM ('so so'); CREATE TYPE search.pair AS (a int, b text)")
    connection.execute(f"CREATE TABLE search.keys (id {kind} PRIMARY KEY, v vector({WIDTH}))")
    connection.execute("INSERT INTO search.keys VALUES (%s, %s)", [KEYS[kind], clustered(1)[0]])
    to = [] if place == "a column" else ["--to", "search.small.v"]
    figures = figures_of(postgres, "--table", "search.keys", "--head", head, *to)
    assert (figures["migrated"], figures["missing"]) == (1, 0)
    if to:
        assert connection.execute("SELECT count(*) FROM search.keys JOIN search.small USING (id)").fetchone() == (1,)


@pytest.mark.component("pgvector")
def test_pgvector_refuses_a_key_that_comes_back_as_another(connect, postgres, head):
    connection = connect()
    name = connection.execute("SELECT current_database()").fetchone()[0]
    connection.execute("CREATE TABLE search.keys (id double precision PRIMARY KEY, v vector(64))")
    connection.execute("INSERT INTO search.keys VALUES (0.1 + 0.2::float8, %s)", [clustered(1)[0]])
    connection.execute(f'ALTER DATABASE "{name}" SET extra_float_digits = -3')  # writes 0.3
    try:
        line = refused(postgres, "--table", "search.keys", "--head", head)
    finally:
        connection.execute(f'ALTER DATABASE "{name}" RESET extra_float_digits')
    assert "is another when it is read back: give another --id-column" in line


@pytest.mark.component("pgvector")
def test_pgvector_vectors_without_a_direction(connect, postgres, head):
    vectors = clustered(60)
    vectors[7] = 0
    documents = Documents(connect, vectors)
    documents.add(range(60))
    arguments = [postgres, "--table", documents.table, "--head", head]
    line = refused(*arguments)
    assert f"the vector of {documents.ids[7]} in {documents.full} is NaN, infinite or zero" in line
    assert "--on-bad-row zero" in line
    output = migrate(*arguments, "--on-bad-row", "zero")
    assert "1 are NaN, infinite or zero, and stored as zeros" in output
    _, codes = documents.codes(f'{documents.quoted}.em""bedding_reduced')
    assert [set(ast.literal_eval(code)) == {0} for code in codes] == [row == 7 for row in range(60)]


@pytest.mark.component("pgvector")
def test_pgvector_wrong_names(connect, postgres, head, tmp_path):
    documents = Documents(connect, clustered(60))
    documents.add(range(60))
    stored, table = documents.all(), ["--table", documents.table, "--head", head]
    documents.connection.execute("CREATE TABLE search.keyless (id bigint, embedding vector(64))")
    documents.connection.execute("CREATE TABLE search.empty (id bigint PRIMARY KEY, embedding vector)")
    save_head(clustered(200)[:, :32], 8, tmp_path / "narrow")
    Head.load(head).with_record(precision="int4").save(tmp_path / "int4")
    lines = {
        "there is no table documents: expected its name, or schema.name": ["--table", "documents", "--head", head],
        'has no column nothing of type vector or halfvec: give --column, it has em"bedding': [
            *table,
            "--column",
            "nothing",
        ],
        "is the column of the full vectors: name a new one": [*table, "--to", documents.column],
        "has no column title that is unique and not null": [*table, "--id-column", "title"],
        "has no primary key of one column": ["--table", "search.keyless", "--head", head],
        "search.empty.embedding holds no vectors": ["--table", "search.empty", "--head", head],
        "is text, expected halfvec(32)": [*table, "--to", "title"],
        "has 64 dimensions, the head in": ["--table", documents.table, "--head", tmp_path / "narrow"],
        "pgvector does not hold int4 codes: choose --precision from float32 (halfvec), binary (bit)": [
            *("--table", documents.table, "--head", tmp_path / "int4")
        ],
        "batch_size=0": [*table, "--batch-size", "0"],
    }
    for expected, arguments in lines.items():
        assert expected in refused(postgres, *arguments)
    documents.connection.execute("DROP TABLE search.keyless, search.empty")
    assert documents.all() == stored
    documents.connection.execute("CREATE ROLE reader LOGIN")
    documents.connection.execute("GRANT USAGE ON SCHEMA search TO reader")
    documents.connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA search TO reader")
    line = refused(
        postgres.replace("postgres:", "reader:s3cret", 1).replace("//reader:s3cret", "//reader:s3cret"), *table
    )
    documents.connection.execute("DROP OWNED BY reader; DROP ROLE reader")
    assert "must be owner of table" in line
    assert "s3cret" not in line
    assert documents.all() == stored


@pytest.mark.component("pgvector")
@pytest.mark.parametrize("password", ["s3cret", "s%zcret", "a@s3cret", "p%40ss", "s/3cret", "s?3cret", "s:3cret"])
def test_no_password_is_printed(password, head):
    done = run(
        "migrate", f"postgresql://user:{password}@127.0.0.1:1/db?sslpassword={password}", "--table", "t", "--head", head
    )
    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 1
    assert "postgresql://user@127.0.0.1:1/db: " in done.output
    assert not any(secret in done.output for secret in ("cret", "p%40ss", "p@ss"))


@pytest.mark.component("pgvector")
@pytest.mark.parametrize("password", ["s3cret", "a@b", "a/b#d", "a:b", "100%"])
def test_a_password_is_used_as_it_is_written(password, monkeypatch):
    import psycopg

    from st_dimreduce.integrations.migrate import Plan, migrate

    given = []

    def connect(address, **options):
        given.append((address, options["password"]))
        raise psycopg.OperationalError(f"no {options['password']}")

    monkeypatch.setattr(psycopg, "connect", connect)
    with pytest.raises(ValueError, match=r"^postgresql://user@host/db: no \.\.\.$"):
        migrate(f"postgresql://user:{password}@host/db?application_name=a@b", "head", Plan("documents"))
    assert given == [("postgresql://user@host/db?application_name=a@b", password)]


@pytest.mark.component("Qdrant")
@pytest.mark.parametrize(("name", "precision"), [(None, "float32"), ("text", "int8")])
def test_qdrant(head, tmp_path, name, precision):
    import qdrant_client as qdrant

    vectors = clustered(160)
    ids = [row if row % 2 else str(uuid.UUID(int=row)) for row in range(len(vectors))]
    payloads = [{"row": row} for row in range(len(vectors))]
    params = qdrant.models.VectorParams(size=WIDTH, distance=qdrant.models.Distance.COSINE)
    database = str(tmp_path / "qdrant")
    with closing(qdrant.QdrantClient(path=database)) as client:
        client.create_collection("documents", params if name is None else {name: params, "title": params})
        client.upload_collection("documents", vectors if name is None else {name: vectors}, payloads, ids)

    def points(collection):
        with closing(qdrant.QdrantClient(path=database)) as client:
            found = {point.id: point for point in client.retrieve(collection, ids, with_vectors=True)}
            assert [found[id_].payload for id_ in ids] == payloads
            assert client.count(collection).count == len(ids)
            vectors = [found[id_].vector for id_ in ids]
            return np.array([vector[name] if isinstance(vector, dict) else vector for vector in vectors])

    arguments = [database, "--collection", "documents", "--head", head, "--precision", precision, "--batch-size", 64]
    arguments += [] if name is None else ["--column", name]
    figures = figures_of(*arguments, "--dry-run")
    assert figures["migrated"] == 160
    with closing(qdrant.QdrantClient(path=database)) as client:
        assert [each.name for each in client.get_collections().collections] == ["documents"]

    killed = subprocess.run([sys.executable, "-c", DIES, "migrate", *map(str, arguments)], timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    with closing(qdrant.QdrantClient(path=database)) as client:
        there, _ = client.scroll("documents_reduced", limit=1000)
        assert len(there) == 2 * 64
        client.delete("documents_reduced", [there[7].id, there[100].id])  # as if a page had been half written
    figures = figures_of(*arguments)
    assert (figures["rows"], figures["migrated"]) == (160, 34)
    assert figures_of(*arguments)["migrated"] == 0
    assert figures["bytes_before"] == 160 * 4 * WIDTH
    assert figures["bytes_after"] == 160 * SIZE * (2 if precision == "float32" else 1)

    np.testing.assert_allclose(points("documents"), vectors, atol=1e-6)
    reduced = Head.load(head).transform(vectors)
    if precision == "float32":
        np.testing.assert_allclose(points("documents_reduced"), reduced, atol=1e-6)
    else:
        codes = Head.load(head).encode(vectors, "int8").values
        assert_same_codes(points("documents_reduced"), codes.astype(int) + 128)
    with closing(qdrant.QdrantClient(path=database)) as client:
        measured = overlap(ask(figures, vectors[:50], client=client), vectors, ids)
    assert measured > 0.8
    assert abs(figures["overlap"] - measured) < 0.1

    replace(Head.load(head), weight=Head.load(head).weight[::-1].copy()).save(tmp_path / "other")
    for expected, given in {
        "holds codes of another head": [*arguments, "--head", tmp_path / "other"],
        "there is no collection nothing: there are documents, documents_reduced": [
            *arguments,
            "--collection",
            "nothing",
        ],
        "is the collection of the full vectors: name a new one": [*arguments, "--to", "documents"],
        "documents has no vector nothing": [*arguments, "--column", "nothing"],
        "points of Qdrant have their ids": [*arguments, "--id-column", "id"],
        "qdrant does not hold binary codes: choose --precision from float32 (float16), int8 (uint8)": [
            *arguments,
            "--precision",
            "binary",
        ],
    }.items():
        assert expected in refused(*given)
    with closing(qdrant.QdrantClient(path=database)):
        assert "already accessed by another instance" in refused(*arguments)


@pytest.mark.component("Qdrant")
@pytest.mark.filterwarnings("ignore:.*insecure connection")
def test_a_server_of_qdrant(head, tmp_path, monkeypatch):
    import qdrant_client as qdrant

    from tests.helpers.loopback_qdrant import KEY, LoopbackQdrant

    vectors = clustered(300)
    params = qdrant.models.VectorParams(size=WIDTH, distance=qdrant.models.Distance.COSINE)
    with closing(LoopbackQdrant()) as server:
        server.client.create_collection("documents", params)
        server.client.upload_collection("documents", vectors, ids=range(300))
        arguments = [server.url, "--collection", "documents", "--head", head]
        monkeypatch.setenv("QDRANT_API_KEY", "another-s3cret")
        line = refused(*arguments)
        assert "401" in line
        assert "another" not in line
        monkeypatch.setenv("QDRANT_API_KEY", KEY)
        assert KEY not in migrate(*arguments, "--dry-run")
        assert not server.client.collection_exists("documents_reduced")
        figures = figures_of(*arguments)
        assert (figures["rows"], figures["migrated"]) == (300, 300)
        server.client.delete("documents_reduced", [5, 6])
        assert figures_of(*arguments)["migrated"] == 2
        stored = server.client.get_collection("documents_reduced").config.params.vectors
        assert (stored.size, stored.datatype) == (SIZE, qdrant.models.Datatype.FLOAT16)
        client = qdrant.QdrantClient(server.url, api_key=KEY)
        assert overlap(ask(figures, vectors[:50], client=client), vectors, list(range(300))) > 0.8
    assert "Connection refused" in refused(*arguments)


@pytest.mark.component("Qdrant")
def test_a_vector_without_a_name_beside_sparse_ones(head, tmp_path):
    """As LangChain's hybrid mode stores them: a point may also have the sparse vector only."""
    import qdrant_client as qdrant

    vectors, database, models = clustered(60), str(tmp_path / "qdrant"), qdrant.models
    dense = models.VectorParams(size=WIDTH, distance=models.Distance.COSINE)
    sparse = models.SparseVector(indices=[1, 5], values=[0.5, 0.2])
    with closing(qdrant.QdrantClient(path=database)) as client:
        client.create_collection("documents", dense, sparse_vectors_config={"words": models.SparseVectorParams()})
        points = [
            models.PointStruct(id=row, vector={"": vector.tolist(), "words": sparse})
            for row, vector in enumerate(vectors)
        ]
        client.upsert("documents", [*points, models.PointStruct(id=100, vector={"words": sparse})])
    figures = figures_of(database, "--collection", "documents", "--head", head)
    assert (figures["rows"], figures["migrated"], figures["missing"]) == (60, 60, 0)
    assert figures_of(database, "--collection", "documents", "--head", head)["migrated"] == 0
    with closing(qdrant.QdrantClient(path=database)) as client:
        assert client.count("documents_reduced").count == 60
        assert overlap(ask(figures, vectors[:20], client=client), vectors, list(range(60))) > 0.8


@pytest.mark.component("Qdrant")
def test_codes_whose_point_is_gone_are_counted_and_pruned(head, tmp_path):
    import qdrant_client as qdrant

    vectors, database = clustered(60), str(tmp_path / "qdrant")
    params = qdrant.models.VectorParams(size=WIDTH, distance=qdrant.models.Distance.COSINE)
    arguments = [database, "--collection", "documents", "--head", head]
    with closing(qdrant.QdrantClient(path=database)) as client:
        client.create_collection("documents", params)
        client.upload_collection("documents", vectors[:50], ids=range(50))
    assert figures_of(*arguments)["orphans"] == 0
    with closing(qdrant.QdrantClient(path=database)) as client:
        client.delete("documents", list(range(10)))
        client.upload_collection("documents", vectors[50:], ids=range(50, 60))
    figures = figures_of(*arguments, "--dry-run")  # as many rows as codes
    assert (figures["rows"], figures["migrated"], figures["orphans"]) == (50, 10, 10)
    assert "orphans     10 codes whose full vector is gone: --prune deletes them" in migrate(*arguments)
    assert "orphans     10 codes whose full vector is gone: deleted" in migrate(*arguments, "--prune")
    with closing(qdrant.QdrantClient(path=database)) as client:
        found, _ = client.scroll("documents_reduced", limit=100)
        assert [point.id for point in found] == list(range(10, 60))


@pytest.mark.component("Qdrant")
def test_an_interruption_says_how_to_go_on(tmp_path, head, monkeypatch):
    import qdrant_client as qdrant

    database, original, calls = str(tmp_path / "qdrant"), Head.transform, []
    params = qdrant.models.VectorParams(size=WIDTH, distance=qdrant.models.Distance.COSINE)
    with closing(qdrant.QdrantClient(path=database)) as client:
        client.create_collection("documents", params)
        client.upload_collection("documents", clustered(60), ids=range(60))

    def transform_two_batches(self, rows):
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, rows)

    monkeypatch.setattr(Head, "transform", transform_two_batches)
    done = run("migrate", database, "--collection", "documents", "--head", head, "--batch-size", "20")
    assert done.exit_code == 130
    assert "interrupted: what was reduced is in the database, call again as before to go on" in done.stderr
    with closing(qdrant.QdrantClient(path=database)) as client:
        assert client.count("documents_reduced").count == 40


def test_what_is_no_database(tmp_path, head):
    Path(tmp_path, "empty").mkdir()
    for source in (
        "mysql://user:s3cret@host/db",
        str(tmp_path / "none"),
        str(tmp_path / "empty"),
        "host=h password=s3cret",
    ):
        line = refused(source, "--table", "documents", "--head", head)
        assert "is not a database: expected postgresql://..., http://... (a Qdrant server)" in line
        assert "s3cret" not in line
    assert not Path(tmp_path, "none").exists()


@pytest.mark.parametrize("source", ["postgresql://host/db", "http://host:6333"])
def test_a_client_that_is_missing(source, head, monkeypatch):
    for name in ("psycopg", "qdrant_client"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("migrate_pgvector", "migrate_qdrant"):
        monkeypatch.delitem(sys.modules, f"st_dimreduce.integrations.{name}", raising=False)
    assert "pip install 'st_dimreduce[databases]'" in refused(source, "--table", "documents", "--head", head)


@pytest.mark.component("Qdrant")
@pytest.mark.parametrize("kept", ["full vectors", "reduced vectors only"])
def test_refit_qdrant(tmp_path, capsys, kept):
    import qdrant_client as qdrant

    vectors = clustered(200)
    ids = list(range(len(vectors)))
    database, old_folder, new_folder = (str(tmp_path / name) for name in ("qdrant", "old", "new"))
    save_head(vectors[:80], SIZE, old_folder)
    old = Head.load(old_folder)
    params = qdrant.models.VectorParams(size=WIDTH, distance=qdrant.models.Distance.COSINE)
    with closing(qdrant.QdrantClient(path=database)) as client:
        client.create_collection("documents", params)
        client.upload_collection("documents", vectors, [{"row": row} for row in ids], ids)
    assert run("migrate", database, "--collection", "documents", "--head", old_folder).exit_code == 0
    if kept != "full vectors":
        with closing(qdrant.QdrantClient(path=database)) as client:
            client.delete_collection("documents")

    script = EXAMPLES / "refit_qdrant.py"
    names, arguments = runpy.run_path(str(script)), [database, old_folder, new_folder]
    killed = subprocess.run([sys.executable, "-c", DIES, script, *arguments], timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    new = Head.load(new_folder)
    name = names["collection_of"](new)
    heads = {"documents_reduced": old, name: new}
    with closing(qdrant.QdrantClient(path=database)) as client:

        def search():
            found = [[id_ for id_, _ in names["nearest"](client, heads, vector)] for vector in vectors[:20]]
            return names["live"](client), overlap(found, vectors, ids)

        assert client.count(name).count == 2 * 64
        searches = [search(), *(search() for _ in names["refit"](client, old, new, "documents_reduced"))]
        assert [live for live, _ in searches] == ["documents_reduced"] * 3 + [name]  # 64 and 8 points were missing
        assert min(share for _, share in searches) > 0.7
        points = client.retrieve(name, ids, with_vectors=True)
        assert {point.id: point.payload for point in points} == {row: {"row": row} for row in ids}
        if kept == "full vectors":
            stored = np.array([point.vector for point in sorted(points, key=lambda point: point.id)])
            np.testing.assert_allclose(stored, new.transform(vectors), atol=1e-6)

    capsys.readouterr()
    names["main"](*arguments)
    assert [line.partition(" ")[0] for line in capsys.readouterr().out.splitlines()] == ["switched", "nearest:"]
    names["main"](*arguments, "drop")
    assert capsys.readouterr().out == "dropped documents_reduced\n"
    with closing(qdrant.QdrantClient(path=database)) as client:
        assert search_only(client, names, new, vectors[0])[0] == 0


def search_only(client, names, head, vector):
    """The ids that a program finds that knows the new head only."""
    return [id_ for id_, _ in names["nearest"](client, {names["collection_of"](head): head}, vector)]
