"""What replaces something: the old or the new is there at every moment, safe on the disk, as private as before."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import traceback

import numpy as np
import pytest
from filelock import Timeout
from tqdm import tqdm

from st_dimreduce import Codes, Head, Precision, Summary, files
from st_dimreduce.codes.origin import Origin
from st_dimreduce.files import exclusive_run, lock, new_file, new_folder
from st_dimreduce.vectors import sinks
from st_dimreduce.vectors.reduce import transform_file
from tests.helpers.disk import content

HEAD = Head(np.eye(4, 8))
X = np.random.default_rng(0).standard_normal((5000, 8)).astype(np.float32)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """512 rows a part, ten parts."""
    monkeypatch.setattr("st_dimreduce.vectors.batches.BATCH_BYTES", 64 * 4 * 8)


def write(folder, word, overwrite=True):
    with new_folder(folder, overwrite) as new:
        for name in ("modules.json", "one", "two"):
            (new / name).write_text(word)


def words(folder):
    return {path.read_text() for path in folder.iterdir()}


class Interrupts:
    """Presses Ctrl-C at the given instruction, counted over the functions that put a folder in its place."""

    FUNCTIONS = ("new_folder", "put_in_place", "give_back", "_work_folder")

    def __init__(self, number):
        self.left = number

    def __call__(self, frame, event, _):
        code = frame.f_code
        if code.co_filename != files.__file__ or code.co_name not in self.FUNCTIONS:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
        return self


def test_ctrl_c_at_any_instruction_leaves_the_old_or_the_new(tmp_path):
    folder, seen = tmp_path / "model", set()
    for number in range(1, 100_000):
        write(folder, "old")
        trace = sys.gettrace()
        try:
            interrupts = Interrupts(number)
            sys.settrace(interrupts)
            write(folder, "new")
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            sys.settrace(trace)
        left = words(folder)
        assert left in ({"old"}, {"new"}), f"at instruction {number} of files.py"
        seen |= left
        for path in tmp_path.glob(".model.*"):
            os.utime(path, (0, 0))
    assert interrupts.left > 0
    assert number > 200
    assert seen == {"old", "new"}
    write(folder, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.wings("files.py", "vectors")
@pytest.mark.parametrize("kind", ["model", "sink"])
def test_ctrl_c_at_three_hundred_moments(kind, tmp_path):
    """Real signals, whose handlers run between any two instructions."""
    target = tmp_path / kind

    def replace():
        if kind == "model":
            write(target, "word")
        else:
            transform_file(HEAD, X[:9], target, overwrite=True)

    replace()
    wanted, rng = content(target), random.Random(0)  # noqa: S311, no secret
    for moment in range(300):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a child stopped outside its try would go on testing
        child = os.fork()
        if not child:
            try:
                tqdm.set_lock(threading.RLock())  # its own is one with that of the next child, and may stay held
                signal.signal(signal.SIGINT, signal.default_int_handler)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
                while True:
                    replace()
            except BaseException as error:
                # Interrupted between closing a folder and returning, Python's own rmtree closes it again and fails.
                stopped = isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)
                if not stopped:
                    traceback.print_exc()
                os._exit(not stopped)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        time.sleep(0.01 + rng.random() / 100)
        os.kill(child, signal.SIGINT)
        while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):  # Python drops it in a finaliser: press again
            time.sleep(0.05)
            os.kill(child, signal.SIGINT)
        assert ended[1] == 0
        assert content(target) == wanted, f"at moment {moment}"


def test_permissions_stay_and_new_ones_are_as_everywhere(tmp_path):
    def mode(path):
        return oct(stat.S_IMODE(path.stat().st_mode))

    mask = os.umask(0o027)
    try:
        HEAD.save(tmp_path / "head")
        Summary.of(X).save(tmp_path / "summary")
        transform_file(HEAD, X, tmp_path / "x.npy")
        transform_file(HEAD, X, tmp_path / "x")
    finally:
        os.umask(mask)
    weights = tmp_path / "head" / "model.safetensors"
    made = [tmp_path / "head", tmp_path / "x", weights, *(tmp_path / name for name in ("summary", "x.npy"))]
    assert [mode(path) for path in made] == ["0o750", "0o750", "0o640", "0o640", "0o640"]
    for path in made:
        path.chmod(0o700 if path.is_dir() else 0o600)
    (tmp_path / "head" / "config.json").chmod(0o644)
    HEAD.save(tmp_path / "head", overwrite=True)
    Summary.of(X).save(tmp_path / "summary")
    transform_file(HEAD, X, tmp_path / "x.npy", overwrite=True)
    transform_file(HEAD, X, tmp_path / "x", overwrite=True)
    assert [mode(path) for path in made] == ["0o700", "0o700", "0o600", "0o600", "0o600"]
    assert mode(tmp_path / "head" / "config.json") == "0o644"


def test_permissions_are_not_taken_from_where_a_link_leads(tmp_path):
    program = tmp_path / "program"
    program.touch()
    program.chmod(0o4755)
    write(tmp_path / "model", "old")
    (tmp_path / "model" / "one").unlink()
    (tmp_path / "model" / "one").symlink_to(program)
    (tmp_path / "model" / "two").chmod(0o4755)
    write(tmp_path / "model", "new")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert modes["one"] & 0o111 == 0
    assert modes["two"] == 0o755, "and no program of its owner's comes of it"


def test_a_device_or_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/null", tmp_path / "pipe", tmp_path):
        with pytest.raises(FileExistsError, match="exists and is not a file"):
            Summary.of(X).save(path)


def test_a_file_that_appears_before_the_target_gets_its_name_stays(tmp_path, monkeypatch):
    place = sinks._place

    def late(*arguments):
        (tmp_path / "x.npy").write_text("theirs")
        place(*arguments)

    monkeypatch.setattr(sinks, "_place", late)
    with pytest.raises(FileExistsError, match="has appeared meanwhile"):
        transform_file(HEAD, X, tmp_path / "x.npy")
    assert (tmp_path / "x.npy").read_text() == "theirs"


def test_what_was_moved_aside_a_moment_ago_is_given_back_too(tmp_path):
    """Where two folders are exchanged in two steps, a kill between them may be a second ago."""
    work = tmp_path / ".model.12345678"
    for folder in (work, work / "new", work / "old"):
        folder.mkdir(0o700)
    (work / "st_dimreduce.lock").touch()
    (work / "old" / "modules.json").write_text("old")
    with pytest.raises(FileExistsError, match=r"exists: choose another folder"):
        write(tmp_path / "model", "new", overwrite=False)
    assert words(tmp_path / "model") == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "far").mkdir()
    for name in ("x.npy", "summary"):
        (tmp_path / name).symlink_to(tmp_path / "far" / name)
    for _ in range(2):
        done = transform_file(HEAD, X, tmp_path / "x.npy", overwrite=True)
        Summary.of(X).save(tmp_path / "summary")
        assert done.path == tmp_path / "x.npy"
        assert (tmp_path / "x.npy").is_symlink()
        assert (tmp_path / "summary").is_symlink()
        assert sorted(path.name for path in (tmp_path / "far").iterdir()) == ["summary", "x.npy", "x.npy.codes.json"]
    assert np.load(tmp_path / "far" / "x.npy").shape == (len(X), 4)


@pytest.mark.parametrize("refusal", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
@pytest.mark.filterwarnings("ignore")
def test_without_locks_one_run_at_a_time_all_the_same(refusal, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with lock(tmp_path / "lock"), pytest.raises(Timeout), lock(tmp_path / "lock"):
        raise AssertionError("held twice")
    with lock(tmp_path / "lock"):
        pass
    with exclusive_run(tmp_path / "x.npy"), pytest.raises(BlockingIOError, match="another run is writing"):
        transform_file(HEAD, X, tmp_path / "x.npy")
    transform_file(HEAD, X, tmp_path / "x.npy")
    assert {path.name for path in tmp_path.iterdir()} - {"lock"} == {"x.npy", "x.npy.codes.json"}


@pytest.mark.filterwarnings("ignore")
def test_without_locks_a_killed_run_holds_nobody_up(tmp_path, monkeypatch):
    code = "import os, sys, filelock as f; lock = f.SoftFileLock(sys.argv[1]); lock.acquire(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, tmp_path / ".x.npy.lock.exclusive"], check=False, timeout=60)
    assert (tmp_path / ".x.npy.lock.exclusive").exists()

    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    transform_file(HEAD, X, tmp_path / "x.npy")
    assert {path.name for path in tmp_path.iterdir()} == {"x.npy", "x.npy.codes.json"}


@pytest.mark.parametrize("name", ["new/codes.npy", "job.json.new", "new/codes.json"])
@pytest.mark.parametrize("theirs", ["folder", "mode", "link"])
def test_what_others_may_have_put_there_is_not_followed(name, theirs, tmp_path):
    """In a folder that others write to, as a shared scratch folder is."""
    source, sink, victim = tmp_path / "x.npy", tmp_path / "out" / "sink.npy", tmp_path / "victim"
    np.save(source, X)
    sink.parent.mkdir()
    victim.write_text("precious")
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sinks, "_place", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        transform_file(HEAD, source, sink)
    parts = sink.parent / ".sink.npy.parts"
    assert oct(stat.S_IMODE(parts.stat().st_mode)) == "0o700"
    (parts / name).unlink(missing_ok=True)
    (parts / name).symlink_to(victim)
    if theirs == "link":
        parts.rename(tmp_path / "elsewhere")
        parts.symlink_to(tmp_path / "elsewhere")
    elif theirs == "mode":
        parts.chmod(0o777)
    elif os.geteuid() == 0:
        os.chown(parts, 1234, 1234)
    else:
        pytest.skip("only the superuser can give a folder away")
    with pytest.raises(PermissionError, match=r"is in the way, and others may have written to it: remove it"):
        transform_file(HEAD, source, sink)
    assert victim.read_text() == "precious"


class Device:
    """An ext4 file system whose disk loses power: what was not flushed is lost."""

    def __init__(self, folder):
        self.image, self.place, self.kept = folder / "image", folder / "mounted", folder / "kept"
        self.place.mkdir()
        with self.image.open("wb") as file:
            file.truncate(64 << 20)
        self._run("mkfs.ext4", "-q", "-F", str(self.image))

    def _run(self, *command):
        subprocess.run(command, check=True, capture_output=True, text=True)

    def mount(self):
        self._run("mount", "-o", "loop", str(self.image), str(self.place))

    def unmount(self):
        subprocess.run(["umount", "-l", str(self.place)], check=False, capture_output=True)

    def lose_power(self):
        """Go on from what the disk itself holds at this moment."""
        shutil.copyfile(self.image, self.kept)
        self.unmount()
        for _ in range(100):
            used = subprocess.run(["losetup", "-a"], check=True, capture_output=True, text=True).stdout
            if str(self.image) not in used:
                break
            time.sleep(0.05)
        shutil.copyfile(self.kept, self.image)
        self.mount()


@pytest.fixture
def device(tmp_path):
    try:
        made = Device(tmp_path)
        made.mount()
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    yield made
    made.unmount()


def test_a_power_failure_after_success_spares_what_was_written(device):
    place = device.place

    def everything(word, rows):
        write(place / "model", word)
        HEAD.with_record(method=word).save(place / "head", overwrite=True)
        with new_file(place / "file") as file:
            file.write_text(word)
        transform_file(HEAD, X[:rows], place / "x.npy", overwrite=True)
        transform_file(HEAD, X[:rows], place / "x", overwrite=True)

    for word, rows in (("old", 1000), ("new", 2000)):
        everything(word, rows)
        device.lose_power()
        assert words(place / "model") == {word}
        assert Head.load(place / "head").record.method == word
        assert (place / "file").read_text() == word
        assert np.load(place / "x.npy").shape == (rows, 4)
        assert sum(len(np.load(part)) for part in (place / "x").glob("*.npy")) == rows
        for sink in ("x", "x.npy"):
            assert Codes.load(place / sink).origin == Origin(Precision.FLOAT32, 4, HEAD.fingerprint)


def test_a_power_failure_during_a_run_costs_no_more_than_a_part(device, tmp_path):
    source, sink = tmp_path / "x.npy", device.place / "sink.npy"
    np.save(source, X)
    os.sync()
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sinks, "_place", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        transform_file(HEAD, source, sink)
    device.lose_power()
    job = json.loads((device.place / ".sink.npy.parts" / "job.json").read_text())
    assert job["done"]["rows"] >= len(X) - 512
    transform_file(HEAD, source, sink, overwrite=True)
    assert np.allclose(np.load(sink), HEAD.transform(X), atol=1e-6)


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".x.npy.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=r"\.x\.npy\.lock"):
        transform_file(HEAD, X, tmp_path / "x.npy")
    assert (tmp_path / "victim").read_text() == "precious"
