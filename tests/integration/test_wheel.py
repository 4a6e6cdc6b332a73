"""What is published: both distributions build, are whole, and the wheel runs where nothing else is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What the test environment has for other extras, and the tests themselves: none of it may be needed, or found.
NOT_ASKED_FOR = ["matplotlib", "pyarrow", "pytest", "faiss", "ray", "duckdb", "starlette", "uvicorn", "onnx", "tests"]
NOT_ASKED_FOR += ["onnxruntime", "openvino", "datasets", "qdrant_client", "chromadb", "lancedb", "langchain_core"]
LOOK = """
import importlib.util, json, sys
import st_dimreduce, torch
found = [name for name in sys.argv[1:] if importlib.util.find_spec(name)]
print(json.dumps([st_dimreduce.__file__, torch.__file__, found]))
"""


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


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Wheel and source distribution, built as for the package index from a copy of what the repository holds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    names = call("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines()
    for name in names:
        if Path(ROOT, name).exists():  # not one that is deleted and still in the index
            Path(source, name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    call(sys.executable, "-m", "build", "--outdir", out, source, cwd=out)
    (wheel,), (archive,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, archive


def test_both_hold_the_package_and_nothing_else(distributions):
    wheel, archive = distributions
    package = {str(path.relative_to(ROOT)) for path in Path(ROOT, "st_dimreduce").rglob("*") if path.is_file()}
    package = {name for name in package if "__pycache__" not in name}
    pages = {"st_dimreduce/evaluation/report.html", "st_dimreduce/apps/search_page.html"}
    assert pages | {"st_dimreduce/py.typed"} < package
    record = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}
    folder = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    assert set(zipfile.ZipFile(wheel).namelist()) == package | {f"{folder}/{name}" for name in record}
    with tarfile.open(archive) as opened:
        held = {member.name.split("/", 1)[1] for member in opened.getmembers() if member.isfile()}
    made = {name for name in held if name.startswith("st_dimreduce.egg-info/")}
    files = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
    assert held - made == package | files


def test_twine_finds_nothing_to_mend(distributions, tmp_path):
    said = call(sys.executable, "-m", "twine", "--no-color", "check", "--strict", *distributions, cwd=tmp_path)
    assert said.count("PASSED") == 2


def test_the_wheel_alone_runs_the_demo(distributions, tmp_path):
    wheel, _ = distributions
    try:
        call(sys.executable, "-m", "venv", "empty", cwd=tmp_path)
        programs = tmp_path / "empty" / "bin"
        pip = [programs / "python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
        call(*pip, f"{wheel}[demo]", cwd=tmp_path)
        call(programs / "python", "-m", "pip", "check", cwd=tmp_path)
        ours, theirs, found = json.loads(call(programs / "python", "-c", LOOK, *NOT_ASKED_FOR, cwd=tmp_path))
        assert all(Path(path).is_relative_to(tmp_path / "empty") for path in (ours, theirs)), (ours, theirs)
        assert found == []
        said = call(programs / "st-dimreduce", "demo", "--pairs", "200", cwd=tmp_path)
        assert "of the nDCG@10. Fitted in" in said
        assert "loaded by SentenceTransformer" in said
        assert "…" not in said, "a figure was cut"
    finally:
        shutil.rmtree(tmp_path / "empty", ignore_errors=True)  # 1.5 GB that pytest would keep
