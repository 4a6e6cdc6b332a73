"""An index whose files are damaged or swapped, and one that cannot be written."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from st_dimreduce.codes.codes import Codes
from st_dimreduce.errors import UserError
from tests.helpers.components import missing
from tests.helpers.disk import no_large_files

pytestmark = pytest.mark.component("FAISS")

if not missing("FAISS"):
    import faiss

    from st_dimreduce.vectors.index import Index

ROWS, K = 3000, 16


def coded(rows=ROWS, seed=0, size=K, precision="int2"):
    return Codes.of(np.random.default_rng(seed).standard_normal((rows, size)).astype(np.float32), precision)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "index"
    Index.build(coded(), [f"n{row}" for row in range(ROWS)], cells=8).save(path)
    return path


@pytest.fixture
def path(built, tmp_path):
    shutil.copytree(built, tmp_path / "index")
    return tmp_path / "index"


def change(file, **values):
    content = json.loads(file.read_text())
    content.update(values)
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


@pytest.mark.parametrize("name", ["index.faiss", "ids.json"])
@pytest.mark.parametrize("harm", ["gone", "empty", "half", "noise"])
def test_a_damaged_file_is_refused_in_a_line(name, harm, path):
    file = path / name
    content = file.read_bytes()
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "half": content[: len(content) // 2], "noise": bytes(range(256)) * 40}[harm])
    with pytest.raises(UserError, match="holds a damaged index: build it again, or copy it anew") as refused:
        Index.load(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "st_dimreduce.index.1"}, "is of format 'st_dimreduce.index.1', not st_dimreduce.index.2: build it"),
        ({"format": None}, "build it again"),
        ({"kind": "hnsw"}, "unknown kind 'hnsw'"),
        ({"precision": "int4"}, "is another index than index.json says"),
        ({"precision": "int9"}, "damaged"),
        ({"out_features": "32"}, "is another index than index.json says"),
        ({"precision": None}, "names no precision"),
        ({"vectors": ROWS - 1}, "is another index than index.json says"),
        ({"named": None}, "damaged"),
        ({"measured": None}, "damaged"),
        ({"measured": {"vectors": 1, "candidates": 0, "cells": [], "recalls": {"10": [], "100": []}}}, "candidates=0"),
        ({"measured": {"vectors": 1, "candidates": 1, "cells": [0], "recalls": {"10": [1], "100": [1]}}}, "do not fit"),
        ({"measured": {"vectors": 1, "candidates": 1, "cells": [1], "recalls": {"10": [], "100": []}}}, "do not fit"),
        ({"next_id": "x"}, "damaged"),
    ],
)
def test_what_does_not_fit_is_refused(values, message, path):
    change(path / "index.json", **values)
    with pytest.raises(UserError) as refused:
        Index.load(path)
    assert message in str(refused.value)


def test_names_that_do_not_fit_are_refused(path):
    for names in ({"a": 1}, [1, 2], ["a"], "abc"):
        (path / "ids.json").write_text(json.dumps(names))
        with pytest.raises(UserError, match="holds a damaged index"):
            Index.load(path)


def test_another_faiss_index_is_refused(path):
    for index in (faiss.IndexFlatIP(K), faiss.index_factory(K, "IVF1,PQ8x4fs")):
        index.train(coded().decode())
        index.add(coded().decode())
        faiss.write_index(index, str(path / "index.faiss"))
        with pytest.raises(UserError, match="is another index than"):
            Index.load(path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        Index.load(path / "nothing")
    with pytest.raises(UserError, match="give a folder that Index"):
        Index.load(path.parent)


def test_a_disk_that_is_full_leaves_the_index_as_it_was(path):
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    index = Index.load(path)
    index.add(coded(100, 1), [f"more {row}" for row in range(100)])
    with no_large_files(), pytest.raises(OSError, match="could not be written"):
        index.save(path, overwrite=True)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert [file.name for file in path.parent.iterdir()] == ["index"]
    index.save(path, overwrite=True)
    assert len(Index.load(path)) == ROWS + 100


def test_only_an_index_is_replaced(path, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    index = Index.load(path)
    with pytest.raises(FileExistsError, match="never replaced"):
        index.save(tmp_path / "home", overwrite=True)
    with pytest.raises(FileExistsError, match="exists"):
        index.save(path)
