"""Vectors of docstrings in pgvector: ``vector``, ``halfvec``, and ``bit`` by Hamming distance, rescored in SQL.

python examples/stores/pgvector_.py CONNECTION [VECTORS [MODEL [COUNT]]]

Each table has an HNSW index, which counts towards its size. The tables are temporary: nothing stays in the database.
"""

import sys

import numpy as np
import psycopg
from corpus import CANDIDATES, FULL, Corpus
from pgvector import Bit, HalfVector
from pgvector.psycopg import register_vector

# For each kind: the columns of its table, the index, and the query.
NEAREST = "SELECT id FROM {} ORDER BY v <=> %(v)s LIMIT 10"
RESCORED = """
    WITH near AS MATERIALIZED (SELECT id, v FROM {} ORDER BY b <~> %(b)s LIMIT 200)
    SELECT id FROM near ORDER BY v <=> %(v)s LIMIT 10"""
KINDS = {
    "vector": ({"v": "vector"}, "v vector_cosine_ops", NEAREST),
    "halfvec": ({"v": "halfvec"}, "v halfvec_cosine_ops", NEAREST),
    "bit": ({"b": "bit"}, "b bit_hamming_ops", "SELECT id FROM {} ORDER BY b <~> %(b)s LIMIT 10"),
    "bit, then halfvec": ({"b": "bit", "v": "halfvec"}, "b bit_hamming_ops", RESCORED),
}
FORMS = {"vector": np.asarray, "halfvec": HalfVector, "bit": lambda vector: Bit(vector > 0)}  # as quantize does
BITS = {"vector": 32, "halfvec": 16, "bit": 1, "bit, then halfvec": 1}
WAYS = [(FULL, "vector"), (FULL, "halfvec"), (FULL, "bit"), (128, "vector"), (64, "halfvec")]
WAYS += [(384, "bit"), (256, "bit"), (256, "bit, then halfvec")]


def index(connection: psycopg.Connection, corpus: Corpus, size: int | str, kind: str) -> None:
    """Fill a table with vectors and measure it."""
    documents = corpus.documents(size)
    types, indexed, query = KINDS[kind]
    columns = ", ".join(f"{name} {form}({documents.shape[1]}) NOT NULL" for name, form in types.items())
    table = f"documents_{size}_{'_'.join(types.values())}"
    connection.execute(f"CREATE TEMPORARY TABLE {table} (id int PRIMARY KEY, {columns})")
    with connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int4", *types.values()])
        for row, vector in enumerate(documents):
            copy.write_row([row, *(FORMS[form](vector) for form in types.values())])
    connection.execute(f"CREATE INDEX ON {table} USING hnsw ({indexed})")

    def find(query_vector: np.ndarray) -> list[int]:
        values = {name: FORMS[form](query_vector) for name, form in types.items()}
        return [id_ for (id_,) in connection.execute(query.format(table), values)]

    [disk] = connection.execute("SELECT pg_total_relation_size(%s::regclass)", [table]).fetchone()
    own = size == FULL and kind == "bit"  # as binary_quantize does
    corpus.measure("pgvector", kind, size, BITS[kind] * documents.shape[1] / 8, find, disk, quantised=own)


def main(connection: str, corpus: Corpus) -> None:
    """Index the vectors in each way."""
    with psycopg.connect(connection, autocommit=True) as database:
        database.execute("CREATE EXTENSION IF NOT EXISTS vector")
        database.execute(f"SET hnsw.ef_search = {CANDIDATES}")  # by default an index finds 40
        register_vector(database)
        for size, kind in WAYS:
            index(database, corpus, size, kind)


if __name__ == "__main__":
    main(sys.argv[1], Corpus(*sys.argv[2:]))
