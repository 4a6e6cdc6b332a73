"""Reading folders and vectors that are harmed a little at a time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.helpers.fuzz_vectors import FORMATS, failures

RUNS = int(os.environ.get("ST_DIMREDUCE_FUZZ", "5000"))  # 200000 for a thorough look


@pytest.mark.wings("untrusted.py", "models", "portable")
@pytest.mark.component("atheris")
def test_whatever_a_folder_holds_it_is_read_or_refused(folders):
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108, ten times as fast as a disk
    with tempfile.TemporaryDirectory(dir=memory) as place:
        command = [sys.executable, "-m", "tests.helpers.fuzz_reading", f"{place}/fuzz", str(folders / "small")]
        done = subprocess.run(
            [*command, f"-runs={RUNS}", "-seed=1"], capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        first, *_, last = re.findall(r"cov: (\d+)", done.stderr)
        assert int(last) > int(first), "the search was not guided"
        assert f"Done {RUNS} runs" in done.stderr
        assert not list(Path(place, "fuzz").glob("crash-*"))


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_vectors_are_read_or_refused_in_one_line(kind, tmp_path):
    assert failures(tmp_path, kind, 200) == {}


@pytest.mark.wings("untrusted.py", "vectors")
@pytest.mark.parametrize("kind", FORMATS)
def test_many_damaged_vectors_are_read_or_refused_in_one_line(kind, tmp_path):
    assert failures(tmp_path, kind, 2 * RUNS) == {}
