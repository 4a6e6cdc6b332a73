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
from st_dimreduce.codes.lists import Lists
from st_dimreduce.codes.manifest import Manifest, _hash

from st_dimreduce import CodeIndex, FitRecord, Head, build_index, open_index, quantize
from st_dimreduce.codes import segments
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
        set_("head", "\udc80"),
        set_("segments.0.files", {"ids.npy": [1, "\udc80"]}),
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


def some_codes(rows, seed):
    return quantize(vectors(rows, seed)[:, :K], "int2")


def test_who_holds_an_index_that_was_built_again_writes_to_the_new_one(path):
    before = open_index(path)
    built = build_index(vectors(2500, 7), HEAD, path, cells=8, overwrite=True)
    built.calibrate()  # as many changes as before
    assert Manifest.read(path).generation == before.manifest.generation
    before.add(some_codes(30, 9))
    assert len(before) == len(open_index(path)) == 2530
    assert np.array_equal(open_index(path).codes([2499]), built.codes([2499]))
    queries = vectors(5, 7)[:, :K]
    assert np.array_equal(before.search(queries, 5)[1], open_index(path).search(queries, 5)[1])


def test_an_index_of_another_head_is_not_taken_for_its_own(path):
    before = open_index(path)
    other = Head(np.eye(K, D, 3, dtype=np.float32), record=HEAD.record)
    build_index(vectors(2500, 7), other, path, cells=8, overwrite=True).calibrate()
    for change in (before.refresh, lambda: before.add(some_codes(30, 9)), lambda: before.remove([5])):
        with pytest.raises(ValueError, match="was replaced by an index that differs in head: open it again"):
            change()
    assert len(before) == ROWS - 1
    assert len(open_index(path, other)) == 2500


def test_an_index_that_is_built_again_during_a_change_is_kept(path, monkeypatch):
    index = open_index(path)
    merged, once = CodeIndex._merged, [1]

    def merge(self, manifest):
        while once:
            once.pop()
            build_index(vectors(2500, 7), HEAD, path, cells=8, overwrite=True)
        return merged(self, manifest)

    monkeypatch.setattr(CodeIndex, "_merged", merge)
    with pytest.raises(ValueError, match="was replaced by another index while this one was changed: open it again"):
        index.add(some_codes(30, 9))
    assert len(open_index(path)) == 2500
    index.add(some_codes(30, 9))
    assert len(open_index(path)) == 2530


def test_ctrl_c_when_a_change_is_written_loses_nothing_later(path, monkeypatch):
    index = open_index(path)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("st_dimreduce.codes.index._Searched", interrupted)
        with pytest.raises(KeyboardInterrupt):
            index.add(some_codes(30, 9))
    index.add(some_codes(20, 8))
    assert len(index) == len(open_index(path)) == ROWS + 49
    assert np.array_equal(index.codes(range(ROWS, ROWS + 50)), np.concatenate([some_codes(30, 9), some_codes(20, 8)]))


def test_a_segment_that_is_merged_while_a_reader_looks_again(path, monkeypatch):
    reader, writer = open_index(path), open_index(path)
    writer.add(some_codes(30, 9))
    before = Manifest.read(path)
    writer.compact()
    read, stale = Manifest.read, [before]
    monkeypatch.setattr(Manifest, "read", lambda path: stale.pop() if stale else read(path))
    assert reader.refresh()
    assert len(reader) == ROWS + 29
    assert not reader.refresh()


def test_an_index_is_opened_however_often_a_writer_is_faster(path, monkeypatch):
    writer, read, looked_into = open_index(path), segments.describe, []

    def describe(file):
        looked_into.append(file.name)
        about = read(file)
        if file.name == "removed-000002.npy" or (file.name.startswith("removed-") and len(looked_into) < 40):
            with monkeypatch.context() as patch:
                patch.setattr(segments, "describe", read)
                if writer.manifest.generation < 8:
                    writer.remove([10 + writer.manifest.generation])
        return about

    monkeypatch.setattr(segments, "describe", describe)
    assert len(open_index(path)) == len(writer) == ROWS - 7
    assert looked_into.count("lists.bin") == 1  # which may be large


def test_a_sum_of_sizes_that_begins_at_zero_again_is_refused(path):
    segment = path / "segment-000000-0"
    sizes = np.array([2**62] * 4 + [0, 0, 0, ROWS])
    np.save(segment / "sizes.npy", sizes)
    length = int(Lists(sizes, 4, True).offsets[-1])
    (segment / "lists.bin").write_bytes(bytes(length))
    rewrite(path, set_file("lists.bin", length))
    with pytest.raises(ValueError, match="holds sizes that no cell can have: the index is damaged"):
        open_index(path, check_hashes=False)


def set_file(name, size):
    def change(written):
        written["segments"][0]["files"][name][0] = size

    return change


def test_an_order_that_leads_out_of_the_segment_is_refused(path):
    file = one(path, "order.npy")
    order = np.load(file)
    for wrong in (len(order), -len(order) - 1, 2**62):
        np.save(file, np.full_like(order, wrong))
        index = open_index(path, check_hashes=False)
        for look in (index.codes, index.remove, lambda ids, index=index: ids[0] in index):
            with pytest.raises(ValueError, match="names vectors that are not there: the index is damaged"):
                look([7])


