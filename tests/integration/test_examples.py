"""The example scripts run from beginning to end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("script", sorted(path.name for path in Path("examples").glob("*.py")))
def test_examples_run(script, tiny, tiny_path, tmp_path):
    tiny.save_pretrained(str(tmp_path / "base"))
    base = tiny_path if "train" in script else str(tmp_path / "base")
    arguments = [base, str(tmp_path / "out"), "3"]
    done = subprocess.run(
        [sys.executable, Path("examples", script).absolute(), *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
