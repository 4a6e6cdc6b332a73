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

import numpy as np
import pytest
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

from st_dimreduce import compare, reduce_model, save_portable
from st_dimreduce.hub import publish
from tests.conftest import SENTENCES
from tests.loopback_hub import WRITER, LoopbackHub

KILLS = int(os.environ.get("ST_DIMREDUCE_KILLS", "6"))  # random moments; 50 for a thorough look


@pytest.fixture(scope="module")
def hub():
    server = LoopbackHub()
    yield server
    server.close()


@pytest.fixture(scope="module")
def folders(tiny_path, minilm, tmp_path_factory):
    """Portable folders: two sizes of the tiny model, and MiniLM in 128 dimensions."""
    root = tmp_path_factory.mktemp("folders")
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    tiny = SentenceTransformer(modules=[Transformer(tiny_path), Pooling(32, "mean"), Normalize()], device="cpu")
    tiny.save_pretrained(str(root / "base"))
    for name, base, size in (("small", tiny, 8), ("smaller", tiny, 4), ("minilm", minilm, 128)):
        reduced = reduce_model(base, SENTENCES, size)
        figures = compare(base, reduced, SENTENCES[:40], precision="int8").to_dict()
        save_portable(reduced, root / name, figures=figures)
    return root


PUBLISHER = """
import json, sys
from pathlib import Path
from sentence_transformers import SentenceTransformer
from st_dimreduce import publish, reduce_model
from huggingface_hub import ModelCard
from tests.conftest import SENTENCES
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
reduce_model(base, SENTENCES, 8, trainable=True).push_to_hub("user/pushed-trainable")
plugged = SentenceTransformer("user/pushed-trainable", trust_remote_code=True, device="cpu")
said["plugged"] = [[type(module).__name__ for module in plugged], plugged.encode(SENTENCES[:3]).tolist()]
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
    return json.loads(hub.run(tmp_path_factory.mktemp("publisher"), PUBLISHER, folders).splitlines()[-1])


@pytest.fixture(scope="module")
def consumed(hub, published, tmp_path_factory):
    """What a process that cannot import this package loads by name, into a fresh cache, without a token."""
    texts = json.dumps(SENTENCES[:3])
    return json.loads(hub.run(tmp_path_factory.mktemp("fresh"), CONSUMER, texts, token=None).splitlines()[-1])


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


def test_a_trainable_model_pushed_as_it_is_needs_the_flag(consumed, published, folders):
    assert "trust_remote_code" in consumed["user/pushed-trainable"]
    names, vectors = published["plugged"]
    assert names == ["Transformer", "Pooling", "DimReduce", "Normalize"]
    there = SentenceTransformer(str(folders / "small"), device="cpu").encode(SENTENCES[:3])
    assert np.array_equal(np.array(vectors, np.float32), there)


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
        assert f"{size} bytes a vector" in overlap.metric_name
    assert ModelCard(hub.files("user/minilm")["README.md"].decode()).data.license == "apache-2.0"
    assert "license" in published["invalid"], "the Hub's own check must be able to fail"


def test_the_client_asked_nothing_that_the_hub_does_not_know(published, consumed, hub):
    assert hub.unknown == []


ERRORS = """
import json, os, shutil, sys, time, warnings
from pathlib import Path
from urllib.request import urlopen
import huggingface_hub
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import disable_progress_bars
from typer.testing import CliRunner
from st_dimreduce import publish
from st_dimreduce.cli import app
disable_progress_bars()
root, work, hub, quiet, broken = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]
said = {}
def attempt(name, *arguments, **options):
    try:
        said[name] = vars(publish(*arguments, **options))
    except Exception as error:
        said[name] = [type(error).__name__, str(error)]
def copy(name):
    shutil.copytree(root / "small", work / name)
    return work / name
def command(name, *arguments):
    done = CliRunner().invoke(app, ["publish", *map(str, arguments)])
    said[name] = [done.exit_code, done.stdout, done.stderr]
def tell(url):
    try:
        urlopen(url)
    except OSError:
        pass  # no page of a Hub
small = root / "small"

# Before anything is sent: this Hub must never hear of it.
constants.ENDPOINT = quiet
attempt("dry", small, "user/dry", dry_run=True)
for name in ("tiny", "a/b/c", "user/", "user/a b", "user/x--y", "", "https://huggingface.co/user/x", "user/../x"):
    attempt("name " + name, small, name)
