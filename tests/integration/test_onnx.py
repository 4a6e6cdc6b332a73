from __future__ import annotations

import json
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

from st_dimreduce import DimReduce, FitRecord, Head, Size, export, reduce_model, save_portable
from st_dimreduce.codes.precision import quantize
from st_dimreduce.dim_reduce import keep_record
from st_dimreduce.errors import MissingExtraError
from st_dimreduce.portable.export import unexportable
from st_dimreduce.portable.graph import EmbedTokens
from tests.helpers.environments import packages, run_python
from tests.helpers.tiny import SENTENCES, WORDS
from tests.helpers.without_torch import ENGLISH, KOREAN, without_torch

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = [pytest.mark.component("ONNX Runtime"), pytest.mark.wings("portable", "dim_reduce.py")]
EXAMPLE = Path("examples/serving/encode_with_onnxruntime.py").absolute()


def feeds_of(path, texts):
    """What the tokenizer beside an exported graph makes of texts."""
    read = Tokenizer.from_file(str(path.parents[1] / "tokenizer.json")).encode_batch(texts)
    feeds = {"input_ids": [row.ids for row in read], "attention_mask": [row.attention_mask for row in read]}
    return {name: np.array(rows, np.int64) for name, rows in feeds.items()}


def run(path, texts):
    """What ONNX Runtime makes of texts that the exported tokenizer reads: the embeddings, and the codes if any."""
    session = onnxruntime.InferenceSession(path)
    found = dict(
        zip([each.name for each in session.get_outputs()], session.run(None, feeds_of(path, texts)), strict=True)
    )
    return [found[name] for name in ("sentence_embedding", "codes") if name in found]


@pytest.fixture
def reduced(tiny):
    return reduce_model(tiny, SENTENCES, 8)


def test_any_batch_of_any_length_gives_what_torch_gives(reduced, tmp_path):
    session = onnxruntime.InferenceSession(export(reduced, tmp_path / "x"))
    names = [(part.name, part.shape, part.type) for part in [*session.get_inputs(), *session.get_outputs()]]
    assert names == [
        ("input_ids", ["batch", "length"], "tensor(int64)"),
        ("attention_mask", ["batch", "length"], "tensor(int64)"),
        ("last_hidden_state", ["batch", "length", 8], "tensor(float)"),
        ("sentence_embedding", ["batch", 8], "tensor(float)"),
    ]
    rng = np.random.default_rng(0)
    for batch in (1, 3):
        for length in range(1, 25):
            ids = rng.integers(5, 5 + len(WORDS), (batch, length))
            mask = (np.arange(length) < rng.integers(1, length + 1, (batch, 1))).astype(np.int64)
            found = session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})[0]
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


