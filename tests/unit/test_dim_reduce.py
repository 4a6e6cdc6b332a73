from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from torch import nn

from st_dimreduce import DimReduce
from tests.conftest import SENTENCES


def stacked(tiny_path, *heads, before_pooling=False):
    transformer = Transformer(tiny_path)
    pooling = Pooling(heads[0].out_features if before_pooling else 32, "mean")
    modules = [transformer, *heads, pooling] if before_pooling else [transformer, pooling, *heads]
    return SentenceTransformer(modules=modules, device="cpu")


def test_the_file_stays_short():
    assert len(Path("st_dimreduce/dim_reduce.py").read_text().splitlines()) < 100


def test_gives_what_a_dense_of_the_same_weights_gives():
    head = DimReduce(8, 3).eval()
    x = torch.randn(5, 8)
    expected = torch.tanh(x @ head.linear.weight.T + head.linear.bias)
    assert torch.allclose(head({"sentence_embedding": x})["sentence_embedding"], expected, atol=1e-6)
    dense = head.to_dense()
    assert type(dense) is Dense
    assert torch.equal(
        dense({"sentence_embedding": x})["sentence_embedding"], head({"sentence_embedding": x})["sentence_embedding"]
    )
    dense.linear.weight.data.zero_()
    assert head.linear.weight.abs().sum() > 0, "the copy shares its weights"


def test_dropout_acts_in_training_only():
    head = DimReduce(64, 8, dropout=0.5)
    x = torch.ones(4, 64)
    head.train()
    assert not torch.equal(
        head({"sentence_embedding": x})["sentence_embedding"], head({"sentence_embedding": x})["sentence_embedding"]
    )
    head.eval()
    assert torch.equal(
        head({"sentence_embedding": x})["sentence_embedding"], head({"sentence_embedding": x})["sentence_embedding"]
    )


def test_dropout_leaves_the_input_feature_alone():
    head = DimReduce(64, 8, dropout=0.5, module_output_name="small").train()
    x = torch.ones(4, 64)
    features = head({"sentence_embedding": x})
    assert torch.equal(features["sentence_embedding"], torch.ones(4, 64))
    assert features["small"].shape == (4, 8)


@pytest.mark.parametrize("before_pooling", [False, True])
@pytest.mark.parametrize("settings", [{}, {"dropout": 0.3, "activation_function": nn.ReLU(), "bias": False}])
def test_survives_save_pretrained_bit_for_bit(tiny_path, tmp_path, before_pooling, settings):
    name = "token_embeddings" if before_pooling else "sentence_embedding"
    head = DimReduce(32, 8, module_input_name=name, **settings)
    model = stacked(tiny_path, head, before_pooling=before_pooling)
    model.save_pretrained(str(tmp_path))
    again = SentenceTransformer(str(tmp_path), trust_remote_code=True, device="cpu")
    loaded = next(module for module in again if isinstance(module, DimReduce))
    assert loaded.get_config_dict() == head.get_config_dict()
    assert np.array_equal(again.encode(SENTENCES), model.encode(SENTENCES))
    assert again.encode(SENTENCES).shape == (len(SENTENCES), 8)


def test_needs_the_flag_to_load(tiny_path, tmp_path):
    stacked(tiny_path, DimReduce(32, 8)).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(tmp_path))


def test_saves_safetensors_and_no_pickle(tiny_path, tmp_path):
    stacked(tiny_path, DimReduce(32, 8)).save_pretrained(str(tmp_path))
    names = {path.name for path in (tmp_path / "2_DimReduce").iterdir()}
    assert names == {"config.json", "model.safetensors"}
    assert json.loads((tmp_path / "2_DimReduce" / "config.json").read_text())["dropout"] == 0.1


def test_masked_tokens_do_not_leak_into_the_pooled_result(tiny_path):
    model = stacked(tiny_path, DimReduce(32, 8, module_input_name="token_embeddings"), before_pooling=True)
    alone = model.encode(["a cat"])
    padded = model.encode(["a cat", "the large old dog sleeps under the small red bird near a blue fish"], batch_size=2)
    assert np.allclose(alone[0], padded[0], atol=1e-6)


