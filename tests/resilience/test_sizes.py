"""More dimensions and more rows than usual."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from st_dimreduce import Summary
from st_dimreduce.codes.precision import quantize
from st_dimreduce.codes.search import search
from st_dimreduce.fitting.closed_form import closed_form_head


def rows(count, width, seed=0):
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


@pytest.mark.wings("fitting", "codes")
def test_eight_thousand_dimensions():
    wide = rows(64, 8192)
    head = closed_form_head(Summary.of(wide), 32, rotation="random", strength=0)
    assert (head.in_features, head.out_features) == (8192, 32)
    reduced = head.transform(wide)
    assert np.isfinite(reduced).all()
    codes = quantize(wide, "binary")
    assert codes.shape == (64, 1024)
    assert np.array_equal(search(wide, codes, "binary", 1)[1][:, 0], np.arange(64))


def test_ten_million_rows_in_float32_are_those_in_float64():
    width, block = 4, 1_000_000
    shift = np.array([1.0, 0.1, 0, 0])
    summary, gram, mean = Summary(width), np.zeros((width, width)), np.zeros(width)
    for seed in range(10):
        exact = np.random.default_rng(seed).standard_normal((block, width)) + shift
        summary.update(exact.astype(np.float32))
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
        gram, mean = gram + exact.T @ exact, mean + exact.sum(axis=0)
    assert summary.count == 10 * block
    assert np.allclose(summary.gram, gram / summary.count, rtol=0, atol=1e-7)
    assert np.allclose(summary.mean, mean / summary.count, rtol=0, atol=1e-7)


PEAK = """
import resource, sys
import numpy as np
from st_dimreduce import Head
source, sink = sys.argv[1:]
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
Head(np.eye(4, 8)).transform_file(np.eye(8), sink + "-.parquet")  # what is imported on the way is imported now
before = peak()
done = Head(np.eye(4, 8)).transform_file(source, sink, "int8", overwrite=True)
print(done.rows, peak() - before)
"""


def write_heavy(path, count, length, kind, alike=False):
    """A table of vectors, each with a text of so many bytes: all the same, or all different and hard to compress."""
    whole = np.random.default_rng(0).integers(97, 123, length + count, np.uint8).tobytes().decode()
    schema = pa.schema({"id": pa.int64(), "text": kind, "v": pa.list_(pa.float32(), 8)})
    new = pq.ParquetWriter if path.suffix == ".parquet" else pa.ipc.new_file
    with new(str(path), schema) as writer:
        for first in range(0, count, 512):
            places = range(first, min(first + 512, count))
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows(len(places), 8, first).ravel()), 8)
            texts = pa.array([whole[(0 if alike else row) :][:length] for row in places], kind)
            writer.write(pa.record_batch([pa.array(places), texts, vectors], schema=schema))
    return path


def peak_of_reducing(source, sink):
    """Rows reduced, and megabytes that it took beyond those of an idle process."""
    done = subprocess.run([sys.executable, "-c", PEAK, source, sink], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return map(int, done.stdout.split())


@pytest.mark.wings("vectors")
@pytest.mark.parametrize(
    ("count", "length", "kind", "alike", "source", "sink", "most"),
    [
        (16_384, 140_000, pa.string(), False, "x.parquet", "y.parquet", 1100),
        (16_384, 140_000, pa.string(), True, "x.parquet", "y.arrow", 1100),
        (16_384, 140_000, pa.large_string(), False, "x.parquet", "y", 1100),
        (20_000, 17_000, pa.string(), False, "x.parquet", "y.parquet", 300),
    ],
)
def test_heavy_columns_take_no_memory_in_proportion(count, length, kind, alike, source, sink, most, tmp_path):
    write_heavy(tmp_path / source, count, length, kind, alike)
    reduced, megabytes = peak_of_reducing(tmp_path / source, tmp_path / sink)
    assert reduced == count
    assert megabytes < most, f"{megabytes} MB"
    (tmp_path / source).unlink()
    files = sorted((tmp_path / sink).iterdir()) if sink == "y" else [tmp_path / sink]
    seen = 0
    for file in files:
        reader = pa.ipc.open_file(pa.memory_map(str(file))) if file.suffix == ".arrow" else pq.ParquetFile(file)
        numbers = range(reader.num_record_batches) if file.suffix == ".arrow" else ()
        for batch in map(reader.get_batch, numbers) if numbers else reader.iter_batches(64):
            assert batch["id"].to_pylist() == list(range(seen, seen + len(batch)))
            assert set(pc.utf8_length(batch["text"]).to_pylist()) == {length}
            seen += len(batch)
    assert seen == count


BOMB = """
import numpy as np
from pathlib import Path
from st_dimreduce import Head
from st_dimreduce.vectors.sources import open_source
import st_dimreduce.vectors.tables
import sys
def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024
before, batch = peak(), next(open_source(sys.argv[1]).batches())
print(len(batch.vectors), peak() - before)
"""


def test_a_page_that_decodes_to_much_takes_little_more_than_itself(tmp_path):
    """A file of 54 kB, of one page of 384 MB: a page cannot be decoded in part."""
    count, width = 4_000_000, 24
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(count * width, np.float32)), width)
    options = {"row_group_size": count, "data_page_size": 2**31 - 1, "write_batch_size": 10**9}
    options |= {"compression": "zstd", "use_dictionary": False}
    pq.write_table(pa.table({"v": vectors}), tmp_path / "x.parquet", **options)
    assert (tmp_path / "x.parquet").stat().st_size < 1 << 17
    done = subprocess.run(
        [sys.executable, "-c", BOMB, tmp_path / "x.parquet"], capture_output=True, text=True, check=True
    )
    read, megabytes = map(int, done.stdout.split())
    assert read == 1 << 14
    assert megabytes < 700
