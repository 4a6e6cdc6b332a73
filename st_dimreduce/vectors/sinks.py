"""Where reduced vectors go: part files first, which become the sink when all of them are there.

The parts lie in a hidden folder beside the sink, ``.NAME.parts``: each appears when it is complete, and ``job.json``
says which are and what they were made of. So a run that was killed goes on behind the last of them, and what it ends
with does not depend on where that was.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from filelock import Timeout

from st_dimreduce.files import check_place, check_target, held
from st_dimreduce.progress import progress_bar

_FORMAT = "st_dimreduce.job.1"
_WHOLE = {".npy": ".npy", ".arrow": ".arrow", ".parquet": ".arrow"}  # the sink's suffix -> that of its parts


def part_suffix(sink: Path, tabular: bool) -> str:
    """Return the suffix of a sink's part files; a sink without one is a folder, of the source's kind of file.

    Raises:
        ValueError: If the sink's suffix is unknown.
    """
    if sink.suffix and sink.suffix not in _WHOLE:
        raise ValueError(f"{sink} ends in {sink.suffix}: expected .npy, .parquet, .arrow, or no suffix for a folder")
    return _WHOLE.get(sink.suffix, ".parquet" if tabular else ".npy")


@contextmanager
def only_run(sink: Path) -> Iterator[None]:
    """Keep a second run from writing the same sink meanwhile; a run that was killed keeps nobody.

    Raises:
        BlockingIOError: If another run is writing it.
        PermissionError: If it cannot be written there.
    """
    path = check_place(sink.parent / f".{sink.name}.lock")
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with held(path):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
                for folder in made:
                    with suppress(OSError):  # something stands in it
                        folder.rmdir()
    except Timeout as error:
        raise BlockingIOError(
            errno.EWOULDBLOCK, f"another run is writing {sink}: wait for it, or choose another sink"
        ) from error


class Parts:
    """The part files of one sink, a context within which they are written.

    Left by an error, it keeps the complete parts of a run that can go on, and nothing else.

    Args:
        sink: The file or folder to make.
        suffix: That of the part files.
        identity: What the parts are made of, as JSON can hold it: from its name to its value. ``"source"`` None stands
            for a source that cannot be told again, so that a run cannot go on.
        source: The file or folder that is read, if any.
        overwrite: Replace a sink that is there, and parts that were made of something else.

    Raises:
        FileExistsError: If the sink exists and is not to be replaced.
        PermissionError: If it cannot be written there.
        ValueError: If the sink and the source contain one another, or the parts there are made of something else.
    """

    def __init__(self, sink: Path, suffix: str, identity: dict[str, Any], source: Path | None, overwrite: bool) -> None:
        self._sink, self._suffix, self._overwrite = sink.absolute(), suffix, overwrite
        self.folder = self._sink.parent / f".{sink.name}.parts"
        self._new, self._coming = self.folder / "new", self.folder / "job.json.new"
        self._writing, self._whole = self.folder / f"writing{suffix}", self.folder / f"whole{sink.suffix}"
        self._identity = json.loads(json.dumps({"format": _FORMAT, **identity}))  # as it will be read back
        self._writer: Any = None
        self._rows = self._bad = 0
        self._check_sink(source)
        self._done: list[dict[str, int]] = self._resumed() if self.folder.exists() else []

    @property
    def rows(self) -> int:
        """Rows in the complete parts."""
        return sum(part["rows"] for part in self._done)

    @property
    def bad_rows(self) -> int:
        """Rows without a direction in the complete parts."""
        return sum(part["bad_rows"] for part in self._done)

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            return
        if self._writer is not None:
            with suppress(OSError, ValueError):  # the disk may be as full as it was
                self._writer.close()
            self._writer = None
        for path in (self._writing, self._whole, self._coming):
            path.unlink(missing_ok=True)
        if self._identity["source"] is None or not self._done:
            self._discard()
        elif kind is KeyboardInterrupt and self._new.exists():
            self._part(len(self._done)).unlink(missing_ok=True)  # complete, but not yet counted
            with self._disk():
                self._save()  # which may be what was interrupted
            raise KeyboardInterrupt(
                f"{self.rows:,} rows are kept, call again as before to go on behind them"
            ) from error

    def write(self, item: Any, rows: int, bad_rows: int) -> None:
        """Add codes, an array or a record batch, to the part that is being made."""
        with self._disk():
            if not self.folder.exists():
                self.folder.mkdir(parents=True)
                self._save()
                self._new.mkdir()
            self._writer = self._writer or _open(self._writing, item)
            self._writer.write(item)
        self._rows, self._bad = self._rows + rows, self._bad + bad_rows

    def end_part(self) -> None:
        """Complete the part that is being made, if there is any."""
        if self._writer is None:
            return
        with self._disk():
            self._writer.close()
            self._writer = None
            size = self._writing.stat().st_size
            self._writing.replace(self._part(len(self._done)))
            self._done.append({"rows": self._rows, "bad_rows": self._bad, "bytes": size})
            self._save()
        self._rows = self._bad = 0

    def finish(self, show_progress_bar: bool | None = None) -> int:
        """Put the parts in the sink's place, joined if it is a file; returns its size in bytes."""
        self._check_sink(None)
        with self._disk():
            if self._sink.suffix:
                _join([self._part(number) for number in range(len(self._done))], self._whole, show_progress_bar)
                size = self._whole.stat().st_size
                self._whole.replace(self._sink)
            else:
                size = sum(part["bytes"] for part in self._done)
                if os.path.lexists(self._sink):
                    shutil.rmtree(self.folder / "old", ignore_errors=True)
                    self._sink.rename(self.folder / "old")
                self._new.rename(self._sink)
        self._discard()
        return size

    def _discard(self) -> None:
        with suppress(OSError):  # before the rest: a run that is killed here leaves nothing to go on with, or to heed
            self._new.rename(self.folder / "gone")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _part(self, number: int) -> Path:
        return self._new / f"part-{number:05d}{self._suffix}"

    def _save(self) -> None:
        said = json.dumps({**self._identity, "parts": self._done}, indent=1)
        self._coming.write_text(said, encoding="utf-8")
        self._coming.replace(self.folder / "job.json")

    def _check_sink(self, source: Path | None) -> None:
        sink, origin = self._sink.resolve(), None if source is None else source.resolve()
        if origin is not None and (sink == origin or origin in sink.parents or sink in origin.parents):
            raise ValueError(f"the sink {self._sink} and the source {source} contain one another: choose another sink")
        if not self._sink.suffix or not os.path.lexists(self._sink):
            check_target(self._sink, self._overwrite, marker=f"part-00000{self._suffix}")
        elif not self._overwrite:
            raise FileExistsError(
                f"{self._sink} exists: choose another file, or replace it with overwrite=True (--force)"
            )
        elif not self._sink.is_file():
            raise FileExistsError(f"{self._sink} exists and is no file: choose another, this is never replaced")

    def _resumed(self) -> list[dict[str, int]]:
        """Return the complete parts that are there, having made sure that they were made of the same."""
        try:
            job = json.loads((self.folder / "job.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            job = None
        if (not isinstance(job, dict) or job.get("format") != _FORMAT) and self._new.exists():
            raise ValueError(f"{self.folder} is in the way and holds no job.json of this version: remove it")
        if not self._new.exists():
            shutil.rmtree(self.folder)
            return []
        parts, differing = job["parts"], {name: (value, job[name]) for name, value in self._identity.items()}
        changed = [_named(name, *values) for name, values in differing.items() if values[0] != values[1]]
        if changed and not self._overwrite and differing["source"] != (None, None):
            raise ValueError(
                f"{self.folder} holds the {len(parts)} parts of a run with another {' and '.join(changed)}: "
                "call again as it was begun, or start anew with overwrite=True (--force)"
            )
        if changed or self._identity["source"] is None:
            self._discard()
            return []
        whole = 0
        while whole < len(parts) and _size(self._part(whole)) == parts[whole]["bytes"]:
            whole += 1
        return parts[:whole]

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Say of what the disk refuses how to go on."""
        try:
            yield
        except OSError as error:
            cause = "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
            kept = f"the first {self.rows:,} rows are kept, {cause} and call again as before to go on behind them"
            if self._identity["source"] is None or not self._done:
                kept = f"{cause} and call again as before"
            failure = OSError(f"{self.folder} could not be written ({error.strerror or error}): {kept}")
            failure.errno = error.errno
            raise failure from error


class _NpyWriter:
    """Writes arrays one after the other as one .npy file."""

    def __init__(self, path: Path, first: np.ndarray) -> None:
        self._file, self._dtype, self._width, self._rows = path.open("wb"), first.dtype, first.shape[1], 0
        _npy_header(self._file, self._dtype, 0, self._width)

    def write(self, codes: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(codes).data)
        self._rows += len(codes)

    def close(self) -> None:
        with self._file:
            self._file.seek(0)
            _npy_header(self._file, self._dtype, self._rows, self._width)


def _npy_header(file: Any, dtype: np.dtype, rows: int, width: int) -> None:
    """Write the header of a .npy file, which has the same length whatever the number of rows."""
    description = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": description, "fortran_order": False, "shape": (rows, width)}
    np.lib.format.write_array_header_1_0(file, header)


def _open(path: Path, first: Any) -> Any:
    if path.suffix == ".npy":
        return _NpyWriter(path, first)
    from st_dimreduce.vectors.arrow import open_writer  # noqa: PLC0415, optional

    return open_writer(path, first.schema)


def _join(parts: Sequence[Path], path: Path, shown: bool | None) -> None:
    coming = progress_bar("Joining", "parts", shown, parts)
    if path.suffix != ".npy":
        from st_dimreduce.vectors.arrow import join  # noqa: PLC0415, optional

        join(coming, parts[0], path)
        return
    arrays = [np.load(part, mmap_mode="r") for part in parts]  # for their headers
    with path.open("wb") as whole:
        _npy_header(whole, arrays[0].dtype, sum(map(len, arrays)), arrays[0].shape[1])
        for part, array in zip(coming, arrays, strict=True):
            with part.open("rb") as file:
                file.seek(array.offset)
                shutil.copyfileobj(file, whole, 1 << 20)


def _named(name: str, ours: Any, theirs: Any) -> str:
    """Name what differs; of a source the first file that does."""
    if name != "source" or not ours or not theirs:
        return name
    files = [file for file in [*ours, *theirs] if file not in ours or file not in theirs]
    return f"{name} ({files[0][0]} differs)" if files else name


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
