"""Vectors of docstrings in Chroma, which stores float32 in an HNSW index, and in SQLite before that.

python examples/stores/chroma_.py [VECTORS [MODEL [COUNT]]]
"""

import sys

import chromadb
import numpy as np
from chromadb.config import Settings
from corpus import Corpus

BATCH = 1000


def index(corpus: Corpus, model: str, documents: np.ndarray) -> None:
    """Fill a collection with the vectors of one model and measure it."""
    path = corpus.place("chroma", model)
    client = chromadb.PersistentClient(path, Settings(anonymized_telemetry=False))
    # With None, Chroma embeds no texts: its default would download a model.
    settings = {"embedding_function": None, "configuration": {"hnsw": {"space": "cosine"}}}
    collection = client.create_collection("documents", **settings)
    for start in range(0, len(documents), BATCH):
        rows = documents[start : start + BATCH]
        collection.add(ids=[str(start + row) for row in range(len(rows))], embeddings=rows)

    def find(query: np.ndarray) -> list[int]:
        return [int(id_) for id_ in collection.query(query_embeddings=[query], n_results=10, include=[])["ids"][0]]

    corpus.measure("Chroma", "HNSW", model, find, path)


def main(corpus: Corpus) -> None:
    """Index the vectors of both models."""
    for model, documents in corpus:
        index(corpus, model, documents)


if __name__ == "__main__":
    main(Corpus(*sys.argv[1:]))
