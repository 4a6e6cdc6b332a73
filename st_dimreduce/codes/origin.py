"""Which head made codes, written with them so that codes of different heads are not mixed up.

Tables have it in the metadata of their column of codes, ``.npy`` files in ``NAME.npy.codes.json`` beside them, folders
of ``.npy`` files in ``codes.json``. Files of other programs have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_dimreduce.codes.fingerprint import abbreviate, same_head
from st_dimreduce.enums import Precision
from st_dimreduce.errors import UserError
from st_dimreduce.untrusted import read_object

PREFIX = "st_dimreduce."
INDEX_FILE = "index.json"  # in the folder of an index, which also says it
_FILE = "codes.json"
_FORMAT = "st_dimreduce.codes.1"


@dataclass(frozen=True)
class Origin:
    """Which head made codes, and how they are stored.

    Attributes:
        precision: Precision of the codes.
        out_features: Dimensions of the reduced vectors.
        head: :attr:`st_dimreduce.Head.fingerprint` of the head; None if it is not known.
    """

    precision: Precision
    out_features: int
    head: str | None

    @classmethod
    def read(cls, known: Mapping[str, Any], where: object) -> Origin | None:
        """Read what :meth:`to_dict` returned; None if it holds no origin.

        Raises:
            UserError: If it is damaged.
        """
        try:
            values = known["precision"], known["out_features"]
        except KeyError:
            return None
        head = known.get("head")
        try:
            origin = cls(Precision(values[0]), int(values[1]), head)
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{where} is damaged: it says {values[1]} dimensions in {values[0]} of its codes"
            ) from error
        if head is not None and (not isinstance(head, str) or not head.isalnum()):
            raise UserError(f"{where} is damaged: it names no head of its codes")
        return origin

    def to_dict(self) -> dict[str, str]:
        """Return what is known, by name."""
        head = {} if self.head is None else {"head": self.head}
        return {"precision": self.precision.value, "out_features": str(self.out_features), **head}

    @property
    def summary(self) -> dict[str, str]:
        """What is known, by name, with the fingerprint abbreviated for people."""
        return self.to_dict() | ({} if self.head is None else {"head": abbreviate(self.head)})

    @property
    def content(self) -> dict[str, str]:
        """Content of the file beside codes."""
        return {"format": _FORMAT, **self.to_dict()}

    def check(self, head: str, where: object) -> None:
        """Raise ``UserError`` if the codes were made by another head than that of this fingerprint."""
        if self.head is not None and not same_head(self.head, head):
            made = f"made by head {abbreviate(self.head)}, not by {abbreviate(head)}"
            raise UserError(f"{where} holds codes {made}: give the head or model that made them (st-dimreduce info)")


def beside(path: Path) -> Path:
    """Return the path of the origin of a ``.npy`` file, or of a folder of them; of a link, beside its target."""
    path = path.resolve()
    return path / _FILE if path.is_dir() or not path.suffix else path.with_name(f"{path.name}.{_FILE}")


def origin_beside(path: Path) -> Origin | None:
    """Return the origin of codes in ``.npy`` files; None if it was not written.

    Raises:
        UserError: If its file is damaged.
    """
    place = beside(path)
    if not place.is_file():
        return None
    content = read_object(place)
    return Origin.read(content, place) if content.get("format") == _FORMAT else None
