"""Models of unknown origin, through every command that takes one: from a folder, and by name from a Hub."""

from __future__ import annotations

import copy
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from st_dimreduce import DimReduce, FitRecord, Head, check, publish, reduce_model, save_portable
from st_dimreduce.models.load import load_model
from tests.helpers.command import run
from tests.helpers.folders import trainable
from tests.helpers.hostile import Boom
from tests.helpers.hub_protocol import Repo
from tests.helpers.tiny import SENTENCES, make_tiny

PICKLED = ("reduce", "attach", "compare base", "compare reduced", "serve", "export", "publish", "check", "transform")


@pytest.fixture(scope="module")
def place(tiny_path, tmp_path_factory):
    """An honest base model, a reduced one, a head and texts."""
    root = tmp_path_factory.mktemp("untrusted")
    tiny = make_tiny(tiny_path)
    tiny.save_pretrained(str(root / "base"))
    save_portable(reduce_model(tiny, SENTENCES, 8), root / "reduced")
    DimReduce(32, 8, record={"mean_norm": 1.0}).to_head().save(root / "head")
    (root / "texts.txt").write_text("\n".join(SENTENCES))
    np.save(root / "vectors.npy", np.ones((4, 32), np.float32))
    return root


def harm(folder, canary):
    """Weights as a pickle that makes the canary, and the setting by which a reader that trusts would run it."""
    (folder / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": Boom(str(canary))}, folder / "pytorch_model.bin")
    for name in ("config.json", "sentence_bert_config.json"):
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        content.pop("dtype", None)
        content.pop("torch_dtype", None)
        content |= {"model_args": {"weights_only": False}} if name.startswith("sentence") else {}
        path.write_text(json.dumps(content))
    return folder


def arguments(command, model, place, out):
    """The arguments with which a command is given a model, a folder or a name."""
    texts = ["--texts", place / "texts.txt"]
    return {
        "reduce": ["reduce", model, place / "texts.txt", "-o", out, "--dim", 8],
        "attach": ["attach", place / "head", model, "-o", out],
        "compare base": ["compare", model, place / "reduced", *texts],
        "compare reduced": ["compare", place / "base", model, *texts],
        "serve": ["serve", model, *texts, "--port", 0],
        "export": ["export", model, "-o", out],
        "publish": ["publish", model, "user/x", "--dry-run"],
        "check": ["check", model],
        "transform": ["transform", model, place / "vectors.npy", out],
    }[command]


@pytest.mark.parametrize(
    "command",
    [pytest.param(name, marks=[pytest.mark.component("ONNX Runtime")] if name == "export" else []) for name in PICKLED],
)
@pytest.mark.parametrize("by", ["folder", "relative folder"])
def test_no_command_runs_a_pickle(command, by, place, tmp_path, monkeypatch):
    folder = shutil.copytree(place / ("base" if command in {"reduce", "attach"} else "reduced"), tmp_path / "model")
    harm(folder, tmp_path / "canary")
    monkeypatch.chdir(tmp_path)
    given = folder if by == "folder" else "model"
    done = run(*arguments(command, given, place, tmp_path / ("out.npy" if command == "transform" else "out")))
    assert not (tmp_path / "canary").exists()
    if command == "transform":  # which reads the head alone
        assert done.exit_code == 0, done.output
    else:
        assert done.exit_code == 2, done.output
        assert "sets model_args.weights_only" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_what_harms_here_harms_a_reader_that_trusts(place, tmp_path):
    """The canary does sing where the setting is obeyed: the tests above are able to fail."""
    from sentence_transformers import SentenceTransformer

    folder = harm(shutil.copytree(place / "reduced", tmp_path / "model"), tmp_path / "canary")
    with pytest.raises(Exception):  # noqa: B017, whatever it is
        SentenceTransformer(str(folder), device="cpu")
    assert (tmp_path / "canary").exists()


BY_NAME = """
import json, sys
from typer.testing import CliRunner
from st_dimreduce.cli import app
said = []
for arguments in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, arguments)
    said.append([done.exit_code, done.stderr])
print(json.dumps(said))
"""
READ_BY_NAME = """
import json, sys
from pathlib import Path
from st_dimreduce import DimReduce, reduce_model, save_portable
from st_dimreduce.models.load import load_head, load_model
from tests.helpers.tiny import SENTENCES
said = {}
for name in ("user/reduced", "user/static", "user/bare", "plain"):
    model = load_model(name)
    said[name] = [model.encode(SENTENCES[:3]).tolist(), model.model_card_data.base_model]
for name in ("user/reduced", "user/static"):
    said[name] += [load_head(name).precision, DimReduce.from_model(load_model(name)).precision]
reduced = reduce_model("user/bare", SENTENCES, 8)
save_portable(reduced, sys.argv[1])
said["record"] = DimReduce.from_model(reduced).record.base_model
said["paths"] = [str(path) for path in Path(sys.argv[1]).rglob("*.json") if "snapshots" in path.read_text()]
for name in ("user/nothing", "nothing"):
    try:
        load_model(name)
    except ValueError as error:
        said[name] = str(error)
print(json.dumps(said))
"""


def put(hub, name, folder, **more):
    """Put a folder on the Hub under a name, as it is."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    hub.repos[name] = Repo(private=False)
    hub.repos[name].commit("main", files | more)


@pytest.mark.slow
def test_no_command_runs_a_pickle_of_a_name_or_downloads_it(hub, place, tmp_path):
    for name in ("base", "reduced"):
        folder = harm(shutil.copytree(place / name, tmp_path / name), tmp_path / "canary")
        put(hub, f"user/hostile-{name}", folder)
    before = len(hub.requests)
    commands = []
    for command in set(PICKLED) - {"publish", "check", "transform"}:  # which take folders, or read the head alone
        name = "user/hostile-base" if command in {"reduce", "attach"} else "user/hostile-reduced"
        commands.append([str(word) for word in arguments(command, name, place, tmp_path / "out")])
    said = json.loads(hub.run(tmp_path / "home", BY_NAME, json.dumps(commands)).splitlines()[-1])
    for command, (status, error) in zip(commands, said, strict=True):
        assert status == 2, (command, error)
        assert "sets model_args.weights_only" in error, (command, error)
    assert not (tmp_path / "canary").exists()
    asked = {path for _, path in hub.requests[before:]}
    assert any("modules.json" in path for path in asked)
    assert not any("pytorch_model" in path for path in asked), "settings come first"
    assert hub.unknown == []


@pytest.mark.slow
def test_a_name_is_a_folder(hub, place, tiny, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    head = Head.from_model(reduce_model(tiny, SENTENCES, 8)).with_record(precision="int4")
    words = StaticEmbedding(copy.deepcopy(tiny.tokenizer), embedding_dim=32)
    static = SentenceTransformer(modules=[words], device="cpu")
    folders = {"user/reduced": tmp_path / "reduced", "user/static": tmp_path / "static"}
    save_portable(head.attach(tiny), folders["user/reduced"])
    save_portable(head.attach(static), folders["user/static"])
    folders["user/bare"] = folders["sentence-transformers/plain"] = place / "base"
    for name, folder in folders.items():
        unread = {"onnx/model.onnx": b"x", "pytorch_model.bin": b"x", "tf_model.h5": b"x", "README.md": b"# Mine"}
        unread |= {"training/notes.safetensors": b"x", "code.py": b"x"}
        put(hub, name, folder, **unread)
    home = tmp_path / "home"
    said = json.loads(hub.run(home, READ_BY_NAME, tmp_path / "out", HF_HUB_OFFLINE="0").splitlines()[-1])
    for name, folder in folders.items():
        vectors, base_model, *precisions = said[name.removeprefix("sentence-transformers/")]
        assert np.array_equal(np.array(vectors, np.float32), load_model(folder).encode(SENTENCES[:3])), name
        assert base_model == name
        assert precisions in ([], ["int4", "int4"])
    assert said["record"] == "user/bare"
    assert said["paths"] == []
    for name in ("user/nothing", "nothing"):
        assert f"no model could be loaded from {name!r}: " in said[name]
        assert "couldn't be downloaded" in said[name]
    fetched = {path for method, path in hub.requests if method == "GET" and "/resolve/" in path}
    for unread in ("onnx", "pytorch_model.bin", "h5", "training", "code.py"):
        assert not any(unread in path for path in fetched), unread
    assert hub.unknown == [("GET", "/api/models/nothing/revision/main")], "a name without a user, which is not here"
    offline = json.loads(hub.run(home, READ_BY_NAME, tmp_path / "again", HF_HUB_OFFLINE="1").splitlines()[-1])
    assert {name: offline[name] for name in said if "nothing" not in name} == {
        name: said[name] for name in said if "nothing" not in name
    }


@pytest.mark.slow
@pytest.mark.component("ONNX Runtime")
def test_export_by_name_makes_the_codes_of_the_record(hub, tiny, tmp_path):
    head = Head.from_model(reduce_model(tiny, SENTENCES, 8)).with_record(precision="int4")
    save_portable(head.attach(tiny), tmp_path / "reduced")
    put(hub, "user/codes", tmp_path / "reduced")
    commands = json.dumps([["export", "user/codes", "-o", str(tmp_path / "out")]])
    assert json.loads(hub.run(tmp_path / "home", BY_NAME, commands).splitlines()[-1]) == [[0, ""]]
    assert json.loads((tmp_path / "out" / "export.json").read_text())["outputs"][1:] == ["sentence_embedding", "codes"]


@pytest.mark.slow
def test_code_of_a_name_runs_where_the_user_trusts_it(hub, tiny, tmp_path):
    trainable(tiny, 8).save_pretrained(str(tmp_path / "plug-in"))
    put(hub, "user/plugged", tmp_path / "plug-in")
    code = """
import sys
from st_dimreduce.models.load import load_model
print(type(load_model("user/plugged", trust_remote_code=True)[2]).__name__)
try:
    load_model("user/plugged")
except ValueError as error:
    print("trust" in str(error))
"""
    assert hub.run(tmp_path / "home", code).split() == ["DimReduce", "True"]


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path has at most 108 characters
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


@pytest.mark.parametrize("make", [make_pipe, make_socket])
@pytest.mark.parametrize(
    "name", ["README.md", "tokenizer.json", "config_sentence_transformers.json", "1_Pooling/x", "extra/notes.txt"]
)
def test_a_pipe_or_a_socket_is_refused_at_once(make, name, place, tmp_path):
    folder = shutil.copytree(place / "reduced", tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    (folder / name).parent.mkdir(exist_ok=True)
    make(folder / name)
    for call in (load_model, check, lambda path: publish(path, "user/x", dry_run=True)):
        with pytest.raises(ValueError, match=r"is neither a file nor a folder: take it out|is not a file"):
            call(folder)
    with pytest.raises(ValueError, match="is neither a file|is not a file"):
        Head(np.eye(2, 8), record=FitRecord(mean_norm=1.0)).attach(str(folder))


def test_check_prints_no_escape_codes(place, tmp_path):
    forged = "2_Dense\x1b[2K\x1b[1A\x1b[32mnothing to mend.\x1b[0m"
    for name, content in {
        "path": {"path": forged},
        "type": {"type": f"sentence_transformers.models.{forged}"},
        "name": {"name": forged},
    }.items():
        folder = shutil.copytree(place / "reduced", tmp_path / name)
        entries = json.loads((folder / "modules.json").read_text())
        entries[2] |= content
        (folder / "modules.json").write_text(json.dumps(entries))
        (folder / "2_Dense").rename(folder / forged)
        done = run("check", folder)
        assert done.exit_code in (1, 2)
        assert "\x1b" not in done.output, done.output


ACTIVE = {
    "base_model": "x](http://evil.example) <script>alert(1)</script>",
    "license": "`mit` <img src=x onerror=alert(1)>",
    "method": "closed\n\n# Download [this](http://evil.example)",
    "versions": {"<b>torch</b>": "1 | ![x](http://evil.example/x.png)"},
    "rotation": "\x1b[2J",
    "figures": {"documents": 2, "queries": 2, "metric": "overlap"},
}


def test_a_record_cannot_write_markup_into_the_card(place, tmp_path):
    folder = shutil.copytree(place / "reduced", tmp_path / "model")
    record = json.loads((folder / "st_dimreduce.json").read_text())
    row = {"name": "a | b\n<i>c</i>", "dimensions": 8, "precision": "float32", "bytes_per_vector": 32, "overlap": 1.0}
    active = {**ACTIVE, "figures": {**ACTIVE["figures"], "rows": [row, row]}}
    (folder / "st_dimreduce.json").write_text(json.dumps(record | active))
    card = publish(folder, "user/x", dry_run=True).card
    text = card.split("-->", 2)[-1]  # below the comment with the record, where it is data
    for markup in ("<", "](http", "://evil", "\x1b", "`mit`", "# Download ["):
        assert markup not in text.replace("](https://huggingface.co", ""), markup
    assert len([line for line in text.splitlines() if line.startswith("# ")]) == 1
    (folder / "README.md").write_text("# Mine \x1b[2J\n")
    done = run("publish", folder, "user/x", "--dry-run")
    assert done.exit_code == 0
    assert "\x1b[2J" not in done.stdout


@pytest.mark.parametrize(
    "name", ["x.PKL", "x.so", "x.pyc", "x.dylib", "x.sh", "x.Bin", "pytorch_model.bin", "x", "x.pt", "x.zip", "x.html"]
)
def test_what_may_run_code_is_not_published(name, place, tmp_path):
    folder = shutil.copytree(place / "reduced", tmp_path / "model")
    (folder / name).write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="may run code when it is loaded: take it out"):
        publish(folder, "user/x", dry_run=True)


# A process in which nothing can be reached and no name can be looked up; what tries is written down.
NO_NETWORK = """
import socket
def refuse(*arguments, **options):
    with open({log!r}, "a") as log:
        print(*arguments, file=log)
    raise OSError("the network was used")
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
class Socket(socket.socket):
    connect = connect_ex = sendto = refuse
socket.socket = Socket
"""
SEARCH = """
import numpy as np
from st_dimreduce import Head
codes = Head(np.eye(8)).encode(np.eye(8, dtype=np.float32), "int8")
print(codes.search(np.eye(8, dtype=np.float32))[1].shape)
"""
CLI = "import sys; from st_dimreduce.cli import app; app(sys.argv[1:])"
OFFLINE = {
    "import": [""],
    "import all": ["import st_dimreduce\nfor name in st_dimreduce.__all__: getattr(st_dimreduce, name)"],
    "search": [SEARCH],
    "help": [CLI, "--help"],
    "fit": [CLI, "fit", "vectors.npy", "-o", "out", "--dim", "4"],
    "transform": [CLI, "transform", "head", "vectors.npy", "out.npy"],
    "check": [CLI, "check", "reduced"],
    "reduce": [CLI, "reduce", "base", "texts.txt", "-o", "out", "--dim", "8"],
    "compare": [CLI, "compare", "base", "reduced", "--texts", "texts.txt", "--precision", "int8"],
    "export": [CLI, "export", "reduced", "-o", "out"],
    "publish": [CLI, "publish", "reduced", "user/x", "--dry-run"],
}


@pytest.mark.slow
@pytest.mark.parametrize("case", OFFLINE)
def test_nothing_is_sent_or_fetched_that_nobody_asked_for(case, place, tmp_path):
    """In the ordinary mode of the Hub's client, which goes online."""
    if case == "export":
        pytest.importorskip("onnx", reason="export needs the extra onnx")
    work = shutil.copytree(place, tmp_path / "work")
    np.save(work / "vectors.npy", np.random.default_rng(0).standard_normal((200, 32)).astype(np.float32))
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK.format(log=str(tmp_path / "log")))
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    path = os.pathsep.join([str(tmp_path), str(Path.cwd()), kept.get("PYTHONPATH", "")])
    code, *rest = OFFLINE[case]
    done = subprocess.run(
        [sys.executable, "-c", f"import sitecustomize\nimport st_dimreduce\n{code}", *rest],
        cwd=work,
        env=kept | {"PYTHONPATH": path, "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    tried = (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""
    assert tried == ""
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_network_of_the_tests_above_is_out_of_reach(tmp_path):
    code = (
        NO_NETWORK.format(log=str(tmp_path / "log")) + "\nimport urllib.request as r; r.urlopen('http://127.0.0.1:9')"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 1
    assert (tmp_path / "log").read_text()
