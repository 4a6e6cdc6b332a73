"""What an index consists of: ``index.json``, whose replacement is what changes an index."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from st_dimreduce.codes.calibration import DEPTHS
from st_dimreduce.codes.lists import is_packed
from st_dimreduce.codes.segments import DAMAGED, Files
from st_dimreduce.enums import Kind, Precision
from st_dimreduce.errors import UserError
from st_dimreduce.files import new_file, write_json
from st_dimreduce.untrusted import read_object, short

MANIFEST = "index.json"
_FORMAT = "st_dimreduce.index.1"
_MOST_BYTES = 2**28
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")


@dataclass(frozen=True)
class SegmentState:
    """A segment as the manifest names it.

    Attributes:
        name: Its folder.
        rows: Number of vectors in it.
        files: Its files.
        removed: The one of them that says which vectors were removed; None if none was.
        removed_rows: How many were.
    """

    name: str
    rows: int
    files: Files
    removed: str | None = None
    removed_rows: int = 0

    def __post_init__(self) -> None:
        _check(_is_name(self.name, "segment-"), self.name)
        _check(_is_count(self.rows, 1) and _is_count(self.removed_rows) and self.removed_rows <= self.rows, self.rows)
        _check_files(self.files)
        _check(
            self.removed is None or (_is_name(self.removed, "removed-") and self.removed in self.files), self.removed
        )


@dataclass(frozen=True)
class Manifest:
    """What ``index.json`` says.

    Attributes:
        kind: Kind of index.
        precision: Precision of the codes.
        out_features: Dimensions k of a vector.
        head: Digest of the head that gave the codes, as it lies in the index.
        fingerprint: Its fingerprint, by which it is known behind a model.
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
    fingerprint: str = ""
    next_id: int = 0
    generation: int = 0
    candidates: int = 16
    efforts: tuple[int, ...] = ()
    recalls: dict[str, list[float]] | None = None
    files: Files | None = None
    segments: tuple[SegmentState, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", Kind(self.kind))
        object.__setattr__(self, "precision", Precision(self.precision))
        for name, least, most in (("out_features", 1, 2**20), ("candidates", 1, 2**12), ("generation", 0, 2**53)):
            _check(_is_count(getattr(self, name), least, most), getattr(self, name))
        _check(_is_count(self.next_id) and isinstance(self.named, bool) and _is_digest(self.head), self.head)
        _check(_is_digest(self.fingerprint), self.fingerprint)
        _check(all(_is_count(effort, 1) for effort in self.efforts), self.efforts)
        _check(list(self.efforts) == sorted(self.efforts), self.efforts)
        if self.recalls is not None:
            _check(
                isinstance(self.recalls, dict) and list(self.recalls) == [str(depth) for depth in DEPTHS], self.recalls
            )
            for measured in self.recalls.values():
                _check(isinstance(measured, list) and len(measured) == len(self.efforts) > 0, measured)
                _check(all(isinstance(each, (int, float)) and 0 <= each <= 1 for each in measured), measured)
        _check_files(self.files or {})
        names = [state.name for state in self.segments]
        _check(len(set(names)) == len(names), names)

    @property
    def packed(self) -> bool:
        """Whether codes lie in blocks of 32; a graph reads them one by one."""
        return is_packed(self.precision) and self.kind is not Kind.HNSW

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
            raise UserError(f"{path} holds no {MANIFEST}: expected an index that build_index made")
        content = read_object(path / MANIFEST, _MOST_BYTES)
        if content.get("format") != _FORMAT:
            known = f"expected {_FORMAT}: build the index again with this version"
            raise UserError(f"{path / MANIFEST} is of format {short(content.get('format'))}, {known}")
        digest = content.pop("hash", None)
        if digest != _hash(content):
            raise UserError(f"{path / MANIFEST} was changed after it was written: {DAMAGED}")
        del content["format"]
        try:
            segments = tuple(SegmentState(**each) for each in content.pop("segments"))
            return cls(**content | {"segments": segments, "efforts": tuple(content.get("efforts", ()))})
        except (KeyError, TypeError, ValueError) as error:
            said = str(error).split(":")[0]
            raise UserError(f"{path / MANIFEST} cannot be what was written ({said}): {DAMAGED}") from error


def _hash(content: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _check(holds: bool, value: Any) -> None:
    if not holds:
        raise UserError(f"{MANIFEST} says {short(value)}: {DAMAGED}")


def _is_count(value: Any, least: int = 0, most: int = 2**63) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_name(value: Any, begin: str = "") -> bool:
    """Whether this is the name of a file or folder, which leads nowhere else."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None and value.startswith(begin)


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and value.isascii()


def _check_files(files: Any) -> None:
    _check(isinstance(files, dict) and all(_is_name(name) for name in files), files)
    for about in files.values():
        _check(isinstance(about, list) and len(about) == 2 and _is_count(about[0]) and _is_digest(about[1]), about)
