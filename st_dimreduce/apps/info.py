"""What a path holds: a head, a model, an export, an index, vectors or codes, and how it was made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from st_dimreduce.codes.fingerprint import abbreviate
from st_dimreduce.codes.origin import INDEX_FILE, Origin, origin_beside
from st_dimreduce.codes.rows import map_array
from st_dimreduce.head import Head
from st_dimreduce.portable.graphs import EXPORT
from st_dimreduce.untrusted import read_object

_MODULES = "modules.json"
_TABLES = (".parquet", ".arrow", ".feather")
_SHOWN: tuple[str, ...] = (
    "method",
    "objective",
    "strength",
    "vectors",
    "cloze_pairs",
    "labelled_pairs",
    "mean_norm",
    "nested",
)
_SHOWN += ("base_model", "license", "versions")  # fields of a fit record


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a path holds, how it was made and what reads it; only a head's weights are loaded.

    Args:
        path: A folder or file, or the name of a reduced model on the Hub.

    Returns:
        ``kind``, then what is known of it, as JSON can hold it.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        UserError: If it is of another kind, or damaged.
    """
    place = Path(path)
    if not place.exists() and os.fspath(path).count("/") != 1:
        raise FileNotFoundError(f"no file or folder {place}: give that of a head, a model, an index, vectors or codes")
    if (place / INDEX_FILE).is_file():
        return _index(place)
    if (place / EXPORT).is_file() and not any(place.glob("*.safetensors")):
        about = read_object(place / EXPORT)
        return {"kind": "exported graph", **about, "read it with": "ONNX Runtime, or any reader of docs/serving.md"}
    if place.suffix == ".npy":
        return _array(place)
    if place.suffix in _TABLES:
        return _table(place)
    if place.is_dir() and (origin := origin_beside(place)):
        return _codes(place, origin)
    return _head(Head.load(path), place)


def _head(head: Head, place: Path) -> dict[str, Any]:
    record, is_model = head.record.to_dict(large=False), (place / _MODULES).exists() or not place.exists()
    use = f"SentenceTransformer({str(place)!r}), or any reader of st-dimreduce check"
    return {
        "kind": "reduced model" if is_model else "head",
        "in_features": head.in_features,
        "out_features": head.out_features,
        "precision": head.precision.value,
        "bytes per vector": head.precision.bytes_per_vector(head.out_features),
        "head": abbreviate(head.fingerprint),
        **{name: record[name] for name in _SHOWN if name in record},
        "read it with": use if is_model else f"Head.load({str(place)!r}), st-dimreduce transform and attach",
    }


def _index(place: Path) -> dict[str, Any]:
    from st_dimreduce.vectors.index import Index  # noqa: PLC0415, needs FAISS

    opened = Index.load(place)
    return {
        "kind": f"{opened.kind.value} index of codes",
        "vectors": len(opened),
        **opened.origin.summary,
        "bytes": sum(path.stat().st_size for path in place.iterdir()),
        "recall@10 by cells": dict(zip(opened.measured.cells, opened.measured.recalls["10"], strict=True)),
        "read it with": f"Index.load({str(place)!r}), st-dimreduce index search, or faiss.read_index",
    }


def _array(place: Path) -> dict[str, Any]:
    rows = map_array(place)
    about: dict[str, Any] = {"kind": "vectors", "vectors": len(rows), "dimensions": rows.shape[1]}
    if origin := origin_beside(place):
        about = _codes(place, origin)
    elif rows.dtype in (np.uint8, np.int8):
        about = {"kind": "codes, or vectors of bytes", "vectors": len(rows), "bytes per vector": rows.shape[1]}
    return about | {"stored as": str(rows.dtype), "bytes": place.stat().st_size}


def _codes(place: Path, origin: Origin) -> dict[str, Any]:
    files = [place] if place.is_file() else sorted(place.glob("*.npy"))
    return {
        "kind": "codes",
        "vectors": sum(len(map_array(file)) for file in files),
        **origin.summary,
        "files": len(files),
    }


def _table(place: Path) -> dict[str, Any]:
    from st_dimreduce.codes.tables import field_origin  # noqa: PLC0415, needs pyarrow
    from st_dimreduce.vectors.tables import schema_and_rows  # noqa: PLC0415, needs pyarrow

    schema, rows = schema_and_rows(place)
    columns = []
    for field in schema:
        origin = field_origin(field)
        columns.append({"name": field.name, "type": str(field.type), **(origin.summary if origin else {})})
    return {"kind": "table", "vectors": rows, "bytes": place.stat().st_size, "columns": columns}
