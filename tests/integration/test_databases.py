"""The database examples with the real databases: PostgreSQL with pgvector, Qdrant, DuckDB."""

from __future__ import annotations

import ast
import runpy
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from st_dimreduce import Summary, fit_head, load_head, quantize, save_head

EXAMPLES = Path("examples", "databases").absolute()
WIDTH, SIZE = 64, 32
COUNT, HALVES = "SELECT count(*) FROM {}", "SELECT id, reduced FROM {} ORDER BY id"

# Runs a script, which ends as by `kill -9` when it is about to reduce its third batch with the head that it saved.
DIES = """
import os, runpy, signal, sys
from st_dimreduce import Head

reduce, save, calls, saved = Head.reduce_stored, Head.save, [], []

def reduce_two_batches(self, rows, *options, **named):
    calls.extend(saved)  # a fit reduces too
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return reduce(self, rows, *options, **named)

def save_and_count(self, *options, **named):
    save(self, *options, **named)
    saved.append(True)

Head.reduce_stored, Head.save = reduce_two_batches, save_and_count
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def clustered(rows):
    """Unit vectors around fifty centres, in which few directions matter much: like embeddings of texts."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((50, WIDTH))[rng.integers(50, size=rows)] + rng.standard_normal((rows, WIDTH))
    vectors *= np.arange(1, WIDTH + 1) ** -0.7
    vectors @= np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class Example:
    """An example with its arguments, as a command of its own or called from here."""

    def __init__(self, script, database, tmp_path):
        self.script, self.database, self.other_head = EXAMPLES / script, str(database), str(tmp_path / "other")
        self.arguments = [self.database, str(tmp_path / "head"), str(SIZE)]
        self.names = runpy.run_path(str(self.script))

    def command(self, *interpreter):
        return [sys.executable, *interpreter, self.script, *self.arguments]

    def die_in_the_third_batch(self):
        killed = subprocess.run(self.command("-c", DIES), timeout=120, check=False)
        assert killed.returncode == -signal.SIGKILL

    def run(self, capsys):
        """Return the lines of progress, and the ids printed last: the neighbours of the first document."""
        capsys.readouterr()
        self.names["main"](*self.arguments)
        *progress, nearest = capsys.readouterr().out.splitlines()
        return progress, [id_ for id_, _ in ast.literal_eval(nearest.removeprefix("nearest: "))]

    def refuses_another_head(self):
        with pytest.raises(SystemExit, match="another head"):
            self.names["main"](self.database, self.other_head)
        assert not Path(self.other_head).exists()


def assert_same_codes(codes, expected):
    """A matrix product may round otherwise in batches of another size: one code in ten thousand may differ."""
    assert codes.shape == expected.shape
    assert np.mean(codes != expected) < 1e-4


def overlap(found, vectors, ids):
    """Share of the ten nearest to the first vectors, by exact search of all full vectors, that were found."""
    exact = np.argsort(-vectors[: len(found)] @ vectors.T, axis=1)[:, :10]
    return np.mean([len({ids[row] for row in rows} & set(near)) / 10 for rows, near in zip(exact, found, strict=True)])


