"""How long the package and its command line take to start, each in fresh processes by turns.

    python -m benchmarks.door [--repeats N] [--before CHECKOUT]

Prints a table; with a checkout of an earlier version, that one is measured in the same run. Measure with nothing else
running.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.printing import table

ROOT = Path(__file__).parents[1]
COMMANDS = ("reduce", "publish", "export", "check", "fit", "apply", "attach", "demo", "compare", "serve")
BARE = """
import typer
app = typer.Typer()
@app.command()
def main(name: str, count: int = 1) -> None:
    "Say hello."
app(["--help"])
"""
OURS = "import sys; from st_dimreduce.cli import app; app(sys.argv[1:])"
NUMPY, PROGRAM = "`import numpy`", "a bare Typer program, `--help`"


def seconds_of(code: str, arguments: list[str], checkout: Path) -> float:
    """Run code in a fresh Python whose ``st_dimreduce`` is that of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    start = time.perf_counter()
    subprocess.run(  # noqa: S603, ourselves
        [sys.executable, "-c", code, *arguments], cwd=checkout, env=environment, stdout=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - start


def commit_of(checkout: Path) -> str:
    """Return the short hash of the commit that is checked out."""
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603


def door(repeats: int, before: str | os.PathLike[str] | None = None) -> str:
    """Return a table in Markdown: median seconds, and how many times those of NumPy or of a bare Typer program."""
    runs: dict[str, tuple[str, list[str]]] = {
        NUMPY: ("import numpy", []),
        "`import st_dimreduce`": ("import st_dimreduce", []),
        PROGRAM: (BARE, []),
        "`st-dimreduce --help`": (OURS, ["--help"]),
        **{f"`st-dimreduce {name} --help`": (OURS, [name, "--help"]) for name in COMMANDS},
    }
    checkouts = [Path(path).absolute() for path in (before, ROOT) if path is not None]
    measured: dict[tuple[str, Path], list[float]] = {(name, path): [] for name in runs for path in checkouts}
    for turn in range(repeats + 1):
        for (name, path), found in measured.items():
            seconds = seconds_of(*runs[name], path)
            if turn:  # the first compiles and fills the caches of the disk
                found.append(seconds)
    medians = {key: float(np.median(found)) for key, found in measured.items()}
    lines = []
    for name in runs:
        beside, target = (PROGRAM, "<= 1.5") if "--help" in name else (NUMPY, "<= 1.3, and 50 ms")
        cells = [f"{medians[name, path]:.3f}" for path in checkouts]
        cells += [f"{medians[name, path] / medians[beside, path]:.2f}" for path in checkouts]
        lines.append([name, *cells, "" if name in (NUMPY, PROGRAM) else target])
    when = ["before", "now"][-len(checkouts) :]
    head = ["", *(f"seconds, {word}" for word in when), *(f"ratio, {word}" for word in when), "target"]
    note = "" if before is None else f"\n\nBefore: at commit {commit_of(checkouts[0])}."
    return table(head, lines) + note


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--before", help="a checkout of an earlier version")
    chosen = parser.parse_args()
    print(door(chosen.repeats, chosen.before))


if __name__ == "__main__":
    main()
