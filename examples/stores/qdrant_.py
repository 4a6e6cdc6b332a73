"""Vectors of docstrings in Qdrant: in its client's local mode, and in the engine, with scalar and binary quantisation.

python examples/stores/qdrant_.py [VECTORS [MODEL [COUNT]]]

Local mode accepts a quantisation and ignores it: it stores float32 and compares with every point. The engine runs in
this process as Qdrant Edge; a server takes the same settings, under the same names, from ``qdrant_client``. Edge and
server also keep the float32 vectors, on disk, and rescore with them: quantisation saves memory, a reduced model saves
memory and disk.
"""

import sys
from contextlib import closing

import numpy as np
import qdrant_edge as edge
from corpus import CANDIDATES, Corpus
from qdrant_client import QdrantClient, models

KINDS = {
    "HNSW": None,
    "HNSW, int8": edge.ScalarQuantizationConfig(edge.ScalarType.Int8),
    "HNSW, binary": edge.BinaryQuantizationConfig(),
}


def in_local_mode(corpus: Corpus, model: str, documents: np.ndarray) -> None:
    """Fill a collection, as on a server with QdrantClient("http://localhost:6333"), and measure it."""
    path = corpus.place("local", model)
    scalar = models.ScalarQuantization(scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8))
    with closing(QdrantClient(path=str(path))) as client:
        params = models.VectorParams(size=documents.shape[1], distance=models.Distance.COSINE)
        client.create_collection("documents", params, quantization_config=scalar)
        client.upload_collection("documents", documents, ids=range(len(documents)))
        if client.get_collection("documents").config.quantization_config is not None:
            sys.exit("local mode quantises in this version: correct the docstring above")

        def find(query: np.ndarray) -> list[int]:
            return [point.id for point in client.query_points("documents", query.tolist()).points]

        corpus.measure("Qdrant", "local mode", model, find, path)


def in_the_engine(corpus: Corpus, kind: str, model: str, documents: np.ndarray) -> None:
    """Fill a shard, quantise and index it, and measure it; the candidates are rescored with float32."""
    path = corpus.place("edge", kind, model)
    path.mkdir()
    params = edge.EdgeVectorParams(documents.shape[1], edge.Distance.Cosine, quantization_config=KINDS[kind])
    small = edge.EdgeOptimizersConfig(indexing_threshold=1)  # kB: by default there is no index for so few points
    with closing(
        edge.EdgeShard.create(str(path), edge.EdgeConfig(params, optimizers=small, wal_enabled=False))
    ) as shard:
        points = [edge.Point(row, vector) for row, vector in enumerate(documents.tolist())]
        shard.update(edge.UpdateOperation.upsert_points(points))
        shard.optimize()
        shard.flush()
        oversample = edge.QuantizationSearchParams(rescore=True, oversampling=CANDIDATES / 10)
        asked = {"limit": 10, "params": edge.SearchParams(quantization=oversample)}

        def find(query: np.ndarray) -> list[int]:
            nearest = edge.QueryRequest(query=edge.Query.Nearest(query.tolist()), **asked)
            return [point.id for point in shard.query(nearest)]

        corpus.measure("Qdrant", kind, model, find, path)


def main(corpus: Corpus) -> None:
    """Index the vectors of both models in each way."""
    for model, documents in corpus:
        in_local_mode(corpus, model, documents)
        for kind in KINDS:
            in_the_engine(corpus, kind, model, documents)


if __name__ == "__main__":
    main(Corpus(*sys.argv[1:]))
