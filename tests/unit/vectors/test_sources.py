"""What vectors cannot be read from or written to: one line, what was given, what to do."""

from __future__ import annotations

import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import feather

from st_dimreduce import Head
from st_dimreduce.vectors.fit import summarize

WIDTH = 8
X = np.random.default_rng(0).standard_normal((300, WIDTH)).astype(np.float32)
HEAD = Head(np.random.default_rng(1).standard_normal((4, WIDTH)) / 4)


def vectors(rows=X):
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


def npy(path, rows=X):
    np.save(path, rows)
    return path


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def folder(path, *writers):
    path.mkdir()
    for write in writers:
        write(path)
    return path


def lists(row, value):
    rows = X.tolist()
    rows[row] = value
    return pa.table({"v": pa.array(rows, pa.list_(pa.float32()))})


def beyond(kind, data, child=None):
    """An array one of whose offsets leads out of its values."""
    offsets = np.arange(301, dtype=np.int32) * WIDTH
    offsets[150] = 2**31 - 1
    buffers = [None, pa.py_buffer(offsets), *map(pa.py_buffer, data)]
    return pa.Array.from_buffers(kind, 300, buffers, children=None if child is None else [child])


def cut(path):
    path.write_bytes(npy(path).read_bytes()[:5000])
    return path


def with_bytes(path, content):
    path.write_bytes(content)
    return path


