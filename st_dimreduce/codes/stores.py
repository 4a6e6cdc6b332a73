"""The types of vector stores that take our codes as they are, byte for byte or cast without loss.

They are the rows of ``stores.csv``. docs/stores.md adds how codes are handed over, the distances, the stores'
own quantisers and the sources.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from st_dimreduce.enums import Precision, Store


@dataclass(frozen=True)
class Column:
    """A type of a store that holds vectors of one precision and is searched there.

    Attributes:
        precision: The precision of the codes.
        type: The store's name for the type.
        query: Precision in which the store takes queries: ``"float32"``, or that of the codes.
        bits: Bits per dimension. Defaults to those of the precision.
        most: Dimensions of a vector at most, with an index; None where no limit is stated.
    """

    precision: Precision
    type: str = "codes"
    query: Precision = Precision.FLOAT32
    bits: int = 0
    most: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", self.bits or self.precision.bits)

    def bytes_per_vector(self, out_features: int) -> int:
        """Return the bytes of a vector's codes in the store, without ids and index."""
        return math.ceil(out_features * self.bits / 8)


@cache
def all_columns() -> dict[Store, tuple[Column, ...]]:
    """Return every type of every store, in the order of ``stores.csv``."""
    columns: dict[Store, tuple[Column, ...]] = {}
    with files("st_dimreduce.codes").joinpath("stores.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            store, most = Store(row["store"]), row["most"]
            precision, query = Precision(row["precision"]), Precision(row["query"])
            column = Column(precision, row["type"], query, int(row["bits"]), int(most) if most else None)
            columns[store] = (*columns.get(store, ()), column)
    return columns


def columns_of(store: Store) -> tuple[Column, ...]:
    """Return the types of a store to choose from: of each precision the one of fewest bits, the first where equal."""
    narrowest: dict[Precision, Column] = {}
    for column in all_columns()[store]:
        if column.precision not in narrowest or column.bits < narrowest[column.precision].bits:
            narrowest[column.precision] = column
    return tuple(narrowest.values())
