"""Print every file that the tests need installed, as pip resolves them here, each with its hash.

python .ci/lock.py          what `make lock` writes to requirements-ci.txt
python .ci/lock.py --fits   whether that file was made for this Python and this machine
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

EXTRAS = "dev,test-all"
LOCK = Path(__file__).parents[1] / "requirements-ci.txt"
NOTE = """\
# Made by `make lock` from pyproject.toml and constraints.txt, for .ci/run alone. Each hash is that of the file in the
# Python Package Index; torch is the CPU build, whose file is in PyTorch's own index.
"""


def made_for() -> str:
    """Return the Python and the machine, as the first line of the file names them."""
    version = ".".join(platform.python_version_tuple()[:2])
    return f"# {platform.python_implementation()} {version}, {platform.system()} {platform.machine()}"


def resolved() -> str:
    """Return one line per file, in the order of their names."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    command = [*pip, "--constraint", "constraints.txt", f".[{EXTRAS}]"]
    done = subprocess.run(command, cwd=LOCK.parent, stdout=subprocess.PIPE, check=True)  # noqa: S603, our own command
    lines = []
    for entry in json.loads(done.stdout)["install"]:
        if "archive_info" in entry["download_info"]:  # not this package, which is a folder
            about, file_hash = entry["metadata"], entry["download_info"]["archive_info"]["hashes"]["sha256"]
            lines.append(f"{about['name']}=={about['version']} --hash=sha256:{file_hash}\n")
    return "".join(sorted(lines, key=str.lower))


if __name__ == "__main__":
    if sys.argv[1:] == ["--fits"]:
        raise SystemExit(LOCK.read_text(encoding="utf-8").splitlines()[0] != made_for())
    print(f"{made_for()}\n{NOTE}{resolved()}", end="")  # noqa: T201
