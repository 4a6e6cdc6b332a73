"""Graphs in a model's folder: those with the head, and those of a base model that were left behind."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from st_dimreduce import Size, check, export, publish, reduce_model, save_portable
from tests.helpers.command import run
from tests.helpers.tiny import SENTENCES

onnx = pytest.importorskip("onnx")
pytestmark = [pytest.mark.component("ONNX Runtime"), pytest.mark.wings("portable", "dim_reduce.py")]
GRAPH_READERS = {"Infinity, ONNX", "fastembed", "transformers.js", "langchain4j", "Spring AI", "ONNX Runtime"}
GRAPH_READERS |= {"Vespa, hugging-face-embedder"}
MODULE_READERS = {
    "Sentence Transformers 6",
    "Sentence Transformers 3.4 to 5",
    "Text Embeddings Inference, Candle",
    "vLLM",
    "Infinity, torch",
    "eland, opensearch-py-ml",
    "LangChain, LlamaIndex, Haystack, mteb",
}
BY_BACKEND, ON_CPU = "Sentence Transformers, backend='onnx'", "Text Embeddings Inference, CPU"
BLIND = {"Text Embeddings Inference, Python backend", "txtai", "llama.cpp, Ollama"}


def outcomes(folder):
    found = {reading.reader: reading.outcome.value for reading in check(folder).readers}
    assert {found.pop("Semantic Kernel"), found.pop("Vespa, bert-embedder")} == {"fails"}
    return found


def all_of(readers, outcome):
    return dict.fromkeys(readers, outcome)


@pytest.fixture
def reduced(tiny):
    return reduce_model(tiny, SENTENCES, Size(nested=(4, 8)))


@pytest.fixture
def portable(reduced, tmp_path):
    save_portable(reduced, tmp_path / "portable")
    return tmp_path / "portable"


@pytest.fixture
def whole(tiny, tmp_path):
    """The graph of a base model, as others export it: token embeddings alone."""

    class Tokens(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = tiny[0].auto_model
            self.body.set_attn_implementation("eager")

        def forward(self, input_ids, attention_mask):
            return self.body(input_ids, attention_mask).last_hidden_state

    example = (torch.ones((2, 4), dtype=torch.int64), torch.ones((2, 4), dtype=torch.int64))
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.onnx.export(Tokens(), example, dynamo=True, dynamic_shapes=(axes, axes), verbose=False)
    program.save(tmp_path / "whole.onnx")
    return tmp_path / "whole.onnx"


def test_every_reader_of_modules_is_right_and_readers_of_graphs_miss_one(portable):
    expected = all_of(MODULE_READERS | {BY_BACKEND, ON_CPU}, "right") | all_of(GRAPH_READERS, "fails")
    assert outcomes(portable) == expected | all_of(BLIND, "unreduced")
    assert check(portable)


def test_an_export_is_right_for_every_reader_of_graphs(reduced, tmp_path):
    export(reduced, tmp_path / "x")
    expected = all_of(MODULE_READERS | BLIND, "fails")
    expected |= all_of(GRAPH_READERS | {BY_BACKEND, ON_CPU, "txtai"}, "right")
    assert outcomes(tmp_path / "x") == expected
    export(reduced, tmp_path / "half", variants=["fp16"])
    assert outcomes(tmp_path / "half") == expected | {ON_CPU: "fails"}, "it looks for model.onnx"
    assert check(tmp_path / "x")
    with pytest.raises(ValueError, match="holds a graph and no weights: load it with Sent"):
        reduce_model(str(tmp_path / "x"), SENTENCES, 4)


def test_both_together_are_right_but_for_the_reader_that_would_reduce_twice(reduced, portable, tmp_path):
    export(reduced, tmp_path / "x")
    shutil.copytree(tmp_path / "x" / "onnx", portable / "onnx")
    shutil.copy(tmp_path / "x" / "export.json", portable)
    expected = all_of(GRAPH_READERS | MODULE_READERS | {ON_CPU}, "right") | all_of(BLIND, "unreduced")
    assert outcomes(portable) == expected | {BY_BACKEND: "fails"}
    assert check(portable)
    (portable / "export.json").unlink()  # then the graph itself tells
    assert outcomes(portable) == expected | {BY_BACKEND: "fails"}


@pytest.mark.parametrize("place", ["onnx", ""])
def test_a_graph_of_the_base_model_is_named_and_is_not_published(reduced, portable, whole, place):
    (portable / place).mkdir(exist_ok=True)
    shutil.copy(whole, portable / place / "model.onnx")
    where = f"{place}/model.onnx".lstrip("/")
    assert [str(problem) for problem in check(portable).problems] == [
        f"{where}: it gives 32 dimensions, the model 8: readers of ONNX files would give unreduced vectors; "
        "remove it, or export the reduced model in its place",
    ]
    found = outcomes(portable)
    assert found[ON_CPU] == "unreduced"
    assert {found[reader] for reader in GRAPH_READERS} == {"unreduced" if place else "fails"}
    assert {found[reader] for reader in MODULE_READERS | {BY_BACKEND}} == {"right"}
    done = run("check", portable)
    assert done.exit_code == 1
    assert f"{where} is a graph without the head" in " ".join(done.output.split())
    with pytest.raises(ValueError, match=f"is not in the portable form.*{where}: it gives 32 dimensions"):
        publish(portable, "user/x", dry_run=True)
    check(portable, fix=True)
    assert (portable / where).read_bytes() == whole.read_bytes(), "nothing is lost"
    loaded = SentenceTransformer(str(portable), device="cpu")
    assert np.abs(loaded.encode(SENTENCES) - reduced.encode(SENTENCES)).max() < 1e-6


def test_a_graph_that_is_no_longer_that_of_its_export_is_looked_into(reduced, portable, whole, tmp_path):
    export(reduced, tmp_path / "x")
    shutil.copy(tmp_path / "x" / "export.json", portable)
    (portable / "onnx").mkdir()
    shutil.copy(whole, portable / "onnx" / "model.onnx")
    assert outcomes(portable)["fastembed"] == "unreduced"
    (portable / "onnx" / "model.onnx").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"model\.onnx is not an ONNX file"):
        check(portable)


def test_the_sizes_of_a_nested_head_are_where_servers_look_for_them(portable):
    config = json.loads((portable / "config.json").read_text())
    assert config["matryoshka_dimensions"] == [4, 8]
    del config["matryoshka_dimensions"]
    (portable / "config.json").write_text(json.dumps(config))
    assert [str(problem) for problem in check(portable).problems] == [
        "config.json: matryoshka_dimensions not as in the portable layout; rewrite the folder with st-dimreduce check "
        "--fix"
    ]
    check(portable, fix=True)
    assert json.loads((portable / "config.json").read_text())["matryoshka_dimensions"] == [4, 8]
