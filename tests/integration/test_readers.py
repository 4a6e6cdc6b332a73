"""Readers of other projects give what encode gives: from a portable folder, or from an exported one.

Each runs here in the version named below; those that do not install are held against their source by
`tests/helpers/readers.py`. docs/serving.md says the same of each in a table.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from st_dimreduce import Codes, export, reduce_model, save_portable
from st_dimreduce.apps.docstrings import docstring_pairs
from st_dimreduce.codes.precision import bytes_to_levels, quantize
from st_dimreduce.enums import Precision
from tests.helpers import readers
from tests.helpers.environments import WITHOUT_US, node_modules, packages, run_python
from tests.helpers.readers import Exported

pytestmark = [
    pytest.mark.component("ONNX Runtime"),
    pytest.mark.wings("portable", "examples/serving", "examples/browser"),
]

ROOT = Path(__file__).parent.parent.parent
BROWSER = ROOT / "examples" / "browser"
CLOSE = 0.9999
KOREAN = ["한국어 문장도 같은 벡터를 줍니다.", "오늘 서울의 날씨는 맑고 바람이 조금 붑니다. " * 40]
LENGTHS = (1, 2, 3, 5, 8, 13, 30, 60, 120, 180, 200, 220, 240, 254, 256, 258, 300, 500, 900)  # words
TRANSFORMERS_4 = ["transformers==4.57.6", "huggingface_hub==0.36.2", "tokenizers==0.22.2", "datasets==4.4.1"]
FASTEMBED = ["fastembed==0.9.1", "loguru==0.7.3", "mmh3==5.2.1", "py-rust-stemmers==0.1.8"]
OPTIMUM = ["optimum==2.1.0", "optimum-onnx==0.1.0"]
INFINITY = [
    *["infinity-emb==0.0.78", "sentence-transformers==3.4.1", "transformers==4.48.3", "huggingface_hub==0.36.2"],
    *["tokenizers==0.21.4", "optimum==1.24.0", "fastapi==0.165.0", "prometheus-fastapi-instrumentator==8.1.0"],
    *["prometheus_client==0.26.0", "typer==0.12.5", "click==8.1.8", "rich==13.9.4", "uvicorn==0.32.1"],
    *["annotated-doc==0.0.7", "datasets==4.4.1"],
]


@pytest.fixture(scope="module")
def folders(minilm, tmp_path_factory):
    """A model reduced to 128 dimensions, in both forms, texts of all lengths and their embeddings."""
    folder = tmp_path_factory.mktemp("readers")
    pairs = docstring_pairs(400)
    documents = [document for _, document in pairs]
    words = " ".join(documents).split()
    cut = [" ".join(words[100 * row : 100 * row + length]) for row, length in enumerate(LENGTHS)]
    texts = [*(query for query, _ in pairs[:120]), *documents[:40], *cut, *KOREAN, "x", "naïve café 😀"]
    model = reduce_model(minilm, documents, 128)
    save_portable(model, folder / "portable")
    export(model, folder / "exported", variants=["fp32", "fp16", "int8"])
    (folder / "texts.json").write_text(json.dumps(texts))
    return folder, texts, model.encode(texts, normalize_embeddings=True)


def cosines(vectors, expected):
    vectors = np.asarray(vectors, np.float64)
    assert vectors.shape == expected.shape
    return (vectors * expected).sum(axis=1) / np.linalg.norm(vectors, axis=1)


def short(texts, folder):
    """Which texts a tokenizer need not cut."""
    tokenizer = Exported(folder).tokenizer
    tokenizer.no_truncation()
    return np.array([len(tokenizer.encode(text).ids) <= 256 for text in texts])


def in_python(requirements, code, folder):
    """The vectors that code prints to a file, where these packages come first and ours cannot be imported."""
    places = os.pathsep.join(str(packages(*some)) for some in requirements)
    run_python(places, WITHOUT_US + READ + code + WRITE, folder)
    return np.load(folder / "found.npz")


READ = """
import json, sys
from pathlib import Path
import numpy as np
folder, vectors = Path(sys.argv[1]), {}
texts = json.loads((folder / "texts.json").read_text())
"""
WRITE = """
np.savez(folder / "found.npz", **vectors)
"""
WITH_FASTEMBED = """
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
for name, output in (("pooled", None), ("ready", "sentence_embedding")):
    for file in ("model", "model_fp16"):
        TextEmbedding.add_custom_model(
            model=name + file, pooling=PoolingType.DISABLED if output else PoolingType.MEAN, normalization=True,
            output_name=output, sources=ModelSource(hf="nobody/nothing"), dim=128, model_file=f"onnx/{file}.onnx",
        )
        model = TextEmbedding(name + file, specific_model_path=str(folder / "exported"), threads=1)
        vectors[name + file] = np.array(list(model.embed(texts, batch_size=16)))
