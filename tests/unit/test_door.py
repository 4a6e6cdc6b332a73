"""What ``import st_dimreduce`` and a command bring with them, and which names they give."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import st_dimreduce
from st_dimreduce.base_head import Head

PACKAGE = Path(st_dimreduce.__file__).parent
HEAVY = {"torch", "transformers", "sentence_transformers"}
COMMANDS = ["reduce", "publish", "export", "check", "fit", "apply", "attach", "demo", "compare", "serve"]


def imported_by(code, *arguments):
    """Top-level modules that Python code imports in a process of its own, those of the standard library left out."""
    script = f"import sys\nbefore = set(sys.modules)\n{code}\nprint('', *(set(sys.modules) - before), sep='\\n')"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    *printed, names = done.stdout.rpartition("\n\n")[::2]
    modules = {name.partition(".")[0] for name in names.split()}
    return modules - sys.stdlib_module_names, "".join(printed)


def run_by(*arguments):
    """Modules that a command imports in a process of its own, and what it prints."""
    code = """
from st_dimreduce.cli import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    assert not end.code
"""
    return imported_by(code, *arguments)


@pytest.fixture
def head(tmp_path):
    weight = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    head = Head(weight).with_record(mean_norm=1.0, precision="int8")
    head.save(tmp_path / "head")
    return tmp_path / "head"


@pytest.fixture
def vectors(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((200, 8)).astype(np.float32))
    return tmp_path / "x.npy"


def test_the_package_imports_nothing_but_itself():
    assert imported_by("import st_dimreduce")[0] == {"st_dimreduce"}


def test_the_command_line_imports_typer_alone():
    bare, _ = imported_by("import typer")
    assert imported_by("import st_dimreduce.cli")[0] == bare | {"st_dimreduce"}


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_help_imports_what_a_bare_typer_program_does(command):
    program = "import typer\napp = typer.Typer()\napp.command()(lambda: None)"
    run = "try:\n    app(['--help'])\nexcept SystemExit:\n    pass"
    bare, _ = imported_by(f"{program}\n{run}")
    ours, said = run_by(*command, "--help")
    assert "Usage" in said
    assert ours - bare == {"st_dimreduce"}


@pytest.mark.parametrize("size", [["--dim", "4"], ["--bytes", "4"]])
def test_fit_imports_no_torch(size, vectors, tmp_path):
    modules, said = run_by("fit", vectors, *size, "-o", tmp_path / "out")
    assert "Wrote" in said
    assert not modules & HEAVY


@pytest.mark.parametrize("sink", ["y.npy", "y"])
def test_apply_of_a_head_imports_no_torch(sink, head, vectors, tmp_path):
    modules, said = run_by("apply", head, vectors, tmp_path / sink)
    assert "200 vectors of 4 dimensions in int8" in said
    assert not modules & HEAVY


def test_apply_to_a_table_imports_no_torch(head, vectors, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = pa.FixedSizeListArray.from_arrays(pa.array(np.load(vectors).ravel()), 8)
    pq.write_table(pa.table({"id": range(200), "v": rows}), tmp_path / "x.parquet")
    modules, _ = run_by("apply", head, tmp_path / "x.parquet", tmp_path / "y.parquet")
    assert not modules & HEAVY


def test_apply_of_a_reduced_model_and_check_import_no_torch(saved, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((200, 32)).astype(np.float32))
    modules, said = run_by("apply", saved / "portable", tmp_path / "x.npy", tmp_path / "y.npy")
    assert "200 vectors of 8 dimensions" in said
    assert not modules & HEAVY
    modules, said = run_by("check", saved / "portable")
    assert "nothing to mend" in said
    assert not modules & HEAVY


def test_functions_for_vectors_import_no_torch(head, vectors, tmp_path):
    code = """
import numpy as np
import st_dimreduce
x = np.load(sys.argv[2])
head = st_dimreduce.Head.load(sys.argv[1])
codes = st_dimreduce.quantize(head.forward(x), head.precision)
scores, rows = st_dimreduce.search(head.forward(x[:3]), codes, head.precision, 5)
assert (rows[:, 0] == [0, 1, 2]).all()
st_dimreduce.rescore(x[:3], x, rows)
st_dimreduce.dequantize(codes, head.precision, head.out_features)
"""
    assert not imported_by(code, head, vectors)[0] & HEAVY
    code = """
import st_dimreduce
summary = st_dimreduce.summarize(sys.argv[2])
fitted = st_dimreduce.fit_head(summary, 4)
st_dimreduce.choose(summary, Size(bytes=4))
st_dimreduce.Head.fit(sys.argv[2], 4).save(sys.argv[3])
st_dimreduce.fitted.transform_file(sys.argv[2], sys.argv[3] + ".npy", "int4")
"""
    assert not imported_by(code, head, vectors, tmp_path / "out")[0] & HEAVY


def typed_imports():
    """Names that the door imports for type checkers, each with its module."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    return {alias.name: node.module for node in block.body for alias in node.names}


def test_one_list_of_public_names():
    homes = {name: f"st_dimreduce.{home}" for name, home in st_dimreduce._HOMES.items()}
    assert typed_imports() == homes
    assert list(st_dimreduce.__all__) == sorted(homes)
    assert {name for name in dir(st_dimreduce) if not name.startswith("__")} == set(homes)
    with pytest.raises(AttributeError, match="module 'st_dimreduce' has no attribute 'reduce_modell'"):
        st_dimreduce.reduce_modell  # noqa: B018


def test_no_module_has_the_name_of_a_public_function():
    assert {path.stem for path in PACKAGE.iterdir()} & set(st_dimreduce.__all__) == set()


def test_no_module_hides_a_public_name():
    top = [path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    for module in [*st_dimreduce._HOMES.values(), *top]:
        importlib.import_module(f"st_dimreduce.{module}")
    names = {}
    exec("from st_dimreduce import *", names)  # noqa: S102, as a user does
    for name, home in st_dimreduce._HOMES.items():
        assert names[name] is getattr(st_dimreduce, name)
        assert names[name] is getattr(sys.modules[f"st_dimreduce.{home}"], name)
        assert names[name].__name__ == name
        assert not isinstance(names[name], types.ModuleType)


@pytest.mark.parametrize("name", st_dimreduce.__all__)
def test_every_public_name_is_documented(name):
    thing = getattr(st_dimreduce, name)
    assert (vars(thing)["__doc__"] if isinstance(thing, type) else thing.__doc__).strip(), (
        "a class has words of its own"
    )
