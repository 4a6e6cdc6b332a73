"""A process that has imported everything and forks for each moment at which a run is killed with signal 9.

A start takes seconds, a run a fraction of one. Run as ``python -m tests.helpers.killing HOW WHAT FOLDER TEXT...``:
HOW is ``times`` (moments drawn over the duration of a run) or ``events`` (just before each change of the disk), WHAT
some of JOBS with commas between them, FOLDER holds ``source/base``, a model. After each kill it checks what is there,
and lets the same run go to its end. Prints for each of JOBS how many were killed.
"""

from __future__ import annotations

import faulthandler
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tqdm import tqdm

from st_dimreduce import Head, reduce_model, save_portable
from st_dimreduce.codes.origin import beside, origin_beside
from st_dimreduce.models.load import load_model
from tests.helpers.disk import content
from tests.helpers.resuming import transform

MOMENTS = 50
LONGEST = 900  # seconds until it says where it hangs: a quiet machine takes a fiftieth
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree"}
MEASURED = {"st_dimreduce.json", "README.md"}  # they hold seconds, which differ from run to run


class Models:
    """A model folder that is replaced by another model."""

    def __init__(self, folder, texts, replacing=True):
        self.target, self.texts, self.replacing = folder / "target", texts, replacing
        self.base = folder.parent / "source" / "base"
        base = load_model(self.base)
        self.before, self.after = (reduce_model(base, texts, size) for size in (8, 4))
        (self.base.parent / "texts.txt").write_text("\n".join(texts))
        self.begin()
        self.good = [content(self.target)]
        self.run()
        self.good.append(content(self.target))
        self.wanted = SentenceTransformer(str(self.target), device="cpu").encode(texts[:8])

    def begin(self):
        shutil.rmtree(self.target, ignore_errors=True)
        if self.replacing:
            save_portable(self.before, self.target)

    def run(self):
        save_portable(self.after, self.target, overwrite=self.replacing)

    def look(self):
        found = content(self.target)
        if found in self.good:
            return
        if found is None:  # between two renames what is replaced has no name, but is there
            aside = [content(path) for path in self.target.parent.glob(".target.*/old")]
            assert not self.replacing or self.good[0] in aside, "what was there is lost"
            return
        assert found.keys() == self.good[1].keys(), f"half a folder: {sorted(found)}"
        differing = {name for name in found if found[name] != self.good[1][name]}
        assert differing <= MEASURED, f"wrong: {differing}"
        again = SentenceTransformer(str(self.target), device="cpu").encode(self.texts[:8])
        assert np.array_equal(again, self.wanted), "it loads but is wrong"

    def finish(self):
        if not self.replacing:  # the run may have come to its end
            shutil.rmtree(self.target, ignore_errors=True)
        self.run()
        self.look()
        assert self.target.exists()


class Command(Models):
    """The same, as a user does it."""

    def run(self):
        from st_dimreduce.cli import app

        files = [str(self.base), str(self.base.parent / "texts.txt"), "--output", str(self.target)]
        assert not app(["reduce", *files, "--dim", "4", "--force", "--quiet"], standalone_mode=False)


