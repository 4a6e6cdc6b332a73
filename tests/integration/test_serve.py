"""The search page as it is started: by the command, and as a Space."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
from pathlib import Path

import pytest

from tests.helpers.serving import ask, fetch, make_base, make_folder
from tests.helpers.tiny import SENTENCES

COMMAND = str(Path(sys.executable).with_name("st-dimreduce"))


@pytest.fixture(scope="module")
def folder(tiny_path, tmp_path_factory):
    return make_folder(make_base(tiny_path), tmp_path_factory.mktemp("serve") / "small")


def start(*arguments, cwd=None, module=None):
    command = [sys.executable, "-m", module] if module else [COMMAND]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *arguments], cwd=cwd, **pipes)


def wait_for(url, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        try:
            return fetch(url)
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError("it did not start")


def test_the_command_serves_until_it_is_interrupted(folder, tmp_path):
    (tmp_path / "texts.csv").write_text("body\n" + "\n".join(SENTENCES[:30]))
    process = start("serve", str(folder), "--texts", str(tmp_path / "texts.csv"), "--column", "body", "--port", "0")
    said = process.stdout.readline()
    site = re.search(r"http://127\.0\.0\.1:\d+", said).group()
    assert json.loads(fetch(f"{site}/about")[2])["documents"] == 30
    assert ask(site, q="a cat")[1]["full"]["bytes_per_vector"] == 128
    taken = start("serve", str(folder), "--texts", str(tmp_path / "texts.csv"), "--port", site.rpartition(":")[2])
    _, error = taken.communicate(timeout=120)
    assert taken.returncode == 2
    assert error.startswith(f"error: port {site.rpartition(':')[2]} cannot be used (Address already in use")
    assert error.endswith("choose another, or 0 for any that is free\n")
    assert len(error.splitlines()) == 1
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in error
    assert "it/s" not in error, "no progress bar where there is no terminal"


def test_the_space_answers_under_any_name(folder, tmp_path):
    space = Path("examples/space").absolute()
    docker = (space / "Dockerfile").read_text()
    assert '"app:app", "--host", "0.0.0.0", "--port", "7860"' in docker
    card = (space / "README.md").read_text()
    assert card.startswith("---\n")
    assert "\nsdk: docker\napp_port: 7860\n" in card
    for name in ("app.py", "README.md"):
        (tmp_path / name).write_text((space / name).read_text())
    (tmp_path / "model").symlink_to(folder)
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES[:20]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    process = start("app:app", "--host", "127.0.0.1", "--port", port, cwd=tmp_path, module="uvicorn")
    try:
        status, _, page = wait_for(f"http://127.0.0.1:{port}/", process)
        assert (status, "Full and reduced" in page) == (200, True)
        code, _, body = fetch(f"http://127.0.0.1:{port}/search?q=cat", Host="user-space.hf.space")
        assert (code, json.loads(body)["reduced"]["precision"]) == (200, "int4")
    finally:
        process.terminate()
        process.communicate(timeout=30)
