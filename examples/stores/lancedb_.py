"""Vectors of docstrings in LanceDB: float32, float16, binary codes by Hamming distance, and its own quantisers.

python examples/stores/lancedb_.py [VECTORS [MODEL [COUNT]]]
"""

import sys

import lancedb
import numpy as np
import pyarrow as pa
from corpus import CANDIDATES, FULL, Corpus
from lancedb.index import IvfPq, IvfRq, IvfSq

from st_dimreduce.codes.precision import quantize
from st_dimreduce.codes.search import rescore
from st_dimreduce.codes.tables import codes_of

# With one partition every code is scored. Product quantisation has 8 bits for each sub-vector.
QUANTISERS = {
    "IVF_SQ": (8, IvfSq(distance_type="cosine", num_partitions=1)),
    "IVF_RQ": (1, IvfRq(distance_type="cosine", num_partitions=1)),
    "IVF_PQ": (2, IvfPq(distance_type="cosine", num_partitions=1, num_sub_vectors=96, num_bits=8)),
}
BOTH = [(FULL, "IVF_SQ"), (FULL, "IVF_RQ"), (FULL, "IVF_PQ"), (128, "IVF_SQ"), (384, "IVF_RQ")]


def table_of(**columns: np.ndarray) -> pa.Table:
    """Return a table of ids and columns of vectors, as fixed-size lists."""
    lists = {name: pa.FixedSizeListArray.from_arrays(pa.array(v.ravel()), v.shape[1]) for name, v in columns.items()}
    return pa.table({"id": np.arange(len(next(iter(columns.values())))), **lists})


def main(corpus: Corpus) -> None:
    """Store the vectors in each way; without an index, LanceDB compares with every row."""
    path = corpus.place("lancedb")
    database = lancedb.connect(path)

    def table(name: str, **columns: np.ndarray) -> lancedb.Table:
        return database.create_table(name, table_of(**columns))

    def nearest(query: np.ndarray, table: lancedb.Table) -> list[int]:
        distance = "hamming" if query.dtype == np.uint8 else "cosine"
        return table.search(query).distance_type(distance).limit(10).select(["id", "_distance"]).to_arrow()["id"]

    for size, bits in ((FULL, 32), (FULL, 16), (64, 16), (384, 1), (256, 1)):
        documents = corpus.documents(size)
        name, kind = f"{size}-{bits}", "bits" if bits == 1 else f"float{bits}"
        codes = quantize(documents, "binary") if bits == 1 else documents.astype(kind)
        stored = table(name, vector=codes)

        def find(query: np.ndarray, stored: lancedb.Table = stored, bits: int = bits) -> list[int]:
            return nearest(quantize(query[None], "binary")[0] if bits == 1 else query, stored).to_pylist()

        corpus.measure("LanceDB", kind, size, codes[0].nbytes, find, path / f"{name}.lance")

    halves = corpus.documents(128).astype(np.float16)
    both = table("both", bits=quantize(corpus.documents(128), "binary"), vector=halves)

    def rescored(query: np.ndarray) -> np.ndarray:
        asked = both.search(quantize(query[None], "binary")[0], vector_column_name="bits")
        found = asked.distance_type("hamming").limit(CANDIDATES).select(["id", "vector", "_distance"]).to_arrow()
        _, [best] = rescore(query[None], codes_of(found["vector"]), np.arange(len(found))[None])
        return found["id"].to_numpy()[best]

    corpus.measure("LanceDB", "bits, then float16", 128, 16, rescored, path / "both.lance")

    for size, kind in BOTH:
        documents, (bits, config) = corpus.documents(size), QUANTISERS[kind]
        indexed = table(f"{size}-{kind}", vector=documents.astype(np.float16))
        indexed.create_index("vector", config=config)
        searched = bits * documents.shape[1] / 8
        found = lambda query, table=indexed: nearest(query, table).to_pylist()  # noqa: E731
        corpus.measure("LanceDB", kind, size, searched, found, path / f"{size}-{kind}.lance", quantised=True)


if __name__ == "__main__":
    main(Corpus(*sys.argv[1:]))