"""
WITH_TXTAI = """
from txtai.vectors import VectorsFactory
exported, portable = folder / "exported", str(folder / "portable")
graph = {"path": str(exported / "onnx" / "model.onnx"), "tokenizer": str(exported / "tokenizer.json")}
st = {"path": portable, "method": "sentence-transformers"}
for name, config in {"graph": graph, "portable": st, "unreduced": {"path": portable}}.items():
    vectors[name] = np.array(VectorsFactory.create({"gpu": False, **config}, None).encode(texts))
"""
WITH_ST = """
from sentence_transformers import SentenceTransformer
for file in ("model", "model_fp16"):
    given = {"provider": "CPUExecutionProvider", "file_name": f"onnx/{file}.onnx"}
    model = SentenceTransformer(str(folder / "exported"), backend="onnx", device="cpu", model_kwargs=given)
    vectors[file] = model.encode(texts)
"""


def test_fastembed(folders):
    folder, _, expected = folders
    found = in_python([FASTEMBED], WITH_FASTEMBED, folder)
    assert {name: cosines(found[name], expected).min() >= CLOSE for name in found} == dict.fromkeys(found, True)
    assert len(found) == 4


def test_txtai_which_leaves_the_head_out_unless_told_what_the_folder_is(folders):
    folder, _, expected = folders
    found = in_python([["txtai==9.14.0"]], WITH_TXTAI, folder)
    assert cosines(found["graph"], expected).min() >= CLOSE
    assert cosines(found["portable"], expected).min() >= CLOSE
    assert found["unreduced"].shape[1] == 384


def test_sentence_transformers_with_onnx(folders):
    folder, _, expected = folders
    found = in_python([["sentence-transformers==5.1.0"], TRANSFORMERS_4, OPTIMUM], WITH_ST, folder)
    assert cosines(found["model"], expected).min() >= CLOSE
    assert cosines(found["model_fp16"], expected).min() >= CLOSE


IN_NODE = """
import fs from "node:fs";
import { AutoModel, AutoTokenizer, env, pipeline } from "@huggingface/transformers";
const folder = process.argv[1];
[env.localModelPath, env.allowRemoteModels] = [folder, false];
const texts = JSON.parse(fs.readFileSync(`${folder}/texts.json`));
const found = {};
for (const dtype of ["fp32", "fp16", "q8"]) {
  const extract = await pipeline("feature-extraction", "exported", { dtype });
  found[dtype] = [];
  for (let i = 0; i < texts.length; i += 16) {
    const rows = await extract(texts.slice(i, i + 16), { pooling: "mean", normalize: true });
    found[dtype].push(...rows.tolist());
  }
}
const [tokenizer, model] = await Promise.all(
  [AutoTokenizer.from_pretrained("exported"), AutoModel.from_pretrained("exported", { dtype: "fp32" })]);
