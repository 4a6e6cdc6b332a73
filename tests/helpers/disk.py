"""Disks and files that refuse to grow."""

from __future__ import annotations

import hashlib
import resource
import shutil
import subprocess
from contextlib import contextmanager


class Disk:
    """A disk in memory, 1 MiB, whose size and manners a test sets as it goes."""

    def __init__(self, path):
        self.path = path
        path.mkdir()

    def mount(self, options):
        command = ["mount", "-t", "tmpfs", "-o", options, "none", self.path]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def remount(self, options):
        assert self.mount(f"remount,{options}").returncode == 0, options

    def leave(self, pages):
        """Leave room for so many pages of 4 KiB."""
        self.remount(f"size={shutil.disk_usage(self.path).used // 1024 + 4 * pages}k")


@contextmanager
def no_large_files():
    """No file may grow beyond 20,000 bytes. No fixture: what pytest prints between tests may go to a longer file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def content(path):
    """What is at a path, as hashes; None if there is nothing."""
    if path.is_dir():
        return {str(file.relative_to(path)): content(file) for file in path.rglob("*") if file.is_file()}
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None
