"""Runs of ``transform_file`` that end early, and what they leave."""

from __future__ import annotations

import json
from contextlib import nullcontext

import numpy as np
import pytest

from st_dimreduce import Head
from st_dimreduce.base_head import BaseHead
from st_dimreduce.vectors import batches, sinks

WIDTH, ROWS = 8, 5000
BATCH = 64 * 4 * WIDTH  # bytes of 64 rows: 512 rows a part, 10 parts
X = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
HEAD = Head(np.random.default_rng(1).standard_normal((4, WIDTH)) / 4)
TARGETS = ["target.npy", "target.parquet", "target.arrow", "target"]


class Killed(BaseException):
    """Stands for a signal: nothing that is written for errors may catch it and tidy up."""


def transform(source, target, precision="float32", head=HEAD, batch_bytes=BATCH, **options):
    """Call ``head.transform_file`` with small batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "BATCH_BYTES", batch_bytes)
        return head.transform_file(source, target, precision, **options)


def write_folder(folder):
    """Write X into two .npy files."""
    folder.mkdir()
    for name, rows in (("a", X[:700]), ("b", X[700:])):
        np.save(folder / f"{name}.npy", rows)
    return folder


def do_not_tidy(monkeypatch):
    """Let errors end a run as a kill does."""
    monkeypatch.setattr(sinks, "_closing", lambda *_: nullcontext())
    monkeypatch.setattr(sinks, "_discard", lambda *_: None)


def interrupt(monkeypatch, name, call):
    """Let the call-th call of a method of Sink, or of a function beside it, end the run as a kill does."""
    owner = sinks.Sink if hasattr(sinks.Sink, name) else sinks
    original, calls = getattr(owner, name), []

    def function_that_ends(*arguments):
        calls.append(name)
        if len(calls) == call:
            raise Killed
        return original(*arguments)

    monkeypatch.setattr(owner, name, function_that_ends)
    do_not_tidy(monkeypatch)


def begin(source, target, monkeypatch, head=HEAD, precision="int8", **options):
    """Begin a run that is killed with three parts complete."""
    with monkeypatch.context() as patch:
        interrupt(patch, "end_part", 4)
        with pytest.raises(Killed):
            transform(source, target, precision, head, **options)


def rows_done(target):
    """How many rows the unfinished run for a target has completed."""
    job = target.parent / f".{target.name}.parts" / "job.json"
    return json.loads(job.read_text())["done"]["rows"]


def reduced_rows(monkeypatch):
    """A list to which every later call of ``head.transform`` adds its number of rows."""
    counted, transform_rows = [], BaseHead.transform
    monkeypatch.setattr(
        BaseHead, "transform", lambda self, rows: counted.append(len(rows)) or transform_rows(self, rows)
    )
    return counted