found.ready = [];
for (const text of texts) {
  const outputs = await model(tokenizer(text, { truncation: true }));
  found.ready.push(...outputs.sentence_embedding.tolist());
}
fs.writeFileSync(`${folder}/found.json`, JSON.stringify(found));
"""


@pytest.mark.component("Node.js")
def test_transformers_js(folders):
    folder, texts, expected = folders
    command = ["node", "--input-type=module", "--eval", IN_NODE, str(folder)]
    done = subprocess.run(command, cwd=node_modules(BROWSER), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((folder / "found.json").read_text())
    whole = short(texts, folder / "exported")
    for name in ("fp32", "fp16", "ready"):
        close = cosines(found[name], expected)
        assert close[whole].min() >= CLOSE, name
        assert 0.99 <= close[~whole].min() < CLOSE, "it no longer cuts the last token off: say so in docs/serving.md"
    assert 0.95 <= cosines(found["q8"], expected).min() < CLOSE


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def ask(port, name, texts, **more):
    """The embeddings of an OpenAI-compatible server."""
    body = json.dumps({"model": name, "input": texts, **more}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/embeddings", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return np.array([each["embedding"] for each in json.load(answer)["data"]])


@pytest.fixture(scope="module")
def infinity(folders, tmp_path_factory):
    """The port of an Infinity server with both forms: the portable with torch, the exported with ONNX Runtime."""
    folder, port = folders[0], free_port()
    command = [sys.executable, "-m", "infinity_emb.cli", "v2", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--device", "cpu", "--no-bettertransformer", "--no-model-warmup", "--pooling-method", "mean"]
    for name, engine in (("portable", "torch"), ("exported", "optimum")):
        command += ["--model-id", str(folder / name), "--engine", engine, "--served-model-name", name]
    command += ["--onnx-disable-optimize", "--onnx-do-not-prefer-quantized"]
    own = {"PYTHONPATH": str(packages(*INFINITY)), "DO_NOT_TRACK": "1", "HF_HOME": str(tmp_path_factory.mktemp("hf"))}
    log = folder / "infinity.log"
    with log.open("w") as file, subprocess.Popen(command, env=os.environ | own, stdout=file, stderr=file) as server:
        try:
            for _ in range(240):
                time.sleep(0.5)
                assert server.poll() is None, log.read_text()[-3000:]
                try:
                    ask(port, "portable", ["ready?"])
                    break
                except urllib.error.URLError:
                    continue
            yield port
        finally:
            server.terminate()


@pytest.mark.parametrize("name", ["portable", "exported"])
def test_infinity(infinity, folders, name):
    folder, texts, expected = folders
    found = np.vstack([ask(infinity, name, texts[start : start + 20]) for start in range(0, len(texts), 20)])
    close, whole = cosines(found, expected), short(texts, folder / "exported")
    assert close[whole].min() >= CLOSE
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-4)
    if name == "portable":
        assert close.min() >= CLOSE
    else:
        assert close.min() < 0.9, "it no longer reads up to max_position_embeddings: say so in docs/serving.md"


def test_infinity_cuts_to_dimensions(infinity, folders):
    _, texts, _ = folders
    whole, cut = ask(infinity, "portable", texts[:5]), ask(infinity, "portable", texts[:5], dimensions=32)
    assert cosines(cut, whole[:, :32] / np.linalg.norm(whole[:, :32], axis=1, keepdims=True)).min() >= CLOSE


WITH_VLLM = """
from vllm import LLM
if __name__ == "__main__":
    model = LLM(model=str(folder / "portable"), runner="pooling", enforce_eager=True, max_num_seqs=16, dtype="float32")
    cut = {"truncation": True, "max_length": 256}
    vectors["portable"] = np.array([each.outputs.embedding for each in model.embed(texts, tokenization_kwargs=cut)])
    np.savez(folder / "found.npz", **vectors)
"""


def test_vllm(folders, tmp_path):
    python = os.environ.get("ST_DIMREDUCE_VLLM")
    if not python:
        pytest.skip("vLLM takes gigabytes: set ST_DIMREDUCE_VLLM to the Python of an environment that has it")
    folder, _, expected = folders
    (tmp_path / "encode.py").write_text(READ + WITH_VLLM)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    command = [python, str(tmp_path / "encode.py"), str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert cosines(np.load(folder / "found.npz")["portable"], expected).min() >= CLOSE


RULES = {
    "Text Embeddings Inference": readers.tei,
    "langchain4j": readers.langchain4j,
    "Spring AI": readers.spring_ai,
    "Vespa, pooled": partial(readers.vespa, output="last_hidden_state", pooling="mean"),
    "Vespa, ready-made": partial(readers.vespa, output="sentence_embedding", pooling="none"),
}


@pytest.mark.parametrize("name", RULES)
def test_by_the_rule_of_a_reader_that_does_not_install(folders, name):
    folder, texts, expected = folders
    assert cosines(RULES[name](Exported(folder / "exported"), texts), expected).min() >= CLOSE


def test_semantic_kernel_feeds_an_input_that_the_graph_does_not_have(folders):
    folder, texts, _ = folders
    with pytest.raises(InvalidArgument, match="token_type_ids"):
        readers.semantic_kernel(Exported(folder / "exported"), texts)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the example and its address, served from this machine."""
    work = tmp_path_factory.mktemp("browser")
    shutil.copytree(BROWSER, work / "browser", ignore=shutil.ignore_patterns("node_modules"))
    (work / "browser" / "node_modules").symlink_to(node_modules(BROWSER) / "node_modules")
    command = [sys.executable, str(work / "browser" / "make_site.py"), "binary", str(work / "site"), "300"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(work / "site")))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield work / "site", f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join(30)
    server.server_close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def embed(folder, texts):
    exported = Exported(folder, "model_fp16.onnx")
    return np.vstack([exported.run([exported.tokenizer.encode(text)], ["sentence_embedding"])[0][0] for text in texts])


