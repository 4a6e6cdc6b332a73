"""Which head made codes: it is written with them, so that those of another head are not taken for them.

Tables hold it in the metadata of their column of codes. A ``.npy`` file cannot: ``NAME.npy.codes.json`` lies
beside it, and ``codes.json`` in a folder of such files. Files without it, such as those of other programs, are
taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_dimreduce.codes.fingerprint import same_head, shown
from st_dimreduce.enums import Precision
from st_dimreduce.errors import UserError
from st_dimreduce.untrusted import read_object

PREFIX = "st_dimreduce."
INDEX_FILE = "index.json"  # in the folder of an index, which holds it too
_FILE = "codes.json"
_FORMAT = "st_dimreduce.codes.1"


@dataclass(frozen=True)
class Origin:
    """What codes were made by.

    Attributes:
        precision: Precision of the codes.
        out_features: Dimensions of the reduced vectors.
        head: :attr:`st_dimreduce.Head.fingerprint` of the head; None where it was not written.
    """

    precision: Precision
    out_features: int
    head: str | None

    @classmethod
    def read(cls, known: Mapping[str, Any], where: object) -> Origin | None:
        """Return what :attr:`known` gave; None where there is nothing of the kind.

        Raises:
            ValueError: If it is damaged.
        """
        try:
            values = known["precision"], known["out_features"]
        except KeyError:
            return None
        head = known.get("head")
        try:
            origin = cls(Precision(values[0]), int(values[1]), head)
        except (ValueError, TypeError) as error:
            raise UserError(f"{where} says {values[0]} of {values[1]} of its codes: it is damaged") from error
        if head is not None and (not isinstance(head, str) or not head.isalnum()):
            raise UserError(f"{where} names no head of its codes: it is damaged")
        return origin

    @property
    def known(self) -> dict[str, str]:
        """What is written, by name."""
        head = {} if self.head is None else {"head": self.head}
        return {"precision": self.precision.value, "out_features": str(self.out_features), **head}

    @property
    def said(self) -> dict[str, str]:
        """What people are shown, by name."""
        return self.known | ({} if self.head is None else {"head": shown(self.head)})

    @property
    def content(self) -> dict[str, str]:
        """What the file beside codes holds."""
        return {"format": _FORMAT, **self.known}

    def check(self, head: str, where: object) -> None:
        """Raise ``UserError`` if the codes were made by another head than that of this fingerprint."""
        if self.head is not None and not same_head(self.head, head):
            made = f"made by head {shown(self.head)}, not by {shown(head)}"
            raise UserError(f"{where} holds codes {made}: give the head or model that made them (st-dimreduce info)")


def beside(path: Path) -> Path:
    """Return where the origin of a ``.npy`` file, or of a folder of them, lies: of a link, beside what it leads to."""
    path = path.resolve()
    return path / _FILE if path.is_dir() or not path.suffix else path.with_name(f"{path.name}.{_FILE}")


def origin_beside(path: Path) -> Origin | None:
    """Return the origin of codes in ``.npy`` files; None where none was written.

    Raises:
        ValueError: If the file that says it is damaged.
    """
    place = beside(path)
    if not place.is_file():
        return None
    content = read_object(place)
    return Origin.read(content, place) if content.get("format") == _FORMAT else None
