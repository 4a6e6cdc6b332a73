"""Vectors of docstrings in DuckDB: floats, bits compared in SQL, and codes in a BLOB that our own search reads.

python examples/stores/duckdb_.py [VECTORS [MODEL [COUNT]]]

Without the extension ``vss``, DuckDB compares with every row.
"""

import sys

import duckdb
import numpy as np
import pyarrow as pa
from corpus import FULL, Corpus

from st_dimreduce import Codes

ANY, BITS = "CREATE TABLE documents AS FROM rows", "CREATE TABLE documents AS SELECT id, v::BIT AS v FROM rows"
OURS = "BLOB, int4, search"  # by our own search
NEAREST = "SELECT id FROM documents ORDER BY array_cosine_distance(v, $v::FLOAT[{}]) LIMIT 10"
DIFFERENT = "SELECT id FROM documents ORDER BY bit_count(xor(v, $v::BIT)) LIMIT 10"
KINDS = [(FULL, "FLOAT"), (FULL, "BIT"), (128, "FLOAT"), (32, "FLOAT"), (384, "BIT"), (256, "BIT"), (256, OURS)]


def as_text(vector: np.ndarray) -> str:
    """Return the bits of ``Codes.of(vectors, "binary")`` as SQL writes them."""
    return "".join("01"[bit] for bit in (vector > 0).astype(int))


def main(corpus: Corpus) -> None:
    """Fill a file with the vectors in each way."""
    for size, kind in KINDS:
        documents, path = corpus.documents(size), corpus.place("duckdb", size, kind)
        width = documents.shape[1]
        if kind == "FLOAT":
            column = pa.FixedSizeListArray.from_arrays(pa.array(documents.ravel()), width)
        elif kind == "BIT":
            column = pa.array(map(as_text, documents))
        else:
            column = pa.array([code.tobytes() for code in Codes.of(documents, "int4").values])
        rows = pa.table({"id": np.arange(len(documents)), "v": column})
        with duckdb.connect(str(path)) as database:
            database.register("rows", rows)
            database.execute(BITS if kind == "BIT" else ANY)
            database.execute("CHECKPOINT")

            def find(
                query: np.ndarray,
                database: duckdb.DuckDBPyConnection = database,
                kind: str = kind,
                width: int = width,
            ) -> list[int]:
                if kind == OURS:
                    table = database.table("documents").to_arrow_table()
                    codes = np.frombuffer(b"".join(table["v"].to_pylist()), np.uint8).reshape(len(table), -1)
                    _, [rows] = Codes(codes, "int4", width).search(query[None])
                    return table["id"].to_numpy()[rows]
                asked, given = (DIFFERENT, as_text(query)) if kind == "BIT" else (NEAREST.format(width), query.tolist())
                return [id_ for (id_,) in database.execute(asked, {"v": given}).fetchall()]

            searched = {"FLOAT": 4 * width, "BIT": width // 8, OURS: width // 2}[kind]
            corpus.measure("DuckDB", kind, size, searched, find, path)


if __name__ == "__main__":
    main(Corpus(*sys.argv[1:]))
