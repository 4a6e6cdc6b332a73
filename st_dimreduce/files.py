"""Atomic writes: everything is written beside its target, flushed and then renamed; locks; disk errors in one line."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

_RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors and tokenizers report errors of the disk
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_NO_FLUSH = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_LOCK = "st_dimreduce.lock"


def check_target(path: str | os.PathLike[str], overwrite: bool = False, marker: str = "modules.json") -> Path:
    """Check, before any work, that a folder can be written.

    If an earlier run was killed while it replaced this folder, the old folder is restored first.

    Args:
        path: The folder to make; missing parents are made too.
        overwrite: Whether an existing folder may be replaced. Only an empty folder, or one that holds ``marker``, is
            ever replaced: a mistyped path must not cost a home directory. Defaults to False.
        marker: The file that identifies a folder of this kind. Defaults to ``"modules.json"``, a model's.

    Returns:
        The absolute path.

    Raises:
        FileExistsError: If the path exists and may not be replaced.
        PermissionError: If its parent folder cannot be written.
    """
    target = Path(path).absolute()
    recover(target)
    if os.path.lexists(target):
        if not overwrite:
            raise FileExistsError(
                f"{target} exists: choose another folder, or replace it with overwrite=True (--force)"
            )
        if not target.is_dir() or target.is_symlink() or not ((target / marker).is_file() or not any(target.iterdir())):
            raise FileExistsError(
                f"{target} exists and holds no {marker}: choose another folder, this is never replaced"
            )
    return check_place(target)


def check_place(path: str | os.PathLike[str]) -> Path:
    """Check, before any work, that a file or folder can be made here; return its absolute path.

    Raises:
        PermissionError: If its parent folder cannot be written.
    """
    target = Path(path).absolute()
    parent = next(p for p in target.parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{parent} cannot be written: choose a folder that can, for {target.name}")
    return target


@contextmanager
def new_folder(path: str | os.PathLike[str], overwrite: bool = False, marker: str = "modules.json") -> Iterator[Path]:
    """Fill a hidden folder beside ``path``, which takes its place when the block ends and is removed if it fails.

    A folder that is replaced passes on its permissions, and stays until the new one is safe on the disk. A process that
    is killed leaves its hidden folder, ``.NAME.`` and eight characters; a later call for the same path removes it.

    Takes the arguments of :func:`check_target`, and raises as it does. Yields the folder to fill.

    Raises:
        OSError: If the disk is full, or refuses otherwise.
    """
    target = check_target(path, overwrite, marker)
    with disk_errors(target), _work_folder(target) as work:
        filled = work / "new"
        filled.mkdir()
        yield filled
        put_in_place(filled, target, overwrite)


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file beside ``path``, which replaces it when the block ends and is removed if it fails.

    A file that is replaced passes on its permissions; a link stays a link, and the file it leads to is replaced. A
    killed process leaves the same as with :func:`new_folder`. Yields the path to write to.

    Raises:
        OSError: If the disk is full, or refuses otherwise.
    """
    target = resolve_target(path)
    with disk_errors(target), _work_folder(target) as work:
        written = work / "new" / target.name
        written.parent.mkdir()
        yield written
        put_in_place(written, target, overwrite=True)


