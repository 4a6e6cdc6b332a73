"""Sources of every kind, and what is made of them."""

from __future__ import annotations

import subprocess
import sys
import threading

import datasets
import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import feather

from st_dimreduce import Codes, DimReduce, Head, Summary
from st_dimreduce.codes.precision import quantize
from st_dimreduce.codes.tables import codes_of
from st_dimreduce.enums import OnBadRow, Precision
from st_dimreduce.vectors import batches
from st_dimreduce.vectors.fit import summarize
from st_dimreduce.vectors.reduce import encoded_batches
from st_dimreduce.vectors.sources import open_source
from st_dimreduce.vectors.tables import code_schema, code_table

ROWS, WIDTH = 1000, 8
RNG = np.random.default_rng(0)
X = RNG.integers(-64, 65, (ROWS, WIDTH)).astype(np.float32) / 64  # exact in every float type
X[:, 0] = np.maximum(X[:, 0], 1 / 64)
HEAD = Head(RNG.standard_normal((6, WIDTH)) / 4)
BATCH = 64 * 4 * WIDTH  # bytes of 64 rows: 512 rows a part


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(batches, "BATCH_BYTES", BATCH)


def encoded(source, precision="float32", head=HEAD, column=None, on_bad_row="raise"):
    """The codes of each batch, with the other columns of a table."""
    opened = open_source(source, column)
    for codes, others, _ in encoded_batches(opened, head, Precision(precision), OnBadRow(on_bad_row)):
        if others is None:
            yield codes
        else:
            origin = Head(head.weight).encode(X[:0], precision).origin
            yield code_table(code_schema(opened.schema, opened.column, origin), opened.column, codes, others)


def expected(precision, rows=X, head=HEAD):
    return head.encode(rows, precision).values


def fixed(rows=X, kind=np.float32):
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.astype(kind).ravel()), rows.shape[1])


def lists(rows=X, kind=None):
    return pa.array(rows.tolist(), kind or pa.list_(pa.float32()))


def table(vectors=None):
    return pa.table({"id": np.arange(ROWS), "embedding": fixed() if vectors is None else vectors})


def npy(folder, name="x.npy", rows=X):
    np.save(folder / name, rows)
    return folder / name


def parquet(folder, data, name="x.parquet", **options):
    pq.write_table(data, folder / name, **options)
    return folder / name


def npy_folder(folder):
    for name, rows in (("b", X[100:101]), ("c", X[101:]), ("a", X[:100].astype(np.float64)), (".hidden", X)):
        npy(folder, f"{name}.npy", rows)
    return folder


def table_folder(folder, write, suffix):
    for number, (start, end) in enumerate([(0, 5), (5, 900), (900, ROWS)]):
        write(table()[start:end], folder / f"{number}.{suffix}")
    return folder


def stream(folder):
    with pa.ipc.new_stream(str(folder / "x.arrow"), table().schema) as writer:
        writer.write_table(table(), max_chunksize=77)
    return folder / "x.arrow"


def chunked(folder):
    return pa.concat_tables([table()[:3], table()[3:500], table()[500:500], table()[500:]])


def shuffled(folder):
    order = RNG.permutation(ROWS)
    backwards = pa.table({"id": order, "embedding": fixed(X[order])})
    return datasets.Dataset(backwards).select(np.argsort(order))


