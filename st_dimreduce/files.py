"""Atomic writes: everything is written beside its target and then renamed; locks; disk errors in one line."""

from __future__ import annotations

import ctypes
import errno
import glob
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

_OF_RUST = re.compile(r"\(os error (\d+)\)")  # how safetensors and tokenizers report errors of the disk
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_NO_FLUSH = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_EXCHANGE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
_EXCHANGES: dict[str, Callable[[bytes, bytes], tuple[Any, ...]]] = {  # of two paths in one step, by system call
    "renameat2": lambda one, other: (-100, one, -100, other, 2),  # Linux: AT_FDCWD, RENAME_EXCHANGE
    "renamex_np": lambda one, other: (one, other, 2),  # macOS: RENAME_SWAP
}
_LOCK = "st_dimreduce.lock"
_ABANDONED = 60  # seconds; the lock in a younger folder may be about to be taken


def check_target(path: str | os.PathLike[str], overwrite: bool = False, marker: str = "modules.json") -> Path:
    """Check, before any work, that a folder can be written.

    What stood there before a process was killed in the middle of replacing it stands there again.

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
    clear_up(target)
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
    """Fill a hidden folder beside ``path``, which takes its place when the block ends and is removed if it fails.

    A folder that is replaced keeps its permissions, and stands until the new one is safe on the disk. A process that
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

    A file that is replaced keeps its permissions; a link stays one, and what it leads to is replaced. A killed process
    leaves the same as with :func:`new_folder`. Yields the path to write to.

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
    """Return the absolute path of a file to be written: of a link, that of the file it leads to.

    Raises:
        FileExistsError: If it is there and no regular file, but a folder or a device.
        OSError: If the links lead in a circle.
    """
    target = Path(path).absolute()
    try:
        target = target.resolve() if target.is_symlink() else target
    except RuntimeError as error:  # a circle of links, before Python 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(target)) from error
    if target.exists() and not target.is_file():
        raise FileExistsError(f"{target} exists and is not a file: choose another, this is never replaced")
    return target


