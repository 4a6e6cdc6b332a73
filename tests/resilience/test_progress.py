"""Bars on a terminal and nowhere else; Ctrl-C leaves nothing half done and says how to go on."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Transformer

from st_dimreduce import (
    DimReduce,
    Summary,
    base_head,
    disable_progress_bars,
    enable_progress_bars,
    recipe,
    reduce_model,
    save_portable,
)
from st_dimreduce.base_head import BaseHead
from st_dimreduce.evaluation import plots
from st_dimreduce.fitting import closed_form
from st_dimreduce.fitting.contrastive import contrast_head
from st_dimreduce.fitting.distillation import distill_head
from st_dimreduce.fitting.fit import fit_head
from st_dimreduce.fitting.pairs import Pairs
from st_dimreduce.fitting.size import Size
from st_dimreduce.portable import export, layout, save
from st_dimreduce.vectors import batches
from st_dimreduce.vectors.fit import summarize
from tests.helpers.command import run
from tests.helpers.resuming import BATCH, HEAD, ROWS, X, rows_done
from tests.helpers.tiny import SENTENCES

BARS = ["Encoding", "Choosing", "Rotating", "Training", "Measuring"]
BARS += ["Summarising", "Transforming", "Joining", "Exporting"]
# Several commands in one process, which takes seconds to start. A terminal's Ctrl-C goes to whom it controls.
SCRIPT = """
import json, os, sys, time
if os.isatty(0):
    os.open(os.ttyname(0), os.O_RDWR)
from st_dimreduce import progress
from st_dimreduce.cli import app
from st_dimreduce.vectors import batches
from st_dimreduce.vectors.fit import summarize
from st_dimreduce.vectors.sources import NpySource
progress._DELAY = 0
batches.BATCH_BYTES = int(sys.argv[2])
read = NpySource.read
def slow(*arguments):
    for some in read(*arguments):
        time.sleep(float(sys.argv[3]))
        yield some
NpySource.read = slow
for command in json.loads(sys.argv[1]):
    try:
        app(command)
    except SystemExit as end:
        if end.code:
            raise