attempt("no folder", work / "none", "user/x")
attempt("base", root / "base", "user/x")
attempt("a name", "user/other", "user/x")
(copy("pickle") / "optimizer.pt").write_bytes(b"")
attempt("pickle", work / "pickle", "user/x")
(copy("code") / "modeling.py").write_text("")
attempt("code", work / "code", "user/x")
(work / "secret.txt").write_text("three years")
(copy("link") / "notes.txt").symlink_to(work / "secret.txt")
attempt("link", work / "link", "user/x")
new = copy("new") / "modules.json"
new.write_text(new.read_text().replace("_transformers.models.Dense", "_transformers.base.modules.Dense"))
attempt("new", work / "new", "user/x")
(copy("weights") / "2_Dense" / "model.safetensors").write_bytes(b"cut short")
attempt("weights", work / "weights", "user/x")
(copy("record") / "st_dimreduce.json").write_text('{"figures": [1]}')
attempt("record", work / "record", "user/x")
attempt("figures", small, "user/x", figures={})
token = os.environ.pop("HF_TOKEN")
attempt("empty token", small, "user/x", token="")
attempt("two tokens", small, "user/x", token="hf_one\\nhf_two")
attempt("no token", small, "user/x")
command("dry command", small, "user/dry", "--dry-run")

# Refused.
constants.ENDPOINT = hub
attempt("wrong", small, "user/refused", token="hf_wrong")
attempt("reader", small, "user/refused", token="hf_reader")
attempt("theirs", small, "user/refused", token="hf_stranger")
(work / "token").write_text("hf_wrong\\n")
command("wrong command", small, "user/refused", "--token-file", work / "token")
os.environ["HF_TOKEN"] = token
api = HfApi()
api.create_repo("user/foreign")
api.upload_file(path_or_fileobj=b"three years", path_in_repo="thesis.txt", repo_id="user/foreign")
attempt("foreign", small, "user/foreign")
attempt("foreign branch", small, "user/foreign", revision="side")
api.create_repo("user/open")
attempt("open", small, "user/open", private=True)
attempt("race", small, "user/race")
(copy("card") / "README.md").write_text("---\\nlicense: nobody-knows\\n---\\nMine.\\n")
attempt("card", work / "card", "user/card")
(work / "card" / "README.md").write_text("---\\nlicense: mit\\n---\\nMine.\\n")
(work / "card" / ".env").write_text("secret")
attempt("own card", work / "card", "user/card")
shutil.copytree(root / "small", work / "more")
(work / "more" / "tokenizer.model").write_text("of another tokenizer")
attempt("more", work / "more", "user/replaced")
attempt("replaced", root / "smaller", "user/replaced")
command("command", small, "user/command", "--private", "--revision", "two", "--token-file", Path(work, "good"))
Path(work, "good").write_text(token)
command("command", small, "user/command", "--private", "--revision", "two", "--token-file", Path(work, "good"))

# Unreachable, and cut off half way.
time.sleep = lambda seconds: None  # the client waits longer and longer between attempts
constants.ENDPOINT = "http://127.0.0.1:9"
attempt("dead", small, "user/dead")
constants.ENDPOINT = broken
attempt("broken", small, "user/broken")
tell(broken + "/cut-the-commit")
attempt("cut", small, "user/broken")
tell(broken + "/mend")
attempt("mended", small, "user/broken")
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def quiet():
    server = LoopbackHub()
    yield server
    server.close()


@pytest.fixture(scope="module")
def broken():
    """A Hub that cuts each upload half way, then each commit, then nothing: as the client tells it."""
    server, state = LoopbackHub(), {"cuts": "uploads"}

    def cut_upload():
        if state["cuts"] == "uploads":
            raise ConnectionError

    def listen(method, path):
        if path in ("/cut-the-commit", "/mend"):
            state["cuts"] = path
        if state["cuts"] == "/cut-the-commit" and "/commit/" in path:
            raise ConnectionError

    server.on_upload, server.on_request = cut_upload, listen
    yield server
    server.close()


@pytest.fixture(scope="module")
def errors(hub, quiet, broken, folders, tmp_path_factory):
    def meanwhile(method, path):
        if path == "/api/models/user/race/preupload/main":
            hub.repos["user/race"].commit("main", {"theirs.txt": b"theirs"})

    hub.on_request = meanwhile
    home, work = tmp_path_factory.mktemp("errors"), tmp_path_factory.mktemp("work")
    out = hub.run(home, ERRORS, folders, work, hub.url, quiet.url, broken.url, NO_COLOR="1", COLUMNS="100")
    hub.on_request = None
    return json.loads(out.splitlines()[-1])


def test_a_dry_run_says_all_and_sends_nothing(errors, quiet, folders):
    assert quiet.requests == []
    dry = errors["dry"]
    assert dry["commit"] is None
    assert dry["files"]["model.safetensors"] == (folders / "small" / "model.safetensors").stat().st_size
    assert dry["files"]["README.md"] == len(dry["card"].encode())
    assert dry["files"].keys() >= {"modules.json", "st_dimreduce.json", "2_Dense/model.safetensors", "quality.png"}
    status, out, err = errors["dry command"]
    assert (status, err) == (0, "")
    for words in ("2_Dense/model.safetensors", "# Sentence embeddings of 8 dimensions", "Nothing was sent"):
        assert words in out


