"""Shrink vectors in a DuckDB file without encoding anything again, and search the codes.

python examples/databases/shrink_duckdb.py DATABASE HEAD [DIMENSIONS]

Reads documents (id BIGINT PRIMARY KEY, embedding FLOAT[768]) as Arrow record batches and fills documents_reduced with
codes of 128 dimensions in int4: 64 bytes for 3,072. HEAD is a folder: the head that is there, else one fitted on the
table. After a kill the same command adds the documents that are missing, and later those that came since.

Queries are encoded by ``attach_head(model, load_head(HEAD))`` and found by ``nearest`` below.
"""

import sys
from pathlib import Path

import duckdb
import numpy as np

from st_dimreduce import load_head, reduce_vectors, save_head, search
from st_dimreduce.models.heads import fit_on_vectors

BATCH = 1 << 14  # rows of a record batch, which relation.arrow reads one by one
MISSING = "SELECT id, embedding FROM documents ANTI JOIN documents_reduced USING (id) WHERE embedding IS NOT NULL"


def nearest(connection: duckdb.DuckDBPyConnection, query: np.ndarray) -> list[tuple[int, float]]:
    """Return ids and cosines of the ten documents nearest to a reduced query."""
    table = connection.table("documents_reduced").to_arrow_table()
    codes = np.frombuffer(b"".join(table["code"].to_pylist()), np.uint8).reshape(len(table), -1)
    [scores], [rows] = search(query[None], codes, "int4")
    return list(zip(table["id"].to_numpy()[rows].tolist(), scores.tolist(), strict=True))


def main(path: str, folder: str, dimensions: str = "128") -> None:
    """Fit a head if there is none, reduce what is not reduced yet, and find the neighbours of one document."""
    # A cursor is a connection of its own: what one writes does not end what the other is reading.
    with duckdb.connect(path) as connection, connection.cursor() as reading:
        connection.execute("CREATE TABLE IF NOT EXISTS documents_reduced (id BIGINT PRIMARY KEY, code BLOB NOT NULL)")
        missing = reading.sql(MISSING)
        if not Path(folder).exists():
            if len(connection.table("documents_reduced")):
                sys.exit(f"documents_reduced was filled by another head than {folder}: give that, or drop the table")
            save_head(fit_on_vectors(missing.arrow(BATCH), int(dimensions)), folder)
        head = load_head(folder)
        if len(missing):
            for batch in reduce_vectors(missing.arrow(BATCH), head, precision="int4"):
                connection.from_arrow(batch).insert_into("documents_reduced")  # one statement: one transaction
                print(f"reduced {batch.num_rows} documents", flush=True)
        [query] = connection.execute("SELECT embedding FROM documents WHERE embedding IS NOT NULL LIMIT 1").fetchall()
        print("nearest:", nearest(connection, head.reduce(np.array(query, np.float32))[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
