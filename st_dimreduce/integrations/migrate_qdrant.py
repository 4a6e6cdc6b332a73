"""Qdrant, a server or its local mode: codes in a new collection, under the same ids and with the same payloads."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from st_dimreduce.enums import Precision, Store
from st_dimreduce.errors import MissingExtraError, UserError
from st_dimreduce.integrations.migrate import Database, Encode, Names

try:
    from qdrant_client import QdrantClient, models
    from qdrant_client.http.exceptions import ApiException
except ModuleNotFoundError as error:
    raise MissingExtraError("Qdrant needs its client: pip install 'st_dimreduce[databases]'") from error

_FETCHED = 1000  # points of a sample at a time
_BITS = {"float32": 32, "float16": 16, "turbo16": 16, "uint8": 8, "turbo8": 8, "turbo4": 4}
_SHIFT = 128  # its uint8 has no sign
_COPIED = ("shard_number", "replication_factor", "write_consistency_factor", "on_disk_payload")


class Qdrant(Database):
    """A collection; ``float32`` codes are held as ``float16``, ``int8`` as ``uint8``."""

    store = Store.QDRANT
    errors = (ApiException, RuntimeError)  # the second: another process holds the folder
    batch_size = 256

    def _connect(self, source: str, read_only: bool) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a key over http, and of a server whose version is another
            self._client = (
                QdrantClient(source, api_key=os.environ.get("QDRANT_API_KEY"), timeout=60)
                if "://" in source
                else QdrantClient(path=source)
            )

    def _describe(self, names: Names) -> None:
        if names.id_column is not None:
            raise UserError(f"--id-column {names.id_column}: points of Qdrant have their ids, leave it out")
        self._from, self._to = names.table, names.to or f"{names.table}_reduced"
        if not self._client.collection_exists(self._from):
            there = ", ".join(each.name for each in self._client.get_collections().collections) or "none"
            raise UserError(f"there is no collection {self._from}: there are {there}")
        if self._to == self._from:
            raise UserError(f"--to {self._to} is the collection of the full vectors: name a new one")
        self._params = self._client.get_collection(self._from).config.params
        found = self._params.vectors
        unnamed = found if isinstance(found, models.VectorParams) else None
        named = dict(found or {}) if unnamed is None else {}
        self._name = next(iter(named)) if names.column is None and len(named) == 1 else names.column
        vector = named.get(self._name) if self._name else unnamed
        if vector is None:
            given = f"no vector {self._name}" if self._name else "no vector without a name"
            raise UserError(
                f"{self._from} has {given}: give --column, its named vectors are {', '.join(named) or 'none'}"
            )
        self._vector = vector
        if self._vector.multivector_config is not None:
            raise UserError(
                f"{self._from} holds several vectors per point: expected one, see examples/7_late_interaction.py"
            )
        self.full = f"{self._from}.{self._name}" if self._name else self._from
        self.full_type, self.dimensions, self.reduced = _type(self._vector), self._vector.size, self._to

    def close(self) -> None:
        self._client.close()

    @property
    def reduced_type(self) -> str:
        return _type(self._new_vector())

    def _new_vector(self) -> models.VectorParams:
        distance = models.Distance.EUCLID if self.column.precision is Precision.INT8 else models.Distance.COSINE
        return models.VectorParams(
            size=self.out_features, distance=distance, datatype=models.Datatype(self.column.type)
        )

    def found_type(self) -> str | None:
        if not self._client.collection_exists(self._to):
            return None
        found = self._client.get_collection(self._to).config.params.vectors
        return _type(found) if isinstance(found, models.VectorParams) else "of named vectors"

    def count(self) -> tuple[int, int]:
        there = self._client.collection_exists(self._to)
        having = models.Filter(must=[models.HasVectorCondition(has_vector=self._name)]) if self._name else None
        full = self._client.count(self._from, count_filter=having).count
        return full, self._client.count(self._to).count if there else 0

    def sizes(self) -> tuple[int, int]:
        full, codes = self.count()
        bits = _BITS.get(self._vector.datatype or "float32", 32)
        return full * self.dimensions * bits // 8, codes * self.column.bytes_per_vector(self.out_features)

    def sample(self, rows: int) -> Iterator[np.ndarray]:
        if self._client.count(self._from).count <= rows:
            for points in self._pages(self._from, _FETCHED):
                yield self._vectors(points)
            return
        for _ in range(0, rows, _FETCHED):
            yield self._vectors(self._random(_FETCHED))

    def _random(self, count: int) -> list[Any]:
        random = models.SampleQuery(sample=models.Sample.RANDOM)
        given: Any = self._name if self._name else True
        found = self._client.query_points(
            self._from,
            query=random,
            using=self._name,
            limit=count,
            with_vectors=[given] if self._name else True,
            with_payload=False,
        )
        return found.points

    def _pages(self, collection: str, size: int) -> Iterator[list[Any]]:
        offset = None
        while True:
            points, offset = self._client.scroll(
                collection, limit=size, offset=offset, with_vectors=True, with_payload=False
            )
            if points:
                yield points
            if offset is None:
                return

    def _vector_of(self, point: Any) -> Any:
        return (point.vector or {}).get(self._name) if self._name else point.vector or None

    def _vectors(self, points: list[Any]) -> np.ndarray:
        found = [vector for point in points if (vector := self._vector_of(point)) is not None]
        return np.array(found, np.float32).reshape(-1, self.dimensions)

    def pairs(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        full = {point.id: vector for point in self._random(rows) if (vector := self._vector_of(point)) is not None}
        found = self._client.retrieve(self._to, list(full), with_vectors=True, with_payload=False)
        vectors = np.array([full[point.id] for point in found], np.float32).reshape(-1, self.dimensions)
        codes = np.array([point.vector for point in found], np.float32).reshape(-1, self.out_features)
        if self.column.precision is Precision.INT8:
            return vectors, (codes - _SHIFT).astype(np.int8)
        return vectors, codes

    def create(self) -> None:
        if self._client.collection_exists(self._to):
            return
        copied = {name: value for name in _COPIED if (value := getattr(self._params, name, None)) is not None}
        self._client.create_collection(self._to, self._new_vector(), **copied)

    def fill(self, encode: Encode, batch_size: int) -> Iterator[int]:
        offset = None
        while True:
            page, offset = self._client.scroll(
                self._from, limit=batch_size, offset=offset, with_vectors=False, with_payload=False
            )
            ids = [point.id for point in page]
            done = {point.id for point in self._client.retrieve(self._to, ids, with_payload=False)} if ids else set()
            missing = [id_ for id_ in ids if id_ not in done]
            if missing:
                points = self._client.retrieve(self._from, missing, with_vectors=True)
                points = [point for point in points if self._vector_of(point) is not None]
                if points:
                    self._write(points, encode([point.id for point in points], self._vectors(points)))
                    yield len(points)
            if offset is None:
                return

    def _write(self, points: list[Any], codes: np.ndarray) -> None:
        values = codes.astype(np.int16) + _SHIFT if self.column.precision is Precision.INT8 else codes
        batch = models.Batch(
            ids=[point.id for point in points],
            vectors=values.tolist(),
            payloads=[point.payload or {} for point in points],
        )
        self._client.upsert(self._to, batch, wait=True)

    @property
    def index(self) -> None:
        return None  # Qdrant makes it by itself

    def query(self, head: str) -> str:
        imports, given = "load_head", "reduced"
        if self.column.precision is Precision.INT8:
            imports, given = "load_head, quantize", f'quantize(reduced, "int8")[0].astype(int) + {_SHIFT}'
        else:
            given = "reduced[0]"
        return f"""\
from st_dimreduce import {imports}
reduced = load_head({head!r}).transform(vector[None])
client.query_points({self._to!r}, ({given}).tolist(), limit=10).points"""


def _type(vector: models.VectorParams) -> str:
    """Return the type of a vector in words: its datatype, size and distance."""
    return f"{models.Datatype(vector.datatype or 'float32').value}({vector.size}), {vector.distance.value}"