def answers(browser, query):
    """What the page finds for a query: rows and scores."""
    from selenium.webdriver.support.wait import WebDriverWait

    before = browser.find_element("id", "status").text
    browser.execute_script("document.querySelector('#q').value = arguments[0]", query)
    browser.execute_script("document.querySelector('form').requestSubmit()")
    WebDriverWait(browser, 60).until(lambda page: page.find_element("id", "status").text != before)
    assert browser.find_element("id", "status").text.startswith("Encoded in")
    lines = browser.find_elements("css selector", "#answers li")
    scores = [float(line.find_element("tag name", "data").get_attribute("value")) for line in lines]
    return [int(line.get_attribute("data-document")) for line in lines], scores


@pytest.mark.component("Chromium", "Node.js")
@pytest.mark.parametrize("precision", ["binary", "int2", "int4", "int8"])
def test_the_browser_finds_what_search_finds(site, browser, precision):
    from selenium.webdriver.support.wait import WebDriverWait

    folder, address = site
    documents = json.loads((folder / "texts.json").read_text())
    codes = quantize(embed(folder / "model", documents), precision)
    settings = json.loads((folder / "settings.json").read_text()) | {"packed": codes.dtype == np.uint8}
    (folder / "settings.json").write_text(json.dumps(settings))
    if precision == "binary":
        assert np.mean(np.load(folder / "codes.npy") != codes) < 0.01, "the script quantised something else"
    np.save(folder / "codes.npy", codes)
    if settings["packed"]:
        np.save(folder / "levels.npy", bytes_to_levels(Precision(precision)))
    browser.get_log("performance")
    browser.get(address)
    loaded = f"{len(documents)} documents, {codes.shape[1]} bytes each."
    WebDriverWait(browser, 120).until(lambda page: page.find_element("id", "status").text == loaded)
    queries = ["inverse of a matrix", KOREAN[0], " ".join(documents[:20]), documents[7]]
    stored = Codes(codes, Precision(precision), 128)
    scores, rows = stored.search(embed(folder / "model", queries), k=len(codes))
    for query, by_rank, ranked in zip(queries, scores, rows, strict=True):
        found, given = answers(browser, query)
        of_row = dict(zip(ranked.tolist(), by_rank.tolist(), strict=True))
        assert len(set(found)) == 10
        assert given == pytest.approx([of_row[row] for row in found], abs=2e-3), "float16 against float32"
        assert given == pytest.approx(by_rank[:10], abs=2e-3), "what search ranks higher is left out"
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert all(url.startswith((address, "data:", "blob:")) for url in asked), asked


def test_onnxruntime_takes_each_file(folders):
    """As in Java and C#, which have the same runtime: the names and types that a program relies on."""
    folder, _, _ = folders
    for file in ("model", "model_fp16", "model_quantized"):
        session = onnxruntime.InferenceSession(folder / "exported" / "onnx" / f"{file}.onnx")
        assert [(each.name, each.type) for each in session.get_inputs()] == [
            ("input_ids", "tensor(int64)"),
            ("attention_mask", "tensor(int64)"),
        ]
        assert [(each.name, each.shape[-1], each.type) for each in session.get_outputs()] == [
            ("last_hidden_state", 128, "tensor(float)"),
            ("sentence_embedding", 128, "tensor(float)"),
        ]
