"""The ids of the vectors in an index: integers, or strings of which segments hold a hash as well."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from st_dimreduce.errors import UserError
from st_dimreduce.untrusted import short

_SHOWN = 100  # letters of an id in a message
_TOO_LARGE = 2**63  # for int64


class Names:
    """Strings, as bytes of UTF-8 and where each ends.

    Args:
        text: All strings, uint8.
        ends: Where each ends, int64 of shape (n,).
    """

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self.text, self.ends = text, ends

    @classmethod
    def of(cls, strings: Iterable[str]) -> Names:
        """Hold some strings; raises ``ValueError`` if one cannot be written in UTF-8."""
        try:
            encoded = [string.encode() for string in strings]
        except UnicodeEncodeError as error:
            raise UserError(f"id {shown(error.object)} holds half a character: expected text in UTF-8") from error
        ends = np.cumsum([len(each) for each in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    @classmethod
    def joined(cls, several: Sequence[Names]) -> Names:
        """Hold the strings of several."""
        starts = np.cumsum([0, *(len(names.text) for names in several[:-1])])
        ends = [names.ends + start for names, start in zip(several, starts, strict=True)]
        return cls(np.concatenate([names.text for names in several]), np.concatenate(ends))

    @property
    def is_whole(self) -> bool:
        """Whether each string lies behind the one before it, and the last one ends where the text does."""
        if not len(self.ends):
            return not len(self.text)
        rising = (self.ends[1:] >= self.ends[:-1]).all()
        return bool(rising and self.ends[0] >= 0 and self.ends[-1] == len(self.text))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> str:
        start = int(self.ends[row - 1]) if row else 0
        return bytes(self.text[start : int(self.ends[row])]).decode("utf-8", "replace")

    def take(self, rows: np.ndarray) -> Names:
        """Return some of the strings, in this order."""
        starts = np.where(rows > 0, self.ends[rows - 1], 0)
        lengths = self.ends[rows] - starts
        ends = np.cumsum(lengths)
        text = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
        step = 1 << 16  # rows at a time: the places of their bytes take eight times the bytes
        for first in range(0, len(rows), step):
            some = slice(first, first + step)
            begin = int(ends[first] - lengths[first])
            shift = np.repeat(starts[some] - (ends[some] - lengths[some]), lengths[some])
            stop = int(ends[some][-1])
            text[begin:stop] = self.text[np.arange(begin, stop) + shift]
        return Names(text, ends)


def keys_of(names: Iterable[str]) -> np.ndarray:
    """Return a number for each string, int64 of shape (n,): a hash, which two of them share once in 10^6 indexes."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, np.int64)


def new_ids(
    ids: Iterable[Any] | Names | None, count: int, named: bool, next_id: int
) -> tuple[np.ndarray, Names | None]:
    """Return the ids of new vectors as keys and, where they are strings, names, after checking them.

    Raises:
        ValueError: If there are not as many as vectors, they repeat, or are of another kind than the index's.
    """
    if ids is None:
        if named:
            raise UserError("no ids were given: expected strings, as the index holds")
        if next_id + count > _TOO_LARGE:
            raise UserError(f"after id {next_id - 1} no {count:,} more follow: give ids, 0 to 2^63 - 1")
        return np.arange(count) + (next_id if count else 0), None
    keys, names = as_keys(ids, named)
    if len(keys) != count:
        raise UserError(f"{len(keys):,} ids were given for {count:,} vectors: expected as many")
    if names is None and count and keys.min() < 0:
        raise UserError(f"id {keys.min()} is negative: expected 0 to 2^63 - 1")
    ordered = np.argsort(keys, kind="stable")
    repeated = np.flatnonzero(keys[ordered[1:]] == keys[ordered[:-1]])
    if len(repeated):
        row = ordered[repeated[0]]
        said = shown(keys[row] if names is None else names[row])
        raise UserError(f"id {said} is given to several vectors: expected a different one for each")
    return keys, names


def listed(ids: Any) -> Any:
    """Return ids in an order: a one-dimensional array and names as they are, anything else as a list.

    Raises:
        ValueError: If it is one id, not several.
    """
    if isinstance(ids, Names) or (isinstance(ids, np.ndarray) and ids.ndim == 1):
        return ids
    if isinstance(ids, (str, bytes, np.ndarray)) or not hasattr(ids, "__iter__"):
        raise UserError(f"ids are {short(ids)}, of type {type(ids).__name__}: expected several, as in a list")
    return list(ids)


def shown(one: Any) -> str:
    """Return an id for a message."""
    return short(str(one)) if isinstance(one, str) else " ".join(str(one).split())[:_SHOWN]


def _is_whole(one: Any) -> bool:
    return isinstance(one, (int, np.integer)) and not isinstance(one, bool)


def holds_names(ids: Any) -> bool:
    """Whether ids are strings, by the first of them."""
    return isinstance(ids, Names) or (ids is not None and len(ids) > 0 and isinstance(ids[0], str))


def as_keys(ids: Iterable[Any] | Names, named: bool) -> tuple[np.ndarray, Names | None]:
    """Return ids as the integers that segments hold, int64, and the names whose hashes they are, if they are strings.

    Raises:
        ValueError: If they are not of the kind that the index holds.
    """
    given: Any = listed(ids)
    if len(given) == 0:
        return np.empty(0, np.int64), Names.of([]) if named else None
    if isinstance(given, Names) or isinstance(given[0], str):
        if not named:
            raise UserError(f"id {shown(given[0])} is a string: expected integers, as the index holds")
        if not isinstance(given, Names) and not all(isinstance(each, str) for each in given):
            raise UserError("some ids are strings and some are not: expected strings only")
        names = given if isinstance(given, Names) else Names.of(given)
        return keys_of(names[row] for row in range(len(names))), names
    if isinstance(given, np.ndarray):
        odd = list(given[:1]) if named or given.dtype.kind not in "iu" else []
    else:
        odd = given[:1] if named else [each for each in given if not _is_whole(each)]
    for one in odd[:1]:
        expected = "strings" if named else "integers"
        raise UserError(f"id {shown(one)} is of type {type(one).__name__}: expected {expected}, as the index holds")
    for one in map(int, (max(given), min(given)) if isinstance(given, list) else (given.max(), given.min())):
        if not -_TOO_LARGE <= one < _TOO_LARGE:
            said = one if abs(one) < 1e100 else "huge"
            raise UserError(f"id {said} is too {'large' if one > 0 else 'small'}: expected 0 to 2^63 - 1")
    return np.asarray(given, np.int64), None
