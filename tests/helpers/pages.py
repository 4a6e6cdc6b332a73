"""Pages of the documentation as a reader follows them: their blocks in order, run as printed, and what they print.

A block of ``bash``, ``python`` or ``console`` (commands after ``$``, then what they print) is run. A block of ``text``
that comes next is what the block before prints. HTML comments above a block, which no reader sees, say otherwise::

    <!-- not run: needs a GPU -->          nobody can follow it here
    <!-- exits with 2 -->                  it fails, on purpose: what it says on standard error is compared as well

What is printed is compared by its words: figures, spaces, rules and line breaks may differ, and ``...`` stands for any
words. A comment behind a Python expression that is a value itself, as in ``codes.shape  # (2, 64)``, is compared with
the expression's value in the same way.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

RUN = ("bash", "python", "console")
RUNNER = Path(__file__).with_name("run_pages.py")
_BLOCK = re.compile(r"^(?P<indent> *)```(?P<kind>\w+)[^\n]*\n(?P<code>.*?)^ *```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"<!-- (not run|exits with):? ([^>]+) -->")
_FIGURE = re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?")
_DRAWN = re.compile(r"[─━═│┃╭╮╰╯┌┐└┘├┤┬┴┼╞╡╪]+")


@dataclass
class Block:
    """A block of a page, by the line of its first word."""

    line: int
    kind: str
    code: str
    not_run: str = ""
    status: int = 0
    printed: str | None = None


@dataclass
class Page:
    path: Path
    blocks: list[Block] = field(default_factory=list)

    @property
    def run(self):
        return [block for block in self.blocks if not block.not_run]


def read_page(path):
    """Return the blocks of a page that are run, and those that say why they are not."""
    text, page, last, seen = path.read_text(encoding="utf-8"), Page(path), None, 0
    for found in _BLOCK.finditer(text):
        kind, code = found["kind"], textwrap.dedent(found["code"])
        above = dict(_COMMENT.findall(text[seen : found.start()]))
        seen = found.end()
        if kind in RUN:
            line = text.count("\n", 0, found.start()) + 2
            last = Block(line, kind, code, above.get("not run", ""), int(above.get("exits with", 0)))
            page.blocks.append(last)
        elif kind == "text" and last is not None:
            last.printed = code
            last = None
        else:
            last = None
    return page


def same_form(printed, expected):
    """Whether two texts say the same, but for figures, spaces and rules; ``...`` stands for any words."""

    def form(text):
        return " ".join(_DRAWN.sub(" ", _FIGURE.sub("0", text)).split())

    words = [re.escape(part.strip()) for part in form(expected).split("...")]
    return re.fullmatch(r"\s*.*\s*".join(words), form(printed), re.DOTALL) is not None


class Forks:
    """A process that has imported the package and what it takes seconds to import, of which pages are forks.

    Its environment is that of :func:`environment`: what a library reads when it is imported is the same for all pages.
    """

    def __init__(self, socket_path, variables):
        self.socket_path, self.variables = str(socket_path), variables
        command = [sys.executable, RUNNER, self.socket_path]
        self._process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout.readline() == "ready\n", "the process of the pages did not start"

    def run(self, arguments, folder, variables, files, timeout):
        """Run a fork with these files as standard input, output and error; returns its exit status."""
        request = {"arguments": arguments, "folder": str(folder), "environment": variables}
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.socket_path)
            socket.send_fds(connection, [json.dumps(request).encode() + b"\n"], [file.fileno() for file in files])
            connection.settimeout(timeout)
            with connection.makefile() as answers:
                fork = int(answers.readline())
                try:
                    return int(answers.readline())
                except TimeoutError:
                    os.killpg(fork, signal.SIGKILL)
                    raise

    def close(self):
        self._process.terminate()
        self._process.wait()


def run_page(page, folder, forks, variables=(), timeout=1500):
    """Run a page's blocks in order in one folder, with one namespace; returns what is wrong, a line each."""
    blocks = [{"kind": block.kind, "code": block.code, "status": block.status} for block in page.run]
    with ExitStack() as stack:
        asked, said, errors = files = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3)]
        json.dump(blocks, asked)
        asked.seek(0)
        status = forks.run(["page"], folder, forks.variables | dict(variables), files, timeout)
        printed, trouble = [file.seek(0) or file.read() for file in (said, errors)]
    results = [json.loads(line) for line in printed.splitlines()]
    wrong = []
    for block, result in zip(page.run, results, strict=False):
        where = f"{page.path}:{block.line}"
        if result["failed"]:
            wrong.append(f"{where} fails: {result['failed']}")
        expected = [(block.printed, result["printed"])] if block.printed is not None else []
        for promised, printed in [*expected, *result["values"]]:
            if not same_form(printed, promised):
                wrong.append(f"{where} prints\n{printed.rstrip()}\nwhere the page says\n{promised.rstrip()}")
    if len(results) < len(blocks):
        where = f"{page.path}:{page.run[len(results)].line}"
        wrong.append(f"{where} ended the process, {status}: {trouble[-2000:]}")
    return wrong


