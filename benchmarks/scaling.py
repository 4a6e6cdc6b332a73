"""The two passes on Ray with one and two workers, and what that means for a billion vectors, on paper.

    python benchmarks/scaling.py [--rows N] [--folder FOLDER]

Writes benchmarks/SCALING.md. Measure with nothing else running.
"""

from __future__ import annotations

import argparse
import logging
import os
import pickle
import platform
import tempfile
import textwrap
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from measured import grid

from st_dimreduce import Summary, fit_head
from st_dimreduce.vectors.ray_data import SUMMARISED_ROWS, reduce_vectors, summarize

WIDTH, OUT, PRECISION = 768, 256, "int2"
BILLION, MACHINES, CORES = 1e9, 10, 32
DISK, NETWORK = 2e9, 1.25e9  # bytes a second of a machine: an NVMe disk, 10 Gbit/s


def write(folder: Path, rows: int) -> np.ndarray:
    """Write a Parquet file for every 65,536 vectors, and return the first of them."""
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


def measure(workers: int, rows: int, folder: Path, head: object) -> dict[str, float]:
    """Rows a second of each pass."""
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    small = str(next(folder.glob("*.parquet")))
    summarize(ray.data.read_parquet([small] * workers), sample_size=1000)  # so that every worker has imported torch
    start = time.perf_counter()
    summary = summarize(ray.data.read_parquet(str(folder)))
    middle = time.perf_counter()
    assert summary.count == rows
    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
        reduce_vectors(ray.data.read_parquet(str(folder)), head, PRECISION).write_parquet(out)
        end = time.perf_counter()
        written = sum(path.stat().st_size for path in Path(out).rglob("*.parquet"))
    ray.shutdown()
    return {"summarize": rows / (middle - start), "reduce": rows / (end - middle), "written": written / rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8 * SUMMARISED_ROWS)
    parser.add_argument("--folder", type=Path, help="where to write the files that are read")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        (Path(folder) / "x").mkdir()
        first = write(Path(folder) / "x", chosen.rows)
        head = fit_head(Summary.of(first), OUT)
        found = {workers: measure(workers, chosen.rows, Path(folder) / "x", head) for workers in (1, 2)}
    partial = Summary.of(first, sample_size=int(1.5 * 50_000 * SUMMARISED_ROWS / BILLION) + 100)
    moved = len(pickle.dumps(partial))
    text = report(chosen.rows, found, moved)
    Path(__file__).with_name("SCALING.md").write_text(text)
    print(text)


def report(rows: int, found: dict[int, dict[str, float]], moved: int) -> str:
    lines = []
    leaves = {"summarize": moved / SUMMARISED_ROWS, "reduce": found[2]["written"]}
    for name, share in leaves.items():
        one, two = found[1][name], found[2][name]
        factor, leaves_it = f"{two / one:.2f}", f"{share:,.0f} of {4 * WIDTH:,}"
        lines.append([name, f"{one:,.0f}", f"{two:,.0f}", factor, leaves_it])
    cores = MACHINES * CORES
    paper = []
    for name, share in leaves.items():
        rate = found[2][name] / 2 * cores
        disks = 4 * WIDTH * BILLION / (MACHINES * DISK)
        network = share * BILLION / (MACHINES * NETWORK)
        paper.append([name, f"{BILLION / rate / 60:.1f}", f"{disks / 60:.1f}", f"{network / 60:.2f}"])
    packages = ", ".join(f"{name} {version(name)}" for name in ("st_dimreduce", "ray", "pyarrow", "torch", "numpy"))
    about = f"""
        Printed by `python benchmarks/scaling.py` on {date.today()}: {platform.machine()}, {os.cpu_count()} cores,
        Python {platform.python_version()}, {packages}. {rows:,} vectors of {WIDTH} float32 in uncompressed Parquet
        files, summarised and reduced to {OUT} x {PRECISION}; Ray on this one machine, one core a worker, Ray's own
        processes on the same cores."""
    note = f"""
        What leaves a worker to be merged is a summary for every {SUMMARISED_ROWS:,} rows, {moved / 1e6:.1f} MB: a Gram
        matrix and the few rows that can be in the sample. Reduced rows are written where they were made."""
    disk, network = f"{DISK / 1e9:.0f} GB/s of disk", f"{8 * NETWORK / 1e9:.0f} Gbit/s"
    remote = f"{4 * WIDTH * BILLION / (MACHINES * NETWORK) / 60:.1f} minutes"
    guess = f"""
        {MACHINES} machines of {CORES} cores, each core as fast as one of the two workers, {disk} and {network} each:
        not measured. Whichever of the three takes longest saturates first. Where the files are read over the network,
        as from object storage, its {4 * WIDTH:,} bytes a row take {remote} and are what counts."""
    measured = grid(["", "1 worker, rows/s", "2 workers, rows/s", "factor", "leaves a worker, bytes a row"], lines)
    worked_out = grid(["a billion x 768, minutes", "by the cores", "by the disks, reading", "by the network"], paper)
    blocks = ["# Scaling", about, "## Measured", measured, note, "## On paper", worked_out, guess]
    return "\n\n".join(textwrap.dedent(block).strip() for block in blocks) + "\n"


if __name__ == "__main__":
    main()