@pytest.mark.parametrize(
    ("case", "kind", "message"),
    [
        ("name tiny", "ValueError", "'tiny' is no name on the Hub: give one such as 'user/my-model'. It has no user"),
        ("name a/b/c", "ValueError", "'a/b/c' is no name on the Hub"),
        ("name user/", "ValueError", "'user/' is no name on the Hub"),
        ("name user/a b", "ValueError", "'user/a b' is no name on the Hub"),
        ("name user/x--y", "ValueError", "'user/x--y' is no name on the Hub"),
        ("name ", "ValueError", "'' is no name on the Hub"),
        ("name https://huggingface.co/user/x", "ValueError", "is no name on the Hub"),
        ("name user/../x", "ValueError", "is no name on the Hub"),
        ("no folder", "ValueError", "holds no modules.json and no st_dimreduce.json: give a reduced model's folder"),
        ("base", "ValueError", "holds no st_dimreduce.json: give a reduced model's folder"),
        ("a name", "ValueError", "user/other holds no modules.json"),
        ("pickle", "ValueError", "optimizer.pt may run code when it is loaded: take it out"),
        ("code", "ValueError", "modeling.py may run code when it is loaded"),
        ("link", "ValueError", "notes.txt leads out of its folder"),
        ("new", "ValueError", "base.modules.Dense"),
        ("weights", "ValueError", "no model could be loaded from"),
        ("record", "ValueError", "st_dimreduce.json is not as st_dimreduce writes it"),
        ("figures", "ValueError", "figures are for a model in no folder"),
        ("empty token", "ValueError", "the token is not one: expected a word, such as hf_..."),
        ("two tokens", "ValueError", "the token is not one: expected a word, such as hf_..."),
        ("no token", "PermissionError", "no token to publish with: log in with `hf auth login`, or set HF_TOKEN"),
        ("wrong", "PermissionError", "the Hub does not know this token: log in"),
        ("reader", "PermissionError", "this token may not write there"),
        ("theirs", "PermissionError", "this token may not write there"),
        ("foreign", "FileExistsError", "user/foreign holds files and no st_dimreduce.json: choose another name"),
        ("foreign branch", "FileExistsError", "user/foreign holds files and no st_dimreduce.json"),
        ("open", "PermissionError", "user/open is there and public"),
        ("race", "ConnectionError", "somebody else changed the repository meanwhile"),
        ("card", "ValueError", '"license" must be one of'),
        ("dead", "ConnectionError", "publishing user/dead at http://127.0.0.1:9 failed: "),
        ("broken", "ConnectionError", "the same call again completes it"),
        ("cut", "ConnectionError", "the same call again completes it"),
    ],
)
def test_each_error_says_in_one_line_what_to_do(errors, case, kind, message):
    found, text = errors[case]
    assert (found, message in text) == (kind, True), text
    assert "\n" not in text
    assert "hf_wrong" not in text + errors["wrong command"][2]


def test_what_is_refused_changes_nothing(errors, hub, broken):
    assert "user/refused" not in hub.repos
    assert hub.files("user/foreign").keys() == {".gitattributes", "thesis.txt"}
    assert hub.repos["user/foreign"].branches.keys() == {"main"}
    assert hub.files("user/open").keys() == {".gitattributes"}
    assert hub.files("user/race") == {"theirs.txt": b"theirs"}
    assert len(broken.repos["user/broken"].commits) == 2, "made, and published when the Hub was mended"


def test_the_same_call_completes_what_was_cut_off(errors, broken):
    files = broken.files("user/broken")
    assert {name: len(content) for name, content in files.items() if name != ".gitattributes"} == errors["mended"][
        "files"
    ]


def test_a_card_of_ones_own_is_sent_as_it_is_and_hidden_files_are_not(errors, hub):
    assert hub.files("user/card")["README.md"] == b"---\nlicense: mit\n---\nMine.\n"
    assert errors["own card"]["files"].keys() <= hub.files("user/card").keys()
    assert not {".env", "quality.png"} & hub.files("user/card").keys()


def test_nothing_of_the_model_before_is_left_to_be_loaded_with_the_new_one(errors, hub):
    assert "tokenizer.model" in errors["more"]["files"]
    assert hub.files("user/replaced").keys() - {".gitattributes"} == errors["replaced"]["files"].keys()
    before = hub.repos["user/replaced"].commits[errors["more"]["commit"]]
    assert "tokenizer.model" in before, "the history keeps it"


def test_the_command_publishes_and_its_errors_are_one_line(errors, hub):
    status, out, err = errors["wrong command"]
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("error: publishing user/refused")
    status, out, err = errors["command"]
    assert (status, err) == (0, "")
    assert f"Published: {hub.url}/user/command/tree/two" in out
    assert hub.repos["user/command"].private
    assert "modules.json" in hub.files("user/command", "two")


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


def test_without_a_network_nothing_is_half_done(folders):
    """Offline mode is what the tests themselves run in."""
    with pytest.raises(ConnectionError, match=r"publishing user/x at .* failed: .*offline"):
        publish(folders / "small", "user/x", token=WRITER)
