"""Publishing, from the real client to a Hub on loopback and back through a stock SentenceTransformer."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing

import numpy as np
import pytest
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.tiny import SENTENCES

KILLS = int(os.environ.get("ST_DIMREDUCE_KILLS", "6"))  # random moments; 50 for a thorough look


PUBLISHER = """
import json, sys
from pathlib import Path
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from st_dimreduce import DimReduce, Head, publish, reduce_model
from huggingface_hub import ModelCard
from tests.helpers.tiny import SENTENCES
from transformers import AutoTokenizer
root, said = Path(sys.argv[1]), {}
first = publish(root / "small", "user/tiny")
said["first"] = vars(first)
said["again"] = publish(root / "small", "user/tiny").commit
said["branch"] = vars(publish(str(root / "smaller"), "user/tiny", revision="four/dims"))
publish(root / "minilm", "user/minilm")
publish(root / "small", "user/hidden", private=True)
base = SentenceTransformer(str(root / "base"), device="cpu")
stock = reduce_model(base, SENTENCES, 8)
publish(stock, "user/from-memory", figures={"documents": 2, "queries": 2, "rows": []})
stock.push_to_hub("user/pushed")
trainable = Head.from_model(stock).attach(base, trainable=True)
trainable.push_to_hub("user/pushed-trainable")
plugged = SentenceTransformer("user/pushed-trainable", trust_remote_code=True, device="cpu")
said["plugged"] = [[type(module).__name__ for module in plugged], plugged.encode(SENTENCES[:3]).tolist()]
said["plugged"].append(trainable.encode(SENTENCES[:3]).tolist())
head = Head.from_model(stock).with_record(precision="int4")
static = SentenceTransformer(modules=[StaticEmbedding(AutoTokenizer.from_pretrained(root / "base"), embedding_dim=32)])
publish(head.attach(base), "user/int4")
publish(head.attach(static), "user/static-int4")
head.attach(base).push_to_hub("user/pushed-int4")
head.attach(base, trainable=True).push_to_hub("user/trainable-int4")
for name in ("user/int4", "user/static-int4"):
    SentenceTransformer(name, device="cpu").push_to_hub(name + "-again")
said["norms"] = {name: DimReduce.from_model(model).record.mean_norm for name, model in (
    ("user/int4", head.attach(base)), ("user/static-int4", head.attach(static))
)}
said["records"] = {}
for name in ("int4", "static-int4", "pushed-int4", "trainable-int4", "int4-again", "static-int4-again"):
    trust = {"trust_remote_code": True} if "trainable" in name else {}
    model = SentenceTransformer("user/" + name, device="cpu", **trust)
    heads = Head.load("user/" + name), DimReduce.from_model(model)
    said["records"][name] = [[head.precision, head.record.mean_norm] for head in heads]
ModelCard(first.card).validate()
try:
    ModelCard("---\\nlicense: nobody-knows\\n---\\n").validate()
except ValueError as error:
    said["invalid"] = str(error)
print(json.dumps(said))
"""

CONSUMER = """
import json, sys
sys.modules["st_dimreduce"] = None  # an import of it fails
from sentence_transformers import SentenceTransformer
said, texts = {}, json.loads(sys.argv[1])
def load(name, **options):
    try:
        said[" ".join([name, *options])] = SentenceTransformer(name, device="cpu", **options).encode(texts).tolist()
    except Exception as error:
        said[" ".join([name, *options])] = str(error)
load("user/tiny")
load("user/tiny", revision="four/dims")
load("user/minilm")
load("user/from-memory")
load("user/pushed")
load("user/pushed-trainable")
load("user/hidden")
load("user/hidden", token="hf_writer")
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def published(hub, folders, tmp_path_factory):
    return hub.run_json(tmp_path_factory.mktemp("publisher"), PUBLISHER, folders)


@pytest.fixture(scope="module")
def consumed(hub, published, tmp_path_factory):
    """What a process without this package loads by name, into a fresh cache, without a token."""
    texts = json.dumps(SENTENCES[:3])
    return hub.run_json(tmp_path_factory.mktemp("fresh"), CONSUMER, texts, token=None)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("user/tiny", "small"),
        ("user/tiny revision", "smaller"),
        ("user/minilm", "minilm"),
        ("user/from-memory", "small"),
        ("user/pushed", "small"),
        ("user/hidden token", "small"),
    ],
)
def test_a_stock_model_loads_it_by_name_and_gives_the_same_vectors(consumed, folders, name, folder):
    there = SentenceTransformer(str(folders / folder), device="cpu").encode(SENTENCES[:3])
    assert np.array_equal(np.array(consumed[name], np.float32), there), consumed[name]


def test_what_is_private_is_not_seen_without_a_token(consumed, hub):
    assert "user/hidden" in consumed["user/hidden"]
    assert hub.repos["user/hidden"].private
    assert not hub.repos["user/tiny"].private


def test_a_trainable_model_pushed_as_it_is_needs_the_flag(consumed, published):
    assert "trust_remote_code" in consumed["user/pushed-trainable"]
    names, loaded, pushed = published["plugged"]
    assert names == ["Transformer", "Pooling", "DimReduce", "Normalize"]
    assert loaded == pushed


def test_the_record_comes_back(published):
    for name, found in published["records"].items():
        norm = published["norms"]["user/static-int4" if "static" in name else "user/int4"]
        assert found == [["int4", norm]] * 2, name


