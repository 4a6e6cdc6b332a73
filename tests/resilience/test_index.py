"""An index that is damaged, hostile, killed while it is written, or read by others meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from st_dimreduce import FitRecord, Head, build_index, open_index, quantize
from st_dimreduce.codes.manifest import _hash
from tests.helpers.resuming import content

pytestmark = pytest.mark.component("FAISS")

ROWS, D, K = 3000, 24, 16


def vectors(rows=ROWS, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, D)).astype(np.float32)


HEAD = Head(np.eye(K, D, dtype=np.float32), record=FitRecord(mean_norm=1.0, precision="int2"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "index"
    index = build_index(vectors(), HEAD, path, cells=8)
    index.remove([1])
    return path


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "index"
    build_index(vectors(), HEAD, path, kind="hnsw").remove([1])
    return path


@pytest.fixture
def path(built, tmp_path):
    shutil.copytree(built, tmp_path / "index")
    return tmp_path / "index"


def files(path):
    return sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in (".npy", ".bin", ".json"))


NAMES = ["cells.npy", "index.json", "lists.bin", "sizes.npy", "ids.npy", "order.npy", "removed-000002.npy"]


MADE_UP = [
    "sizes.npy",
    "ids.npy",
    "order.npy",
    "lists.bin",
    "removed-000002.npy",
    "levels.npy",
    "links.npy",
    "entry.npy",
]


def one(path, name):
    return next(file for file in path.rglob("*") if file.name == name)


@pytest.mark.parametrize("name", NAMES)
def test_one_changed_byte_anywhere_is_noticed(name, path):
    file = one(path, name)
    before = file.read_bytes()
    rng = np.random.default_rng(0)
    for place in [0, len(before) - 2, *rng.integers(0, len(before), 20)]:
        changed = bytearray(before)
        changed[place] ^= 1 << int(rng.integers(0, 7))
        file.write_bytes(changed)
        with pytest.raises(ValueError, match=r"damaged, build it again|is no JSON|of format|holds no index"):
            open_index(path)
    file.write_bytes(before)
    assert len(open_index(path)) == ROWS - 1


@pytest.mark.parametrize("hashes", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_cut_short_or_missing_is_noticed(name, hashes, path):
    file = one(path, name)
    before = file.read_bytes()
    for size in (0, len(before) // 2, len(before) - 3):
        file.write_bytes(before[:size])
        with pytest.raises(ValueError, match=r"damaged, build it again|is no JSON"):
            open_index(path, check_hashes=hashes)
    file.unlink()
    with pytest.raises((ValueError, FileNotFoundError)):
        open_index(path, check_hashes=hashes)


def rewrite(path, change):
    """Change the manifest as somebody would who knows how its hash is made."""
    written = json.loads((path / "index.json").read_text())
    del written["hash"]
    change(written)
    (path / "index.json").write_text(json.dumps({**written, "hash": _hash(written)}))


def set_(name, value):
    def change(written):
        *path, last = name.split(".")
        for part in path:
            written = written[int(part) if part.isdigit() else part]
        written[last] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_("segments.0.name", "../secret"),
        set_("segments.0.name", "segment-000000-0/../../secret"),
        set_("segments.0.removed", "../../secret.npy"),
        set_("segments.0.rows", 17),
        set_("segments.0.rows", "many"),
        set_("segments.0.files", {"../../secret.npy": [1, "a"]}),
        set_("segments", [5]),
        set_("segments", None),
        set_("precision", "int4"),
        set_("precision", "int3"),
        set_("kind", "tree"),
        set_("kind", None),
        set_("out_features", 15),
        set_("out_features", 10**9),
        set_("out_features", -1),
        set_("out_features", "16"),
        set_("format", "st_dimreduce.index.0"),
        set_("candidates", -1),
        set_("candidates", 10**12),
        set_("efforts", [1]),
        set_("efforts", ["a"]),
        set_("recalls", {"10": [0.5]}),
        set_("recalls", {"10": "x", "100": 3}),
        set_("named", "yes"),
        set_("next_id", "x"),
        set_("unknown", 1),
        lambda written: written.pop("segments"),
        lambda written: written.pop("head"),
    ],
)
def test_a_manifest_that_somebody_made_up_is_refused_in_one_line(change, path):
    (path.parent / "secret.npy").write_bytes(b"private")
    rewrite(path, change)
    for hashes in (True, False):
        with pytest.raises(ValueError, match=r"damaged|format") as caught:
            open_index(path, check_hashes=hashes)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["built", "graph"])
@pytest.mark.parametrize("name", MADE_UP)
def test_files_that_somebody_made_up_crash_nothing(name, kind, request, tmp_path):
    built = request.getfixturevalue(kind)
    if not list(built.rglob(name)):
        return
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((3, K)).astype(np.float32)
    for turn in range(6):
        path = tmp_path / str(turn)
        shutil.copytree(built, path)
        file = one(path, name)
        if name == "lists.bin":
            file.write_bytes(rng.bytes(file.stat().st_size))
        else:
            array = np.load(file)
            made = rng.integers(*((1, 4), (0, 200), (-(2**60), 2**60))[turn % 3], len(array)).astype(array.dtype)
            some = rng.random(len(array)) < (0.01 if turn < 3 else 1)
            np.save(file, np.where(some, made, array))
        try:
            index = open_index(path, check_hashes=False)
            index.search(queries, 5)
            index.search(queries, 50, effort=500)
            index.search(queries, 5, ids=range(100))
            index.codes([7])
        except ValueError as error:
            assert "\n" not in str(error)
        else:
            changed = name in ("sizes.npy", "levels.npy") and not np.array_equal(np.load(file), array)
            assert not changed


def child(code, *arguments, **options):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], env=env, **options)


CHANGES = """
import sys, threading, os, signal, time
import numpy as np
from st_dimreduce import open_index, quantize
path, seconds = sys.argv[1], float(sys.argv[2])
index = open_index(path)
codes = quantize(np.random.default_rng(5).standard_normal((40, index.out_features)).astype(np.float32), index.precision)
print("ready", flush=True)
threading.Thread(target=lambda: (time.sleep(seconds), os.kill(os.getpid(), signal.SIGKILL)), daemon=True).start()
while True:
    index.add(codes, overwrite=False)
    index.remove([index.manifest.next_id - 1])
