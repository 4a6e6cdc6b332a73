"""Tiny base models of every kind that Sentence Transformers has, for logic only."""

from __future__ import annotations

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    CNN,
    LSTM,
    BoW,
    Dense,
    Dropout,
    LayerNorm,
    Normalize,
    Pooling,
    Router,
    StaticEmbedding,
    Transformer,
    WeightedLayerPooling,
    WordEmbeddings,
    WordWeights,
)
from sentence_transformers.sentence_transformer.modules.tokenizer import WhitespaceTokenizer
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    Qwen3Config,
    Qwen3Model,
)

from tests.helpers.tiny import WORDS

PROMPTS = {"query": "the red", "document": "a blue"}


def words(_):
    vectors = np.random.default_rng(0).standard_normal((len(WORDS) + 1, 32), np.float32)
    return WordEmbeddings(WhitespaceTokenizer(["PAD", *WORDS], do_lower_case=False), torch.from_numpy(vectors))


def deep(path):
    transformer = Transformer(path, config_kwargs={"output_hidden_states": True})
    return [transformer, WeightedLayerPooling(32, num_hidden_layers=2, layer_start=0), Pooling(32)]


def decoder(path, folder):
    """A decoder that pads on the left, as most that embed by their last token do."""
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    config = Qwen3Config(**sizes, **heads, pad_token_id=tokenizer.pad_token_id)
    Qwen3Model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Transformer(str(folder))


def clip(path, folder):
    tokenizer = AutoTokenizer.from_pretrained(path)
    layers = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    config = CLIPConfig(
        text_config=layers | ids | {"vocab_size": len(tokenizer), "max_position_embeddings": 64},
        vision_config=layers | {"image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return Transformer(str(folder))


def two_towers(path):
    return Router.for_query_document(
        query_modules=[Transformer(path), Pooling(32, "cls")], document_modules=[words(path), Pooling(32)]
    )


# The modules of each kind, given the folder of a transformer and one to write another to.
KINDS = {
    **{mode: lambda path, _, mode=mode: [Transformer(path), Pooling(32, mode)] for mode in ("mean", "cls", "max")},
    "weightedmean": lambda path, _: [Transformer(path), Pooling(32, "weightedmean")],
    "lasttoken": lambda path, _: [Transformer(path), Pooling(32, "lasttoken")],
    "cls and mean": lambda path, _: [Transformer(path), Pooling(32, ("cls", "mean"))],
    "normalised": lambda path, _: [Transformer(path), Pooling(32), Normalize()],
    "prompt left out": lambda path, _: [Transformer(path), Pooling(32, "mean", include_prompt=False)],
    "padded on the left": lambda path, folder: [decoder(path, folder), Pooling(32, "lasttoken"), Normalize()],
    "layer norm": lambda path, _: [Transformer(path), Pooling(32), LayerNorm(32)],
    "dropout": lambda path, _: [Transformer(path), Pooling(32), Dropout(0.1)],
    "dense, tanh": lambda path, _: [Transformer(path), Pooling(32), Dense(32, 24)],
    "dense, gelu": lambda path, _: [Transformer(path), Pooling(32), Dense(32, 24, activation_function=nn.GELU())],
    "dense": lambda path, _: [Transformer(path), Pooling(32), Dense(32, 24, activation_function=None), Normalize()],
    "two dense": lambda path, _: [
        Transformer(path),
        Pooling(32),
        Dense(32, 64, bias=False, activation_function=None),
        Dense(64, 32, bias=False, activation_function=None),
        Normalize(),
    ],
    "layers weighted": lambda path, _: deep(path),
    "words": lambda path, _: [words(path), Pooling(32)],
    "words weighted": lambda path, _: [words(path), WordWeights(WORDS, dict.fromkeys(WORDS, 0.5)), Pooling(32)],
    "bag of words": lambda path, _: [BoW(WORDS, dict.fromkeys(WORDS[:5], 2.0))],
    "convolutions": lambda path, _: [words(path), CNN(32, 16), Pooling(48)],
    "lstm": lambda path, _: [words(path), LSTM(32, 16), Pooling(32)],
    "static": lambda path, _: [StaticEmbedding(AutoTokenizer.from_pretrained(path), embedding_dim=32)],
    "two towers": lambda path, _: [two_towers(path)],
    "texts and images": lambda path, folder: [clip(path, folder)],
}


def make(kind, path, folder):
    """Return a tiny base model of a kind, with prompts for queries and documents.

    Args:
        kind: A key of ``KINDS``.
        path: The folder of a tiny transformer.
        folder: A folder to write another one to.
    """
    torch.manual_seed(0)
    return SentenceTransformer(modules=KINDS[kind](path, folder), prompts=PROMPTS, device="cpu")
