"""Building an index of codes from stored vectors, from codes, or from texts and a reduced model."""

from __future__ import annotations

import json
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from st_dimreduce.base_head import BaseHead
from st_dimreduce.codes.fingerprint import same_head
from st_dimreduce.codes.ids import holds_names, listed, new_ids
from st_dimreduce.codes.index import HEAD, CodeIndex, create, open_index, typical_queries
from st_dimreduce.codes.manifest import MANIFEST, Manifest
from st_dimreduce.codes.precision import check_codes
from st_dimreduce.codes.rows import as_count
from st_dimreduce.codes.search import decode
from st_dimreduce.codes.segments import DAMAGED, save_array
from st_dimreduce.codes.writing import cells_of
from st_dimreduce.enums import Kind, OnBadRow, Precision
from st_dimreduce.errors import UserError
from st_dimreduce.files import check_target, exclusive_run, is_own, new_file, new_folder, write_json
from st_dimreduce.progress import progress_bar
from st_dimreduce.texts import digest_of
from st_dimreduce.untrusted import read_json
from st_dimreduce.vectors.kinds import open_source
from st_dimreduce.vectors.reduce import reduce_vectors
from st_dimreduce.vectors.sinks import NpyFile
from st_dimreduce.vectors.sources import DEFAULT_BATCH_BYTES, FaissSource, Files, mapped, slices
from st_dimreduce.vectors.stored import open_codes

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

TRAINED_PER_CELL = 64  # vectors; more move the cells, but not what is found
_FEWEST_ROWS = 1000  # for more than one cell
_ASSIGNED_ROWS = 1 << 18
_ENCODED = 2048  # texts at a time
_SEEDS = 2**31 - 1  # that FAISS knows


def build_index(
    source: Any,
    head: BaseHead | SentenceTransformer,
    path: str | os.PathLike[str] | None = None,
    *,
    kind: Kind | str = Kind.IVF,
    precision: Precision | str | None = None,
    column: str | None = None,
    id_column: str | None = None,
    ids: Iterable[Any] | None = None,
    cells: int | None = None,
    queries: Any = None,
    seed: int = 0,
    on_bad_row: OnBadRow | str = OnBadRow.RAISE,
    batch_size: int = 32,
    overwrite: bool = False,
    batch_bytes: int = DEFAULT_BATCH_BYTES,
) -> CodeIndex:
    """Build an index of codes, in bounded memory.

    Nothing is trained but the centres of the cells, on 64 vectors per cell: the codes are those of
    :func:`st_dimreduce.quantize`, and do not depend on what else is in the index. Called again after it was killed,
    with the same arguments, it goes on where it was, unless the source is in memory.

    Args:
        source: Vectors of size d, as in :func:`st_dimreduce.reduce_vectors`; or codes of the head as an array, ``.npy``
            files, or a table that :func:`st_dimreduce.reduce_vectors` wrote; or, with a model, a list of texts.
        head: The head, for vectors of size d. For texts, the reduced model.
        path: The folder to make. Defaults to None: a temporary one, removed with the index object.
        kind: ``"ivf"`` (the default), an inverted file; ``"hnsw"``, a graph, held in memory, which takes 256 bytes per
            vector more; ``"flat"`` scans every code.
        precision: How the codes are stored. Defaults to the head's.
        column: The column of vectors or codes in a table; the only such column if None (the default).
        id_column: The column of ids in a table: integers or strings. Defaults to None: row numbers.
        ids: Ids where the source has no column of them. Defaults to None: those of a FAISS index, or row numbers.
        cells: Number of cells. Defaults to about 1.3 times the square root of the number of vectors.
        queries: Typical queries of size k, to measure recall with; see :meth:`st_dimreduce.CodeIndex.calibrate`.
        seed: Seed of the cells and of what is measured. Defaults to 0.
        on_bad_row: As in :func:`st_dimreduce.reduce_vectors`.
        batch_size: Texts that the model encodes at a time. Defaults to 32.
        overwrite: Replace an index that exists, and what a run with other arguments began. Defaults to False.
        batch_bytes: As in :func:`st_dimreduce.reduce_vectors`.

    Returns:
        The index, opened.

    Raises:
        BlockingIOError: If another process builds an index there.
        FileExistsError: If ``path`` exists and ``overwrite`` is False, or holds no index.
        FileNotFoundError: If there is no such file or folder to read.
        ModuleNotFoundError: If FAISS is missing, or pyarrow for a table.
        OSError: If the disk is full.
        ValueError: If the source cannot be read, its vectors or codes do not fit the head, ids repeat, or there are
            more cells than vectors.
    """
    from st_dimreduce.codes import scan  # noqa: PLC0415, F401, what is missing is said before anything is read

    kind, on_bad_row = Kind(kind), OnBadRow(on_bad_row)
    known, model = _head_and_model(head)
    precision = known.precision if precision is None else Precision(precision)
    ids = _checked_ids(ids, id_column)
    if cells is not None:
        cells = as_count(cells, "cells", "choose at least 1")
        if kind is not Kind.IVF:
            raise UserError(f"cells={cells}: for kind='ivf' only, leave it out")
    if not isinstance(seed, (int, np.integer)) or not 0 <= seed < _SEEDS:
        raise UserError(f"seed={seed}: choose a whole number, 0 to {_SEEDS - 1}")
    seed = int(seed)
    if queries is not None:
        typical_queries(queries, known.out_features)  # before hours of work
    kept = tempfile.TemporaryDirectory(prefix="st_dimreduce-") if path is None else None
    target = Path(kept.name) / "index" if kept is not None else Path(path or "")
    check_target(target, overwrite, marker=MANIFEST)
    if model is not None:
        source = _texts(source)
    count = cells or 0 if kind is Kind.IVF else None
    asked = [_recognised(source, model), known.digest, precision.value, column, on_bad_row.value, count, seed]
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "batch_bytes": batch_bytes,
    }
    with exclusive_run(target), _Work(target, asked, overwrite) as work:
        ids = _read_ids(source, column, id_column) if ids is None else ids  # before hours of work
        codes = _codes(source, known, model, precision, column, on_bad_row, work, **options)
        manifest = Manifest(kind, precision, known.out_features, known.digest, holds_names(ids), known.fingerprint)
        middles, of_rows = None, None
        if count is not None:
            count = count or usual_cells(len(codes))
            if count > len(codes):
                work.leave_nothing()
                raise UserError(f"cells={count}: choose at most {len(codes):,}, the number of vectors")
            middles = work.kept("cells.npy", partial(_centres_of, codes, manifest, count, seed))
            of_rows = _assigned(codes, middles, manifest, work)
        with new_folder(target, overwrite, marker=MANIFEST) as folder:
            fill(folder, codes, ids, known, manifest, middles, of_rows, queries, seed)
    index = open_index(target, check_hashes=False)
    index.keep(kept)
    return index