class Vectors:
    """A target of codes, made from nothing or in another's place."""

    def __init__(self, folder, texts, name="target.npy", rows=20_000, parts=10, replacing=False):
        rng = np.random.default_rng(0)
        self.source, self.replacing = folder.parent / "source" / "x.npy", replacing
        np.save(self.source, rng.standard_normal((rows, 32)).astype(np.float32))
        self.head = Head(rng.standard_normal((8, 32)) / 8)
        self.batch_bytes = 4 * 32 * rows // 8 // parts
        self.target, self.before = folder / name, folder.parent / f"before-{name}"
        self.good, self.origins = [None], [None]
        if replacing:
            transform(self.source, self.before, "binary", self.head, self.batch_bytes)
            self.good, self.origins = [content(self.before)], [origin_beside(self.before)]
        self.begin()
        self.run()
        self.good.append(content(self.target))
        self.origins.append(origin_beside(self.target))
        assert self.target.suffix == ".parquet" or self.origins[1].precision == "int4"

    def begin(self):
        self.remove()
        if self.before.is_dir():
            shutil.copytree(self.before, self.target)
        elif self.replacing:
            shutil.copy(self.before, self.target)
            if self.target.suffix == ".npy":  # a table says in itself what made its codes
                shutil.copy(beside(self.before), beside(self.target))

    def remove(self):
        if self.target.is_dir():
            shutil.rmtree(self.target)
        self.target.unlink(missing_ok=True)
        beside(self.target).unlink(missing_ok=True)

    def run(self):
        transform(self.source, self.target, "int4", self.head, self.batch_bytes, overwrite=self.replacing)

    def look(self):
        found = content(self.target)
        if found is None and self.replacing and self.target.suffix == "":  # the moment between two renames
            found = content(self.target.parent / f".{self.target.name}.parts" / "old")
        assert found in self.good, "it is neither what was there nor what was asked for"
        made_by = origin_beside(self.target)
        assert made_by in (None, self.origins[self.good.index(found)]), "codes are said to be of another head"

    def finish(self):
        if not self.replacing:  # the run may have come to its end
            self.remove()
        self.run()
        assert content(self.target) == self.good[1], "not the bytes of a run that was not killed"
        assert origin_beside(self.target) == self.origins[1], "it is not written what made the codes"
        there, wanted = set(self.target.parent.rglob("*")), {self.target, beside(self.target)}
        assert {path for path in there if self.target not in path.parents} <= wanted, "something is left"


JOBS = {
    "save_portable": Models,
    "save_portable to a new folder": partial(Models, replacing=False),
    "reduce": Command,
    "transform": Vectors,
    "transform in another's place": partial(Vectors, rows=320, parts=4, replacing=True),
    "transform to a table": partial(Vectors, rows=320, parts=4, replacing=True, name="target.parquet"),
    "transform to a folder": partial(Vectors, rows=320, parts=4, replacing=True, name="target"),
}


def forked(job, prepare=lambda: None):
    child = os.fork()
    if child:
        return child
    try:
        prepare()
        job.run()
        os._exit(0)
    except BaseException:  # said here: nobody above may see it
        traceback.print_exc()
        os._exit(1)


def ended(child):
    """Wait for a child; whether it was killed."""
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), f"a run that was not killed failed: status {status}"
    return status == signal.SIGKILL


def at_times(job, rng):
    job.begin()
    begin = time.perf_counter()
    assert not ended(forked(job))
    length = time.perf_counter() - begin
    while True:  # as fast as the machine is now: a run that ends before its moment is no moment
        job.begin()
        begin = time.perf_counter()
        child = forked(job)
        time.sleep(rng.random() * length)
        took = time.perf_counter() - begin
        os.kill(child, signal.SIGKILL)
        if ended(child):
            yield took
        else:
            length = (length + took) / 2


def at_events(job, place):
    for number in range(1, 1000):
        left = [number]

        def count(event, arguments, left=left):
            if event in CHANGES or (event == "open" and str(arguments[0]).startswith(place)):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)

        job.begin()
        if not ended(forked(job, partial(sys.addaudithook, count))):
            return
        yield number
    raise AssertionError("a run of a thousand changes")


def main(how, names, folder, *texts):
    faulthandler.dump_traceback_later(LONGEST, exit=True)
    torch.set_num_threads(1)
    # The lock is one with the children's by default, and one that was killed while it held it never gives it back.
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    for name in names.split(","):
        (made := Path(folder, name)).mkdir()
        print(name, kill(how, JOBS[name](made, texts), made), flush=True)  # noqa: T201


def kill(how, job, made):
    before, done, rng = content(made.parent / "source"), 0, random.Random(0)  # noqa: S311, no secret
    for moment in at_times(job, rng) if how == "times" else at_events(job, str(made)):
        try:
            job.look()
            if type(job) is not Command or done % 5 == 0:  # a run takes long; what it would find, the next kill finds
                job.finish()
            assert content(made.parent / "source") == before, "a source changed"
        except Exception as error:
            there = sorted(str(path.relative_to(made)) for path in made.rglob("*"))
            raise AssertionError(f"killed at {moment}; there is {there}") from error
        done += 1
        if how == "times" and done == MOMENTS:
            break
    job.finish()
    return done


if __name__ == "__main__":
    main(*sys.argv[1:])
