"""The example scripts run from beginning to end."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.helpers.pages import Forks


@pytest.fixture(scope="module")
def forks():
    # The path of a socket has 107 characters at most.
    with tempfile.TemporaryDirectory() as folder:
        variables = os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
        with closing(Forks(Path(folder, "socket"), variables)) as forks:
            yield forks


@pytest.mark.parametrize("script", sorted(path.name for path in Path("examples").glob("*.py")))
def test_examples_run(script, tiny, tiny_path, forks, tmp_path):
    tiny.save_pretrained(str(tmp_path / "base"))
    base = tiny_path if "train" in script else str(tmp_path / "base")
    arguments = ["script", str(Path("examples", script).absolute()), str(base), str(tmp_path / "out"), "3"]
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3)]
        status = forks.run(arguments, tmp_path, forks.variables, files, timeout=300)
        printed, trouble = [file.seek(0) or file.read() for file in files[1:]]
    assert status == 0, trouble
    assert printed.strip()
