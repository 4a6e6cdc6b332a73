from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding, Transformer
from transformers import AutoTokenizer

from st_dimreduce import DimReduce, Head, Precision, Size, compare, reduce_model, save_portable
from st_dimreduce.recipe import reduce_and_compare
from tests.helpers.tiny import SENTENCES


def names(model):
    return [type(module).__name__ for module in model]


def cosine(one, other):
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


def test_head_stands_between_pooling_and_normalize_as_a_stock_dense(tiny):
    reduced = reduce_model(tiny, SENTENCES, 8)
    assert names(reduced) == ["Transformer", "Pooling", "Dense", "Normalize"]
    assert type(reduced[2]) is Dense
    assert np.allclose(np.linalg.norm(reduced.encode(SENTENCES), axis=1), 1, atol=1e-5)
    assert names(Head.from_model(reduced).attach(tiny, trainable=True))[2] == "DimReduce"


def test_without_normalize_none_is_added(tiny):
    base = SentenceTransformer(modules=list(tiny)[:2], device="cpu")
    assert names(reduce_model(base, SENTENCES, 8)) == ["Transformer", "Pooling", "Dense"]


def test_save_pretrained_loads_without_a_flag(tiny, tmp_path):
    reduced = reduce_model(tiny, SENTENCES, 8)
    reduced.save_pretrained(str(tmp_path))
    assert np.array_equal(SentenceTransformer(str(tmp_path), device="cpu").encode(SENTENCES), reduced.encode(SENTENCES))


def test_behind_a_model_that_ends_in_dense(tiny):
    torch.manual_seed(0)
    base = SentenceTransformer(modules=[*list(tiny)[:2], Dense(32, 24), Normalize()], device="cpu")
    reduced = reduce_model(base, SENTENCES, 8)
    assert names(reduced) == ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]
    head = Head.from_model(reduced)
    assert head.in_features == 24
    assert cosine(head.forward(base.encode(SENTENCES)), reduced.encode(SENTENCES)).min() >= 0.9999


def test_behind_a_static_embedding(tiny_path):
    torch.manual_seed(0)
    base = SentenceTransformer(
        modules=[StaticEmbedding(AutoTokenizer.from_pretrained(tiny_path), embedding_dim=16)], device="cpu"
    )
    reduced = reduce_model(base, SENTENCES, 8)
    assert names(reduced) == ["StaticEmbedding", "Dense"]
    assert reduced.encode(SENTENCES).shape == (len(SENTENCES), 8)


def test_the_base_model_is_left_as_it_was(tiny):
    tiny.prompts = {"query": "query : ", "document": "document : "}
    before = copy.deepcopy(tiny.state_dict())
    vectors = tiny.encode(SENTENCES)
    reduced = reduce_model(tiny, SENTENCES, 8)
    for parameter in reduced.parameters():
        parameter.data.zero_()
    reduced.max_seq_length = 3
    assert all(torch.equal(value, before[key]) for key, value in tiny.state_dict().items())
    assert np.array_equal(tiny.encode(SENTENCES), vectors)
    assert tiny.max_seq_length == 24
    assert names(tiny) == ["Transformer", "Pooling", "Normalize"]


def test_prompts_similarity_and_length_survive(tiny):
    tiny.prompts = {"query": "query : ", "document": "document : "}
    tiny.default_prompt_name, tiny.similarity_fn_name, tiny.max_seq_length = "query", "dot", 11
    reduced = reduce_model(tiny, SENTENCES, 8)
    assert reduced.prompts == tiny.prompts
    assert (reduced.default_prompt_name, reduced.similarity_fn_name, reduced.max_seq_length) == ("query", "dot", 11)


def test_texts_are_encoded_with_the_document_prompt(tiny):
    plain = DimReduce.from_model(reduce_model(tiny, SENTENCES, 8)).linear.weight
    tiny.prompts = {"query": "query : ", "document": "document : "}
    prompted = DimReduce.from_model(reduce_model(tiny, SENTENCES, 8)).linear.weight
    assert not torch.allclose(plain, prompted)


def test_texts_and_their_vectors_give_the_same_subspace(tiny):
    heads = Head.from_model(reduce_model(tiny, SENTENCES, 8)), Head.fit(tiny.encode_document(SENTENCES), 8)
    spans = [head.weight.T @ head.weight / np.square(head.weight).sum() for head in heads]  # which no rotation changes
    assert np.allclose(*spans, atol=1e-4)


