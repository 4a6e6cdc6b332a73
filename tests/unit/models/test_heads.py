"""A head by itself: fitted on vectors, kept in a folder, attached to a model."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from st_dimreduce import DimReduce, attach_head, load_head, quantize, reduce_model, save_head, save_portable, search
from st_dimreduce.models.heads import fit_on_vectors
from tests.conftest import SENTENCES

X = np.random.default_rng(0).standard_normal((400, 32)).astype(np.float32) * np.linspace(2, 0.1, 32, dtype=np.float32)
UNIT = X / np.linalg.norm(X, axis=1, keepdims=True)


def cosines(one, other):
    one, other = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one, other))
    return (one * other).sum(axis=1)


@pytest.mark.parametrize("length", [1, 7])
def test_a_head_fits_vectors_of_the_length_they_have(length):
    head = fit_on_vectors(length * UNIT, 8)
    assert head.fitted["mean_norm"] == pytest.approx(length)
    assert np.sqrt(np.square(np.arctanh(head.reduce(length * UNIT))).mean()) == pytest.approx(0.03, rel=1e-3)
    assert head.reduce(UNIT[:9]).shape == (9, 8)
    assert fit_on_vectors(UNIT, bytes_per_vector=4).fitted["choice"]["best"]["bytes_per_vector"] <= 4
    assert fit_on_vectors(X, 8, objective="fidelity", seed=3).fitted["seed"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_features": 8, "keep": 0.9}, "out_features, keep was given: give exactly one"),
        ({"out_features": 0}, "out_features=0: choose a size from 1"),
        ({"out_features": 33}, "out_features=33: choose a size from 1 to in_features=32"),
        ({}, "out_features=128: choose a size from 1 to in_features=32"),
        ({"out_features": 8, "objective": "speed"}, "unknown objective 'speed'"),
        ({"out_features": 8, "on_bad_row": "skip"}, "unknown on_bad_row 'skip'"),
    ],
)
def test_what_cannot_be_fitted(options, message):
    with pytest.raises(ValueError, match=message):
        fit_on_vectors(X, **options)


def test_a_head_is_read_as_it_was_written(tmp_path):
    head = fit_on_vectors(X, bytes_per_vector=4)
    save_head(head, tmp_path / "head")
    read = load_head(tmp_path / "head")
    assert np.array_equal(read.reduce(X), head.reduce(X))
    assert read.fitted == json.loads(json.dumps(head.fitted))
    assert read.precision == head.precision
    assert sorted(path.name for path in (tmp_path / "head").iterdir()) == [
        "config.json",
        "model.safetensors",
        "st_dimreduce.json",
    ]
    with pytest.raises(FileExistsError, match=r"head exists: .*overwrite=True \(--force\)"):
        save_head(head, tmp_path / "head")
    save_head(DimReduce(5, 2), tmp_path / "head", overwrite=True)
    assert load_head(tmp_path / "head").in_features == 5
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("three years")
    with pytest.raises(FileExistsError, match=r"holds no st_dimreduce.json: .*never replaced"):
        save_head(head, tmp_path / "thesis", overwrite=True)


def test_the_head_of_a_reduced_model(tiny, tmp_path):
    model = reduce_model(tiny, SENTENCES, bytes_per_vector=4)
    save_portable(model, tmp_path / "model")
    head, whole = load_head(tmp_path / "model"), DimReduce.from_model(model)
    assert np.array_equal(head.reduce(X), whole.reduce(X))
    assert head.precision == whole.precision != "float32"
    assert head.fitted["mean_norm"] == whole.fitted["mean_norm"]


@pytest.mark.parametrize("damage", ["empty", "weights", "config", "record", "missing"])
def test_a_damaged_head_is_named(damage, tmp_path):
    save_head(DimReduce(5, 2), tmp_path / "head")
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
    with pytest.raises(ValueError, match="the model ends in Transformer: expected a DimReduce or Dense as its head"):
        load_head(tmp_path / "base")
    with pytest.raises(ValueError, match=r"no model could be loaded from .*nowhere"):
        load_head(tmp_path / "nowhere")


@pytest.mark.parametrize("normalised", [True, False])
def test_queries_agree_with_stored_vectors(minilm, normalised, tmp_path):
    prose = {" ".join((inspect.getdoc(getattr(np, name)) or name).split())[:300] for name in np.__all__}
    texts = [*SENTENCES[:30], *sorted(prose)[:40]]
    # Some databases hold the vectors as they are before they are normalised.
    kept = minilm if normalised else SentenceTransformer(modules=list(minilm)[:2], device="cpu")
    stored = kept.encode(texts)
    assert np.allclose(np.linalg.norm(stored, axis=1), 1, atol=1e-5) == normalised
    head = fit_on_vectors(stored, 48)
    weight = head.linear.weight.detach().clone()
    model = attach_head(minilm, head)
    assert torch.equal(head.linear.weight, weight), "the head was changed"
    assert minilm.get_embedding_dimension() == 384
    longer = (weight / model[2].linear.weight).mean().item()  # than the stored vectors are those before Normalize
    assert 4 < longer < 8 if normalised else 0.5 < longer < 2
    save_portable(model, tmp_path / "model")
    loaded = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert cosines(loaded.encode(texts), head.reduce(stored)).min() >= 0.9999
    codes = quantize(head.reduce(stored), "int8")
    assert search(loaded.encode(texts[:50]), codes, "int8", 1)[1][:, 0].tolist() == list(range(50))
    again = attach_head(minilm, load_head(tmp_path / "model"))
    assert np.allclose(again.encode(texts[:9]), loaded.encode(texts[:9]), atol=1e-6)


def test_attach_checks_the_width_and_can_stay_trainable(tiny):
    with pytest.raises(
        ValueError, match="the head takes 31 dimensions, the model gives 32: attach it to the model that"
    ):
        attach_head(tiny, DimReduce(31, 4))
    model = attach_head(tiny, DimReduce(32, 4), trainable=True)
    assert type(model[2]) is DimReduce
    assert model.encode(["a cat"]).shape == (1, 4)
