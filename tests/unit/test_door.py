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
from st_dimreduce import Head

PACKAGE = Path(st_dimreduce.__file__).parent
HEAVY = {"torch", "transformers", "sentence_transformers"}
OURS = {"st_dimreduce", "lazy_loader"}
COMMANDS = ["reduce", "publish", "export", "check", "fit", "transform", "attach", "demo", "compare", "serve"]


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
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32))
    return tmp_path / "x.npy"


def test_the_package_imports_nothing_but_what_makes_it_lazy():
    assert imported_by("import st_dimreduce")[0] == OURS


def test_the_command_line_imports_typer_alone():
    bare, _ = imported_by("import typer")
    assert imported_by("import st_dimreduce.cli")[0] == bare | OURS


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_help_imports_what_a_bare_typer_program_does(command):
    program = "import typer\napp = typer.Typer()\napp.command()(lambda: None)"
    run = "try:\n    app(['--help'])\nexcept SystemExit:\n    pass"
    bare, _ = imported_by(f"{program}\n{run}")
    ours, said = run_by(*command, "--help")
    assert "Usage" in said
    assert ours - bare == OURS


@pytest.mark.parametrize("size", [["--dim", "4"], ["--bytes", "4"]])
def test_fit_imports_no_torch(size, vectors, tmp_path):
    modules, said = run_by("fit", vectors, *size, "-o", tmp_path / "out")
    assert "Wrote" in said
    assert not modules & HEAVY


@pytest.mark.parametrize("sink", ["y.npy", "y"])
def test_transform_by_a_head_imports_no_torch(sink, head, vectors, tmp_path):
    modules, said = run_by("transform", head, vectors, tmp_path / sink)
    assert "500 vectors of 4 dimensions in int8" in said
    assert not modules & HEAVY


def test_transform_to_a_table_imports_no_torch(head, vectors, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = pa.FixedSizeListArray.from_arrays(pa.array(np.load(vectors).ravel()), 8)
    pq.write_table(pa.table({"id": range(500), "v": rows}), tmp_path / "x.parquet")
    modules, _ = run_by("transform", head, tmp_path / "x.parquet", tmp_path / "y.parquet")
    assert not modules & HEAVY


def test_transform_by_a_reduced_model_and_check_import_no_torch(saved, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((200, 32)).astype(np.float32))
    modules, said = run_by("transform", saved / "portable", tmp_path / "x.npy", tmp_path / "y.npy")
    assert "200 vectors of 8 dimensions" in said
    assert not modules & HEAVY
    modules, said = run_by("check", saved / "portable")
    assert "nothing is wrong" in said
    assert not modules & HEAVY


def test_heads_and_codes_import_no_torch(head, vectors, tmp_path):
    code = """
import numpy as np
from st_dimreduce import Codes, Head
x = np.load(sys.argv[2])
head = Head.load(sys.argv[1])
codes = head.encode(x)
scores, rows = codes.search(head.transform(x[:3]), 5)
assert (rows[:, 0] == [0, 1, 2]).all()
codes.search(head.transform(x[:3]), 5, rescore=(x[:3], x))
codes.save(sys.argv[3])
Codes.load(sys.argv[3]).decode()
"""
    assert not imported_by(code, head, vectors, tmp_path / "codes.npy")[0] & HEAVY
    code = """
from st_dimreduce import Head, Size
Head.fit(sys.argv[2], Size(bytes=4))
fitted = Head.fit(sys.argv[2], 4)
fitted.save(sys.argv[3])
fitted.transform_file(sys.argv[2], sys.argv[3] + ".npy", "int4")
fitted.drift(sys.argv[2])
"""
    assert not imported_by(code, head, vectors, tmp_path / "out")[0] & HEAVY


def homes():
    """The public names, each with the module that it lives in, as ``__init__.pyi`` lists them."""
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: f"st_dimreduce.{node.module}" for node in imports for alias in node.names}


def test_the_public_names_are_those_of_the_stub():
    assert set(st_dimreduce.__all__) == set(homes())
    assert len(st_dimreduce.__all__) == len(set(st_dimreduce.__all__)) <= 20
    assert set(homes()) <= set(dir(st_dimreduce))
    with pytest.raises(AttributeError, match=r"^No st_dimreduce attribute reduce_modell$"):
        st_dimreduce.reduce_modell  # noqa: B018


def test_no_module_has_the_name_of_a_public_function():
    assert {path.stem for path in PACKAGE.iterdir()} & set(st_dimreduce.__all__) == set()


def test_no_module_hides_a_public_name():
    top = [path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    for module in [*homes().values(), *(f"st_dimreduce.{name}" for name in top)]:
        importlib.import_module(module)
    names = {}
    exec("from st_dimreduce import *", names)  # noqa: S102, as a user does
    for name, home in homes().items():
        assert names[name] is getattr(st_dimreduce, name)
        assert names[name] is getattr(sys.modules[home], name)
        assert names[name].__name__ == name
        assert not isinstance(names[name], types.ModuleType)


@pytest.mark.parametrize("name", st_dimreduce.__all__)
def test_every_public_name_is_documented(name):
    thing = getattr(st_dimreduce, name)
    assert (vars(thing)["__doc__"] if isinstance(thing, type) else thing.__doc__).strip(), (
        "a class has words of its own"
    )
