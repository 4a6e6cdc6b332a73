"""A reduced model of every kind gives the same vectors by every route."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize

from st_dimreduce import DimReduce, Head, check, reduce_model, save_portable
from tests.helpers.kinds import KINDS, make
from tests.helpers.tiny import SENTENCES

PAGE = Path("docs/models.md")


TABLE = {
    row[0]: row[1:]
    for row in re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([\d.]+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
}


def test_the_page_has_a_row_for_each_kind():
    assert list(TABLE) == list(KINDS)


def ways(model, texts):
    methods = ("encode", "encode_query", "encode_document")
    return {method: getattr(model, method)(texts) for method in methods}


@pytest.mark.parametrize("kind", KINDS)
def test_every_route_gives_the_same_vectors(kind, tiny_path, tmp_path):
    base = make(kind, tiny_path, tmp_path / "base")
    model, texts = reduce_model(base, SENTENCES, 8), SENTENCES[:7]
    expected = ways(model, texts)
    assert [vectors.shape for vectors in expected.values()] == [(7, 8)] * 3
    whole, said = ways(base, texts), TABLE[kind][0]
    assert len(model) == len(base) + 1
    assert ("no portable folder" in said) == (kind == "bag of words")
    assert ("before Normalize" in said) == (type(base[-1]).__name__ == "Normalize")
    if kind in {"mean", "padded on the left", "two towers", "texts and images"}:  # others may leave the prompt out
        assert np.abs(expected["encode_query"] - expected["encode_document"]).max() > 1e-3
    model.save_pretrained(str(tmp_path / "saved"))
    if kind == "bag of words":
        with pytest.raises(ValueError, match="a BoW, whose words it puts in another order each time"):
            save_portable(model, tmp_path / "portable")
        return
    save_portable(model, tmp_path / "portable")
    for folder in ("saved", "portable"):
        for method, vectors in ways(SentenceTransformer(str(tmp_path / folder), device="cpu"), texts).items():
            assert np.abs(vectors - expected[method]).max() < 1e-6, (folder, method)
    for head in (DimReduce.from_model(model).to_head(), Head.load(tmp_path / "portable")):
        assert (head.in_features, head.out_features) == (whole["encode"].shape[1], 8)


def test_texts_and_images_have_one_head(tiny_path, tmp_path):
    base = make("texts and images", tiny_path, tmp_path / "base")
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)) for _ in range(40)]
    model = reduce_model(base, [*SENTENCES, *images], 8, objective="fidelity")
    assert DimReduce.from_model(model).record.vectors == len(SENTENCES) + 40
    save_portable(model, tmp_path / "portable")
    again = SentenceTransformer(str(tmp_path / "portable"), device="cpu")
    assert np.abs(again.encode(images) - model.encode(images)).max() < 1e-6
    assert np.abs(again.encode(SENTENCES) - model.encode(SENTENCES)).max() < 1e-6
    whole, own = base.encode(images), model.encode(images)
    texts = reduce_model(base, SENTENCES, 8, objective="fidelity").encode(images)
    assert agreement(whole, own) > agreement(whole, texts), "the images were left out of the fit"
    problems = [str(problem) for problem in check(tmp_path / "portable").problems]
    assert any("reads image" in problem and "Sentence Transformers from 5.4" in problem for problem in problems)
    assert reduce_model(base, [*images, *SENTENCES], 8)[-1].out_features == 8, "cloze pairs are made of the texts"


def agreement(one, other):
    cosines = [vectors @ vectors.T / np.outer(*[np.linalg.norm(vectors, axis=1)] * 2) for vectors in (one, other)]
    return np.corrcoef(*[each[np.triu_indices(len(one), 1)] for each in cosines])[0, 1]


def test_images_where_texts_are_expected(tiny):
    with pytest.raises(ValueError, match=r"text 1 is of type Image: expected a string, the model reads text"):
        reduce_model(tiny, ["a cat", Image.new("RGB", (32, 32)), *SENTENCES], 8)


def test_a_head_stands_behind_the_dense_that_the_base_model_ends_in(tiny_path, tmp_path):
    base = make("two dense", tiny_path, tmp_path)
    model = reduce_model(base, SENTENCES, 8)
    assert [type(module) for module in model] == [type(module) for module in list(base)[:-1]] + [Dense, Normalize]
    save_portable(model, tmp_path / "p")
    head = Head.load(tmp_path / "p")
    body = SentenceTransformer(modules=list(base)[:-1], device="cpu")
    unit = head.forward(body.encode(SENTENCES))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    assert np.abs(unit - model.encode(SENTENCES)).max() < 1e-6
    attached = head.attach(base)
    assert np.abs(attached.encode(SENTENCES) - model.encode(SENTENCES)).max() < 1e-2


def test_a_head_to_be_trained_is_a_module_of_its_own(tiny_path, tmp_path):
    base = make("dense", tiny_path, tmp_path)
    model = Head.from_model(reduce_model(base, SENTENCES, 8)).attach(base, trainable=True)
    assert [type(module).__name__ for module in model][-3:] == ["Dense", "DimReduce", "Normalize"]


def test_a_model_that_gives_a_vector_for_each_token_is_refused(tiny_path, tmp_path):
    model = MultiVectorEncoder(tiny_path, device="cpu")
    model.save_pretrained(str(tmp_path / "multi"))
    said = "the model is a MultiVectorEncoder: expected a SentenceTransformer; examples/7_late_interaction.py shows"
    for call in (lambda: reduce_model(model, SENTENCES, 8), lambda: save_portable(model, tmp_path / "p")):
        with pytest.raises(ValueError, match=said):
            call()
    with pytest.raises(ValueError, match="a model that gives a vector for each token: examples/7_late_inter"):
        reduce_model(tmp_path / "multi", SENTENCES, 8)
    with pytest.raises(ValueError, match="the model is a int: expected a SentenceTransformer, its name or its folder"):
        reduce_model(7, SENTENCES, 8)
