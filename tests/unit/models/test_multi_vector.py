"""Late-interaction models, reduced: the same modules, the cosines of tokens, the record."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Transformer
from torch import nn

from st_dimreduce import Head, Summary, TokenCodes, fit_head, reduce_multi_vector, search_multi_vector
from st_dimreduce.models.load import load_model
from st_dimreduce.models.multi_vector import token_record
from tests.helpers.tiny import SENTENCES

TOKENS = "token_embeddings"


def layer(activation=None, **options):
    torch.manual_seed(1)
    return Dense(32, 24, activation_function=activation or nn.Identity(), module_input_name=TOKENS, **options)


def late(tiny_path, *modules, mask=None):
    """A late-interaction model: the tiny DistilBERT, and modules between it and Normalize."""
    ends = [mask or MultiVectorMask(), Normalize(module_input_name=TOKENS)]
    prompts = {"query": "query : ", "document": "document : "}
    return MultiVectorEncoder(modules=[Transformer(tiny_path), *modules, *ends], device="cpu", prompts=prompts)


def kinds(model):
    return [type(module).__name__ for module in model]


def tokens(model, texts=SENTENCES):
    return np.concatenate(model.encode_document(texts, convert_to_numpy=True))


@pytest.fixture
def base(tiny_path):
    return late(tiny_path, layer(bias=False))


def test_the_head_is_multiplied_into_the_layer_that_gives_the_token_vectors(base):
    before = {name: value.clone() for name, value in base.state_dict().items()}
    reduced = reduce_multi_vector(base, SENTENCES, 8, objective="quality")
    assert kinds(reduced) == kinds(base) == ["Transformer", "Dense", "MultiVectorMask", "Normalize"]
    assert (reduced[1].in_features, reduced[1].out_features, reduced[1].bias) == (32, 8, False)
    assert isinstance(reduced[1].activation_function, nn.Identity)
    assert (base.prompts, base.similarity_fn_name) == (reduced.prompts, reduced.similarity_fn_name)
    head = fit_head(Summary.of(tokens(base)), 8, objective="quality")
    np.testing.assert_allclose(tokens(reduced), head.reduce_stored(tokens(base), True), atol=2e-3)  # but for the Tanh
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        ([], ["Dense"]),
        ([layer(nn.Tanh())], ["Dense", "Dense"]),
        ([layer(use_residual=True)], ["Dense", "Dense"]),
        ([layer(), Normalize(TOKENS), HierarchicalTokenPooling(2)], ["Dense", "Normalize", "HierarchicalTokenPooling"]),
    ],
)
def test_a_model_without_a_linear_layer_there_gets_one(tiny_path, modules, expected):
    base = late(tiny_path, *modules)
    reduced = reduce_multi_vector(base, SENTENCES, 8, objective="quality")
    assert kinds(reduced) == ["Transformer", *expected, "MultiVectorMask", "Normalize"]
    assert tokens(reduced).shape[1] == 8
    assert np.linalg.norm(tokens(reduced), axis=1) == pytest.approx(1, abs=1e-5)


def test_all_dimensions_keep_every_score(base, tiny_path):
    for model in (base, late(tiny_path), late(tiny_path, layer(bias=True))):
        found = tokens(model)
        head = fit_head(Summary.of(found), found.shape[1], objective="fidelity", train=False)
        both = model, reduce_multi_vector(model, head=head)
        scores = [each.similarity(each.encode_query(SENTENCES[:4]), each.encode_document(SENTENCES)) for each in both]
        np.testing.assert_allclose(*scores, atol=1e-3)


def test_it_loads_without_this_package_and_keeps_the_record(base, tmp_path):
    reduced = reduce_multi_vector(base, SENTENCES, bytes_per_token=2)
    record = token_record(reduced)
    assert record.precision.bytes_per_vector(reduced.get_embedding_dimension()) <= 2
    assert (record.folded, record.objective, record.vectors) == (24, "fidelity", len(tokens(base)))
    for name, model in (("base", base), ("reduced", reduced)):
        model.save_pretrained(str(tmp_path / name))
    files = [
        {str(file.relative_to(folder)) for file in folder.rglob("*")}
        for folder in map(tmp_path.joinpath, ("base", "reduced"))
    ]
    assert files[0] == files[1]
    assert (
        json.loads((tmp_path / "reduced" / "1_Dense" / "config.json").read_text())["out_features"]
        == reduced[1].out_features
    )
    again = MultiVectorEncoder(str(tmp_path / "reduced"), device="cpu")
    assert token_record(again) == record
    np.testing.assert_array_equal(tokens(again), tokens(reduced))
    codes = TokenCodes.of(again.encode_document(SENTENCES), record.precision)
    scores, rows = search_multi_vector(again.encode_query(SENTENCES[:3]), codes, 5)
    assert scores.shape == rows.shape == (3, 5)
    with pytest.raises(ValueError, match="reduce it with reduce_multi_vector"):
        load_model(tmp_path / "reduced")


def test_masks_and_expansion_stay(tiny_path):
    torch.manual_seed(0)
    transformer = Transformer(
        tiny_path, query_expansion={"strategy": "fixed", "length": 12, "attend": False, "token": "[MASK]"}
    )
    ends = [MultiVectorMask(skiplist_words=["the"]), Normalize(module_input_name=TOKENS)]
    base = MultiVectorEncoder(modules=[transformer, layer(bias=False), *ends], device="cpu")
    reduced = reduce_multi_vector(base, SENTENCES, 8, objective="quality")
    for encode in ("encode_query", "encode_document"):
        one, other = (getattr(model, encode)(["the cat runs near"]) for model in (base, reduced))
        assert one[0].shape[0] == other[0].shape[0]
    assert len(reduced.encode_query(["the cat"])[0]) == 12
    assert len(reduced.encode_document(["the cat"])[0]) == len(reduced.encode_document(["cat"])[0])


def test_a_head_of_stored_token_vectors_is_attached(base):
    head = fit_head(Summary.of(tokens(base)), 8, objective="quality")
    reduced = reduce_multi_vector(base, head=head)
    np.testing.assert_allclose(tokens(reduced), head.reduce_stored(tokens(base), True), atol=2e-3)
    assert token_record(reduced).gain == head.record.gain


def test_quality_leaves_out_what_all_tokens_share(base):
    found = {kind: tokens(reduce_multi_vector(base, SENTENCES, 16, objective=kind)) for kind in ("quality", "fidelity")}
    means = {kind: np.linalg.norm(some.mean(axis=0)) for kind, some in found.items()}
    assert means["quality"] < 0.5 * means["fidelity"]


def test_texts_are_streamed(base, monkeypatch):
    monkeypatch.setattr("st_dimreduce.models.multi_vector._CHUNK", 7)
    one = reduce_multi_vector(base, (text for text in SENTENCES), 8, objective="quality")
    assert token_record(one).vectors == len(tokens(base))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither of sentences and head were given"),
        ({"sentences": SENTENCES, "head": Head(np.eye(8, 24))}, "both of sentences and head were given"),
        ({"sentences": SENTENCES, "out_features": 8, "bytes_per_token": 8}, "out_features and bytes_per_token were"),
        ({"sentences": SENTENCES, "out_features": 25}, "out_features=25: choose a size from 1 to 24, what the base"),
        ({"sentences": SENTENCES, "out_features": 0}, "out_features=0: choose a size from 1 to 24"),
        ({"sentences": SENTENCES, "bytes_per_token": 0}, "bytes_per_token=0: choose a budget of at least 1"),
        ({"sentences": "one", "out_features": 8}, "sentences is a str, 'one': expected a list of str"),
        ({"sentences": [], "out_features": 8}, "there is no sentence to fit on"),
        ({"sentences": SENTENCES[:1], "out_features": 24}, "vectors cannot fit out_features=24"),
        ({"sentences": SENTENCES, "out_features": 8, "objective": "speed"}, "unknown objective 'speed'"),
        ({"head": Head(np.eye(8, 24)), "out_features": 8}, "a size was given with a head"),
        ({"head": Head(np.eye(8, 32))}, "the head takes 32 dimensions, the model gives 24 per token"),
        ({"head": Head(np.eye(8, 24))}, "the head has a bias, or no gain of at most 0.1"),
        ({"head": Head(np.eye(8, 24), np.ones(8), "Identity")}, "the head has a bias"),
    ],
)
def test_says_what_is_wrong(base, arguments, message):
    with pytest.raises(ValueError, match=message):
        reduce_multi_vector(base, **arguments)


def test_refuses_other_models(base, tiny, tiny_path, monkeypatch):
    for other in (tiny, tiny_path):
        with pytest.raises(ValueError, match=r"the model is of type .*: expected a MultiVectorEncoder"):
            reduce_multi_vector(other, SENTENCES, 8)
    longer = MultiVectorEncoder(modules=[Transformer(tiny_path), MultiVectorMask()], device="cpu")
    with pytest.raises(ValueError, match=r"token vectors have norms of .*: expected norm 1, add Normalize"):
        reduce_multi_vector(longer, SENTENCES, 8)
    with pytest.raises(ValueError, match="the model has no fit record"):
        token_record(base)
    monkeypatch.delattr(sys.modules["sentence_transformers"], "MultiVectorEncoder")
    with pytest.raises(ValueError, match=r"Sentence Transformers .* has no MultiVectorEncoder: install a newer one"):
        reduce_multi_vector(base, SENTENCES, 8)
