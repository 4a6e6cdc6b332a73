"""Where codes go: a ``.npy`` file, a folder of part files, or a table.

All of them grow part by part in a hidden folder beside the target, ``.NAME.parts``: a ``.npy`` file in itself, a folder
and a table as part files, of which the table is joined. ``job.json`` there says what they are made of, and how many
rows are safe on the disk: a run that was killed goes on behind these rows, and ends with the same bytes as one that was
not. When everything is there, the target gets its name.

Codes are appended to a ``.npy`` file or a folder in place, part by part: killed in between, either holds the codes of
fewer rows, and can be appended to again. A table is joined of what it was and the new parts.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from st_dimreduce.codes.codes import COLUMN
from st_dimreduce.codes.origin import Origin, beside
from st_dimreduce.codes.precision import quantize
from st_dimreduce.errors import UserError
from st_dimreduce.files import (
    check_target,
    disk_errors,
    flush,
    give_back,
    is_own,
    put_in_place,
    resolve_target,
    write_json,
)
from st_dimreduce.progress import progress_bar

_FORMAT = "st_dimreduce.job.3"
_JOB = "job.json"
_PART_BYTES = 1 << 28  # of the rows of a part at most
_TABLES = (".parquet", ".arrow")


@dataclass(frozen=True)
class Output:
    """What a run writes, and where.

    Args:
        target: A path that ends in ``.npy``, ``.parquet``, ``.arrow`` or, for a folder of part files, no suffix.
        origin: What makes the codes.
        schema: Arrow schema of the rows that come with the vectors; None for vectors alone.
        column: The column of codes in a table. Defaults to ``"embedding"``.
        part_rows: Rows of a part, unless they have more than 256 MiB. Defaults to 131,072.
        identity: What the codes depend on, by name, as JSON can hold it. Defaults to None: the run cannot be resumed.

    Raises:
        ModuleNotFoundError: If the target is a table and pyarrow is missing.
        UserError: If the suffix is another.
    """

    target: Path
    origin: Origin
    schema: Any = None
    column: str = COLUMN
    part_rows: int = 1 << 17
    identity: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.target.suffix not in ("", ".npy", *_TABLES):
            expected = "expected .npy, .parquet, .arrow, or no suffix for a folder"
            raise UserError(f"{self.target} ends in {self.target.suffix}: {expected}")
        target = resolve_target(self.target) if self.target.suffix else self.target.absolute()
        object.__setattr__(self, "target", target)
        if self.is_table:
            import st_dimreduce.vectors.tables  # noqa: F401, PLC0415, a missing extra is reported before any work

    @property
    def is_table(self) -> bool:
        """Whether tables are written, with the other columns of the source."""
        return self.suffix != ".npy"

    @property
    def is_folder(self) -> bool:
        """Whether part files are written; one file if False."""
        return self.target.suffix != ".npy"

    @property
    def suffix(self) -> str:
        """Suffix of the file, or of the part files."""
        return self.target.suffix or (".npy" if self.schema is None else ".parquet")

    def table_writer(self, path: Path) -> Any:
        """Return a writer of a table at another path."""
        from st_dimreduce.vectors.tables import TableWriter  # noqa: PLC0415, optional

        return TableWriter(path, self.suffix, self.schema, self.column, self.origin)

    def check_source(self, source: Path) -> None:
        """Raise ``UserError`` if the target and the file or folder that is read contain one another."""
        target, read = self.target.resolve(), source.resolve()
        if target == read or read in target.parents or target in read.parents:
            raise UserError(f"the target {self.target} and the source {source} contain one another: choose another")

    def check(self, overwrite: bool) -> None:
        """Check, before any work, that the target can be written.

        Raises:
            FileExistsError: If it exists and is not to be replaced, or never is.
            PermissionError: If its parent folder cannot be written.
        """
        if not self.target.suffix or not os.path.lexists(self.target):
            check_target(self.target, overwrite, marker=_part_name(0, self.suffix))
        elif not overwrite:
            raise FileExistsError(
                f"{self.target} exists: choose another file, append the new rows of the source with append=True "
                "(--append), or replace it with overwrite=True (--force)"
            )


@dataclass(frozen=True)
class Done:
    """What is safe on the disk: a number of rows, of those whose vectors have no direction, and of part files."""

    rows: int = 0
    bad_rows: int = 0
    parts: int = 0


class Sink:
    """Takes codes in order.

    Args:
        path: The file or folder that is written.
        output: What it will be.
        done: What is there already.
        work: The folder with ``job.json``. Defaults to None: the target itself is written.
        before: Rows of a ``.npy`` file that come before those. Defaults to 0.

    Attributes:
        done: What is safe on the disk.
    """

    def __init__(self, path: Path, output: Output, done: Done, work: Path | None = None, before: int = 0) -> None:
        self.path, self.done, self._output, self._work, self._before = path, done, output, work, before
        self._writer: Any = None
        self._rows = self._bad_rows = self._bytes = 0  # of the part that is being written

    def write(self, codes: np.ndarray, others: Any = None, bad_rows: int = 0) -> None:
        """Add codes, and an Arrow table of the other columns or None; completes the part if it has all its rows."""
        with self._disk_errors():
            self._writer = self._writer or self._open()
            self._writer.write(codes, others)
        self._rows, self._bad_rows = self._rows + len(codes), self._bad_rows + bad_rows
        self._bytes += codes.nbytes + (0 if others is None else others.nbytes)
        if self._rows >= self._output.part_rows or self._bytes >= _PART_BYTES:
            self.end_part()

    def end_part(self) -> None:
        """Complete the part that is being written, if there is one."""
        if self._writer is None:
            return
        with self._disk_errors():
            self.close()
            if self._output.is_folder:
                flush(self._partial)
                self._partial.replace(self.path / _part_name(self.done.parts, self._output.suffix))
                flush(self.path)
            before = self.done
            done = Done(before.rows + self._rows, before.bad_rows + self._bad_rows, before.parts + 1)
            self.save(done)
            self.done = done
        self._rows = self._bad_rows = self._bytes = 0

    def close(self) -> None:
        """Close the part that is being written."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def save(self, done: Done) -> None:
        """Write down what is safe on the disk, and what it is made of."""
        if self._work is not None:
            new = self._work / f"{_JOB}.new"
            write_json(new, {"format": _FORMAT, "identity": self._output.identity, "done": asdict(done)})
            flush(new)
            new.replace(self._work / _JOB)

    @property
    def _partial(self) -> Path:
        return self.path / ".writing"  # a name that no reader of the folder looks at

    def _open(self) -> Any:
        output = self._output
        if output.is_table:
            return output.table_writer(self._partial)
        if output.is_folder:
            return _NpyWriter(self._partial, output.origin, 0)
        return _NpyWriter(self.path, output.origin, self._before + self.done.rows)

    def _disk_errors(self) -> Any:
        output = self._output
        return disk_errors(output.target, lambda: f"{self.done.rows:,} rows are done" if output.identity else "")