def test_says_what_was_published_and_does_not_repeat_itself(published, hub):
    first, branch = published["first"], published["branch"]
    assert first["commit"] == published["again"] == hub.repos["user/tiny"].branches["main"]
    assert (first["repo_id"], first["revision"], first["url"]) == ("user/tiny", "main", f"{hub.url}/user/tiny")
    there = {name: len(content) for name, content in hub.files("user/tiny").items() if name != ".gitattributes"}
    assert first["files"] == there
    assert first["card"] == hub.files("user/tiny")["README.md"].decode()
    assert branch["url"] == f"{hub.url}/user/tiny/tree/four/dims"
    assert branch["commit"] == hub.repos["user/tiny"].branches["four/dims"] != first["commit"]


def test_the_card_on_the_hub_is_this_very_models(published, hub, tmp_path):
    for repo_id, size in (("user/minilm", 128), ("user/tiny", 8)):
        files = hub.files(repo_id)
        card = ModelCard(files["README.md"].decode())
        assert files["quality.png"].startswith(b"\x89PNG")
        assert "](quality.png)" in card.text
        assert f'SentenceTransformer("{repo_id}")' in card.text
        figures = json.loads(files["st_dimreduce.json"])["figures"]["rows"][1]
        overlap = next(result for result in card.data.eval_results if result.metric_type == "neighbour_overlap@10")
        assert overlap.metric_value == round(figures["overlap"], 4)
        assert f"{size} bytes per vector" in overlap.metric_name
    assert ModelCard(hub.files("user/minilm")["README.md"].decode()).data.license == "apache-2.0"
    assert "license" in published["invalid"], "the Hub's own check must be able to fail"


def test_the_client_asked_nothing_that_the_hub_does_not_know(published, consumed, hub):
    assert hub.unknown == []


@pytest.mark.parametrize("moment", ["upload", "commit"])
def test_ctrl_c_leaves_what_was_there_and_the_same_command_completes_it(moment, folders, tmp_path):
    with closing(LoopbackHub()) as hub:
        once = threading.Lock()  # several files are uploaded at a time

        def run():
            command = [sys.executable, "-c", "from st_dimreduce.cli import app; app()"]
            command += ["publish", str(folders / "small"), "user/stopped"]
            return subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=hub.environment(tmp_path)
            )

        def press():
            if once.acquire(blocking=False):
                hub.on_request = hub.on_upload = None
                process.send_signal(signal.SIGINT)
                time.sleep(1)

        if moment == "upload":
            hub.on_upload = press
        else:
            hub.on_request = lambda method, path: press() if "/commit/" in path else None
        process = run()
        _, said = process.communicate(timeout=120)
        assert process.returncode == 130, said
        assert said.splitlines()[-1] == "interrupted: no output is left half written, call again to start anew"
        assert "Traceback" not in said
        there = set(hub.files("user/stopped"))
        process = run()
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        whole = set(hub.files("user/stopped"))
        assert "model.safetensors" in whole
        # A commit that was already sent may be carried out by the Hub.
        assert there == {".gitattributes"} or (moment == "commit" and there == whole)


# Publishes in a process of its own, as often as it is told, so that it can be killed without starting Python anew.
FORKER = """
import os, sys
import matplotlib.backends.backend_agg  # once, not in each child
from huggingface_hub.utils import disable_progress_bars
from st_dimreduce import publish
disable_progress_bars()
print("ready", flush=True)
for folder in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            publish(folder.strip(), "user/killed")
            os._exit(0)
        except BaseException as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(1)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def test_killed_at_any_moment_it_leaves_the_old_model_or_the_new_one(folders, tmp_path):
    hub = LoopbackHub()
    forker = subprocess.Popen(
        [sys.executable, "-c", FORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=hub.environment(tmp_path, OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false"),
    )

    def run(folder, on_request=None, on_upload=None, delay=None):
        """Publish, killed where a hook says so or after a delay; returns the exit status."""
        hub.objects.clear()  # so that everything is uploaded each time
        forker.stdin.write(f"{folder}\n")
        forker.stdin.flush()
        pid = int(forker.stdout.readline())
        kill = lambda: os.kill(pid, signal.SIGKILL)  # noqa: E731
        hub.on_request = on_request and (lambda *_: kill() if on_request() else None)
        hub.on_upload = on_upload and kill
        timer = delay and threading.Timer(delay, kill)
        if timer:
            timer.start()
        status = int(forker.stdout.readline())
        if timer:
            timer.cancel()
        hub.on_request = hub.on_upload = None
        return status

    try:
        assert forker.stdout.readline() == "ready\n"
        whole = {}
        for name in ("small", "smaller"):
            start = time.monotonic()
            assert run(folders / name) == 0
            took = time.monotonic() - start
            whole[name] = hub.files("user/killed")
        assert whole["small"].keys() == whole["smaller"].keys() == {".gitattributes", *whole["small"]}
        requests = len(hub.requests) // 2
        assert requests > 8
        counters = [iter(range(number, -1, -1)) for number in range(requests)]
        moments = [{"on_request": lambda left=left: next(left, 1) == 0} for left in counters]
        chance = random.Random()  # noqa: S311, no secret
        moments += [{"on_upload": True}]
        moments += [{"delay": chance.uniform(0.01, took)} for _ in range(KILLS)]
        killed = 0
        for moment in moments:
            there = hub.files("user/killed")
            new = "small" if there == whole["smaller"] else "smaller"
            killed += run(folders / new, **moment) == -signal.SIGKILL
            assert hub.files("user/killed") in (there, whole[new]), moment
        assert killed >= requests
        for name in ("small", "smaller"):
            assert run(folders / name) == 0
            assert hub.files("user/killed") == whole[name]
    finally:
        forker.stdin.close()
        forker.wait(timeout=60)
        hub.close()
