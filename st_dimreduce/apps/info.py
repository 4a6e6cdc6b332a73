"""What a path holds: a head, a model, an export, an index, or vectors and codes, and how it came about."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from st_dimreduce.base_head import RECORD, BaseHead, FitRecord
from st_dimreduce.codes.fingerprint import shown
from st_dimreduce.codes.origin import INDEX_FILE, Origin, origin_beside
from st_dimreduce.errors import UserError
from st_dimreduce.models.load import load_head
from st_dimreduce.portable.graphs import EXPORT
from st_dimreduce.untrusted import read_object
from st_dimreduce.vectors.sources import mapped

_MODULES = "modules.json"
_TABLES = (".parquet", ".arrow", ".feather")
_SAID: tuple[str, ...] = (
    "method",
    "objective",
    "strength",
    "vectors",
    "cloze_pairs",
    "labelled_pairs",
    "mean_norm",
    "nested",
    "folded",
)
_SAID += ("base_model", "license", "versions")


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Say what a path holds, how it was made and what reads it; nothing is loaded but a head's weights.

    Args:
        path: A folder or file, or the name of a reduced model on the Hub.

    Returns:
        ``kind``, then what is known, as JSON can hold it.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If it is nothing that is known here, or is damaged.
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
        return _folder_of_codes(place, origin)
    if place.is_dir() and not ((place / RECORD).exists() or (place / _MODULES).exists()):
        raise UserError(f"{place} holds no head, model, export or index: give a folder that st-dimreduce wrote")
    is_model = (place / _MODULES).exists() or not place.exists()
    return _head(load_head(path), place, is_model)


def _head(head: BaseHead, place: Path, is_model: bool) -> dict[str, Any]:
    record: FitRecord = head.record
    about = {name: value for name, value in record.to_dict(large=False).items() if name in _SAID}
    size = head.precision.bytes_per_vector(head.out_features)
    use = f"SentenceTransformer({str(place)!r}), or any reader of st-dimreduce check" if is_model else None
    return {
        "kind": "reduced model" if is_model else "head",
        "in_features": head.in_features,
        "out_features": head.out_features,
        "precision": head.precision.value,
        "bytes per vector": size,
        "head": shown(head.fingerprint),
        **about,
        "read it with": use or f"load_head({str(place)!r}), st-dimreduce apply and attach",
    }


def _index(place: Path) -> dict[str, Any]:
    from st_dimreduce.vectors.index import Index  # noqa: PLC0415, needs FAISS

    opened = Index.load(place)
    return {
        "kind": f"{opened.kind.value} index of codes",
        "vectors": len(opened),
        **opened.origin.said,
        "bytes": sum(path.stat().st_size for path in place.iterdir()),
        "recall@10 by cells": dict(zip(opened.measured.cells, opened.measured.recalls["10"], strict=True)),
        "read it with": f"Index.load({str(place)!r}), st-dimreduce index search, or faiss.read_index",
    }


def _array(place: Path) -> dict[str, Any]:
    rows = mapped(place)
    about: dict[str, Any] = {"kind": "vectors", "vectors": len(rows), "dimensions": rows.shape[1]}
    if origin := origin_beside(place):
        about = {"kind": "codes", "vectors": len(rows), **origin.said}
    elif rows.dtype in (np.uint8, np.int8):
        about = {"kind": "codes, or vectors of bytes", "vectors": len(rows), "bytes per vector": rows.shape[1]}
    return about | {"stored as": str(rows.dtype), "bytes": place.stat().st_size}


def _folder_of_codes(place: Path, origin: Origin) -> dict[str, Any]:
    files = [mapped(path) for path in sorted(place.glob("*.npy"))]
    return {"kind": "codes", "vectors": sum(map(len, files)), **origin.said, "files": len(files)}


def _table(place: Path) -> dict[str, Any]:
    from st_dimreduce.vectors.arrow import columns_about  # noqa: PLC0415, needs pyarrow

    rows, columns = columns_about(place)
    return {"kind": "table", "vectors": rows, "bytes": place.stat().st_size, "columns": columns}
