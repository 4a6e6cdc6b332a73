"""Naming what the portable layout cannot express; nothing is written."""

from __future__ import annotations

import json
import shutil

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Normalize, Pooling, Transformer
from torch import nn

from st_dimreduce import DimReduce, reduce_model, save_portable
from st_dimreduce.models.load import load_model
from st_dimreduce.portable.save import unportable
from tests.helpers.tiny import SENTENCES


def token_head(tiny, tiny_path):
    head = DimReduce(32, 8, module_input_name="token_embeddings")
    return [Transformer(tiny_path), head, Pooling(8, "mean")]


@pytest.mark.parametrize(
    ("modules", "messages"),
    [
        (
            lambda tiny, path: list(tiny),
            ["there is no head (DimReduce or Dense) behind all others: fit one with reduce_model"],
        ),
        (
            lambda tiny, path: [*tiny, DimReduce(32, 8)],
            ["Normalize is before the head, where servers leave it out: leave it out, or put it behind"],
        ),
        (
            lambda tiny, path: [*list(tiny)[:2], DimReduce(32, 8, activation_function=nn.ReLU())],
            ["DimReduce ends in ReLU, expected Tanh or Identity: train it with one of these"],
        ),
        (
            lambda tiny, path: [*list(tiny)[:2], Dense(32, 8, use_residual=True)],
            ["Dense has a residual connection, which older readers ignore: train it without"],
        ),
        (
            lambda tiny, path: [*list(tiny)[:2], LayerNorm(32), Dense(32, 8, activation_function=nn.ReLU())],
            ["Dense ends in ReLU, expected Tanh or Identity: train it with one of these"],
        ),
        (
            lambda tiny, path: [tiny[0], Pooling(32, ("mean", "cls")), DimReduce(64, 8)],
            [
                "its Pooling concatenates ('mean', 'cls'), readers do so in the order cls, max, mean, "
                "mean_sqrt_len_tokens, weightedmean, lasttoken: use that one"
            ],
        ),
        (
            token_head,
            [
                "DimReduce reads 'token_embeddings' and writes 'token_embeddings', expected 'sentence_embedding' for "
                "both: put it behind Pooling",
                "there is no head (DimReduce or Dense) behind all others: fit one with reduce_model",
            ],
        ),
        (
            lambda tiny, path: [*list(tiny)[:2], nn.Dropout(0.1), DimReduce(32, 8)],
            ["Dropout is no module of Sentence Transformers, which readers have: use save_pretrained"],
        ),
        (
            lambda tiny, path: [*list(tiny)[:2], DimReduce(32, 8, module_output_name="small")],
            [
                "DimReduce reads 'sentence_embedding' and writes 'small', expected 'sentence_embedding' for both: "
                "put it behind Pooling"
            ],
        ),
    ],
)  # fmt: skip
def test_names_what_the_layout_cannot_express_and_nothing_is_written(tiny, tiny_path, tmp_path, modules, messages):
    model = SentenceTransformer(modules=modules(tiny, tiny_path), device="cpu")
    with pytest.raises(ValueError, match="cannot express") as error:
        save_portable(model, tmp_path / "p")
    assert str(error.value) == f"the portable form cannot express this model: {'; '.join(messages)}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("backend", "onnx", "its Transformer runs on onnx: load the base model with backend='torch'"),
        (
            "modality_config",
            {"text": {"method": "forward", "method_output_name": "pooler_output"}},
            "its Transformer sets modality_config, which older readers do not know: set it to its default, or use "
            "save_pretrained",
        ),
    ],
)
def test_transformers_that_the_layout_cannot_express(tiny, attribute, value, message):
    setattr(tiny[0], attribute, value)
    assert unportable([*list(tiny)[:2], DimReduce(32, 8)]) == [message]
    tiny[0].backend, tiny[0].modality_config = "torch", {"text": {}, "message": {}}
    assert unportable([*list(tiny)[:2], DimReduce(32, 8), Normalize()]) == []


def test_a_transformer_with_code_of_its_own_is_refused(tiny_path, tmp_path):
    """Other readers would ask for a flag, which the portable form promises never to need."""
    shutil.copytree(tiny_path, tmp_path / "base")
    code = "from transformers import DistilBertConfig, DistilBertModel\n"
    code += "class OwnConfig(DistilBertConfig):\n    model_type = 'own'\n"
    code += "class OwnModel(DistilBertModel):\n    config_class = OwnConfig\n"
    (tmp_path / "base" / "modeling_own.py").write_text(code)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"},
    }
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    reduced = reduce_model(load_model(tmp_path / "base", trust_remote_code=True), SENTENCES, 8)
    with pytest.raises(ValueError, match="its Transformer runs code that comes with it"):
        save_portable(reduced, tmp_path / "out")
    assert not (tmp_path / "out").exists()
