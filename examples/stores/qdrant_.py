"""Vectors of docstrings in Qdrant: in its client's local mode, and in the engine, in its types and with its quantisers.

python examples/stores/qdrant_.py [VECTORS [MODEL [COUNT]]]

Local mode accepts a quantisation and ignores it: it stores float32 and compares with every point. The engine runs in
this process as Qdrant Edge; a server takes the same settings, under the same names, from ``qdrant_client``. A
quantisation keeps the vectors themselves beside its codes, on disk, and here rescores with them: it saves memory, while
a smaller vector or type saves memory and disk.
"""

import sys
from contextlib import closing
from typing import Any

import numpy as np
import qdrant_edge as edge
from corpus import FULL, Corpus
from qdrant_client import QdrantClient, models

from st_dimreduce import Codes

COSINE, EUCLID, TYPE = edge.Distance.Cosine, edge.Distance.Euclid, edge.VectorStorageDatatype
BITS, QUERY = edge.BinaryQuantizationEncoding, edge.BinaryQuantizationQueryEncoding.Scalar8Bits
INT8 = edge.ScalarQuantizationConfig(edge.ScalarType.Int8)
ONE, TWO = (edge.BinaryQuantizationConfig(encoding=bits, query_encoding=QUERY) for bits in (BITS.OneBit, BITS.TwoBits))
# Which vectors, how they are stored, the bits per dimension that are scored, the type, the quantiser.
KINDS: list[tuple[int | str, str, int, Any, Any]] = [
    (FULL, "float32", 32, TYPE.Float32, None),
    (FULL, "float32, scalar int8", 8, TYPE.Float32, INT8),
    (FULL, "float32, binary", 1, TYPE.Float32, ONE),
    (FULL, "float32, binary 2 bits", 2, TYPE.Float32, TWO),
    (FULL, "turbo4", 4, TYPE.Turbo4, None),
    (64, "float16", 16, TYPE.Float16, None),
    (128, "uint8", 8, TYPE.Uint8, None),
    (64, "uint8", 8, TYPE.Uint8, None),
    (256, "turbo4", 4, TYPE.Turbo4, None),
    (128, "turbo4", 4, TYPE.Turbo4, None),
    (256, "turbo4, binary 2 bits", 2, TYPE.Turbo4, TWO),
    (384, "turbo4, binary", 1, TYPE.Turbo4, ONE),
]


def in_local_mode(corpus: Corpus, size: int | str) -> None:
    """Fill a collection, as on a server with QdrantClient("http://localhost:6333"), and measure it."""
    documents, path = corpus.documents(size), corpus.place("local", size)
    scalar = models.ScalarQuantization(scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8))
    with closing(QdrantClient(path=str(path))) as client:
        params = models.VectorParams(size=documents.shape[1], distance=models.Distance.COSINE)
        client.create_collection("documents", params, quantization_config=scalar)
        client.upload_collection("documents", documents, ids=range(len(documents)))
        if client.get_collection("documents").config.quantization_config is not None:
            sys.exit("local mode quantises in this version: correct the docstring above")

        def find(query: np.ndarray) -> list[int]:
            return [point.id for point in client.query_points("documents", query.tolist()).points]

        corpus.measure("Qdrant", "local mode", size, 4 * documents.shape[1], find, path)


def unsigned(vectors: np.ndarray) -> np.ndarray:
    """Return int8 codes as Qdrant's uint8 holds them: 128 added, which the Euclidean distance does not see."""
    return Codes.of(vectors, "int8").values.astype(np.int16) + 128


def in_the_engine(corpus: Corpus, size: int | str, kind: str, bits: int, datatype: Any, quantiser: Any) -> None:
    """Fill a shard, quantise and index it, and measure it."""
    give, distance = (unsigned, EUCLID) if datatype == TYPE.Uint8 else (lambda rows: rows, COSINE)
    documents, path = give(corpus.documents(size)), corpus.place("edge", size, kind)
    path.mkdir()
    params = edge.EdgeVectorParams(documents.shape[1], distance, datatype=datatype, quantization_config=quantiser)
    small = edge.EdgeOptimizersConfig(indexing_threshold=1)  # kB: by default there is no index for so few points
    config = edge.EdgeConfig(params, optimizers=small, wal_enabled=False)
    with closing(edge.EdgeShard.create(str(path), config)) as shard:
        points = [edge.Point(row, vector) for row, vector in enumerate(documents.tolist())]
        shard.update(edge.UpdateOperation.upsert_points(points))
        shard.optimize()
        shard.flush()
        oversample = edge.QuantizationSearchParams(rescore=True, oversampling=4.0)
        asked = {"limit": 10, "params": edge.SearchParams(hnsw_ef=200, quantization=oversample)}

        def find(query: np.ndarray) -> list[int]:
            nearest = edge.QueryRequest(query=edge.Query.Nearest(give(query[None])[0].tolist()), **asked)
            return [point.id for point in shard.query(nearest)]

        own = quantiser is not None or datatype == TYPE.Turbo4
        corpus.measure("Qdrant", kind, size, bits * documents.shape[1] / 8, find, path, quantised=own)


def main(corpus: Corpus) -> None:
    """Index the vectors in each way."""
    in_local_mode(corpus, FULL)
    in_local_mode(corpus, 128)
    for kind in KINDS:
        in_the_engine(corpus, *kind)


if __name__ == "__main__":
    main(Corpus(*sys.argv[1:]))
