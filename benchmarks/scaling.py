"""Summarising and reducing on Ray with one and two workers, and an estimate for a billion vectors.

    python -m benchmarks.scaling [--rows N] [--folder FOLDER]

Writes benchmarks/SCALING.md. Measure with nothing else running.
"""

from __future__ import annotations

import argparse
import logging
import pickle
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from benchmarks.printing import header, paragraph, table, write
from st_dimreduce import Head, Precision, Summary
from st_dimreduce.fitting.fit import fit_head
from st_dimreduce.vectors.ray_data import SUMMARISED_ROWS, summarize, transform

WIDTH, OUT, PRECISION = 768, 256, Precision.INT2
BILLION, MACHINES, CORES = 1e9, 10, 32
DISK, NETWORK = 2e9, 1.25e9  # bytes per second and machine: an NVMe disk, 10 Gbit/s


def write_vectors(folder: Path, rows: int) -> np.ndarray:
    """Write random vectors, 65,536 per Parquet file, and return those of the first file."""
    rng = np.random.default_rng(0)
    kept = np.empty((0, WIDTH), np.float32)
    for first in range(0, rows, SUMMARISED_ROWS):
        size = min(SUMMARISED_ROWS, rows - first)
        x = rng.standard_normal((size, WIDTH), np.float32)
        column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), WIDTH)
        table = pa.table({"id": np.arange(first, first + size), "embedding": column})
        pq.write_table(table, folder / f"{first:010d}.parquet", compression="none", use_dictionary=False)
        kept = kept if first else x
    return kept


def measure(workers: int, rows: int, folder: Path, head: Head) -> dict[str, float]:
    """Return the rows per second of each pass, and the bytes written per row."""
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    small = str(next(folder.glob("*.parquet")))
    summarize(ray.data.read_parquet([small] * workers), sample_size=1000)  # so that every worker has its imports done
    start = time.perf_counter()
    summary = summarize(ray.data.read_parquet(str(folder)))
    middle = time.perf_counter()
    assert summary.count == rows
    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
        transform(ray.data.read_parquet(str(folder)), head, PRECISION).write_parquet(out)
        end = time.perf_counter()
        written = sum(path.stat().st_size for path in Path(out).rglob("*.parquet"))
    ray.shutdown()
    return {"summarize": rows / (middle - start), "reduce": rows / (end - middle), "written": written / rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8 * SUMMARISED_ROWS)
    parser.add_argument("--folder", type=Path, help="folder for the files that are read")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        (Path(folder) / "x").mkdir()
        first = write_vectors(Path(folder) / "x", chosen.rows)
        head = fit_head(Summary.of(first), OUT)
        found = {workers: measure(workers, chosen.rows, Path(folder) / "x", head) for workers in (1, 2)}
    partial = Summary.of(first, sample_size=int(1.5 * 50_000 * SUMMARISED_ROWS / BILLION) + 100)
    moved = len(pickle.dumps(partial))
    blocks = report(chosen.rows, found, moved)
    write("SCALING.md", blocks)
    print("\n\n".join(blocks))


def report(rows: int, found: dict[int, dict[str, float]], moved: int) -> list[str]:
    """Return the blocks of SCALING.md."""
    measured, estimated = [], []
    bytes_out = {"summarize": moved / SUMMARISED_ROWS, "reduce": found[2]["written"]}
    for name, size in bytes_out.items():
        one, two = found[1][name], found[2][name]
        measured.append([name, f"{one:,.0f}", f"{two:,.0f}", f"{two / one:.2f}", f"{size:,.0f} of {4 * WIDTH:,}"])
        cores = BILLION / (two / 2 * MACHINES * CORES)
        disks = 4 * WIDTH * BILLION / (MACHINES * DISK)
        network = size * BILLION / (MACHINES * NETWORK)
        estimated.append([name, f"{cores / 60:.1f}", f"{disks / 60:.1f}", f"{network / 60:.2f}"])
    about = f"""
        {rows:,} vectors of {WIDTH} float32 in uncompressed Parquet files, summarised and reduced to {OUT} x
        {PRECISION.value}; Ray on this one machine, one core per worker, Ray's own processes on the same cores."""
    note = f"""
        Each worker sends one summary per {SUMMARISED_ROWS:,} rows to be merged, {moved / 1e6:.1f} MB: a Gram matrix
        and the few rows that can be in the sample. Reduced rows are written by the worker that reduced them."""
    remote = f"{4 * WIDTH * BILLION / (MACHINES * NETWORK) / 60:.1f} minutes"
    estimate = f"""
        {MACHINES} machines of {CORES} cores, each core as fast as one of the two workers, {DISK / 1e9:.0f} GB/s of
        disk and {8 * NETWORK / 1e9:.0f} Gbit/s of network each: not measured. The largest of the three figures is
        the bottleneck. Where the files are read over the network, as from object storage, their {4 * WIDTH:,} bytes
        per row take {remote}, which is then the bottleneck."""
    columns = ["", "1 worker, rows/s", "2 workers, rows/s", "factor", "output of a worker, bytes per row"]
    resources = ["a billion x 768, minutes", "cores", "disks, reading", "network"]
    return [
        "# Scaling",
        header("scaling", ("st_dimreduce", "ray", "pyarrow", "torch", "numpy"), about),
        "## Measured",
        table(columns, measured),
        paragraph(note),
        "## Estimated",
        table(resources, estimated),
        paragraph(estimate),
    ]


if __name__ == "__main__":
    main()