ARRAYS = {
    "array": lambda folder: X,
    "float64": lambda folder: X.astype(np.float64),
    "float16": lambda folder: X.astype(np.float16),
    "bfloat16": lambda folder: X.astype(ml_dtypes.bfloat16),
    "Fortran order": lambda folder: np.asfortranarray(X),
    "big-endian": lambda folder: X.astype(">f4"),
    "strided": lambda folder: np.repeat(X, 2, axis=0)[::2],
    "tensor": lambda folder: torch.from_numpy(X).double(),
    "bfloat16 tensor": lambda folder: torch.from_numpy(X).bfloat16().requires_grad_(),
    ".npy": npy,
    ".npy float16": lambda folder: npy(folder, rows=X.astype(np.float16)),
    ".npy bfloat16": lambda folder: npy(folder, rows=X.astype(ml_dtypes.bfloat16)),
    ".npy big-endian": lambda folder: npy(folder, rows=X.astype(">f8")),
    ".npy Fortran order": lambda folder: npy(folder, rows=np.asfortranarray(X)),
    ".npy folder": npy_folder,
    "generator": lambda folder: (rows for rows in np.array_split(X, 37)),
    "one row at a time": lambda folder: list(X[:, None]),
    "tensors": lambda folder: torch.from_numpy(X).bfloat16().split(100),
    "mixed types": lambda folder: [
        X[:10].astype(np.float16),
        X[:0],
        torch.from_numpy(X[10:700]),
        X[700:].astype(float),
    ],
}
TABLES = {
    "Parquet": lambda folder: parquet(folder, table(), row_group_size=150),
    "Parquet lists": lambda folder: parquet(folder, table(lists())),
    "Parquet large lists of float16": lambda f: parquet(f, table(lists(kind=pa.large_list(pa.float16())))),
    "Parquet folder": lambda folder: table_folder(folder, pq.write_table, "parquet"),
    "Feather": lambda folder: (
        feather.write_feather(table(), folder / "x.feather", chunksize=90) or folder / "x.feather"
    ),
    "Feather folder": lambda folder: table_folder(folder, feather.write_feather, "feather"),
    "Arrow stream": stream,
    "table": lambda folder: table(),
    "float64": lambda folder: table(fixed(kind=np.float64)),
    "slice": lambda folder: pa.concat_tables([table()[-3:], table(), table()[:7]])[3 : ROWS + 3],
    "slice of lists": lambda folder: pa.table({"id": np.arange(-5, ROWS), "e": lists(X[np.r_[:5, :ROWS]])})[5:],
    "chunks": chunked,
    "record batch": lambda folder: table().to_batches()[0],
    "reader": lambda folder: table().to_reader(max_chunksize=13),
    "dataset": lambda folder: datasets.Dataset.from_dict({"id": range(ROWS), "e": X}).with_format("torch"),
    "dataset in another order": shuffled,
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_are_summarised_and_reduced_in_order(kind, tmp_path):
    summary = summarize(ARRAYS[kind](tmp_path))
    whole = Summary.of(X)
    assert summary.count == ROWS
    assert np.allclose(summary.gram, whole.gram, atol=1e-7)
    assert len(summary.sample) == ROWS
    codes = list(encoded(ARRAYS[kind](tmp_path), "int4"))
    assert all(64 <= len(batch) < 128 for batch in codes[:-1])
    assert np.array_equal(np.concatenate(codes), expected("int4"))


@pytest.mark.parametrize("kind", TABLES)
def test_tables_are_summarised_and_reduced_with_their_ids(kind, tmp_path):
    assert np.allclose(summarize(TABLES[kind](tmp_path)).gram, Summary.of(X).gram, atol=1e-7)
    tables = list(encoded(TABLES[kind](tmp_path), "int4"))
    assert all(batch.num_rows < 64 + 150 for batch in tables), "a row group has 150"
    reduced = pa.concat_tables(tables)
    assert reduced["id"].to_pylist() == list(range(ROWS))
    assert np.array_equal(codes_of(reduced[1]), expected("int4"))


@pytest.mark.parametrize("precision", ["float32", "int8", "int4", "int2", "binary"])
@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".arrow", ""])
@pytest.mark.parametrize("tabular", [False, True])
def test_every_target_holds_the_codes(precision, suffix, tabular, tmp_path):
    source, sink = (table() if tabular else X), tmp_path / f"sink{suffix}"
    done = HEAD.transform_file(source, sink, precision)
    assert (done.path, done.rows, done.bad_rows) == (sink, ROWS, 0)
    beside = {sink.name, f"{sink.name}.codes.json"} if suffix == ".npy" else {sink.name}
    assert {path.name for path in tmp_path.iterdir()} == beside, "something was left behind"
    files = sorted(sink.iterdir()) if sink.is_dir() else [sink]
    assert done.bytes == sum(path.stat().st_size for path in files)
    stored = Codes.load(sink)
    assert (stored.precision, stored.out_features, stored.head) == (precision, 6, HEAD.fingerprint)
    if not suffix and not tabular:
        assert files.pop(0).name == "codes.json"
    if not suffix:
        assert [path.name for path in files] == [f"part-0000{i}.{'parquet' if tabular else 'npy'}" for i in range(2)]
    if files[0].suffix == ".npy":
        codes = np.concatenate([np.load(path) for path in files])
    else:
        read = feather.read_table if suffix == ".arrow" else pq.read_table
        whole = pa.concat_tables([read(path) for path in files])
        assert whole.schema.names == (["id", "embedding"] if tabular else ["embedding"])
        assert not tabular or whole["id"].to_pylist() == list(range(ROWS))
        about = whole.schema.field("embedding").metadata
        assert about[b"st_dimreduce.precision"] == precision.encode()
        assert about[b"st_dimreduce.out_features"] == b"6"
        codes = codes_of(whole["embedding"])
    assert codes.dtype == expected(precision).dtype
    assert np.allclose(codes, expected(precision), atol=0 if precision != "float32" else 1e-6)
    assert np.array_equal(codes, stored.values)


