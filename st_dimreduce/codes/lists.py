"""How the codes of an index lie in a file: cell by cell, in the blocks that FAISS scans.

FAISS's fast scan (Andre, Kermarrec and Le Scouarnec, "Cache locality is not enough", VLDB 2015) looks up 4-bit codes
of 32 vectors at a time. Its blocks hold, for each byte of a code, the upper halves of 32 vectors in 16 bytes and their
lower halves in the next 16. So ``int4``, ``int2`` and ``binary`` codes are stored; ``int8`` and ``float32`` are not
changed.

A cell begins at a multiple of 64 bytes: its blocks, the last one padded, and then 8 bytes per vector of the blocks,
which say where in the segment the vector is. That is what FAISS's inverted lists on disk look like.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from st_dimreduce.codes.rows import unit_rows
from st_dimreduce.enums import Precision

BLOCK = 32
_ALIGNED = 64
_NUMBER = 8  # bytes of a vector's position
_PLACES = np.array([place // 2 + 8 * (place % 2) for place in range(16)])  # which of 16 vectors a byte is of
_BYTE_OF = np.argsort(_PLACES)


def is_packed(precision: Precision) -> bool:
    """Whether codes of a precision are stored in blocks of 32."""
    return precision.bits <= 4


def to_stored(codes: np.ndarray, precision: Precision) -> np.ndarray:
    """Return codes as bytes that FAISS scans, uint8 of shape (n, width); the inverse of :func:`from_stored`."""
    if precision is Precision.FLOAT32:
        codes = unit_rows(codes)
    stored = np.ascontiguousarray(codes).view(np.uint8)
    return stored ^ 0x80 if precision is Precision.INT8 else stored


def from_stored(stored: np.ndarray, precision: Precision) -> np.ndarray:
    """Return the codes that :func:`st_dimreduce.quantize` gave, of bytes as FAISS scans them."""
    if is_packed(precision):
        return stored
    return (stored ^ 0x80).view(np.int8) if precision is Precision.INT8 else stored.view(np.float32)


class Lists:
    """Where the codes of a segment are in its file.

    Args:
        sizes: Vectors in each cell, int64 of shape (cells,).
        width: Bytes of a code.
        packed: Whether they are stored in blocks of 32.

    Attributes:
        starts: Position of each cell's first vector, and the number of vectors; (cells + 1,).
        capacities: Vectors for which each cell has room; (cells,).
        offsets: Byte at which each cell begins, and the size of the file; (cells + 1,).
    """

    def __init__(self, sizes: np.ndarray, width: int, packed: bool) -> None:
        self.sizes, self.width, self.packed = sizes, width, packed
        block = BLOCK if packed else 1
        self.capacities = -(-sizes // block) * block
        room = -(-self.capacities * (width + _NUMBER) // _ALIGNED) * _ALIGNED
        self.starts, self.offsets = (np.concatenate([[0], np.cumsum(counts)]) for counts in (sizes, room))

    def cell_bytes(self, cell: int, codes: np.ndarray) -> np.ndarray:
        """Return a cell as it lies in the file: codes of shape (n, width), uint8, and the positions of its vectors."""
        out = np.zeros(self.offsets[cell + 1] - self.offsets[cell], np.uint8)
        filled = self.capacities[cell] * self.width
        out[:filled] = _pack(codes) if self.packed else codes.reshape(-1)
        numbers = np.arange(self.starts[cell], self.starts[cell + 1])
        out[filled : filled + _NUMBER * len(numbers)] = numbers.view(np.uint8)
        return out

    def read(self, data: np.ndarray, first: int, last: int) -> Iterator[np.ndarray]:
        """Yield the codes of the cells from ``first`` to before ``last``, uint8 of shape (n, width).

        Args:
            data: The file, uint8.
            first: The first cell.
            last: The cell to stop before.
        """
        for cell in range(first, last):
            start = self.offsets[cell]
            blocks = data[start : start + self.capacities[cell] * self.width]
            codes = _unpack(blocks, self.width) if self.packed else blocks.reshape(-1, self.width)
            yield codes[: self.sizes[cell]]

    def gather(self, data: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return the codes at some positions of the segment.

        Args:
            data: The file, uint8.
            positions: int64 of shape (n,), each from 0 to before the number of vectors.

        Returns:
            uint8 of shape (n, width).
        """
        cells = np.searchsorted(self.starts, positions, side="right") - 1
        inside = positions - self.starts[cells]
        if not self.packed:
            first = self.offsets[cells] + inside * self.width
            return data[first[:, None] + np.arange(self.width)]
        block, place = inside // BLOCK, inside % BLOCK
        first = self.offsets[cells] + block * BLOCK * self.width + _BYTE_OF[place % 16]
        # A view of all bytes at which a code may begin: one number finds a code, not one for each of its bytes.
        begins = len(data) - BLOCK * (self.width - 1) - BLOCK // 2
        halves = np.lib.stride_tricks.as_strided(data, (begins, 2, self.width), (1, BLOCK // 2, BLOCK), writeable=False)
        upper, lower = halves[first].transpose(1, 0, 2)
        return _joined(upper, lower, (place >= 16)[:, None])


def _joined(upper: np.ndarray, lower: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return bytes whose halves are in ``upper`` and ``lower``: in the high bits those of a ``second`` vector."""
    return np.where(second, (upper & 0xF0) | (lower >> 4), (upper << 4) | (lower & 15))


def _pack(codes: np.ndarray) -> np.ndarray:
    blocks = -(-len(codes) // BLOCK)
    padded = np.zeros((blocks * BLOCK, codes.shape[1]), np.uint8)
    padded[: len(codes)] = codes
    rows = padded.reshape(blocks, BLOCK, codes.shape[1])
    first, second = rows[:, _PLACES], rows[:, _PLACES + 16]
    out = np.empty((blocks, codes.shape[1], BLOCK), np.uint8)
    out[:, :, :16] = ((first >> 4) | (second & 0xF0)).transpose(0, 2, 1)
    out[:, :, 16:] = ((first & 15) | (second << 4)).transpose(0, 2, 1)
    return out.reshape(-1)


def _unpack(blocks: np.ndarray, width: int) -> np.ndarray:
    halves = blocks.reshape(len(blocks) // (width * BLOCK), width, 2, 16).transpose(2, 0, 3, 1)[:, :, _BYTE_OF]
    both = [_joined(halves[0], halves[1], np.array(second)) for second in (False, True)]
    return np.concatenate(both, axis=1).reshape(len(blocks) // width, width)