"""


def child(commands, batch=1 << 25, pause=0.0):
    return [sys.executable, "-c", SCRIPT, str(commands).replace("'", '"'), str(batch), str(pause)]


def in_terminal(command, at_start=lambda terminal: None):
    """Run a command in a terminal of its own; returns its status and all that it showed."""
    terminal, theirs = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    at_start(terminal)
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(terminal)
    return process.wait(60), shown.decode()


def commands(folder, mark, *more):
    base, texts, vectors = (str(folder / name) for name in ("base", "texts.txt", "x.npy"))
    out, head, codes = (str(folder / f"{mark}-{name}") for name in ("out", "head", "codes.parquet"))
    return [
        ["reduce", base, texts, "--bytes", "8", "--objective", "fidelity", "-o", out, *more],
        ["fit", vectors, "--dim", "8", "-o", head, *more],
        ["export", out, "-o", f"{out}-onnx", *more],
        ["transform", head, vectors, codes, *more],
    ]


@pytest.mark.slow
def test_bars_are_shown_on_a_terminal_and_nowhere_else(tiny, tmp_path):
    tiny.save_pretrained(str(tmp_path / "base"))
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES))
    np.save(tmp_path / "x.npy", tiny.encode(SENTENCES))
    status, shown = in_terminal(child([*commands(tmp_path, "shown"), *commands(tmp_path, "quiet", "--quiet")]))
    assert status == 0, shown
    shown, last, end = shown.rpartition(f"st-dimreduce info {tmp_path}/shown-codes.parquet")
    assert (bool(last), end) == (True, "\r\n"), "the last command that is not quiet says the last words"
    assert (tmp_path / "quiet-codes.parquet").exists()
    for what in BARS:
        assert re.search(rf"{what}: .*\d", shown), f"no bar for {what}"
    done = subprocess.run(child(commands(tmp_path, "piped")), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not re.search("|".join([*BARS, "Loading", "Writing", r"it/s"]), done.stderr), done.stderr


def test_a_bar_waits_a_second_and_obeys(capfd, tmp_path, monkeypatch):
    summary = Summary.of(X)
    pairs = Pairs(X[:400], X[:400] + 0.1)

    def everything(folder):
        summary_of_file = summarize(X)
        HEAD.transform_file(X, tmp_path / folder)
        fitted = fit_head(summary_of_file, Size(4))
        contrast_head(fitted, pairs, steps=2)
        distill_head(fitted, summary, steps=2)

    monkeypatch.setattr("st_dimreduce.progress._disabled", False)  # as on a terminal
    everything("first")
    assert "Rotating" not in capfd.readouterr().err, "what is done within a second needs no bar"
    monkeypatch.setattr("st_dimreduce.progress._DELAY", 0)
    everything("second")
    shown = capfd.readouterr().err
    assert shown.count("Training:   0%") == 2
    for word in ("Rotating: 100%", "Summarising: 100%", "Transforming: 100%", "5.00k/5.00k", "rows/s"):
        assert word in shown
    for switch in (enable_progress_bars, disable_progress_bars):
        switch()
        everything(switch.__name__)
        assert capfd.readouterr().err == "", "this is no terminal"


@pytest.fixture
def source(tmp_path):
    np.save(tmp_path / "x.npy", X)
    HEAD.save(tmp_path / "head")
    return tmp_path / "x.npy"


def test_ctrl_c_during_transform_keeps_whole_parts_and_the_same_command_resumes(source, tmp_path, monkeypatch):
    target, parts = tmp_path / "target.npy", tmp_path / ".target.npy.parts"
    arguments = ["transform", str(tmp_path / "head"), str(source), str(target), "--precision", "int8"]

    def press(terminal):
        deadline = time.monotonic() + 120
        while not (parts / "job.json").exists() or rows_done(target) < 1536:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.write(terminal, b"\x03")

    status, shown = in_terminal(child([arguments], BATCH, 0.01), press)
    assert status == 130, shown
    assert "Traceback" not in shown
    done = int(re.search(r"interrupted: ([\d,]+) rows are done, the same call resumes", shown)[1].replace(",", ""))
    # Ctrl-C may come between the moment at which a part is counted and the one at which the run knows.
    assert 1024 <= done <= rows_done(target) < ROWS
    assert not target.exists()
    monkeypatch.setattr(batches, "BATCH_BYTES", BATCH)
    assert run(*arguments).exit_code == 0
    assert run(*arguments[:3], tmp_path / "whole.npy", *arguments[4:]).exit_code == 0
    assert target.read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert not parts.exists()


def interrupt_at(monkeypatch, owner, name):
    """Press Ctrl-C when a function is called."""
    original = getattr(owner, name)

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)  # the signal arrives here
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)


MOMENTS = {
    "encoding": (Summary, "update"),
    "rotating": (closed_form, "rotate"),
    "training": (torch.optim.Adam, "step"),
    "measuring": (recipe, "compare_models"),
    "writing the first file": (Transformer, "save"),
    "writing the head": (Dense, "save"),
    "writing the last file": (save, "model_card"),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("there", [False, True])
def test_ctrl_c_during_reduce_leaves_what_was_there(moment, there, tiny, tmp_path, monkeypatch):
    tiny.save_pretrained(str(tmp_path / "base"))
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES))
    if there:
        tiny.save_pretrained(str(tmp_path / "out"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    interrupt_at(monkeypatch, *MOMENTS[moment])
    folders = (str(tmp_path / name) for name in ("base", "texts.txt", "out"))
    arguments = ["reduce", *folders, "--dim", "8", "--objective", "fidelity", "--force"]
    arguments.insert(3, "-o")
    done = run(*arguments)
    assert done.exit_code == 130, done.output
    assert "Wrote" not in done.stdout
    assert (
        done.stderr.strip().splitlines()[-1] == "interrupted: no output is left half written, call again to start anew"
    )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"base", "texts.txt"} | ({"out"} if there else set())


@pytest.mark.parametrize(
    ("command", "moment"),
    [
        (["fit", "X", "--dim", "4", "-o", "OUT"], (Summary, "update")),
        (["fit", "X", "--dim", "4", "-o", "OUT"], (base_head, "save_file")),
        (["transform", "HEAD", "X", "OUT.npy"], (BaseHead, "transform")),
        (["transform", "HEAD", "X", "OUT"], (BaseHead, "transform")),
        (["attach", "HEAD", "BASE", "-o", "OUT"], (layout, "write_json")),
        pytest.param(
            ["export", "SMALL", "-o", "OUT"], (export, "model_graph"), marks=pytest.mark.component("ONNX Runtime")
        ),
        pytest.param(
            ["export", "SMALL", "-o", "OUT"], (export, "write_json"), marks=pytest.mark.component("ONNX Runtime")
        ),
        (["compare", "BASE", "SMALL", "--texts", "TEXTS", "--report", "OUT"], (SentenceTransformer, "encode_document")),
        (["compare", "BASE", "SMALL", "--texts", "TEXTS", "--report", "OUT"], (plots, "plot_quality")),
        (["check", "SMALL", "--fix"], (layout, "write_json")),
    ],
)
def test_ctrl_c_during_the_others_leaves_nothing(command, moment, tiny, source, tmp_path, monkeypatch):
    tiny.save_pretrained(str(tmp_path / "base"))
    if command[0] == "attach":
        DimReduce(32, 4).to_head().with_record(mean_norm=1.0).save(tmp_path / "head", overwrite=True)
    save_portable(reduce_model(tiny, SENTENCES, 8), tmp_path / "small")
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES))
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    interrupt_at(monkeypatch, *moment)
    names = {"X": "x.npy", "HEAD": "head", "BASE": "base", "OUT": "out", "OUT.npy": "out.npy"}
    names |= {"SMALL": "small", "TEXTS": "texts.txt"}
    done = run(*(tmp_path / names[word] if word in names else word for word in command))
    assert done.exit_code == 130, done.output
    assert "interrupted: no output is left half written, call again to start anew" in done.stderr
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before
