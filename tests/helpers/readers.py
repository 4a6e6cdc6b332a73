"""What readers that do not install here compute from an exported folder, each by the rule in its source.

- Text Embeddings Inference, ONNX Runtime backend: huggingface/text-embeddings-inference, backends/ort/src/lib.rs,
  `embed`, commit 04a02158.
- langchain4j: langchain4j/langchain4j-embeddings, OnnxBertBiEncoder.java, `embed`, commit 0a7b1954.
- Spring AI: spring-projects/spring-ai, TransformersEmbeddingModel.java, `call`, commit 00dcfe7b.
- The tokenizer of both: deepjavalibrary/djl, HuggingFaceTokenizer.java, commit 06151b93.
- Vespa: vespa-engine/vespa, HuggingFaceEmbedder.java, `analyze` and `evaluate`, commit 01ea9d24.
- Semantic Kernel: microsoft/semantic-kernel, BertOnnxTextEmbeddingGenerationService.cs, commit 18d958b2.
"""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


class Exported:
    """The graph and tokenizer of a folder, and what readers ask of them."""

    def __init__(self, folder, file="model.onnx"):
        self.folder = folder
        self.session = onnxruntime.InferenceSession(folder / "onnx" / file, providers=["CPUExecutionProvider"])
        self.inputs = [each.name for each in self.session.get_inputs()]
        self.outputs = {each.name: len(each.shape) for each in self.session.get_outputs()}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def djl(self, longest=512, padding=True):
        """The tokenizer as DJL sets it: cut at what tokenizer.json says, but never beyond 512."""
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.enable_truncation(min((tokenizer.truncation or {"max_length": longest})["max_length"], longest))
        if not padding:
            tokenizer.no_padding()
        return tokenizer

    def run(self, encodings, outputs=None, token_types=None):
        """Return the outputs; token types are fed where the graph has them, or wherever a reader always does."""
        feeds = {
            "input_ids": np.array([each.ids for each in encodings], np.int64),
            "attention_mask": np.array([each.attention_mask for each in encodings], np.int64),
        }
        if token_types or (token_types is None and "token_type_ids" in self.inputs):
            feeds["token_type_ids"] = np.zeros_like(feeds["input_ids"])
        return self.session.run(outputs, feeds), feeds["attention_mask"]


def tei(exported, texts):
    """Of several outputs `sentence_embedding` wins; batches of 8, padded with the pad_token_id of config.json."""
    pad = json.loads((exported.folder / "config.json").read_text())["pad_token_id"]
    assert json.loads((exported.folder / "tokenizer_config.json").read_text())["padding_side"] == "right"
    assert exported.tokenizer.padding["pad_id"] == pad
    rows = []
    for start in range(0, len(texts), 8):
        (found,), _ = exported.run(exported.tokenizer.encode_batch(texts[start : start + 8]), ["sentence_embedding"])
        rows.extend(found)
    return np.array(rows)


def langchain4j(exported, texts):
    """Output 0 as tokens, which are averaged; the text is put together again from its tokens, 510 at a time."""
    tokenizer = exported.djl(padding=False)

    def joined(tokens):
        sentence = " ".join(tokens).replace(" ##", "").strip()
        return sentence if tokenizer.encode(sentence).tokens[1:-1] == tokens else "".join(tokens)

    rows = []
    for text in texts:
        tokens = tokenizer.encode(text).tokens[1:-1]
        assert 0 < len(tokens) <= 510, "several parts are averaged: not what encode gives"
        outputs, _ = exported.run([tokenizer.encode(joined(tokens))])
        rows.append(outputs[0][0].mean(axis=0))
    return np.array(rows)


def spring_ai(exported, texts):
    """Output `last_hidden_state` by name, averaged with the mask, not scaled to norm 1."""
    tokenizer, rows = exported.djl(), []
    for start in range(0, len(texts), 16):
        (tokens,), mask = exported.run(tokenizer.encode_batch(texts[start : start + 16]), ["last_hidden_state"])
        rows.extend((tokens * mask[:, :, None]).sum(axis=1) / np.maximum(mask.sum(axis=1), 1e-9)[:, None])
    return np.array(rows)


def vespa(exported, texts, output, pooling):
    """An output by name: of three axes it is pooled, of two it is taken as it is; at most three inputs."""
    assert 2 <= len(exported.inputs) <= 3
    assert exported.outputs[output] == (2 if pooling == "none" else 3)
    longest = json.loads((exported.folder / "export.json").read_text())["max_seq_length"]
    cut = exported.tokenizer.truncation
    assert (cut["strategy"], cut["max_length"]) == ("longest_first", longest), "or it cuts where it is told to"
    exported.tokenizer.no_padding()
    found = [exported.run([exported.tokenizer.encode(text)], [output])[0][0][0] for text in texts]
    exported.tokenizer.enable_padding()
    return np.array([each.mean(axis=0) if pooling == "mean" else each for each in found])


def semantic_kernel(exported, texts):
    """Token types are fed whether or not the graph takes them; output 0 is averaged."""
    outputs, _ = exported.run([exported.tokenizer.encode(texts[0])], token_types=True)
    return outputs[0].mean(axis=1)
