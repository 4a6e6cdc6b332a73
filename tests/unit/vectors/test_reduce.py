"""Sources of every kind, and what is made of them."""

from __future__ import annotations

import subprocess
import sys
import threading

import datasets
import faiss
import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyarrow import feather

from st_dimreduce import DimReduce, Summary, quantize, reduce_vectors, search, sources, summarize
from st_dimreduce.vectors.arrow import codes_of

ROWS, WIDTH = 1000, 8
RNG = np.random.default_rng(0)
X = RNG.integers(-64, 65, (ROWS, WIDTH)).astype(np.float32) / 64  # exact in every float type
X[:, 0] = np.maximum(X[:, 0], 1 / 64)
torch.manual_seed(0)
HEAD = DimReduce(WIDTH, 6, bias=False)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """64 rows a batch, 512 a part."""
    monkeypatch.setattr(sources, "_BATCH_BYTES", 64 * 4 * WIDTH)


def expected(precision, rows=X, head=HEAD):
    return np.concatenate([quantize(head.reduce(rows[i : i + 64]), precision) for i in range(0, len(rows), 64)])


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


def flat_index(folder):
    index = faiss.IndexFlatL2(WIDTH)
    index.add(X)
    return index


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
    "FAISS": flat_index,
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
    codes = list(reduce_vectors(ARRAYS[kind](tmp_path), HEAD, precision="int4"))
    assert [len(batch) for batch in codes] == [64] * 15 + [40]
    assert np.array_equal(np.concatenate(codes), expected("int4"))


@pytest.mark.parametrize("kind", TABLES)
def test_tables_are_summarised_and_reduced_with_their_ids(kind, tmp_path):
    assert np.allclose(summarize(TABLES[kind](tmp_path)).gram, Summary.of(X).gram, atol=1e-7)
    batches = list(reduce_vectors(TABLES[kind](tmp_path), HEAD, precision="int4"))
    assert [batch.num_rows for batch in batches] == [64] * 15 + [40]
    reduced = pa.Table.from_batches(batches)
    assert reduced["id"].to_pylist() == list(range(ROWS))
    assert np.array_equal(codes_of(reduced[1]), expected("int4"))


@pytest.mark.parametrize("precision", ["float32", "int8", "int4", "int2", "binary"])
@pytest.mark.parametrize("suffix", [".npy", ".parquet", ".arrow", ""])
@pytest.mark.parametrize("tabular", [False, True])
def test_every_sink_holds_the_codes(precision, suffix, tabular, tmp_path):
    source, sink = (table() if tabular else X), tmp_path / f"sink{suffix}"
    done = reduce_vectors(source, HEAD, sink, precision)
    assert (done.path, done.rows, done.bad_rows) == (sink, ROWS, 0)
    assert [path.name for path in tmp_path.iterdir()] == [sink.name], "something was left behind"
    files = sorted(sink.iterdir()) if sink.is_dir() else [sink]
    assert done.bytes == sum(path.stat().st_size for path in files)
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
    assert np.array_equal(codes, expected(precision))
    assert search(HEAD.reduce(X[:5]), codes, precision, 1)[1].shape == (5, 1)


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
        reduce_vectors(tmp_path / "x", HEAD, sink, "int8", column="vector")
        reduced = feather.read_table(sink) if suffix == ".arrow" else pq.read_table(sink)
        assert reduced.schema.names == list(columns)
        assert not reduced.schema.metadata, "what pandas said of the columns holds no longer"
        for name in columns:
            if name != "vector":
                assert reduced[name].to_pylist() == whole[name].to_pylist(), name
        assert np.array_equal(codes_of(reduced["vector"]), expected("int8"))
        assert np.array_equal(codes_of(reduced["vector"][70:90].combine_chunks()), expected("int8")[70:90])
    batches = reduce_vectors(whole, HEAD, precision="int4", column="vector")
    assert np.array_equal(codes_of(next(batches)["vector"][5:9]), expected("int4")[5:9])


def test_rows_without_direction(tmp_path):
    rows = X.copy()
    rows[70], rows[71, 2], rows[999, 1] = 0, np.nan, np.inf
    rows[3] *= np.float32(1e-15)
    biased = DimReduce(WIDTH, 6)
    with pytest.raises(ValueError, match=r"row 70 is all zeros: .*on_bad_row='zero'"):
        summarize(rows)
    with pytest.raises(ValueError, match="row 71 holds NaN"):
        list(reduce_vectors(np.delete(rows, 70, axis=0)[np.r_[:70, 0, 70:999]], HEAD))
    good = np.delete(rows, [70, 71, 999], axis=0)
    summary = summarize(rows, on_bad_row="zero")
    assert summary.count == ROWS - 3
    assert np.allclose(summary.gram, Summary.of(good).gram, atol=1e-7)
    for precision in ("float32", "binary"):
        done = reduce_vectors(rows, biased, tmp_path / f"{precision}.npy", precision, on_bad_row="zero")
        assert (done.rows, done.bad_rows) == (ROWS, 3)
        codes = np.load(tmp_path / f"{precision}.npy")
        assert not codes[[70, 71, 999]].any()
        whole = np.where(np.isin(np.arange(ROWS), [70, 71, 999])[:, None], np.float32(1), rows)
        other = np.delete(np.arange(ROWS), [70, 71, 999])
        assert np.array_equal(codes[other], expected(precision, whole, biased)[other])
    assert np.isnan(rows[71, 2]), "the source was changed"
    with pytest.raises(ValueError, match="every vector of the source is NaN, infinite or zero"):
        summarize(np.zeros((3, WIDTH), np.float32), on_bad_row="zero")
    with pytest.raises(ValueError, match="unknown on_bad_row 'skip': choose from raise, zero"):
        summarize(X, on_bad_row="skip")


def test_float64_beyond_float32_is_a_bad_row(recwarn):
    rows = X.astype(np.float64)
    rows[5, 0] = 1e200
    with pytest.raises(ValueError, match="row 5 has norm inf"):
        summarize(rows)
    assert not recwarn.list


def test_an_iterable_is_read_lazily_and_in_its_own_thread():
    seen = []

    def batches():
        for rows in np.array_split(X, 100):
            seen.append(threading.get_ident())
            buffer = rows.copy()
            yield buffer
            buffer[:] = np.nan  # it is used again

    codes = reduce_vectors(batches(), HEAD)
    assert not seen
    assert np.array_equal(next(codes), expected("float32")[:64])
    assert len(seen) < 10
    codes.close()
    assert set(seen) == {threading.get_ident()}


def test_memory_stays_bounded(tmp_path):
    rows = np.ones((80_000, 768), np.float32)
    np.save(tmp_path / "x.npy", rows)
    code = """
import resource, sys
from st_dimreduce import DimReduce, reduce_vectors, summarize
head, before = DimReduce(768, 64), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
reduce_vectors(sys.argv[1], head, sys.argv[2], "int8")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    arguments = [sys.executable, "-c", code, tmp_path / "x.npy", tmp_path / "y.npy"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 180, "megabytes, for a file of 246"
