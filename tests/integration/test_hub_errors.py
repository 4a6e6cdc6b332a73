"""What publishing refuses, and what it leaves where it fails."""

from __future__ import annotations

import json
import sys
from contextlib import closing

import pytest

from st_dimreduce import publish
from tests.helpers.hub_protocol import WRITER
from tests.helpers.loopback_hub import LoopbackHub

pytestmark = pytest.mark.wings("portable", "models")

ERRORS = """
import json, os, shutil, sys, time, warnings
from pathlib import Path
from urllib.request import urlopen
import huggingface_hub
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import disable_progress_bars
from typer.testing import CliRunner
from st_dimreduce import publish
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
    from st_dimreduce.cli import app
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
    with closing(LoopbackHub()) as server:
        yield server


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
        ("name tiny", "UserError", "'tiny' is not a name on the Hub: give one such as 'user/my-model'. It has no user"),
        ("name a/b/c", "UserError", "'a/b/c' is not a name on the Hub"),
        ("name user/", "UserError", "'user/' is not a name on the Hub"),
        ("name user/a b", "UserError", "'user/a b' is not a name on the Hub"),
        ("name user/x--y", "UserError", "'user/x--y' is not a name on the Hub"),
        ("name ", "UserError", "'' is not a name on the Hub"),
        ("name https://huggingface.co/user/x", "UserError", "is not a name on the Hub"),
        ("name user/../x", "UserError", "is not a name on the Hub"),
        ("no folder", "UserError", "holds no modules.json and no st_dimreduce.json: give a reduced model's folder"),
        ("base", "UserError", "holds no st_dimreduce.json: give a reduced model's folder"),
        ("a name", "UserError", "user/other holds no modules.json"),
        ("pickle", "UserError", "optimizer.pt may run code when it is loaded: take it out"),
        ("code", "UserError", "modeling.py may run code when it is loaded"),
        ("link", "UserError", "notes.txt is a link that leads out of"),
        ("new", "UserError", "is not in the portable form, write it with save_portable: modules.json: type"),
        ("weights", "UserError", "is not a safetensors file"),
        ("record", "UserError", "st_dimreduce.json is not as st_dimreduce writes it"),
        ("figures", "UserError", "figures are for a model in no folder"),
        ("empty token", "UserError", "the token is not one: expected a word, such as hf_..."),
        ("two tokens", "UserError", "the token is not one: expected a word, such as hf_..."),
        ("no token", "PermissionError", "no token to publish with: log in with `hf auth login`, or set HF_TOKEN"),
        ("wrong", "PermissionError", "the Hub does not know this token: log in"),
        ("reader", "PermissionError", "this token may not write there"),
        ("theirs", "PermissionError", "this token may not write there"),
        ("foreign", "FileExistsError", "user/foreign holds files and no st_dimreduce.json: choose another name"),
        ("foreign branch", "FileExistsError", "user/foreign holds files and no st_dimreduce.json"),
        ("open", "PermissionError", "user/open is there and public"),
        ("race", "ConnectionError", "somebody else changed the repository meanwhile"),
        ("card", "UserError", '"license" must be one of'),
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
    assert (status, "Published" in out) == (2, False)
    assert len(err.splitlines()) == 1
    assert err.startswith("error: publishing user/refused")
    status, out, err = errors["command"]
    assert (status, err) == (0, "")
    assert f"Published: {hub.url}/user/command/tree/two" in out
    assert hub.repos["user/command"].private
    assert "modules.json" in hub.files("user/command", "two")


def test_without_a_network_nothing_is_half_done(folders):
    """Offline mode is what the tests themselves run in."""
    with pytest.raises(ConnectionError, match=r"publishing user/x at .* failed: .*offline"):
        publish(folders / "small", "user/x", token=WRITER)


def test_without_matplotlib_the_card_has_no_picture(folders, monkeypatch):
    with_it = publish(folders / "small", "user/x", dry_run=True)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [
        name for name in sys.modules if name.startswith("matplotlib.") or name == "st_dimreduce.evaluation.plots"
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("st_dimreduce.evaluation.plots", raising=False)
    without = publish(folders / "small", "user/x", dry_run=True)
    assert with_it.files.keys() - without.files.keys() == {"quality.png"}
    assert "quality.png" in with_it.card
    assert "quality.png" not in without.card
