"""Vectors of docstrings in Milvus Lite, which stores float32; its scalar quantiser makes codes beside them.

python examples/stores/milvus_.py [VECTORS [MODEL [COUNT]]]

A Milvus server also has float16, int8 and binary vectors; Lite has not.
"""

import sys
from contextlib import closing

import numpy as np
from corpus import FULL, Corpus
from pymilvus import DataType, MilvusClient

KINDS = [(FULL, "FLAT"), (FULL, "HNSW_SQ"), (128, "FLAT"), (32, "FLAT"), (128, "HNSW_SQ")]
GRAPH = {"M": 16, "efConstruction": 200, "sq_type": "SQ8"}
BATCH = 1000


def main(corpus: Corpus) -> None:
    """Fill a file with the vectors in each way."""
    for size, kind in KINDS:
        documents, path = corpus.documents(size), corpus.place("milvus", size, f"{kind}.db")
        with closing(MilvusClient(str(path))) as client:
            schema = client.create_schema()
            schema.add_field("id", DataType.INT64, is_primary=True)
            schema.add_field("v", DataType.FLOAT_VECTOR, dim=documents.shape[1])
            index = client.prepare_index_params()
            index.add_index("v", index_type=kind, metric_type="COSINE", params=GRAPH if kind == "HNSW_SQ" else {})
            client.create_collection("documents", schema=schema, index_params=index)
            for start in range(0, len(documents), BATCH):
                rows = documents[start : start + BATCH]
                client.insert("documents", [{"id": start + row, "v": vector} for row, vector in enumerate(rows)])
            client.flush("documents")
            client.load_collection("documents")

            def find(query: np.ndarray, client: MilvusClient = client) -> list[int]:
                [hits] = client.search("documents", [query], limit=10, search_params={"params": {"ef": 200}})
                return [hit["id"] for hit in hits]

            own = kind == "HNSW_SQ"
            searched = documents.shape[1] * (1 if own else 4)
            corpus.measure("Milvus Lite", kind, size, searched, find, path, quantised=own)


if __name__ == "__main__":
    main(Corpus(*sys.argv[1:]))