def resolve_target(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a file to write; for a link, that of the file it leads to.

    Raises:
        FileExistsError: If something other than a regular file is there, such as a folder or a device.
    """
    target = Path(path).absolute()
    target = Path(os.path.realpath(target)) if target.is_symlink() else target
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{target} exists and is not a file: choose another, this is never replaced")
    return target


def put_in_place(new: Path, target: Path, overwrite: bool) -> None:
    """Flush a new file or folder to the disk and give it its name.

    What it replaces passes on its permissions. A folder is replaced by two renames, with the old one moved aside to
    ``old`` beside ``new``: the caller removes it, and :func:`recover` brings it back if a crash came in between.

    Raises:
        FileExistsError: If the target has appeared meanwhile.
    """
    usual = (new if new.is_dir() else new.parent).stat().st_mode & 0o777  # as the umask says
    for path in [*new.rglob("*"), new]:
        flush(path, _mode(target / path.relative_to(new), path, usual))
    aside = new.with_name("old")
    try:
        if not overwrite and os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        if new.is_dir() and target.exists():
            target.rename(aside)
        new.replace(target)
    except BaseException as error:  # Ctrl-C too, between the two renames
        give_back(aside, target)
        if isinstance(error, OSError) and error.errno in _TAKEN:
            raise FileExistsError(f"{target} has appeared meanwhile: another run made it, and it stays") from error
        raise
    flush(target.parent)


def give_back(aside: Path, target: Path) -> None:
    """Give what was moved aside its name again, if nothing else has it."""
    if aside.exists() and not os.path.lexists(target):
        aside.rename(target)


def recover(target: Path) -> None:
    """Restore a target that a killed run had moved aside, and remove the hidden folders of killed runs beside it."""
    for work in target.parent.glob(f".{glob.escape(target.name)}.????????"):
        with suppress(OSError):  # another process works in it, or it is not ours to change
            if not is_own(work.lstat()):
                continue
            if not (work / _LOCK).exists():
                work.rmdir()  # unless it is empty, it is not one of these
                continue
            with _locked(work, target):
                pass


def is_own(about: os.stat_result) -> bool:
    """Whether this is a folder of the user who runs this, to which nobody else may write."""
    private = os.name != "posix" or (about.st_uid == os.geteuid() and not about.st_mode & 0o022)
    return private and stat.S_ISDIR(about.st_mode)


@contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """Make a hidden folder beside the target, and remove it when the block ends."""
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    with _locked(work, target):
        yield work


@contextmanager
def _locked(work: Path, target: Path) -> Iterator[None]:
    """Lock a hidden folder; when the block ends, restore what was moved aside in it, and remove it."""
    with lock(work / _LOCK):
        try:
            yield
        finally:
            with suppress(OSError):  # the disk may be gone: a later run tries again
                give_back(work / "old", target)
                for part in (work / "new", work / "old", work):  # the lock last: it says whose folder this is
                    if part.exists():
                        shutil.rmtree(part)


def flush(path: Path, mode: int | None = None) -> None:
    """Write a file or folder to the disk itself, where it survives a power failure, after setting its permissions."""
    if path.is_symlink() or not (path.is_file() or (path.is_dir() and os.name == "posix")):  # Windows opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        if mode is not None and os.name == "posix":
            os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise
    finally:
        os.close(descriptor)


def _mode(replaced: Path, new: Path, usual: int) -> int:
    """Return the permissions for a new file or folder: those of what it replaces, else the usual ones."""
    mode = new.lstat().st_mode
    if os.path.lexists(replaced) and stat.S_IFMT(replaced.lstat().st_mode) == stat.S_IFMT(mode):
        return replaced.lstat().st_mode & 0o777
    return usual if stat.S_ISDIR(mode) else usual & 0o666


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a lock until the block ends, at most as long as the process lives.

    On a file system without locks, as some network file systems are, it is a file that only one process can make.

    Raises:
        Timeout: If another process holds it.
        OSError: If it cannot be made.
    """
    taken: BaseFileLock = FileLock(path, timeout=0)
    try:
        taken.acquire()
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in _NO_LOCKS:
            raise
        taken = SoftFileLock(path.with_name(f"{path.name}.exclusive"), timeout=0)
        taken.acquire()
    try:
        yield
    finally:
        taken.release()


@contextmanager
def exclusive_run(target: Path) -> Iterator[None]:
    """Keep a second run from writing the same target meanwhile; the lock of a run that was killed is free.

    Raises:
        BlockingIOError: If another run is writing it.
        PermissionError: If it cannot be written there.
    """
    path = check_place(target.parent / f".{target.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with lock(path):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
    except Timeout as error:
        raise BlockingIOError(
            errno.EWOULDBLOCK, f"another run is writing {target}: wait for it, or choose another target"
        ) from error


@contextmanager
def disk_errors(target: Path, progress: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn an error of the disk into an ``OSError`` of one line that says what to do.

    Args:
        target: What is being written.
        progress: Says what a second call goes on from, such as ``"the first 100 rows are there"``; empty or None (the
            default) if it starts anew.

    Raises:
        OSError: With the ``errno`` of the first error. Other errors pass through unchanged.
    """
    try:
        yield
    except Exception as error:
        from_rust = _RUST_ERROR.search(str(error))
        code = error.errno if isinstance(error, OSError) else int(from_rust[1]) if from_rust else None
        if code is None:
            raise
        remedy = "free some space there" if code in (errno.ENOSPC, errno.EDQUOT) else "fix that"
        rest = f"; {progress()}" if progress is not None and progress() else ""
        failure = OSError(f"{target} could not be written ({os.strerror(code)}): {remedy} and call again{rest}")
        failure.errno = code
        raise failure from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON that people can read, in UTF-8 and indented."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
