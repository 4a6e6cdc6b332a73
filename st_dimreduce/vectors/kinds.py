"""Which class reads a source, and which one writes a sink: the only file that knows all of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from st_dimreduce.errors import UserError
from st_dimreduce.vectors.sinks import CodesFile, NpyFile
from st_dimreduce.vectors.sources import (
    EXPECTED,
    ArraySource,
    FaissSource,
    Files,
    IterableSource,
    NpySource,
    Source,
    library,
)

_FORMATS = {".npy": ".npy", ".parquet": ".parquet", ".arrow": ".arrow", ".feather": ".arrow"}  # of files, by suffix
_NUMPY_SOURCES = (NpySource, ArraySource, FaissSource, IterableSource)
_SINKS = ("", ".npy", ".arrow", ".parquet")


def open_source(source: Any, column: str | None = None, codes: bool = False) -> Source:
    """Find out what was given, without reading a vector.

    Args:
        source: As in :func:`st_dimreduce.reduce_vectors`.
        column: The column of vectors in a table; None (the default) for the only one.
        codes: Whether it holds codes in place of vectors. Defaults to False.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ModuleNotFoundError: If it is a table and pyarrow is missing.
        ValueError: If vectors cannot be read from it.
    """
    name = type(source).__name__
    tabular = library(source) in ("pyarrow", "datasets")
    if isinstance(source, (str, os.PathLike)):
        name, source = str(source), Files.at(Path(source), tuple(_FORMATS))
        formats = sorted({_FORMATS[path.suffix.lower()] for path in source.paths})
        if len(formats) != 1:
            raise UserError(f"{name} holds {' and '.join(formats) or 'no vectors'}: {EXPECTED}")
        tabular = formats != [".npy"]
    if tabular:
        from st_dimreduce.vectors.arrow import TABLES  # noqa: PLC0415, optional

        for table in TABLES:
            if table.accepts(source):
                return table(source, column, codes)
    elif column is not None:
        raise UserError(f"column {column!r} was named, but {name} is not a table: leave the column out")
    else:
        for kind in _NUMPY_SOURCES:
            if kind.accepts(source):
                return kind(source)
    raise UserError(f"{name} holds no vectors: {EXPECTED}")


def sink_files(sink: Path, tabular: bool) -> tuple[type[CodesFile], type[CodesFile] | None]:
    """Return the class that writes a sink's part files, and the one that joins them; None for a folder of parts.

    Args:
        sink: The sink.
        tabular: Whether the source is a table.

    Raises:
        ModuleNotFoundError: If the sink is a table and pyarrow is missing.
        ValueError: If the sink's suffix is unknown.
    """
    if sink.suffix not in _SINKS:
        raise UserError(f"{sink} ends in {sink.suffix}: expected .npy, .parquet, .arrow, or no suffix for a folder")
    if sink.suffix == ".npy":
        return NpyFile, NpyFile
    if not sink.suffix and not tabular:
        return NpyFile, None
    from st_dimreduce.vectors.arrow import IpcFile, ParquetFile  # noqa: PLC0415, optional

    if not sink.suffix:
        return ParquetFile, None
    return IpcFile, ParquetFile if sink.suffix == ".parquet" else IpcFile
