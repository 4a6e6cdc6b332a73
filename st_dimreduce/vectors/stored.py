"""Codes that lie in files: reading them in order, and what made them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from st_dimreduce.base_head import BaseHead
from st_dimreduce.codes.origin import INDEX_FILE, Origin, origin_beside
from st_dimreduce.enums import Precision
from st_dimreduce.errors import UserError
from st_dimreduce.untrusted import printable
from st_dimreduce.vectors.kinds import open_source
from st_dimreduce.vectors.sources import DEFAULT_BATCH_BYTES, Files, library, mapped, slices

_SLICE = 1 << 16  # rows read at a time


@dataclass(frozen=True)
class StoredCodes:
    """Codes in ``.npy`` files or in a column of a table.

    Attributes:
        name: What they are called in a message.
        origin: What made them; None if that was not written.
        rows: How many there are; None where the source does not say.
        arrays: The arrays, mapped from files; None for a table.
        table: The table; None for arrays.
    """

    name: str
    origin: Origin | None
    rows: int | None
    arrays: tuple[np.ndarray, ...] | None = None
    table: Any = None

    def chunks(self, start: int = 0) -> Iterator[np.ndarray]:
        """Yield the codes from a row on, arrays of shape (n, width) as :func:`st_dimreduce.quantize` gave them."""
        if self.arrays is None:
            yield from (codes for codes, _ in self.table.chunks(start, DEFAULT_BATCH_BYTES))
            return
        for array in self.arrays:
            for rows in slices(start, len(array), _SLICE):
                yield array[rows]
            start = max(start - len(array), 0)

    def check(self, head: BaseHead, precision: Precision | None = None) -> None:
        """Raise ``ValueError`` if the codes are known to be of another head, or of another precision."""
        if self.origin is None:
            return
        self.origin.check(head.fingerprint, self.name)
        if precision not in (None, self.origin.precision):
            made = self.origin.precision.value
            asked = f"pass precision={made!r} (--precision {made})"
            raise UserError(f"{self.name} holds {made} codes, not {precision}: {asked}, or start anew")


def open_codes(source: Any, column: str | None = None) -> StoredCodes | None:
    """Find the codes that a source holds, without reading one.

    Args:
        source: A path as in :func:`st_dimreduce.reduce_vectors`, an array, or a table.
        column: The column of codes in a table; None (the default) for the only one.

    Returns:
        The codes; None if it is neither an array nor a table with a column that :func:`st_dimreduce.reduce_vectors`
        wrote. Arrays are returned whatever they hold.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If an array cannot be read, or what says where its codes come from is damaged.
    """
    if isinstance(source, np.ndarray):
        return StoredCodes("the array", None, len(source), (source,))
    if isinstance(source, (str, os.PathLike)) and (Path(source) / INDEX_FILE).is_file():
        raise UserError(f"{source} is an index: search it with st-dimreduce index search, or Index.load")
    name = printable(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else "the table"
    if isinstance(source, (str, os.PathLike)):
        paths = Files.at(Path(source), (".npy",)).paths
        if paths:
            arrays = tuple(mapped(path) for path in paths)
            return StoredCodes(name, origin_beside(Path(source)), sum(map(len, arrays)), arrays)
    elif library(source) not in ("pyarrow", "datasets"):
        return None
    from st_dimreduce.vectors.arrow import NoSuchColumnError  # noqa: PLC0415, optional

    try:
        table: Any = open_source(source, column, codes=True)
    except NoSuchColumnError:
        return None
    return StoredCodes(name, table.origin, table.rows, table=table)
