from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from torch import nn

from st_dimreduce import DimReduce, FitRecord, Head
from tests.helpers.tiny import SENTENCES


def stacked(tiny_path, *heads, before_pooling=False):
    transformer = Transformer(tiny_path)
    pooling = Pooling(heads[0].out_features if before_pooling else 32, "mean")
    modules = [transformer, *heads, pooling] if before_pooling else [transformer, pooling, *heads]
    return SentenceTransformer(modules=modules, device="cpu")


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
    config = json.loads((tmp_path / "2_DimReduce" / "config.json").read_text())
    assert (config["dropout"], config["record"]) == (0.1, {"precision": "float32"})


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
def test_its_head_computes_what_it_computes_without_dropout(rows):
    module = DimReduce(16, 4, dropout=0.5).train()
    head, x = module.to_head(), torch.randn(rows, 16)
    expected = module.eval()({"sentence_embedding": x})["sentence_embedding"].detach()
    assert torch.allclose(head.forward(x), expected, atol=1e-7)
    for dtype in (np.float64, np.float32, np.float16):
        got = head.forward(x.numpy().astype(dtype))
        assert got.dtype == np.float32
        assert got.shape == (rows, 4)
        assert np.allclose(got, expected, atol=2e-3)
    assert not head.forward(x).requires_grad
    assert np.allclose(np.linalg.norm(head.transform(x.numpy()), axis=1), 1)


def test_its_head_takes_read_only_and_strided_arrays():
    module = DimReduce(4, 2)
    head = module.to_head()
    x = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    x.flags.writeable = False
    assert np.allclose(head.forward(x[::2, ::2]), head.forward(x[::2, ::2].copy()))
    assert module.half().to_head().forward(x[:, :4]).dtype == np.float32


def test_from_model_finds_either_form(tiny_path):
    record = FitRecord(precision="int4", method="subspace", mean_norm=3.0)
    head = DimReduce(32, 8, dropout=0.3, record=record)
    for form, dropout in ((head, 0.3), (head.to_dense(), 0.1)):
        found = DimReduce.from_model(stacked(tiny_path, form, Normalize()))
        assert torch.equal(found.linear.weight, head.linear.weight)
        assert (found.dropout, found.record, found.precision) == (dropout, record, "int4")
    token_head = DimReduce(32, 8, module_input_name="token_embeddings")
    assert DimReduce.from_model(stacked(tiny_path, token_head, before_pooling=True)).out_features == 8


def test_from_model_without_a_head(tiny):
    with pytest.raises(ValueError, match="model ends in Transformer, it has no head"):
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


def test_takes_the_arguments_of_a_dense_in_its_order():
    ours, theirs = DimReduce(8, 4, False), Dense(8, 4, False)
    assert ours.linear.bias is None
    assert ours.to_dense().get_config_dict() == theirs.get_config_dict()
    with pytest.raises(TypeError, match="positional"):
        DimReduce(8, 4, True, nn.Tanh(), None, None, "sentence_embedding", None, False, 0.5)


@pytest.mark.parametrize("name", [None, "small"])
@pytest.mark.parametrize("size", [8, 3])
def test_a_residual_connection_is_that_of_a_dense(name, size):
    ours = DimReduce(8, size, use_residual=True, module_output_name=name).eval()
    theirs = Dense(8, size, use_residual=True, module_output_name=name)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, 8)
    found, expected = (module({"sentence_embedding": x}) for module in (ours, theirs))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    with pytest.raises(ValueError, match="has a residual connection: expected a head without one"):
        ours.to_head()


def test_a_head_and_its_module_are_the_same():
    record = FitRecord(precision="int2", nested=(2, 4), mean_norm=1.0)
    module = DimReduce(8, 4, record=record)
    head = module.to_head()
    assert (head.record, head.precision) == (record, "int2")
    again = DimReduce.from_head(head, dropout=0.3)
    assert (again.dropout, again.record) == (0.3, record)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in module.state_dict().items())
    assert type(head.to_dense()) is Dense


def test_a_head_of_another_activation_stays_a_module():
    with pytest.raises(ValueError, match="ends in GELU, expected Tanh or Identity"):
        DimReduce(8, 4, activation_function=nn.GELU()).to_head()
    assert DimReduce(8, 4, activation_function=None).to_head().activation == "Identity"


@pytest.mark.parametrize("form", ["DimReduce", "Dense"])
def test_a_model_saved_by_sentence_transformers_keeps_the_record(form, tiny_path, tmp_path):
    from st_dimreduce.dim_reduce import keep_record

    record = FitRecord(precision="int4", mean_norm=2.5, nested=(4, 8), figures={"rows": []}, choice={"best": {}})
    head = Head(np.ones((8, 32)), record=record)
    model = stacked(tiny_path, DimReduce.from_head(head) if form == "DimReduce" else head.to_dense(), Normalize())
    keep_record(model, record)
    model.save_pretrained(str(tmp_path / "model"))
    loaded = SentenceTransformer(str(tmp_path / "model"), trust_remote_code=True, device="cpu")
    loaded.save_pretrained(str(tmp_path / "again"))
    for path in (tmp_path / "model", tmp_path / "again"):
        found = DimReduce.from_model(SentenceTransformer(str(path), trust_remote_code=True, device="cpu")).record
        kept = record.to_dict(large=form == "DimReduce")  # what is large is kept beside the head alone
        assert found.to_dict() == kept
        assert found.precision == "int4"