def test_takes_a_generator_and_a_path(tiny_path, tmp_path, tiny):
    tiny.save_pretrained(str(tmp_path))
    reduced = reduce_model(tmp_path, (text for text in SENTENCES), 8)
    assert np.allclose(reduced.encode(SENTENCES), reduce_model(tiny, SENTENCES, 8).encode(SENTENCES), atol=1e-5)


def test_half_precision_base(tiny):
    reduced = reduce_model(tiny.half(), SENTENCES, 8)
    assert reduced[2].linear.weight.dtype == torch.float16
    assert np.isfinite(reduced.encode(SENTENCES)).all()


def test_same_seed_same_model(tiny):
    one, two = (reduce_model(tiny, SENTENCES, 8, seed=3).encode(SENTENCES) for _ in range(2))
    assert np.array_equal(one, two)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((SENTENCES, 0), "dim=0: choose a size of at least 1"),
        ((SENTENCES, 33), "dim=33: choose a size from 1 to 32, what the base model gives"),
        ((SENTENCES[:5], 8), "5 texts cannot fit dim=8: give more, or choose fewer"),
        (([], 8), "0 texts cannot fit"),
        ((iter(()), 8), "texts is empty: give texts to fit on, or fit on stored vectors with Head.fit"),
        (("a cat", 1), "texts is a str, 'a cat': expected a list of str"),
        ((["a cat", None], 1), "text 1 is of type NoneType: expected a string"),
    ],
)
def test_bad_input(tiny, arguments, message):
    with pytest.raises(ValueError, match=message):
        reduce_model(tiny, *arguments)


def test_models_that_cannot_be_reduced(tiny, tiny_path, tmp_path):
    with pytest.raises(ValueError, match="no model could be loaded from 'no/such-model'"):
        reduce_model("no/such-model", SENTENCES)
    with pytest.raises(ValueError, match="no model could be loaded"):
        reduce_model(str(tmp_path), SENTENCES)
    only_tokens = SentenceTransformer(modules=[Transformer(tiny_path)], device="cpu")
    with pytest.raises(ValueError, match="gives no sentence embedding"):
        reduce_model(only_tokens, SENTENCES)
    tiny.truncate_dim = 16
    with pytest.raises(ValueError, match="truncate_dim=16: load it without"):
        reduce_model(tiny, SENTENCES)


def test_one_model_of_several_sizes(tiny, tmp_path):
    reduced = reduce_model(tiny, SENTENCES, Size(nested=(8, 16)))
    save_portable(reduced, tmp_path / "nested")
    small = SentenceTransformer(str(tmp_path / "nested"), truncate_dim=8, device="cpu")
    own = reduce_model(tiny, SENTENCES, 8)
    assert small.encode(SENTENCES).shape == (128, 8)
    ours, theirs = (model.similarity(*[model.encode(SENTENCES)] * 2) for model in (small, own))
    assert np.allclose(ours, theirs, atol=1e-3)
    assert DimReduce.from_model(SentenceTransformer(str(tmp_path / "nested"))).out_features == 16


def test_behind_a_head_on_tokens(tiny_path):
    head = DimReduce(32, 8, module_input_name="token_embeddings")
    base = SentenceTransformer(modules=[Transformer(tiny_path), head, Pooling(8, "mean")], device="cpu")
    assert names(reduce_model(base, SENTENCES, 4)) == ["Transformer", "DimReduce", "Pooling", "Dense"]


def test_a_byte_budget_of_a_store(tiny):
    head = DimReduce.from_model(reduce_model(tiny, SENTENCES, Size(bytes=8, store="chroma")))
    assert (head.out_features, head.record.precision, head.record.choice["store"]) == (2, Precision.FLOAT32, "chroma")


def test_reduce_model_within_a_budget(tiny):
    reduced = reduce_model(tiny, SENTENCES, Size(bytes=8))
    head = DimReduce.from_model(reduced)
    assert Precision(head.precision).bytes_per_vector(head.out_features) <= 8
    assert head.record.choice["best"]["out_features"] == head.out_features == reduced.encode(["x"]).shape[1]
    kept = DimReduce.from_model(reduce_model(tiny, SENTENCES, Size(keep=0.5), objective="fidelity"))
    assert kept.record.choice["best"]["retention"] >= 0.5
    assert kept.record.distilled_steps is not None