class _NpyWriter:
    """Writes a ``.npy`` file from a row on; not through a memory map, where a full disk would end the process.

    Its header is written last: until then, readers of the file see the rows that it had.
    """

    def __init__(self, path: Path, origin: Origin, rows: int) -> None:
        self._like, self._rows = quantize(np.empty((0, origin.out_features), np.float32), origin.precision), rows
        size = len(self._header()) + rows * self._like.shape[1] * self._like.itemsize
        self._file = path.open("r+b" if rows else "w+b")
        self._file.truncate(size)
        self._file.seek(size)

    def write(self, codes: np.ndarray, _: Any) -> None:
        self._file.write(np.ascontiguousarray(codes).data)
        self._rows += len(codes)

    def close(self) -> None:
        with self._file as file:
            self._flush()
            file.seek(0)
            file.write(self._header())
            self._flush()

    def _flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _header(self) -> bytes:
        """Return the header, which NumPy makes equally long for any number of rows."""
        header, shape = BytesIO(), (self._rows, self._like.shape[1])
        content = {"descr": np.lib.format.dtype_to_descr(self._like.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, content)
        return header.getvalue()


@contextmanager
def open_sink(output: Output, overwrite: bool = False, before: int = 0) -> Iterator[Sink]:
    """Write a new target within a block, at the end of which it takes its place.

    If the block ends in an error, the parts of a run that can be resumed stay, and nothing else.

    Args:
        output: What to write.
        overwrite: Replace a target that exists, and the parts of another run. Defaults to False.
        before: Rows of a table that is there, to which the new ones are added. Defaults to 0.

    Yields:
        The sink, whose ``done`` tells what an earlier run has completed.

    Raises:
        FileExistsError: If the target exists and is not to be replaced.
        KeyboardInterrupt: With the number of rows that are done, if it was raised in the block.
        PermissionError: If it cannot be written there, or somebody else could write to the parts.
        UserError: If the parts there are of a run with other arguments.
    """
    work = output.target.parent / f".{output.target.name}.parts"
    new = work / "new" if output.is_folder else work / "new" / "codes.npy"
    done = _resume(work, new, output, overwrite)
    output.check(overwrite or before > 0)
    sink, placed = Sink(new, output, done, work), False
    try:
        with disk_errors(output.target):
            work.mkdir(0o700, parents=True, exist_ok=True)
            sink.save(done)
            (work / "new").mkdir(exist_ok=True)
        with _closing(sink, output):
            yield sink
            sink.end_part()
            with disk_errors(output.target):
                _place(new, output, overwrite, before)
        placed = True
    finally:
        if placed or not (output.identity and sink.done.rows and new.exists()):
            _discard(work)


@contextmanager
def append_sink(output: Output, rows: int) -> Iterator[Sink]:
    """Add codes within a block to a target that has ``rows`` of them; raises as :func:`open_sink`."""
    if output.target.suffix in _TABLES:
        identity = None if output.identity is None else {**output.identity, "rows before": rows}
        with open_sink(replace(output, identity=identity), before=rows) as sink:
            yield sink
        return
    parts = len(list(output.target.glob(f"part-*{output.suffix}")))
    sink = Sink(output.target, output, Done(parts=parts), before=rows)
    with _closing(sink, output):
        yield sink
        sink.end_part()


def size_of(target: Path) -> int:
    """Return the bytes of a file, or of the files in a folder."""
    return sum(file.stat().st_size for file in [target, *target.glob("*")] if file.is_file())


@contextmanager
def _closing(sink: Sink, output: Output) -> Iterator[None]:
    """Close a sink after an error; an interruption tells what a second call goes on from."""
    try:
        yield
    except BaseException as error:
        with suppress(OSError, ValueError):  # the disk may still be full
            sink.close()
        if output.is_folder:
            (sink.path / ".writing").unlink(missing_ok=True)
        if isinstance(error, KeyboardInterrupt) and output.identity and sink.done.rows and sink.path.exists():
            raise KeyboardInterrupt(f"{sink.done.rows:,} rows are done, the same call resumes") from error
        raise


def _place(new: Path, output: Output, overwrite: bool, before: int) -> None:
    """Give the new file or folder its name; at no time have codes in ``.npy`` files the origin of others."""
    target, origin = output.target, new.with_name("codes.json")
    if target.suffix in _TABLES:
        parts, whole = [target] * (before > 0) + sorted(new.glob("part-*")), new.with_name("whole")
        whole.mkdir(exist_ok=True)
        new = whole / f"joined{target.suffix}"
        _join(parts, new, output)
    elif not output.is_table and not target.suffix:
        write_json(beside(new), output.origin.content)
    elif target.suffix and overwrite:
        beside(target).unlink(missing_ok=True)
    put_in_place(new, target, overwrite or before > 0)
    if target.suffix == ".npy":
        write_json(origin, output.origin.content)
        put_in_place(origin, beside(target), overwrite=True)


def _join(parts: Sequence[Path], whole: Path, output: Output) -> None:
    from st_dimreduce.vectors.tables import stored_tables  # noqa: PLC0415, optional

    with closing(output.table_writer(whole)) as writer:
        for part in progress_bar("Joining", "parts", parts):
            for table in stored_tables(part):
                writer.write_table(table)


def _resume(work: Path, new: Path, output: Output, overwrite: bool) -> Done:
    """Return what an earlier run has completed, after checking that it was made of the same.

    Raises:
        PermissionError: If somebody else could write to it.
        UserError: If it was made of something else, and is not to be replaced.
    """
    if not os.path.lexists(work):
        return Done()
    if not is_own(work.lstat()):
        raise PermissionError(f"{work} is in the way, and others may have written to it: remove it")
    give_back(work / "old", output.target)
    try:
        job = json.loads((work / _JOB).read_text(encoding="utf-8"))
        theirs, done, known = job["identity"], Done(**job["done"]), job["format"] == _FORMAT
    except (OSError, ValueError, TypeError, KeyError):
        theirs, done, known = None, Done(), {path.name for path in work.iterdir()} <= {f"{_JOB}.new"}
    if not known:
        raise UserError(f"{work} is in the way and holds no {_JOB} of this version: remove it")
    ours = json.loads(json.dumps(output.identity))  # as it was read back
    if theirs not in (None, ours) and not overwrite:
        changed = [name for name, value in theirs.items() if ours is None or ours.get(name) != value]
        raise UserError(
            f"{work} holds {done.rows:,} rows of a run with another {' and '.join(changed)}: call again with the same "
            "arguments, or start anew with overwrite=True (--force)"
        )
    parts = sorted(new.glob("part-*"))  # none of a .npy file
    # Some parts are missing if a run was killed while it removed them.
    whole = len(parts) >= done.parts if output.is_folder else new.exists()
    if theirs is None or theirs != ours or not whole:
        _discard(work)
        return Done()
    for part in parts[done.parts :]:
        part.unlink()
    return done


def _discard(work: Path) -> None:
    """Remove a work folder, its job last: as long as that is there, the next run knows whose folder this is."""
    for path in work.iterdir() if work.exists() else ():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != _JOB:
            path.unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)


def _part_name(number: int, suffix: str) -> str:
    return f"part-{number:05d}{suffix}"
