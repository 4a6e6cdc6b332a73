"""Reading a folder that is harmed a little at a time, towards what has not been tried."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

RUNS = int(os.environ.get("ST_DIMREDUCE_FUZZ", "5000"))  # 200000 for a thorough look


@pytest.mark.slow
@pytest.mark.component("atheris")
def test_whatever_a_folder_holds_it_is_read_or_refused(folders):
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108, ten times as fast as a disk
    with tempfile.TemporaryDirectory(dir=memory) as place:
        command = [sys.executable, "-m", "tests.helpers.fuzz_reading", f"{place}/fuzz", str(folders / "small")]
        done = subprocess.run(
            [*command, f"-runs={RUNS}", "-seed=1"], capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
        first, *_, last = re.findall(r"cov: (\d+)", done.stderr)
        assert int(last) > int(first), "the search was not guided"
        assert f"Done {RUNS} runs" in done.stderr
        assert not list(Path(place, "fuzz").glob("crash-*"))
