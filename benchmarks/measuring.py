"""Vectors to measure on, and how seconds and memory are measured."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

WIDTH = 768


@cache
def vectors(rows: int) -> np.ndarray:
    """Return random unit vectors in 2,000 clusters, float32 of shape (rows, 768)."""
    rng = np.random.default_rng(0)
    deviations = (np.arange(WIDTH) + 1.0).astype(np.float32) ** -0.5
    centres = rng.standard_normal((2000, WIDTH), np.float32) * deviations
    drawn = np.empty((rows, WIDTH), np.float32)
    for first in range(0, rows, 50_000):
        block = slice(first, min(first + 50_000, rows))
        size = block.stop - first
        noise = rng.standard_normal((size, WIDTH), np.float32)
        drawn[block] = centres[rng.integers(2000, size=size)] + noise * deviations
        drawn[block] /= np.linalg.norm(drawn[block], axis=1, keepdims=True)
    return drawn


def timed(repeats: int, *functions: Callable[[], Any]) -> list[list[float]]:
    """Return the seconds of each function in each round.

    The functions alternate within a round, so that whatever slows the machine down slows all of them. A first round
    warms up and does not count.
    """
    seconds: list[list[float]] = [[] for _ in functions]
    for number in range(repeats + 1):
        for function, found in zip(functions, seconds, strict=True):
            elapsed = once(function)
            if number:
                found.append(elapsed)
    return seconds


def once(function: Callable[[], Any]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def median_and_range(seconds: list[float]) -> str:
    """Return the median, and the fastest and slowest in brackets."""
    return f"{np.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"


def seconds_and_peak(function: Callable[[], Any]) -> tuple[float, float]:
    """Return the seconds of one call, and its peak memory in MB beyond what the process held before."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _memory("VmRSS")
    seconds = once(function)
    return seconds, _memory("VmHWM") - before


def seconds_and_peak_shared(function: Callable[[], Any]) -> tuple[float, float]:
    """As :func:`seconds_and_peak`, of the memory that :func:`held` tells, looked at every 10 ms."""
    ended, seen = threading.Event(), [held()]

    def look() -> None:
        while not ended.wait(0.01):
            seen.append(held())

    with ThreadPoolExecutor(1) as thread:
        looking = thread.submit(look)
        try:
            seconds = once(function)
        finally:
            ended.set()
        looking.result()
    return seconds, max(seen) - seen[0]


def held() -> float:
    """Return the memory of this process in MB; a page of a file that is mapped several times counts once."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def run_module(module: str, *arguments: str) -> Any:
    """Run a module of this package in a process of its own, and return what its last line of output is as JSON."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603, our own modules
    return json.loads(done.stdout.splitlines()[-1])


def _memory(name: str) -> float:
    """Return a figure of Linux about this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))
