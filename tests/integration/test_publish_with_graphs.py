"""Publishing with a graph: one repository for the readers of modules and those of graphs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from transformers import AutoTokenizer
from typer.testing import CliRunner

from st_dimreduce import check, export, publish, reduce_model, save_portable
from st_dimreduce.cli import app
from tests.helpers.tiny import SENTENCES

pytestmark = [pytest.mark.component("ONNX Runtime"), pytest.mark.wings("portable", "dim_reduce.py")]

PUBLISHER = """
import json, sys
from pathlib import Path
from st_dimreduce import publish
root = Path(sys.argv[1])
publish(root / "small", "user/plain")
first = publish(root / "small", "user/both", onnx=["int8"])
publish(root / "minilm", "user/minilm", onnx=True)
publish(root / "small", "user/taken-back", onnx=True)
publish(root / "small", "user/taken-back")
print(json.dumps({"files": first.files, "commit": first.commit}))
"""

# What a process without this package takes from the Hub: the model by name, and the graph by itself.
CONSUMER = """
import json, sys
sys.modules["st_dimreduce"] = None
import onnxruntime
from huggingface_hub import snapshot_download
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
said, texts = {}, json.loads(sys.argv[1])
for name in ("user/both", "user/minilm"):
    model = SentenceTransformer(name, device="cpu").encode(texts)
    folder = snapshot_download(name)
    session = onnxruntime.InferenceSession(folder + "/onnx/model.onnx", providers=["CPUExecutionProvider"])
    read = Tokenizer.from_file(folder + "/tokenizer.json")
    read.enable_padding()
    rows = read.encode_batch(texts)
    feeds = {"input_ids": [row.ids for row in rows], "attention_mask": [row.attention_mask for row in rows]}
    outputs = dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds)))
    said[name] = [model.tolist(), outputs["sentence_embedding"].tolist(), outputs["last_hidden_state"].shape, folder]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def published(hub, folders, tmp_path_factory):
    return hub.run_json(tmp_path_factory.mktemp("publisher"), PUBLISHER, folders)


@pytest.fixture(scope="module")
def consumed(hub, published, tmp_path_factory):
    home = tmp_path_factory.mktemp("fresh")
    return hub.run_json(home, CONSUMER, json.dumps(SENTENCES[:3]), token=None)


def test_only_the_graphs_are_added_in_the_same_commit(published, hub):
    plain, both = hub.files("user/plain"), hub.files("user/both")
    assert set(both) - set(plain) == {"onnx/model.onnx", "onnx/model_quantized.onnx", "export.json"}
    assert {name for name in plain if plain[name] != both[name]} == {"README.md"}
    assert published["commit"] == hub.repos["user/both"].branches["main"]
    assert published["files"].keys() == set(both) - {".gitattributes"}
    assert set(hub.files("user/taken-back")) == set(plain), "a graph of the model before is not kept"


@pytest.mark.parametrize(("name", "folder"), [("user/both", "small"), ("user/minilm", "minilm")])
def test_module_and_graph_give_the_same_vectors(consumed, folders, name, folder):
    vectors, from_graph, tokens, there = consumed[name]
    expected = SentenceTransformer(str(folders / folder), device="cpu").encode(SENTENCES[:3])
    assert np.array_equal(np.array(vectors, np.float32), expected)
    assert np.allclose(from_graph, expected, atol=1e-5)
    assert tokens[2] == expected.shape[1]
    assert check(there)
    right = {reading.reader for reading in check(there).readers if reading.outcome == "right"}
    assert {"Sentence Transformers 6", "transformers.js", "fastembed", "Text Embeddings Inference, CPU"} <= right


def test_the_card_says_how_and_has_the_tags(published, hub):
    plain, both = (ModelCard(hub.files(name)["README.md"].decode()) for name in ("user/plain", "user/both"))
    assert set(both.data.tags) - set(plain.data.tags) == {"onnx", "transformers.js"}
    assert "text-embeddings-inference" in plain.data.tags
    assert both.data.library_name == "sentence-transformers"
    assert 'pipeline("feature-extraction", "user/both", { dtype: "fp32" }); // smaller: "q8"' in both.text
    assert '{ pooling: "mean", normalize: true }' in both.text
    assert "pipeline(" not in plain.text


def test_a_static_embedding_is_published_with_its_graph(tiny_path, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_path)
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=32)], device="cpu")
    save_portable(reduce_model(static, SENTENCES, 8), tmp_path / "static")
    publication = publish(tmp_path / "static", "user/static", onnx=True, dry_run=True)
    assert {"onnx/model.onnx", "export.json"} < set(publication.files)
    tags = ModelCard(publication.card).data.tags
    assert "onnx" in tags
    assert "text-embeddings-inference" not in tags, "it starts with no static embedding"
    assert "| Sentence Transformers 6; Sentence Transformers 3.4 to 5;" in publication.card
    assert "there are no weights" not in publication.card


def test_graphs_that_are_there_are_sent_as_they_are(folders, tmp_path):
    shutil.copytree(folders / "small", tmp_path / "small")
    graph = export(folders / "small", tmp_path / "graph")
    shutil.move(graph.parent, tmp_path / "small" / "onnx")
    shutil.move(tmp_path / "graph" / "export.json", tmp_path / "small" / "export.json")
    publication = publish(tmp_path / "small", "user/x", dry_run=True)
    assert "onnx/model.onnx" in publication.files
    assert "transformers.js" in ModelCard(publication.card).data.tags
    with pytest.raises(ValueError, match=r"small holds onnx/model\.onnx: publish it as it is, or take its graphs out"):
        publish(tmp_path / "small", "user/x", onnx=True, dry_run=True)


def test_what_cannot_be_sent_is_said_in_one_line_and_nothing_is_sent(hub, folders, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    asked = len(hub.requests)

    def refused(folder, match, **options):
        with pytest.raises(ValueError, match=match) as caught:
            publish(folder, "user/refused", token="hf_writer", **options)
        assert "\n" not in str(caught.value)

    small = folders / "small"
    refused(small, "unknown variant 'int4': choose from fp32, fp16, int8", onnx=["int4"])
    prompted = reduce_model(tiny, SENTENCES, 8)
    prompted.prompts = {"query": "question: "}
    prompted[1].include_prompt = False
    refused(prompted, "this model cannot be exported: its Pooling leaves out the prompt", onnx=True)
    shutil.copytree(small, tmp_path / "code")
    (tmp_path / "code" / "notes.py").write_text("")
    refused(tmp_path / "code", f"{tmp_path}/code/notes.py may run code when it is loaded", onnx=True)
    assert len(hub.requests) == asked


def test_on_the_command_line(folders):
    def run(*arguments):
        return CliRunner().invoke(app, ["publish", str(folders / "small"), "user/x", "--dry-run", *arguments])

    done = run("--onnx", "--variant", "fp16", "--variant", "int8")
    assert done.exit_code == 0, done.output
    for name in ("onnx/model.onnx", "onnx/model_fp16.onnx", "onnx/model_quantized.onnx", "export.json", "modules.json"):
        assert name in done.output
    assert "onnx" not in run().output.split("---")[0]
    done = run("--variant", "tflite")
    assert done.exit_code == 2
    assert "'tflite' is not" in done.output