"""


@pytest.mark.slow
def test_killed_while_it_changes_the_old_or_the_new_index_stands(path):
    rng = np.random.default_rng(0)
    queries = rng.standard_normal((5, K)).astype(np.float32)
    codes = quantize(np.random.default_rng(5).standard_normal((40, K)).astype(np.float32), "int2")
    generations = set()
    for kills in range(1, 13):
        process = child(CHANGES, path, rng.uniform(0.05, 1.0), stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        assert process.wait() == -signal.SIGKILL
        index = open_index(path)
        generations.add(index.manifest.generation)
        added = index.manifest.next_id - ROWS
        assert added % 40 == 0
        least = ROWS - 1 + added - added // 40  # every addition was followed by a removal, or by a kill
        assert least <= len(index) <= least + kills
        if added:
            assert np.array_equal(index.codes([ROWS + added - 40]), codes[:1])
        assert (index.search(queries, 5, effort=8)[1] >= 0).all()
    assert len(generations) > 6
    for left in path.rglob(".*.????????"):
        os.utime(left, (0, 0))  # a younger one may be somebody's
    index.add(codes)  # the lock of a killed process holds nobody up
    index.compact()
    assert {file.parent.name for file in files(path)} - {"head", "index"} == {index.manifest.segments[0].name}


BUILDS = """
import sys, os, signal
from st_dimreduce import Head, build_index, FitRecord
import numpy as np
head = Head(np.eye(16, 24, dtype=np.float32), record=FitRecord(mean_norm=1.0, precision="int2"))
count, last = 0, int(sys.argv[3])
def hook(event, arguments):
    global count
    if event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"):
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
build_index(sys.argv[1], head, sys.argv[2], cells=8, batch_bytes=24 * 4 * 128)
print(count)
"""


@pytest.mark.slow
def test_killed_before_each_change_of_the_disk_a_build_goes_on_to_the_same_index(tmp_path):
    np.save(tmp_path / "x.npy", vectors())
    whole = child(BUILDS, tmp_path / "x.npy", tmp_path / "whole", -1, stdout=subprocess.PIPE)
    events = int(whole.communicate()[0])
    wanted = content(tmp_path / "whole")
    assert events > 20
    for last in range(1, events + 1, 3):
        out = tmp_path / "out"
        process = child(BUILDS, tmp_path / "x.npy", out, last)
        assert process.wait() == -signal.SIGKILL
        assert content(out) in (None, wanted)
        if not out.exists():
            build_index(tmp_path / "x.npy", HEAD, out, cells=8, batch_bytes=D * 4 * 128)
        assert content(out) == wanted
        shutil.rmtree(out)
        shutil.rmtree(tmp_path / ".out.building", ignore_errors=True)


def test_what_another_build_began_is_kept(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", vectors())
    with monkeypatch.context() as patch:
        patch.setattr("st_dimreduce.vectors.index.create", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_index(tmp_path / "x.npy", HEAD, tmp_path / "out", cells=8)
    assert (tmp_path / ".out.building" / "codes.npy").exists()
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="begun with other arguments: call again with the same, or start anew"):
        build_index(tmp_path / "x.npy", HEAD, tmp_path / "out", cells=9)
    with monkeypatch.context() as patch:
        patch.setattr("st_dimreduce.vectors.index.reduce_vectors", lambda *_: 1 / 0)  # it is not done again
        build_index(tmp_path / "x.npy", HEAD, tmp_path / "out", cells=8)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "x.npy"]


def test_readers_see_the_old_or_the_new_while_a_writer_works(path):
    queries = np.random.default_rng(0).standard_normal((5, K)).astype(np.float32)
    codes = quantize(vectors(30, 9)[:, :K], "int2")
    problems, seen, stop = [], set(), threading.Event()
    shared = open_index(path)

    def refresh():
        while not stop.is_set():
            shared.refresh()

    def read():
        try:
            reader = open_index(path)
            while not stop.is_set():
                reader.refresh()
                seen.add(len(reader))
                assert (reader.search(queries, 5, effort=8)[1] >= 0).all()
                seen.add(len(open_index(path)))
                # While another thread opens what has changed.
                assert np.isin(shared.search(queries, 5, effort=8)[1], np.arange(ROWS + 1000)).all()
        except Exception as error:
            problems.append(repr(error))

    readers = [threading.Thread(target=each) for each in (read, read, refresh)]
    for reader in readers:
        reader.start()
    writer = open_index(path)
    for _ in range(12):
        writer.add(codes)
        writer.compact()
        time.sleep(0.02)
    stop.set()
    for reader in readers:
        reader.join()
    assert not problems, problems
    assert {(size - ROWS + 1) % 30 for size in seen} == {0}
    assert len(seen) > 2


def test_two_writers_do_not_write_at_the_same_time(path):
    one, other = open_index(path), open_index(path)
    with one._writing(), pytest.raises(BlockingIOError, match="another process is writing"):
        other.remove([5])
    one.remove([5])
    other.remove([6])  # which looks at what the first has done
    assert len(other) == len(open_index(path)) == ROWS - 3


def test_a_full_disk_leaves_the_index_as_it_was(path, monkeypatch):
    index = open_index(path)
    before = content(path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("st_dimreduce.codes.segments.save_array", full)
    with pytest.raises(OSError, match="No space left on device"):
        index.add(quantize(vectors(5)[:, :K], "int2"))
    monkeypatch.undo()
    assert {name: held for name, held in content(path).items() if name != "writer.lock"} == {
        name: held for name, held in before.items() if name != "writer.lock"
    }
    assert len(index) == len(open_index(path)) == ROWS - 1
    index.add(quantize(vectors(5)[:, :K], "int2"))
    assert len(index) == ROWS + 4


def test_a_build_goes_on_when_the_disk_has_space_again(disk, tmp_path):
    np.save(tmp_path / "x.npy", vectors(20_000))
    out = disk.path / "out"
    for pages in (4, 60, 150):
        disk.leave(pages)
        with pytest.raises(OSError, match=r"could not be written .*: free some space there and call again") as caught:
            build_index(tmp_path / "x.npy", HEAD, out, cells=8)
        assert "\n" not in str(caught.value)
        assert not out.exists()
    disk.remount("size=16m")
    build_index(tmp_path / "x.npy", HEAD, out, cells=8)
    assert [path.name for path in disk.path.iterdir()] == ["out"]
    build_index(tmp_path / "x.npy", HEAD, tmp_path / "whole", cells=8)
    assert content(out) == content(tmp_path / "whole")
