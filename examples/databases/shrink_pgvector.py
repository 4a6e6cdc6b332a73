"""Shrink vectors in PostgreSQL (pgvector) without encoding anything again, and search them there.

python examples/databases/shrink_pgvector.py CONNECTION HEAD [DIMENSIONS]

Reads documents (id bigint PRIMARY KEY, embedding vector(768)), vectors of length 1, and fills documents_reduced with a
halfvec(128) and a bit(256) of each: 301 bytes for 3,076. HEAD is a folder: the head that is there, else one fitted on
the table. After a kill the same command goes on behind the last id that was committed, and later it adds new documents.

Queries are encoded by ``attach_head(model, load_head(HEAD))`` and found by ``nearest`` below.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg
from pgvector import Bit, HalfVector
from pgvector.psycopg import register_vector

from st_dimreduce import fit_head, load_head, quantize, save_head, summarize

BATCH, LOWEST = 1000, -(2**63)  # rows of a transaction, and a bigint below every id
PAGE = "SELECT id, embedding FROM documents WHERE id > %s AND embedding IS NOT NULL ORDER BY id LIMIT %s"
TABLE = """
    CREATE TABLE IF NOT EXISTS documents_reduced (id bigint PRIMARY KEY REFERENCES documents ON DELETE CASCADE,
    reduced halfvec({}) NOT NULL, bits bit({}) NOT NULL)"""
COPY = "COPY documents_reduced FROM STDIN WITH (FORMAT BINARY)"
INDEX = "CREATE INDEX IF NOT EXISTS documents_bits ON documents_reduced USING hnsw (bits bit_hamming_ops)"
NEAREST = """
    WITH near AS MATERIALIZED (SELECT id, reduced FROM documents_reduced ORDER BY bits <~> %(bits)s LIMIT 200)
    SELECT id, 1 - (reduced <=> %(half)s) FROM near ORDER BY reduced <=> %(half)s LIMIT 10"""


def stored(connection: psycopg.Connection, last: int = LOWEST) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield ids above the last and their vectors: pages by key, so that no transaction stays open for hours."""
    while rows := connection.execute(PAGE, [last, BATCH], binary=True).fetchall():
        yield [id_ for id_, _ in rows], np.stack([vector.to_numpy() for _, vector in rows])
        last = rows[-1][0]


def nearest(connection: psycopg.Connection, query: np.ndarray, size: int = 128) -> list[tuple[int, float]]:
    """Find 200 documents by the bits of a reduced query, and return ids and cosines of the best 10 by the halfvec."""
    with connection.transaction():
        connection.execute("SET LOCAL hnsw.ef_search = 200")  # or the index finds 40 of the 200
        return connection.execute(NEAREST, {"bits": Bit(query > 0), "half": HalfVector(query[:size])}).fetchall()


def main(url: str, folder: str, dimensions: str = "128") -> None:
    """Fit a head if there is none, reduce what is not reduced yet, and find the neighbours of one document."""
    with psycopg.connect(url, autocommit=True) as connection:
        register_vector(connection)
        if not Path(folder).exists():
            if connection.execute("SELECT to_regclass('documents_reduced')").fetchone()[0]:
                sys.exit(f"documents_reduced was filled by another head than {folder}: give that, or drop the table")
            summary = summarize(vectors for _, vectors in stored(connection))
            sizes = int(dimensions), 2 * int(dimensions)  # nested: the first half of the outputs is a head of its own
            save_head(fit_head(summary, sizes[1], nested=sizes, gain=0.03), folder)  # the gain suits attach_head
        head = load_head(folder)
        size = head.fitted.get("nested", [head.out_features])[0]
        connection.execute(TABLE.format(size, head.out_features))
        last = connection.execute("SELECT coalesce(max(id), %s) FROM documents_reduced", [LOWEST]).fetchone()[0]
        for ids, vectors in stored(connection, last):
            reduced = head.reduce(vectors)
            halves = quantize(reduced[:, :size], "float32")
            # Without the transaction the server may still commit what a client sent that is dead by then.
            with connection.transaction(), connection.cursor() as cursor, cursor.copy(COPY) as copy:
                copy.set_types(["int8", "halfvec", "bit"])
                for id_, half, bits in zip(ids, halves, reduced > 0, strict=True):
                    copy.write_row([id_, HalfVector(half), Bit(bits)])  # the bits of quantize(reduced, "binary")
            print(f"reduced up to id {ids[-1]}", flush=True)
        connection.execute(INDEX)
        _, vectors = next(stored(connection))
        print("nearest:", nearest(connection, head.reduce(vectors[:1])[0], size))


if __name__ == "__main__":
    main(*sys.argv[1:])
