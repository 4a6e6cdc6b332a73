"""Vectors of docstrings in SQLite with sqlite-vec: float, int8 and bit columns; every row is compared with.

python examples/stores/sqlite_vec_.py [VECTORS [MODEL [COUNT]]]

APSW brings an SQLite that can load extensions; Python's own often cannot.
"""

import sys

import apsw
import numpy as np
import sqlite_vec
from corpus import FULL, Corpus

from st_dimreduce import Codes

# For each precision of the codes: the column, and the function that says what a blob holds.
COLUMNS = {
    "float32": ("float[{}] distance_metric=cosine", "vec_f32(?)"),
    "int8": ("int8[{}] distance_metric=cosine", "vec_int8(?)"),
    "binary": ("bit[{}]", "vec_bit(?)"),
}
INSERT = "INSERT INTO documents VALUES (?, {})"
NEAREST = "SELECT id FROM documents WHERE v MATCH {} AND k = 10 ORDER BY distance"
OWN = {"int8": "vec_quantize_int8(vec_f32(?), 'unit')", "binary": "vec_quantize_binary(vec_f32(?))"}
KINDS = [(FULL, "float32", False), (FULL, "int8", True), (FULL, "binary", True), (32, "float32", False)]
KINDS += [(128, "int8", False), (64, "int8", False), (384, "binary", False), (256, "binary", False)]


def main(corpus: Corpus) -> None:
    """Fill a file with the vectors in each way."""
    for size, precision, own in KINDS:
        documents, path = corpus.documents(size), corpus.place("sqlite", size, precision)
        column, blob = COLUMNS[precision]
        blob, given = (OWN[precision], "float32") if own else (blob, precision)
        database = apsw.Connection(str(path))
        database.enable_load_extension(True)
        database.load_extension(sqlite_vec.loadable_path())
        column = column.format(documents.shape[1])
        database.execute(f"CREATE VIRTUAL TABLE documents USING vec0(id INTEGER PRIMARY KEY, v {column})")
        rows = [(row, code.tobytes()) for row, code in enumerate(Codes.of(documents, given).values)]
        with database:
            database.executemany(INSERT.format(blob), rows)
        asked = NEAREST.format(blob)

        def find(
            query: np.ndarray, database: apsw.Connection = database, asked: str = asked, given: str = given
        ) -> list[int]:
            return [id_ for (id_,) in database.execute(asked, [Codes.of(query[None], given).values.tobytes()])]

        searched = Codes.of(documents[:1], precision).bytes_per_vector
        name = f"{column.partition('[')[0]}" + (", its own" if own else "")
        corpus.measure("sqlite-vec", name, size, searched, find, path, quantised=own)
        database.close()


if __name__ == "__main__":
    main(Corpus(*sys.argv[1:]))