def test_stands_behind_normalize(tiny_path):
    model = stacked(tiny_path, Normalize(), DimReduce(32, 8))
    assert model.encode(["a cat"]).shape == (1, 8)


def test_two_heads_in_a_row(tiny_path):
    model = stacked(tiny_path, DimReduce(32, 16), DimReduce(16, 4))
    assert model.encode(["a cat"]).shape == (1, 4)
    assert DimReduce.from_model(model).in_features == 16


def test_truncate_dim_prompts_half_and_similarity(tiny_path):
    model = stacked(tiny_path, DimReduce(32, 8))
    model.prompts = {"query": "query: ", "document": "document: "}
    plain = model.encode(SENTENCES[:6])
    assert np.array_equal(model.encode(SENTENCES[:6], truncate_dim=4), plain[:, :4])
    assert not np.allclose(model.encode_query(SENTENCES[:6]), model.encode_document(SENTENCES[:6]))
    assert model.similarity(plain, plain).shape == (6, 6)
    halves = model.half().encode(SENTENCES[:6])
    assert halves.dtype == np.float16
    assert np.allclose(halves, plain, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(tiny_path, dtype):
    model = stacked(tiny_path, DimReduce(32, 8))
    plain = model.encode(SENTENCES[:6])
    with torch.autocast("cpu", dtype=dtype):
        assert np.allclose(model.encode(SENTENCES[:6], convert_to_tensor=True).float(), plain, atol=2e-2)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_reduce_equals_forward(rows):
    head = DimReduce(16, 4).train()  # even then, no dropout
    x = torch.randn(rows, 16)
    expected = torch.tanh(head.linear(x)).detach()
    assert torch.allclose(head.reduce(x, batch_size=3), expected, atol=1e-7)
    for dtype in (np.float64, np.float32, np.float16):
        got = head.reduce(x.numpy().astype(dtype), batch_size=3)
        assert got.dtype == np.float32
        assert got.shape == (rows, 4)
        assert np.allclose(got, expected, atol=2e-3)
    assert not head.reduce(x).requires_grad
    lengths = np.linalg.norm(head.reduce(x.numpy(), normalize_embeddings=True), axis=1)
    assert np.allclose(lengths, 1)


def test_reduce_takes_read_only_and_strided_arrays():
    head = DimReduce(4, 2)
    x = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    x.flags.writeable = False
    assert np.allclose(head.reduce(x[::2, ::2]), head.reduce(x[::2, ::2].copy()))
    assert head.half().reduce(x[:, :4]).dtype == np.float32


def test_from_model_finds_either_form(tiny_path):
    head = DimReduce(32, 8, dropout=0.3)
    head.fitted = {"method": "subspace"}
    for form, dropout in ((head, 0.3), (head.to_dense(), 0.1)):
        found = DimReduce.from_model(stacked(tiny_path, form, Normalize()))
        assert torch.equal(found.linear.weight, head.linear.weight)
        assert (found.dropout, found.fitted) == (dropout, head.fitted)
    token_head = DimReduce(32, 8, module_input_name="token_embeddings")
    assert DimReduce.from_model(stacked(tiny_path, token_head, before_pooling=True)).out_features == 8


def test_from_model_without_a_head(tiny):
    with pytest.raises(ValueError, match="model ends in Transformer: expected a DimReduce or Dense"):
        DimReduce.from_model(tiny)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_features": 0}, "out_features=0: choose a size from 1 to in_features=8"),
        ({"out_features": 9}, "out_features=9: choose a size from 1 to in_features=8"),
        ({"dropout": 1.0}, "dropout=1.0: choose a rate"),
        ({"dropout": -0.1}, "dropout=-0.1: choose a rate"),
        ({"dropout": float("nan")}, "dropout=nan: choose a rate"),
        ({"init_weight": torch.zeros(8, 4)}, r"shape \(8, 4\), expected \(4, 8\)"),
        ({"init_bias": torch.zeros(8)}, r"shape \(8,\), expected \(4,\)"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        DimReduce(**{"in_features": 8, "out_features": 4, **arguments})


@pytest.mark.parametrize("shape", [(8,), (3, 7), (2, 3, 8)])
def test_reduce_of_a_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"expected \(n, 8\)"):
        DimReduce(8, 4).reduce(np.zeros(shape, np.float32))
