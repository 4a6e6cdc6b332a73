"""An index of codes beside exact search, and beside the indexes of FAISS and usearch at the same bytes.

    python -m benchmarks.index [--rows N ...] [--peers N ...]

Writes benchmarks/INDEX.md. Results are kept in benchmarks/.cache/index.json, one by one: a run that is interrupted goes
on; ``--again`` measures anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from st_dimreduce.codes.calibration import share_found
from st_dimreduce.codes.index import CodeIndex, open_index

from benchmarks.data import CACHE
from benchmarks.measuring import held, once, run_module, seconds_and_peak_shared
from benchmarks.printing import header, paragraph, table, write
from benchmarks.widened import MODEL, near, real, widened
from st_dimreduce import Head, Precision, Summary
from st_dimreduce.codes.metrics import overlaps, retrieval
from st_dimreduce.codes.search import search
from st_dimreduce.files import new_file
from st_dimreduce.fitting.fit import fit_head
from st_dimreduce.vectors.index import build_index

KEPT = CACHE / "index.json"
FOLDER = CACHE / "indexes"
SIZE, PRECISION = 256, Precision.INT2  # 64 bytes
SECONDS = 4.0  # of searching, for a rate
EFFORTS = (4, 8, 16, 32, 64, 128, 256)
PACKAGES = ("st_dimreduce", "faiss-cpu", "usearch", "numpy", "sentence-transformers", "torch")


def kept(name: str, measure: Callable[[], Any]) -> Any:
    """Return a result of an earlier run, or measure it."""
    results = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if name not in results:
        print(name, flush=True)
        made = measure()
        results = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        results[name] = made
        with new_file(KEPT) as file:
            file.write_text(json.dumps(results, indent=1))
    return results[name]


class Data:
    """The vectors, the head, and the queries.

    Args:
        anew: Whether to read all packages; else what an earlier process found is taken.
    """

    def __init__(self, anew: bool = False) -> None:
        shared = CACHE / f"{MODEL}-index.npz"
        if anew:
            documents, queries = real()
            with new_file(shared) as file, file.open("xb") as stream:
                np.savez(stream, documents=documents, queries=queries)
        with np.load(shared) as arrays:
            self.documents, self.queries = arrays["documents"], arrays["queries"]
        path = CACHE / f"{MODEL}-packages-near-{len(self.documents)}.npy"
        if not path.exists():
            found = near(self.documents)
            with new_file(path) as file:
                np.save(file, found)
        self.neighbours = np.load(path)
        self.head: Head = fit_head(Summary.of(self.documents), SIZE).with_record(mean_norm=1.0, precision=PRECISION)
        self.reduced = self.head.transform(self.queries)

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """Yield so many vectors."""
        return widened(self.documents, self.neighbours, rows)

    def folder(self, rows: int) -> Path:
        """Return the folder of our index of so many vectors."""
        return FOLDER / f"{rows}"


def rate(find: Callable[[np.ndarray], Any], queries: np.ndarray) -> float:
    """Return queries per second, of batches of all of them."""
    find(queries[:50])
    start, done = time.perf_counter(), 0
    while time.perf_counter() < start + SECONDS:
        find(queries)
        done += len(queries)
    return done / (time.perf_counter() - start)


def latency(find: Callable[[np.ndarray], Any], queries: np.ndarray) -> float:
    """Return the median milliseconds of one query."""
    seconds = []
    for row in range(len(queries)):
        begin = time.perf_counter()
        find(queries[row : row + 1])
        seconds.append(time.perf_counter() - begin)
    return 1000 * float(np.median(seconds))


def build(rows: int) -> dict[str, float]:
    """Build our index in this process; returns seconds, peak memory and size in MB."""
    data = Data()
    path = data.folder(rows)
    shutil.rmtree(path, ignore_errors=True)
    _codes_at(rows).unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    seconds, peak = seconds_and_peak_shared(lambda: build_index(data.blocks(rows), data.head, path))
    drawing = once(lambda: [None for _ in data.blocks(rows)])
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 2**20
    return {"seconds": seconds - drawing, "peak": peak, "size": size}


def opened(rows: int) -> dict[str, Any]:
    """Search our index in a process of its own; returns rates and recalls."""
    data = Data()
    asked = data.reduced[:200]
    before = held()
    index = open_index(data.folder(rows), check_hashes=False)
    index.search(asked, 10, recall=0.99)
    index.search(asked[:20], 10, effort=index._efforts[1])  # looks into every cell
    found: dict[str, Any] = {"segments": len(index.manifest.segments), "cells": index._efforts[1]}
    found["ram"] = (held() - before) * 2**20 / rows
    codes = _codes(index, rows)
    exact = search(asked, codes, PRECISION, 10)[0]
    some = data.reduced[:40]
    found["exact"] = 40 / once(partial(search, some, codes, PRECISION, 10))
    del codes
    for share in (0.9, 0.95, 0.99):
        effort = index._effort(share, None, 10)
        find = lambda queries, effort=effort: index.search(queries, 10, effort=effort)  # noqa: E731
        found[str(share)] = {
            "effort": effort,
            "recall": _reached(index, asked, exact, effort),
            "rate": rate(find, data.reduced),
            "latency": latency(find, data.reduced[:300]),
        }
    efforts = index.manifest.efforts
    needed = next((e for e in efforts if _reached(index, asked, exact, e) >= 0.95), efforts[-1])
    find = lambda queries: index.search(queries, 10, effort=needed)  # noqa: E731
    found["reached"] = {
        "effort": needed,
        "recall": _reached(index, asked, exact, needed),
        "rate": rate(find, data.reduced),
        "latency": latency(find, data.reduced[:300]),
    }
    return found


def _reached(index: CodeIndex, queries: np.ndarray, exact: np.ndarray, effort: int) -> float:
    return share_found(exact, index.search(queries, 10, effort=effort)[0])


def _codes_at(rows: int) -> Path:
    return FOLDER / f"codes-{rows}.npy"


def _codes(index: CodeIndex, rows: int) -> np.ndarray:
    """Return the codes of all vectors in their order."""
    path = _codes_at(rows)
    if not path.exists():
        with new_file(path) as file:
            out = np.lib.format.open_memmap(file, "w+", np.uint8, (rows, PRECISION.bytes_per_vector(SIZE)))
            for start in range(0, rows, 1 << 18):
                out[start : start + (1 << 18)] = index.codes(range(start, min(start + (1 << 18), rows)))
            out.flush()
    return np.load(path, mmap_mode="r")


def peer(name: str, rows: int) -> dict[str, Any]:
    """Build a peer in this process and search it at several efforts; "ours" is our index."""
    data = Data()
    truth = _truth(data, rows)
    cells = 2 ** round(np.log2(1.3 * np.sqrt(rows)))
    found: dict[str, Any] = {"runs": []}
    asked = data.queries
    if name == "ours":
        begin = time.perf_counter()
        index = build_index(data.blocks(rows), data.head)
        found["seconds"] = time.perf_counter() - begin - once(lambda: [None for _ in data.blocks(rows)])
        found["bytes"] = 64
        asked = data.reduced
        finds = {effort: lambda queries, e=effort: index.search(queries, 10, effort=e)[1] for effort in EFFORTS}
    elif name.startswith("usearch"):
        finds, found["seconds"], found["bytes"] = _usearch(name, data, rows)
    else:
        finds, found["seconds"], found["bytes"] = _faiss(name.replace("CELLS", str(cells)), data, rows)
    for effort, find in finds.items():
        ids = find(asked)
        ndcg = retrieval(ids, [{row} for row in range(len(asked))])[0].mean()
        found["runs"].append(
            {
                "effort": effort,
                "rate": rate(find, asked),
                "overlap": float(overlaps(truth, ids).mean()),
                "ndcg": float(ndcg),
            }
        )
    return found


def _truth(data: Data, rows: int) -> np.ndarray:
    path = CACHE / f"{MODEL}-packages-truth-{rows}-{len(data.documents)}.npy"
    if not path.exists():
        best, where, first = np.empty((len(data.queries), 0), np.float32), np.empty((len(data.queries), 0), int), 0
        for block in data.blocks(rows):
            scores, ids = search(data.queries, block, "float32", 10)
            best, where = np.concatenate([best, scores], axis=1), np.concatenate([where, ids + first], axis=1)
            order = np.argsort(-best, axis=1, kind="stable")[:, :10]
            best, where = np.take_along_axis(best, order, axis=1), np.take_along_axis(where, order, axis=1)
            first += len(block)
        with new_file(path) as file:
            np.save(file, where)
    return np.load(path)


def _sample(data: Data, rows: int) -> np.ndarray:
    """Return vectors to train on, as many as FAISS uses of more."""
    share, rng = 256 * 1024 / rows, np.random.default_rng(0)
    return np.concatenate([block[rng.random(len(block)) < share] for block in data.blocks(rows)])


def _faiss(factory: str, data: Data, rows: int) -> tuple[dict[int, Any], float, float]:
    index = faiss.index_factory(data.documents.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    seconds = once(partial(index.train, _sample(data, rows)))
    for block in data.blocks(rows):
        seconds += once(lambda block=block: index.add(block))
    if factory.startswith("HNSW"):
        finds = {
            ef: lambda queries, ef=ef: index.search(queries, 10, params=faiss.SearchParametersHNSW(efSearch=ef))[1]
            for ef in EFFORTS[1:]
        }
        return finds, seconds, faiss.downcast_index(index.storage).sa_code_size() + 4 * 64
    finds = {}
    for effort in EFFORTS:

        def find(queries: np.ndarray, effort: int = effort) -> np.ndarray:
            index.nprobe = effort
            return index.search(queries, 10)[1]

        finds[effort] = find
    return finds, seconds, index.sa_code_size()


def _usearch(name: str, data: Data, rows: int) -> tuple[dict[int, Any], float, float]:
    from usearch.index import Index  # noqa: PLC0415, optional

    kind, width = name.split()[1], data.documents.shape[1]
    bits = kind == "b1"
    index = Index(ndim=width, metric="hamming" if bits else "cos", dtype=kind, connectivity=16)
    seconds, first = 0.0, 0
    for block in data.blocks(rows):
        given = np.packbits(block > 0, axis=1) if bits else block
        keys = np.arange(first, first + len(block))
        seconds += once(lambda keys=keys, given=given: index.add(keys, given))
        first += len(block)

    finds = {}
    for effort in EFFORTS[1:]:

        def find(queries: np.ndarray, effort: int = effort) -> np.ndarray:
            index.expansion_search = effort
            return index.search(np.packbits(queries > 0, axis=1) if bits else queries, 10).keys.astype(np.int64)

        finds[effort] = find
    return finds, seconds, (width // 8 if bits else width) + 4 * 32


PEERS = (
    "ours",
    "IVFCELLS,PQ64",
    "IVFCELLS,PQ128x4fs",
    "IVFCELLS,RaBitQ",
    "HNSW32,SQ8",
    "usearch i8",
    "usearch b1",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument(
        "--peers",
        type=int,
        nargs="*",
        default=[0, 1_000_000],
        help="vectors that peers are built on; 0 for the real ones",
    )
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        kind, argument = options.job
        jobs: dict[str, Callable[[], Any]] = {
            "build": lambda: build(int(argument)),
            "opened": lambda: opened(int(argument)),
            "peer": lambda: peer(*argument.split("/")[:1], int(argument.split("/")[1])),
        }
        print(json.dumps(jobs[kind]()))
        return
    if options.again:
        KEPT.unlink(missing_ok=True)
    data = Data(anew=True)

    def job(kind: str, argument: str) -> Any:
        return kept(f"{kind} {argument}", lambda: run_module("index", "--job", kind, argument))

    grown = {rows: (job("build", f"{rows}"), job("opened", f"{rows}")) for rows in options.rows}
    counts = [rows or len(data.documents) for rows in options.peers]
    tables = {rows: {name: job("peer", f"{name}/{rows}") for name in PEERS} for rows in counts}
    write("INDEX.md", report(data, grown, tables))


def report(data: Data, grown: dict[int, Any], tables: dict[int, Any]) -> list[str]:
    """Return the blocks of INDEX.md."""
    about = f"""
        {len(data.documents):,} real vectors: {MODEL} of docstrings of the installed packages. More are mixtures
        x + w (y - z) of a real vector and two of its 16 nearest, w between 1/4 and 3/4, scaled to norm 1. 1,500 first
        sentences are the queries. Codes: {SIZE} x {PRECISION.value}, 64 bytes, of one head that was fitted on the real
        vectors."""
    rows = []
    for number, (_, found) in grown.items():
        for share in ("0.9", "0.95", "0.99", "reached"):
            one = found[share]
            asked = "0.95, measured with these queries" if share == "reached" else share
            rows.append(
                [
                    f"{number:,}",
                    asked,
                    f"{one['effort']} of {found['cells']:,}",
                    f"{one['recall']:.3f}",
                    f"{one['rate']:,.0f}",
                    f"{one['latency']:.2f}",
                    f"{one['rate'] / found['exact']:,.0f}",
                ]
            )
    head = ["vectors", "recall asked for", "cells", "recall@10 of exact search", "queries/s", "ms, one query"]
    blocks = ["# Index", header("index", PACKAGES, about), "## Beside exact search of the codes"]
    blocks.append(table([*head, "times the queries/s of `search`"], rows))
    sizes = [
        [
            f"{number:,}",
            f"{built['seconds']:.0f}",
            f"{built['size']:,.0f}",
            f"{built['peak']:,.0f}",
            f"{found['ram']:.0f}",
        ]
        for number, (built, found) in grown.items()
    ]
    head = ["vectors", "seconds to build", "MB on disk", "MB while building", "bytes of RAM a vector"]
    blocks.append(table(head, sizes))
    note = """
        Recall is measured when an index is built, with vectors that lie to some of its documents as questions do.
        Seconds to build: from vectors in memory, with k-means, codes and the measurement of recall. MB while building:
        beyond what the process held before. RAM: what the process holds more when every code has been looked at. Codes
        are mapped from the disk, and processes share them."""
    blocks.append(paragraph(note))
    most = max(grown)
    blocks.append(paragraph(_larger(most, *grown[most])))
    for number, found in tables.items():
        real_only = number == len(data.documents)
        blocks.append(f"## Beside other indexes, {number:,} {'real vectors' if real_only else 'vectors'}")
        lines = []
        for name, one in found.items():
            label = (
                "**st_dimreduce**"
                if name == "ours"
                else name.replace("IVFCELLS", "FAISS IVF").replace("HNSW", "FAISS HNSW")
            )
            for run in one["runs"]:
                cells = [label, f"{one['bytes']:.0f}", f"{one['seconds']:.0f}", str(run["effort"])]
                figures = [f"{run['rate']:,.0f}", f"{100 * run['overlap']:.1f}", f"{100 * run['ndcg']:.1f}"]
                lines.append([*cells, *(figures if real_only else figures[:2])])
        head = ["index", "bytes", "seconds to build", "effort", "queries/s", "overlap@10"]
        blocks.append(table([*head, "nDCG@10"] if real_only else head, lines))
    if not tables:
        return blocks
    note = """
        Overlap: with the 10 nearest full vectors. Peers hold the full vectors of 384 dimensions in their own codes;
        bytes are those of a code, and of the links of a graph. Effort: cells per query, or what the walk through a
        graph keeps. Batches of 1,500 queries on all cores. nDCG@10 is that of real documents only: a mixture near the
        right one would count as wrong."""
    return [*blocks, paragraph(note)]


def _larger(rows: int, built: dict[str, float], found: dict[str, Any]) -> str:
    """Return what an index of ten times as many vectors would take."""
    step = 10**0.5
    return f"""
        {10 * rows:,} vectors were not built: to draw them, and to score all their codes, takes hours.
        Their index has {step:.1f} times as many cells. Comparing every vector with all cells is most of the work, and
        grows with both, the rest with the vectors alone: {10 * built["seconds"]:,.0f} to
        {10 * step * built["seconds"]:,.0f} seconds, {10 * built["size"]:,.0f} MB on disk, {10 * built["peak"]:,.0f} MB
        while building. A cell holds {step:.1f} times as many codes: at recall 0.95 about
        {found["0.95"]["rate"] / step:,.0f} queries per second, as long as the codes stay in memory."""


if __name__ == "__main__":
    sys.exit(main())