def pooled(path, texts, mode):
    """What a reader makes of the first output of a graph, pooling by itself."""
    feeds = feeds_of(path, texts)
    tokens = onnxruntime.InferenceSession(path).run(None, feeds)[0]
    mask = feeds["attention_mask"]
    if mode == "mean":
        return (tokens * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
    return tokens[:, 0] if mode == "cls" else tokens[np.arange(len(tokens)), mask.sum(axis=1) - 1]


def cosines(one, other):
    return (one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("heads", [1, 2])
def test_a_reader_that_pools_by_itself_gets_the_reduced_embedding(tiny_path, tmp_path, mode, heads):
    modules = [Transformer(tiny_path), Pooling(32, mode), *([Dense(32, 24, activation_function=None)] * (heads - 1))]
    base = SentenceTransformer(modules=[*modules, Normalize()], device="cpu")
    model = reduce_model(base, SENTENCES, 8, objective="fidelity")
    texts = [SENTENCES[0], "cat", "", f"  {SENTENCES[1]} " * 9]
    path = export(model, tmp_path / "x")
    assert cosines(pooled(path, texts, mode), model.encode(texts)).min() > 0.9999
    assert json.loads((tmp_path / "x" / "export.json").read_text())["pooling"] == mode
    read = json.loads((tmp_path / "x" / "1_Pooling" / "config.json").read_text())
    assert read["word_embedding_dimension"] == 8
    assert [kind["type"].rpartition(".")[2] for kind in json.loads((tmp_path / "x" / "modules.json").read_text())] == [
        "Transformer",
        "Pooling",
        "Normalize",
    ]


@pytest.mark.parametrize("why", ["max", "tanh"])
def test_tokens_that_a_reader_would_pool_to_other_vectors_are_left_out_and_it_is_said(tiny_path, tmp_path, why):
    torch.manual_seed(0)
    pooling, head = Pooling(32, "max" if why == "max" else "mean"), DimReduce(32, 8)
    if why == "tanh":
        head.linear.weight.data *= 20
    model = SentenceTransformer(modules=[Transformer(tiny_path), pooling, head], device="cpu")
    said = "mean, cls or lasttoken" if why == "max" else "the Tanh of a head is not linear"
    with pytest.warns(UserWarning, match=f"the graph has no last_hidden_state: .*{said}.*take its sentence_embedding"):
        path = export(model, tmp_path / "x")
    assert [each.name for each in onnxruntime.InferenceSession(path).get_outputs()] == ["sentence_embedding"]
    assert not (tmp_path / "x" / "modules.json").exists(), "readers that pool would take it for right"
    assert np.abs(run(path, SENTENCES)[0] - model.encode(SENTENCES)).max() < 1e-5


def test_smaller_files_and_how_far_they_are_from_the_model(minilm, tmp_path):
    model = reduce_model(minilm, SENTENCES, 32)
    path = export(model, tmp_path / "x", variants=["fp32", "fp16", "int8"])
    files = json.loads((tmp_path / "x" / "export.json").read_text())["files"]
    assert list(files) == ["onnx/model.onnx", "onnx/model_fp16.onnx", "onnx/model_quantized.onnx"]
    sizes, texts = [], ENGLISH + KOREAN
    for (name, about), least in zip(files.items(), (0.99999, 0.9999, 0.9), strict=True):
        found = cosines(run(tmp_path / "x" / name, texts)[0], model.encode(texts))
        assert found.min() > least, name
        assert about["least_cosine"] > least
        sizes.append(about["bytes"])
        assert about["bytes"] == (tmp_path / "x" / name).stat().st_size
    assert sizes[1] < 0.52 * sizes[0]
    assert sizes[2] < 0.27 * sizes[0]
    assert {each.name for each in path.parent.iterdir()} == {Path(name).name for name in files}
    alone = export(model, tmp_path / "y", variants="fp16")
    assert [path.name for path in alone.parent.iterdir()] == ["model_fp16.onnx"] == [alone.name]
    assert alone.read_bytes() == (tmp_path / "x" / "onnx" / "model_fp16.onnx").read_bytes()
    with pytest.raises(ValueError, match="unknown variant 'q4': choose from fp32, fp16, int8"):
        export(model, tmp_path / "z", variants=["q4"])
    with pytest.raises(ValueError, match="variants is empty: choose from fp32, fp16, int8"):
        export(model, tmp_path / "z", variants=[])


@pytest.mark.parametrize("precision", ["float32", "int8", "int2"])
def test_runtimes_of_2024_read_a_graph_which_names_no_file_of_this_machine(reduced, tmp_path, precision):
    import onnx

    path = export(reduced, tmp_path / "x", precision=precision)
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
    about = settings.pop("files")
    assert list(about) == ["onnx/model.onnx"]
    assert about["onnx/model.onnx"]["bytes"] == path.stat().st_size
    assert about["onnx/model.onnx"]["least_cosine"] > 0.99999
    assert settings == {
        "dimensions": 4,
        "max_seq_length": 5,
        "prompts": {"query": "query : ", "document": ""},
        "default_prompt_name": "query",
        "similarity_fn_name": "cosine",
        "pooling": "mean",
        "precision": "float32",
        "outputs": ["last_hidden_state", "sentence_embedding"],
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
    reduced = reduce_model(tiny, SENTENCES, Size(bytes=2))
    head = Head.from_model(reduced)
    assert head.precision != "float32"
    save_portable(reduced, tmp_path / "model")
    for source in (reduced, tmp_path / "model", head.attach(tiny, trainable=True)):
        path = export(source, tmp_path / "x", overwrite=True)
        assert onnxruntime.InferenceSession(path).get_outputs()[-1].shape == ["batch", 2]
    assert json.loads((tmp_path / "x" / "export.json").read_text())["precision"] == head.precision


@pytest.mark.component("OpenVINO")
def test_openvino_reads_the_graph(reduced, tmp_path, monkeypatch):
    """As docs/serving.md does it; in bfloat16 it gives other vectors."""
    monkeypatch.setitem(sys.modules, "openvino_telemetry", None)
    import openvino

    graph = export(reduced, tmp_path / "model", precision="int8")
    model = openvino.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    texts = [SENTENCES[0], "cat", "", SENTENCES[1]]
    feeds = feeds_of(graph, texts)
    for rows in (slice(0, 1), slice(0, 4)):
        found = model({name: some[rows] for name, some in feeds.items()})
        assert np.abs(found["sentence_embedding"] - reduced.encode(texts)[rows]).max() < 1e-5
        assert np.array_equal(found["codes"], quantize(found["sentence_embedding"], "int8"))


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


def relu(tiny):
    modules = [*list(tiny)[:2], DimReduce(32, 8, activation_function=nn.ReLU())]
    return SentenceTransformer(modules=modules, device="cpu")


def another_tokenizer(tiny):
    model = SentenceTransformer(modules=[*list(tiny)[:2], DimReduce(32, 8), Normalize()], device="cpu")
    model.tokenizer.__class__ = type("Slow", (type(model.tokenizer),), {"backend_tokenizer": None})
    return model


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (lambda tiny: tiny, {}, "it has no head: give a reduced model, or reduce this one first"),
        (leaves_out_prompt, {}, "leaves out the prompt, whose length a graph does not know"),
        (another_tokenizer, {}, "is a Slow, which has no tokenizer.json"),
        (relu, {}, "ends in ReLU, expected Tanh or Identity"),
        (lambda tiny: tiny, {"precision": "int3"}, "unknown precision 'int3'"),
        (lambda tiny: Path("tests"), {}, "no model could be loaded from 'tests'"),
        (lambda tiny: DimReduce(8, 4), {}, "the model is a DimReduce: expected a SentenceTransformer"),
        (lambda tiny: Head(np.eye(4)), {}, "the model is a Head: expected a SentenceTransformer"),
        (lambda tiny: "no/such-model", {}, "no model could be loaded from 'no/such-model'"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_is_written(tiny, tmp_path, source, options, message):
    with pytest.raises(ValueError, match=message):
        export(source(tiny), tmp_path / "x", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spoilt", ["vectors", "codes"])
def test_a_graph_that_gives_something_else_is_not_written(spoilt, reduced, tmp_path, monkeypatch):
    if spoilt == "vectors":
        call = EmbedTokens.forward
        monkeypatch.setattr(
            EmbedTokens, "forward", lambda self, ids, mask: tuple(each.flip(-1) for each in call(self, ids, mask))
        )
    else:
        monkeypatch.setattr("st_dimreduce.portable.graph.INT8_STEPS", 20.0)
    said = (
        "what was written gives other vectors than"
        if spoilt == "vectors"
        else "of the codes that the graph gives are not"
    )
    with pytest.raises(ValueError, match=said):
        export(reduced, tmp_path / "x", precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_more_weights_than_a_file_holds(reduced):
    weights = sum(weight.numel() for weight in reduced.parameters())
    assert unexportable(reduced, weights) == []
    assert unexportable(reduced, weights - 1) == [f"it has {weights:,} weights, one ONNX file holds {weights - 1:,}"]


def test_a_missing_extra_is_named(reduced, tmp_path, monkeypatch):
    monkeypatch.setattr("st_dimreduce.portable.export.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(MissingExtraError, match=r"onnxscript is missing: pip install 'st_dimreduce\[onnx\]'"):
        export(reduced, tmp_path / "x")


def test_only_an_export_is_replaced(reduced, tmp_path):
    export(reduced, tmp_path / "x")
    with pytest.raises(FileExistsError, match="exists: choose another folder"):
        export(reduced, tmp_path / "x")
    assert export(reduced, tmp_path / "x", overwrite=True).is_file()
    (tmp_path / "x" / "export.json").unlink()
    with pytest.raises(FileExistsError, match=r"holds no export\.json: choose another folder, this is never replaced"):
        export(reduced, tmp_path / "x", overwrite=True)
