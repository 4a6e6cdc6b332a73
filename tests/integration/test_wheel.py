"""What is published: both distributions build, are whole, and the wheel runs where nothing else is installed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import st_dimreduce
from tests.helpers.distributions import ROOT, build, call

# What the test environment has for other extras, and the tests themselves: none of it may be needed, or found.
NOT_ASKED_FOR = ["matplotlib", "pyarrow", "pytest", "faiss", "ray", "duckdb", "starlette", "uvicorn", "onnx", "tests"]
NOT_ASKED_FOR += ["onnxruntime", "openvino", "datasets", "qdrant_client", "chromadb", "lancedb", "langchain_core"]
LOOK = """
import importlib.util, json, sys
import st_dimreduce, torch
found = [name for name in sys.argv[1:] if importlib.util.find_spec(name)]
print(json.dumps([st_dimreduce.__file__, torch.__file__, found]))
"""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Wheel and source distribution, built as for the package index from a copy of what the repository holds."""
    return build(tmp_path_factory)


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


def test_the_same_source_gives_the_same_wheel(distributions, tmp_path_factory):
    again, _ = build(tmp_path_factory)
    assert again.name == distributions[0].name
    assert again.read_bytes() == distributions[0].read_bytes()


def test_the_bill_of_materials_says_what_the_wheel_says(distributions, tmp_path):
    wheel, bill = Path(shutil.copy(distributions[0], tmp_path)), tmp_path / f"{distributions[0].stem}.cdx.json"
    call(sys.executable, ROOT / ".ci" / "sbom.py", wheel, cwd=tmp_path)
    first = bill.read_bytes()
    call(sys.executable, ROOT / ".ci" / "sbom.py", wheel, cwd=tmp_path)
    assert bill.read_bytes() == first, "the same wheel, another document"
    made = json.loads(first)
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.6")
    about, (installed,) = made["metadata"]["component"], importlib.metadata.distributions(path=[str(wheel)])
    assert (about["name"], about["version"]) == ("st_dimreduce", st_dimreduce.__version__)
    assert about["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert about["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(wheel.read_bytes()).hexdigest()}]
    said = sorted(entry["value"] for part in made["components"] for entry in part["properties"])
    needed = [Requirement(line) for line in installed.requires]
    assert said == sorted(str(one) for one in needed if canonicalize_name(one.name) != "st-dimreduce")
    required = {part["name"] for part in made["components"] if part["scope"] == "required"}
    assert required == {canonicalize_name(one.name) for one in needed if one.marker is None}
    assert required >= {"numpy", "sentence-transformers", "torch"}
    (links,) = [entry["dependsOn"] for entry in made["dependencies"] if entry["ref"] == about["bom-ref"]]
    assert sorted(links) == sorted(part["bom-ref"] for part in made["components"])


@pytest.mark.wings("apps")
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
        assert "of the nDCG@10. Encoded and fitted in" in said
        assert "loaded by SentenceTransformer" in said
        assert "…" not in said, "a figure was cut"
    finally:
        shutil.rmtree(tmp_path / "empty", ignore_errors=True)  # 1.5 GB that pytest would keep