def fill(
    folder: Path,
    codes: np.ndarray,
    ids: Any,
    head: BaseHead,
    manifest: Manifest,
    middles: np.ndarray | None,
    of_rows: np.ndarray | None = None,
    queries: Any = None,
    seed: int = 0,
) -> None:
    """Fill a new folder with an index, its head, and the recall at each effort, so that it is complete.

    Args:
        folder: The folder.
        codes: Its codes.
        ids: Their ids.
        head: The head that gave them.
        manifest: What the index is.
        middles: Centres of its cells; None where it has none.
        of_rows: The cell of each code. Defaults to None: the nearest.
        queries: As in :func:`build_index`.
        seed: Seed of what is measured. Defaults to 0.
    """
    head.save(folder / HEAD)
    create(folder, codes, ids, manifest, middles, of_rows)
    _let_go(codes)
    open_index(folder, check_hashes=False).calibrate(queries, seed)


def add_to_index(
    index: CodeIndex,
    source: Any,
    model: SentenceTransformer | None = None,
    *,
    column: str | None = None,
    id_column: str | None = None,
    ids: Iterable[Any] | None = None,
    on_bad_row: OnBadRow | str = OnBadRow.RAISE,
    batch_size: int = 32,
    overwrite: bool = False,
    batch_bytes: int = DEFAULT_BATCH_BYTES,
) -> int:
    """Add vectors, codes or texts to an index; all of them appear at once.

    Args:
        index: The index.
        source: As in :func:`build_index`.
        model: The reduced model, for texts. Defaults to None.
        column: As in :func:`build_index`.
        id_column: As in :func:`build_index`.
        ids: As in :meth:`st_dimreduce.CodeIndex.add`.
        on_bad_row: As in :func:`st_dimreduce.reduce_vectors`.
        batch_size: Texts that the model encodes at a time. Defaults to 32.
        overwrite: As in :meth:`st_dimreduce.CodeIndex.add`.
        batch_bytes: As in :func:`st_dimreduce.reduce_vectors`.

    Returns:
        How many were added.

    Raises:
        BlockingIOError: If another process is writing the index.
        OSError: If the disk is full.
        ValueError: As :func:`build_index` and :meth:`st_dimreduce.CodeIndex.add`, or if the model's head is not the
            index's.
    """
    head = index_head(index)
    if model is not None:
        given = _head_and_model(model)[0]
        if not same_head(given.fingerprint, head.fingerprint):
            raise UserError("the model has another head than the index: give the model that it was built with")
        source = _texts(source)
    ids = _checked_ids(ids, id_column)
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "batch_bytes": batch_bytes,
    }
    with tempfile.TemporaryDirectory(prefix="st_dimreduce-") as folder, _Work(Path(folder) / "added") as work:
        codes = _codes(source, head, model, index.precision, column, OnBadRow(on_bad_row), work, **options)
        ids = _read_ids(source, column, id_column) if ids is None else ids
        index.add(codes, ids, overwrite=overwrite)
        return len(codes)


