"""Replace the head of vectors in PostgreSQL (pgvector) while searches go on: a table beside the old, then a switch.

python examples/databases/refit_pgvector.py CONNECTION OLD_HEAD NEW_HEAD [drop]

Goes on where shrink_pgvector.py ended: the table documents (id, embedding) holds the vectors, documents_reduced what
OLD_HEAD made of them. NEW_HEAD is the folder of the new head; if there is none, it is fitted on the table and saved
there. Its codes go into a table of their own, named after the head; when none is missing, documents_live is set to it,
in one transaction. The same command, called again, continues after an interruption, and adds documents that have come.
When no program searches with OLD_HEAD any more, ``drop`` removes its table.

Programs search with ``nearest`` below: it reads which table is live, and reduces the query with the head of that table.
Until the old table is dropped, both give answers.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import psycopg
from pgvector import Bit, HalfVector
from pgvector.psycopg import register_vector

from st_dimreduce import Head, Size, fit_head, load_head, quantize, save_head, summarize

BATCH, LOWEST = 1000, -(2**63)  # rows per transaction, and the lowest bigint
VECTORS = "SELECT id, embedding FROM documents WHERE id > %s AND embedding IS NOT NULL ORDER BY id LIMIT %s"
MISSING = """
    SELECT id, embedding FROM documents WHERE id > %s AND embedding IS NOT NULL
    AND NOT EXISTS (SELECT FROM {} AS there WHERE there.id = documents.id) ORDER BY id LIMIT %s"""
LIVE = """
    CREATE TABLE IF NOT EXISTS documents_live (one bool PRIMARY KEY DEFAULT true CHECK (one), codes text NOT NULL,
    head text NOT NULL)"""
FIRST = "INSERT INTO documents_live (codes, head) VALUES ('documents_reduced', %s) ON CONFLICT DO NOTHING"
TABLE = """
    CREATE TABLE IF NOT EXISTS {} (id bigint PRIMARY KEY REFERENCES documents ON DELETE CASCADE,
    reduced halfvec({}) NOT NULL, bits bit({}) NOT NULL)"""
NEAREST = """
    WITH near AS MATERIALIZED (SELECT id, reduced FROM {} ORDER BY bits <~> %(bits)s LIMIT 200)
    SELECT id, 1 - (reduced <=> %(half)s) FROM near ORDER BY reduced <=> %(half)s LIMIT 10"""


def table_of(head: Head) -> str:
    """Return the name of the table of a head's codes."""
    return f"documents_reduced_{head.digest[:12]}"


def sizes(head: Head) -> tuple[int, int]:
    """Return the dimensions that are stored as halfvec, and those that are stored as bits."""
    return (head.record.nested or (head.out_features,))[0], head.out_features


def live(connection: psycopg.Connection) -> tuple[str, str]:
    """Return the name of the table that is searched, and the digest of its head."""
    return connection.execute("SELECT codes, head FROM documents_live").fetchone()


def nearest(connection: psycopg.Connection, heads: Mapping[str, Head], vector: np.ndarray) -> list[tuple[int, float]]:
    """Find documents by a full vector, with the head of the table that is live, and return ids and cosines.

    Args:
        connection: With ``register_vector``, in autocommit mode.
        heads: Heads by their digest: the old and the new one while they change.
        vector: A vector of the base model, float array of shape (d,).
    """
    with connection.transaction():
        connection.execute("SET LOCAL hnsw.ef_search = 200")  # by default the index finds 40
        table, digest = live(connection)
        [query] = heads[digest].reduce_stored(vector[None])
        given = {"bits": Bit(query > 0), "half": HalfVector(query[: sizes(heads[digest])[0]])}
        return connection.execute(NEAREST.format(table), given).fetchall()


def stored(connection: psycopg.Connection, page: str) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield ids and vectors, a page at a time, so that no transaction stays open."""
    last = LOWEST
    while rows := connection.execute(page, [last, BATCH], binary=True).fetchall():
        yield [id_ for id_, _ in rows], np.stack([vector.to_numpy() for _, vector in rows])
        last = rows[-1][0]


def fill(connection: psycopg.Connection, head: Head) -> Iterator[str]:
    """Add the codes that are missing from a head's table, a transaction a page; yields lines of progress."""
    table, first = table_of(head), sizes(head)[0]
    for ids, vectors in stored(connection, MISSING.format(table)):
        reduced = head.reduce_stored(vectors)
        halves = quantize(reduced[:, :first], "float32")
        copying = f"COPY {table} FROM STDIN WITH (FORMAT BINARY)"
        with connection.transaction(), connection.cursor() as cursor, cursor.copy(copying) as copy:
            copy.set_types(["int8", "halfvec", "bit"])
            for id_, half, bits in zip(ids, halves, reduced > 0, strict=True):
                copy.write_row([id_, HalfVector(half), Bit(bits)])
        yield f"reduced {len(ids)} documents up to id {ids[-1]}"


def refit(connection: psycopg.Connection, old: Head, new: Head) -> Iterator[str]:
    """Fill the new head's table and switch to it; yields lines of progress. Searches go on all the while."""
    connection.execute(LIVE)
    connection.execute(FIRST, [old.digest])
    if live(connection)[1] not in (old.digest, new.digest):
        sys.exit(f"documents_live names another head than {old.digest[:12]}: give the head that is live as the old one")
    table = table_of(new)
    connection.execute(TABLE.format(table, *sizes(new)))
    yield from fill(connection, new)
    connection.execute(f"CREATE INDEX IF NOT EXISTS {table}_bits ON {table} USING hnsw (bits bit_hamming_ops)")
    with connection.transaction():
        connection.execute("LOCK TABLE documents IN SHARE MODE")  # writers wait, searches do not
        yield from fill(connection, new)  # what came while the index was made
        connection.execute("UPDATE documents_live SET codes = %s, head = %s", [table, new.digest])
    yield f"switched to {table}"


def drop(connection: psycopg.Connection, old: Head, new: Head) -> str:
    """Drop the table of the old head, once the new one is live and no program searches with the old one."""
    if live(connection)[1] != new.digest:
        sys.exit("the new head is not live yet: run the command without drop before")
    name = table_of(old)
    if connection.execute("SELECT to_regclass(%s)", [name]).fetchone()[0] is None:
        name = "documents_reduced"
    connection.execute(f"DROP TABLE IF EXISTS {name}")
    return f"dropped {name}"


def main(url: str, old_folder: str, new_folder: str, then: str = "") -> None:
    """Fit a head if there is none, replace the codes, and find the nearest neighbours of a document."""
    with psycopg.connect(url, autocommit=True) as connection:
        register_vector(connection)
        old = load_head(old_folder)
        if not Path(new_folder).exists():
            summary = summarize(vectors for _, vectors in stored(connection, VECTORS))
            save_head(fit_head(summary, Size(nested=old.record.nested or (old.out_features,))), new_folder)
        new = load_head(new_folder)
        if then == "drop":
            print(drop(connection, old, new))
            return
        for line in refit(connection, old, new):
            print(line, flush=True)
        _, vectors = next(stored(connection, VECTORS))
        print("nearest:", nearest(connection, {new.digest: new}, vectors[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
