"""Vectors of docstrings in LanceDB: float32, float16, and binary codes by Hamming distance, rescored with float16.

python examples/stores/lancedb_.py [VECTORS [MODEL [COUNT]]]
"""

import sys

import lancedb
import numpy as np
import pyarrow as pa
from corpus import CANDIDATES, Corpus

from st_dimreduce import quantize, rescore
from st_dimreduce.vectors.arrow import codes_of


def table_of(**columns: np.ndarray) -> pa.Table:
    """Return a table of ids and columns of vectors, as fixed-size lists."""
    lists = {name: pa.FixedSizeListArray.from_arrays(pa.array(v.ravel()), v.shape[1]) for name, v in columns.items()}
    return pa.table({"id": np.arange(len(next(iter(columns.values())))), **lists})


def main(corpus: Corpus) -> None:
    """Store the vectors of both models in each way; without an index, LanceDB compares with every row."""
    for model, documents in corpus:
        path, halves = corpus.place("lancedb", model), documents.astype(np.float16)
        database = lancedb.connect(path)
        floats = database.create_table("float32", table_of(vector=documents))
        half = database.create_table("float16", table_of(vector=halves))
        both = database.create_table("both", table_of(bits=quantize(documents, "binary"), vector=halves))

        def nearest(query: np.ndarray, table: lancedb.Table = floats) -> list[int]:
            found = table.search(query).distance_type("cosine").limit(10).select(["id", "_distance"]).to_arrow()
            return found["id"].to_pylist()

        def rescored(query: np.ndarray, both: lancedb.Table = both) -> np.ndarray:
            asked = both.search(quantize(query[None], "binary")[0], vector_column_name="bits")
            found = asked.distance_type("hamming").limit(CANDIDATES).select(["id", "vector", "_distance"]).to_arrow()
            _, [best] = rescore(query[None], codes_of(found["vector"]), np.arange(len(found))[None])
            return found["id"].to_numpy()[best]

        corpus.measure("LanceDB", "float32", model, nearest, path / "float32.lance")
        corpus.measure("LanceDB", "float16", model, lambda query, t=half: nearest(query, t), path / "float16.lance")
        corpus.measure("LanceDB", "bits, then float16", model, rescored, path / "both.lance")


if __name__ == "__main__":
    main(Corpus(*sys.argv[1:]))
