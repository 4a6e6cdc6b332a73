"""What the benchmarks share: vectors to be fast with, seconds and memory as they are measured, tables as printed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

WIDTH = 768


@cache
def vectors(rows: int) -> np.ndarray:
    """Unit vectors in 2,000 clusters, float32 of shape (rows, 768)."""
    rng = np.random.default_rng(0)
    spread = (np.arange(WIDTH) + 1.0).astype(np.float32) ** -0.5
    centres = rng.standard_normal((2000, WIDTH), np.float32) * spread
    drawn = np.empty((rows, WIDTH), np.float32)
    for first in range(0, rows, 50_000):
        some = slice(first, min(first + 50_000, rows))
        size = some.stop - first
        drawn[some] = centres[rng.integers(2000, size=size)] + rng.standard_normal((size, WIDTH), np.float32) * spread
        drawn[some] /= np.linalg.norm(drawn[some], axis=1, keepdims=True)
    return drawn


def timed(repeats: int, *ways: Callable[[], Any]) -> list[list[float]]:
    """Seconds of each way, by turns, so that what slows the machine slows all; the first turn does not count."""
    seconds: list[list[float]] = [[] for _ in ways]
    for turn in range(repeats + 1):
        for way, found in zip(ways, seconds, strict=True):
            start = time.perf_counter()
            way()
            if turn:
                found.append(time.perf_counter() - start)
    return seconds


def shown(seconds: list[float]) -> str:
    """Median, and the fastest and slowest in brackets."""
    return f"{np.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"


def memory(name: str) -> float:
    """What Linux says of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, the first column to the left and the others to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
