"""The distributions of this package, built as for the package index."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def call(*command, cwd, **env):
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def build(tmp_path_factory):
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    names = call("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in names:
        if Path(ROOT, name).exists():  # not one that is deleted and still in the index
            Path(source, name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)  # with the time of the copy
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source]
    call(*command, cwd=out, SOURCE_DATE_EPOCH="1700000000")
    (wheel,), (archive,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, archive


def unpacked(tmp_path_factory):
    """Return a folder with the package as the wheel holds it, and its metadata."""
    wheel, _ = build(tmp_path_factory)
    folder = tmp_path_factory.mktemp("unpacked")
    call(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        folder,
        wheel,
        cwd=folder,
    )
    return folder
