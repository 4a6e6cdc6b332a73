"""Naming what the portable layout cannot express; nothing is written."""

from __future__ import annotations

import json
import shutil

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, LayerNorm, Pooling, Transformer
from torch import nn

from st_dimreduce import DimReduce, reduce_model, save_portable
from st_dimreduce.models.load import load_model
from tests.helpers.folders import DENSE, POOL, REDUCE
from tests.helpers.tiny import SENTENCES

ORDER = "use the order cls, max, mean, mean_sqrt_len_tokens, weightedmean, lasttoken"
ELSEWHERE = f"it does not reduce the sentence embedding: .*; {REDUCE}"


def token_head(tiny, tiny_path):
    head = DimReduce(32, 8, module_input_name="token_embeddings")
    return [Transformer(tiny_path), head, Pooling(8, "mean")]


def on(backend):
    def modules(tiny, _):
        tiny[0].backend = backend
        return [*list(tiny)[:2], DimReduce(32, 8)]

    return modules


def pooled_by_the_transformer(tiny, _):
    tiny[0].modality_config = {"text": {"method": "forward", "method_output_name": "pooler_output"}}
    return [*list(tiny)[:2], DimReduce(32, 8)]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (lambda tiny, path: list(tiny), "it has no head: give a reduced model, or reduce this one first"),
        (lambda tiny, path: [*tiny, DimReduce(32, 8)], f"a Normalize is before a Dense: .*; {REDUCE}"),
        (
            lambda tiny, path: [*list(tiny)[:2], DimReduce(32, 8, activation_function=nn.ReLU())],
            "the head ends in ReLU, expected Tanh or Identity: train it with one of these",
        ),
        (
            lambda tiny, path: [*list(tiny)[:2], LayerNorm(32), Dense(32, 8, activation_function=nn.ReLU())],
            "the head ends in ReLU, expected Tanh or Identity: train it with one of these",
        ),
        (
            lambda tiny, path: [*list(tiny)[:2], Dense(32, 16, use_residual=True), DimReduce(16, 8)],
            f"{DENSE}: it has a residual connection: .* would give other vectors; train the head without",
        ),
        (
            lambda tiny, path: [tiny[0], Pooling(32, ("mean", "cls")), DimReduce(64, 8)],
            f"{POOL}: it concatenates the poolings mean, cls: .*; {ORDER}",
        ),
        (token_head, f"1_Dense/config.json: {ELSEWHERE}"),
        (
            lambda tiny, path: [*list(tiny)[:2], DimReduce(32, 8, module_output_name="small")],
            f"{DENSE}: {ELSEWHERE}",
        ),
        (
            lambda tiny, path: [*list(tiny)[:2], nn.Dropout(0.1), DimReduce(32, 8)],
            "Dropout is not a module of Sentence Transformers, which cannot save it: leave it out",
        ),
        (
            lambda tiny, path: [*list(tiny)[:2], Dense(32, 8, use_residual=True)],
            "the model ends in Dense with a residual connection, it has no head: give a reduced model",
        ),
        (on("onnx"), "its Transformer runs on onnx: load the base model with backend='torch'"),
        (
            pooled_by_the_transformer,
            "sentence_bert_config.json: it sets modality_config to .*; set it to its default and save the model again",
        ),
    ],
)
def test_names_what_the_layout_cannot_express_and_nothing_is_written(tiny, tiny_path, tmp_path, modules, message):
    model = SentenceTransformer(modules=modules(tiny, tiny_path), device="cpu")
    with pytest.raises(ValueError, match=message):
        save_portable(model, tmp_path / "p")
    assert list(tmp_path.iterdir()) == []


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
    with pytest.raises(ValueError, match=r"it needs code of its own: .*; choose a base model that"):
        save_portable(reduced, tmp_path / "out")
    assert not (tmp_path / "out").exists()
