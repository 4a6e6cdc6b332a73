"""A folder or name that is not a model, or a damaged one, is refused in one line before anything of it is loaded."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from st_dimreduce import DimReduce, Summary, reduce_model, save_portable
from st_dimreduce.base_head import is_activation
from st_dimreduce.models.folder import _CLASS
from st_dimreduce.models.load import load_head, load_model
from tests.helpers.command import run
from tests.helpers.folders import trainable
from tests.helpers.tiny import SENTENCES


@pytest.fixture(scope="module")
def model_path(tiny_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model"
    save_portable(reduce_model(tiny_path, SENTENCES, 8), path)
    return path


@pytest.fixture
def folder(model_path, tmp_path):
    return Path(shutil.copytree(model_path, tmp_path / "folder"))


def change(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def module(folder, **settings):
    entries = json.loads((folder / "modules.json").read_text())
    entries[2] |= settings
    (folder / "modules.json").write_text(json.dumps(entries))


def link_out(folder):
    (folder / "2_Dense").rename(folder.parent / "outside")
    (folder / "2_Dense").symlink_to(folder.parent / "outside")


def no_tokenizer(folder):
    for path in folder.glob("token*"):
        path.unlink()


def weights(folder, **tensors):
    save_file(load_file(folder / "2_Dense" / "model.safetensors") | tensors, folder / "2_Dense" / "model.safetensors")


def rename(folder, old, new):
    (folder / old).rename(folder / new)


def shards_outside(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}')


def small_pickle(folder):
    rename(folder, HEAD, "2_Dense/pytorch_model.bin")
    os.truncate(folder / "2_Dense/pytorch_model.bin", 100)


HEAD, DENSE, POOL = "2_Dense/model.safetensors", "2_Dense/config.json", "1_Pooling/config.json"
INSIDE = "expected one inside the model's folder"
# What is done to the folder, or a file of it and what it says then; and what is said of that.
CASES = {
    "no model": (lambda f: [(f / name).unlink() for name in ("modules.json", "config.json")], "is not a model"),
    "modules no list": (lambda f: (f / "modules.json").write_text("{}"), "expected a list of 1 to 100 modules"),
    "module no object": (lambda f: (f / "modules.json").write_text("[5]"), "names a module as 5"),
    "unknown module": (
        lambda f: module(f, type="sentence_transformers.models.Magic"),
        "no model could be loaded",
    ),
    "foreign module": (
        lambda f: module(f, type="os.system"),
        "'os.system', which is not a class of Sentence Transformers: it needs",
    ),
    "parent": (lambda f: module(f, path="../2_Dense"), f"names the path '../2_Dense': {INSIDE}"),
    "windows parent": (lambda f: module(f, path="..\\2_Dense"), INSIDE),
    "absolute": (lambda f: module(f, path="/etc"), f"names the path '/etc': {INSIDE}"),
    "link": (link_out, "is a link that leads out of the model's folder"),
    "missing folder": (lambda f: shutil.rmtree(f / "2_Dense"), "2_Dense/config.json is missing"),
    "size": (DENSE, {"out_features": 9}, "config.json asks for"),
    "width": (POOL, {"word_embedding_dimension": 31}, "the module before it gives 31"),
    "NaN": (POOL, {"word_embedding_dimension": float("nan")}, "it holds NaN"),
    "huge head": (DENSE, {"out_features": 10**12}, "says out_features 1e+12: expected 1 to 1,048,576"),
    "negative head": (DENSE, {"in_features": -32}, "says in_features -32"),
    "activation": (DENSE, {"activation_function": "os.abort"}, "'os.abort', which is none of torch.nn's"),
    "no class": (DENSE, {"activation_function": "torch.nn.functional.tanh"}, "none of torch.nn's"),
    "no word": (DENSE, {"module_output_name": []}, "says module_output_name []: expected a word"),
    "weight": (lambda f: weights(f, **{"linear.weight": torch.full((8, 32), float("nan"))}), "not finite"),
    "more weights": (lambda f: weights(f, extra=torch.zeros(3)), "config.json asks for"),
    "no weights": (lambda f: (f / HEAD).unlink(), "holds no weights: expected model.safetensors"),
    "cut weights": (lambda f: os.truncate(f / HEAD, 200), "not a complete safetensors file"),
    "long header": (lambda f: (f / HEAD).write_bytes(b"\xff" * 99), "header is longer than"),
    "pickle": (lambda f: rename(f, HEAD, "2_Dense/pytorch_model.bin"), "not a pickle of weights alone"),
    "small pickle": (small_pickle, "is too small for the 8 x 32 weights"),
    "no tokenizer": (no_tokenizer, "holds no tokenizer: expected tokenizer.json"),
    "layers": ("config.json", {"n_layers": 10**9}, "says n_layers 1e+09: expected at most 36"),
    "widths": ("config.json", {"hidden_dim": 2**20}, "asks for 136,325,400 weights: expected at most 8,463,872"),
    "own code": ("config.json", {"model_type": "mine", "auto_map": {"AutoModel": "m.M"}}, "--trust-remote-code"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON in UTF-8"),
    "another encoding": (lambda f: (f / "config.json").write_text("{}", encoding="utf-16"), "not JSON in UTF-8"),
    "nested": (lambda f: (f / "config.json").write_text("[" * 100_000), "is nested too deeply"),
    "large": (lambda f: (f / "config.json").write_text(" " * 2**25), "expected at most 16,777,216"),
    "shards": (shards_outside, f"names the path '../x': {INSIDE}"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_folder_is_refused_in_one_line(case, folder):
    *damage, message = CASES[case]
    if len(damage) == 1:
        damage[0](folder)
    else:
        change(folder / damage[0], **damage[1])
    with pytest.raises(ValueError, match=r"^no model could be loaded from '.*folder': ") as caught:
        load_model(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/thing/at/all", "it is neither a folder nor the name of a model on the Hub such as 'user/model'"),
        ("/nowhere", "it is neither a folder nor the name of a model on the Hub such as 'user/model'"),
        ("a name with spaces", "it is neither a folder nor the name of a model on the Hub such as 'user/model'"),
        (__file__, "it is a file, expected the folder of a model"),
        ("no/such-model", "couldn't"),
    ],
)
def test_a_name_that_is_none(name, message):
    with pytest.raises(ValueError, match=r"^no model could be loaded from '") as caught:
        load_model(name)
    assert message in str(caught.value)


def test_links_inside_the_hubs_cache_are_followed(model_path, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    shutil.copytree(model_path, snapshot)
    blobs.mkdir()
    for number, path in enumerate(path for path in snapshot.rglob("*") if path.is_file()):
        path.rename(blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), path.parent))
    assert load_model(snapshot).get_embedding_dimension() == 8


def test_the_flag_is_offered_and_never_set_for_the_user(tiny_path, tmp_path):
    trainable(tiny_path, 8).save_pretrained(str(tmp_path / "plug-in"))
    with pytest.raises(ValueError, match=r"needs code .* use --trust-remote-code, or load it yourself"):
        load_model(tmp_path / "plug-in")
    model = load_model(tmp_path / "plug-in", trust_remote_code=True)
    assert type(model[2]) is DimReduce


def test_the_command_offers_the_flag(tiny_path, tmp_path):
    trainable(tiny_path, 8).save_pretrained(str(tmp_path / "plug-in"))
    head = DimReduce(8, 2, record={"mean_norm": 1.0})
    head.to_head().save(tmp_path / "head")
    command = ["attach", str(tmp_path / "head"), str(tmp_path / "plug-in"), "--output", str(tmp_path / "out")]
    refused = run(*command)
    assert refused.exit_code == 2
    assert "--trust-remote-code" in refused.stderr
    assert run(*command, "--trust-remote-code").exit_code == 0
    assert SentenceTransformer(str(tmp_path / "out"), device="cpu").get_embedding_dimension() == 2


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", '{"in_features": 5, "out_features": 1000000000000}', r"out_features 1e\+12: expected 1 to"),
        ("config.json", '{"in_features": 5, "out_features": 3}', "config.json asks for"),
        ("config.json", '{"in_features": 5, "out_features": 2, "activation_function": "os.abort"}', "os.abort"),
        ("st_dimreduce.json", "[1]", "expected an object of settings"),
        ("st_dimreduce.json", "[" * 100_000, "nested too deeply"),
    ],
)
def test_a_damaged_head_is_refused_too(file, content, message, tmp_path):
    DimReduce(5, 2).to_head().save(tmp_path / "head")
    (tmp_path / "head" / file).write_text(content)
    with pytest.raises(ValueError, match=rf"holds no head: expected .*{message}"):
        load_head(tmp_path / "head")


@pytest.mark.parametrize("damage", ["number", "missing", "type", "nan", "rows"])
def test_a_damaged_summary_is_refused(damage, tmp_path):
    Summary.of(torch.eye(4).numpy()).save(tmp_path / "s")
    from safetensors import safe_open

    with safe_open(tmp_path / "s", "pt") as file:
        about = file.metadata()
    arrays = load_file(tmp_path / "s")
    if damage == "number":
        about["count"] = "many"
    if damage == "missing":
        del about["seed"]
    if damage == "type":
        arrays["sum"] = arrays["sum"].to(torch.bfloat16)
    if damage == "nan":
        arrays["gram_sum"][0] = torch.nan
    if damage == "rows":
        about["count"] = "3"
    save_file(arrays, tmp_path / "s", about)
    with pytest.raises(ValueError, match=r"is damaged|is not a summary"):
        Summary.load(tmp_path / "s")


def test_what_is_known_without_importing_it():
    from sentence_transformers.sentence_transformer import modules

    assert all(_CLASS.fullmatch(f"sentence_transformers.models.{name}") for name in modules.__all__)
    assert all(is_activation(f"torch.nn.modules.activation.{name}") for name in torch.nn.modules.activation.__all__)
