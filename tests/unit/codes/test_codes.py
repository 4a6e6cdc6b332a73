"""Codes as an object: searched, decoded, saved and loaded, and what does not fit them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from st_dimreduce import Codes, Head, Precision, UserError
from st_dimreduce.codes.origin import INDEX_FILE
from st_dimreduce.codes.precision import dequantize, quantize
from st_dimreduce.codes.search import search

RNG = np.random.default_rng(0)
X = RNG.standard_normal((200, 24)).astype(np.float32)
HEAD = Head(RNG.standard_normal((12, 24)).astype(np.float32) / 24).with_record(mean_norm=1.0, precision="int4")
QUERIES = HEAD.transform(X[:20] + 0.1 * RNG.standard_normal((20, 24)).astype(np.float32))
ALL = [precision.value for precision in Precision]


def same(one, other):
    assert np.array_equal(one.values, other.values)
    assert one.values.dtype == other.values.dtype
    assert (one.precision, one.out_features, one.head) == (other.precision, other.out_features, other.head)


@pytest.mark.parametrize("precision", ALL)
def test_it_says_what_it_holds(precision):
    codes = HEAD.encode(X, precision)
    size = Precision(precision).bytes_per_vector(12)
    assert (len(codes), codes.out_features, codes.bytes_per_vector) == (200, 12, size)
    assert codes.values.nbytes == 200 * size
    assert codes.precision is Precision(precision)
    assert repr(codes) == f"Codes(200 x 12 {precision}, {size} bytes each)"
    assert codes.origin.head == HEAD.fingerprint


@pytest.mark.parametrize("precision", ALL)
def test_vectors_that_are_reduced_already_become_codes(precision):
    codes = HEAD.encode(X, precision)
    for vectors in (5 * HEAD.transform(X), torch.from_numpy(HEAD.transform(X))):
        made = Codes.of(vectors, precision, HEAD.fingerprint)
        assert np.allclose(made.values, codes.values, atol=1e-6)
        assert (made.precision, made.out_features, made.head) == (codes.precision, 12, HEAD.fingerprint)
    assert Codes.of(X, precision).head is None
    with pytest.raises(UserError, match=r"got shape \(24,\)"):
        Codes.of(X[0], precision)


@pytest.mark.parametrize("precision", ALL)
@pytest.mark.parametrize("k", [1, 10, 300])
def test_search_is_that_of_the_values(precision, k):
    codes = HEAD.encode(X, precision)
    scores, rows = search(QUERIES, codes.values, precision, k)
    found = codes.search(QUERIES, k)
    assert np.array_equal(found[0], scores)
    assert np.array_equal(found[1], rows)
    for queries in (7 * QUERIES, torch.from_numpy(QUERIES)):
        assert np.allclose(codes.search(queries, k)[0], scores, atol=1e-6)
    assert found[0].shape == (20, min(k, 200))
    assert np.array_equal(codes.search(QUERIES)[1], codes.search(QUERIES, k=10)[1]), "ten by default"


@pytest.mark.parametrize("precision", ALL)
def test_decode_gives_the_unit_vectors(precision):
    codes = HEAD.encode(X, precision)
    decoded = codes.decode()
    assert np.array_equal(decoded, dequantize(codes.values, precision, 12))
    assert (decoded.dtype, decoded.shape) == (np.float32, (200, 12))
    assert np.allclose(np.linalg.norm(decoded, axis=1), 1, atol=1e-5)


def test_rescoring_orders_the_best_codes_by_full_vectors(tmp_path):
    codes = HEAD.encode(X, "binary")
    asked = X[:20] + 0.1 * RNG.standard_normal((20, 24)).astype(np.float32)
    np.save(tmp_path / "full.npy", X)
    for full in (X, np.load(tmp_path / "full.npy", mmap_mode="r")):
        scores, rows = codes.search(QUERIES, 5, rescore=(asked, full))
        cosines = (asked @ X.T) / np.linalg.norm(asked, axis=1, keepdims=True) / np.linalg.norm(X, axis=1)
        assert np.allclose(np.take_along_axis(cosines, rows, axis=1), scores, atol=1e-5)
        assert (np.diff(scores, axis=1) <= 0).all()
        candidates = codes.search(QUERIES, 50)[1]
        best = np.take_along_axis(candidates, np.argsort(-np.take_along_axis(cosines, candidates, 1), axis=1), 1)
        assert np.array_equal(rows, best[:, :5]), "the best of ten times as many codes"
    with pytest.raises(UserError, match=r"^rescore has 199 documents, expected 200, one per code$"):
        codes.search(QUERIES, 5, rescore=(asked, X[:199]))


def written(codes, path):
    """Write codes to a path, and return where they are read from: for a folder, as two .npy files in it."""
    if path.suffix:
        codes.save(path)
        return path
    path.mkdir()
    np.save(path / "part-00000.npy", codes.values[:120])
    np.save(path / "part-00001.npy", codes.values[120:])
    (path / "codes.json").write_text(json.dumps(codes.origin.content))
    return path


@pytest.mark.parametrize("precision", ALL)
@pytest.mark.parametrize("name", ["x.npy", "x.parquet", "x.arrow", "x.feather", "x"])
@pytest.mark.parametrize("head", [HEAD.fingerprint, None])
def test_saved_codes_are_loaded_as_they_were(precision, name, head, tmp_path):
    if name.endswith(("parquet", "arrow", "feather")):
        pytest.importorskip("pyarrow")
    codes = Codes(HEAD.encode(X, precision).values, precision, 12, head)
    path = written(codes, tmp_path / name)
    same(Codes.load(path), codes)
    same(Codes.load(str(path)), codes)
    assert np.array_equal(Codes.load(path).search(QUERIES)[1], codes.search(QUERIES)[1])


def test_npy_files_are_memory_mapped(tmp_path):
    HEAD.encode(X).save(tmp_path / "x.npy")
    assert isinstance(Codes.load(tmp_path / "x.npy").values, np.memmap)


def test_saving_replaces_a_file_of_codes(tmp_path):
    HEAD.encode(X, "int8").save(tmp_path / "x.npy")
    HEAD.encode(X[:5], "binary").save(tmp_path / "x.npy")
    same(Codes.load(tmp_path / "x.npy"), HEAD.encode(X[:5], "binary"))


def test_codes_of_no_documents(tmp_path):
    codes = HEAD.encode(X[:0])
    assert codes.search(QUERIES)[0].shape == (20, 0)
    assert codes.decode().shape == (0, 12)
    codes.save(tmp_path / "x.npy")
    same(Codes.load(tmp_path / "x.npy"), codes)


def test_a_column_is_named_where_a_table_has_several(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    from st_dimreduce.codes.tables import code_array, code_field

    each = {"title": HEAD.encode(X, "int8"), "body": HEAD.encode(X[::-1].copy(), "binary")}
    fields = [code_field(name, codes.origin) for name, codes in each.items()]
    arrays = [code_array(codes.values, field.type) for codes, field in zip(each.values(), fields, strict=True)]
    schema = pa.schema([pa.field("id", pa.int64()), *fields])
    pq.write_table(pa.table([pa.array(range(200)), *arrays], schema=schema), tmp_path / "x.parquet")
    for name, codes in each.items():
        same(Codes.load(tmp_path / "x.parquet", column=name), codes)
    message = r"x.parquet: expected one column of codes; codes are in title, body: name one of these$"
    with pytest.raises(UserError, match=message):
        Codes.load(tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"expected one column of codes, 'id'; codes are in title, body: name one"):
        Codes.load(tmp_path / "x.parquet", column="id")


@pytest.mark.parametrize(
    ("values", "precision", "message"),
    [
        (X, "int8", r"codes have shape \(200, 24\), expected \(n, 12\) for 12 dimensions in int8"),
        (quantize(X[:, :12], "int8"), "int4", r"codes have shape \(200, 12\), expected \(n, 6\)"),
        (quantize(X[:, :12], "int8").view(np.uint8), "int8", "codes are of type uint8, int8 codes are int8"),
        (quantize(X[:, :12], "int4")[0], "int4", r"codes have shape \(6,\), expected \(n, 6\)"),
        ([[1, 2]], "int4", "codes are of type list: expected an array"),
        (quantize(X[:, :12], "int4"), "int3", "unknown precision 'int3'"),
    ],
)
def test_values_that_do_not_fit(values, precision, message):
    with pytest.raises(UserError, match=message) as error:
        Codes(values, precision, 12)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (
            QUERIES[:, :11],
            10,
            "^queries of 11 dimensions for codes of 12: transform them with the head that made the c",
        ),
        (QUERIES * np.nan, 10, "expected finite"),
        (QUERIES, 0, "^k=0: ask for at least 1$"),
        (QUERIES, 2.5, "^k=2.5: ask for at least 1$"),
    ],
)
def test_queries_that_do_not_fit(queries, k, message):
    codes = HEAD.encode(X, "int2")
    with pytest.raises(UserError, match=message) as error:
        codes.search(queries, k)
    assert "\n" not in str(error.value)


def test_the_folder_of_an_index_is_named(tmp_path):
    (tmp_path / INDEX_FILE).write_text("{}")
    with pytest.raises(UserError, match=r"is an index: search it with st-dimreduce index search, or Index\.load$"):
        Codes.load(tmp_path)


def test_what_cannot_be_saved_or_loaded(tmp_path):
    codes = HEAD.encode(X)
    with pytest.raises(UserError, match=r"x.txt ends in .txt: expected .npy, .parquet or .arrow$"):
        codes.save(tmp_path / "x.txt")
    with pytest.raises(UserError, match=r"x ends in no suffix: expected .npy, .parquet or .arrow$"):
        codes.save(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match=r"x.npy does not exist: give the file or folder that codes were"):
        Codes.load(tmp_path / "x.npy")
    np.save(tmp_path / "plain.npy", codes.values)
    with pytest.raises(UserError, match=r"plain.npy.*if you know, give Codes\(np.load\(path\), precision, out_feat"):
        Codes.load(tmp_path / "plain.npy")
    codes.save(tmp_path / "cut.npy")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-7])
    with pytest.raises(UserError, match=r"cut.npy is not a complete .npy file of numbers"):
        Codes.load(tmp_path / "cut.npy")
    (tmp_path / "cut.npy.codes.json").write_text("{")
    with pytest.raises(UserError, match=r"cut.npy.codes.json"):
        Codes.load(tmp_path / "cut.npy")
    assert {path.name for path in tmp_path.iterdir()} == {"plain.npy", "cut.npy", "cut.npy.codes.json"}


def test_what_is_beside_the_codes_must_fit_them(tmp_path):
    HEAD.encode(X, "int8").save(tmp_path / "x.npy")
    beside = tmp_path / "x.npy.codes.json"
    content = json.loads(beside.read_text())
    for change, message in (
        ({"precision": "int4"}, r"codes have shape \(200, 12\), expected \(n, 6\)"),
        ({"out_features": "13"}, r"codes have shape \(200, 12\), expected \(n, 13\)"),
        ({"precision": "int3"}, r"x.npy.codes.json is damaged: "),
        ({"head": "\x1b[2J"}, r"x.npy.codes.json is damaged: "),
    ):
        beside.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=message) as error:
            Codes.load(tmp_path / "x.npy")
        assert "\n" not in str(error.value)


def test_a_table_that_is_damaged_or_holds_no_codes(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"v": [1.0]}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"other.parquet: expected one column of codes; it holds none$"):
        Codes.load(tmp_path / "other.parquet")
    for name in ("x.parquet", "x.arrow"):
        HEAD.encode(X).save(tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:300])
        with pytest.raises(
            UserError, match=rf"{name} cannot be read: expected a complete Parquet or Arrow file"
        ) as error:
            Codes.load(tmp_path / name)
        assert "\n" not in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no .parquet or .npy file: give the file or folder that codes"):
        Codes.load(tmp_path / "empty")
