"""Writing the segments of an index: of codes, or of other segments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from st_dimreduce.codes.ids import Names
from st_dimreduce.codes.lists import from_stored, to_stored
from st_dimreduce.codes.manifest import Manifest, SegmentState
from st_dimreduce.codes.search import decode
from st_dimreduce.codes.segments import Segment, write_segment
from st_dimreduce.enums import Kind

_FLAT_ROWS = 1 << 16  # in a cell of a flat index
_DECODED_ROWS = 1 << 14  # at a time


def cells_of(codes: np.ndarray, centres: np.ndarray, manifest: Manifest) -> np.ndarray:
    """Return the cell of each code, int64 of shape (n,)."""
    from st_dimreduce.codes import scan  # noqa: PLC0415, optional

    cells = np.empty(len(codes), np.int64)
    for start in range(0, len(codes), _DECODED_ROWS):
        some = slice(start, start + _DECODED_ROWS)
        cells[some] = scan.assign(decode(codes[some], manifest.precision, manifest.out_features)[0], centres)
    return cells


def write_codes(
    folder: Path,
    name: str,
    codes: np.ndarray,
    keys: np.ndarray,
    names: Names | None,
    centres: np.ndarray | None,
    manifest: Manifest,
    cells: np.ndarray | None = None,
) -> SegmentState:
    """Write a segment of codes.

    Args:
        folder: An empty folder.
        name: Its name in the manifest.
        codes: Codes of shape (n, width), n >= 1; they may be mapped from a file.
        keys: Their ids, int64.
        names: The strings that the ids are hashes of; None for integers.
        centres: Centres of the cells; None where there are none: a flat index has runs of 65,536 rows in their
            place, a graph all rows.
        manifest: What the index is.
        cells: The cell of each code; found here if None (the default).
    """
    if cells is None and centres is not None:
        cells = cells_of(codes, centres, manifest)
    if cells is None or centres is None:
        cells = np.zeros(len(codes), np.int64) if manifest.kind is Kind.HNSW else np.arange(len(codes)) // _FLAT_ROWS
        count = int(cells[-1]) + 1
    else:
        count = len(centres)
    order = np.argsort(cells, kind="stable")
    sizes = np.bincount(cells, minlength=count).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])

    def codes_of(first: int, last: int) -> np.ndarray:
        return to_stored(codes[order[starts[first] : starts[last]]], manifest.precision)

    width = manifest.precision.bytes_per_vector(manifest.out_features)
    names = None if names is None else names.take(order)
    graph = _graph(codes, manifest) if manifest.kind is Kind.HNSW else ()
    files = write_segment(folder, sizes, width, manifest.packed, codes_of, keys[order], names, graph)
    return SegmentState(name, len(codes), files)


def _graph(codes: np.ndarray, manifest: Manifest) -> tuple[np.ndarray, ...]:
    from st_dimreduce.codes import scan  # noqa: PLC0415, optional

    precision, size = manifest.precision, manifest.out_features
    graph = scan.Graph(precision, precision.bytes_per_vector(size), size)
    for start in range(0, len(codes), _DECODED_ROWS):
        graph.grow(decode(codes[start : start + _DECODED_ROWS], precision, size)[0])
    return graph.arrays()


def write_merged(folder: Path, name: str, segments: Sequence[Segment], manifest: Manifest) -> SegmentState:
    """Write one segment of several with the same cells, without what was removed from them."""
    kept = [~segment.is_removed for segment in segments]
    if manifest.kind is not Kind.IVF:
        parts = [segment.cell_codes(0, len(segment.lists.sizes)) for segment in segments]
        stored = np.concatenate([part[keep] for part, keep in zip(parts, kept, strict=True)])
        keys, names = _gathered(segments, kept)
        return write_codes(folder, name, from_stored(stored, manifest.precision), keys, names, None, manifest)
    cells = len(segments[0].lists.sizes)
    of_cell = [np.repeat(np.arange(cells), segment.lists.sizes) for segment in segments]
    sizes = np.sum([np.bincount(each[keep], minlength=cells) for each, keep in zip(of_cell, kept, strict=True)], axis=0)
    joined = np.concatenate([each[keep] for each, keep in zip(of_cell, kept, strict=True)])
    order = np.argsort(joined, kind="stable")

    def codes_of(first: int, last: int) -> np.ndarray:
        parts, places = [], []
        for segment, keep, each in zip(segments, kept, of_cell, strict=True):
            some = slice(segment.lists.starts[first], segment.lists.starts[last])
            parts.append(segment.cell_codes(first, last)[keep[some]])
            places.append(each[some][keep[some]])
        return np.concatenate(parts)[np.argsort(np.concatenate(places), kind="stable")]

    keys, names = _gathered(segments, kept)
    width = segments[0].lists.width
    names = None if names is None else names.take(order)
    files = write_segment(folder, sizes, width, manifest.packed, codes_of, keys[order], names)
    return SegmentState(name, len(order), files)


def _gathered(segments: Sequence[Segment], kept: Sequence[np.ndarray]) -> tuple[np.ndarray, Names | None]:
    keys = np.concatenate([segment.ids[keep] for segment, keep in zip(segments, kept, strict=True)])
    names = [
        segment.names.take(np.flatnonzero(keep))
        for segment, keep in zip(segments, kept, strict=True)
        if segment.names is not None
    ]
    return keys, Names.joined(names) if names else None


def write_reassigned(
    folder: Path, name: str, segment: Segment, centres: np.ndarray | None, manifest: Manifest
) -> SegmentState:
    """Write the codes of a segment, without what was removed, in the cells of another index."""
    kept, cells = np.flatnonzero(~segment.is_removed), len(segment.lists.sizes)
    codes = from_stored(segment.cell_codes(0, cells)[kept], manifest.precision)
    names = None if segment.names is None else segment.names.take(kept)
    return write_codes(folder, name, codes, segment.ids[kept], names, centres, manifest)
