from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoTokenizer

from st_dimreduce import DimReduce, FitRecord, attach_head, export, quantize, reduce_model, save_head, save_portable
from st_dimreduce.dim_reduce import keep_record
from st_dimreduce.runtimes.export import unexportable
from st_dimreduce.runtimes.graph import EmbedTokens, ReduceToUnit
from tests.helpers.environments import packages, run_python
from tests.helpers.tiny import SENTENCES, WORDS
from tests.helpers.without_torch import ENGLISH, KOREAN, without_torch

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.component("ONNX Runtime")
EXAMPLE = Path("examples/serving/encode_with_onnxruntime.py").absolute()


def run(path, texts, *outputs):
    """What ONNX Runtime makes of texts that the exported tokenizer reads."""
    read = Tokenizer.from_file(str(path.with_name("tokenizer.json"))).encode_batch(texts)
    feeds = {"input_ids": [row.ids for row in read], "attention_mask": [row.attention_mask for row in read]}
    session = onnxruntime.InferenceSession(path)
    return session.run(list(outputs) or None, {name: np.array(rows, np.int64) for name, rows in feeds.items()})


@pytest.fixture
def reduced(tiny):
    return reduce_model(tiny, SENTENCES, 8)


def test_any_batch_of_any_length_gives_what_torch_gives(reduced, tmp_path):
    session = onnxruntime.InferenceSession(export(reduced, tmp_path / "x"))
    names = [(part.name, part.shape, part.type) for part in [*session.get_inputs(), *session.get_outputs()]]
    assert names == [
        ("input_ids", ["batch", "length"], "tensor(int64)"),
        ("attention_mask", ["batch", "length"], "tensor(int64)"),
        ("sentence_embedding", ["batch", 8], "tensor(float)"),
    ]
    rng = np.random.default_rng(0)
    for batch in (1, 3):
        for length in range(1, 25):
            ids = rng.integers(5, 5 + len(WORDS), (batch, length))
            mask = (np.arange(length) < rng.integers(1, length + 1, (batch, 1))).astype(np.int64)
            found = session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
            with torch.no_grad():
                features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
                expected = reduced(features)["sentence_embedding"].numpy()
            assert found.shape == (batch, 8)
            assert np.abs(found - expected).max() < 1e-5, (batch, length)


@pytest.mark.parametrize("mode", ["lasttoken", "weightedmean", ("cls", "max", "mean", "mean_sqrt_len_tokens")])
def test_every_pooling_mode_and_two_heads_that_do_not_normalise(tiny_path, tmp_path, mode):
    torch.manual_seed(0)
    pooling = Pooling(32, mode)
    heads = [Dense(pooling.pooling_output_dimension, 16, activation_function=None), DimReduce(16, 8)]
    model = SentenceTransformer(modules=[Transformer(tiny_path), pooling, *heads], device="cpu")
    texts = [SENTENCES[0], "cat", "", f"  {SENTENCES[1]} " * 9]
    assert np.abs(run(export(model, tmp_path / "x"), texts)[0] - model.encode(texts)).max() < 1e-5


@pytest.mark.parametrize("precision", ["float32", "int8", "int2"])
def test_runtimes_of_2024_read_a_graph_which_names_no_file_of_this_machine(reduced, tmp_path, precision):
    import onnx

    for source in (reduced, DimReduce.from_model(reduced)):
        path = export(source, tmp_path / "x", precision=precision, overwrite=True)
        graph = onnx.load(path)
        assert graph.ir_version <= 10
        assert [(used.domain, used.version) for used in graph.opset_import] == [("", 20)]
        assert b".py" not in path.read_bytes()


def test_a_static_embedding(tiny_path, tmp_path):
    static = StaticEmbedding(AutoTokenizer.from_pretrained(tiny_path), embedding_dim=16)
    model = SentenceTransformer(modules=[static, DimReduce(16, 4)], device="cpu")
    texts = [*SENTENCES[:3], "cat", "", "the cat " * 40]
    assert np.abs(run(export(model, tmp_path / "x"), texts)[0] - model.encode(texts)).max() < 1e-5
    keep_record(model, FitRecord(precision="int8"))
    save_portable(model, tmp_path / "model")
    embeddings, codes = run(export(tmp_path / "model", tmp_path / "x", overwrite=True), texts)
    assert np.array_equal(codes, quantize(embeddings, "int8"))


def test_length_cut_dimensions_and_prompts_are_the_models(tiny, tmp_path):
    tiny.prompts, tiny.default_prompt_name, tiny.max_seq_length = {"query": "query : "}, "query", 5
    reduced = reduce_model(tiny, SENTENCES, 8)
    reduced.truncate_dim = 4
    path = export(reduced.half(), tmp_path / "x")
    settings = json.loads((tmp_path / "x" / "export.json").read_text())
    assert settings == {
        "dimensions": 4,
        "max_seq_length": 5,
        "prompts": {"query": "query : ", "document": ""},
        "default_prompt_name": "query",
        "similarity_fn_name": "cosine",
        "precision": "float32",
        "outputs": ["sentence_embedding"],
    }
    assert next(reduced.parameters()).dtype is torch.float16, "the source was changed"
    expected = reduced.float().encode(SENTENCES[:9])
    assert np.abs(run(path, [f"query : {text}" for text in SENTENCES[:9]])[0] - expected).max() < 1e-5


