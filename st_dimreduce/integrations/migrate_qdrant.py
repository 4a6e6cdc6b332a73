"""Qdrant, a server or its local mode: codes in a new collection, under the same ids and with the same payloads."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from st_dimreduce.enums import Precision, Store
from st_dimreduce.errors import MissingExtraError, UserError
from st_dimreduce.integrations.database import Counts, Database, Plan, Row

try:
    from qdrant_client import QdrantClient, models
    from qdrant_client.http.exceptions import ApiException
except ModuleNotFoundError as error:
    raise MissingExtraError("Qdrant needs its client: pip install 'st_dimreduce[databases]'") from error

_PAGE = 1000  # points of which the ids, or the vectors of a sample, are read at a time
_BITS = {"float32": 32, "float16": 16, "turbo16": 16, "uint8": 8, "turbo8": 8, "turbo4": 4}
_SHIFT = 128  # its uint8 has no sign
_COPIED = ("shard_number", "replication_factor", "write_consistency_factor", "on_disk_payload")


class Qdrant(Database):
    """A collection; ``float32`` codes are held as ``float16``, ``int8`` as ``uint8``."""

    store = Store.QDRANT
    errors = (ApiException, RuntimeError)  # the second: another process holds the folder

    def __init__(self, address: str, password: str, read_only: bool) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a key over http, and of a server whose version is another
            self.connection = (
                QdrantClient(address, api_key=os.environ.get("QDRANT_API_KEY"), timeout=60)
                if "://" in address
                else QdrantClient(path=address)
            )

    def find(self, plan: Plan) -> None:
        if plan.id_column is not None:
            raise UserError(f"--id-column {plan.id_column}: points of Qdrant have their ids, leave it out")
        self._from, self.reduced = plan.table, plan.to or f"{plan.table}_reduced"
        if not self.connection.collection_exists(self._from):
            there = ", ".join(each.name for each in self.connection.get_collections().collections) or "none"
            raise UserError(f"there is no collection {self._from}: there are {there}")
        if self.reduced == self._from:
            raise UserError(f"--to {self.reduced} is the collection of the full vectors: name a new one")
        self._params = self.connection.get_collection(self._from).config.params
        vectors = self._params.vectors or {}
        named = {"": vectors} if isinstance(vectors, models.VectorParams) else vectors
        # The vector without a name has an empty one.
        self._name = next(iter(named)) if plan.column is None and len(named) == 1 else plan.column or ""
        if self._name not in named:
            given = f"vector {self._name}" if self._name else "vector without a name"
            there = ", ".join(filter(None, named)) or "none"
            raise UserError(f"{self._from} has no {given}: give --column, its named vectors are {there}")
        vector = named[self._name]
        if vector.multivector_config is not None:
            raise UserError(f"{self._from} holds several vectors per point: expected one")
        self.full = f"{self._from}.{self._name}" if self._name else self._from
        self.full_type, self.in_features = _type(vector), vector.size
        self.full_bits = _BITS.get(vector.datatype or "float32", 32)
        self._full = models.HasVectorCondition(has_vector=self._name)
        self.found_type = None
        if self.connection.collection_exists(self.reduced):
            found = self.connection.get_collection(self.reduced).config.params.vectors
            self.found_type = _type(found) if isinstance(found, models.VectorParams) else "of named vectors"

    def _codes(self) -> models.VectorParams:
        distance = models.Distance.EUCLID if self.column.precision is Precision.INT8 else models.Distance.COSINE
        return models.VectorParams(
            size=self.out_features, distance=distance, datatype=models.Datatype(self.column.type)
        )

    @property
    def reduced_type(self) -> str:
        return _type(self._codes())

    def count(self) -> Counts:
        rows = self.connection.count(self._from, count_filter=models.Filter(must=[self._full])).count
        codes = self.connection.count(self.reduced).count if self.found_type else 0
        without = sum(len(ids) for ids in self._unpaired(self.reduced, self._from)) if codes else 0
        return Counts(rows, codes - without, codes)

    def _unpaired(self, collection: str, other: str, page: int = _PAGE) -> Iterator[list[Any]]:
        """Yield the ids of points that another collection lacks; of full vectors, points without them do not count."""
        offset: Any = None
        while True:
            ids, offset = self._ids(collection, page, offset=offset)
            there, _ = self._ids(other, page, models.HasIdCondition(has_id=ids)) if ids else ([], None)
            if missing := [id_ for id_ in ids if id_ not in set(there)]:
                yield missing
            if offset is None:
                return

    def _ids(self, collection: str, limit: int, *conditions: Any, offset: Any = None) -> tuple[list[Any], Any]:
        must = [*conditions, self._full] if collection == self._from else [*conditions]
        points, offset = self.connection.scroll(
            collection, models.Filter(must=must), limit=limit, offset=offset, with_payload=False
        )
        return [point.id for point in points], offset

    def _read(self, ids: list[Any], with_payload: bool) -> tuple[list[Row], np.ndarray]:
        """Return the full vectors of these points that have not been deleted meanwhile."""
        vectors = [self._name] if self._name else True
        points = self.connection.retrieve(self._from, ids, with_vectors=vectors, with_payload=with_payload)
        # A vector without a name is alone, or among sparse ones under an empty name.
        found = [point.vector[self._name] if isinstance(point.vector, dict) else point.vector for point in points]
        rows = [Row(point.id, point.payload) for point in points]
        return rows, np.array(found, np.float32).reshape(-1, self.in_features)

    def sample(self, rows: int, coded: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        place = self.reduced if coded else self._from
        conditions: list[Any] = [] if coded else [self._full]
        drawn = self.connection.query_points(
            place,
            query=models.SampleQuery(sample=models.Sample.RANDOM),
            query_filter=models.Filter(must=conditions),
            limit=rows,
            with_payload=False,
        ).points
        for start in range(0, len(drawn), _PAGE):
            points, vectors = self._read([point.id for point in drawn[start : start + _PAGE]], with_payload=False)
            codes: np.ndarray = np.empty((len(points), 0))
            if coded:
                found = self.connection.retrieve(self.reduced, [point.id for point in points], with_vectors=True)
                by_id = {point.id: point.vector for point in found}
                codes = np.array([by_id[point.id] for point in points], np.float32).reshape(-1, self.out_features)
                codes = (codes - _SHIFT).astype(np.int8) if self.column.precision is Precision.INT8 else codes
            yield vectors, codes

    def create(self) -> None:
        copied = {name: value for name in _COPIED if (value := getattr(self._params, name, None)) is not None}
        self.connection.create_collection(self.reduced, self._codes(), **copied)
        self.found_type = self.reduced_type

    def missing(self, batch_size: int) -> Generator[tuple[list[Row], np.ndarray], None, None]:
        for ids in self._unpaired(self._from, self.reduced, batch_size):
            yield self._read(ids, with_payload=True)

    def write(self, rows: list[Row], codes: np.ndarray) -> None:
        values = codes.astype(np.int16) + _SHIFT if self.column.precision is Precision.INT8 else codes
        payloads = [row.payload or {} for row in rows]
        batch = models.Batch(ids=[row.id for row in rows], vectors=values.tolist(), payloads=payloads)
        self.connection.upsert(self.reduced, batch, wait=True)

    def prune(self) -> None:
        for ids in self._unpaired(self.reduced, self._from):
            self.connection.delete(self.reduced, ids, wait=True)

    def usage(self, head: str) -> tuple[None, str]:
        given = f"Head.load({head!r}).transform(vector[None])[0]"
        if self.column.precision is Precision.INT8:
            given = f'Head.load({head!r}).encode(vector[None], "int8").values[0].astype(int) + {_SHIFT}'
        return (
            None,
            f"""\
from st_dimreduce import Head
query = {given}
client.query_points({self.reduced!r}, query.tolist(), limit=10).points""",
        )


def _type(vector: models.VectorParams) -> str:
    """Return the type of a vector in words: its datatype, size and distance."""
    return f"{models.Datatype(vector.datatype or 'float32').value}({vector.size}), {vector.distance.value}"