@pytest.mark.parametrize("entries", [0, 2])
def test_a_graph_with_no_entry_or_several_is_refused(entries, graph, tmp_path):
    shutil.copytree(graph, tmp_path / "index")
    file = one(tmp_path / "index", "entry.npy")
    np.save(file, np.zeros(entries, np.int32))
    rewrite(tmp_path / "index", set_file("entry.npy", file.stat().st_size))
    with pytest.raises(ValueError, match=f"it has {entries} entries, expected 1, the index is damaged"):
        open_index(tmp_path / "index", check_hashes=False)


def test_an_archive_in_place_of_an_array_is_refused(path):
    file = one(path, "ids.npy")
    with file.open("wb") as written:
        np.savez(written, np.arange(3))
    rewrite(path, set_file("ids.npy", file.stat().st_size))
    with pytest.raises(ValueError, match="is an archive: the index is damaged"):
        open_index(path, check_hashes=False)


def test_a_segment_that_is_named_twice_is_refused(path):
    rewrite(path, lambda written: written["segments"].append(written["segments"][0]))
    with pytest.raises(ValueError, match="damaged"):
        open_index(path)


def test_names_whose_ends_are_made_up_are_refused(tmp_path):
    path = tmp_path / "index"
    build_index(vectors(100), HEAD, path, ids=[f"name {row}" for row in range(100)])
    file = one(path, "names-ends.npy")
    ends = np.load(file)
    for place, value in ((3, 2**60), (3, -(2**60)), (0, -1), (99, 2**60), (99, 5)):
        np.save(file, np.where(np.arange(100) == place, value, ends))
        with pytest.raises(ValueError, match=r"does not fit names.npy: the index is damaged"):
            open_index(path, check_hashes=False)
    file.unlink()
    (path / "segment-000000-0" / "names.npy").unlink()

    def change(written):
        for name in ("names.npy", "names-ends.npy"):
            del written["segments"][0]["files"][name]

    rewrite(path, change)
    with pytest.raises(ValueError, match=r"holds other ids than index.json says"):
        open_index(path, check_hashes=False)


def test_no_number_follows_the_largest(path):
    index = open_index(path)
    index.add(some_codes(1, 9), ids=[2**63 - 2])
    index.add(some_codes(1, 8))
    for codes in (some_codes(1, 7), some_codes(5, 7)):
        with pytest.raises(ValueError, match=r"after id 9223372036854775807 no . more follow: give ids"):
            index.add(codes)
    assert len(open_index(path)) == ROWS + 1
    assert np.array_equal(open_index(path).codes([2**63 - 1]), some_codes(1, 8))


def test_what_is_left_of_a_killed_build_may_be_damaged(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", vectors())
    build_index(tmp_path / "x.npy", HEAD, tmp_path / "whole", cells=8)
    work = tmp_path / ".out.building"
    for name in ("codes.npy", "cells.npy", "cells-00000.npy", "job.json"):
        with monkeypatch.context() as patch:
            patch.setattr("st_dimreduce.vectors.index.create", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                build_index(tmp_path / "x.npy", HEAD, tmp_path / "out", cells=8)
        (work / name).write_bytes((work / name).read_bytes()[:-30])
        if name == "job.json":
            with pytest.raises(ValueError, match=r"or start anew with overwrite=True \(--force\)"):
                build_index(tmp_path / "x.npy", HEAD, tmp_path / "out", cells=8)
        build_index(tmp_path / "x.npy", HEAD, tmp_path / "out", cells=8, overwrite=name == "job.json")
        assert content(tmp_path / "out") == content(tmp_path / "whole")
        shutil.rmtree(tmp_path / "out")
        assert not work.exists()


def test_fewer_cells_may_be_chosen_after_too_many(tmp_path):
    np.save(tmp_path / "x.npy", vectors(300))
    with pytest.raises(ValueError, match="cells=400: choose at most 300"):
        build_index(tmp_path / "x.npy", HEAD, tmp_path / "out", cells=400)
    assert len(build_index(tmp_path / "x.npy", HEAD, tmp_path / "out", cells=np.int64(30), seed=np.int64(1))) == 300


def test_a_build_that_came_to_nothing_stands_in_no_ones_way(tmp_path):
    np.save(tmp_path / "x.npy", vectors(300))
    np.save(tmp_path / "bad.npy", vectors(300) * np.nan)
    np.save(tmp_path / "text.npy", np.array(["a"]))
    for name, options in (("text.npy", {}), ("bad.npy", {}), ("x.npy", {"id_column": "a"})):
        with pytest.raises(ValueError, match=r"expected|drop or repair|is no table"):
            build_index(tmp_path / name, HEAD, tmp_path / "out", **options)
        assert not (tmp_path / ".out.building").exists()
    assert len(build_index(tmp_path / "x.npy", HEAD, tmp_path / "out", seed=5)) == 300


def test_a_folder_that_is_gone_is_not_made_again(path):
    index = open_index(path)
    shutil.rmtree(path)
    with pytest.raises(FileNotFoundError, match="is gone: build the index again"):
        index.remove([5])
    assert not path.exists()


FORKED = """
import os, signal, sys, numpy as np
from st_dimreduce import open_index
index, queries = open_index(sys.argv[1]), np.random.default_rng(0).standard_normal((200, 16)).astype(np.float32)
before = index.search(queries, 5)[1]
child = os.fork()
if not child:
    signal.alarm(20)
    for threads in (None, 2):
        assert np.array_equal(index.search(queries, 5, threads=threads)[1], before)
    os._exit(0)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_searches(path):
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", FORKED, str(path)], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "0\n", done.stderr
