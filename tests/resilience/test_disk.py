"""A disk that is full, read-only or limited: one line says so, nothing is half left, what was there stays."""

from __future__ import annotations

import errno

import pytest

from st_dimreduce import DimReduce, reduce_model, save_portable
from st_dimreduce.files import new_file, new_folder
from tests.helpers.command import run
from tests.helpers.disk import content, no_large_files
from tests.helpers.tiny import SENTENCES, make_tiny

COMMANDS = {
    "reduce": "reduce {base} {texts} --dim 4 --output {out} --force",
    "attach": "attach {small} {base} --output {out} --force",
    "export": "export {model} --output {out} --force",
    "compare": "compare {base} {model} --texts {texts} --precision int8 --report {out}",
}


@pytest.fixture(scope="module")
def given(tiny_path, tmp_path_factory):
    place = tmp_path_factory.mktemp("given")
    base = make_tiny(tiny_path)
    base.save_pretrained(str(place / "base"))
    save_portable(reduce_model(base, SENTENCES, 8), place / "model")
    DimReduce(32, 8, record={"mean_norm": 1.0}).to_head().save(place / "small")
    (place / "texts").write_text("\n".join(SENTENCES))
    return {name: place / name for name in ("base", "model", "small", "texts")}


NEEDED = {"export": "ONNX Runtime"}


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.component(NEEDED[name])] if name in NEEDED else []) for name in COMMANDS
    ]
)
def command(request, given):
    """Runs a command that writes to a path; returns its one line of error, or None."""

    def error(out):
        done = run(*COMMANDS[request.param].format(**given, out=out).split())
        if done.exit_code == 0:
            return None
        assert done.exit_code == 2, done.exception
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr

    return error


def test_a_disk_that_fills_up(command, disk):
    out = disk.path / "out"
    for pages in (1, 6, 14, 40):  # the last is enough for some
        disk.leave(pages)
        said = command(out)
        if said is None and pages == 40:
            break
        assert "free some space there and call again" in said
        assert not list(disk.path.iterdir()), "something is left"
    disk.remount("size=1m")
    assert command(out) is None
    before = content(disk.path)
    disk.leave(6)
    assert "free some space there and call again" in command(out)
    assert content(disk.path) == before
    disk.remount("size=1m")
    assert command(out) is None
    assert [path.name for path in disk.path.iterdir()] == ["out"]


def test_a_disk_that_may_only_be_read(command, disk):
    out = disk.path / "out"
    disk.remount("ro")
    assert f"{disk.path} cannot be written: choose a folder that can" in command(out)
    disk.remount("rw")
    assert command(out) is None
    before = content(disk.path)
    disk.remount("ro")
    assert f"{disk.path} cannot be written: choose a folder that can" in command(out)
    assert content(disk.path) == before
    disk.remount("rw")
    assert command(out) is None


def test_a_file_that_may_not_grow(command, tmp_path):
    """What can be tested where nothing may be mounted."""
    with no_large_files():
        said = command(tmp_path / "out")
    assert "File too large" in said
    assert not list(tmp_path.iterdir()), "something is left"
    assert command(tmp_path / "out") is None


def test_what_the_disk_refuses_has_its_number(given, tiny, disk):
    disk.leave(6)
    with pytest.raises(OSError, match=r"/disk/m could not be written \(No space left on device\)") as caught:
        save_portable(reduce_model(tiny, SENTENCES, 4), disk.path / "m")
    assert caught.value.errno == errno.ENOSPC
    disk.remount("ro")
    with pytest.raises(PermissionError, match="cannot be written"):
        save_portable(reduce_model(tiny, SENTENCES, 4), disk.path / "m")


@pytest.mark.parametrize("begin", [new_folder, new_file])
def test_a_place_that_takes_no_files_is_said_in_one_line(begin):
    with (
        pytest.raises(
            OSError, match=r"^/proc/x could not be written \(.*\): fix that and call again$|^/proc cannot be written"
        ),
        begin("/proc/x"),
    ):
        pass
