"""Reduce the vectors in a DuckDB file without encoding anything again, and search the codes.

python examples/databases/shrink_duckdb.py DATABASE HEAD [DIMENSIONS]

Reads the table documents (id BIGINT PRIMARY KEY, embedding FLOAT[768]) as Arrow record batches, and fills
documents_reduced with codes of 128 dimensions in int4: 64 bytes per vector instead of 3,072. HEAD is the folder of the
head; if there is none, it is fitted on the table and saved there. The same command, called again, adds the documents
that are missing: after an interruption, or when new documents have come.

``attach_head(model, load_head(HEAD))`` encodes queries for ``nearest`` below.
"""

import sys
from pathlib import Path

import duckdb
import numpy as np

from st_dimreduce import fit_on_vectors, load_head, reduce_vectors, save_head, search

BATCH = 1 << 14  # rows per record batch, of which relation.arrow holds one at a time
MISSING = "SELECT id, embedding FROM documents ANTI JOIN documents_reduced USING (id) WHERE embedding IS NOT NULL"


def nearest(connection: duckdb.DuckDBPyConnection, query: np.ndarray) -> list[tuple[int, float]]:
    """Return ids and cosines of the ten documents nearest to a reduced query."""
    table = connection.table("documents_reduced").to_arrow_table()
    codes = np.frombuffer(b"".join(table["code"].to_pylist()), np.uint8).reshape(len(table), -1)
    [scores], [rows] = search(query[None], codes, "int4")
    return list(zip(table["id"].to_numpy()[rows].tolist(), scores.tolist(), strict=True))


def main(path: str, folder: str, dimensions: str = "128") -> None:
    """Fit a head if there is none, reduce new documents, and find the nearest neighbours of one of them."""
    # A cursor is a connection of its own: writing through one does not end a result that the other is reading.
    with duckdb.connect(path) as connection, connection.cursor() as reading:
        connection.execute("CREATE TABLE IF NOT EXISTS documents_reduced (id BIGINT PRIMARY KEY, code BLOB NOT NULL)")
        missing = reading.sql(MISSING)
        if not Path(folder).exists():
            if len(connection.table("documents_reduced")):
                sys.exit(f"documents_reduced holds codes of another head than {folder}: give that, or drop the table")
            save_head(fit_on_vectors(missing.arrow(BATCH), int(dimensions)), folder)
        head = load_head(folder)
        if len(missing):
            for batch in reduce_vectors(missing.arrow(BATCH), head, precision="int4"):
                connection.from_arrow(batch).insert_into("documents_reduced")  # one statement: one transaction
                print(f"reduced {batch.num_rows} documents", flush=True)
        [query] = connection.execute("SELECT embedding FROM documents WHERE embedding IS NOT NULL LIMIT 1").fetchall()
        print("nearest:", nearest(connection, head.reduce_stored(np.array(query, np.float32))[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