def programs(folder, socket_path=None):
    """Make the programs that a page calls: this package's, ``pip`` and ``python``; returns their folder.

    ``st-dimreduce`` runs in a fork of the process that listens at the socket, if one is given.

    ``pip install`` installs nothing: it fails if the environment of the tests lacks what is named, or if there is no
    such extra. ``st-dimreduce serve`` is ended by Ctrl-C, as a reader would, once the page is there.
    """
    folder.mkdir()
    command = _COMMAND if socket_path is None else _FORK.replace("SOCKET", str(socket_path)) + _COMMAND
    for name, code in {"pip": _PIP, "st-dimreduce": command}.items():
        (folder / name).write_text(f"#!{sys.executable}\n{code}", encoding="utf-8")
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    for each in folder.iterdir():
        each.chmod(each.stat().st_mode | stat.S_IXUSR)
    return folder


def environment(bin_folder, base, package):
    """Return the environment of a page: these programs first, the package in a folder, no terminal's width."""
    python_path = os.pathsep.join(filter(None, [str(package), base.get("PYTHONPATH")]))
    kept = {name: value for name, value in base.items() if name not in ("COLUMNS", "HF_HUB_OFFLINE")}
    path = os.pathsep.join([str(bin_folder), base["PATH"]])
    return kept | {"PATH": path, "PYTHONPATH": python_path, "PYTHONIOENCODING": "utf-8", "TERM": "dumb"}


_PIP = """\
import importlib.metadata, sys
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
assert sys.argv[1] == "install", sys.argv
for word in sys.argv[2:]:
    if word.startswith("-"):
        continue
    asked = Requirement(word)
    about = importlib.metadata.metadata(asked.name)  # fails if it is not installed
    known = {canonicalize_name(extra) for extra in about.get_all("Provides-Extra") or []}
    unknown = {canonicalize_name(extra) for extra in asked.extras} - known
    assert not unknown, f"{asked.name} has no extra {unknown}"
"""

_FORK = """\
import sys
if sys.argv[1:2] != ["serve"]:
    import json, os, socket
    request = {"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect("SOCKET")
        socket.send_fds(connection, [json.dumps(request).encode() + b"\\n"], [0, 1, 2])
        with connection.makefile() as answers:
            raise SystemExit(int(answers.readlines()[1]))
"""

_COMMAND = """\
import re, signal, subprocess, sys, urllib.request
if sys.argv[1:2] != ["serve"]:
    from st_dimreduce.cli import app
    sys.argv[0] = "st-dimreduce"
    raise SystemExit(app())
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it, and so would the server
command = [sys.executable, "-c", "from st_dimreduce.cli import app; app()", *sys.argv[1:], "--port", "0"]
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
    address = None
    for line in server.stdout:
        print(line, end="", flush=True)
        if address := re.search(r"http://127\\.0\\.0\\.1:\\d+", line):
            break
    assert address, "the server did not say where it is"
    with urllib.request.urlopen(address[0], timeout=60) as page:
        assert page.status == 200
    server.send_signal(signal.SIGINT)
    server.wait(60)
raise SystemExit(0 if server.returncode in (0, 130) else server.returncode)
"""
