"""Replace the head of vectors in Qdrant while searches go on: a collection beside the old, then an alias is switched.

python examples/databases/refit_qdrant.py FOLDER OLD_HEAD NEW_HEAD [drop]

Goes on where ``st-dimreduce migrate`` ended: the collection documents_reduced holds vectors reduced by OLD_HEAD. New
ones go into a collection of their own, named after NEW_HEAD; when none is missing, the alias documents_live is set to
it. NEW_HEAD is the folder of the new head; if there is none, it is fitted and saved there. The same command, called
again, continues after an interruption. When no program searches with OLD_HEAD any more, ``drop`` deletes its
collection.

Where the collection documents with the full vectors is still there, the new head reduces those. Where it is gone, the
reduced vectors are mapped back: what OLD_HEAD dropped is lost, the rest is weighted anew. benchmarks/REFIT.md says what
that regains: from floats, and from int8 and int4 codes, nearly all; for int2 and binary codes keep OLD_HEAD instead.

Programs search with ``nearest`` below: it reads which collection is live, and reduces the query with its head.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
from qdrant_client import QdrantClient
from qdrant_client.models import (
    Batch,
    CreateAlias,
    CreateAliasOperation,
    DeleteAlias,
    DeleteAliasOperation,
    Distance,
    Record,
    VectorParams,
)

from st_dimreduce import Head

PAGE = 64  # points read at a time
FULL, FIRST, ALIAS = "documents", "documents_reduced", "documents_live"


def collection_of(head: Head) -> str:
    """Return the name of the collection of vectors that a head reduced."""
    return f"{FIRST}_{head.fingerprint[-12:]}"


def live(client: QdrantClient) -> str:
    """Return the name of the collection that is searched."""
    return {each.alias_name: each.collection_name for each in client.get_aliases().aliases}.get(ALIAS, FIRST)


def nearest(client: QdrantClient, heads: Mapping[str, Head], vector: np.ndarray) -> list[tuple[int | str, float]]:
    """Find documents by a full vector, with the head of the collection that is live, and return ids and cosines.

    Args:
        client: The client.
        heads: Heads by their collection: the old and the new one while they change.
        vector: A vector of the base model, float array of shape (d,).
    """
    name = live(client)  # asked by its own name: the alias may change before the query arrives
    [query] = heads[name].transform(vector[None])
    return [(point.id, point.score) for point in client.query_points(name, query.tolist(), limit=10).points]


def stored(client: QdrantClient, name: str) -> Iterator[list[Record]]:
    """Yield all points of a collection, a page at a time."""
    offset = None
    while True:
        points, offset = client.scroll(name, limit=PAGE, offset=offset, with_vectors=True)
        if points:
            yield points
        if offset is None:
            return


def mapped_back(head: Head, reduced: np.ndarray) -> np.ndarray:
    """Return full vectors, of norm 1, that a head reduces to these directions: those in the space of its weight.

    Decode codes before, with ``Codes.decode``. A head without bias is close to linear, so the pseudo-inverse will do.
    """
    vectors = reduced @ np.linalg.pinv(head.weight.T)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def full_vectors(client: QdrantClient, old: Head, source: str) -> Iterator[tuple[list[Record], np.ndarray]]:
    """Yield points with their full vectors, or with those mapped back where only reduced ones are kept."""
    for points in stored(client, FULL if client.collection_exists(FULL) else source):
        vectors = np.array([point.vector for point in points], np.float32)
        yield points, vectors if client.collection_exists(FULL) else mapped_back(old, vectors)


def refit(client: QdrantClient, old: Head, new: Head, source: str) -> Iterator[str]:
    """Fill the new head's collection and switch to it; yields lines of progress. Searches go on all the while."""
    name = collection_of(new)
    if not client.collection_exists(name):
        client.create_collection(name, VectorParams(size=new.out_features, distance=Distance.COSINE))
    for page, vectors in full_vectors(client, old, source):
        done = {point.id for point in client.retrieve(name, [point.id for point in page])}
        rows = [row for row, point in enumerate(page) if point.id not in done]
        if rows:
            reduced = new.transform(vectors[rows]).tolist()
            points = [page[row] for row in rows]
            ids, payloads = [point.id for point in points], [point.payload for point in points]
            client.upsert(name, Batch(ids=ids, vectors=reduced, payloads=payloads))
            yield f"reduced {len(points)} points up to id {ids[-1]}"
    there = any(each.alias_name == ALIAS for each in client.get_aliases().aliases)
    changes = [DeleteAliasOperation(delete_alias=DeleteAlias(alias_name=ALIAS))] if there else []
    changes.append(CreateAliasOperation(create_alias=CreateAlias(collection_name=name, alias_name=ALIAS)))
    client.update_collection_aliases(changes)  # both or none
    yield f"switched to {name}"


def main(path: str, old_folder: str, new_folder: str, then: str = "") -> None:
    """Fit a head if there is none, replace the vectors, and find the nearest neighbours of a document."""
    with closing(QdrantClient(path=path)) as client:  # for a server: QdrantClient("http://localhost:6333")
        old = Head.load(old_folder)
        source = collection_of(old) if client.collection_exists(collection_of(old)) else FIRST
        if not Path(new_folder).exists():
            vectors = (vectors for _, vectors in full_vectors(client, old, source))
            Head.fit(vectors, old.out_features).save(new_folder)
        new = Head.load(new_folder)
        if then == "drop":
            if live(client) != collection_of(new):
                sys.exit("the new head is not live yet: run the command without drop before")
            client.delete_collection(source)
            print(f"dropped {source}")
            return
        for line in refit(client, old, new, source):
            print(line, flush=True)
        _, vectors = next(full_vectors(client, old, source))
        print("nearest:", nearest(client, {collection_of(new): new}, vectors[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
