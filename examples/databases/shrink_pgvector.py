"""Reduce vectors in PostgreSQL (pgvector) without encoding anything again, and search them there.

python examples/databases/shrink_pgvector.py CONNECTION HEAD [DIMENSIONS]

Reads the table documents (id bigint PRIMARY KEY, embedding vector(768)), vectors of norm 1, and fills documents_reduced
with a halfvec(128) and a bit(256) per vector: 301 bytes instead of 3,076. HEAD is the folder of the head; if there is
none, it is fitted on the table and saved there. The same command, called again, continues after the last id that was
committed: after an interruption, or when new documents have come.

``attach_head(model, load_head(HEAD))`` encodes queries for ``nearest`` below.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psycopg
from pgvector import Bit, HalfVector
from pgvector.psycopg import register_vector

from st_dimreduce import Size, fit_head, load_head, quantize, save_head, summarize

BATCH, LOWEST = 1000, -(2**63)  # rows per transaction, and the lowest bigint
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
    """Yield the ids greater than ``last`` and their vectors, a page at a time, so that no transaction stays open."""
    while rows := connection.execute(PAGE, [last, BATCH], binary=True).fetchall():
        yield [id_ for id_, _ in rows], np.stack([vector.to_numpy() for _, vector in rows])
        last = rows[-1][0]


def nearest(connection: psycopg.Connection, query: np.ndarray, size: int = 128) -> list[tuple[int, float]]:
    """Find 200 documents by the bits of a reduced query, rescore them, and return ids and cosines of the best 10."""
    with connection.transaction():
        connection.execute("SET LOCAL hnsw.ef_search = 200")  # by default the index finds 40
        return connection.execute(NEAREST, {"bits": Bit(query > 0), "half": HalfVector(query[:size])}).fetchall()


def main(url: str, folder: str, dimensions: str = "128") -> None:
    """Fit a head if there is none, reduce new documents, and find the nearest neighbours of one of them."""
    with psycopg.connect(url, autocommit=True) as connection:
        register_vector(connection)
        if not Path(folder).exists():
            if connection.execute("SELECT to_regclass('documents_reduced')").fetchone()[0]:
                sys.exit(f"documents_reduced holds codes of another head than {folder}: give that, or drop the table")
            summary = summarize(vectors for _, vectors in stored(connection))
            # Nested sizes: the first half of the dimensions, stored as halfvec, can be used alone.
            size = Size(nested=(int(dimensions), 2 * int(dimensions)))
            save_head(fit_head(summary, size), folder)
        head = load_head(folder)
        first_size = (head.record.nested or (head.out_features,))[0]
        connection.execute(TABLE.format(first_size, head.out_features))
        last = connection.execute("SELECT coalesce(max(id), %s) FROM documents_reduced", [LOWEST]).fetchone()[0]
        for ids, vectors in stored(connection, last):
            reduced = head.reduce_stored(vectors)
            halves = quantize(reduced[:, :first_size], "float32")
            # Without the transaction the server could commit part of a batch whose client was killed.
            with connection.transaction(), connection.cursor() as cursor, cursor.copy(COPY) as copy:
                copy.set_types(["int8", "halfvec", "bit"])
                for id_, half, bits in zip(ids, halves, reduced > 0, strict=True):
                    copy.write_row([id_, HalfVector(half), Bit(bits)])  # the bits of quantize(reduced, "binary")
            print(f"reduced up to id {ids[-1]}", flush=True)
        connection.execute(INDEX)
        _, vectors = next(stored(connection))
        print("nearest:", nearest(connection, head.reduce_stored(vectors[:1])[0], first_size))


if __name__ == "__main__":
    main(*sys.argv[1:])
