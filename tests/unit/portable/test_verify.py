"""No setting is lost in silence, and what is written is compared with the model before it gets its name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding, Transformer
from transformers import AutoTokenizer

from st_dimreduce import DimReduce, check, reduce_model, save_portable
from st_dimreduce.models.folder import read_layout
from st_dimreduce.portable import layout, verify
from tests.helpers.command import run
from tests.helpers.folders import BERT, POOL, TOKENIZER, change, encode
from tests.helpers.tiny import SENTENCES, trainable


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


BEYOND = {
    "query_length": 3,
    "document_length": 3,
    "processing_kwargs": {"text": {"truncation": True, "max_length": 3}},
    "query_expansion": {"strategy": "fixed", "attend": True, "length": 8, "token": "the"},
    "unpad_inputs": False,
}


@pytest.fixture
def stock(tiny, tmp_path):
    """A reduced model as stock Sentence Transformers saves it."""
    reduce_model(tiny, SENTENCES, 8).save_pretrained(str(tmp_path / "stock"))
    return tmp_path / "stock"


@pytest.mark.parametrize("name", BEYOND)
def test_a_setting_that_cannot_be_kept_is_refused_and_stays(name, tiny_path, stock, tmp_path):
    model = SentenceTransformer(
        modules=[Transformer(tiny_path, **{name: BEYOND[name]}), Pooling(32, "mean"), DimReduce(32, 8)], device="cpu"
    )
    with pytest.raises(ValueError, match=f"it sets {name} to "):
        save_portable(model, tmp_path / "p")
    assert not (tmp_path / "p").exists()
    change(stock / BERT, **{name: BEYOND[name]})
    before = SentenceTransformer(str(stock), device="cpu").encode_query(SENTENCES)
    check(stock, fix=True)
    assert json.loads((stock / BERT).read_text())[name] == BEYOND[name]
    assert np.array_equal(SentenceTransformer(str(stock), device="cpu").encode_query(SENTENCES), before)
    said = [problem for problem in check(stock).problems if problem.where == BERT]
    assert [problem.fixable for problem in said] == [False]
    assert f"it sets {name} to " in str(said[0])
    done = run("check", stock)
    assert done.exit_code == 1
    assert "nothing is wrong" not in done.stdout


@pytest.mark.parametrize(
    ("new", "old"),
    [("model_kwargs", "model_args"), ("processor_kwargs", "tokenizer_args"), ("config_kwargs", "config_args")],
)
def test_arguments_keep_their_place_under_their_old_name(new, old, stock):
    values = {
        "model_kwargs": {"dtype": "float64"},
        "processor_kwargs": {"model_max_length": 3},
        "config_kwargs": {"dtype": "float64"},
    }[new]
    change(stock / BERT, **{new: values})
    before = encode(stock)
    check(stock, fix=True)
    said = json.loads((stock / BERT).read_text())
    assert (said[old], new in said) == (values, False)
    assert np.array_equal(encode(stock), before)
    assert check(stock)


class OwnPooling(Pooling):
    def forward(self, features):
        features = super().forward(features)
        features["sentence_embedding"] = features["sentence_embedding"].flip(1)
        return features


class OwnDense(Dense):
    """A class of the caller's own."""


class OwnNormalize(Normalize):
    def forward(self, features):
        return features


class OwnTransformer(Transformer):
    """A class of the caller's own."""


class OwnStatic(StaticEmbedding):
    """A class of the caller's own."""


class OwnHead(DimReduce):
    """A class of the caller's own."""


