from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    StaticEmbedding,
    Transformer,
)
from transformers import AutoTokenizer

from st_dimreduce import DimReduce, reduce_model, save_portable
from st_dimreduce.portable.card import model_card
from st_dimreduce.portable.layout import POOLING_KEYS
from st_dimreduce.portable.serving import Serving
from tests.helpers.tiny import SENTENCES, trainable


def read(path, *names):
    return json.loads(Path(path, *names).read_text())


def test_is_written_in_the_layout_that_old_readers_know(tiny, tmp_path):
    save_portable(reduce_model(tiny, SENTENCES, 8), tmp_path / "p")
    types = [(entry["path"], entry["type"]) for entry in read(tmp_path, "p", "modules.json")]
    assert types == [
        ("", "sentence_transformers.models.Transformer"),
        ("1_Pooling", "sentence_transformers.models.Pooling"),
        ("2_Dense", "sentence_transformers.models.Dense"),
        ("3_Normalize", "sentence_transformers.models.Normalize"),
    ]
    pooling = read(tmp_path, "p", "1_Pooling", "config.json")
    assert pooling["word_embedding_dimension"] == 32
    assert [key for key, value in pooling.items() if value is True and key.startswith("pooling")] == [
        "pooling_mode_mean_tokens"
    ]
    assert read(tmp_path, "p", "2_Dense", "config.json") == {
        "in_features": 32,
        "out_features": 8,
        "bias": False,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    assert read(tmp_path, "p", "sentence_bert_config.json") == {"max_seq_length": 24, "do_lower_case": False}
    assert "__version__" not in read(tmp_path, "p", "config_sentence_transformers.json")
    kinds = {path.suffix for path in (tmp_path / "p").rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors", ".md"}


def test_the_record_and_the_figures_are_written(tiny, tmp_path):
    save_portable(reduce_model(tiny, SENTENCES, 8, seed=5), tmp_path / "p", figures={"documents": 2})
    record = read(tmp_path, "p", "st_dimreduce.json")
    assert (record["in_features"], record["out_features"], record["seed"], record["vectors"]) == (
        32,
        8,
        5,
        len(SENTENCES),
    )
    assert record["figures"] == {"documents": 2}
    assert set(record["versions"]) == {"st_dimreduce", "sentence-transformers", "transformers", "torch", "numpy"}
    assert str(tmp_path) not in json.dumps(record) + (tmp_path / "p" / "README.md").read_text()


@pytest.mark.parametrize(
    "mode",
    ["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ("cls", "mean"), ("max", "mean")],
)
def test_every_pooling_mode(tiny_path, tmp_path, mode):
    transformer = Transformer(tiny_path)
    pooling = Pooling(32, mode)
    model = SentenceTransformer(
        modules=[transformer, pooling, DimReduce(pooling.pooling_output_dimension, 8)], device="cpu"
    )
    save_portable(model, tmp_path / "p")
    assert np.array_equal(
        SentenceTransformer(str(tmp_path / "p"), device="cpu").encode(SENTENCES), model.encode(SENTENCES)
    )


def test_prompts_similarity_and_length_survive(tiny, tmp_path):
    tiny.prompts = {"query": "query : ", "document": "document : "}
    tiny.default_prompt_name, tiny.similarity_fn_name, tiny.max_seq_length = "query", "dot", 7
    reduced = reduce_model(tiny, SENTENCES, 8)
    save_portable(reduced, tmp_path / "p")
    again = SentenceTransformer(str(tmp_path / "p"), device="cpu")
    assert again.prompts == tiny.prompts
    assert (again.default_prompt_name, again.similarity_fn_name, again.max_seq_length) == ("query", "dot", 7)
    assert np.array_equal(again.encode_query(SENTENCES), reduced.encode_query(SENTENCES))
    assert np.array_equal(again.encode_document(SENTENCES), reduced.encode_document(SENTENCES))


def test_two_heads_an_identity_and_a_static_embedding(tiny, tiny_path, tmp_path):
    torch.manual_seed(0)
    two = SentenceTransformer(
        modules=[*list(tiny)[:2], Dense(32, 16, activation_function=None), DimReduce(16, 8), Normalize()], device="cpu"
    )
    static = StaticEmbedding(AutoTokenizer.from_pretrained(tiny_path), embedding_dim=16)
    for name, model in (
        ("two", two),
        ("static", SentenceTransformer(modules=[static, DimReduce(16, 4)], device="cpu")),
    ):
        save_portable(model, tmp_path / name)
        again = SentenceTransformer(str(tmp_path / name), device="cpu")
        assert np.array_equal(again.encode(SENTENCES), model.encode(SENTENCES))


def test_half_precision_keeps_its_weights(tiny, tmp_path):
    reduced = reduce_model(tiny, SENTENCES, 8).half()
    save_portable(reduced, tmp_path / "p")
    again = SentenceTransformer(str(tmp_path / "p"), device="cpu")
    assert np.allclose(again.encode(SENTENCES), reduced.encode(SENTENCES), atol=2e-3)


def test_every_setting_is_written_as_it_is(tiny, tiny_path, tmp_path):
    tiny.prompts = {"query": "질문: ", "document": None}
    tiny[0], tiny[1].include_prompt = Transformer(tiny_path, do_lower_case=True), False
    reduced = reduce_model(tiny, SENTENCES, 8, seed=3)
    reduced.truncate_dim, reduced.max_seq_length = 4, 10**9
    save_portable(reduced, tmp_path / "p")
    assert read(tmp_path, "p", "sentence_bert_config.json") == {"max_seq_length": None, "do_lower_case": True}
    assert read(tmp_path, "p", "1_Pooling", "config.json") == {
        "word_embedding_dimension": 32,
        **{key: key == "pooling_mode_mean_tokens" for key in POOLING_KEYS.values()},
        "include_prompt": False,
    }
    config = {
        "prompts": {"query": "질문: ", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    assert read(tmp_path, "p", "config_sentence_transformers.json") == config | {"truncate_dim": 4}
    record = read(tmp_path, "p", "st_dimreduce.json")
    head = DimReduce.from_model(reduced)
    assert record == {"in_features": 32, "out_features": 8, **head.record.to_dict()}
    names = ("st_dimreduce", "sentence-transformers", "transformers", "torch", "numpy")
    assert record["versions"] == {name: version(name) for name in names}
    card = model_card(head.record, 32, 8, serving=Serving.of(tmp_path / "p"))
    assert (tmp_path / "p" / "README.md").read_text(encoding="utf-8") == card
    text = (tmp_path / "p" / "config_sentence_transformers.json").read_bytes().decode("utf-8")
    assert text.startswith('{\n  "default_prompt_name": null,\n')
    assert '\n    "query": "질문: "' in text
    assert text.endswith("}\n")
    reduced.truncate_dim, reduced.max_seq_length = None, 10**9 - 1
    save_portable(reduced, tmp_path / "q")
    assert read(tmp_path, "q", "config_sentence_transformers.json") == config
    assert read(tmp_path, "q", "sentence_bert_config.json")["max_seq_length"] == 10**9 - 1


def test_modules_are_numbered_and_a_normalize_has_no_folder(tiny, tmp_path):
    save_portable(reduce_model(tiny, SENTENCES, 8), tmp_path / "p")
    entries = read(tmp_path, "p", "modules.json")
    assert [(entry["idx"], entry["name"]) for entry in entries] == [(0, "0"), (1, "1"), (2, "2"), (3, "3")]
    assert sorted(path.name for path in (tmp_path / "p").iterdir() if path.is_dir()) == ["1_Pooling", "2_Dense"]


@pytest.mark.parametrize("form", [lambda model: model, trainable])
def test_the_model_is_left_unchanged(tiny, tmp_path, form):
    reduced = form(reduce_model(tiny, SENTENCES, 8))
    reduced.train()
    reduced[0].auto_model.config.st_dimreduce = kept = {"precision": "int8"}
    modules, before = list(reduced), {name: value.clone() for name, value in reduced.state_dict().items()}
    save_portable(reduced, tmp_path / "p", figures={"documents": 2})
    assert all(module is now for module, now in zip(modules, reduced, strict=True))
    assert all(torch.equal(value, before[name]) for name, value in reduced.state_dict().items())
    assert reduced[0].auto_model.config.st_dimreduce is kept
    assert reduced.training
    assert DimReduce.from_model(reduced).record.figures is None


def test_an_existing_folder_is_kept_unless_told_otherwise(tiny, tmp_path):
    one, two = (reduce_model(tiny, SENTENCES, size) for size in (8, 4))
    save_portable(one, tmp_path / "p")
    with pytest.raises(FileExistsError, match="exists: choose another folder, or replace it with overwrite=True"):
        save_portable(two, tmp_path / "p")
    assert SentenceTransformer(str(tmp_path / "p"), device="cpu").get_embedding_dimension() == 8
    save_portable(two, tmp_path / "p", overwrite=True)
    assert SentenceTransformer(str(tmp_path / "p"), device="cpu").get_embedding_dimension() == 4
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_a_folder_that_is_no_model_is_never_replaced(tiny, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("three years")
    with pytest.raises(FileExistsError, match=r"holds no modules\.json: choose another folder, this is never replaced"):
        save_portable(reduce_model(tiny, SENTENCES, 8), tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "three years"


def test_a_failure_half_way_leaves_the_old_model_and_nothing_else(tiny, tmp_path, monkeypatch):
    reduced = reduce_model(tiny, SENTENCES, 8)
    save_portable(reduced, tmp_path / "p")

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("st_dimreduce.portable.save.model_card", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_portable(reduced, tmp_path / "p", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    assert np.array_equal(
        SentenceTransformer(str(tmp_path / "p"), device="cpu").encode(SENTENCES), reduced.encode(SENTENCES)
    )


def test_a_place_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match="cannot be written"):
        save_portable(reduce_model(tiny, SENTENCES, 8), tmp_path / "file" / "p")


def test_no_other_maximum_length_is_written_than_the_models(tiny_path, tmp_path):
    transformer = Transformer(tiny_path, max_seq_length=7)
    transformer.tokenizer.init_kwargs["max_length"] = 4  # as where the base model's tokenizer.json cuts
    model = SentenceTransformer(modules=[transformer, Pooling(32, "mean")], device="cpu")
    save_portable(reduce_model(model, SENTENCES, 8), tmp_path / "p")
    written = read(tmp_path / "p", "tokenizer_config.json")
    assert (written["max_length"], written["model_max_length"]) == (7, 7)
