"""Speed of each pass beside what the hardware and other libraries reach in the same run, as ratios.

    python -m benchmarks.speed [--sections NAME ...] [--rows N] [--repeats N] [--folder FOLDER] [--before FOLDER]

Writes benchmarks/SPEED.md. The vectors are random, in clusters: speed does not depend on their meaning. How much two
searches overlap does; QUALITY.md reports it for real vectors. Measure with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.decomposition import PCA, IncrementalPCA

from benchmarks.data import CACHE
from benchmarks.measuring import WIDTH, median_and_range, once, run_module, seconds_and_peak, timed, vectors
from benchmarks.printing import header, table, write
from st_dimreduce import Head, Precision, Size, Summary
from st_dimreduce.codes.metrics import overlaps
from st_dimreduce.codes.precision import quantize
from st_dimreduce.codes.search import search
from st_dimreduce.fitting.budget import choose
from st_dimreduce.vectors.fit import summarize

OUT, OPQ_STEPS = 256, 5


@cache
def head(size: int = OUT) -> Head:
    return Head.fit(vectors(50_000), size)


def relative(names: list[str], seconds: list[list[float]], targets: dict[str, str]) -> str:
    """Return a table of seconds, ours first, and of each time divided by ours."""
    ours = np.median(seconds[0])
    rows = [
        [name, median_and_range(some), f"{np.median(some) / ours:.2f}", targets.get(name, "")]
        for name, some in zip(names, seconds, strict=True)
    ]
    return table(["", "seconds", "relative to ours", "target"], rows)


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
    return relative(names, seconds, dict(zip(names, ("", ">= 1.3", "", ">= 1.2", ">= 2", ">= 25"), strict=True)))


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
        "`Head.fit(summary, 128)`": lambda: Head.fit(summary, 128),
        "`Head.fit(summary, 256)`": lambda: Head.fit(summary, 256),
        "`choose(summary, Size(bytes=64))`": lambda: choose(summary, Size(bytes=64)),
    }
    seconds = timed(chosen.repeats, *ways.values())
    for factory in ("PQ64", "OPQ64,PQ64"):
        seconds.append([once(partial(train, factory))])
    names = [*ways, "FAISS `PQ64`, once", f"FAISS `OPQ64,PQ64`, {OPQ_STEPS} steps of its 50, once"]
    return relative(names, seconds, {names[0]: "<= 2 s"})


def applying(chosen: argparse.Namespace) -> str:
    x = vectors(200_000)
    h = head(128)
    weight = torch.from_numpy(h.weight)
    pca = PCA(128, svd_solver="covariance_eigh").fit(x[:20_000])
    matrix = faiss.PCAMatrix(WIDTH, 128)
    matrix.train(x[:20_000])
    ways: dict[str, Callable[[], Any]] = {"`transform`": lambda: h.transform(x)}
    for precision in Precision:
        ways[f"`encode`, {precision.value}"] = partial(h.encode, x, precision)
    ways |= {
        "torch, matrix product only": lambda: torch.from_numpy(x) @ weight.T,
        "scikit-learn, `PCA.transform`": lambda: pca.transform(x),
        "FAISS, `PCAMatrix.apply`": lambda: matrix.apply(x),
    }
    targets = dict(zip(list(ways)[-3:], (">= 0.85", ">= 1.6", ">= 2"), strict=True))
    return relative(list(ways), timed(chosen.repeats, *ways.values()), targets)


def from_disk(chosen: argparse.Namespace) -> str:
    """Each run in a process of its own, beside a matrix product of as many rows and reading the file."""
    lines = []
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        head().save(Path(folder, "head"))
        for rows in (chosen.rows, 2 * chosen.rows):
            write_vectors(Path(folder), rows)
            for kind in ("npy", "parquet"):
                for what, name in (("summarize", "`summarize`"), ("transform", "`transform_file`, int4")):
                    runs = [run_module("speed", "--one", what, folder, kind) for _ in range(chosen.repeats)]
                    seconds = [run["seconds"] for run in runs]
                    share = np.median([run["bound"] / run["seconds"] for run in runs])
                    peak = max(run["peak"] for run in runs)
                    speed = [f"{rows:,}", median_and_range(seconds), f"{rows / np.median(seconds):,.0f}"]
                    lines.append([f"{name}, {kind}", *speed, f"{share:.0%}", f"{peak:.0f}"])
    share_name = "share of the slower of reading (decoding) and product"
    return table(["", "rows", "seconds", "rows/s", share_name, "additional peak memory, MB"], lines)


def write_vectors(folder: Path, rows: int) -> None:
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
    """Run one pass over a file, and print its seconds, its lower bound and its peak memory in MB."""
    source = Path(folder, f"x.{kind}")
    h = Head.load(Path(folder, "head"))
    weight = torch.from_numpy(h.weight)
    block = torch.rand(16_384, WIDTH)
    rows = len(np.load(Path(folder, "x.npy"), mmap_mode="r"))
    product = (lambda: block @ weight.T) if what == "transform" else (lambda: block.numpy().T @ block.numpy())
    multiplied = np.median(timed(5, product)[0]) * rows / len(block)
    read(source)
    disk = once(lambda: read(source))

    def run() -> None:
        if what == "transform":
            h.transform_file(source, Path(folder, f"{what}.{kind}"), "int4", overwrite=True)
        else:
            summarize(source, column=None if kind == "npy" else "embedding")

    seconds, peak = seconds_and_peak(run)
    print(json.dumps({"seconds": seconds, "bound": max(multiplied, disk), "peak": peak}))


def read(path: Path) -> None:
    """Read a file to its end, from the page cache where it is there; pyarrow decodes Parquet on all cores."""
    if path.suffix == ".parquet":
        for batch in pq.ParquetFile(path).iter_batches(2048, columns=["embedding"]):
            batch.column(0).values.to_numpy()
        return
    buffer = bytearray(1 << 24)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def searching(chosen: argparse.Namespace) -> str:
    x, asked = vectors(chosen.rows), queries()
    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(x)
    h = head(256)
    reduced, small = h.transform(asked), h.transform(x)
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
    names = [f"{name}; overlap {100 * overlaps(best, found[name]).mean():.0f}" for name in ways]
    return relative(names, seconds, {names[1]: ">= 5", names[2]: ">= 1"})


def queries() -> np.ndarray:
    rows = vectors(50_000)[:100] + 0.3 * np.random.default_rng(1).standard_normal((100, WIDTH), np.float32) / WIDTH**0.5
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def indexes(chosen: argparse.Namespace) -> str:
    rows = min(chosen.rows, 100_000)
    x, asked, h = vectors(rows), queries(), head(128)
    small, reduced = h.transform(x), h.transform(asked)
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
            recall = f"{100 * overlaps(exact, hits).mean():.1f}"
            lines.append([f"{kind}, {name}", f"{built:.1f}", median_and_range(seconds), f"{size:.0f}", recall])
    return table(["", "build, seconds", "100 queries, seconds", "MB", "recall@10 of full exact search"], lines)


def door(chosen: argparse.Namespace) -> str:
    """Seconds to import the package and to start a command."""
    from benchmarks import door as starting  # noqa: PLC0415, needed for this section alone

    return starting.door(chosen.repeats, chosen.before)


SECTIONS: dict[str, tuple[str, Callable[[argparse.Namespace], str]]] = {
    "door": ("Import, and start of a command", door),
    "summary": ("Summarise 200,000 x 768 in memory", summing),
    "fit": ("Fit from a summary of 10,000 x 768", fitting),
    "apply": ("Reduce 200,000 x 768 to 128 in memory", applying),
    "disk": ("From disk to disk, 768 to 256 dimensions", from_disk),
    "search": ("Exact search of 100 float queries, top 10", searching),
    "indexes": ("Reduced float vectors in indexes of FAISS", indexes),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--rows", type=int, default=1_000_000, help="number of vectors on disk and in the search")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="folder for the files that are read; 10 GB at 1,000,000 rows")
    parser.add_argument("--before", type=Path, help="a checkout of an earlier version, for the section door")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        one(*chosen.one)
        return
    kept = CACHE / "speed.json"
    sections = json.loads(kept.read_text()) if kept.exists() else {}
    runs = f"{chosen.repeats} runs, alternating" if chosen.repeats > 1 else "One run"
    for name in chosen.sections:
        title, section = SECTIONS[name]
        sections[name] = f"{section(chosen)}\n\n{runs}."
        print(title, sections[name], sep="\n", flush=True)
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(sections))
        vectors.cache_clear()
    packages = ("st_dimreduce", "torch", "numpy", "scikit-learn", "faiss-cpu", "pyarrow")
    about = """
        Seconds are medians, with the fastest and slowest run in brackets. For the time of encoding with a head, see
        ENCODE_OVERHEAD.md."""
    blocks = ["# Speed", header("speed", packages, about)]
    for name, (title, _) in SECTIONS.items():
        if name in sections:
            blocks += [f"## {title}", sections[name]]
    write("SPEED.md", blocks)


if __name__ == "__main__":
    main()
