"""Several at once: threads, processes, and runs that meet at one place."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from st_dimreduce import Head, reduce_model, save_portable
from st_dimreduce.files import exclusive_run
from st_dimreduce.vectors.reduce import transform_file
from tests.helpers.tiny import SENTENCES

X = np.random.default_rng(0).standard_normal((4000, 32)).astype(np.float32)
HEAD = Head(np.random.default_rng(1).standard_normal((8, 32)) / 8)


def test_one_head_in_eight_threads():
    alone = HEAD.forward(X)
    with ThreadPoolExecutor(8) as pool:
        for together in pool.map(lambda _: HEAD.forward(X), range(32)):
            assert np.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("trainable", [False, True])
def test_a_reduced_model_encodes_in_a_pool_of_processes(trainable, tiny):
    model = Head.from_model(reduce_model(tiny, SENTENCES, 8)).attach(tiny, trainable=trainable)
    pool = model.start_multi_process_pool(["cpu", "cpu"])
    try:
        together = model.encode(SENTENCES, pool=pool, chunk_size=20)
    finally:
        model.stop_multi_process_pool(pool)
    assert np.allclose(together, model.encode(SENTENCES), atol=1e-6)


def test_two_models_saved_into_one_folder_at_once_leave_one_whole(tiny, tmp_path):
    models = [reduce_model(tiny, SENTENCES, size) for size in (8, 4)]
    start, errors = threading.Barrier(2), []

    def save(model):
        start.wait()
        try:
            save_portable(model, tmp_path / "p")
        except FileExistsError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=save, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 1, "one wins, the other is told"
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    winner = SentenceTransformer(str(tmp_path / "p"), device="cpu")
    model = models[winner.get_embedding_dimension() == 4]
    assert np.array_equal(winner.encode(SENTENCES), model.encode(SENTENCES))


def test_a_folder_that_appears_while_one_is_made_stays(tiny, tmp_path, monkeypatch):
    one, two = (reduce_model(tiny, SENTENCES, size) for size in (8, 4))

    def late(*_, **__):
        monkeypatch.undo()
        save_portable(one, tmp_path / "p")
        return "card"

    monkeypatch.setattr("st_dimreduce.portable.save.model_card", late)
    with pytest.raises(FileExistsError, match="has appeared meanwhile"):
        save_portable(two, tmp_path / "p")
    assert SentenceTransformer(str(tmp_path / "p"), device="cpu").get_embedding_dimension() == 8


def hold(sink, held, leave):
    with exclusive_run(sink):
        held.set()
        leave.wait(60)


@pytest.mark.parametrize("name", ["sink.npy", "sink"])
def test_a_second_run_into_one_sink_is_told_to_wait(tmp_path, name):
    context = multiprocessing.get_context("spawn")
    held, leave = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / name, held, leave))
    other.start()
    try:
        assert held.wait(60)
        with pytest.raises(BlockingIOError, match="another run is writing"):
            transform_file(HEAD, X, tmp_path / name)
        assert not (tmp_path / name).exists()
    finally:
        leave.set()
        other.join(60)
    transform_file(HEAD, X, tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} - {f"{name}.codes.json"} == {name}, "no lock is left"


def test_a_run_that_was_killed_holds_nobody_up(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from st_dimreduce.files import exclusive_run\n"
        "with exclusive_run(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "sink.npy")], timeout=120, check=False)
    assert done.returncode == -9
    assert (tmp_path / ".sink.npy.lock").exists()
    transform_file(HEAD, X, tmp_path / "sink.npy")
    assert {path.name for path in tmp_path.iterdir()} == {"sink.npy", "sink.npy.codes.json"}


@pytest.mark.parametrize("refusal", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_written_all_the_same(tiny, tmp_path, monkeypatch, refusal):
    def no_locks(*_):
        raise OSError(refusal, os.strerror(refusal))

    monkeypatch.setattr("fcntl.flock", no_locks)
    reduced = reduce_model(tiny, SENTENCES, 8)
    left = tmp_path / ".p.abcdefgh"
    left.mkdir()
    (left / "st_dimreduce.lock").touch()
    os.utime(left / "st_dimreduce.lock", (0, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a lock is soft there
        save_portable(reduced, tmp_path / "p")
        transform_file(HEAD, X, tmp_path / "x.npy")
    assert SentenceTransformer(str(tmp_path / "p"), device="cpu").get_embedding_dimension() == 8
    assert np.load(tmp_path / "x.npy").shape == (4000, 8)
    names = {path.name for path in tmp_path.iterdir()}
    assert names - {left.name} == {"p", "x.npy", "x.npy.codes.json"}
