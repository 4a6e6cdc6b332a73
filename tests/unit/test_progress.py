"""One switch for the progress bars of the package."""

from __future__ import annotations

import io
from contextlib import redirect_stderr

import numpy as np
import pytest

import st_dimreduce
from st_dimreduce import Head, progress
from st_dimreduce.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """A terminal, and bars that appear at once."""
    monkeypatch.setattr(progress, "_DELAY", 0)
    monkeypatch.setattr(progress, "_disabled", None)
    return Terminal()


def count():
    for _ in progress_bar("Counting", "rows", range(3)):
        pass


def printed(stream, work=count):
    """What a piece of work prints to a stream in place of standard error."""
    before = len(stream.getvalue())
    with redirect_stderr(stream):
        work()
    return stream.getvalue()[before:]


def test_a_bar_is_shown_on_a_terminal_unless_bars_are_disabled(terminal):
    assert "Counting: 100%" in printed(terminal)
    st_dimreduce.disable_progress_bars()
    assert printed(terminal) == ""
    st_dimreduce.disable_progress_bars()
    assert printed(terminal) == "", "once more changes nothing"
    st_dimreduce.enable_progress_bars()
    assert "Counting: 100%" in printed(terminal)


@pytest.mark.usefixtures("terminal")
def test_no_bar_is_shown_where_there_is_no_terminal():
    assert printed(io.StringIO()) == ""
    st_dimreduce.enable_progress_bars()
    assert printed(io.StringIO()) == ""


def test_a_fit_goes_by_the_switch(terminal):
    vectors = np.random.default_rng(0).standard_normal((200, 16)).astype(np.float32)
    st_dimreduce.disable_progress_bars()
    assert printed(terminal, lambda: Head.fit(vectors, 4)) == ""
    st_dimreduce.enable_progress_bars()
    assert "Rotating: 100%" in printed(terminal, lambda: Head.fit(vectors, 4))


def test_a_bar_starts_at_what_an_earlier_run_has_done(terminal):
    def resume():
        with progress_bar("Reducing", "rows", total=10, done=4) as bar:
            bar.update(6)

    last = printed(terminal, resume).rstrip("\n").rpartition("\r")[2]
    assert last.startswith("Reducing: 100%")
    assert "10.0/10.0" in last


def test_a_bar_appears_after_a_second(monkeypatch, terminal):
    monkeypatch.setattr(progress, "_DELAY", 1.0)
    assert "Counting" not in printed(terminal)