@pytest.mark.component("pgvector")
def test_pgvector(postgres, tmp_path, capsys):
    import pgvector.psycopg
    import psycopg

    vectors = clustered(2500)
    ids = [3 * row - 99 for row in range(len(vectors))]
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(f"CREATE TABLE documents (id bigint PRIMARY KEY, embedding vector({WIDTH}))")
        connection.execute("INSERT INTO documents VALUES (100, NULL)")  # not encoded yet
        pgvector.psycopg.register_vector(connection)
        example = Example("shrink_pgvector.py", postgres, tmp_path)

        def add(rows):
            with connection.cursor() as cursor, cursor.copy("COPY documents FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(["int8", "vector"])
                for row in rows:
                    copy.write_row([ids[row], vectors[row]])

        add(np.random.default_rng(0).permutation(2400))
        with psycopg.connect(postgres) as other:
            # What refers to this row waits: the run is killed in the middle of its second transaction.
            other.execute("SELECT FROM documents WHERE id = %s FOR UPDATE", [ids[1500]])
            process, deadline = subprocess.Popen(example.command()), time.monotonic() + 120
            waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            while not connection.execute(waiting).rowcount and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            process.kill()
            assert process.wait() == -signal.SIGKILL
        count, last = connection.execute("SELECT count(*), max(id) FROM documents_reduced").fetchone()
        assert (count, last) == (1000, ids[999])

        add(range(2400, 2500))
        progress, nearest_to_first = example.run(capsys)
        assert progress == [f"reduced up to id {ids[1999]}", f"reduced up to id {ids[2499]}"]

        rows = connection.execute("SELECT id, reduced, bits::text FROM documents_reduced ORDER BY id").fetchall()
        found_ids, halves, bits = zip(*rows, strict=True)
        assert list(found_ids) == ids
        reduced = load_head(tmp_path / "head").reduce_stored(vectors)
        halves = np.stack([half.to_numpy() for half in halves])
        np.testing.assert_allclose(halves, quantize(reduced[:, :SIZE], "float32"), atol=1e-3)
        packed = np.array([list(int(row, 2).to_bytes(2 * SIZE // 8, "big")) for row in bits])
        assert_same_codes(packed, quantize(reduced, "binary"))
        kept = connection.execute("SELECT embedding FROM documents WHERE id <> 100 ORDER BY id").fetchall()
        np.testing.assert_array_equal(np.stack([vector.to_numpy() for (vector,) in kept]), vectors)

        found = [example.names["nearest"](connection, query, SIZE) for query in reduced[:50]]
        found = [[id_ for id_, _ in near] for near in found]
        assert set(nearest_to_first) == set(found[0])
        assert overlap(found, vectors, ids) > 0.7
    example.refuses_another_head()


@pytest.mark.component("Qdrant")
def test_qdrant(tmp_path, capsys):
    import qdrant_client as qdrant

    vectors = clustered(160)
    ids = [row if row % 2 else str(uuid.UUID(int=row)) for row in range(len(vectors))]
    payloads = [{"row": row} for row in range(len(vectors))]
    params = qdrant.models.VectorParams(size=WIDTH, distance=qdrant.models.Distance.COSINE)
    example = Example("shrink_qdrant.py", tmp_path / "qdrant", tmp_path)

    def points(client, collection):
        found = {point.id: point for point in client.retrieve(collection, ids, with_vectors=True)}
        assert [found[id_].payload for id_ in ids] == payloads
        assert client.count(collection).count == len(ids)
        return np.array([found[id_].vector for id_ in ids])

    with closing(qdrant.QdrantClient(path=example.database)) as client:
        client.create_collection("documents", params)
        client.upload_collection("documents", vectors, payloads, ids)

    example.die_in_the_third_batch()
    with closing(qdrant.QdrantClient(path=example.database)) as client:
        there, _ = client.scroll("documents_reduced", limit=1000)
        assert len(there) == 2 * 64
        client.delete("documents_reduced", [there[7].id, there[100].id])  # as if a page had been half written

    progress, nearest_to_first = example.run(capsys)
    assert [line.split()[1] for line in progress] == ["1", "1", "32"]
    with closing(qdrant.QdrantClient(path=example.database)) as client:
        np.testing.assert_allclose(points(client, "documents"), vectors, atol=1e-6)
        reduced = load_head(tmp_path / "head").reduce_stored(vectors)
        np.testing.assert_allclose(points(client, "documents_reduced"), quantize(reduced, "float32"), atol=1e-6)
        found = [client.query_points("documents_reduced", query.tolist()).points for query in reduced[:50]]
        found = [[point.id for point in near] for near in found]
        assert set(nearest_to_first) == set(found[ids.index(there[0].id)])
        assert overlap(found, vectors, ids) > 0.8
    example.refuses_another_head()


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

    tables = "DROP TABLE IF EXISTS documents, documents_reduced, documents_live CASCADE"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(tables)
    with ExitStack() as stack:

        def connect():
            connection = stack.enter_context(psycopg.connect(postgres, autocommit=True))
            pgvector.psycopg.register_vector(connection)
            return connection

        yield connect
        connect().execute(tables)


class Documents:
    """A table of documents, which grows, and the old and the new head of its codes."""

    def __init__(self, connect, vectors):
        self.connection, self.searching, self.vectors = connect(), connect(), vectors
        self.ids = [3 * row - 99 for row in range(len(vectors))]
        self.connection.execute(f"CREATE TABLE documents (id bigint PRIMARY KEY, embedding vector({WIDTH}))")

    def add(self, first, last):
        rows = list(zip(self.ids[first:last], self.vectors[first:last], strict=True))
        with self.connection.cursor() as cursor:
            cursor.executemany("INSERT INTO documents VALUES (%s, %s)", rows)

    def search(self, names, heads, count):
        """The table that is searched, and the overlap of five searches with exact ones among the first documents."""
        found = [[id_ for id_, _ in names["nearest"](self.searching, heads, vector)] for vector in self.vectors[:5]]
        return names["live"](self.searching)[0], overlap(found, self.vectors[:count], self.ids[:count])


@pytest.mark.component("pgvector")
def test_refit_pgvector(connect, postgres, tmp_path, capsys):
    script, old_folder, new_folder = EXAMPLES / "refit_pgvector.py", tmp_path / "old", tmp_path / "new"
    names, shrink = runpy.run_path(str(script)), runpy.run_path(str(EXAMPLES / "shrink_pgvector.py"))["main"]
    documents = Documents(connect, clustered(2500))
    connection, ids = documents.connection, documents.ids
    documents.add(0, 600)  # the old head knows a quarter of what will come
    shrink(postgres, str(old_folder), str(SIZE))
    documents.add(600, 2400)
    shrink(postgres, str(old_folder))

    arguments = [postgres, str(old_folder), str(new_folder)]
    killed = subprocess.run([sys.executable, "-c", DIES, script, *arguments], timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL
    old, new = load_head(old_folder), load_head(new_folder)
    heads, table = {old.digest: old, new.digest: new}, names["table_of"](new)
    assert connection.execute(COUNT.format(table)).fetchone() == (2000,)
    with pytest.raises(SystemExit, match="not live yet"):
        names["drop"](connection, old, new)

    lines = []
    with Searching(lambda: documents.search(names, heads, 2400)) as searching:
        for line in names["refit"](connection, old, new):
            lines.append(line)
            if len(lines) == 1:
                documents.add(2400, 2450)  # come while the codes are being replaced
        switched, deadline = len(searching.overlaps), time.monotonic() + 60
        while len(searching.overlaps) < switched + 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    counts = f"reduced 400 documents up to id {ids[2399]}", f"reduced 50 documents up to id {ids[2449]}"
    assert lines == [*counts, f"switched to {table}"]
    assert searching.failures == []
    assert {name for name, _ in searching.overlaps} == {"documents_reduced", table}
    assert min(share for _, share in searching.overlaps) > 0.5  # codes of one head and queries of the other: near 0

    documents.add(2450, 2500)
    capsys.readouterr()
    names["main"](*arguments)  # the same command adds what has come
    assert capsys.readouterr().out.startswith(f"reduced 50 documents up to id {ids[2499]}\n")
    found_ids, halves = zip(*connection.execute(HALVES.format(table)).fetchall(), strict=True)
    assert list(found_ids) == ids
    expected = quantize(new.reduce_stored(documents.vectors)[:, :SIZE], "float32")
    np.testing.assert_allclose(np.stack([half.to_numpy() for half in halves]), expected, atol=1e-3)

    names["main"](*arguments, "drop")
    assert capsys.readouterr().out == "dropped documents_reduced\n"
    assert connection.execute("SELECT to_regclass('documents_reduced')").fetchone() == (None,)
    assert documents.search(names, heads, 2500)[0] == table
    with pytest.raises(SystemExit, match="another head"):
        list(names["refit"](connection, old, load_head_like(new)))
    connection.execute(f"DROP TABLE {table}")


def load_head_like(head):
    """Another head of the same sizes."""
    return replace(head, weight=head.weight[::-1].copy())


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
    runpy.run_path(str(EXAMPLES / "shrink_qdrant.py"))["main"](database, old_folder)
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


@pytest.mark.component("DuckDB")
def test_duckdb(tmp_path, capsys):
    import duckdb
    import pyarrow as pa

    vectors = clustered(40_000)
    ids = np.random.default_rng(1).permutation(len(vectors)) - 99
    table = pa.table({"id": ids, "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), WIDTH)})
    example = Example("shrink_duckdb.py", tmp_path / "documents.duckdb", tmp_path)
    with duckdb.connect(example.database) as connection:
        connection.execute(f"CREATE TABLE documents (id BIGINT PRIMARY KEY, embedding FLOAT[{WIDTH}])")
        connection.from_arrow(table).insert_into("documents")
        connection.execute("INSERT INTO documents VALUES (-100, NULL)")  # not encoded yet

    example.die_in_the_third_batch()
    with duckdb.connect(example.database) as connection:
        assert len(connection.table("documents_reduced")) == 2 * 16384
    progress, nearest_to_first = example.run(capsys)
    assert progress == [f"reduced {40_000 - 2 * 16384} documents"]

    with duckdb.connect(example.database) as connection:
        codes = dict(connection.execute("FROM documents_reduced").fetchall())
        assert codes.keys() == set(ids.tolist())
        reduced = load_head(tmp_path / "head").reduce_stored(vectors)
        packed = np.frombuffer(b"".join(codes[id_] for id_ in ids.tolist()), np.uint8).reshape(len(ids), -1)
        assert_same_codes(packed, quantize(reduced, "int4"))
        kept = connection.sql("FROM documents WHERE embedding IS NOT NULL ORDER BY id").to_arrow_table()
        assert kept.cast(table.schema).equals(table.sort_by("id"))
        found = [example.names["nearest"](connection, query) for query in reduced[:20]]
        found = [[id_ for id_, _ in near] for near in found]
        assert set(nearest_to_first) == set(found[0])
        assert overlap(found, vectors, ids.tolist()) > 0.65
    example.refuses_another_head()
