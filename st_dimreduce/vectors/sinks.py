"""Where reduced vectors go: part files first, which become the sink when all of them are there.

The parts are in a hidden folder beside the sink, ``.NAME.parts``, that its user alone can write. Each appears when it
is complete, and ``job.json`` says which are complete, their hashes, and what they were made of. So a run that was
killed continues behind the last complete part, and its result does not depend on where that was. Where the sink is
one ``.npy`` file, each part is removed as soon as it is joined. The files of tables are in ``arrow.py``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, ClassVar

import numpy as np

from st_dimreduce.codes.origin import Origin, beside
from st_dimreduce.errors import UserError
from st_dimreduce.files import (
    check_target,
    disk_errors,
    flush,
    give_back,
    is_own,
    put_in_place,
    write_json,
)
from st_dimreduce.progress import progress_bar

_FORMAT = "st_dimreduce.job.2"
_PART_BYTES = 1 << 28  # where a part is complete with fewer rows than are asked for


class CodesFile(ABC):
    """A file of codes that is being written.

    Args:
        path: The file to make.
        size: Bytes to keep of a file that is there and ``grows``. Defaults to None: there is none yet.
        layout: The :meth:`layout` of the parts in it.

    Attributes:
        suffix: Suffix of such files.
        tabular: Whether codes are written as Arrow record batches; as arrays if False.
        header: Bytes before the codes.
        grows: Whether a file that was cut behind a part can be opened again, with ``header`` bytes and those of the
            parts, to go on.
    """

    suffix: ClassVar[str]
    tabular: ClassVar[bool]
    header: ClassVar[int] = 0
    grows: ClassVar[bool] = False

    @abstractmethod
    def __init__(self, path: Path, size: int | None = None, layout: Any = None) -> None: ...

    @classmethod
    def layout(cls, path: Path) -> Any:
        """Return what the header of a file says, as JSON can hold it; None (the default) if nothing depends on it."""
        return None

    @classmethod
    def codes_bytes(cls, path: Path) -> int:
        """Return the bytes of the codes in a complete file that ``grows``."""
        raise NotImplementedError

    @abstractmethod
    def write(self, codes: Any) -> None:
        """Add codes."""

    @abstractmethod
    def append(self, part: Path) -> None:
        """Add all codes of a part file; where the file ``grows``, they are on the disk itself then."""

    @abstractmethod
    def close(self) -> None:
        """Complete the file."""


class NpyFile(CodesFile):
    """A ``.npy`` file."""

    suffix = ".npy"
    tabular = False
    header = 128  # with room for any number of rows
    grows = True

    def __init__(self, path: Path, size: int | None = None, layout: Any = None) -> None:
        self._dtype, self._width, self._rows = np.dtype(np.float32), 0, 0
        self._file = path.open("xb" if size is None else "r+b")
        if size is not None:
            self._dtype, self._width = np.dtype(layout[0]), layout[1]
            self._rows = (size - self.header) // (self._width * self._dtype.itemsize)
            self._file.truncate(size)
            self._file.seek(size)

    @classmethod
    def layout(cls, path: Path) -> Any:
        with path.open("rb") as file, suppress(ValueError):  # no header
            dtype, width, _ = _read_header(file)
            return [dtype.str, width]

    @classmethod
    def codes_bytes(cls, path: Path) -> int:
        with path.open("rb") as file:
            dtype, width, rows = _read_header(file)
            return dtype.itemsize * width * rows

    def write(self, codes: np.ndarray) -> None:
        self._begin(codes.dtype, codes.shape[1])
        self._file.write(np.ascontiguousarray(codes).data)
        self._rows += len(codes)

    def append(self, part: Path) -> None:
        with part.open("rb") as file:
            dtype, width, rows = _read_header(file)
            self._begin(dtype, width)
            shutil.copyfileobj(file, self._file, 1 << 20)
        self._rows += rows
        self._write_header()
        self._file.seek(0, os.SEEK_END)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        with self._file:
            self._write_header()

    def _begin(self, dtype: np.dtype, width: int) -> None:
        if not self._rows:
            self._dtype, self._width = dtype, width
            self._write_header()

    def _write_header(self) -> None:
        self._file.seek(0)
        description = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": description, "fortran_order": False, "shape": (self._rows, self._width)}
        np.lib.format.write_array_header_1_0(self._file, header)


def _read_header(file: BinaryIO) -> tuple[np.dtype, int, int]:
    np.lib.format.read_magic(file)
    (rows, width), _, dtype = np.lib.format.read_array_header_1_0(file)
    return dtype, width, rows


class Parts:
    """The part files of one sink, and a context within which they are written.

    If the block ends in an error, the complete parts of a run that can be resumed are kept, and nothing else.

    Args:
        sink: The file or folder to make.
        part: Class that writes the part files.
        whole: Class that joins them; None if the sink is a folder of them.
        part_rows: Rows in each part, unless they take more than 256 MiB; the last part may have fewer.
        identity: What the parts are made of, by name, as JSON can hold it. If its ``"source"`` is None, the source
            cannot be recognised again and the run cannot be resumed.
        source: The file or folder that is read, if any.
        overwrite: Replace a sink that exists, and parts that were made of something else.
        origin: What is written beside a ``.npy`` file, or into a folder of them. Defaults to None: nothing.
        append: Whether the sink is there, and grows by the parts. Defaults to False.

    Raises:
        FileExistsError: If the sink exists and is not to be replaced.
        PermissionError: If it cannot be written there, or somebody else could write to the parts.
        ValueError: If the sink and the source contain one another, or the parts there are made of something else.
    """

    def __init__(
        self,
        sink: Path,
        part: type[CodesFile],
        whole: type[CodesFile] | None,
        part_rows: int,
        identity: dict[str, Any],
        source: Path | None,
        overwrite: bool,
        origin: Origin | None = None,
        append: bool = False,
    ) -> None:
        self._sink, self._overwrite, self._append = sink.absolute(), overwrite, append
        self._origin = None if part.tabular else origin  # tables say it themselves
        self._part_file, self._whole_file, self._part_rows = part, whole, part_rows
        self.folder = self._sink.parent / f".{sink.name}.parts"
        self._new, self._coming = self.folder / "new", self.folder / "job.json.new"
        self._writing, self._whole = self.folder / f"writing{part.suffix}", self._new / f"whole{sink.suffix}"
        job = {"format": _FORMAT, **identity, "rows of a part": part_rows}
        self._identity = json.loads(json.dumps(job))  # as it will be read back
        self._file: CodesFile | None = None
        self._rows = self._bad_rows = self._bytes = 0  # in the part that is being written
        self._done: list[dict[str, Any]] = []
        self._joined = 0  # parts that are in the whole already, and nowhere else
        self._placed: int | None = None  # inode of what becomes the sink
        self._check_sink(source)
        if os.path.lexists(self.folder):
            self._resume()

    @property
    def rows(self) -> int:
        """Rows in the complete parts."""
        return sum(part["rows"] for part in self._done)

    @property
    def bad_rows(self) -> int:
        """Bad rows in the complete parts."""
        return sum(part["bad_rows"] for part in self._done)

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            return
        if self._file is not None:
            with suppress(OSError, ValueError):  # the disk may still be full
                self._file.close()
            self._file = None
        if not self._resumable or (self._placed and self._sink.exists() and self._sink.stat().st_ino == self._placed):
            self._discard()
            return
        self._keep_complete()
        if kind is KeyboardInterrupt and self._new.exists():
            with self._disk_errors():
                self._save()  # this may be what was interrupted
            raise KeyboardInterrupt(f"{self.rows:,} rows are kept, call again as before to go on") from error

    def write(self, codes: Any, bad_rows: int) -> None:
        """Add codes, an array or a record batch, and complete the part if it has all its rows."""
        with self._disk_errors():
            if not self.folder.exists():
                self.folder.mkdir(0o700, parents=True)
                self._save()
                self._new.mkdir()
            self._file = self._file or self._part_file(self._writing)
            self._file.write(codes)
        self._rows, self._bad_rows = self._rows + len(codes), self._bad_rows + bad_rows
        self._bytes += codes.nbytes
        if self._rows >= self._part_rows or self._bytes >= _PART_BYTES:
            self.end_part()

    def end_part(self) -> None:
        """Complete the part that is being written, if there is one."""
        if self._file is None:
            return
        with self._disk_errors():
            self._file.close()
            self._file = None
            size = self._writing.stat().st_size
            digest = _digest(self._writing, self._part_file.header, size)
            self._writing.replace(self._part(len(self._done)))
            layout = self._part_file.layout(self._part(len(self._done)))
            done = {"rows": self._rows, "bad_rows": self._bad_rows, "bytes": size, "digest": digest, "layout": layout}
            self._done.append(done)
            self._save()
        self._rows = self._bad_rows = self._bytes = 0

    def finish(self) -> int:
        """Complete the last part and make the sink of all parts; returns its size in bytes."""
        self.end_part()
        self._check_sink(None)
        with self._disk_errors():
            if self._whole_file is not None:
                self._join(self._whole_file)
            made = self._whole if self._whole_file else self._grown() if self._append else self._new
            self._placed = made.stat().st_ino
            if self._origin is not None and self._whole_file is None:
                write_json(beside(made), self._origin.content)
            elif self._origin is not None:
                beside(self._sink).unlink(missing_ok=True)  # in between, the codes are of nobody, not of another head
            put_in_place(made, self._sink, self._overwrite or self._append)
            if self._origin is not None and self._whole_file is not None:
                said = self._new / beside(self._sink).name
                write_json(said, self._origin.content)
                put_in_place(said, beside(self._sink), overwrite=True)
            size = size_of(self._sink)
        self._discard()
        return size

    def _join(self, whole_file: type[CodesFile]) -> None:
        parts = range(self._joined, len(self._done))
        with closing(self._open_whole(whole_file)) as whole:
            for number in progress_bar("Joining", "parts", parts, done=self._joined):
                whole.append(self._part(number))
                if whole_file.grows:  # the disk need not hold the part twice
                    self._joined = number + 1
                    self._save()
                    self._part(number).unlink()

    def _open_whole(self, whole_file: type[CodesFile]) -> CodesFile:
        if not self._joined:
            whole = whole_file(self._whole)
            if self._append:
                whole.append(self._sink)
            return whole
        return whole_file(self._whole, self._offset(self._joined), self._done[0]["layout"])

    def _offset(self, number: int) -> int:
        """Return where the codes of a part begin in the whole."""
        header = self._part_file.header
        before = self._part_file.codes_bytes(self._sink) if self._append else 0
        return header + before + sum(part["bytes"] - header for part in self._done[:number])

    def _grown(self) -> Path:
        """Return a folder of the files of the sink and of the parts, which are links to them where there are links."""
        grown = self.folder / "grown"
        shutil.rmtree(grown, ignore_errors=True)
        grown.mkdir()
        old = sorted(path for path in self._sink.iterdir() if path.suffix == self._part_file.suffix)
        new = [self._part(number) for number in range(len(self._done))]
        for number, path in enumerate([*old, *new]):
            copy = grown / self._part(number).name
            try:
                os.link(path, copy)
            except OSError:
                shutil.copy2(path, copy)
        return grown

    def _discard(self) -> None:
        # First of all: a run that is killed below leaves no parts that a later one would resume.
        with suppress(OSError):
            self._new.rename(self.folder / "gone")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _keep_complete(self) -> None:
        """Remove all but the complete parts."""
        kept = {self._part(number) for number in range(self._joined, len(self._done))}
        kept |= {self._whole} if self._joined else set()
        for path in (self._writing, self._coming, *self._new.glob("*")):
            if path not in kept and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path not in kept:
                path.unlink(missing_ok=True)

    def _part(self, number: int) -> Path:
        return self._new / f"part-{number:05d}{self._part_file.suffix}"

    def _save(self) -> None:
        job = json.dumps({**self._identity, "parts": self._done, "joined": self._joined}, indent=1)
        self._coming.write_text(job, encoding="utf-8")
        flush(self._coming)
        self._coming.replace(self.folder / "job.json")

    def _check_sink(self, source: Path | None) -> None:
        sink, origin = self._sink.resolve(), None if source is None else source.resolve()
        if origin is not None and (sink == origin or origin in sink.parents or sink in origin.parents):
            raise UserError(f"the sink {self._sink} and the source {source} contain one another: choose another sink")
        if not self._sink.suffix or not os.path.lexists(self._sink):
            check_target(self._sink, self._overwrite or self._append, marker=self._part(0).name)
        elif not self._overwrite and not self._append:
            more = "" if source is None else "append what the source has more with append=True (--append), "
            raise FileExistsError(
                f"{self._sink} exists: choose another file, {more}or replace it with overwrite=True (--force)"
            )
        elif not self._sink.is_file():
            raise FileExistsError(f"{self._sink} exists and is not a file: choose another, this is never replaced")

    def _resume(self) -> None:
        """Take up the complete parts that are there, after checking that they were made of the same."""
        about = self.folder.lstat()
        if not stat.S_ISDIR(about.st_mode) or not is_own(about):
            raise PermissionError(f"{self.folder} is in the way, and others may have written to it: remove it")
        give_back(self.folder / "old", self._sink)
        try:
            job = json.loads((self.folder / "job.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            job = None
        whole = (
            isinstance(job, dict) and job.get("format") == _FORMAT and {*self._identity, "parts", "joined"} <= set(job)
        )
        if not whole and self._new.exists():
            raise UserError(f"{self.folder} is in the way and holds no job.json of this version: remove it")
        if not self._new.exists():
            shutil.rmtree(self.folder)
            return
        parts, differing = job["parts"], {name: (value, job[name]) for name, value in self._identity.items()}
        changed = [_named(name, *values) for name, values in differing.items() if values[0] != values[1]]
        if changed and not self._overwrite and differing["source"] != (None, None):
            raise UserError(
                f"{self.folder} holds {len(parts)} parts of a run with another {' and '.join(changed)}: "
                "call again with the same arguments, or start anew with overwrite=True (--force)"
            )
        if changed or self._identity["source"] is None:
            self._discard()
            return
        self._done, self._joined = parts, job["joined"]
        complete = next((number for number in range(len(parts)) if not self._is_whole(number)), len(parts))
        self._done, self._joined = parts[:complete], min(self._joined, complete)
        self._keep_complete()

    def _is_whole(self, number: int) -> bool:
        part, header = self._done[number], self._part_file.header
        path, start = (self._whole, self._offset(number)) if number < self._joined else (self._part(number), header)
        stop = start + part["bytes"] - header
        if not path.is_file() or path.stat().st_size < stop or _digest(path, start, stop) != part["digest"]:
            return False
        return number < self._joined or self._part_file.layout(path) == part["layout"]

    @property
    def _resumable(self) -> bool:
        return self._identity["source"] is not None and bool(self._done)

    def _disk_errors(self) -> AbstractContextManager[None]:
        return disk_errors(self._sink, lambda: f"the first {self.rows:,} rows are kept" if self._resumable else "")


def size_of(sink: Path) -> int:
    """Return the bytes of a file, or of the files in a folder."""
    return sum(file.stat().st_size for file in [sink, *sink.glob("*")] if file.is_file())


def _named(name: str, ours: Any, theirs: Any) -> str:
    """Name what differs; of a source the first file that does."""
    if name != "source" or not ours or not theirs:
        return name
    files = [file for file in [*ours, *theirs] if file not in ours or file not in theirs]
    return f"{name} ({files[0][0]} differs)" if files else name


def _digest(path: Path, start: int, stop: int) -> str:
    """Return a hash of the bytes of a file from ``start`` to ``stop``."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        file.seek(start)
        for first in range(start, stop, 1 << 20):
            digest.update(file.read(min(1 << 20, stop - first)))
    return digest.hexdigest()