BAD = {
    "no such file": (lambda f: f / "none.npy", "no file or folder .*none.npy: give an array"),
    "a number": (lambda f: 5, "int holds no vectors: give an array"),
    "one vector": (lambda f: X[0], r"the ndarray: got shape \(8,\), expected \(n, d\), one vector per row"),
    "integers": (lambda f: X.astype(int), "the ndarray: got int64, expected floats: convert them first"),
    "masked entries": (
        lambda f: np.ma.masked_less(X, -2),
        r"the MaskedArray: got a masked array with \d+ masked entries",
    ),
    "masked items": (
        lambda f: [X, np.ma.masked_less(X, -2)],
        "item 1 of the list: got a masked array",
    ),
    "no columns at all": (lambda f: X[:, :0], "the vectors from row 0 on have 0 dimensions, expected 1 or more"),
    "an integer tensor": (lambda f: torch.ones(3, WIDTH).int(), r"the Tensor: got (torch\.)?int32, expected floats"),
    "nothing": (lambda f: X[:0], "there is no vector in the source: give"),
    "nothing in a file": (lambda f: npy(f / "x.npy", X[:0]), "there is no vector in the source"),
    "nothing in a table": (lambda f: parquet(f / "x.parquet", v=vectors()[:0]), "there is no vector in the source"),
    "an empty iterable": (lambda f: iter(()), "there is no vector in the source"),
    "lists": (lambda f: [[0.5] * WIDTH], "item 0 of the list: got a list, expected an array or tensor of floats"),
    "single vectors": (lambda f: list(X), r"item 0 of the list: got shape \(8,\)"),
    "texts": (lambda f: ["a", "b"], "item 0 of the list: got a str"),
    "mixed widths": (lambda f: [X[:70], X[:5, :6]], "the vectors from row 70 on have 6 dimensions, expected 8"),
    "integers among floats": (lambda f: [X, X.astype(int)], "item 1 of the list: got int64, expected floats"),
    "another width": (lambda f: X[:, :6].copy(), "the vectors have 6 dimensions, the head takes 8"),
    "no .npy": (lambda f: with_bytes(f / "x.npy", b"hello"), "x.npy is not a complete .npy file"),
    "an empty file": (lambda f: with_bytes(f / "x.npy", b""), "x.npy is not a complete .npy file"),
    "a cut .npy": (lambda f: cut(f / "x.npy"), "x.npy is not a complete .npy file of numbers: mmap length is greater"),
    "pickles": (lambda f: npy(f / "x.npy", np.array([[{}]], object)), "x.npy is not a complete .npy file of numbers"),
    "one vector in a file": (lambda f: npy(f / "x.npy", X[0]), r"x.npy: got shape \(8,\)"),
    "texts in a file": (lambda f: npy(f / "x.npy", np.array([["a"]])), "x.npy: got <U1, expected floats"),
    "an unknown file": (lambda f: with_bytes(f / "x.bin", b"hello"), "x.bin holds no vectors: give"),
    "an empty folder": (lambda f: f, "holds no vectors: give an array"),
    "two kinds in a folder": (
        lambda f: folder(f / "x", lambda p: npy(p / "a.npy"), lambda p: parquet(p / "b.parquet", v=vectors())),
        "x holds .npy and .parquet: give",
    ),
    "widths in a folder": (
        lambda f: folder(f / "x", lambda p: npy(p / "a.npy"), lambda p: npy(p / "b.npy", X[:, :6])),
        "b.npy holds vectors of 6 dimensions, expected 8 as in a.npy",
    ),
    "types in a folder": (
        lambda f: folder(f / "x", lambda p: npy(p / "a.npy"), lambda p: npy(p / "b.npy", X.astype(int))),
        "b.npy: got int64, expected floats",
    ),
    "no Parquet": (lambda f: with_bytes(f / "x.parquet", b"hello" * 9), "x.parquet is not a complete Parquet file"),
    "no Arrow": (lambda f: with_bytes(f / "x.arrow", b"ARROW1" * 9), "x.arrow is not a complete Arrow IPC file"),
    "schemas in a folder": (
        lambda f: folder(
            f / "x",
            lambda p: parquet(p / "a.parquet", v=vectors(), id=range(300)),
            lambda p: parquet(p / "b.parquet", v=vectors(), id=["x"] * 300),
        ),
        r"b.parquet has the columns v \(.*\), id \(string\): expected those of a.parquet, v .*, id \(int64\)",
    ),
    "widths in tables": (
        lambda f: folder(
            f / "x",
            lambda p: parquet(p / "a.parquet", v=vectors()),
            lambda p: parquet(p / "b.parquet", v=vectors(X[:, :6])),
        ),
        "the vectors from row 300 on have 6 dimensions, expected 8",
    ),
    "two columns": (
        lambda f: pa.table({"a": vectors(), "b": vectors()}),
        r"several columns hold lists of floats: name one with column= .* of 'a', 'b'",
    ),
    "no column of vectors": (lambda f: pa.table({"id": [1]}), r"no column holds lists of floats: .* id \(int64\)"),
    "a null row": (lambda f: lists(70, None), "row 70 holds null instead of a vector: drop or fill it"),
    "a null in a row": (lambda f: lists(70, [None] + [1.0] * 7), "the vector in row 70 holds null"),
    "a ragged row": (lambda f: lists(70, [1.0] * 7), "row 70 holds 7 numbers, row 0 8: expected equally many"),
    "a null row of the second file": (
        lambda f: folder(
            f / "x",
            lambda p: parquet(p / "a.parquet", v=vectors()),
            lambda p: parquet(p / "b.parquet", v=lists(70, None)["v"].cast(pa.list_(pa.float32(), WIDTH))),
        ),
        "row 370 holds null instead of a vector",
    ),
    "an empty row": (lambda f: lists(70, []), "row 70 holds 0 numbers, row 0 8: expected equally many"),
    "a null row of fixed size": (
        lambda f: pa.table({"v": lists(299, None)["v"].cast(pa.list_(pa.float32(), WIDTH))})[100:],
        "row 199 holds null instead of a vector",
    ),
    "a .npy whose header never ends": (
        lambda f: with_bytes(f / "x.npy", npy(f / "x.npy").read_bytes().replace(b"}", b" ", 1)),
        "x.npy is not a complete .npy file of numbers",
    ),
    "columns of one name": (
        lambda f: pa.table([vectors(), range(300), range(300)], ["v", "id", "id"]),
        r"several columns have one name: rename all but one of v .*, id \(int64\), id \(int64\)",
    ),
    "a name that acts": (lambda f: pa.table({"\x1b[2J\n": [1]}), r"no column holds lists .* \\x1b\[2J\\n \(int64\)"),
    "offsets out of their buffer": (
        lambda f: pa.table({"v": vectors(), "text": beyond(pa.string(), [b"abcd" * 600])}),
        "the Table is not a complete Table: .*offset",
    ),
    "offsets of vectors out of their buffer": (
        lambda f: pa.table({"v": beyond(pa.list_(pa.float32()), [], pa.array(X.ravel()))}).to_batches()[0],
        "the RecordBatch is not a complete RecordBatch: .*offset",
    ),
    "offsets out of a stream's buffer": (
        lambda f: pa.table({"v": vectors(), "text": beyond(pa.string(), [b"abcd" * 600])}).to_reader(),
        "the RecordBatchReader is not a complete RecordBatchReader: .*offset",
    ),
    "splits": (
        lambda f: datasets.DatasetDict({"a": datasets.Dataset.from_dict({"v": X})}),
        "DatasetDict holds no vectors: give an array, .* one split of a dataset",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_sources(name, tmp_path):
    make, message = BAD[name]
    source = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        HEAD.transform_file(source, tmp_path.parent / "target.npy")
    assert "\n" not in str(caught.value)
    if name not in ("another width", "offsets out of a stream's buffer"):  # a stream is read once
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            summarize(source)
    assert sorted(tmp_path.rglob("*")) == before
    assert not list(tmp_path.parent.glob(".target*")), "something was left behind"


@pytest.mark.parametrize(
    ("source", "column", "message"),
    [
        (pa.table({"a": vectors(), "b": vectors()}), "c", r"there is no column 'c': name one of a \(.*, b \("),
        (pa.table([vectors(), vectors()], ["a", "a"]), "a", "2 columns are named 'a'"),
        (pa.table({"a": vectors(), "b": ["x"] * 300}), "b", "column 'b' holds string, expected lists of floats"),
        (pa.table({"a": pa.array([[1, 2]])}), "a", "column 'a' holds list<.*int64>, expected lists of floats"),
        (X, "a", "column 'a' was named, but ndarray is not a table: leave the column out"),
        ([X], "a", "column 'a' was named, but list is not a table"),
    ],
)
def test_bad_columns(source, column, message):
    with pytest.raises(ValueError, match=message):
        summarize(source, column=column)


def test_a_column_of_an_npy_file(tmp_path):
    with pytest.raises(ValueError, match=r"column 'a' was named, but .*x.npy is not a table"):
        summarize(npy(tmp_path / "x.npy"), column="a")


def test_float_types_may_differ_between_files(tmp_path):
    parquet(tmp_path / "a.parquet", id=range(300), v=vectors())
    parquet(tmp_path / "b.parquet", id=range(300), v=vectors(X.astype(np.float64)))
    parquet(tmp_path / "c.parquet", id=range(300), v=pa.array(X.tolist(), pa.large_list(pa.float32())))
    schema = pa.schema([pa.field("id", pa.int64(), False, {"a": "b"}), ("v", pa.list_(pa.float32()))], {"c": "d"})
    pq.write_table(pa.table([range(300), X.tolist()], schema=schema), tmp_path / "d.parquet")
    assert summarize(tmp_path).count == 1200
    assert HEAD.transform_file(tmp_path, tmp_path.parent / "target.parquet").rows == 1200


def test_a_pass_over_vectors_alone_leaves_out_the_other_columns(tmp_path):
    names = {"v.x": range(300), "v": vectors(), "text": ["a very peculiar text " * 20] * 300}
    path = parquet(tmp_path / "x.parquet", **names)
    expected = summarize(X)
    assert np.array_equal(summarize(path, column="v").gram, expected.gram)
    file = path.read_bytes()
    at = pq.read_metadata(path).row_group(0).column(2).dictionary_page_offset
    with_bytes(path, file[:at] + bytes(20) + file[at + 20 :])  # the header of its first page
    assert np.array_equal(summarize(path, column="v").gram, expected.gram)
    with pytest.raises(ValueError, match="is not a complete Parquet file"):
        HEAD.transform_file(path, tmp_path / "y.parquet", column="v")
    table = pa.table(names)
    for source in (table, datasets.Dataset(table)):
        assert np.array_equal(summarize(source, column="v").gram, expected.gram)


@pytest.mark.parametrize(
    ("target", "overwrite", "kind", "message"),
    [
        ("there.npy", False, FileExistsError, r"there.npy exists: choose another file, .*overwrite=True \(--force\)"),
        ("there", False, FileExistsError, r"there exists: choose another folder, .*overwrite=True \(--force\)"),
        ("there", True, FileExistsError, "there exists and holds no part-00000.npy: .*never replaced"),
        ("folder.npy", True, FileExistsError, "folder.npy exists and is not a file: .*never replaced"),
        ("x.npy", True, ValueError, "the target .*x.npy and the source .*x.npy contain one another"),
        ("link.npy", True, ValueError, "contain one another"),
        ("target.txt", False, ValueError, "target.txt ends in .txt: expected .npy, .parquet, .arrow, or no suffix"),
        ("there.npy/target.npy", False, PermissionError, "cannot be written"),
    ],
)
def test_bad_targets(target, overwrite, kind, message, tmp_path):
    source = npy(tmp_path / "x.npy")
    (tmp_path / "there.npy").write_text("three years")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.txt").write_text("three years")
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "link.npy").symlink_to(source)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(kind, match=message):
        HEAD.transform_file(source, tmp_path / target, overwrite=overwrite)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("target", ["inside.npy", "deep/inside", "", ".."])
def test_a_target_within_its_source(target, tmp_path):
    source = folder(tmp_path / "x", lambda p: npy(p / "a.npy"))
    with pytest.raises(ValueError, match="contain one another: choose another"):
        HEAD.transform_file(source, source / target, overwrite=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["x", "a.npy"]


def test_overwrite_replaces_what_a_run_made(tmp_path):
    for target in (tmp_path / "a.npy", tmp_path / "a"):
        HEAD.transform_file(X[:200], target)
        assert HEAD.transform_file(X, target, "int8", overwrite=True).rows == 300
    assert len(np.load(tmp_path / "a" / "part-00000.npy")) == len(np.load(tmp_path / "a.npy")) == 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.npy", "a.npy.codes.json"]


def test_without_pyarrow(monkeypatch, tmp_path):
    feather.write_feather(pa.table({"v": vectors()}), tmp_path / "x.feather")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "st_dimreduce.vectors.tables", raising=False)
    for run in (lambda: summarize(tmp_path / "x.feather"), lambda: HEAD.transform_file(X, tmp_path / "y.parquet")):
        with pytest.raises(ModuleNotFoundError, match=r"need pyarrow: pip install 'st_dimreduce\[parquet\]'"):
            run()
    assert HEAD.transform_file(X, tmp_path / "y.npy").rows == 300
