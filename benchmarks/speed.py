"""As fast as the machine: each pass beside what the hardware and others do in the same run, as ratios.

    python benchmarks/speed.py [--sections NAME ...] [--rows N] [--repeats N] [--folder FOLDER]

Writes benchmarks/SPEED.md. Vectors are drawn at random in clusters: how fast they are does not depend on what they
mean, how much two searches overlap does, so that QUALITY.md says it of real ones. Measure with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from datetime import date
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from measured import WIDTH, grid, memory, shown, timed, vectors
from sklearn.decomposition import PCA, IncrementalPCA

from st_dimreduce import DimReduce, Precision, Summary, fit_head, quantize, reduce_vectors, search, summarize
from st_dimreduce.fitting import choose

OUT, OPQ_STEPS = 256, 5
HERE = Path(__file__).parent


@cache
def head(size: int = OUT) -> DimReduce:
    return fit_head(Summary.of(vectors(50_000)), size)


def table(names: list[str], seconds: list[list[float]], targets: dict[str, str]) -> str:
    """Seconds of ours, named first, and of each other, with how many times ours it took."""
    ours = np.median(seconds[0])
    rows = [
        [name, shown(some), f"{np.median(some) / ours:.2f}", targets.get(name, "")]
        for name, some in zip(names, seconds, strict=True)
    ]
    return grid(["", "seconds", "times ours", "reach for"], rows)


def summing(chosen: argparse.Namespace) -> str:
    x = vectors(200_000)
    both = torch.from_numpy(x)
    ways = {
        "`Summary.update`": lambda: Summary(WIDTH).update(x),
        "torch, `x.T @ x`": lambda: both.T @ both,
        "NumPy, `x.T @ x`": lambda: x.T @ x,
        'scikit-learn, `PCA(128, svd_solver="covariance_eigh")`': lambda: PCA(128, svd_solver="covariance_eigh").fit(x),
        "FAISS, `PCAMatrix(768, 128).train`": lambda: faiss.PCAMatrix(WIDTH, 128).train(x),
    }
    seconds = timed(chosen.repeats, *ways.values())
    seconds.append([once(lambda: IncrementalPCA(128).fit(x))])
    names = [*ways, "scikit-learn, `IncrementalPCA(128)`, once"]
    return table(names, seconds, dict(zip(names, ("", ">= 1.3", "", ">= 1.2", ">= 2", ">= 25"), strict=True)))


def fitting(chosen: argparse.Namespace) -> str:
    x = vectors(10_000)
    summary = Summary.of(x)

    def train(factory: str) -> None:
        index = faiss.index_factory(WIDTH, factory)
        inner = index
        if isinstance(index, faiss.IndexPreTransform):
            inner = faiss.downcast_index(index.index)
            faiss.downcast_VectorTransform(index.chain.at(0)).niter = OPQ_STEPS
        inner.do_polysemous_training = False
        index.train(x)

    ways: dict[str, Callable[[], Any]] = {
        "`fit_head(summary, 128)`": lambda: fit_head(summary, 128),
        "`fit_head(summary, 256)`": lambda: fit_head(summary, 256),
        "`choose(summary, bytes_per_vector=64)`": lambda: choose(summary, bytes_per_vector=64),
    }
    seconds = timed(chosen.repeats, *ways.values())
    for factory in ("PQ64", "OPQ64,PQ64"):
        seconds.append([once(partial(train, factory))])
    names = [*ways, "FAISS `PQ64`, once", f"FAISS `OPQ64,PQ64`, {OPQ_STEPS} steps of its 50, once"]
    return table(names, seconds, {names[0]: "<= 2 s"})


def once(way: Callable[[], Any]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def applying(chosen: argparse.Namespace) -> str:
    x = vectors(200_000)
    h, weight = head(128), head(128).linear.weight.detach()
    pca = PCA(128, svd_solver="covariance_eigh").fit(x[:20_000])
    matrix = faiss.PCAMatrix(WIDTH, 128)
    matrix.train(x[:20_000])
    ways: dict[str, Callable[[], Any]] = {"`reduce`, float32": lambda: h.reduce(x)}
    for precision in Precision:
        ways[f"`reduce_vectors`, {precision.value}"] = partial(consume, x, h, precision)
    ways |= {
        "torch, the bare product": lambda: torch.from_numpy(x) @ weight.T,
        "scikit-learn, `PCA.transform`": lambda: pca.transform(x),
        "FAISS, `PCAMatrix.apply`": lambda: matrix.apply(x),
    }
    targets = dict(zip(list(ways)[-3:], (">= 0.85", ">= 1.6", ">= 2"), strict=True))
    return table(list(ways), timed(chosen.repeats, *ways.values()), targets)


def consume(x: np.ndarray, h: DimReduce, precision: Precision) -> None:
    for _ in reduce_vectors(x, h, precision=precision):
        pass


def from_disk(chosen: argparse.Namespace) -> str:
    """Each run in a process of its own, beside a bare product of as many rows and a bare read and write."""
    lines = []
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        Path(folder, "head").mkdir()
        head().save(str(Path(folder, "head")))
        for rows in (chosen.rows, 2 * chosen.rows):
            write(Path(folder), rows)
            for kind in ("npy", "parquet"):
                for what in ("summarize", "reduce"):
                    command = [sys.executable, __file__, "--one", what, folder, kind]
                    runs = []
                    for _ in range(chosen.repeats):
                        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603, ourselves
                        runs.append(json.loads(done.stdout.splitlines()[-1]))
                    seconds = [run["seconds"] for run in runs]
                    share = np.median([run["bound"] / run["seconds"] for run in runs])
                    peak = max(run["peak"] for run in runs)
                    name = {"summarize": "`summarize`", "reduce": "`reduce_vectors`, int4"}[what]
                    cells = [f"{name}, {kind}", f"{rows:,}", shown(seconds), f"{rows / np.median(seconds):,.0f}"]
                    lines.append([*cells, f"{share:.0%}", f"{peak:.0f}"])
    shares = "of the slower of reading and product"
    return grid(["", "rows", "seconds", "rows/s", shares, "peak memory, MB over imports"], lines)


def write(folder: Path, rows: int) -> None:
    block = vectors(100_000)
    file = np.lib.format.open_memmap(folder / "x.npy", "w+", np.float32, (rows, WIDTH))
    schema = pa.schema([("id", pa.int64()), ("embedding", pa.list_(pa.float32(), WIDTH))])
    with pq.ParquetWriter(folder / "x.parquet", schema, compression="none", use_dictionary=False) as writer:
        for first in range(0, rows, len(block)):
            some = block[: min(len(block), rows - first)]
            file[first : first + len(some)] = some
            column = pa.FixedSizeListArray.from_arrays(pa.array(some.ravel()), WIDTH)
            ids = pa.array(np.arange(first, first + len(some)))
            writer.write_table(pa.table([ids, column], schema=schema), row_group_size=20_000)
    file.flush()


def one(what: str, folder: str, kind: str) -> None:
    """Run one pass over a file, and print its seconds, the bound on them and the peak of memory."""
    source = Path(folder, f"x.{kind}")
    h = DimReduce.load(str(Path(folder, "head")))
    weight = h.linear.weight.detach()
    block = torch.rand(16_384, WIDTH)
    rows = len(np.load(Path(folder, "x.npy"), mmap_mode="r"))
    product = (lambda: block @ weight.T) if what == "reduce" else (lambda: block.numpy().T @ block.numpy())
    multiplied = np.median(timed(5, product)[0]) * rows / len(block)
    read(source)
    disk = once(lambda: read(source))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    start = time.perf_counter()
    if what == "reduce":
        reduce_vectors(source, h, Path(folder, f"{what}.{kind}"), "int4", overwrite=True)
    else:
        summarize(source, column=None if kind == "npy" else "embedding")
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "bound": max(multiplied, disk), "peak": memory("VmHWM") - before}))


def read(path: Path) -> None:
    """Read a file to its end, in the page cache or not, as the system does it fastest."""
    buffer = bytearray(1 << 24)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def searching(chosen: argparse.Namespace) -> str:
    x, asked = vectors(chosen.rows), queries()
    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(x)
    h = head(256)
    reduced, small = h.reduce(asked), h.reduce(x)
    codes = quantize(small, "int2")
    fast = faiss.IndexPQFastScan(WIDTH, 128, 4, faiss.METRIC_INNER_PRODUCT)
    fast.train(x[:50_000])
    fast.add(x)
    found: dict[str, np.ndarray] = {}

    def keep(name: str, way: Callable[[], np.ndarray]) -> Callable[[], None]:
        def run() -> None:
            found[name] = way()

        return run

    ways = {
        "`search`, 64 bytes (256 x int2)": lambda: search(reduced, codes, "int2", 10)[1],
        "FAISS flat, 3,072 bytes": lambda: flat.search(asked, 10)[1],
        "FAISS `PQ128x4fs`, 64 bytes": lambda: fast.search(asked, 10)[1],
    }
    seconds = timed(chosen.repeats, *(keep(name, way) for name, way in ways.items()))
    best = found["FAISS flat, 3,072 bytes"]
    names = [f"{name}; overlap {100 * share(found[name], best):.0f}" for name in ways]
    return table(names, seconds, {names[1]: ">= 5", names[2]: ">= 1"})


def queries() -> np.ndarray:
    rows = vectors(50_000)[:100] + 0.3 * np.random.default_rng(1).standard_normal((100, WIDTH), np.float32) / WIDTH**0.5
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def share(rows: np.ndarray, best: np.ndarray) -> float:
    return float((rows[:, :, None] == best[:, None, :]).any(axis=2).mean())


def indexes(chosen: argparse.Namespace) -> str:
    rows = min(chosen.rows, 100_000)
    x, asked, h = vectors(rows), queries(), head(128)
    small, reduced = (quantize(h.reduce(some), "float32") for some in (x, asked))
    exact: np.ndarray | None = None
    lines = []
    for name, data, q in (("768 dimensions", x, asked), ("128 dimensions", small, reduced)):
        for kind in ("Flat", "HNSW32"):
            index = faiss.index_factory(data.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
            built = once(lambda i=index, d=data: i.add(d))
            seconds = timed(chosen.repeats, lambda i=index, q=q: i.search(q, 10))[0]
            hits = index.search(q, 10)[1]
            exact = hits if exact is None else exact
            size = len(faiss.serialize_index(index)) / 1e6
            found = f"{100 * share(hits, exact):.1f}"
            lines.append([f"{kind}, {name}", f"{built:.1f}", shown(seconds), f"{size:.0f}", found])
    return grid(["", "build, seconds", "100 queries, seconds", "MB", "recall@10 of the full flat"], lines)


SECTIONS: dict[str, tuple[str, Callable[[argparse.Namespace], str]]] = {
    "summary": ("Summarise 200,000 x 768 in memory", summing),
    "fit": ("Fit from a summary of 10,000 x 768", fitting),
    "apply": ("Reduce 200,000 x 768 to 128 in memory", applying),
    "disk": ("From disk to disk, 768 to 256 dimensions", from_disk),
    "search": ("Exact search of 100 float queries, top 10", searching),
    "indexes": ("Reduced float vectors in FAISS's own indexes", indexes),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--rows", type=int, default=1_000_000, help="vectors on disk and in the search")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write the files that are read; 10 GB at 1,000,000 rows")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        one(*chosen.one)
        return
    kept = HERE / ".cache" / "speed.json"
    texts = json.loads(kept.read_text()) if kept.exists() else {}
    for name in chosen.sections:
        turns = f"{chosen.repeats} runs by turns" if chosen.repeats > 1 else "One run"
        texts[name] = f"{SECTIONS[name][1](chosen)}\n\n{turns}."
        print(SECTIONS[name][0], texts[name], sep="\n", flush=True)
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(texts))
        vectors.cache_clear()
    packages = ("st_dimreduce", "torch", "numpy", "scikit-learn", "faiss-cpu", "pyarrow")
    about = f"""
        Printed by `python benchmarks/speed.py` on {date.today()}: {platform.machine()}, {os.cpu_count()} cores, Python
        {platform.python_version()}, {", ".join(f"{name} {version(name)}" for name in packages)}. Seconds are the
        median, the fastest and slowest in brackets. Encoding with a head beside without:
        ENCODE_OVERHEAD.md."""
    blocks = ["# Speed", textwrap.dedent(about).strip()]
    for name, (title, _) in SECTIONS.items():
        if name in texts:
            blocks += [f"## {title}", texts[name]]
    (HERE / "SPEED.md").write_text("\n\n".join(blocks) + "\n")


if __name__ == "__main__":
    main()
