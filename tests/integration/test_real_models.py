"""Reduced real models: stored vectors and fresh encodings agree, and neighbours are kept."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

from st_dimreduce import Head, check, reduce_model, save_portable
from st_dimreduce.apps.docstrings import docstring_pairs
from st_dimreduce.codes.metrics import overlaps
from st_dimreduce.codes.precision import quantize
from st_dimreduce.codes.search import search
from st_dimreduce.models.attach import origin
from tests.helpers.tei import assert_served_as_encoded
from tests.helpers.tiny import SENTENCES


def cosines(one, other):
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


MPNET = pytest.param("mpnet", marks=pytest.mark.wings("models", "fitting", "head.py", "base_head.py", "dim_reduce.py"))


@pytest.mark.parametrize("base_name", ["minilm", MPNET])
def test_a_stored_vector_and_a_fresh_encoding_agree(base_name, texts, request):
    base = request.getfixturevalue(base_name)
    some = texts if base_name == "minilm" else texts[::10] + texts[-3:]
    stored = base.encode(some)
    assert np.allclose(np.linalg.norm(stored, axis=1), 1, atol=1e-5)
    # Fitted on the long texts alone, so that the short ones have vectors much longer than the head has seen.
    half = len(some) // 2
    reduced = reduce_model(base, some[half:], 32 if base_name == "minilm" else 16, objective="fidelity")
    head = Head.from_model(reduced)
    assert cosines(head.forward(stored), reduced.encode(some)).min() >= 0.9999


def test_fitted_from_stored_vectors_it_agrees_as_well(minilm, texts):
    texts = texts[::3]
    stored = minilm.encode(texts)
    reduced = Head.fit(stored, 64).attach(minilm)
    assert cosines(Head.from_model(reduced).forward(stored), reduced.encode(texts)).min() >= 0.9999


@pytest.mark.slow
def test_vectors_of_any_norm_are_reduced_alike_and_agree_with_fresh_encodings(minilm, texts):
    texts = texts[::4]
    stored = minilm.encode(texts)
    truth = search(stored, stored, "float32")[1]
    kept = []
    for norm in (1, 30, 100, 1000):
        head = Head.fit(norm * stored, 64, strength=0)
        reduced = head.transform(norm * stored)
        fresh = head.attach(minilm).encode(texts)
        assert cosines(reduced, fresh).min() >= 0.9999
        kept.append(overlaps(truth, search(reduced, reduced, "float32")[1]).mean())
    assert kept == pytest.approx([kept[0]] * 4, abs=0.005)


@pytest.mark.slow
def test_the_same_head_whatever_the_batch_size(minilm, texts):
    texts = texts[:300]
    models = [reduce_model(minilm, texts, 128, objective="fidelity", batch_size=size) for size in (16, 64)]
    heads = [Head.from_model(model) for model in models]
    assert not np.array_equal(heads[0].weight, heads[1].weight), "rounding differs"
    vectors = minilm.encode(texts)
    reduced = [head.transform(vectors) for head in heads]
    assert cosines(*reduced).min() > 0.9999
    found = [search(rows, quantize(rows, "binary"), "binary")[1] for rows in reduced]
    assert overlaps(*found).mean() > 0.99


def test_keeps_the_neighbours_of_the_real_model(minilm, texts):
    reduced = reduce_model(minilm, texts, 128, objective="fidelity")
    ours, full = (model.encode(texts) for model in (reduced, minilm))
    assert np.corrcoef((ours @ ours.T).ravel(), (full @ full.T).ravel())[0, 1] > 0.98


@pytest.mark.wings("fitting", "recipe.py")
def test_texts_give_pairs_that_their_vectors_alone_do_not(minilm):
    """Vectors alone cannot tell what changes while the subject stays; sentences taken out of their texts can."""
    queries, documents = map(list, zip(*docstring_pairs(500), strict=True))
    stored = minilm.encode(documents)
    by_vectors, by_texts = Head.fit(stored, 32), Head.from_model(reduce_model(minilm, documents, 32))
    assert by_vectors.record.cloze_pairs == 0
    assert by_texts.record.cloze_pairs >= 200
    asked = minilm.encode(queries)

    def found(head):
        scores = head.transform(asked) @ head.transform(stored).T
        return (scores.argmax(axis=1) == np.arange(500)).mean()

    assert found(by_texts) > found(by_vectors)


@pytest.mark.parametrize("normalised", [True, False])
def test_queries_agree_with_stored_vectors(minilm, normalised, tmp_path):
    prose = {" ".join((inspect.getdoc(getattr(np, name)) or name).split())[:300] for name in np.__all__}
    texts = [*SENTENCES[:30], *sorted(prose)[:40]]
    # Some databases hold the vectors as they are before they are normalised.
    kept = minilm if normalised else SentenceTransformer(modules=list(minilm)[:2], device="cpu")
    stored = kept.encode(texts)
    assert np.allclose(np.linalg.norm(stored, axis=1), 1, atol=1e-5) == normalised
    head = Head.fit(stored, 48)
    weight = head.weight.copy()
    model = head.attach(minilm)
    assert np.array_equal(head.weight, weight), "the head was changed"
    assert minilm.get_embedding_dimension() == 384
    longer = (weight / model[2].linear.weight.detach().numpy()).mean()  # the embeddings before Normalize
    assert 4 < longer < 8 if normalised else 0.5 < longer < 2
    save_portable(model, tmp_path / "model")
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert cosines(loaded.encode(texts), head.forward(stored)).min() >= 0.9999
    codes = head.encode(stored, "int8")
    assert codes.search(loaded.encode(texts[:50]), 1)[1][:, 0].tolist() == list(range(50))
    again = Head.load(tmp_path / "model").attach(minilm)
    assert np.allclose(again.encode(texts[:9]), loaded.encode(texts[:9]), atol=1e-6)


def test_the_licence_and_languages_of_the_base_model_are_carried_along(minilm, tiny, tmp_path):
    assert origin(minilm) == {"base_model": None, "license": "apache-2.0", "language": "en"}
    save_portable(reduce_model(minilm, SENTENCES, 32), tmp_path / "p")
    card = ModelCard.load(tmp_path / "p" / "README.md")
    assert (card.data.license, card.data.language) == ("apache-2.0", "en")
    assert origin(tiny) == {"base_model": None}


def test_a_base_model_without_a_head_is_clean(minilm_path):
    assert check(minilm_path).problems == []


def test_served_in_the_servers_order_it_gives_what_encode_gives(minilm, texts, tmp_path):
    assert_served_as_encoded(reduce_model(minilm, texts[:150], 16), texts[:150], tmp_path)


@pytest.mark.wings("fitting", "vectors")
def test_drift_tells_source_code_from_fresh_docstrings(minilm, tmp_path):
    documents = [document for _, document in docstring_pairs(1000)]
    functions = [inspect.getsource(one) for one in vars(np.lib._function_base_impl).values() if inspect.isfunction(one)]
    code = [function[start : start + 500] for function in functions for start in range(0, 2000, 500)][:250]
    assert len(code) == 250
    save_portable(reduce_model(minilm, documents[:600], 128, objective="fidelity"), tmp_path / "model")
    head = Head.load(tmp_path / "model")
    assert head.record.mean_norm > 2, "fitted below the model's Normalize"
    assert (tmp_path / "model" / "st_dimreduce.json").stat().st_size < 8000
    fresh, other = minilm.encode(documents[600:]), minilm.encode(code)
    for rows in (fresh, fresh[:200], fresh[200:]):
        assert head.drift(rows).verdict == "fits"
    assert head.drift(other).verdict == "refit"
    assert head.drift(np.concatenate([other, fresh[:250]])).verdict != "fits"
