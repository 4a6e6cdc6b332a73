"""Reduce the vectors of a Qdrant collection without encoding anything again, and search them.

python examples/databases/shrink_qdrant.py FOLDER HEAD [DIMENSIONS]

Reads the collection "documents" and fills "documents_reduced" with a vector of 128 dimensions per point, under the same
id and with the same payload. HEAD is the folder of the head; if there is none, it is fitted on the collection and saved
there. The same command, called again, adds the points that are missing: after an interruption, or when new points have
come.

``attach_head(model, load_head(HEAD))`` encodes queries.
"""

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from qdrant_client import QdrantClient
from qdrant_client.models import Batch, Distance, Record, VectorParams

from st_dimreduce import fit_on_vectors, load_head, quantize, save_head

PAGE = 64  # points read at a time


def stored(client: QdrantClient) -> Iterator[list[Record]]:
    """Yield all points, a page at a time."""
    offset = None
    while True:
        points, offset = client.scroll("documents", limit=PAGE, offset=offset, with_vectors=True)
        if points:
            yield points
        if offset is None:
            return


def vectors_of(points: list[Record]) -> np.ndarray:
    """Return the vectors of points, float32 of shape (n, d)."""
    return np.array([point.vector for point in points], np.float32)


def main(path: str, folder: str, dimensions: str = "128") -> None:
    """Fit a head if there is none, reduce new points, and find the nearest neighbours of one of them."""
    with closing(QdrantClient(path=path)) as client:  # for a server: QdrantClient("http://localhost:6333")
        there = client.collection_exists("documents_reduced")
        if not Path(folder).exists():
            if there:
                sys.exit(f"documents_reduced holds vectors of another head than {folder}: give that one, or delete it")
            save_head(fit_on_vectors(map(vectors_of, stored(client)), int(dimensions)), folder)
        head = load_head(folder)
        if not there:
            client.create_collection(
                "documents_reduced", VectorParams(size=head.out_features, distance=Distance.COSINE)
            )
        for page in stored(client):
            done = {point.id for point in client.retrieve("documents_reduced", [point.id for point in page])}
            points = [point for point in page if point.id not in done]
            if points:
                reduced = quantize(head.reduce_stored(vectors_of(points)), "float32").tolist()
                ids, payloads = [point.id for point in points], [point.payload for point in points]
                client.upsert("documents_reduced", Batch(ids=ids, vectors=reduced, payloads=payloads))
                print(f"reduced {len(points)} points up to id {ids[-1]}", flush=True)
        [query] = head.reduce_stored(vectors_of(next(stored(client)))[:1])
        found = client.query_points("documents_reduced", query.tolist(), limit=10).points
        print("nearest:", [(point.id, point.score) for point in found])


if __name__ == "__main__":
    main(*sys.argv[1:])
