"""Runs of ``reduce_vectors`` that end early, and what they leave."""

from __future__ import annotations

import hashlib
from functools import partial

import numpy as np
import pytest

import st_dimreduce
from st_dimreduce import Head
from st_dimreduce.vectors.sinks import Parts

WIDTH, ROWS = 8, 5000
BATCH = 64 * 4 * WIDTH  # bytes of 64 rows: 512 rows a part, 10 parts
X = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
HEAD = Head(np.random.default_rng(1).standard_normal((4, WIDTH)) / 4)
SINKS = ["sink.npy", "sink.parquet", "sink.arrow", "sink"]
reduce_vectors = partial(st_dimreduce.reduce_vectors, batch_bytes=BATCH)


class Killed(BaseException):
    """Stands for a signal: nothing that is written for errors may catch it and tidy up."""


def content(path):
    """What is at a path, told by hashes; None if there is nothing."""
    if path.is_dir():
        return {str(file.relative_to(path)): content(file) for file in path.rglob("*") if file.is_file()}
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def write_folder(folder):
    """Write X into two .npy files."""
    folder.mkdir()
    for name, rows in (("a", X[:700]), ("b", X[700:])):
        np.save(folder / f"{name}.npy", rows)
    return folder


def interrupt(monkeypatch, method, call):
    """Let the call-th call of a method of Parts end the run as a kill does, with no tidying up."""
    original, calls = getattr(Parts, method), []

    def method_that_ends(self, *arguments):
        calls.append(method)
        if len(calls) == call:
            raise Killed
        return original(self, *arguments)

    monkeypatch.setattr(Parts, method, method_that_ends)
    monkeypatch.setattr(Parts, "__exit__", lambda *_: None)


def begin(source, sink, monkeypatch, head=HEAD, precision="int8", **options):
    """Begin a run that is killed with three parts complete."""
    with monkeypatch.context() as patch:
        interrupt(patch, "end_part", 4)
        with pytest.raises(Killed):
            reduce_vectors(source, head, sink, precision, **options)


def reduced_rows(monkeypatch):
    """A list to which every later call of ``Head.reduce_stored`` adds its number of rows."""
    counted, reduce = [], Head.reduce_stored
    monkeypatch.setattr(Head, "reduce_stored", lambda self, rows: counted.append(len(rows)) or reduce(self, rows))
    return counted
