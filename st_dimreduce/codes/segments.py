"""A segment of an index: the codes of some vectors, their ids, and which of them were removed.

Its files never change but for the list of what was removed, which is written under a new name each time. They are
mapped into memory, so that processes share them, and a reader is not disturbed by a writer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from st_dimreduce.codes.ids import Names
from st_dimreduce.codes.lists import Lists
from st_dimreduce.errors import UserError

LISTS, SIZES, IDS, ORDER = "lists.bin", "sizes.npy", "ids.npy", "order.npy"
TEXT, ENDS = "names.npy", "names-ends.npy"
GRAPH = ("levels.npy", "links.npy", "entry.npy")
_WRITTEN_BYTES = 1 << 26  # of codes at a time
Files = dict[str, list[Any]]  # by name, the size in bytes and the hash
DAMAGED = "the index is damaged, build it again"


def write_segment(
    folder: Path,
    sizes: np.ndarray,
    width: int,
    packed: bool,
    codes_of: Callable[[int, int], np.ndarray],
    ids: np.ndarray,
    names: Names | None,
    graph: Sequence[np.ndarray] = (),
) -> Files:
    """Write the files of a segment into a folder; returns their sizes and hashes.

    Args:
        folder: An empty folder.
        sizes: Vectors in each cell, int64.
        width: Bytes of a code.
        packed: Whether codes lie in blocks of 32.
        codes_of: Gives the stored codes of the cells from one to before another, in their order.
        ids: Ids by position, int64.
        names: Names by position, where the ids are hashes of names.
        graph: Levels, links and entry of a graph. Defaults to none.
    """
    lists = Lists(sizes, width, packed)
    with (folder / LISTS).open("xb") as file:
        for first, last in _groups(lists):
            codes = codes_of(first, last)
            for cell in range(first, last):
                own = slice(lists.starts[cell] - lists.starts[first], lists.starts[cell + 1] - lists.starts[first])
                file.write(lists.cell_bytes(cell, codes[own]).data)
    arrays = {SIZES: sizes, IDS: ids, ORDER: np.argsort(ids, kind="stable")}
    if names is not None:
        arrays |= {TEXT: names.text, ENDS: names.ends}
    arrays |= dict(zip(GRAPH, graph, strict=False))
    for name, array in arrays.items():
        save_array(folder / name, array)
    return {path.name: describe(path) for path in sorted(folder.iterdir())}


def _groups(lists: Lists) -> Iterable[tuple[int, int]]:
    """Yield ranges of cells whose codes are written at a time."""
    first, most = 0, max(_WRITTEN_BYTES // lists.width, 1)
    while first < len(lists.sizes):
        last = int(np.searchsorted(lists.starts, lists.starts[first] + most, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a new .npy file; ``numpy.save`` does not say why the disk refused what is left of an array."""
    array = np.ascontiguousarray(array)
    with path.open("xb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.reshape(-1).view(np.uint8).data)


def describe(path: Path) -> list[Any]:
    """Return the size and the hash of a file."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return [path.stat().st_size, digest.hexdigest()]


def check_files(folder: Path, files: Files, hashes: bool, checked: set[tuple[Path, str]] | None = None) -> None:
    """Check that files are there and whole.

    Args:
        folder: The folder that they are in.
        files: Their sizes and hashes.
        hashes: Whether to compare the hashes.
        checked: Files, and their hashes, that need not be looked at again; those that are in order are added.

    Raises:
        ValueError: If one is missing, has another size, or with ``hashes`` another content.
    """
    for name, (size, _) in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            there = f"has {path.stat().st_size:,} bytes" if path.is_file() else "is missing"
            raise UserError(f"{path} {there}, expected {size:,} bytes: {DAMAGED}")
    if not hashes:
        return
    checked = set() if checked is None else checked
    paths = {folder / name: about for name, about in files.items() if (folder / name, about[1]) not in checked}
    with ThreadPoolExecutor() as pool:
        for (path, expected), about in zip(paths.items(), pool.map(describe, paths), strict=True):
            if about != expected:
                raise UserError(f"{path} was changed after it was written: {DAMAGED}")
            checked.add((path, about[1]))


class Segment:
    """A segment that is mapped into memory.

    Args:
        folder: Its folder.
        width: Bytes of a code.
        packed: Whether codes lie in blocks of 32.
        removed: Name of the file of what was removed; None if nothing was.

    Raises:
        ValueError: If its files do not fit one another.
    """

    def __init__(self, folder: Path, width: int, packed: bool, removed: str | None) -> None:
        self.folder = folder
        sizes = np.array(mapped_array(folder / SIZES, np.int64))
        # As floats: a sum of integers that do not fit begins at zero again.
        if (sizes < 0).any() or sizes.sum(dtype=np.float64) * (width + 8) > 2**60:
            raise UserError(f"{folder / SIZES} holds sizes that no cell can have: {DAMAGED}")
        self.lists = Lists(sizes, width, packed)
        self.ids, self.order = (mapped_array(folder / name, np.int64) for name in (IDS, ORDER))
        self.names = None
        if (folder / TEXT).exists():
            self.names = Names(mapped_array(folder / TEXT, np.uint8), mapped_array(folder / ENDS, np.int64))
            if not self.names.is_whole:
                raise UserError(f"{folder / ENDS} does not fit {TEXT}: {DAMAGED}")
        self._removed = None if removed is None else np.array(mapped_array(folder / removed, np.uint8))
        self.path = folder / LISTS
        lengths = {len(self), len(self.ids), len(self.order), len(self) if self.names is None else len(self.names)}
        bits = -(-len(self) // 8)
        fits = self.path.stat().st_size == self.lists.offsets[-1]
        if len(lengths) > 1 or not fits or (self._removed is not None and len(self._removed) != bits):
            raise UserError(f"{folder}: its files do not fit one another, {DAMAGED}")
        self.data = np.memmap(self.path, np.uint8, "r") if len(self) else np.empty(0, np.uint8)

    def __len__(self) -> int:
        return int(self.lists.starts[-1])

    @property
    def is_removed(self) -> np.ndarray:
        """Which positions were removed, bool of shape (n,)."""
        if self._removed is None:
            return np.zeros(len(self), bool)
        return np.unpackbits(self._removed, count=len(self), bitorder="little").astype(bool)

    @property
    def allowed(self) -> np.ndarray | None:
        """A bit per position that was not removed, the lowest first; None if all are there."""
        return None if self._removed is None else ~self._removed

    @property
    def graph(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Levels, links and entry of a graph, as :class:`st_dimreduce.codes.scan.Graph` takes them."""
        levels, links, entry = (mapped_array(self.folder / name, np.int32) for name in GRAPH)
        if len(entry) != 1:
            raise UserError(f"it has {len(entry)} entries, expected 1")
        return levels, links, int(entry[0])

    def find(self, ids: np.ndarray) -> np.ndarray:
        """Return the positions of ids, -1 where an id is not there or was removed; both int64 of shape (n,)."""
        if not len(self):
            return np.full(len(ids), -1)
        try:
            place = np.minimum(np.searchsorted(self.ids, ids, sorter=self.order), len(self) - 1)
            positions = self.order[place]
            there = self.ids[positions] == ids
        except (IndexError, ValueError) as error:
            raise UserError(f"{self.folder / ORDER} names vectors that are not there: {DAMAGED}") from error
        if self._removed is not None:
            there &= (self._removed[positions // 8] >> (positions % 8).astype(np.uint8) & 1) == 0
        return np.where(there, positions, -1)

    def codes(self, positions: np.ndarray) -> np.ndarray:
        """Return the stored codes at some positions, uint8 of shape (n, width)."""
        return self.lists.gather(self.data, positions)

    def cell_codes(self, first: int, last: int) -> np.ndarray:
        """Return the stored codes of some cells, uint8 of shape (n, width)."""
        return np.concatenate(list(self.lists.read(self.data, first, last)))


def mapped_array(path: Path, dtype: Any, dimensions: int = 1) -> np.ndarray:
    """Map a .npy file of an index into memory.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is no .npy file, or of another type or shape than it should have.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # NumPy promises no particular one
        raise UserError(f"{path} is no .npy file: {DAMAGED}") from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is an archive: {DAMAGED}")
    if array.dtype != dtype or array.ndim != dimensions:
        raise UserError(f"{path} holds {array.dtype} of shape {array.shape}: {DAMAGED}")
    return array
