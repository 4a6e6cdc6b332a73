"""Heads read from folders, of their own or of a reduced model."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

from st_dimreduce import DimReduce, Head, Size, reduce_model, save_portable
from st_dimreduce.models.load import load_head, load_model
from tests.helpers.tiny import SENTENCES

X = np.random.default_rng(0).standard_normal((400, 32)).astype(np.float32) * np.linspace(2, 0.1, 32, dtype=np.float32)


def test_a_head_is_read_as_it_was_written(tmp_path):
    head = Head.fit(X, Size(bytes=4))
    head.save(tmp_path / "head")
    read = load_head(tmp_path / "head")
    assert np.array_equal(read.forward(X), head.forward(X))
    assert read.record == head.record
    assert read.precision == head.precision != "float32"


def test_the_head_of_a_reduced_model(tiny, tmp_path):
    model = reduce_model(tiny, SENTENCES, Size(bytes=4))
    save_portable(model, tmp_path / "model")
    head, whole = load_head(tmp_path / "model"), Head.from_model(model)
    assert np.array_equal(head.forward(X), whole.forward(X))
    assert head.record == whole.record
    assert head.precision == whole.precision != "float32"


@pytest.mark.parametrize("trainable", [False, True])
def test_the_head_of_a_model_saved_by_sentence_transformers(trainable, tiny, tmp_path):
    model = Head.from_model(reduce_model(tiny, SENTENCES, Size(bytes=4))).attach(tiny, trainable=trainable)
    model.save_pretrained(str(tmp_path / "model"))
    head, whole = load_head(tmp_path / "model"), Head.from_model(model)
    assert np.array_equal(head.forward(X), whole.forward(X))
    assert head.record.to_dict() == whole.record.to_dict(large=trainable)
    assert head.precision == whole.precision != "float32"


def test_the_model_is_not_loaded_for_its_head(saved, tmp_path):
    folder = shutil.copytree(saved / "portable", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    code = """
import sys
from st_dimreduce import Head
print(Head.load(sys.argv[1]).out_features, {"torch", "transformers", "sentence_transformers"} & sys.modules.keys())
"""
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "8 set()\n"


@pytest.mark.parametrize("damage", ["empty", "weights", "config", "record", "missing"])
def test_a_damaged_head_is_named(damage, tmp_path):
    DimReduce(5, 2).to_head().save(tmp_path / "head")
    name = {"weights": "model.safetensors", "config": "config.json", "record": "st_dimreduce.json"}.get(damage)
    if name:
        (tmp_path / "head" / name).write_text("{")
    if damage == "empty":
        for path in (tmp_path / "head").iterdir():
            path.unlink()
    if damage == "missing":
        (tmp_path / "head" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="head holds no head: expected the folder of a head or of a reduced model"):
        load_head(tmp_path / "head")


def test_no_head_at_all(tiny, tmp_path):
    tiny.save_pretrained(str(tmp_path / "base"))
    with pytest.raises(
        ValueError, match=r"base holds no head: .*the model ends in 'Transformer': expected a DimReduce"
    ):
        load_head(tmp_path / "base")
    with pytest.raises(
        ValueError, match=r"nowhere holds no head: .*it is neither a folder nor the name of a model on the Hub"
    ):
        load_head(tmp_path / "nowhere")
    (tmp_path / "file").write_text("{}")
    with pytest.raises(ValueError, match=r"file holds no head: .*it is a file"):
        load_head(tmp_path / "file")


def test_a_residual_connection_is_no_head(tiny_path, tmp_path):
    modules = [Transformer(tiny_path), Pooling(32, "mean"), Dense(32, 8, use_residual=True)]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "model"))
    with pytest.raises(ValueError, match="has a residual connection"):
        load_head(tmp_path / "model")


def test_a_path_in_modules_json_stays_in_the_folder(saved, tmp_path):
    folder = shutil.copytree(saved / "portable", tmp_path / "model")
    (folder / "modules.json").write_text((folder / "modules.json").read_text().replace("2_Dense", "../head"))
    DimReduce(32, 8).to_head().save(tmp_path / "head")
    with pytest.raises(ValueError, match="expected one inside the model's folder"):
        load_head(folder)


@pytest.mark.parametrize("lost", ["layer.1.", "word_embeddings", "transformer."])
def test_weights_that_are_missing_are_not_made_up(lost, tiny, tmp_path):
    """A reader would fill them with random numbers, other ones at each load."""
    tiny.save_pretrained(str(tmp_path / "m"))
    weights = tmp_path / "m" / "model.safetensors"
    tensors = load_file(weights)
    kept = {name: tensor for name, tensor in tensors.items() if lost not in name}
    assert len(kept) < len(tensors)
    save_file(kept, weights, {"format": "pt"})
    lost = sum(tensor.size for tensor in tensors.values()) - sum(tensor.size for tensor in kept.values())
    with pytest.raises(ValueError, match=rf"lacks {lost:,} of the weights that its config.json asks for"):
        load_model(tmp_path / "m")


def test_weights_under_the_names_of_a_larger_model_are_found(tiny, tmp_path):
    tiny.save_pretrained(str(tmp_path / "m"))
    weights = tmp_path / "m" / "model.safetensors"
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = {re.sub("|".join(old), lambda new: old[new[0]], name): rows for name, rows in load_file(weights).items()}
    assert "embeddings.LayerNorm.gamma" in tensors
    save_file({f"distilbert.{name}": tensor for name, tensor in tensors.items()}, weights, {"format": "pt"})
    assert np.allclose(load_model(tmp_path / "m", device="cpu").encode(["a cat"]), tiny.encode(["a cat"]))


def test_a_kind_that_came_with_code_is_not_filled_with_random_numbers(tiny, tmp_path):
    tiny.save_pretrained(str(tmp_path / "m"))
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"auto_map": {"AutoModel": "user/code--modeling_own.OwnModel"}}))
    assert load_model(tmp_path / "m").encode(["a cat"]).shape == (1, 32), "transformers knows this kind itself"
    weights = tmp_path / "m" / "model.safetensors"
    tensors = load_file(weights)
    tensors["transformer.layer.0.ffn.gated.weight"] = np.repeat(
        tensors.pop("transformer.layer.0.ffn.lin1.weight"), 2, 0
    )
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(ValueError, match=r"lin1.weight', which would be random numbers.*--trust-remote-code"):
        load_model(tmp_path / "m")


@pytest.mark.parametrize("name", ["../outside.bin", "/outside.bin", "C:\\outside.bin"])
@pytest.mark.parametrize("index", ["pytorch_model.bin.index.json", "model.safetensors.index.json"])
def test_an_index_of_weights_leads_out_of_no_folder(name, index, tiny, tmp_path):
    tiny.save_pretrained(str(tmp_path / "m"))
    weights = tmp_path / "m" / "model.safetensors"
    places = dict.fromkeys(load_file(weights), name)
    weights.unlink()
    (tmp_path / "m" / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    with pytest.raises(ValueError, match="expected one inside the model's folder"):
        load_model(tmp_path / "m")
