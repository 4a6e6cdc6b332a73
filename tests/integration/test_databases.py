"""``st-dimreduce migrate`` with the real databases: PostgreSQL with pgvector, Qdrant, DuckDB."""

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

from st_dimreduce import Head, Summary, fit_head, load_head, quantize, save_head
from st_dimreduce.codes.fingerprint import shown
from tests.helpers.command import run

pytestmark = pytest.mark.wings("integrations", "examples/databases")

EXAMPLES = Path("examples", "databases").absolute()
WIDTH, SIZE = 64, 32

# Runs a script or a command, which ends as by `kill -9` when it is about to reduce its third batch with the head that
# it loaded or saved.
DIES = """
import os, runpy, signal, sys
from st_dimreduce import Head

reduce, save, calls, saved = Head.reduce_stored, Head.save, [], [True][: sys.argv[1] == "migrate"]

def reduce_two_batches(self, rows, *options, **named):
    calls.extend(saved)  # a fit reduces too
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return reduce(self, rows, *options, **named)

def save_and_count(self, *options, **named):
    save(self, *options, **named)
    saved.append(True)

Head.reduce_stored, Head.save = reduce_two_batches, save_and_count
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


@pytest.fixture
def head(tmp_path):
    """A head's folder."""
    save_head(fit_head(Summary.of(clustered(2500)), SIZE, objective="fidelity", train=False), tmp_path / "head")
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
    assert (figures["rows"], figures["migrated"], figures["full_type"]) == (2500, 1500, f"vector({WIDTH})")
    assert figures["bytes_before"] == 2500 * (4 * WIDTH + 8)
    assert figures["bytes_after"] == 2500 * (2 * SIZE + 5 if precision == "float32" else SIZE // 8 + 5)
    found_ids, codes = documents.codes(codes_at)
    assert set(found_ids) == set(ids)
    reduced = load_head(head).reduce_stored(vectors[[ids.index(id_) for id_ in found_ids]])
    if precision == "float32":
        floats = np.array([ast.literal_eval(code) for code in codes])
        np.testing.assert_allclose(floats, quantize(reduced, "float32"), atol=1e-3)
    else:
        assert_same_codes(np.array([[int(bit) for bit in code] for code in codes]), (reduced > 0).astype(int))
    kept = connection.execute(f'SELECT "The Id", "em""bedding" FROM {documents.quoted} WHERE "em""bedding" IS NOT NULL')
    kept = dict(kept.fetchall())
    np.testing.assert_array_equal(np.stack([kept[id_].to_numpy() for id_ in ids]), vectors)

    stored, output = documents.all(), migrate(*arguments)
    assert "0 of 2,500 vectors, 500 at a time" in output
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
        assert "could not be added within 5 s, another transaction uses the table" in refused(*arguments)
    assert documents.all() == stored
    assert migrate(*arguments)


@pytest.mark.component("pgvector")
def test_pgvector_while_searches_and_additions_go_on(connect, postgres, head, tmp_path):
    vectors = clustered(2500)
    documents, ids = Documents(connect, vectors), [3 * row - 99 for row in range(2500)]
    documents.add(range(100, 2400))
    first = figures_of(postgres, "--table", documents.table, "--head", head)
    new = fit_head(Summary.of(vectors), 16, objective="fidelity", train=False)
    save_head(new, tmp_path / "new")

    searching, original = connect(), Head.reduce_stored
    reductions = []

    def reduce_and_add(self, rows, *options, **named):
        if self.out_features == 16 and len(rows) > 1:
            reductions.append(len(rows))
            if len(reductions) == 2:
                documents.add(range(100))  # below what is done
                documents.add(range(2400, 2500))
        return original(self, rows, *options, **named)

    def search():
        return overlap(ask(first, vectors[100:105], connection=searching), vectors, ids)

    with pytest.MonkeyPatch.context() as patch, Searching(search) as searches:
        patch.setattr(Head, "reduce_stored", reduce_and_add)
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
    assert "--bytes to fit one" in refused(*arguments)
    output = migrate(*arguments, "--bytes", 16, "--dry-run")
    assert "Not saved" in output
    assert not fitted.exists()
    assert documents.all() == stored
    figures = figures_of(*arguments, "--bytes", 16)
    chosen = load_head(fitted)
    assert chosen.record.choice["store"] == "pgvector"
    assert (figures["precision"], figures["head"]) == (chosen.precision.value, shown(chosen.fingerprint))
    documents.add(range(1000, 1200))
    documents.connection.execute(f'CREATE INDEX near ON {documents.quoted} USING hnsw ("em""bedding" vector_l2_ops)')
    output = migrate(*arguments, "--bytes", 16)
    assert "200 of 1,200 vectors" in output
    assert (
        f"Note: search.near is updated with every row, which takes many times as long: --to {documents.table}_"
        in output
    )
    assert "is there already: no other is fitted for 16 bytes" in output
    assert "Note:" not in migrate(*arguments, "--bytes", 16, "--to", "search.own.code", "--dry-run")

    # Of the same type, but of another head.
    other = replace(chosen, weight=chosen.weight[::-1].copy())
    save_head(other, tmp_path / "other")
    line = refused(postgres, "--table", documents.table, "--head", tmp_path / "other")
    assert "holds codes of another head" in line
    line = refused(postgres, "--table", documents.table, "--head", tmp_path / "third", "--bytes", 16)
    assert "holds codes, and there is no" in line
    if chosen.out_features != SIZE or chosen.precision != "float32":
        line = refused(postgres, "--table", documents.table, "--head", head)
        assert f"expected halfvec({SIZE}): name another place with --to" in line


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
    save_head(fit_head(Summary.of(clustered(200)[:, :32]), 8, train=False), tmp_path / "narrow")
    save_head(load_head(head).with_record(precision="int4"), tmp_path / "int4")
    lines = {
        "there is no table documents: expected its name, or schema.name": ["--table", "documents", "--head", head],
        'has no column nothing of type vector or halfvec: it has em"bedding': [*table, "--column", "nothing"],
        "is the column of the full vectors: name a new one": [*table, "--to", documents.column],
        "has no column title that is unique and not null": [*table, "--id-column", "title"],
        "has no primary key of one column": ["--table", "search.keyless", "--head", head],
        "search.empty.embedding holds no vectors": ["--table", "search.empty", "--head", head],
        "is text, expected halfvec(32)": [*table, "--to", "title"],
        "has 64 dimensions, the head in": ["--table", documents.table, "--head", tmp_path / "narrow"],
        "pgvector does not hold int4, which was fitted: choose --precision from float32 (halfvec), binary (bit)": [
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
@pytest.mark.parametrize("password", ["s3cret", "s%zcret", "a@s3cret", "p%40ss"])
def test_no_password_is_printed(password, head):
    done = run(
        "migrate", f"postgresql://user:{password}@127.0.0.1:1/db?sslpassword={password}", "--table", "t", "--head", head
    )
    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 1
    assert "postgresql://user@127.0.0.1:1/db: " in done.output
    assert ("write it as %40" in done.output) == (password in ("a@s3cret", "s%zcret"))
    assert not any(secret in done.output for secret in ("cret", "p%40ss", "p@ss"))


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
    reduced = load_head(head).reduce_stored(vectors)
    if precision == "float32":
        np.testing.assert_allclose(points("documents_reduced"), quantize(reduced, "float32"), atol=1e-6)
    else:
        assert_same_codes(points("documents_reduced"), quantize(reduced, "int8").astype(int) + 128)
    with closing(qdrant.QdrantClient(path=database)) as client:
        measured = overlap(ask(figures, vectors[:50], client=client), vectors, ids)
    assert measured > 0.8
    assert abs(figures["overlap"] - measured) < 0.1

    other = replace(load_head(head), weight=load_head(head).weight[::-1].copy())
    save_head(other, tmp_path / "other")
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
        "qdrant does not hold binary, which was asked for": [*arguments, "--precision", "binary"],
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


@pytest.mark.component("DuckDB")
@pytest.mark.parametrize("precision", ["float32", "binary", "int8", "int4"])
def test_duckdb(head, tmp_path, precision):
    import duckdb
    import pyarrow as pa

    vectors = clustered(40_000 if precision == "int4" else 1_500)
    ids = np.random.default_rng(1).permutation(len(vectors)) - 99
    ids = ids.tolist() if precision == "int4" else [f"id {id_}" for id_ in ids.tolist()]
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), WIDTH)
    table = pa.table({"The Id": ids, 'em"bedding': column})
    key, kind = ("BIGINT", f"FLOAT[{WIDTH}]") if precision == "int4" else ("VARCHAR", "FLOAT[]")
    database = str(tmp_path / "documents.duckdb")
    with duckdb.connect(database) as connection:
        connection.execute(f'CREATE TABLE "My documents" ("The Id" {key} PRIMARY KEY, "em""bedding" {kind})')
        connection.from_arrow(table).insert_into('"My documents"')
        connection.execute('INSERT INTO "My documents" VALUES (-100, NULL)')  # not encoded yet

    size = 16384 if precision == "int4" else 512
    arguments = [database, "--table", "My documents", "--head", head, "--precision", precision, "--to", "small"]
    arguments += [] if precision == "int4" else ["--batch-size", size]
    before = Path(database).read_bytes()
    figures = figures_of(*arguments, "--dry-run")
    assert figures["migrated"] == len(vectors)
    assert Path(database).read_bytes() == before

    killed = subprocess.run([sys.executable, "-c", DIES, "migrate", *map(str, arguments)], timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    with duckdb.connect(database) as connection:
        assert len(connection.table("small")) == 2 * size
    figures = figures_of(*arguments)
    assert (figures["rows"], figures["migrated"]) == (len(vectors), len(vectors) - 2 * size)
    bits = {"float32": 32, "int8": 8, "int4": 4, "binary": 1}[precision]
    assert figures["bytes_after"] == len(vectors) * SIZE * bits // 8
    assert figures["bytes_before"] == len(vectors) * 4 * WIDTH
    assert figures_of(*arguments)["migrated"] == 0

    with duckdb.connect(database) as connection:
        text = "::VARCHAR" if precision == "binary" else ""
        codes = dict(connection.execute(f'SELECT "The Id", "em""bedding"{text} FROM small').fetchall())
        assert codes.keys() == set(ids)
        expected = quantize(load_head(head).reduce_stored(vectors), precision)
        ordered = [codes[id_] for id_ in ids]
        if precision == "float32":
            np.testing.assert_allclose(np.array(ordered), expected, atol=1e-6)
        elif precision == "binary":
            assert_same_codes(np.array([list(map(int, code)) for code in ordered]), np.unpackbits(expected, axis=1))
        else:
            packed = np.frombuffer(b"".join(ordered), expected.dtype).reshape(len(ids), -1)
            assert_same_codes(packed, expected)
        kept = dict(connection.execute('FROM "My documents" WHERE "em""bedding" IS NOT NULL').fetchall())
        np.testing.assert_array_equal(np.array([kept[id_] for id_ in ids], np.float32), vectors)
        measured = overlap(ask(figures, vectors[:20], connection=connection), vectors, ids)
        assert measured > (0.3 if precision == "binary" else 0.65)

    other = replace(load_head(head), weight=load_head(head).weight[::-1].copy())
    save_head(other, tmp_path / "other")
    for expected, given in {
        "small holds codes of another head": [*arguments, "--head", tmp_path / "other"],
        "there is no table nothing: expected its name": [*arguments, "--table", "nothing"],
        "is the table of the full vectors: name a new one": [*arguments, "--to", "My documents"],
        'has no column nothing of floats: it has em"bedding': [*arguments, "--column", "nothing"],
        "has no column nothing: it has": [*arguments, "--id-column", "nothing"],
        "name another place with --to": [*arguments, "--precision", "int2" if bits > 8 or bits == 1 else "float32"],
    }.items():
        assert expected in refused(*given)


@pytest.mark.component("DuckDB")
def test_duckdb_fits_a_head(tmp_path):
    import duckdb

    database = str(tmp_path / "documents.duckdb")
    with duckdb.connect(database) as connection:
        connection.execute(f"CREATE TABLE documents (id BIGINT PRIMARY KEY, embedding DOUBLE[{WIDTH}])")
        rows = [(row, vector) for row, vector in enumerate(clustered(300).tolist())]
        connection.executemany("INSERT INTO documents VALUES (?, ?)", rows)
    for precision in (None, "int4"):
        given = [] if precision is None else ["--precision", precision]
        folder = tmp_path / f"head-{precision}"
        migrate(database, "--table", "documents", "--head", folder, "--bytes", 8, "--to", f"to_{precision}", *given)
        assert load_head(folder).precision in (["int4"] if precision else ["binary", "float32"])


@pytest.mark.component("DuckDB")
def test_an_interruption_says_what_is_kept(tmp_path, head, monkeypatch):
    import duckdb

    database, original, calls = str(tmp_path / "documents.duckdb"), Head.reduce_stored, []
    with duckdb.connect(database) as connection:
        connection.execute(f"CREATE TABLE documents (id BIGINT PRIMARY KEY, embedding FLOAT[{WIDTH}])")
        connection.executemany("INSERT INTO documents VALUES (?, ?)", list(enumerate(clustered(300).tolist())))

    def reduce_two_batches(self, rows, *options, **named):
        calls.append(len(rows))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, rows, *options, **named)

    monkeypatch.setattr(Head, "reduce_stored", reduce_two_batches)
    done = run("migrate", database, "--table", "documents", "--head", head, "--batch-size", "100")
    assert done.exit_code == 130
    assert "interrupted: 200 reduced vectors are in the database, call again as before to go on" in done.stderr
    with duckdb.connect(database) as connection:
        assert len(connection.table("documents_reduced")) == 200


def test_what_is_no_database(tmp_path, head):
    Path(tmp_path, "empty").mkdir()
    for source in (
        "mysql://user:s3cret@host/db",
        str(tmp_path / "none.duckdb"),
        str(tmp_path / "empty"),
        "host=h password=s3cret",
    ):
        line = refused(source, "--table", "documents", "--head", head)
        assert "is no database: expected postgresql://..., http://... (a Qdrant server)" in line
        assert "s3cret" not in line
    assert not Path(tmp_path, "none.duckdb").exists()


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
    save_head(fit_head(Summary.of(vectors[:80]), SIZE, objective="fidelity", train=False), old_folder)
    old = load_head(old_folder)
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
    new = load_head(new_folder)
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
            np.testing.assert_allclose(stored, quantize(new.reduce_stored(vectors), "float32"), atol=1e-6)

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