def test_the_real_model_without_torch(minilm, tmp_path):
    reduced, texts = reduce_model(minilm, SENTENCES, 32), ENGLISH + KOREAN
    path = export(reduced, tmp_path / "x", precision="int4")
    said = without_torch(f"sys.argv = sys.argv[1:]\nexec(open({str(EXAMPLE)!r}).read())", "x", tmp_path / "x", *texts)
    lines = said.splitlines()
    assert lines[::2] == ["sentence_embedding float32 (9, 32)", "codes uint8 (9, 16)"]
    embeddings, codes = (np.array(json.loads(line)) for line in lines[1::2])
    assert np.abs(embeddings - reduced.encode(texts)).max() < 1e-5
    assert np.array_equal(codes, quantize(embeddings.astype(np.float32), "int4"))
    assert b"site-packages" not in path.read_bytes(), "tells where things are on this machine"


def test_codes_are_those_that_the_head_was_fitted_for(tiny, tmp_path):
    reduced = reduce_model(tiny, SENTENCES, bytes_per_vector=2)
    precision = DimReduce.from_model(reduced).precision
    assert precision != "float32"
    save_portable(reduced, tmp_path / "model")
    save_head(DimReduce.from_model(reduced), tmp_path / "head")
    head = DimReduce.from_model(reduced)
    attached = attach_head(tiny, head, trainable=True)
    for source in (reduced, tmp_path / "model", tmp_path / "head", head, head.to_head(), attached):
        path = export(source, tmp_path / "x", overwrite=True)
        assert onnxruntime.InferenceSession(path).get_outputs()[-1].shape == ["batch", 2]
    assert json.loads((tmp_path / "x" / "export.json").read_text())["precision"] == precision


