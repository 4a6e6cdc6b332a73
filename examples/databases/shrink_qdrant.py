"""Shrink the vectors of a Qdrant collection without encoding anything again, and search them.

python examples/databases/shrink_qdrant.py FOLDER HEAD [DIMENSIONS]

Reads the collection "documents" and fills "documents_reduced" with a vector of 128 dimensions for each point, under the
same id and with the same payload. HEAD is a folder: the head that is there, else one fitted on the collection. After a
kill the same command adds the points that are missing, and later those that came since.

Queries are encoded by ``attach_head(model, load_head(HEAD))``.
"""

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from qdrant_client import QdrantClient
from qdrant_client.models import Batch, Distance, Record, VectorParams

from st_dimreduce import load_head, quantize, save_head
from st_dimreduce.models.heads import fit_on_vectors

PAGE = 64  # points


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
    """Return the points' vectors as rows."""
    return np.array([point.vector for point in points], np.float32)


def main(path: str, folder: str, dimensions: str = "128") -> None:
    """Fit a head if there is none, reduce what is not reduced yet, and find the neighbours of one point."""
    with closing(QdrantClient(path=path)) as client:  # a server's: QdrantClient("http://localhost:6333")
        there = client.collection_exists("documents_reduced")
        if not Path(folder).exists():
            if there:
                sys.exit(f"documents_reduced was filled by another head than {folder}: give that, or delete it")
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
                reduced = quantize(head.reduce(vectors_of(points)), "float32").tolist()
                ids, payloads = [point.id for point in points], [point.payload for point in points]
                client.upsert("documents_reduced", Batch(ids=ids, vectors=reduced, payloads=payloads))
                print(f"reduced {len(points)} points up to id {ids[-1]}", flush=True)
        [query] = head.reduce(vectors_of(next(stored(client)))[:1])
        found = client.query_points("documents_reduced", query.tolist(), limit=10).points
        print("nearest:", [(point.id, point.score) for point in found])


if __name__ == "__main__":
    main(*sys.argv[1:])
