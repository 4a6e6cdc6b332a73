"""What an index consists of: ``index.json``, whose replacement is what changes an index."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from st_dimreduce.codes.segments import DAMAGED, Files
from st_dimreduce.enums import Kind, Precision
from st_dimreduce.files import new_file, write_json
from st_dimreduce.untrusted import read_object, short

MANIFEST = "index.json"
_FORMAT = "st_dimreduce.index.1"
_MOST_BYTES = 2**28


@dataclass(frozen=True)
class SegmentState:
    """A segment as the manifest names it."""

    name: str
    rows: int
    files: Files
    removed: str | None = None
    removed_rows: int = 0


@dataclass(frozen=True)
class Manifest:
    """What ``index.json`` says.

    Attributes:
        kind: Kind of index.
        precision: Precision of the codes.
        out_features: Dimensions k of a vector.
        head: Digest of the head that gave the codes.
        named: Whether ids are strings.
        next_id: The id that the next vector without one gets.
        generation: Number of changes since the index was built.
        candidates: Candidates that are rescored, per result.
        efforts: Cells per query, ascending, whose recall was measured.
        recalls: By number of results, the recall at each effort.
        files: Files that all segments share.
        segments: The segments.
    """

    kind: Kind
    precision: Precision
    out_features: int
    head: str
    named: bool
    next_id: int = 0
    generation: int = 0
    candidates: int = 16
    efforts: tuple[int, ...] = ()
    recalls: dict[str, list[float]] | None = None
    files: Files | None = None
    segments: tuple[SegmentState, ...] = ()

    def write(self, path: Path) -> None:
        """Replace the manifest in a folder."""
        content = {"format": _FORMAT, **json.loads(json.dumps(asdict(self)))}
        with new_file(path / MANIFEST) as file:
            write_json(file, {**content, "hash": _hash(content)})

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read the manifest of a folder.

        Raises:
            ValueError: If there is none, or it is damaged.
        """
        if not (path / MANIFEST).is_file():
            raise ValueError(f"{path} holds no {MANIFEST}: expected an index that build_index made")
        content = read_object(path / MANIFEST, _MOST_BYTES)
        if content.get("format") != _FORMAT:
            known = f"expected {_FORMAT}: build the index again with this version"
            raise ValueError(f"{path / MANIFEST} is of format {short(content.get('format'))}, {known}")
        digest = content.pop("hash", None)
        if digest != _hash(content):
            raise ValueError(f"{path / MANIFEST} was changed after it was written: {DAMAGED}")
        del content["format"]
        segments = tuple(SegmentState(**each) for each in content.pop("segments"))
        kind, precision = Kind(content.pop("kind")), Precision(content.pop("precision"))
        efforts = tuple(content.pop("efforts"))
        return cls(kind, precision, **content, efforts=efforts, segments=segments)


def _hash(content: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def check_name(name: str) -> None:
    """Raise ``ValueError`` if a name in a manifest leads out of the folder."""
    if not isinstance(name, str) or Path(name).name != name or not name.startswith(("segment-", "removed-")):
        raise ValueError(f"{MANIFEST} names {short(name)}: {DAMAGED}")
