"""Writing so that nothing is lost: beside the target first, then one rename."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_target(path: str | os.PathLike[str], overwrite: bool = False, marker: str = "modules.json") -> Path:
    """Say before any work whether a folder can be written.

    Args:
        path: The folder to be made; missing parents will be made too.
        overwrite: Whether a folder that exists may be replaced. Only an empty one, or one that holds ``marker``, ever
            is: a mistyped path must not cost a home directory.
        marker: The file by which a folder of our kind is known. Defaults to ``"modules.json"``, a model's.

    Returns:
        The absolute path.

    Raises:
        FileExistsError: If something is there that may not be replaced.
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
    """Say before any work whether a file or folder can be made; returns its absolute path.

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
    """Fill a folder beside ``path``, which appears under its name when the block ends and not at all if it fails.

    Takes the arguments of :func:`check_target`, and raises as it does. Yields the folder to fill.
    """
    target = check_target(path, overwrite, marker)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
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
                raise FileExistsError(f"{target} has appeared meanwhile: another run made it, and it stays") from error
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file beside ``path``, which takes its place when the block ends and is gone if it fails.

    Yields the path to write to.
    """
    target = Path(path).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield work / target.name
        (work / target.name).replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