@pytest.mark.parametrize("kind", [OwnPooling, OwnDense, OwnNormalize, OwnTransformer, OwnStatic, OwnHead])
def test_a_class_of_ones_own_is_not_written_as_the_stock_one(kind, tiny, tiny_path, tmp_path):
    modules = [tiny[0], Pooling(32, "mean"), DimReduce(32, 8), Normalize()]
    if kind is OwnStatic:
        modules[:2] = [OwnStatic(AutoTokenizer.from_pretrained(tiny_path), embedding_dim=32)]
    else:
        place = {OwnTransformer: 0, OwnPooling: 1, OwnDense: 2, OwnHead: 2, OwnNormalize: 3}[kind]
        given = {OwnTransformer: tiny_path, OwnPooling: 32, OwnNormalize: None}.get(kind)
        modules[place] = kind(32, 8) if kind in (OwnDense, OwnHead) else kind(*([] if given is None else [given]))
    model = SentenceTransformer(modules=modules, device="cpu")
    said = rf"it names '[\w.]*{kind.__name__}'.*; use modules of Sentence Transformers"
    with pytest.raises(ValueError, match=said):
        save_portable(model, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_a_class_of_another_package_keeps_its_settings_under_whatever_name(stock):
    """Its name may be that of a stock module."""
    entries = json.loads((stock / "modules.json").read_text())
    entries[1]["type"] = "their_package.Pooling"
    (stock / "modules.json").write_text(json.dumps(entries))
    (stock / POOL).write_text(json.dumps({"pooling_mode": "mean", "embedding_dimension": 32, "theirs": 1}))
    before = content(stock)
    with pytest.raises(ValueError, match="needs code that comes with the model or from another package"):
        check(stock, fix=True)
    assert content(stock) == before
    layout.rewrite(stock, read_layout(stock, trust_remote_code=True))
    assert json.loads((stock / POOL).read_text()) == {"pooling_mode": "mean", "embedding_dimension": 32, "theirs": 1}


@pytest.mark.parametrize("end", ["input", "output"])
def test_a_normalize_of_something_else_is_refused(end, tiny, tmp_path):
    last = Normalize(**{f"module_{end}_name": "token_embeddings"})
    model = SentenceTransformer(modules=[*list(tiny)[:2], DimReduce(32, 8), last], device="cpu")
    with pytest.raises(ValueError, match="it does not normalise the sentence embedding"):
        save_portable(model, tmp_path / "p")


MISREAD = [
    ("left", "cls", True, "padding on the left with cls pooling", "before 6 "),
    ("left", "weightedmean", True, "padding on the left with weightedmean pooling", "before 6.1 "),
    ("right", "cls", False, "include_prompt=False with cls pooling", "before 6 "),
    ("left", "mean", False, "include_prompt=False with padding on the left", "before 6 "),
    ("left", "max", False, "include_prompt=False with padding on the left", "before 6 "),
]


@pytest.mark.parametrize(("side", "mode", "prompt", "what", "reader"), MISREAD)
def test_what_older_versions_pool_elsewhere_is_refused_and_named(side, mode, prompt, what, reader, tiny_path, tmp_path):
    transformer = Transformer(tiny_path)
    transformer.tokenizer.padding_side = side
    model = SentenceTransformer(
        modules=[transformer, Pooling(32, mode, include_prompt=prompt), DimReduce(32, 8)], device="cpu"
    )
    with pytest.raises(ValueError, match=f"{what}: Sentence Transformers before 6 would give other vectors"):
        save_portable(model, tmp_path / "p")
    model[2] = model[2].to_dense()
    model.save_pretrained(str(tmp_path / "p"))
    change(tmp_path / "p" / TOKENIZER, padding_side=side)  # which it does not save
    found = [problem for problem in check(tmp_path / "p").problems if problem.what == what]
    assert [(problem.fixable, *problem.outcomes.items()) for problem in found] == [(False, ("old", "different"))]
    assert f"use it from {reader.split()[1]} on" in found[0].remedy


@pytest.mark.parametrize(
    ("side", "mode", "prompt"),
    [("left", "lasttoken", False), ("left", "mean", True), ("right", "mean", False), ("right", "weightedmean", True)],
)
def test_what_all_versions_pool_alike_is_written(side, mode, prompt, tiny_path, tmp_path):
    transformer = Transformer(tiny_path)
    transformer.tokenizer.padding_side = side
    model = SentenceTransformer(
        modules=[transformer, Pooling(32, mode, include_prompt=prompt), DimReduce(32, 8)], device="cpu"
    )
    save_portable(model, tmp_path / "p")
    assert np.allclose(encode(tmp_path / "p"), model.encode(SENTENCES), atol=1e-6)


def spoil_weights(folder, *_):
    from safetensors.numpy import load_file, save_file

    path = folder / "2_Dense" / "model.safetensors"
    tensors = load_file(path)
    tensors["linear.weight"][0] *= -1
    save_file(tensors, path)


def spoil_prompts(folder, *_):
    change(folder / "config_sentence_transformers.json", prompts={"query": "the old cat "})


def spoil_length(folder, *_):
    change(folder / BERT, max_seq_length=5)


def spoil_norm(folder, *_):
    entries = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(entries[:3]))