def test_other_columns_are_carried_as_they_are(tmp_path):
    columns = {
        "text": pa.array([f"text {i}" if i % 3 else None for i in range(ROWS)]),
        "kind": pa.array([f"kind {i // 200}" for i in range(ROWS)]).dictionary_encode(),
        "vector": lists(),
        "other": fixed(),
        "tags": pa.array([[i, i + 1] for i in range(ROWS)]),
        "both": pa.array([{"x": i} for i in range(ROWS)]),
    }
    whole = pa.table(columns).replace_schema_metadata({"pandas": "{}"})
    (tmp_path / "x").mkdir()
    pq.write_table(whole[:300], tmp_path / "x" / "a.parquet", row_group_size=99)
    rest = pa.table(columns)[300:]
    other_dictionary = rest["kind"].cast(pa.string()).dictionary_encode()
    pq.write_table(rest.set_column(1, "kind", other_dictionary), tmp_path / "x" / "b.parquet")
    for suffix in (".parquet", ".arrow", ""):
        sink = tmp_path / f"sink{suffix}"
        HEAD.transform_file(tmp_path / "x", sink, "int8", column="vector")
        reduced = feather.read_table(sink) if suffix == ".arrow" else pq.read_table(sink)
        assert reduced.schema.names == list(columns)
        assert not reduced.schema.metadata, "what pandas said of the columns holds no longer"
        for name in columns:
            if name != "vector":
                assert reduced[name].to_pylist() == whole[name].to_pylist(), name
        assert np.array_equal(codes_of(reduced["vector"]), expected("int8"))
        assert np.array_equal(codes_of(reduced["vector"][70:90].combine_chunks()), expected("int8")[70:90])
    tables = encoded(whole, "int4", column="vector")
    assert np.array_equal(codes_of(next(tables)["vector"][5:9]), expected("int4")[5:9])


def test_rows_without_direction(tmp_path, recwarn):
    rows = X.copy()
    rows[70], rows[71, 2], rows[999, 1] = 0, np.nan, np.inf
    rows[3] *= np.float32(1e-15)
    biased = Head(HEAD.weight, np.full(6, 0.5))
    with pytest.raises(ValueError, match=r"row 70 is all zeros: .*on_bad_row='zero'"):
        summarize(rows)
    with pytest.raises(ValueError, match="row 71 holds NaN"):
        list(encoded(np.delete(rows, 70, axis=0)[np.r_[:70, 0, 70:999]]))
    good = np.delete(rows, [70, 71, 999], axis=0)
    summary = summarize(rows, on_bad_row="zero")
    assert summary.count == ROWS - 3
    assert np.allclose(summary.gram, Summary.of(good).gram, atol=1e-7)
    for precision in ("float32", "binary"):
        done = biased.transform_file(rows, tmp_path / f"{precision}.npy", precision, on_bad_row="zero")
        assert (done.rows, done.bad_rows) == (ROWS, 3)
        codes = np.load(tmp_path / f"{precision}.npy")
        assert not codes[[70, 71, 999]].any()
        whole = np.where(np.isin(np.arange(ROWS), [70, 71, 999])[:, None], np.float32(1), rows)
        other = np.delete(np.arange(ROWS), [70, 71, 999])
        assert np.allclose(codes[other], expected(precision, whole, biased)[other], atol=1e-6)
    assert np.isnan(rows[71, 2]), "the source was changed"
    with pytest.raises(ValueError, match="every vector of the source is NaN, infinite or zero"):
        summarize(np.zeros((3, WIDTH), np.float32), on_bad_row="zero")
    with pytest.raises(ValueError, match="unknown on_bad_row 'skip': choose from raise, zero"):
        summarize(X, on_bad_row="skip")
    assert not recwarn.list