def test_reduce_model_with_labelled_pairs(tiny):
    pairs = list(zip(SENTENCES[:64], SENTENCES[64:], strict=True))
    head = DimReduce.from_model(reduce_model(tiny, SENTENCES, 8, pairs=pairs))
    assert head.record.labelled_pairs == 64
    triples = [(*pair, SENTENCES[(i + 7) % 128]) for i, pair in enumerate(pairs)]
    other = DimReduce.from_model(reduce_model(tiny, SENTENCES, 8, pairs=triples))
    assert not other.linear.weight.equal(head.linear.weight)
    assert head.record.whitening == 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": Size(bytes=129)}, "bytes=129: choose 1 to 128"),
        ({"size": 8, "pairs": []}, "pairs is empty"),
        ({"size": 8, "pairs": [("a",)]}, "pair 0 is .*: expected 2 strings"),
        ({"size": 8, "pairs": [("a cat", "a dog"), ("a", None)]}, "pair 1 is .*: expected 2 strings"),
        ({"size": 8, "pairs": ["ab", "cd"]}, "pair 0 is 'ab': expected 2 strings"),
        ({"size": 8, "pairs": [("a", "b", "c"), ("d", "e")]}, "pair 1 is .*: expected 3 strings"),
        (
            {"size": 8, "pairs": [(text, "b") for text in SENTENCES[:40]]},
            "all 40 pairs share texts with one another",
        ),
        ({"size": 8, "pairs": [("a cat", "a dog")] * 3}, "all 3 pairs are the same"),
        ({"size": 8, "objective": "speed"}, "unknown objective 'speed'"),
        ({"size": 8, "objective": "fidelity", "pairs": [("a", "b")]}, "pairs train for quality"),
    ],
)
def test_reduce_model_with_bad_budgets_and_pairs(tiny, arguments, message):
    with pytest.raises(ValueError, match=message):
        reduce_model(tiny, SENTENCES, **arguments)


@pytest.mark.parametrize("objective", ["quality", "fidelity"])
def test_equal_texts_are_refused(tiny, objective):
    same = ["a large red cat runs over the old dog. the small blue bird sings near the green fish."] * 1000
    for texts in (same, iter(same)):
        with pytest.raises(ValueError, match=r"^all 1,000 texts are the same: give texts that differ"):
            reduce_model(tiny, texts, 8, objective=objective)
    with pytest.raises(ValueError, match=r"^all 1,000 vectors point the same way: give vectors of texts that differ"):
        Head.fit(tiny.encode(same), 8, objective=objective)


def test_cloze_pairs_that_the_model_cannot_tell_apart_are_named(tiny):
    # Of words that the model does not know, all it sees is that they are unknown.
    texts = [
        f"firstly{i} one hundred two hundred three hundred. secondly{i} four hundred five hundred six hundred."
        for i in range(300)
    ]
    with pytest.raises(ValueError, match=r"^the cloze pairs made of the texts cannot be used: all \d+ pairs are"):
        reduce_model(tiny, texts, 1, batch_size=1)  # in a batch of its own: no rounding tells two apart


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one text", r"^texts is a str, 'one text': expected a list of str$"),
        (["", " ", "\n"] * 100, "^all 300 texts are blank: give texts that differ"),
        (["a cat", " a cat"] * 150, "^all 300 texts are the same: give texts that differ"),
    ],
)
def test_bad_texts_are_refused_before_anything_is_encoded(tiny, monkeypatch, texts, message):
    monkeypatch.setattr(type(tiny), "encode", None)
    with pytest.raises(ValueError, match=message):
        reduce_model(tiny, texts, 8)
    with pytest.raises(ValueError, match=message):
        reduce_and_compare(tiny, texts, Size(8))
    with pytest.raises(ValueError, match=message):
        compare(tiny, tiny, texts)


def test_a_misspelt_objective_comes_before_too_few_texts(tiny):
    with pytest.raises(ValueError, match=r"^unknown objective 'qualty'"):
        reduce_and_compare(tiny, SENTENCES[:4], Size(32), objective="qualty")


@pytest.mark.parametrize("trainable", [False, True])
def test_a_reduced_model_is_not_reduced_again(tiny, tmp_path, trainable):
    reduced = reduce_model(tiny, SENTENCES, 16)
    reduced = Head.from_model(reduced).attach(tiny, trainable=True) if trainable else reduced
    message = "^the model is already reduced, to 16 dimensions: give its base model$"
    with pytest.raises(ValueError, match=message):
        reduce_model(reduced, SENTENCES, 8)
    with pytest.raises(ValueError, match=message):
        reduce_and_compare(reduced, SENTENCES, Size(8))
    if not trainable:
        save_portable(reduced, tmp_path / "reduced")
        with pytest.raises(ValueError, match=message):
            reduce_model(tmp_path / "reduced", SENTENCES, 8)
