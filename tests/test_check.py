"""Folders that Text Embeddings Inference or an older Sentence Transformers would misread are named, and mended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding, Transformer
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

from st_dimreduce import DimReduce, reduce_model, save_portable
from st_dimreduce.cli import app
from st_dimreduce.portable import check, fix
from tests.conftest import SENTENCES


def tiny_of(tiny_path, mode="mean", *more):
    return SentenceTransformer(modules=[Transformer(tiny_path), Pooling(32, mode), *more], device="cpu")


@pytest.fixture(scope="module")
def saved(tiny_path, tmp_path_factory):
    """Folders of one reduced model: portable, as stock Sentence Transformers saves it, and with the plug-in."""
    folder = tmp_path_factory.mktemp("saved")
    reduced = reduce_model(tiny_of(tiny_path, "mean", Normalize()), SENTENCES, 8)
    save_portable(reduced, folder / "portable")
    reduced.save_pretrained(str(folder / "stock"))
    reduce_model(tiny_of(tiny_path, "mean", Normalize()), SENTENCES, 8, trainable=True).save_pretrained(
        str(folder / "plug-in")
    )
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved / "portable", tmp_path / "copy"))


def encode(path):
    return SentenceTransformer(str(path), device="cpu").encode(SENTENCES)


def change(path, **settings):
    """Change settings of a JSON file; None takes one away."""
    content = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def module(copy, number, **settings):
    entries = json.loads((copy / "modules.json").read_text())
    entries[number] |= settings
    (copy / "modules.json").write_text(json.dumps(entries))


@pytest.mark.parametrize("mode", ["cls", "mean", "lasttoken"])
def test_what_we_save_is_clean(mode, tiny_path, tmp_path):
    torch.manual_seed(0)
    base = tiny_of(tiny_path, mode, Dense(32, 24, activation_function=None), Normalize())
    save_portable(reduce_model(base, SENTENCES, 8), tmp_path / "p")
    assert check(tmp_path / "p") == []


@pytest.mark.parametrize("form", ["stock", "plug-in"])
def test_a_stock_folder_is_reported_and_fix_makes_it_clean_with_the_same_vectors(form, saved, tmp_path):
    folder = Path(shutil.copytree(saved / form, tmp_path / "model"))
    (folder / "LICENSE").write_text("ours")
    readme = (folder / "README.md").read_text()
    found = {(problem.where, problem.reader.split(",")[0]) for problem in check(folder)}
    older, server = "Sentence Transformers before 6 does not load it", "Text Embeddings Inference does not start"
    assert {("modules.json", older), ("1_Pooling/config.json", older), ("1_Pooling/config.json", server)} <= found
    weights = {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}
    fix(folder)
    assert check(folder) == []
    assert np.array_equal(encode(folder), encode(saved / "portable"))
    model = SentenceTransformer(str(folder), device="cpu")
    assert model.max_seq_length == SentenceTransformer(str(saved / "portable"), device="cpu").max_seq_length == 24
    assert {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")} == weights
    assert ((folder / "LICENSE").read_text(), (folder / "README.md").read_text()) == ("ours", readme)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_fix_moves_what_lies_elsewhere_and_turns_pickles_into_safetensors(copy):
    vectors = encode(copy)
    torch.save({name: torch.from_numpy(w) for name, w in load_file(copy / "2_Dense" / "model.safetensors").items()},
               copy / "2_Dense" / "pytorch_model.bin")  # fmt: skip
    (copy / "2_Dense" / "model.safetensors").unlink()
    (copy / "2_Dense").rename(copy / "head")
    (copy / "1_Pooling").rename(copy / "pool")
    (copy / "0_Transformer").mkdir()
    for path in [*copy.glob("*token*"), copy / "config.json", copy / "model.safetensors", *copy.glob("*bert*")]:
        path.rename(copy / "0_Transformer" / path.name)
    for number, path in enumerate(["0_Transformer", "pool", "head"]):
        module(copy, number, path=path, idx=None)
    said = "; ".join(map(str, check(copy)))
    for word in ("transformer lies in 0_Transformer", "'pool'", "head/pytorch_model.bin", "no idx"):
        assert word in said
    fix(copy)
    assert check(copy) == []
    assert np.array_equal(encode(copy), vectors)
    assert not list(copy.rglob("*.bin"))


CONFIG, POOL, DENSE, MODULES = "config.json", "1_Pooling/config.json", "2_Dense/config.json", "modules.json"
TEI = "Text Embeddings Inference"
BROKEN = {
    "an activation": (DENSE, {"activation_function": "torch.nn.modules.activation.GELU"}, "its activation is"),
    "no activation": (DENSE, {"activation_function": None}, "takes Identity, all others Tanh"),
    "no bias": (DENSE, {"bias": 0}, "no true or false for bias"),
    "new keys of a head": (DENSE, {"module_input_name": "sentence_embedding"}, "new keys module_input_name"),
    "a head on tokens": (DENSE, {"module_output_name": "token_embeddings"}, "does not reduce the sentence embedding"),
    "max pooling": (POOL, {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}, "knows cls, mean"),
    "no pooling": (POOL, {"pooling_mode_mean_tokens": False}, "its pooling is none"),
    "pooling as a word": (POOL, {"pooling_mode": "mean"}, "new keys pooling_mode"),
    "no word on cls": (POOL, {"pooling_mode_cls_token": None}, "no true or false for pooling_mode_cls_token"),
    "prompts left out": (POOL, {"include_prompt": False}, "pools the prompt too"),
    "a classifier": (CONFIG, {"architectures": ["DistilBertForSequenceClassification"]}, "takes it for a classifier"),
    "no architecture": (CONFIG, {"architectures": None}, "names no architectures"),
    "rotary positions in new words": (CONFIG, {"rope_parameters": {"rope_theta": 5.0}}, "rope_theta is not said"),
    "code of its own": (CONFIG, {"auto_map": {"AutoModel": "m.M"}, "model_type": "mine"}, "needs trust_remote_code"),
    "a new tokenizer": ("tokenizer_config.json", {"tokenizer_class": "TokenizersBackend"}, "tokenizer_class is not"),
    "new special tokens": ("tokenizer_config.json", {"extra_special_tokens": ["[A]"]}, "extra_special_tokens is not"),
    "no length": ("sentence_bert_config.json", {"max_seq_length": None}, "says no max_seq_length"),
    "lower case": ("sentence_bert_config.json", {"do_lower_case": True}, "does not lower the case"),
    "a new transformer": ("sentence_bert_config.json", {"modality_config": {}}, "new keys modality_config"),
    "cut vectors": ("config_sentence_transformers.json", {"truncate_dim": 4}, "serves all dimensions"),
    "a prompt of none": ("config_sentence_transformers.json", {"prompts": {"query": 5}}, "a prompt is no string"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_each_thing_is_named_alone(case, copy):
    file, settings, message = BROKEN[case]
    change(copy / file, **settings)
    problems = check(copy)
    assert any(message in str(problem) and problem.where == file for problem in problems), problems
    assert len(problems) <= 2, problems
    assert all("\n" not in str(problem) and problem.remedy for problem in problems)


@pytest.mark.parametrize(
    ("change_modules", "message"),
    [
        (lambda entries: entries.insert(2, {**entries[3], "name": "4"}), "a Normalize stands before a Dense"),
        (lambda entries: entries.insert(1, entries.pop(2)), "a Dense stands before Pooling"),
        (
            lambda entries: entries[2].update(type="sentence_transformers.models.LayerNorm"),
            "Transformer, Pooling, Dense",
        ),
        (lambda entries: entries[2].update(type="os.system"), "every other reader needs trust_remote_code"),
        (lambda entries: entries[3].update(idx="3"), "module 3 has no idx"),
    ],
)
def test_modules_that_the_server_misreads(change_modules, message, copy):
    entries = json.loads((copy / "modules.json").read_text())
    change_modules(entries)
    (copy / "modules.json").write_text(json.dumps(entries))
    problems = check(copy)
    assert any(message in str(problem) for problem in problems), problems
    assert all(TEI in str(problem) for problem in problems)


def test_poolings_that_are_joined(tiny_path, tmp_path):
    save_portable(reduce_model(tiny_of(tiny_path, ("cls", "mean")), SENTENCES, 8), tmp_path / "p")
    assert [problem.reader for problem in check(tmp_path / "p")] == [f"{TEI} takes one of them alone"]


def test_a_base_model_without_a_head_is_clean(minilm_path):
    assert check(minilm_path) == []


@pytest.mark.parametrize("modes", [("mean", "cls"), ("cls", "mean")])
def test_fix_never_reorders_what_is_joined(modes, tiny_path, tmp_path):
    pooling = Pooling(32, modes)
    model = SentenceTransformer(modules=[Transformer(tiny_path), pooling, Dense(64, 8)], device="cpu")
    model.save_pretrained(str(tmp_path / "stock"))
    fix(tmp_path / "stock")
    assert np.array_equal(encode(tmp_path / "stock"), model.encode(SENTENCES))


def test_files_that_are_missing(copy, tiny_path):
    (copy / "tokenizer.json").rename(copy / "vocab.txt")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert [problem.where for problem in check(copy)] == ["tokenizer.json", "."]
    assert next(problem.where for problem in check(tiny_path)) == "modules.json"
    with pytest.raises(ValueError, match=r"has no modules\.json: save the model with save_portable"):
        fix(tiny_path)


def test_a_static_embedding_is_said_not_to_be_servable_and_fixing_keeps_it(tiny_path, tmp_path):
    static = StaticEmbedding(AutoTokenizer.from_pretrained(tiny_path), embedding_dim=16)
    model = SentenceTransformer(modules=[static, DimReduce(16, 4).to_dense()], device="cpu")
    model.save_pretrained(str(tmp_path / "p"))
    vectors = encode(tmp_path / "p")
    fix(tmp_path / "p")
    assert ["cannot serve it" in problem.reader for problem in check(tmp_path / "p")] == [True]
    assert np.array_equal(encode(tmp_path / "p"), vectors)


def test_the_command(saved, tmp_path):
    folder = str(shutil.copytree(saved / "stock", tmp_path / "model"))
    run = CliRunner().invoke
    first = run(app, ["check", folder])
    assert first.exit_code == 1
    assert len(first.output.splitlines()) == len(check(folder)) > 5
    assert run(app, ["check", folder, "--fix"]).exit_code == 0
    assert run(app, ["check", folder]).output == f"{folder}: every reader gives the model's vectors.\n"
    for path in (tmp_path, tmp_path / "none"):
        bad = run(app, ["check", str(path), "--fix"])
        assert (bad.exit_code, len(bad.stderr.splitlines())) == (2, 1), bad.output


def serve(folder, texts):
    """What Text Embeddings Inference does, in its order: pool as the first true key says, each Dense, normalise."""
    modules = json.loads((folder / "modules.json").read_text())
    assert {entry["type"].rpartition(".")[0] for entry in modules} == {"sentence_transformers.models"}
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    tokenizer, body = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    length = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    rows = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            hidden = body(**tokens).last_hidden_state[0].numpy()
        row = hidden[0] if pooling["pooling_mode_cls_token"] else hidden.mean(0)
        assert pooling["pooling_mode_cls_token"] or pooling["pooling_mode_mean_tokens"]
        for entry in modules:
            if entry["type"].endswith(".Dense"):
                config = json.loads((folder / entry["path"] / "config.json").read_text())
                weights = load_file(folder / entry["path"] / "model.safetensors")
                assert weights["linear.weight"].shape == (config["out_features"], config["in_features"])
                row = weights["linear.weight"] @ row + (weights["linear.bias"] if config["bias"] else 0)
                tanh = config["activation_function"] == "torch.nn.modules.activation.Tanh"
                row = np.tanh(row) if tanh else row
        rows.append(row / np.linalg.norm(row))
    return np.array(rows)


@pytest.mark.parametrize("name", ["minilm", "cls", "two"])
def test_served_in_numpy_in_the_servers_order_it_gives_what_encode_gives(name, minilm, tiny_path, texts, tmp_path):
    torch.manual_seed(0)
    dense = Dense(32, 24, activation_function=None)
    bases = {
        "minilm": lambda: minilm,
        "cls": lambda: tiny_of(tiny_path, "cls", Normalize()),
        "two": lambda: tiny_of(tiny_path, "mean", dense),
    }
    fitted = texts[:150] if name == "minilm" else SENTENCES
    reduced = reduce_model(bases[name](), fitted, 16)
    save_portable(reduced, tmp_path / "p")
    assert check(tmp_path / "p") == []
    asked = [*fitted[:20], " ".join(fitted[:30])]
    served, encoded = serve(tmp_path / "p", asked), reduced.encode(asked, normalize_embeddings=True)
    assert (served * encoded).sum(1).min() >= 0.9999