def test_float64_beyond_float32_is_a_bad_row(recwarn):
    rows = X.astype(np.float64)
    rows[5, 0] = 1e200
    with pytest.raises(ValueError, match="row 5 has norm inf"):
        summarize(rows)
    assert not recwarn.list


def test_an_iterable_is_read_lazily_and_in_its_own_thread():
    seen = []

    def items():
        for rows in np.array_split(X, 100):
            seen.append(threading.get_ident())
            buffer = rows.copy()
            yield buffer
            buffer[:] = np.nan  # it is used again

    codes = encoded(items())
    assert not seen
    first = next(codes)
    assert np.allclose(first, expected("float32")[: len(first)], atol=1e-6)
    assert len(seen) < 10
    codes.close()
    assert set(seen) == {threading.get_ident()}


def test_the_head_of_a_module_reduces_as_the_module(tmp_path):
    torch.manual_seed(0)
    module = DimReduce(WIDTH, 6)
    Head.transform_file(module.to_head(), X, tmp_path / "x.npy", "float32")
    features = module.eval()({"sentence_embedding": torch.from_numpy(X)})["sentence_embedding"].detach().numpy()
    assert np.allclose(np.load(tmp_path / "x.npy"), quantize(features, "float32"), atol=1e-6)


@pytest.mark.parametrize(("suffix", "batch_bytes"), [(".npy", 1 << 25), (".parquet", 1 << 20)])
def test_memory_stays_bounded(suffix, batch_bytes, tmp_path):
    """Of a .npy file, and of a Parquet file of one row group; of the others, pages are mapped that the system drops."""
    rows = np.ones((80_000, 768), np.float32)
    if suffix == ".npy":
        npy(tmp_path, rows=rows)
    else:
        parquet(
            tmp_path, pa.table({"v": fixed(rows)}), row_group_size=len(rows), use_dictionary=False, compression="none"
        )
    # Not ru_maxrss, which a new process inherits from the one that started it.
    code = """
import sys
from pathlib import Path
import numpy as np
from st_dimreduce import Head
from st_dimreduce.vectors import batches, reduce
if sys.argv[1].endswith("parquet"):
    import st_dimreduce.vectors.tables
batches.BATCH_BYTES = int(sys.argv[3])
def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
head, before = Head(np.eye(64, 768)), peak()
head.transform_file(sys.argv[1], sys.argv[2], "int8")
print(peak() - before)
"""
    arguments = [sys.executable, "-c", code, tmp_path / f"x{suffix}", tmp_path / "y.npy", str(batch_bytes)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 180, "megabytes, for a file of 246"


@pytest.mark.parametrize("batch_bytes", [1, 4 * WIDTH, 1000 * WIDTH, 1 << 40])
def test_batches_are_powers_of_two(batch_bytes, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_BYTES", batch_bytes)
    sizes = [len(codes) for codes in encoded(X)]
    size = {1: 1, 4 * WIDTH: 1, 1000 * WIDTH: 128, 1 << 40: ROWS}[batch_bytes]
    assert sizes == [size] * (ROWS // size) + [ROWS % size] * (ROWS % size > 0)


def test_codes_do_not_depend_on_the_batches(tmp_path, monkeypatch):
    """Where batches are as large as usual: a head's own blocks are parts of them."""
    monkeypatch.undo()
    rows = RNG.standard_normal((40_000, WIDTH)).astype(np.float32)
    HEAD.transform_file(npy(tmp_path, rows=rows), tmp_path / "y.npy", "float32")
    assert np.array_equal(np.load(tmp_path / "y.npy"), HEAD.encode(rows, "float32").values)


HEAVY = {
    "string": pa.string(),
    "large string": pa.large_string(),
    "binary": pa.binary(),
    "large binary": pa.large_binary(),
    "view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int32(), pa.string()),
    "lists": pa.list_(pa.string()),
    "large lists": pa.large_list(pa.string()),
    "fixed-size lists": pa.list_(pa.string(), 1),
    "struct": pa.struct({"s": pa.string()}),
    "map": pa.map_(pa.string(), pa.string()),
}


def heavy(kind):
    """Values of up to 250 bytes, some of them null."""
    texts = [None if row % 7 == 5 else "x" * int(size) for row, size in enumerate(RNG.integers(0, 250, ROWS))]
    if kind == HEAVY["struct"]:
        return pa.array([{"s": text} for text in texts], kind)
    if kind == HEAVY["map"]:
        return pa.array([[(text or "", text)] for text in texts], kind)
    if "list" in str(kind):
        return pa.array([[text] for text in texts], kind)
    if kind == HEAVY["dictionary"]:
        return pa.array(texts).dictionary_encode()
    return pa.array(texts, kind) if "string" in str(kind) else pa.array(texts).cast(kind)


@pytest.mark.parametrize("name", HEAVY)
def test_batches_are_bounded_by_what_they_carry(name, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_BYTES", 5000)
    whole = table().append_column("heavy", heavy(HEAVY[name]))
    apart = pa.concat_tables([whole[:1], whole[1:37], whole[37:37], whole[37:640], whole[640:]])
    pq.write_table(whole, tmp_path / "x.parquet", row_group_size=111)
    feather.write_feather(whole, tmp_path / "x.feather", chunksize=90)
    for way in (whole, apart, apart.to_reader(max_chunksize=13), tmp_path / "x.parquet", tmp_path / "x.feather"):
        tables = list(encoded(way, "int4", column="embedding"))
        assert max(len(batch) for batch in tables) < 150, "fewer rows than without: 5,000 bytes hold 156 vectors"
        kept = pa.concat_tables(tables)
        assert kept["id"].to_pylist() == list(range(ROWS))
        assert kept["heavy"].to_pylist() == whole["heavy"].to_pylist()
        assert np.array_equal(codes_of(kept["embedding"]), expected("int4"))


@pytest.mark.parametrize("kind", [kind for kind in {**ARRAYS, **TABLES} if kind[0] in ".PF" or "stream" in kind])
def test_batches_are_the_same_from_the_end_of_any_batch_on(kind, tmp_path):
    made = {**ARRAYS, **TABLES}[kind](tmp_path)
    source = tmp_path if kind == "Fortran order" else made
    if isinstance(source, np.ndarray) or kind == "Fortran order":
        source = npy(tmp_path, "f.npy", made)
    whole = list(open_source(source).batches())
    for number, batch in enumerate(whole):
        rest = list(open_source(source).batches(batch.first_row))
        assert [(other.first_row, len(other.vectors)) for other in rest] == [
            (other.first_row, len(other.vectors)) for other in whole[number:]
        ]
        assert np.array_equal(rest[0].vectors, batch.vectors)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ""])
def test_large_types_are_carried(suffix, tmp_path):
    kinds = {"text": pa.large_string(), "data": pa.large_binary(), "tags": pa.large_list(pa.large_string())}
    values = [pa.array(["a", None] * (ROWS // 2), kinds["text"]), pa.array([b"b"] * ROWS, kinds["data"])]
    values.append(pa.array([["c", "d"], []] * (ROWS // 2), kinds["tags"]))
    whole = pa.table([*values, lists(kind=pa.large_list(pa.float32()))], [*kinds, "v"])
    feather.write_feather(whole, tmp_path / "x.feather", chunksize=90)
    HEAD.transform_file(tmp_path / "x.feather", tmp_path / f"y{suffix}", "int8")
    reduced = (feather.read_table if suffix == ".arrow" else pq.read_table)(tmp_path / f"y{suffix}")
    for name, kind in kinds.items():
        assert reduced[name].type == kind
        assert reduced[name].to_pylist() == whole[name].to_pylist()
    assert np.array_equal(codes_of(reduced["v"]), expected("int8"))


def test_files_need_no_model_library(tmp_path):
    npy(tmp_path)
    parquet(tmp_path, table())
    code = """
import sys
from st_dimreduce import Codes, Head
folder = sys.argv[1]
for source in (f"{folder}/x.npy", f"{folder}/x.parquet"):
    head = Head.fit(source, 4)
    for target in ("y.npy", "y.parquet"):
        head.transform_file(source, f"{folder}/{target}", "int4", overwrite=True)
        Codes.load(f"{folder}/{target}").search(head.transform(head.weight))
print([name for name in ("torch", "transformers", "sentence_transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
