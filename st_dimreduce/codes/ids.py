"""The ids of the vectors in an index: integers, or strings of which segments hold a hash as well."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from st_dimreduce.untrusted import short


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
        """Hold some strings."""
        encoded = [string.encode() for string in strings]
        ends = np.cumsum([len(each) for each in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    @classmethod
    def joined(cls, several: Sequence[Names]) -> Names:
        """Hold the strings of several."""
        starts = np.cumsum([0, *(len(names.text) for names in several[:-1])])
        ends = [names.ends + start for names, start in zip(several, starts, strict=True)]
        return cls(np.concatenate([names.text for names in several]), np.concatenate(ends))

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
            raise ValueError("no ids were given: expected strings, as the index holds")
        return np.arange(next_id, next_id + count), None
    keys, names = as_keys(ids, named)
    if len(keys) != count:
        raise ValueError(f"{len(keys):,} ids were given for {count:,} vectors: expected as many")
    if names is None and count and keys.min() < 0:
        raise ValueError(f"id {keys.min()} is negative: expected 0 to 2^63 - 1")
    ordered = np.argsort(keys, kind="stable")
    repeated = np.flatnonzero(keys[ordered[1:]] == keys[ordered[:-1]])
    if len(repeated):
        row = ordered[repeated[0]]
        said = keys[row] if names is None else repr(names[row])
        raise ValueError(f"id {said} is given to several vectors: expected a different one for each")
    return keys, names


def holds_names(ids: Any) -> bool:
    """Whether ids are strings, by the first of them."""
    return isinstance(ids, Names) or (ids is not None and len(ids) > 0 and isinstance(ids[0], str))


def as_keys(ids: Iterable[Any] | Names, named: bool) -> tuple[np.ndarray, Names | None]:
    """Return ids as the integers that segments hold, int64, and the names whose hashes they are, if they are strings.

    Raises:
        ValueError: If they are not of the kind that the index holds.
    """
    if not isinstance(ids, (np.ndarray, Names)):
        ids = list(ids)
    if len(ids) == 0:
        return np.empty(0, np.int64), Names.of([]) if named else None
    if isinstance(ids, Names) or isinstance(ids[0], str):
        if not named:
            raise ValueError(f"id {ids[0]!r} is a string: expected integers, as the index holds")
        if not isinstance(ids, Names) and not all(isinstance(each, str) for each in ids):
            raise ValueError("some ids are strings and some are not: expected strings only")
        names = ids if isinstance(ids, Names) else Names.of(ids)
        return keys_of(names[row] for row in range(len(names))), names
    array = np.asarray(ids)
    if named or array.dtype.kind not in "iu" or array.ndim != 1:
        expected = "strings" if named else "integers"
        raise ValueError(
            f"id {short(ids[0])} is of type {type(ids[0]).__name__}: expected {expected}, as the index holds"
        )
    if array.dtype == np.uint64 and (array > np.iinfo(np.int64).max).any():
        raise ValueError(f"id {array.max()} is too large: expected 0 to 2^63 - 1")
    return array.astype(np.int64), None
