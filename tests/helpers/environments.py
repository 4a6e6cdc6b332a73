"""Other versions of packages, each set in a folder that stands first on the path; the rest, torch too, is shared."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "st_dimreduce-tests"


def without(*names):
    """Return code to put before code that must do without these packages: an attempt to find one fails loudly."""
    return f"""
import sys
class Blocked:
    def find_spec(self, name, *_):
        if name.split(".")[0] in {names}:
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocked())
try:
    import {names[0]}
    raise SystemExit("the block does not work")
except ImportError:
    pass
"""


WITHOUT_US = without("st_dimreduce")


def packages(*requirements):
    """Return the folder that holds just these requirements, installed without what they need; kept for next time."""
    key = hashlib.sha256(" ".join([sys.version, *sorted(requirements)]).encode()).hexdigest()[:16]
    folder = CACHE / key
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as work:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", f"{work}/new"]
            subprocess.run([*pip, *requirements], check=True, timeout=600)
            Path(work, "new").rename(folder)
    return folder


def node_modules(folder):
    """Return a folder with the npm packages that a package-lock.json there names; no script of theirs is run."""
    files = [folder / "package.json", folder / "package-lock.json"]
    kept = CACHE / hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as work:
            new = Path(work, "new")
            new.mkdir()
            for file in files:
                shutil.copy(file, new)
            npm = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
            subprocess.run(npm, cwd=new, check=True, timeout=600)
            new.rename(kept)
    return kept


def run_python(folder, code, *arguments, timeout=300):
    """Run code where the folder's packages come first; returns what it printed, fails with what it printed in error."""
    env = os.environ | {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout
