"""An index of codes in a folder: it grows, forgets, is shared by many readers, and answers in about a millisecond.

An index is a list of segments, which never change, and a manifest that says which. Whoever adds or removes writes new
files beside the old ones and then replaces the manifest: a reader sees the index as it was or as it is. Small segments
are merged into larger ones as they come (Bentley and Saxe, "Decomposable searching problems", J. Algorithms 1980).
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from filelock import Timeout

from st_dimreduce.codes.calibration import DEPTHS, EXACT, enough_candidates, likely_queries, measure
from st_dimreduce.codes.fingerprint import same_head
from st_dimreduce.codes.ids import Names, as_keys, listed, new_ids, shown
from st_dimreduce.codes.lists import from_stored
from st_dimreduce.codes.manifest import MANIFEST, Manifest, SegmentState
from st_dimreduce.codes.precision import check_codes
from st_dimreduce.codes.rows import as_count
from st_dimreduce.codes.search import decode, search, unit_queries
from st_dimreduce.codes.segments import DAMAGED, Segment, check_files, describe, mapped_array, save_array
from st_dimreduce.codes.writing import write_codes, write_merged, write_reassigned
from st_dimreduce.enums import Kind, Precision
from st_dimreduce.errors import UserError
from st_dimreduce.files import disk_errors, lock, new_file, new_folder, recover

if TYPE_CHECKING:
    from torch import Tensor

CELLS = "cells.npy"
HEAD = "head"  # its folder in that of the index
DEFAULT_RECALL = 0.95
_SCORED_BYTES = 1 << 22  # of decoded candidates at a time
_EXACT_ROWS = 20_000  # of a filter, up to which every allowed code is scored
_QUERIES = 256  # of a calibration without any
_FOUND = 1 << 24  # candidates of so many queries as are searched for at a time
_ATTEMPTS = 10  # to open what a writer replaces


class KnowsFingerprint(Protocol):
    """A head, as far as an index must know it."""

    @property
    def fingerprint(self) -> str:
        """What its codes are known by."""


class CodeIndex:
    """Codes that are searched without scoring all of them, and the ids of the documents that they stand for.

    Made by :func:`st_dimreduce.build_index`, opened by :func:`st_dimreduce.open_index`. FAISS proposes candidates:
    it looks into some cells of an inverted file (``kind="ivf"``; Jegou et al., "Product quantization for nearest
    neighbor search", PAMI 2011, section IV), walks a graph (``"hnsw"``), or looks into all codes (``"flat"``). They are
    then scored exactly, so that a score is the one that :func:`st_dimreduce.search` gives.

    An object shows the index as it was when it was opened, or last changed through it; :meth:`refresh` looks again.
    Its methods may be called from several threads.

    Attributes:
        path: Its folder.
        manifest: What it consists of.
    """

    def __init__(
        self, path: Path, manifest: Manifest, hashes: bool, checked: set[tuple[Path, str]] | None = None
    ) -> None:
        self.path = path
        self._moving = threading.Lock()  # from one manifest to the next
        self._now = _open(path, manifest, None, hashes, checked)

    @property
    def manifest(self) -> Manifest:
        """What the index consists of."""
        return self._now.manifest

    @property
    def _centres(self) -> np.ndarray | None:
        return self._now.centres

    @property
    def _opened(self) -> dict[str, tuple[SegmentState, _Searched]]:
        return self._now.opened

    @property
    def _segments(self) -> list[_Searched]:
        return [searched for _, searched in self._opened.values()]

    @property
    def _width(self) -> int:
        return self.precision.bytes_per_vector(self.out_features)

    @property
    def kind(self) -> Kind:
        """Kind of index."""
        return self.manifest.kind

    @property
    def precision(self) -> Precision:
        """Precision of the codes."""
        return self.manifest.precision

    @property
    def out_features(self) -> int:
        """Dimensions k of a vector."""
        return self.manifest.out_features

    def keep(self, kept: Any) -> None:
        """Keep an object as long as this one, such as the temporary folder that it is in."""
        self._kept = kept

    def __len__(self) -> int:
        return sum(state.rows - state.removed_rows for state in self.manifest.segments)

    def __repr__(self) -> str:
        stored = f"{len(self):,} x {self.out_features} {self.precision.value}"
        return f"CodeIndex({str(self.path)!r}, {self.kind.value}, {stored})"

    def search(
        self,
        queries: np.ndarray | Tensor,
        top_k: int = 10,
        *,
        recall: float | None = None,
        effort: int | None = None,
        ids: Iterable[Any] | None = None,
        threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the documents nearest to each query.

        Args:
            queries: Float array or torch tensor of shape (q, k), of any norm, encoded by the reduced model (or reduced
                by the head) whose codes are in the index.
            top_k: How many to find per query. Defaults to 10.
            recall: Share, over 0 and at most 1, of what exact search finds that should be found: as many cells are
                looked into as that took when the index was calibrated. Defaults to 0.95.
            effort: Instead of ``recall``, the number of cells to look into (FAISS's ``nprobe``), or of codes that the
                walk through a graph keeps (``efSearch``).
            ids: Find these documents only. Ids that the index does not hold are ignored. Defaults to None: all.
            threads: Threads to use; as many as FAISS likes if None (the default).

        Returns:
            Cosines, float32, and ids, int64 (strings in an array of objects), both of shape (q, top_k), the nearest
            first. Where fewer are found, the score is -inf and the id -1 (None).

        Raises:
            ValueError: If the queries are not of the index's size, hold NaN or infinity, or such a recall cannot be
                had.
        """
        unit = self.unit_queries(queries, top_k)
        top_k, effort = int(top_k), self._effort(recall, effort, top_k)
        keys = None if ids is None else np.unique(self._keys(ids))
        segments = self._segments  # the same ones throughout, whatever another thread opens meanwhile
        candidates = self.manifest.candidates
        step = max(_FOUND // (candidates * top_k), 1)
        parts = [
            _find(segments, unit[first : first + step], top_k, effort, candidates, keys, threads)
            for first in range(0, max(len(unit), 1), step)
        ]
        scores, found = (np.concatenate(each) for each in zip(*parts, strict=True))
        return scores, self._ids_at(found, segments)

    def unit_queries(self, queries: np.ndarray | Tensor, top_k: int) -> np.ndarray:
        """Return queries scaled to norm 1, after checking that they are of the index's size."""
        return _fitting(queries, top_k, self.out_features)

    @property
    def _efforts(self) -> tuple[int, int]:
        """The least and the greatest effort that make a difference."""
        if self.kind is Kind.HNSW:
            return 16, 4096
        return 1, 1 if self._centres is None else len(self._centres)

    def _some_codes(self, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return randomly chosen codes, decoded, and their positions counted through all segments."""
        sizes = [len(searched.segment) for searched in self._segments]
        kept = np.flatnonzero(np.concatenate([~searched.segment.is_removed for searched in self._segments]))
        chosen = np.sort(np.random.default_rng(seed).choice(kept, min(count, len(kept)), replace=False))
        starts, rows = np.cumsum([0, *sizes]), []
        for searched, first, last in zip(self._segments, starts, starts[1:], strict=False):
            here = chosen[(chosen >= first) & (chosen < last)] - first
            rows.append(from_stored(searched.segment.codes(here), self.precision))
        return decode(np.concatenate(rows), self.precision, self.out_features)[0], chosen

    def _effort(self, recall: float | None, effort: int | None, top_k: int) -> int:
        if recall is not None and effort is not None:
            raise UserError(f"recall={recall} and effort={effort}: give one of them")
        if effort is not None:
            return min(as_count(effort, "effort", "look into at least 1 cell"), EXACT)
        wanted = DEFAULT_RECALL if recall is None else recall
        if not isinstance(wanted, (float, int, np.number)) or not 0 < wanted <= 1:
            raise UserError(f"recall={recall}: choose a share over 0 and at most 1, such as 0.95")
        recalls = self.manifest.recalls
        if not recalls:  # nothing was measured: a flat index
            return self._efforts[1]
        measured = recalls[str(next((depth for depth in DEPTHS if depth >= top_k), DEPTHS[-1]))]
        for effort_, reached in zip(self.manifest.efforts, measured, strict=True):
            if reached >= wanted:
                return effort_
        if recall is None:
            return self.manifest.efforts[-1]
        most = max(measured)
        raise UserError(f"recall={recall}: this index reaches {most:.4f} at most; search scores every code")

    def _keys(self, ids: Iterable[Any]) -> np.ndarray:
        """Return ids as the numbers that segments hold."""
        return as_keys(ids, self.manifest.named)[0]

    def _ids_at(self, found: np.ndarray, segments: Sequence[_Searched]) -> np.ndarray:
        """Return the ids of vectors that are numbered through all segments."""
        starts = np.cumsum([0, *(len(searched.segment) for searched in segments)])
        out = np.full(found.shape, None) if self.manifest.named else np.full(found.shape, -1)
        for searched, first, last in zip(segments, starts, starts[1:], strict=False):
            here = (found >= first) & (found < last)
            segment, positions = searched.segment, found[here] - first
            names = segment.names
            out[here] = segment.ids[positions] if names is None else [names[position] for position in positions]
        return out

    def __contains__(self, one: Any) -> bool:
        return bool(any((searched.segment.find(self._keys([one])) >= 0).any() for searched in self._segments))

    def add(self, codes: np.ndarray, ids: Iterable[Any] | None = None, *, overwrite: bool = False) -> None:
        """Add codes, in a segment of their own; small segments are then merged.

        For vectors or texts see :func:`st_dimreduce.add_to_index`.

        Args:
            codes: As :func:`st_dimreduce.quantize` gives them in the index's precision, of shape (n, width).
            ids: Their ids, n integers from 0 to 2^63 - 1, or n strings where the index holds strings. Defaults to
                None: the numbers that follow the largest so far.
            overwrite: Whether ids that the index holds already are given to the new codes. Defaults to False.

        Raises:
            BlockingIOError: If another process is writing the index.
            OSError: If the disk is full.
            ValueError: If the codes are not of the index's precision and size, or ids repeat, are already there, or
                are of another kind than the index's.
        """
        check_codes(codes, self.precision, self.out_features)
        with self._writing():
            keys, names = new_ids(ids, len(codes), self.manifest.named, self.manifest.next_id)
            if not len(codes):
                return
            there = [searched.segment.find(keys) for searched in self._segments]
            if not overwrite:
                for positions in there:
                    for row in np.flatnonzero(positions >= 0)[:1]:
                        said = shown(keys[row] if names is None else names[row])
                        raise UserError(f"id {said} is in the index already: remove it first, or pass overwrite=True")
            manifest = self._without(there)
            with self._new_segment() as (name, folder):
                state = write_codes(folder, name, codes, keys, names, self._centres, manifest)
            next_id = manifest.next_id if names is not None else max(manifest.next_id, int(keys.max()) + 1)
            manifest = replace(manifest, next_id=next_id, segments=(*manifest.segments, state))
            self._commit(self._merged(manifest))

    def remove(self, ids: Iterable[Any]) -> None:
        """Remove documents. Their codes are dropped when their segment is merged, at the latest by :meth:`compact`.

        Args:
            ids: Their ids.

        Raises:
            BlockingIOError: If another process is writing the index.
            ValueError: If an id is not in the index; nothing is removed then.
        """
        given = listed(ids)
        with self._writing():
            keys = self._keys(given)
            there = [searched.segment.find(keys) for searched in self._segments]
            missing = np.flatnonzero(np.max([np.full(len(keys), -1), *there], axis=0) < 0)
            if len(missing):
                more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
                raise UserError(f"id {shown(given[missing[0]])}{more} is not in the index: remove only what is there")
            self._commit(self._without(there))

    def compact(self) -> None:
        """Merge all segments into one, without what was removed.

        Raises:
            BlockingIOError: If another process is writing the index.
            OSError: If the disk is full.
        """
        with self._writing():
            states = self.manifest.segments
            if len(states) > 1 or any(state.removed for state in states):
                self._commit(self._with_merged(self.manifest, 0))

    def calibrate(self, queries: np.ndarray | Tensor | None = None, seed: int = 0) -> None:
        """Measure the recall at several efforts, for :meth:`search` to choose by.

        Args:
            queries: Typical queries, of shape (q, k); 100 and more. Defaults to None: vectors that lie to
                some documents of the index as questions about them do, at a cosine of 0.65.
            seed: Seed of the choice of codes. Defaults to 0.

        Raises:
            BlockingIOError: If another process is writing the index.
            ValueError: If the queries are not of the index's size.
        """
        with self._writing():  # from the beginning: positions are those of the segments of one generation
            own, segments = None, self._segments
            if not len(self):
                raise UserError(f"{self.path} holds no vector to measure recall with: add some first")
            if queries is None:
                levels, own = self._some_codes(_QUERIES, seed)
                documents, queries = likely_queries(levels, self.precision, seed)
            else:
                documents = queries = typical_queries(queries, self.out_features)

            def found(unit: np.ndarray, depth: int, effort: int, candidates: int) -> np.ndarray:
                if own is None:
                    return _find(segments, unit, depth, effort, candidates)[0]
                scores, rows = _find(segments, unit, depth + 1, effort, candidates)
                scores[rows == own[:, None]] = -np.inf  # a code finds itself
                return -np.sort(-scores, axis=1)[:, :depth]

            candidates = enough_candidates(partial(found, documents), self._efforts[1])
            efforts, recalls = measure(partial(found, queries), candidates, *self._efforts)
            self._commit(replace(self.manifest, candidates=candidates, efforts=efforts, recalls=recalls))

    def _calibrate_again(self) -> None:
        if len(self) and self.kind is not Kind.FLAT:
            self.calibrate()

    def refresh(self) -> bool:
        """Open what other processes have written meanwhile; returns whether there was anything.

        Raises:
            ValueError: If the folder holds an index of another head or precision by now, or a damaged one.
        """
        with self._moving:
            for attempt in range(_ATTEMPTS):
                manifest = Manifest.read(self.path)
                if manifest == self.manifest:
                    return False
                for name in ("head", "precision", "named"):
                    if getattr(manifest, name) != getattr(self.manifest, name):
                        raise UserError(f"{self.path} was replaced by an index that differs in {name}: open it again")
                try:
                    self._now = _open(self.path, manifest, self._now, False)
                    return True
                except (FileNotFoundError, ValueError):
                    # Files may be missing because it has changed once more meanwhile.
                    if attempt == _ATTEMPTS - 1 or Manifest.read(self.path) == manifest:
                        raise
        raise AssertionError

    def codes(self, ids: Iterable[Any]) -> np.ndarray:
        """Return the codes of documents, as :func:`st_dimreduce.quantize` gave them, of shape (n, width).

        Raises:
            ValueError: If an id is not in the index.
        """
        given = listed(ids)
        keys = self._keys(given)
        out, done = np.empty((len(keys), self._width), np.uint8), np.zeros(len(keys), bool)
        for searched in self._segments:
            positions = searched.segment.find(keys)
            out[positions >= 0] = searched.segment.codes(positions[positions >= 0])
            done |= positions >= 0
        if not done.all():
            raise UserError(f"id {shown(given[int(np.flatnonzero(~done)[0])])} is not in the index: ask for others")
        return from_stored(out, self.precision)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Be the only one who writes, after looking at what others have written."""
        path = self.path / "writer.lock"
        if not self.path.is_dir():  # which the lock would make
            raise FileNotFoundError(f"{self.path} is gone: build the index again")
        try:
            with disk_errors(self.path), lock(path):
                self.refresh()
                yield
        except Timeout as error:
            raise BlockingIOError(
                errno.EWOULDBLOCK, f"another process is writing {self.path}: wait for it, then call again"
            ) from error

    @contextmanager
    def _new_segment(self, number: int = 0) -> Iterator[tuple[str, Path]]:
        name = f"segment-{self.manifest.generation + 1:06d}-{number}"
        if (self.path / name).exists():  # of a process that was killed before its manifest
            shutil.rmtree(self.path / name)
        with new_folder(self.path / name) as folder:
            yield name, folder

    def _without(self, there: Sequence[np.ndarray]) -> Manifest:
        """Return the manifest without the vectors at some positions of each segment; -1 for none."""
        states = []
        for (state, searched), positions in zip(self._opened.values(), there, strict=True):
            gone = positions[positions >= 0]
            if len(gone):
                removed = searched.segment.is_removed
                removed[gone] = True
                name, folder = f"removed-{self.manifest.generation + 1:06d}.npy", self.path / state.name
                with new_file(folder / name) as file:
                    save_array(file, np.packbits(removed, bitorder="little"))
                files = {each: about for each, about in state.files.items() if each != state.removed}
                files[name] = describe(folder / name)
                state = replace(state, files=files, removed=name, removed_rows=int(removed.sum()))  # noqa: PLW2901
            states.append(state)
        return replace(self.manifest, segments=tuple(states))

    def _merged(self, manifest: Manifest) -> Manifest:
        """Return the manifest with its last segments merged as long as one is not half as large as the next."""
        kept = list(manifest.segments)
        first = len(kept) - 1
        rows = kept[-1].rows - kept[-1].removed_rows
        while first and kept[first - 1].rows - kept[first - 1].removed_rows <= 2 * rows:
            first -= 1
            rows += kept[first].rows - kept[first].removed_rows
        return manifest if first == len(kept) - 1 else self._with_merged(manifest, first)

    def _with_merged(self, manifest: Manifest, first: int) -> Manifest:
        merged = manifest.segments[first:]
        segments = [Segment(self.path / state.name, self._width, manifest.packed, state.removed) for state in merged]
        if not any(state.rows - state.removed_rows for state in merged):
            return replace(manifest, segments=manifest.segments[:first])
        with self._new_segment(1) as (name, folder):
            state = write_merged(folder, name, segments, manifest)
        return replace(manifest, segments=(*manifest.segments[:first], state))

    def _commit(self, manifest: Manifest) -> None:
        with self._moving:
            if Manifest.read(self.path) != self.manifest:
                raise UserError(f"{self.path} was replaced by another index while this one was changed: open it again")
            manifest = replace(manifest, generation=self.manifest.generation + 1)
            manifest.write(self.path)
            self._now = _open(self.path, manifest, self._now, False)
        self._tidy()

    def _tidy(self) -> None:
        """Remove files of former generations, and of processes that were killed; readers that opened them keep them."""
        for left in [*self.path.glob(".*.????????"), *self.path.glob("segment-*/.*.????????")]:
            recover(left.with_name(left.name[1:-9]))
        named = {state.name: state.removed for state in self.manifest.segments}
        for folder in self.path.glob("segment-*"):
            if folder.name not in named:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            for file in folder.glob("removed-*.npy"):
                if file.name != named[folder.name]:
                    with suppress(OSError):
                        file.unlink()


@dataclass(frozen=True)
class _Opened:
    """A manifest and its files, opened: replaced as one, so that whatever interrupts a change leaves them fitting."""

    manifest: Manifest
    centres: np.ndarray | None
    opened: dict[str, tuple[SegmentState, _Searched]]


def _open(
    path: Path, manifest: Manifest, before: _Opened | None, hashes: bool, checked: set[tuple[Path, str]] | None = None
) -> _Opened:
    """Open the files that a manifest names, but for those that are open since before."""
    shared = ("kind", "precision", "out_features", "files")
    if before is not None and all(getattr(before.manifest, name) == getattr(manifest, name) for name in shared):
        centres, known = before.centres, before.opened
    else:
        check_files(path, manifest.files or {}, hashes, checked)
        centres, known = None, {}
        if manifest.kind is Kind.IVF:
            centres = _read_centres(path / CELLS, manifest.out_features)
    opened = {}
    width = manifest.precision.bytes_per_vector(manifest.out_features)
    for state in manifest.segments:
        if state.name in known and known[state.name][0] == state:
            opened[state.name] = known[state.name]
            continue
        folder = path / state.name
        check_files(folder, state.files, hashes, checked)
        segment = Segment(folder, width, manifest.packed, state.removed)
        if len(segment) != state.rows:
            raise UserError(f"{folder} holds {len(segment):,} vectors, {MANIFEST} says {state.rows:,}: {DAMAGED}")
        if (segment.names is not None) != manifest.named:
            raise UserError(f"{folder} holds other ids than {MANIFEST} says: {DAMAGED}")
        opened[state.name] = state, _Searched(segment, centres, manifest)
    return _Opened(manifest, centres, opened)


class _Searched:
    """A segment and what scans it."""

    def __init__(self, segment: Segment, centres: np.ndarray | None, manifest: Manifest) -> None:
        from st_dimreduce.codes import scan  # noqa: PLC0415, optional

        self.segment, self._manifest, self._allowed = segment, manifest, segment.allowed
        self._cells, width = len(segment.lists.sizes), segment.lists.width
        self._scan: scan.CellScan | scan.Graph
        if manifest.kind is Kind.HNSW:
            self._scan = scan.Graph(manifest.precision, width, manifest.out_features)
            try:
                self._scan.load(segment.cell_codes(0, self._cells), *segment.graph)
            except ValueError as error:
                raise UserError(f"{segment.folder}: {error}, {DAMAGED}") from error
            return
        if centres is None:
            centres = np.zeros((self._cells, manifest.out_features), np.float32)
        if self._cells != len(centres):
            raise UserError(f"{segment.folder} has another number of cells than {CELLS}: {DAMAGED}")
        self._scan = scan.CellScan(segment.path, segment.lists, centres, manifest.precision)

    def candidates(self, unit: np.ndarray, count: int, effort: int, keys: np.ndarray | None) -> np.ndarray:
        """Return the positions to score, int64 of shape (q, c); -1 where there are fewer."""
        size, graph = len(self.segment), self._manifest.kind is Kind.HNSW
        allowed, count = self._allowed, min(count, size)
        if keys is not None:
            wanted = np.unique(self.segment.find(keys))
            wanted = wanted[wanted >= 0]
            if len(wanted) <= max(_EXACT_ROWS, count):
                return np.broadcast_to(wanted, (len(unit), len(wanted)))
            bits = np.zeros(size, bool)
            bits[wanted] = True
            allowed = np.packbits(bits, bitorder="little")
            if not graph:  # as many allowed codes as without a filter
                effort = -(-effort * size // len(wanted))
        if graph and effort >= EXACT:
            return self._nearest(unit, count, allowed)
        if self._manifest.kind is Kind.FLAT:
            effort = self._cells
        return self._scan.candidates(unit, count, effort, allowed)

    def _nearest(self, unit: np.ndarray, count: int, allowed: np.ndarray | None) -> np.ndarray:
        """Return the positions of the nearest codes by exact search."""
        rows = np.arange(len(self.segment))
        if allowed is not None:
            rows = np.flatnonzero(np.unpackbits(allowed, count=len(rows), bitorder="little"))
        return rows[search(unit, self._codes(rows), self._manifest.precision, count)[1]]

    def score(self, unit: np.ndarray, positions: np.ndarray, threads: int) -> np.ndarray:
        """Return the cosines of queries with the codes at some positions, float32 of shape (q, c); -inf for -1."""
        scores = np.empty(positions.shape, np.float32)
        size, precision, count = self._manifest.out_features, self._manifest.precision, positions.shape[1]
        shared = positions.strides[0] == 0 and len(positions) > 1  # the same for all queries
        step = max(_SCORED_BYTES // (4 * size * count), 1)
        if shared:
            many = max(_SCORED_BYTES // (4 * size), 1)
            for first in range(0, count, many):
                some = slice(first, first + many)
                rows, inverse = decode(self._codes(positions[0, some]), precision, size)
                scores[:, some] = unit @ rows.T * inverse
            return scores

        def score(first: int) -> None:
            block = positions[first : first + step]
            rows, inverse = decode(self._codes(block.reshape(-1)), precision, size)
            products = np.matmul(rows.reshape(*block.shape, size), unit[first : first + step, :, None])[..., 0]
            scores[first : first + step] = products * inverse.reshape(block.shape)

        starts = range(0, len(unit), step)
        if min(threads, len(starts)) > 1:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(score, starts))
        else:
            for start in starts:
                score(start)
        scores[positions < 0] = -np.inf
        return scores

    def _codes(self, positions: np.ndarray) -> np.ndarray:
        inside = np.clip(positions, 0, len(self.segment) - 1)  # what a damaged file names stays inside
        return from_stored(self.segment.codes(inside), self._manifest.precision)


def _find(
    segments: Sequence[_Searched],
    unit: np.ndarray,
    top_k: int,
    effort: int,
    candidates: int,
    keys: np.ndarray | None = None,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest codes: scores, and positions counted through all segments, -1 where there are fewer.

    Args:
        segments: The segments.
        unit: Queries of norm 1.
        top_k: How many to find per query.
        effort: Cells to look into.
        candidates: Candidates to score exactly, per result.
        keys: Keys to find only; None for all.
        threads: As in :meth:`CodeIndex.search`.
    """
    from st_dimreduce.codes import scan  # noqa: PLC0415, optional

    scores = np.full((len(unit), top_k), -np.inf, np.float32)
    found = np.full((len(unit), top_k), -1)
    first = 0
    # FAISS's fast scan finds nothing for zeros, which score 0 everywhere: any direction will do.
    directed = np.where(unit.any(axis=1, keepdims=True), unit, np.float32(-1 / math.sqrt(unit.shape[1])))
    with scan.threads(threads) as running:
        for searched in segments:
            positions = searched.candidates(directed, candidates * top_k, effort, keys)
            if positions.shape[1]:
                some = searched.score(unit, positions, running)
                scores, found = _best(scores, found, some, np.where(positions < 0, -1, positions + first), top_k)
            first += len(searched.segment)
    return scores, found


def _best(
    scores: np.ndarray, found: np.ndarray, more: np.ndarray, rows: np.ndarray, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the greatest scores of two sets and what they are of, (q, top_k), the greatest first."""
    scores, found = np.concatenate([scores, more], axis=1), np.concatenate([found, rows], axis=1)
    if scores.shape[1] > 4 * top_k:
        some = np.argpartition(-scores, top_k, axis=1)[:, :top_k]
        scores, found = np.take_along_axis(scores, some, axis=1), np.take_along_axis(found, some, axis=1)
    order = np.lexsort((found, -scores), axis=1)[:, :top_k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(found, order, axis=1)


def open_index(
    path: str | os.PathLike[str], head: KnowsFingerprint | None = None, *, check_hashes: bool = True
) -> CodeIndex:
    """Open an index; its files are mapped into memory, and shared by all processes that do.

    Args:
        path: Its folder.
        head: The head that its codes should have been made with. Defaults to None: any.
        check_hashes: Whether to read all files and compare them with their hashes, about a second per GB. Defaults to
            True.

    Raises:
        ModuleNotFoundError: If FAISS is missing.
        ValueError: If it is no index, of another version, damaged, or its codes are of another head.
    """
    folder = Path(path).absolute()
    checked: set[tuple[Path, str]] = set()  # of a large index, not once more whenever a writer was faster
    for attempt in range(_ATTEMPTS):
        manifest = Manifest.read(folder)
        if head is not None and not same_head(head.fingerprint, manifest.fingerprint):
            raise UserError(f"{folder} holds codes of another head: give the one that it was built with")
        try:
            return CodeIndex(folder, manifest, check_hashes, checked)
        except (FileNotFoundError, ValueError):
            # A writer may have replaced it meanwhile.
            if attempt == _ATTEMPTS - 1 or Manifest.read(folder) == manifest:
                raise
    raise AssertionError


def merge_indexes(
    paths: Iterable[str | os.PathLike[str]], path: str | os.PathLike[str], *, overwrite: bool = False
) -> CodeIndex:
    """Merge indexes of one head into a new one, such as the shards that several machines have built.

    Cells are those of the first index: the codes of an index with other cells are assigned to them anew. The recall at
    each effort is measured again.

    Args:
        paths: Folders of the indexes, which are not changed.
        path: The folder to make.
        overwrite: Replace an index that exists. Defaults to False.

    Returns:
        The new index, opened.

    Raises:
        FileExistsError: If ``path`` exists and ``overwrite`` is False, or holds no index.
        OSError: If the disk is full.
        ValueError: If there is no index, one is damaged, they differ in head, precision, kind or the kind of their ids,
            or an id is in two of them.
    """
    indexes = [open_index(each) for each in paths]
    if not indexes:
        raise UserError("no index was given: give the folders of one or more")
    first = indexes[0]
    for index in indexes[1:]:
        for name in ("head", "precision", "kind", "named"):
            if getattr(index.manifest, name) != getattr(first.manifest, name):
                raise UserError(f"{index.path} and {first.path} differ in {name}: merge indexes that were built alike")
    with new_folder(path, overwrite, marker=MANIFEST) as folder:
        shutil.copytree(first.path / HEAD, folder / HEAD)
        if first._centres is not None:
            shutil.copy(first.path / CELLS, folder / CELLS)
        states: list[SegmentState] = []
        seen: list[Segment] = []
        for index in indexes:
            for state, searched in index._opened.values():
                _check_apart(searched.segment, seen, index.path)
                seen.append(searched.segment)
                name = f"segment-000000-{len(states)}"
                theirs = index._centres
                if first._centres is None or (theirs is not None and np.array_equal(first._centres, theirs)):
                    shutil.copytree(index.path / state.name, folder / name)
                    states.append(replace(state, name=name))
                elif state.removed_rows < state.rows:
                    (folder / name).mkdir()
                    states.append(
                        write_reassigned(folder / name, name, searched.segment, first._centres, first.manifest)
                    )
        last = max(index.manifest.next_id for index in indexes)
        replace(first.manifest, generation=0, next_id=last, segments=tuple(states)).write(folder)
        merged = open_index(folder, check_hashes=False)
        merged.compact()
        merged._calibrate_again()
    return open_index(path, check_hashes=False)


def _check_apart(segment: Segment, others: Sequence[Segment], path: Path) -> None:
    ids = segment.ids[~segment.is_removed]
    for other in others:
        for row in np.flatnonzero(other.find(ids) >= 0)[:1]:
            said = ids[row] if segment.names is None else repr(segment.names[int(segment.find(ids[row : row + 1])[0])])
            raise UserError(f"id {said} of {path} is in another index as well: remove it from one of them first")


def create(
    folder: Path,
    codes: np.ndarray,
    ids: Iterable[Any] | Names | None,
    manifest: Manifest,
    centres: np.ndarray | None,
    cells: np.ndarray | None = None,
) -> None:
    """Fill a folder with an index of codes.

    Args:
        folder: An empty folder.
        codes: Codes of shape (n, width); they may be mapped from a file.
        ids: As in :meth:`CodeIndex.add`.
        manifest: What the index is; with its files and segments it is written.
        centres: Centres of the cells; None for a flat index.
        cells: The cell of each code; found here if None (the default).
    """
    keys, names = new_ids(ids, len(codes), manifest.named, manifest.next_id)
    files = {}
    if centres is not None:
        save_array(folder / CELLS, centres)
        files[CELLS] = describe(folder / CELLS)
    name = "segment-000000-0"
    (folder / name).mkdir()
    state = write_codes(folder / name, name, codes, keys, names, centres, manifest, cells)
    next_id = 0 if names is not None else int(keys.max()) + 1
    replace(manifest, files=files, segments=(state,), next_id=next_id).write(folder)


def typical_queries(queries: Any, size: int) -> np.ndarray:
    """Return queries to measure recall with, scaled to norm 1.

    Raises:
        ValueError: If there is none, or they are not of the index's size.
    """
    unit = _fitting(queries, 1, size)
    if not len(unit):
        raise UserError("queries are empty: give typical ones, or none at all to measure recall without")
    return unit


def _fitting(queries: Any, top_k: int, size: int) -> np.ndarray:
    unit = unit_queries(queries, top_k)
    if unit.shape[1] != size:
        expected = f"{size}: encode them with the reduced model, or reduce them with its head"
        raise UserError(f"queries have {unit.shape[1]} dimensions, expected {expected}")
    return unit


def _read_centres(path: Path, size: int) -> np.ndarray:
    centres = mapped_array(path, np.float32, 2)
    if centres.shape[1] != size or not np.isfinite(centres).all():
        raise UserError(f"{path} holds centres of shape {centres.shape}, or not finite: {DAMAGED}")
    return centres