def index_head(index: CodeIndex) -> BaseHead:
    """Return the head that gave the codes of an index, which is kept in its folder.

    Raises:
        ValueError: If it is missing, damaged, or not the one that the index names.
    """
    head = BaseHead.load(index.path / HEAD)
    if head.digest != index.manifest.head:
        raise UserError(f"{index.path / HEAD} is another head than {MANIFEST} names: {DAMAGED}")
    return head


class _Work:
    """A hidden folder beside the index, with what a run that is killed leaves to the next.

    Args:
        target: The index.
        asked: What is built; None, or a first item of None, if a later run could not recognise it.
        overwrite: Whether to remove what was begun with something else.
    """

    def __init__(self, target: Path, asked: list[Any] | None = None, overwrite: bool = False) -> None:
        target = target.absolute()
        self.folder = target.parent / f".{target.name}.building"
        self.codes, job = self.folder / "codes.npy", self.folder / "job.json"
        self._resumable = asked is not None and asked[0] is not None
        if self.folder.exists():
            about = self.folder.lstat()
            if not is_own(about) or self.folder.is_symlink():
                raise PermissionError(f"{self.folder} is in the way, and others may have written to it: remove it")
            same = self._resumable and job.is_file() and _holds(job, asked)
            if not same and self._resumable and job.is_file() and not overwrite:
                raise UserError(
                    f"{self.folder} holds an index that was begun with other arguments: call again with the same, or "
                    "start anew with overwrite=True (--force)"
                )
            if not same:
                shutil.rmtree(self.folder)
        if not self.folder.exists():
            self.folder.mkdir(0o700, parents=True)
            with new_file(job) as file:
                write_json(file, asked if self._resumable else None)

    def __enter__(self) -> _Work:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: Any) -> None:
        nothing = {path.name for path in self.folder.glob("*")} <= {"job.json"}  # that a later run could go on from
        if kind is None or nothing or not self._resumable:
            shutil.rmtree(self.folder, ignore_errors=True)

    def kept(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Return an array that an earlier run has made, or make it."""
        path = self.folder / name
        if path.exists():
            with suppress(ValueError):  # it was damaged since
                return np.array(mapped(path))
        made = make()
        with new_file(path) as file:
            save_array(file, made)
        return made

    def leave_nothing(self) -> None:
        """Leave nothing to a later run, which is to be called with other arguments."""
        self._resumable = False


def _holds(job: Path, asked: Any) -> bool:
    with suppress(ValueError):  # it was damaged since
        return bool(read_json(job) == json.loads(json.dumps(asked)))
    return False


def _checked_ids(ids: Any, id_column: str | None) -> Any:
    """Return ids in an order, after checking what can be before anything is read."""
    if ids is not None and id_column is not None:
        raise UserError(f"ids and id_column={id_column!r} were given: give one of them")
    if ids is not None:
        ids = listed(ids)
        new_ids(ids, len(ids), holds_names(ids), 0)
    return ids


def _head_and_model(given: Any) -> tuple[BaseHead, Any]:
    if hasattr(given, "to_head"):
        return given.to_head(), None
    if hasattr(given, "encode_document"):
        from st_dimreduce.dim_reduce import DimReduce

        return DimReduce.from_model(given).to_head(), given
    raise UserError(f"{type(given).__name__} is no head: give a head, or for texts the reduced model")


def _texts(source: Any) -> list[str]:
    texts = [] if isinstance(source, str) else list(source)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError("with a model, the source is texts: expected a list of strings, at least one")
    return texts


def _recognised(source: Any, model: Any) -> Any:
    """Return what a later run will recognise the source by; None if it cannot."""
    if model is not None:
        return digest_of(source)
    if isinstance(source, (str, os.PathLike)):
        return Files.at(Path(source), (".npy", ".parquet", ".arrow", ".feather")).states
    return None


def usual_cells(rows: int) -> int:
    """Return how many cells suit so many vectors: a power of two near 1.3 times the square root."""
    return max(2 ** round(math.log2(1.3 * math.sqrt(rows))), 1) if rows >= _FEWEST_ROWS else 1


def _codes(
    source: Any,
    head: BaseHead,
    model: SentenceTransformer | None,
    precision: Precision,
    column: str | None,
    on_bad_row: OnBadRow,
    work: _Work,
    batch_size: int,
    batch_bytes: int,
) -> np.ndarray:
    """Return all codes, mapped from a file where they are not in memory already."""
    if work.codes.exists():
        with suppress(ValueError):
            return mapped(work.codes)
        work.codes.unlink()  # it was damaged since
    stored = None if model is not None else _stored_codes(source, head, column)
    options: dict[str, Any]
    if model is not None:
        from st_dimreduce.vectors.encode import encode_and_reduce  # noqa: PLC0415, vectors alone need no torch

        options = {"batch_size": batch_size}
        encode_and_reduce(source, model, work.codes, precision, **options)
    elif stored is not None:
        first, rest = next(stored, None), next(stored, None)
        if first is None or first.shape[:1] == (0,):
            raise UserError("there is no code in the source: give at least one")
        check_codes(first, precision, head.out_features)
        if rest is None:
            return first
        with new_file(work.codes) as path, closing(NpyFile(path)) as file:
            for codes in chain([first, rest], stored):
                check_codes(codes, precision, head.out_features)
                file.write(codes)
    else:
        options = {"column": column, "on_bad_row": on_bad_row, "batch_bytes": batch_bytes}
        reduce_vectors(source, head, work.codes, precision, **options)
    return np.load(work.codes, mmap_mode="r", allow_pickle=False)


def _stored_codes(source: Any, head: BaseHead, column: str | None) -> Iterator[np.ndarray] | None:
    """Return the codes that a source holds; None if it holds vectors that the head could reduce.

    Raises:
        ValueError: If they were made by another head.
    """
    stored = open_codes(source, column)
    if stored is None:
        return None
    first = stored.arrays[0] if stored.arrays else None
    narrow = first is not None and first.ndim and first.shape[-1] == head.out_features < head.in_features
    if first is not None and not (first.dtype.kind in "iu" or narrow):
        return None
    stored.check(head)
    return iter(stored.arrays) if stored.arrays else stored.chunks()


def _read_ids(source: Any, column: str | None, id_column: str | None) -> Any:
    """Return the ids in a column of a table, or of a FAISS index; None if there are none.

    Raises:
        ValueError: If a column is named and it is no table that can be read twice, or the column does not exist, holds
            null, or anything but integers or strings.
    """
    if id_column is None:
        return FaissSource(source).ids if FaissSource.accepts(source) else None
    stored = open_codes(source, column)
    opened: Any = stored.table if stored is not None and stored.table else open_source(source, column)
    if opened.schema is None or opened.rows is None:
        raise UserError(f"id_column={id_column!r}: the source is no table that can be read twice, give ids instead")
    return opened.ids(id_column)


def _let_go(codes: np.ndarray) -> None:
    """Give back the memory of an array that is mapped from a file; what is needed is read again.

    Only of one that cannot be written: in a copy on write, this would undo what its owner wrote.
    """
    if isinstance(codes, np.memmap) and codes.mode == "r" and hasattr(mmap, "MADV_DONTNEED"):
        codes._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]


def _centres_of(codes: np.ndarray, manifest: Manifest, count: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).choice(len(codes), min(count * TRAINED_PER_CELL, len(codes)), replace=False)
    sample = codes[np.sort(drawn)]
    _let_go(codes)
    return centres(sample, manifest, count, seed)


def centres(sample: np.ndarray, manifest: Manifest, count: int, seed: int) -> np.ndarray:
    """Return the centres of ``count`` cells, float32 of shape (count, k), of a sample of codes."""
    from st_dimreduce.codes import scan  # noqa: PLC0415, optional

    rows, inverse = decode(sample, manifest.precision, manifest.out_features)
    rows *= inverse[:, None]
    return scan.train_cells(rows, count, seed)


def _assigned(codes: np.ndarray, centres: np.ndarray, manifest: Manifest, work: _Work) -> np.ndarray:
    """Return the cell of every code, int32; a run that is killed goes on behind the last complete block."""
    out = np.empty(len(codes), np.int32)
    with progress_bar("Assigning", "rows", total=len(codes)) as bar:
        for number, rows in enumerate(slices(0, len(codes), _ASSIGNED_ROWS)):
            make = partial(cells_of, codes[rows], centres, manifest)
            out[rows] = work.kept(f"cells-{number:05d}.npy", make)
            _let_go(codes)
            bar.update(rows.stop - rows.start)
    return out
