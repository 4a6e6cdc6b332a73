"""What Text Embeddings Inference computes from the files of a folder, in NumPy."""

from __future__ import annotations

import json

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModel, AutoTokenizer

from st_dimreduce import check, save_portable


def serve(folder, texts):
    """What Text Embeddings Inference does, in its order: pool as the first true key says, each Dense, normalise."""
    modules = json.loads((folder / "modules.json").read_text())
    assert {entry["type"].rpartition(".")[0] for entry in modules} == {"sentence_transformers.models"}
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    config = AutoConfig.from_pretrained(folder)  # with which vLLM reads it too
    assert config.st_dimreduce == json.loads((folder / "config.json").read_text())["st_dimreduce"]
    tokenizer, body = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, config=config).eval()
    length = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    rows = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            hidden = body(**tokens).last_hidden_state[0].numpy()
        row = hidden[0] if pooling["pooling_mode_cls_token"] else hidden.mean(0)
        assert pooling["pooling_mode_cls_token"] or pooling["pooling_mode_mean_tokens"]
        for entry in modules:
            if entry["type"].endswith(".Dense"):
                config = json.loads((folder / entry["path"] / "config.json").read_text())
                weights = load_file(folder / entry["path"] / "model.safetensors")
                assert weights["linear.weight"].shape == (config["out_features"], config["in_features"])
                row = weights["linear.weight"] @ row + (weights["linear.bias"] if config["bias"] else 0)
                tanh = config["activation_function"] == "torch.nn.modules.activation.Tanh"
                row = np.tanh(row) if tanh else row
        rows.append(row / np.linalg.norm(row))
    return np.array(rows)


def assert_served_as_encoded(reduced, texts, tmp_path):
    """The server gives what encode gives, for short texts and for one beyond the maximum length."""
    save_portable(reduced, tmp_path / "p")
    assert check(tmp_path / "p")
    asked = [*texts[:20], " ".join(texts[:30])]
    served, encoded = serve(tmp_path / "p", asked), reduced.encode(asked, normalize_embeddings=True)
    assert (served * encoded).sum(1).min() >= 0.9999