@pytest.mark.component("OpenVINO")
def test_openvino_gives_the_same_and_tells_nobody(reduced, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino_telemetry", None)
    import openvino

    export(reduced, tmp_path / "ov" / "model", "openvino", precision="int8")
    save_head(DimReduce.from_model(reduced), tmp_path / "head")
    (tmp_path / "home").mkdir()
    options = ["--format", "openvino", "--precision", "int8", "--output", tmp_path / "ov" / "head"]
    done = subprocess.run(
        [Path(sys.executable).with_name("st-dimreduce"), "export", tmp_path / "head", *options],
        env=os.environ | {"HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace("\n", "") == f"Wrote {tmp_path}/ov/head/head.xml."
    assert not (tmp_path / "home" / "intel").exists(), "OpenVINO's telemetry ran"
    for name, others in (("model", {"tokenizer.json"}), ("head", set())):
        files = {path.name for path in (tmp_path / "ov" / name).iterdir()}
        assert files == {f"{name}.xml", f"{name}.bin", "export.json"} | others
    core, exact = openvino.Core(), {"INFERENCE_PRECISION_HINT": "f32"}
    texts = [SENTENCES[0], "cat", "", SENTENCES[1]]
    read = Tokenizer.from_file(str(tmp_path / "ov" / "model" / "tokenizer.json")).encode_batch(texts)
    feeds = {"input_ids": [row.ids for row in read], "attention_mask": [row.attention_mask for row in read]}
    for rows in (slice(0, 1), slice(0, 4)):
        model = core.compile_model(tmp_path / "ov" / "model" / "model.xml", "CPU", exact)
        found = model({name: np.array(some)[rows] for name, some in feeds.items()})
        assert np.abs(found["sentence_embedding"] - reduced.encode(texts)[rows]).max() < 1e-5
        assert np.array_equal(found["codes"], quantize(found["sentence_embedding"], "int8"))
    vectors = np.random.default_rng(0).standard_normal((50, 32), np.float32)
    found = core.compile_model(tmp_path / "ov" / "head" / "head.xml", "CPU", exact)(vectors)
    expected = quantize(DimReduce.from_model(reduced).to_head().reduce_stored(vectors), "float32")
    assert np.abs(found["reduced"] - expected).max() < 1e-5
    assert np.array_equal(found["codes"], quantize(found["reduced"], "int8"))


@pytest.mark.component("OpenVINO")
def test_the_backends_of_sentence_transformers_keep_the_head(reduced, tmp_path):
    save_portable(reduced, tmp_path / "model")
    folder = packages(
        "sentence-transformers==5.1.2",
        "transformers==4.57.6",
        "tokenizers==0.22.2",
        "huggingface_hub==0.36.2",
        "datasets==4.4.1",
        "optimum==2.1.0",
        "optimum-onnx==0.1.0",
        "optimum-intel==1.27.0",
    )
    code = """
import sys
sys.modules["openvino_telemetry"] = None
import numpy as np
from sentence_transformers import SentenceTransformer
path, out, *texts = sys.argv[1:]
exact = {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}}
for backend, options in {"torch": {}, "onnx": {}, "openvino": exact}.items():
    model = SentenceTransformer(path, backend=backend, device="cpu", model_kwargs=options)
    np.save(f"{out}/{backend}.npy", model.encode(texts))
    print(backend, type(model[0].auto_model).__name__)
"""
    said = run_python(folder, code, tmp_path / "model", tmp_path, *SENTENCES[:5])
    assert "onnx ORTModelForFeatureExtraction" in said
    assert "openvino OVModelForFeatureExtraction" in said
    for backend in ("torch", "onnx", "openvino"):
        vectors = np.load(tmp_path / f"{backend}.npy")
        assert vectors.shape == (5, 8)
        assert np.abs(vectors - reduced.encode(SENTENCES[:5])).max() < 1e-5, backend


def leaves_out_prompt(tiny):
    modules = [tiny[0], Pooling(32, "mean", include_prompt=False), DimReduce(32, 8)]
    return SentenceTransformer(modules=modules, device="cpu", prompts={"query": "query : "})


def another_tokenizer(tiny):
    model = SentenceTransformer(modules=[*list(tiny)[:2], DimReduce(32, 8), Normalize()], device="cpu")
    model.tokenizer.__class__ = type("Slow", (type(model.tokenizer),), {"backend_tokenizer": None})
    return model


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (lambda tiny: tiny, {}, "this model cannot be exported: there is no head .* fit one with reduce_model"),
        (leaves_out_prompt, {}, "leaves out the prompt, whose length a graph does not know"),
        (another_tokenizer, {}, "is a Slow, which has no tokenizer.json"),
        (lambda tiny: DimReduce(8, 4, activation_function=nn.ReLU()), {}, "ends in ReLU, expected Tanh or Identity"),
        (lambda tiny: DimReduce(8, 4), {"format": "tflite"}, "unknown format 'tflite': choose from onnx, openvino"),
        (lambda tiny: DimReduce(8, 4), {"precision": "int3"}, "unknown precision 'int3'"),
        (lambda tiny: Path("tests"), {}, "tests holds no head: expected the folder of a head or of a reduced model"),
        (lambda tiny: "no/such-model", {}, "no model could be loaded from 'no/such-model'"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_is_written(tiny, tmp_path, source, options, message):
    with pytest.raises(ValueError, match=message):
        export(source(tiny), tmp_path / "x", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format_", ["onnx", pytest.param("openvino", marks=pytest.mark.component("OpenVINO"))])
@pytest.mark.parametrize("source", ["model", "head"])
@pytest.mark.parametrize("spoilt", ["vectors", "codes"])
def test_a_graph_that_gives_something_else_is_not_written(format_, source, spoilt, reduced, tmp_path, monkeypatch):
    given = reduced if source == "model" else DimReduce.from_model(reduced).to_head()
    if spoilt == "vectors":
        call = EmbedTokens.forward if source == "model" else ReduceToUnit.forward
        kind = EmbedTokens if source == "model" else ReduceToUnit
        monkeypatch.setattr(kind, "forward", lambda self, *inputs: call(self, *inputs).flip(1))
    else:
        monkeypatch.setattr("st_dimreduce.runtimes.graph.INT8_STEPS", 20.0)
    said = (
        "what was written gives other vectors than"
        if spoilt == "vectors"
        else "of the codes that the graph gives are not"
    )
    with pytest.raises(ValueError, match=said):
        export(given, tmp_path / "x", format_, precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_more_weights_than_a_file_holds(reduced):
    weights = sum(weight.numel() for weight in reduced.parameters())
    assert unexportable(reduced, weights) == []
    assert unexportable(reduced, weights - 1) == [f"it has {weights:,} weights, one ONNX file holds {weights - 1:,}"]


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("st_dimreduce.runtimes.export.find_spec", lambda name: None if name == "openvino" else name)
    with pytest.raises(ModuleNotFoundError, match=r"openvino is missing: pip install 'st_dimreduce\[openvino\]'"):
        export(DimReduce(8, 4), tmp_path / "x", "openvino")
    export(DimReduce(8, 4), tmp_path / "x")


def test_only_an_export_is_replaced(tmp_path):
    head = DimReduce(8, 4)
    export(head, tmp_path / "x")
    with pytest.raises(FileExistsError, match="exists: choose another folder"):
        export(head, tmp_path / "x")
    assert export(head, tmp_path / "x", overwrite=True).is_file()
    (tmp_path / "x" / "export.json").unlink()
    with pytest.raises(FileExistsError, match=r"holds no export\.json: choose another folder, this is never replaced"):
        export(head, tmp_path / "x", overwrite=True)
