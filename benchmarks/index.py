"""An index of codes beside exact search, and beside FAISS's own indexes of the full vectors.

    python -m benchmarks.index [--rows N ...] [--peers N]

Writes benchmarks/INDEX.md. Every index is built and searched in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import faiss
import numpy as np

from benchmarks.data import CACHE
from benchmarks.measuring import held, once, run_module
from benchmarks.printing import header, paragraph, table, write
from benchmarks.widened import MODEL, near, real, widened
from st_dimreduce import Codes, Index, Precision, Summary
from st_dimreduce.codes.metrics import overlaps
from st_dimreduce.codes.search import search
from st_dimreduce.files import new_file
from st_dimreduce.fitting.fit import fit_head

FOLDER = CACHE / "indexes"
SIZE, PRECISION = 256, Precision.INT2  # 64 bytes
RECALLS = (0.9, 0.95, 0.99)
SECONDS = 4.0  # of searching, for a rate
COMPARED = 200  # queries whose results are compared with exact search
EFFORTS = (8, 32, 128)
PEERS = ("ours", "IVFCELLS,PQ128x4fs", "IVFCELLS,RaBitQ", "HNSW32,SQ8")
PACKAGES = ("st_dimreduce", "faiss-cpu", "numpy", "sentence-transformers", "torch")


class Data:
    """Full vectors, queries, and the head; what the first process has found, the others read.

    Args:
        anew: Whether to read all packages. Defaults to False.
    """

    def __init__(self, anew: bool = False) -> None:
        shared = CACHE / f"{MODEL}-index.npz"
        if anew:
            documents, queries = real()
            with new_file(shared) as file, file.open("xb") as stream:
                np.savez(stream, documents=documents, queries=queries, neighbours=near(documents))
        with np.load(shared) as arrays:
            self.documents, self.queries, self.neighbours = (arrays[name] for name in arrays.files)
        self.head = fit_head(Summary.of(self.documents), SIZE).with_record(mean_norm=1.0, precision=PRECISION)
        self.reduced = self.head.transform(self.queries)

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """Yield so many vectors."""
        return widened(self.documents, self.neighbours, rows)

    def codes(self, rows: int) -> Codes:
        """Return the codes of so many vectors, mapped from a file."""
        path = FOLDER / f"codes-{rows}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            parts = [self.head.encode(block).values for block in self.blocks(rows)]
            Codes(np.concatenate(parts), PRECISION, SIZE, self.head.fingerprint).save(path)
        return Codes.load(path)


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
    return 1000 * float(np.median([once(partial(find, queries[row : row + 1])) for row in range(300)]))


def built(rows: int) -> dict[str, float]:
    """Build our index and save it; returns seconds and bytes on disk per vector."""
    codes, path = Data().codes(rows), FOLDER / f"{rows}"
    begin = time.perf_counter()
    index = Index.build(codes)
    seconds = time.perf_counter() - begin
    index.save(path, overwrite=True)
    return {"seconds": seconds, "disk": sum(file.stat().st_size for file in path.iterdir()) / rows}


def searched(rows: int) -> dict[str, Any]:
    """Search our index, and the codes exactly; returns rates, recalls and bytes of memory per vector."""
    data = Data()
    before = held()
    index = Index.load(FOLDER / f"{rows}")
    index.search(data.reduced, 10, 0.99)
    found: dict[str, Any] = {"ram": (held() - before) * 2**20 / rows}
    codes, asked = data.codes(rows), data.reduced[:COMPARED]
    least = codes.search(asked, 10)[0][:, -1:] - 1e-6
    found["exact"] = 40 / once(partial(codes.search, asked[:40], 10))
    for recall in RECALLS:
        find = partial(index.search, k=10, recall=recall)
        reached = float((find(asked)[0] >= least).mean())
        speeds = {"rate": rate(find, data.reduced), "latency": latency(find, data.reduced)}
        found[str(recall)] = {"cells": index.measured.cells_for(recall, 10), "recall": reached, **speeds}
    return found


def peer(name: str, rows: int) -> dict[str, Any]:
    """Build an index and search it at several efforts; returns its rates and overlaps with the full vectors."""
    data, truth = Data(), _truth(rows)
    begin = time.perf_counter()
    if name == "ours":
        own = Index.build(data.codes(rows))
        asked, width = data.reduced, 64.0
        finds = {
            effort: lambda queries, e=effort: own._best(own._unit(queries, 10), 10, e, None)[1] for effort in EFFORTS
        }
    else:
        cells = 2 ** round(np.log2(1.3 * np.sqrt(rows)))
        index: Any = faiss.index_factory(
            data.documents.shape[1], name.replace("CELLS", str(cells)), faiss.METRIC_INNER_PRODUCT
        )
        share, rng = 256 * 1024 / rows, np.random.default_rng(0)
        index.train(np.concatenate([block[rng.random(len(block)) < share] for block in data.blocks(rows)]))
        for block in data.blocks(rows):
            index.add(block)
        graph = name.startswith("HNSW")
        asked, width = data.queries, index.storage.code_size + 256.0 if graph else float(index.code_size)
        set_effort = faiss.ParameterSpace().set_index_parameter

        def by_effort(queries: np.ndarray, effort: int) -> np.ndarray:
            set_effort(index, "efSearch" if graph else "nprobe", effort)
            return index.search(queries, 10)[1]

        finds = {effort: partial(by_effort, effort=effort) for effort in EFFORTS}
    found: dict[str, Any] = {"seconds": time.perf_counter() - begin, "bytes": width, "runs": []}
    for effort, find in finds.items():
        overlap = float(overlaps(truth, find(asked)).mean())
        found["runs"].append({"effort": effort, "rate": rate(find, asked), "overlap": overlap})
    return found


def _truth(rows: int) -> np.ndarray:
    """Return the 10 nearest full vectors of each query."""
    path = FOLDER / f"truth-{rows}.npy"
    if not path.exists():
        data = Data()
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--peers", type=int, default=1_000_000, help="vectors that peers are built on")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        kind, argument = options.job
        jobs = {"built": built, "searched": searched}
        name, _, rows = argument.rpartition("/")
        print(json.dumps(jobs[kind](int(rows)) if kind in jobs else peer(name, int(rows))))
        return
    data = Data(anew=True)
    job = partial(run_module, "index", "--job")
    ours = {rows: {**job("built", f"{rows}"), **job("searched", f"{rows}")} for rows in options.rows}
    peers = {name: job("peer", f"{name}/{options.peers}") for name in PEERS}
    write("INDEX.md", report(data, ours, peers, options.peers))


def report(data: Data, ours: dict[int, Any], peers: dict[str, Any], count: int) -> list[str]:
    """Return the blocks of INDEX.md."""
    about = f"""
        {len(data.documents):,} real vectors: {MODEL} of docstrings of the installed packages. More are mixtures
        x + w (y - z) of a real vector and two of its 16 nearest, w between 1/4 and 3/4, scaled to norm 1. 1,500 first
        sentences are the queries. Codes: {SIZE} x {PRECISION.value}, 64 bytes, of one head that was fitted on the real
        vectors."""
    rows = []
    for number, found in ours.items():
        for share in map(str, RECALLS):
            one = found[share]
            speed = [f"{one['rate']:,.0f}", f"{one['latency']:.2f}", f"{one['rate'] / found['exact']:,.0f}"]
            rows.append([f"{number:,}", share, f"{one['cells']:,}", f"{one['recall']:.3f}", *speed])
    head = ["vectors", "recall asked for", "cells", "recall@10 of exact search", "queries/s", "ms, one query"]
    blocks = ["# Index", header("index", PACKAGES, about), "## Beside exact search of the codes"]
    blocks.append(table([*head, "times the queries/s of `Codes.search`"], rows))
    sizes = [
        [f"{number:,}", f"{found['seconds']:.0f}", f"{found['disk']:.0f}", f"{found['ram']:.0f}"]
        for number, found in ours.items()
    ]
    blocks.append(table(["vectors", "seconds to build", "bytes on disk per vector", "of RAM"], sizes))
    note = """
        Recall is measured when an index is built, against exact search, with vectors made from some of its documents.
        Seconds to build: from codes in a file, with k-means and the measurement of recall."""
    blocks += [paragraph(note), f"## Beside other indexes, {count:,} vectors"]
    rows = []
    for name, found in peers.items():
        shown = "**st_dimreduce**" if name == "ours" else f"FAISS {name.replace('CELLS', '')}"
        for run in found["runs"]:
            figures = [f"{run['effort']}", f"{run['rate']:,.0f}", f"{100 * run['overlap']:.1f}"]
            rows.append([shown, f"{found['bytes']:.0f}", f"{found['seconds']:.0f}", *figures])
    blocks.append(table(["index", "bytes", "seconds to build", "effort", "queries/s", "overlap@10"], rows))
    note = """
        Overlap: with the 10 nearest full vectors. Peers hold the full vectors of 384 dimensions in their own codes;
        bytes are those of a code, and of the links of a graph. Effort: cells per query, or what the walk through a
        graph holds. Batches of 1,500 queries on all cores."""
    return [*blocks, paragraph(note)]


if __name__ == "__main__":
    main()
