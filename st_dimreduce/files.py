"""Atomic writes: everything is written beside its target and then renamed; locks; disk errors in one line."""

from __future__ import annotations

import errno
import glob
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

_OF_RUST = re.compile(r"\(os error (\d+)\)")  # how safetensors and tokenizers report errors of the disk
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_ABANDONED = 60  # seconds; a younger lock that is not held may be about to be taken


def check_target(path: str | os.PathLike[str], overwrite: bool = False, marker: str = "modules.json") -> Path:
    """Check, before any work, that a folder can be written.

    Args:
        path: The folder to be made; missing parents will be made too.
        overwrite: Whether a folder that exists may be replaced. Only an empty folder, or one that holds
            ``marker``, ever is: a mistyped path must not cost a home directory.
        marker: The file that identifies a folder of this kind. Defaults to ``"modules.json"``, a model's.

    Returns:
        The absolute path.

    Raises:
        FileExistsError: If the path exists and may not be replaced.
        PermissionError: If the folder it would be made in cannot be written.
    """
    target = Path(path).absolute()
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
    """Check, before any work, that a file or folder can be made; returns its absolute path.

    Raises:
        PermissionError: If the folder it would be made in cannot be written.
    """
    target = Path(path).absolute()
    parent = next(p for p in target.parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{parent} cannot be written: choose a folder that can, for {target.name}")
    return target


@contextmanager
def new_folder(path: str | os.PathLike[str], overwrite: bool = False, marker: str = "modules.json") -> Iterator[Path]:
    """Fill a hidden folder beside ``path``, which is renamed when the block ends and removed if it fails.

    A process that is killed leaves its hidden folder, ``.NAME.`` and eight characters; a later call for the same path
    removes it. If it was killed between the two renames of a replacement, the old folder is in there as ``old``, and
    is kept until the path exists again.

    Takes the arguments of :func:`check_target`, and raises as it does. Yields the folder to fill.

    Raises:
        OSError: If the disk is full, or refuses otherwise.
    """
    target = check_target(path, overwrite, marker)
    with disk_errors(target), _work_folder(target) as work:
        filled = work / "new"
        filled.mkdir()
        yield filled
        if overwrite and os.path.lexists(target):
            target.rename(work / "old")
        try:
            filled.rename(target)
        except OSError as error:
            if (work / "old").exists():
                (work / "old").rename(target)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise FileExistsError(
                    f"{target} has appeared meanwhile: another run made it, and it is kept"
                ) from error
            raise


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file beside ``path``, which replaces it when the block ends and is removed if it fails.

    A killed process leaves the same as with :func:`new_folder`. Yields the path to write to.

    Raises:
        OSError: If the disk is full, or refuses otherwise.
    """
    target = Path(path).absolute()
    with disk_errors(target), _work_folder(target) as work:
        yield work / target.name
        (work / target.name).replace(target)


@contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """Make a hidden folder beside the target to work in, after removing those that killed processes left."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{glob.escape(target.name)}.????????"):
        _remove_abandoned(left, target)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with held(work / "lock"):
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _remove_abandoned(work: Path, target: Path) -> None:
    lock = work / "lock"
    with suppress(OSError):  # another process works in it, or it is not ours
        if time.time() - lock.stat().st_mtime < _ABANDONED or ((work / "old").exists() and not target.exists()):
            return
        with held(lock) as sure:
            if sure:
                shutil.rmtree(work, ignore_errors=True)


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold a lock until the block ends, at most as long as the process lives; yields whether it is held.

    It is not held on a file system without locks, as some network file systems are.

    Raises:
        Timeout: If another process holds it.
        OSError: If it cannot be made.
    """
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in _NO_LOCKS:
            raise
    try:
        yield lock.is_locked
    finally:
        lock.release()


@contextmanager
def disk_errors(target: Path, kept: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn an error of the disk into an ``OSError`` of one line that says what to do.

    Args:
        target: What is being written.
        kept: Says what a second call goes on from, such as ``"the first 100 rows are kept"``; empty or None (the
            default) if it starts anew.

    Raises:
        OSError: With the ``errno`` of the first error. Errors that are not the disk's pass through unchanged.
    """
    try:
        yield
    except Exception as error:
        said = _OF_RUST.search(str(error))
        code = error.errno if isinstance(error, OSError) else int(said[1]) if said else None
        if code is None:
            raise
        remedy = "free some space there" if code in (errno.ENOSPC, errno.EDQUOT) else "fix that"
        rest = f"; {kept()}" if kept is not None and kept() else ""
        failure = OSError(f"{target} could not be written ({os.strerror(code)}): {remedy} and call again{rest}")
        failure.errno = code
        raise failure from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON that people can read, in UTF-8 and indented."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
