"""Vectors of docstrings in Chroma, which stores float32 in an HNSW index, and in SQLite before that.

python examples/stores/chroma_.py [VECTORS [MODEL [COUNT]]]
"""

import sys

import chromadb
import numpy as np
from chromadb.config import Settings
from corpus import FULL, Corpus

BATCH = 1000


def index(corpus: Corpus, size: int | str) -> None:
    """Fill a collection with vectors and measure it."""
    documents, path = corpus.documents(size), corpus.place("chroma", size)
    client = chromadb.PersistentClient(path, Settings(anonymized_telemetry=False))
    # With None, Chroma embeds no texts: its default would download a model.
    settings = {"embedding_function": None, "configuration": {"hnsw": {"space": "cosine", "ef_search": 200}}}
    collection = client.create_collection("documents", **settings)
    for start in range(0, len(documents), BATCH):
        rows = documents[start : start + BATCH]
        collection.add(ids=[str(start + row) for row in range(len(rows))], embeddings=rows)

    def find(query: np.ndarray) -> list[int]:
        return [int(id_) for id_ in collection.query(query_embeddings=[query], n_results=10, include=[])["ids"][0]]

    corpus.measure("Chroma", "HNSW", size, 4 * documents.shape[1], find, path)


def main(corpus: Corpus) -> None:
    """Index the full vectors and reduced ones."""
    for size in (FULL, 128, 32):
        index(corpus, size)


if __name__ == "__main__":
    main(Corpus(*sys.argv[1:]))