def put_in_place(new: Path, target: Path, overwrite: bool) -> None:
    """Give a new file or folder its name, whatever happens meanwhile: at that name is the old or the new.

    The new one is flushed to the disk before, its name after. It takes over the permissions of what it replaces; else
    they are those of any new file. A folder that is replaced is moved to ``new``: the caller removes it.

    Raises:
        FileExistsError: If the target has appeared meanwhile.
    """
    replaced = target.lstat() if overwrite and os.path.lexists(target) else None
    _settle(new, target)
    try:
        if new.is_dir():
            if replaced is not None:
                if not replaced.st_mode & stat.S_IWUSR:
                    target.chmod(stat.S_IMODE(replaced.st_mode) | stat.S_IRWXU)
                _exchange(new, target)
                _settle_one(target, replaced.st_mode, replaced)  # now: a folder that nobody may write cannot be moved
            else:
                new.rename(target)
        elif overwrite or not _linked(new, target):
            new.replace(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(f"{target} has appeared meanwhile: another run made it, and it is kept") from error
        raise
    flush(target.parent, inside=False)


def _linked(new: Path, target: Path) -> bool:
    """Give a file its name if nothing has it; whether this file system can."""
    try:
        os.link(new, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        return False
    new.unlink()
    return True


def flush(path: Path, inside: bool = True) -> None:
    """Write a file, or a folder and what is in it, to the disk itself: from here on a power failure spares it."""
    for each in _all_in(path) if inside else [path]:
        _settle_one(each)


def _all_in(path: Path) -> Iterator[Path]:
    """Yield what is in a folder, and the folder itself last."""
    for folder, _, names in os.walk(path, topdown=False):
        yield from (Path(folder, name) for name in names)
        yield Path(folder)
    if not path.is_dir():
        yield path


def _settle(new: Path, target: Path) -> None:
    """Flush new files, with the permissions of those that they replace, or those that a new file has here."""
    usual = stat.S_IMODE((new if new.is_dir() else new.parent).stat().st_mode)  # as the umask says
    for path in _all_in(new):
        there = target if path == new else target / path.relative_to(new)
        about = there.lstat() if os.path.lexists(there) else None
        is_folder = path.is_dir()
        if path == new and is_folder:
            _settle_one(path)
        elif about is not None and (stat.S_ISDIR(about.st_mode) if is_folder else stat.S_ISREG(about.st_mode)):
            _settle_one(path, about.st_mode, about)
        else:
            _settle_one(path, usual if is_folder else usual & 0o666)


def _settle_one(path: Path, mode: int | None = None, owner: os.stat_result | None = None) -> None:
    """Flush a file or folder, after giving it permissions and an owner, if any are named."""
    if path.is_symlink() or not (path.is_file() or (path.is_dir() and os.name == "posix")):  # Windows opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        about = os.fstat(descriptor)
        if owner is not None and (about.st_uid, about.st_gid) != (owner.st_uid, owner.st_gid):
            with suppress(PermissionError):  # only a superuser can give a file away
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
        if mode is not None and os.name == "posix":
            os.fchmod(descriptor, stat.S_IMODE(mode) & (0o7777 if stat.S_ISDIR(about.st_mode) else 0o777))
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSH:
            raise
    finally:
        os.close(descriptor)


def _exchange(new: Path, target: Path) -> None:
    """Exchange two folders: in one step where the system can, else in two, the second undone if it fails."""
    if _exchanged(new, target):
        return
    aside = new.with_name("old")
    try:
        target.rename(aside)
        new.rename(target)
    except BaseException:  # Ctrl-C too, between the two
        give_back(aside, target)
        raise
    aside.rename(new)


def give_back(aside: Path, target: Path) -> None:
    """Give what was moved aside its name again, if nothing else has it."""
    if aside.exists() and not os.path.lexists(target):
        aside.rename(target)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; whether the system and the file system can."""
    for function, arguments in _EXCHANGES.items():
        call = getattr(ctypes.CDLL(None, use_errno=True), function, None) if os.name == "posix" else None
        if call is not None:
            if call(*arguments(os.fsencode(one), os.fsencode(other))) == 0:
                return True
            if ctypes.get_errno() not in _NO_EXCHANGE:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
    return False


@contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """Make a hidden folder beside the target to work in, after clearing up behind processes that were killed."""
    made = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_up(target)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        with lock(work / _LOCK):
            try:
                yield work
            finally:
                _empty(work, target)
    finally:
        _remove_lock(work)
        for folder in made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def clear_up(target: Path) -> None:
    """Remove what killed processes left beside a target, after giving back its name to what one had moved aside."""
    for work in target.parent.glob(f".{glob.escape(target.name)}.????????"):
        with suppress(OSError):  # another process works in it, or it is not ours to change
            about = work.lstat()
            young = time.time() - about.st_mtime < _ABANDONED and not (work / "old").exists()
            if not stat.S_ISDIR(about.st_mode) or not is_own(about) or young:
                continue
            if not os.path.lexists(work / _LOCK):
                work.rmdir()  # anything in it is not of a process that was killed
                continue
            with lock(work / _LOCK):
                _empty(work, target)
            _remove_lock(work)


def is_own(about: os.stat_result) -> bool:
    """Whether a file or folder belongs to the user who runs this, and nobody else may write to it."""
    return os.name != "posix" or (about.st_uid == os.geteuid() and not about.st_mode & 0o022)


def _empty(work: Path, target: Path) -> None:
    """Remove all but the lock, which tells a later process what is left of a killed one."""
    with suppress(OSError):  # the disk may be gone
        give_back(work / "old", target)
        for path in (work / "new", work / "old"):
            for folder, _, _ in os.walk(path):
                Path(folder).chmod(0o700)  # what is in a folder that nobody may write cannot be removed
            if path.exists():
                shutil.rmtree(path)


def _remove_lock(work: Path) -> None:
    """Remove an emptied work folder; one that is not empty keeps its lock, and is cleared up later."""
    with suppress(OSError):
        locks = list(work.iterdir())
        if all(path.name.startswith(_LOCK) for path in locks):
            for path in locks:
                path.unlink()
            work.rmdir()


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
def exclusive_run(sink: Path) -> Iterator[None]:
    """Keep a second run from writing the same sink meanwhile; a run that was killed no longer does.

    Raises:
        BlockingIOError: If another run is writing it.
        PermissionError: If it cannot be written there.
    """
    path = check_place(sink.parent / f".{sink.name}.lock")
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with lock(path):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
    except Timeout as error:
        raise BlockingIOError(
            errno.EWOULDBLOCK, f"another run is writing {sink}: wait for it, or choose another sink"
        ) from error
    finally:
        for folder in made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


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
