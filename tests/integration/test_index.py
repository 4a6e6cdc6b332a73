"""An index on the command line, in the retrievers of frameworks, and behind the search page."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from st_dimreduce.codes.codes import Codes
from st_dimreduce.errors import UserError
from tests.helpers.command import run
from tests.helpers.components import missing
from tests.helpers.tiny import SENTENCES, make_tiny

pytestmark = pytest.mark.component("FAISS")

if not missing("FAISS"):
    from st_dimreduce.vectors.index import Index


@pytest.fixture(scope="module")
def model(tiny_path, tmp_path_factory):
    from st_dimreduce.portable.save import save_portable
    from st_dimreduce.recipe import reduce_model

    path = tmp_path_factory.mktemp("reduced") / "model"
    save_portable(reduce_model(make_tiny(tiny_path), SENTENCES, 16), path)
    return str(path)


@pytest.fixture(scope="module")
def codes(model):
    from sentence_transformers import SentenceTransformer

    from st_dimreduce.head import Head

    loaded = SentenceTransformer(model, device="cpu")
    return Codes.of(loaded.encode_document(SENTENCES), "int8", Head.from_model(loaded).fingerprint)


@pytest.fixture
def index(codes):
    return Index.build(codes, kind="flat")


def part(codes, rows):
    return Codes(codes.values[rows], codes.precision, codes.out_features, codes.head)


def test_the_commands(model, codes, tmp_path):
    first, rest = tmp_path / "first.npy", tmp_path / "rest.parquet"
    part(codes, slice(0, 100)).save(first)
    part(codes, slice(100, None)).save(rest)
    (tmp_path / "q.txt").write_text(f"{SENTENCES[110]}\n{SENTENCES[3]}\n")
    done = run("index", "build", first, "--output", tmp_path / "index")
    assert done.exit_code == 0, done.output
    assert "Index(ivf, 100 x 16 int8, cells: 1)" in done.output
    done = run("index", "add", tmp_path / "index", rest)
    assert done.exit_code == 0, done.output
    done = run("index", "search", tmp_path / "index", tmp_path / "q.txt", "--model", model, "--k", 2)
    assert done.exit_code == 0, done.output
    lines = [line.split("\t") for line in done.output.splitlines()]
    assert [line[:2] for line in lines] == [["1", "1"], ["1", "2"], ["2", "1"], ["2", "2"]]
    assert [lines[0][2], lines[2][2]] == ["110", "3"]
    assert float(lines[0][3]) > 0.99
    np.save(tmp_path / "q.npy", codes.decode()[[5]])
    done = run("index", "search", tmp_path / "index", tmp_path / "q.npy", "--json", "--recall", 1)
    assert json.loads(done.output)["results"][0] == {"query": 1, "rank": 1, "id": 5, "cosine": 1.0}
    (tmp_path / "gone").write_text("1\n2\n")
    done = run("index", "remove", tmp_path / "index", "0", f"@{tmp_path / 'gone'}")
    assert f"Removed 3: Index(ivf, {len(SENTENCES) - 3} x 16 int8" in done.output
    done = run("info", tmp_path / "index")
    assert "ivf index of codes" in done.output
    for arguments, message in (
        (("remove", tmp_path / "index", "0"), "id 0 is not in the index"),
        (("remove", tmp_path / "index", "zero"), "id 'zero' is not a number: the index holds integers"),
        (("build", first, "--output", tmp_path / "index"), "exists"),
        (("build", tmp_path / "q.npy", "--output", tmp_path / "x"), "st-dimreduce transform HEAD"),
        (("build", rest, "--id-column", "id", "--output", tmp_path / "x"), "has the columns embedding"),
        (("search", tmp_path / "index", tmp_path / "q.txt"), "is not a .npy file"),
        (("search", tmp_path, tmp_path / "q.npy"), "holds no index.json"),
    ):
        done = run("index", *arguments)
        assert done.exit_code == 2, done.output
        assert message in " ".join(done.output.split())


def test_the_commands_take_ids_from_a_column(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from st_dimreduce.base_head import BaseHead, FitRecord
    from st_dimreduce.vectors.reduce import transform_file

    head = BaseHead(np.eye(8, 12, dtype=np.float32), record=FitRecord(mean_norm=1.0, precision="int4"))
    vectors = np.random.default_rng(0).standard_normal((40, 12)).astype(np.float32)
    table = {"id": [f"doc {row}" for row in range(40)], "number": range(1000, 1040), "embedding": list(vectors)}
    pq.write_table(pa.table(table), tmp_path / "vectors.parquet")
    transform_file(head, tmp_path / "vectors.parquet", tmp_path / "codes.parquet")
    np.save(tmp_path / "q.npy", head.transform(vectors[[7]]))
    for column, expected in (("id", "doc 7"), ("number", 1007)):
        build = ["index", "build", tmp_path / "codes.parquet", "--output", tmp_path / column, "--id-column", column]
        done = run(*build)
        assert done.exit_code == 0, done.output
        done = run("index", "search", tmp_path / column, tmp_path / "q.npy", "--json")
        assert json.loads(done.output)["results"][0]["id"] == expected
    done = run("index", "remove", tmp_path / "id", "doc 7", "doc 8")
    assert done.exit_code == 0, done.output
    assert len(Index.load(tmp_path / "id")) == 38


def test_a_model_with_another_head_is_refused(tiny, codes, tmp_path):
    from st_dimreduce.portable.save import save_portable
    from st_dimreduce.recipe import reduce_model

    save_portable(reduce_model(tiny, SENTENCES, 16, seed=5, objective="fidelity"), tmp_path / "other")
    Index.build(codes).save(tmp_path / "index")
    (tmp_path / "q.txt").write_text(SENTENCES[0])
    done = run("index", "search", tmp_path / "index", tmp_path / "q.txt", "--model", tmp_path / "other")
    assert done.exit_code == 2
    assert "holds codes made by head" in " ".join(done.output.split())


def test_without_faiss_one_line_says_what_to_install():
    code = (
        "import sys; sys.modules['faiss'] = None\n"
        "import st_dimreduce\n"
        "try:\n    st_dimreduce.Index\n"
        "except ModuleNotFoundError as error:\n    print(error)"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout == "an index needs FAISS: pip install 'st_dimreduce[faiss]'\n"


@pytest.mark.component("LangChain")
def test_a_langchain_retriever(model, codes, index):
    from langchain_core.documents import Document
    from langchain_huggingface import HuggingFaceEmbeddings

    from st_dimreduce.integrations.langchain import IndexRetriever

    embeddings = HuggingFaceEmbeddings(model_name=model)
    documents = [Document(text, metadata={"number": number}) for number, text in enumerate(SENTENCES)]
    retriever = IndexRetriever(index=index, embeddings=embeddings, documents=documents)
    found = retriever.invoke(SENTENCES[7])
    assert [len(found), found[0].page_content] == [4, SENTENCES[7]]
    assert found[0].metadata["number"] == 7
    assert found[0].metadata["score"] >= found[1].metadata["score"]
    assert "score" not in documents[7].metadata
    assert len(retriever.invoke(SENTENCES[7], k=7)) == 7
    named = Index.build(codes, [f"d{row}" for row in range(len(codes))])
    with pytest.raises(UserError, match="the index found id 'd7', which no document has: give a mapping"):
        IndexRetriever(index=named, embeddings=embeddings, documents=documents).invoke(SENTENCES[7])


@pytest.mark.component("LlamaIndex")
def test_a_llamaindex_retriever(model, index):
    from llama_index.core.schema import QueryBundle, TextNode
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    from st_dimreduce.integrations.llama_index import IndexRetriever

    nodes = {number: TextNode(text=text) for number, text in enumerate(SENTENCES)}
    retriever = IndexRetriever(index, HuggingFaceEmbedding(model_name=model, device="cpu"), nodes, k=3)
    found = retriever.retrieve(SENTENCES[7])
    assert [len(found), found[0].text] == [3, SENTENCES[7]]
    assert found[0].score >= found[1].score
    found = retriever.retrieve(QueryBundle("what is it about?", custom_embedding_strs=[SENTENCES[9]]))
    assert found[0].text == SENTENCES[9]


@pytest.mark.component("Haystack")
def test_a_haystack_retriever_in_a_pipeline(model, index, tmp_path):
    from haystack import Document, Pipeline
    from haystack_integrations.components.embedders.sentence_transformers import SentenceTransformersTextEmbedder

    from st_dimreduce.integrations.haystack import IndexRetriever

    index.save(tmp_path / "index")
    documents = [Document(content=text) for text in SENTENCES]
    pipeline = Pipeline()
    pipeline.add_component("embedder", SentenceTransformersTextEmbedder(model=model, progress_bar=False))
    pipeline.add_component("retriever", IndexRetriever(str(tmp_path / "index"), documents, k=3))
    pipeline.connect("embedder.embedding", "retriever.query_embedding")
    for each in (pipeline, Pipeline.loads(pipeline.dumps(), allowed_modules=["st_dimreduce.integrations.*"])):
        found = each.run({"embedder": {"text": SENTENCES[7]}})["retriever"]["documents"]
        assert [len(found), found[0].content] == [3, SENTENCES[7]]
        assert found[0].score >= found[1].score
    retriever = IndexRetriever(index, dict(enumerate(documents)), k=3)
    query = index._lists.codes(np.array([7])).astype(np.float32)[0].tolist()
    assert copy.deepcopy(retriever).run(query)["documents"][0].content == SENTENCES[7]
    with pytest.raises(UserError, match="index is in memory"):
        retriever.to_dict()
