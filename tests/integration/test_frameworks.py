"""The portable form in the frameworks that load Sentence Transformers models, where this package cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from st_dimreduce import reduce_model, save_portable
from st_dimreduce.apps.docstrings import package_pairs
from st_dimreduce.codes.precision import quantize
from st_dimreduce.codes.search import search
from tests.helpers.components import missing
from tests.helpers.environments import WITHOUT_US

pytestmark = pytest.mark.wings("integrations")

FRAMEWORKS = ["LangChain", "LlamaIndex", "Haystack", "mteb"]

# Each framework loads the folder by name, with no flag. One process for all: what fails in one is kept for its test.
LOADS = """
import json, traceback
from sentence_transformers import SentenceTransformer

def langchain(path, queries, documents):
    from langchain_huggingface import HuggingFaceEmbeddings
    model = HuggingFaceEmbeddings(model_name=path)
    return {"queries": [model.embed_query(text) for text in queries], "documents": model.embed_documents(documents)}

def llamaindex(path, queries, documents):
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding
    model = HuggingFaceEmbedding(model_name=path)
    vectors = {"queries": [model.get_query_embedding(text) for text in queries]}
    return {**vectors, "documents": model.get_text_embedding_batch(documents)}

def haystack(path, queries, documents):
    from haystack import Document
    from haystack_integrations.components.embedders.sentence_transformers import (
        SentenceTransformersDocumentEmbedder,
        SentenceTransformersTextEmbedder,
    )
    text = SentenceTransformersTextEmbedder(model=path, progress_bar=False)
    document = SentenceTransformersDocumentEmbedder(model=path, progress_bar=False)
    text.warm_up()
    document.warm_up()
    embedded = document.run([Document(content=content) for content in documents])["documents"]
    vectors = {"queries": [text.run(query)["embedding"] for query in queries]}
    return {**vectors, "documents": [one.embedding for one in embedded]}

def mteb(path, queries, documents):
    import mteb
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class Docstrings(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="Docstrings", description="Docstrings by their first sentences", type="Retrieval", category="t2t",
            modalities=["text"], dataset={"path": "local", "revision": "1"}, eval_splits=["test"],
            eval_langs=["eng-Latn"], main_score="ndcg_at_10",
        )

        def load_data(self, num_proc=None, **_):
            texts = {"queries": queries, "corpus": documents}
            split = {
                name: Dataset.from_list([{"id": f"{name}{i}", "text": text} for i, text in enumerate(some)])
                for name, some in texts.items()
            }
            relevant = {f"queries{i}": {f"corpus{i}": 1} for i in range(len(queries))}
            self.dataset = {"default": {"test": {**split, "relevant_docs": relevant, "top_ranked": None}}}
            self.data_loaded = True

    # By name, mteb loads what is in its list or on the Hub; a folder is given as the model it holds.
    result = mteb.evaluate(SentenceTransformer(path), Docstrings(), cache=None, show_progress_bar=False)
    return {"ndcg": result.task_results[0].get_score()}

path, out, asked = sys.argv[1:4]
texts = json.load(sys.stdin)
found = {}
for name in asked.split():
    try:
        found[name] = globals()[name.lower()](path, texts["queries"], texts["documents"])
    except Exception:
        found[name] = traceback.format_exc()
json.dump(found, open(out, "w"))
"""


@pytest.fixture(scope="module")
def texts():
    pairs = [pair for pair in dict(package_pairs("networkx")).items() if len(pair[1]) < 300][:200]
    return {"queries": [query for query, _ in pairs[:20]], "documents": [document for _, document in pairs]}


@pytest.fixture(scope="module")
def folder(minilm, texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("frameworks") / "portable"
    save_portable(reduce_model(minilm, texts["documents"], 64, objective="fidelity"), path)
    return path


@pytest.fixture(scope="module")
def encoded(folder, texts):
    model = SentenceTransformer(str(folder), device="cpu")
    return {name: model.encode(some) for name, some in texts.items()}


@pytest.fixture(scope="module")
def found(folder, texts, tmp_path_factory):
    installed = [name for name in FRAMEWORKS if not missing(name)]
    out = tmp_path_factory.mktemp("found") / "found.json"
    command = [sys.executable, "-c", WITHOUT_US + LOADS, str(folder), str(out), " ".join(installed)]
    subprocess.run(command, input=json.dumps(texts), text=True, check=True, timeout=600)
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.component(n)) for n in FRAMEWORKS if n != "mteb"])
def test_gives_the_vectors_of_the_folder(name, found, encoded):
    assert isinstance(found[name], dict), found[name]
    for kind, vectors in encoded.items():
        np.testing.assert_allclose(found[name][kind], vectors, atol=1e-6)


@pytest.mark.component("LangChain")
@pytest.mark.parametrize("precision", ["int8", "int4", "binary"])
def test_langchain_gets_codes_that_another_batch_does_not_change(folder, texts, encoded, precision):
    from langchain_huggingface import HuggingFaceEmbeddings

    from st_dimreduce.integrations.langchain import CodeEmbeddings

    embeddings = CodeEmbeddings(HuggingFaceEmbeddings(model_name=str(folder)), precision)
    codes = embeddings.embed_documents(texts["documents"][:5])
    assert {type(number) for row in codes for number in row} == {int}
    np.testing.assert_array_equal(codes, quantize(encoded["documents"], precision)[:5])
    asked = embeddings.embed_query(texts["queries"][0])
    expected = quantize(encoded["queries"], "binary") if precision == "binary" else encoded["queries"]
    np.testing.assert_allclose(asked, expected[0], atol=1e-6)


@pytest.mark.component("LangChain")
def test_a_store_of_langchain_finds_by_int8_codes(folder, texts, encoded):
    from langchain_core.vectorstores import InMemoryVectorStore
    from langchain_huggingface import HuggingFaceEmbeddings

    from st_dimreduce.integrations.langchain import CodeEmbeddings

    store = InMemoryVectorStore(CodeEmbeddings(HuggingFaceEmbeddings(model_name=str(folder))))
    store.add_texts(texts["documents"])
    scores, rows = search(encoded["queries"][:3], quantize(encoded["documents"], "int8"), "int8", k=5)
    for query, cosines, near in zip(texts["queries"], scores, rows, strict=False):
        found = store.similarity_search_with_score(query, k=5)
        assert [document.page_content for document, _ in found] == [texts["documents"][row] for row in near]
        np.testing.assert_allclose([score for _, score in found], cosines, atol=1e-5)


@pytest.mark.component("LangChain")
def test_codes_of_no_text_and_of_an_unknown_precision(folder):
    from langchain_core.embeddings import FakeEmbeddings

    from st_dimreduce.integrations.langchain import CodeEmbeddings

    assert CodeEmbeddings(FakeEmbeddings(size=8)).embed_documents([]) == []
    with pytest.raises(ValueError, match="unknown precision 'int9'"):
        CodeEmbeddings(FakeEmbeddings(size=8), "int9")


@pytest.mark.component("mteb")
def test_mteb_measures_the_folder(found, encoded):
    assert isinstance(found["mteb"], dict), found["mteb"]
    _, rows = search(encoded["queries"], encoded["documents"], "float32")
    right = rows == np.arange(len(rows))[:, None]
    ndcg = np.sum(right / np.log2(np.arange(2, 12)), axis=1).mean()
    assert 0.5 < ndcg < 1
    assert found["mteb"]["ndcg"] == pytest.approx(ndcg, abs=1e-4)