@pytest.mark.parametrize("spoil", [spoil_weights, spoil_prompts, spoil_length, spoil_norm])
@pytest.mark.parametrize("command", ["save", "check"])
def test_what_would_give_other_vectors_does_not_take_the_models_place(spoil, command, tiny, tmp_path, monkeypatch):
    model = reduce_model(tiny, SENTENCES, 8)
    model.prompts = {"query": "the small dog "}
    model.save_pretrained(str(tmp_path / "p"))
    before, rewrite = content(tmp_path / "p"), layout.rewrite

    def spoiled(folder, parts):
        rewrite(folder, parts)
        spoil(folder)

    monkeypatch.setattr(f"st_dimreduce.portable.{command}.rewrite", spoiled)
    with pytest.raises(ValueError, match="what was written gives other vectors than the model"):
        save_portable(model, tmp_path / "p", overwrite=True) if command == "save" else check(tmp_path / "p", fix=True)
    assert content(tmp_path / "p") == before
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_fix_compares_with_code_of_the_models_own_only_where_it_is_trusted(stock, tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "their_package.py").write_text(
        "from sentence_transformers.sentence_transformer.modules import Normalize\nclass Theirs(Normalize): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    entries = json.loads((stock / "modules.json").read_text())
    entries[3] |= {"type": "their_package.Theirs"}
    (stock / "modules.json").write_text(json.dumps(entries))
    before = content(stock)
    done = run("check", stock, "--fix")
    assert done.exit_code == 2
    assert "--trust-remote-code" in done.stderr
    assert content(stock) == before
    done = run("check", stock, "--fix", "--trust-remote-code")
    assert done.exit_code == 1, done.output
    assert "their_package.Theirs" in done.stdout
    assert content(stock) != before


def test_a_tokenizer_that_splits_its_special_tokens_is_kept(tiny, tmp_path):
    tiny[0].tokenizer.split_special_tokens = True
    model = reduce_model(tiny, SENTENCES, 8)
    save_portable(model, tmp_path / "p")
    again = SentenceTransformer(str(tmp_path / "p"), device="cpu")
    texts = ["[CLS] cat [SEP] dog", "a [PAD] b"]
    assert np.allclose(again.encode(texts), model.encode(texts), atol=1e-6)


@pytest.mark.parametrize("link", ["hidden file", "hidden folder", "folder"])
def test_fix_copies_nothing_that_a_link_leads_to(link, stock, tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("secret")
    (stock / ".x").mkdir()
    place, target = {
        "hidden file": (stock / ".x" / "key", tmp_path / "private" / "key"),
        "hidden folder": (stock / ".x" / "keys", tmp_path / "private"),
        "folder": (stock / ".x" / "up", stock),
    }[link]
    place.symlink_to(target)
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"is a link"):
        check(stock, fix=True)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_modules_in_training_are_so_afterwards(tiny, tmp_path):
    model = trainable(reduce_model(tiny, SENTENCES, 8))
    model.train()
    model[0].eval()
    before = [module.training for module in model.modules()]
    save_portable(model, tmp_path / "p")
    assert [module.training for module in model.modules()] == before
    assert len(set(before)) == 2


def test_vectors_are_alike_up_to_rounding():
    vectors = torch.randn(5, 8).numpy()
    verify.compare_vectors(vectors, vectors * (1 + 1e-6), "here")
    verify.compare_vectors(np.zeros((2, 8)), np.zeros((2, 8)), "here")
    for other in (vectors * 1.1, -vectors, np.roll(vectors, 1, axis=1), vectors * np.nan):
        with pytest.raises(ValueError, match="gives other vectors than the model here"):
            verify.compare_vectors(vectors, other, "here")
    with pytest.raises(ValueError, match="gives 7 dimensions, the model 8"):
        verify.compare_vectors(vectors, vectors[:, :7], "here")


def test_a_copy_that_was_fixed_is_fixed_again_without_a_change(stock, tmp_path):
    check(stock, fix=True)
    once = content(stock)
    shutil.copytree(stock, tmp_path / "again")
    check(tmp_path / "again", fix=True)
    assert content(tmp_path / "again") == once
