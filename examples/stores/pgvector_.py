"""Vectors of docstrings in pgvector: ``vector``, ``halfvec``, and ``bit`` by Hamming distance, rescored in SQL.

python examples/stores/pgvector_.py CONNECTION [VECTORS [MODEL [COUNT]]]

Each table has an HNSW index, which counts towards its size. The tables are temporary: nothing stays in the database.
"""

import sys

import numpy as np
import psycopg
from corpus import CANDIDATES, Corpus
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
    "bit, then halfvec": ({"b": "bit", "v": "halfvec"}, "b bit_hamming_ops", RESCORED),
}
FORMS = {"vector": np.asarray, "halfvec": HalfVector, "bit": lambda vector: Bit(vector > 0)}  # as quantize does


def index(connection: psycopg.Connection, corpus: Corpus, kind: str, model: str, documents: np.ndarray) -> None:
    """Fill a table with the vectors of one model and measure it."""
    types, indexed, query = KINDS[kind]
    columns = ", ".join(f"{name} {form}({documents.shape[1]}) NOT NULL" for name, form in types.items())
    table = f"documents_{len(documents[0])}_{'_'.join(types.values())}"
    connection.execute(f"CREATE TEMPORARY TABLE {table} (id int PRIMARY KEY, {columns})")
    with connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int4", *types.values()])
        for row, vector in enumerate(documents):
            copy.write_row([row, *(FORMS[form](vector) for form in types.values())])
    connection.execute(f"CREATE INDEX ON {table} USING hnsw ({indexed})")

    def find(query_vector: np.ndarray) -> list[int]:
        values = {name: FORMS[form](query_vector) for name, form in types.items()}
        return [id_ for (id_,) in connection.execute(query.format(table), values)]

    [size] = connection.execute("SELECT pg_total_relation_size(%s::regclass)", [table]).fetchone()
    corpus.measure("pgvector", kind, model, find, size)


def main(connection: str, corpus: Corpus) -> None:
    """Index the vectors of both models in each way."""
    with psycopg.connect(connection, autocommit=True) as database:
        database.execute("CREATE EXTENSION IF NOT EXISTS vector")
        database.execute(f"SET hnsw.ef_search = {CANDIDATES}")  # by default an index finds 40
        register_vector(database)
        for model, documents in corpus:
            for kind in KINDS:
                index(database, corpus, kind, model, documents)


if __name__ == "__main__":
    main(sys.argv[1], Corpus(*sys.argv[2:]))
