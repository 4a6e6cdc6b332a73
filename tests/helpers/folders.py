"""Helpers for tests of model folders: change settings, encode, and the messages of check."""

from __future__ import annotations

import json

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from st_dimreduce import Head, reduce_model
from tests.helpers.tiny import SENTENCES

CONFIG, POOL, DENSE = "config.json", "1_Pooling/config.json", "2_Dense/config.json"
TOKENIZER, BERT, MODEL = "tokenizer_config.json", "sentence_bert_config.json", "config_sentence_transformers.json"
TEI, OLD, VLLM = "Text Embeddings Inference", "Sentence Transformers before 6", "vLLM"
UNREDUCED, OTHER, FAIL = "would give unreduced vectors", "would give other vectors", "would fail"
LAYOUT = "not as in the portable layout"
FIX = "rewrite the folder with st-dimreduce check --fix"
REDUCE = "reduce the base model again, with the head directly behind Pooling"
BOTH_FAIL, BOTH_OTHER = f"{OLD} and {TEI} {FAIL}", f"{OLD} and {TEI} {OTHER}"


def tiny_of(tiny_path, mode="mean", *more):
    return SentenceTransformer(modules=[Transformer(tiny_path), Pooling(32, mode), *more], device="cpu")


def trainable(base, size):
    """A reduced model whose head is a ``DimReduce``."""
    return Head.from_model(reduce_model(base, SENTENCES, size)).attach(base, trainable=True)


def encode(path):
    return SentenceTransformer(str(path), device="cpu").encode(SENTENCES)


def change(path, **settings):
    """Change settings of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def module(copy, number, **settings):
    """Change settings of a module in ``modules.json``."""
    entries = json.loads((copy / "modules.json").read_text())
    entries[number] |= settings
    (copy / "modules.json").write_text(json.dumps(entries))
