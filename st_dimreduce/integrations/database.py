"""What a migration needs of a database: full vectors without a code, and a place for the codes beside them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from st_dimreduce.codes.rows import as_count
from st_dimreduce.codes.stores import Column
from st_dimreduce.enums import Objective, OnBadRow, Precision, Store


@dataclass(frozen=True)
class Plan:
    """What to reduce in a database, and how.

    Args:
        table: Table or collection of the full vectors, such as ``"documents"`` or ``"schema.documents"``, as the
            database stores its name, without quotes.
        column: Column, or named vector, of the full vectors. Defaults to None: the only one, or Qdrant's unnamed one.
        id_column: Column of the ids, unique and not null. Defaults to None: the primary key, or else such a column.
        to: Where the codes go: a new column, or ``"table.column"`` of a new table (pgvector), or a new collection
            (Qdrant). Defaults to None: the old name and ``_reduced``.
        precision: Precision of the codes. Defaults to None: the head's.
        bytes: Where the folder of the head does not exist: fit one for so many bytes per vector on a sample of the full
            vectors, and save it there. Defaults to None: the head must exist.
        objective: Of that fit, as in :meth:`st_dimreduce.Head.fit`. Defaults to ``"quality"``.
        on_bad_row: ``"raise"`` (the default) stops at a vector that is NaN, infinite or zero; ``"zero"`` stores the
            code of a zero vector.
        batch_size: Rows per transaction. Defaults to 500.
        prune: Delete codes whose full vector is gone. Defaults to False: only count them.

    Raises:
        UserError: If a choice is not known, or ``batch_size`` is less than 1.
    """

    table: str
    column: str | None = None
    id_column: str | None = None
    to: str | None = None
    precision: Precision | str | None = None
    bytes: int | None = None
    objective: Objective | str = Objective.QUALITY
    on_bad_row: OnBadRow | str = OnBadRow.RAISE
    batch_size: int = 500
    prune: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("precision", Precision), ("objective", Objective), ("on_bad_row", OnBadRow)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, kind(value))
        as_count(self.batch_size, "batch_size", "reduce at least 1 row at a time")


class Counts(NamedTuple):
    """Numbers of full vectors, of those with a code, and of codes, those included whose full vector is gone."""

    rows: int
    done: int
    codes: int

    @property
    def missing(self) -> int:
        """Full vectors without a code."""
        return self.rows - self.done


class Row(NamedTuple):
    """A full vector's id, and in Qdrant its payload."""

    id: Any
    payload: dict[str, Any] | None = None


class Database(ABC):
    """The full vectors of a database, and the place beside them for the codes."""

    store: ClassVar[Store]
    errors: ClassVar[tuple[type[Exception], ...]]  # what its client raises
    connection: Any  # with a method close
    full: str  # where the full vectors are, as messages name it
    full_type: str
    full_bits: int  # per dimension
    in_features: int
    reduced: str  # where the codes are
    found_type: str | None  # of the codes that are there; None if there is no such place
    column: Column  # the type of the codes, from _choose
    out_features: int

    @abstractmethod
    def find(self, plan: Plan) -> None:
        """Find the full vectors, and the place beside them."""

    @property
    @abstractmethod
    def reduced_type(self) -> str:
        """Type of the codes, as the store writes it."""

    @abstractmethod
    def create(self) -> None:
        """Make the place of the codes."""

    @abstractmethod
    def count(self) -> Counts:
        """Count full vectors and codes."""

    @abstractmethod
    def sample(self, rows: int, coded: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield up to so many full vectors at random, float32; with ``coded``, of those with a code, and the codes."""

    @abstractmethod
    def missing(self, batch_size: int) -> Generator[tuple[list[Row], np.ndarray], None, None]:
        """Yield the full vectors without a code in batches: what is written before the next is in one transaction."""

    @abstractmethod
    def write(self, rows: list[Row], codes: np.ndarray) -> None:
        """Write the codes of a batch, as ``quantize`` gave them."""

    @abstractmethod
    def prune(self) -> None:
        """Delete the codes whose full vector is gone."""

    @abstractmethod
    def usage(self, head: str) -> tuple[str | None, str]:
        """Return the statement that makes an index, if one is to be made, and Python that finds the ten nearest."""
