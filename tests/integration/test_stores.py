"""The store examples with the real stores, and vectors of 2,000 docstrings by the real model."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.wings("codes", "examples/stores")

EXAMPLES = Path("examples", "stores").absolute()
EXACT, NEARLY = 99.5, 96.0  # least nDCG@10 of full floats: compared one by one, and through a graph or int8
BITS = 85.0
# Of each way that an example stores vectors in: the vectors, and the least share of the full model's nDCG@10.
FLOOR = {"full": NEARLY, "full, quantised": BITS, "384": 88.0, "256": 83.0, "128": 92.0, "64": 80.0, "32": 55.0}
WAYS = {
    "faiss": [
        *("Flat", "HNSW32", "SQfp16", "SQ8", "SQ4", "PQ128x4fs", "RaBitQ", "bits", "bits, then int8"),
        *("int4, index", "int2, index", "binary, index"),
    ],
    "qdrant": ["local mode", "float32", "float32, scalar int8", "float32, binary", "turbo4", "float16", "uint8"],
    "chroma": ["HNSW"],
    "lancedb": ["float32", "float16", "bits", "bits, then float16", "IVF_SQ", "IVF_RQ", "IVF_PQ"],
    "pgvector": ["vector", "halfvec", "bit", "bit, then halfvec"],
    "elasticsearch": ["float", "byte", "bit"],
    "usearch": ["f32", "f16", "i8", "i8, cast", "b1"],
    "sqlite_vec": ["float", "int8", "bit", "int8, its own", "bit, its own"],
    "duckdb": ["FLOAT", "BIT", "BLOB, int4, search"],
    "milvus": ["FLAT", "HNSW_SQ"],
}


@pytest.fixture(scope="module")
def vectors(minilm_path, tmp_path_factory):
    """The file that all examples share; the first of them would make it."""
    path = tmp_path_factory.mktemp("stores") / "stores.npz"
    runpy.run_path(str(EXAMPLES / "encode.py"))["encode"](str(path), minilm_path, 2000)
    return str(path)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an example as a command would, and return what it printed."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def run(store, *arguments):
        monkeypatch.setattr("sys.argv", [f"{store}_.py", *arguments])
        runpy.run_path(str(EXAMPLES / f"{store}_.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def check(store, lines):
    """Every way finds what it should, in the bytes that it says, and reduced vectors take fewer on disk."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[0] == ["store", "stored as", "vectors", "bytes searched", "bytes on disk", "nDCG@10", "ms per query"]
    assert set(WAYS[store]) <= {kind for _, kind, *_ in rows[2:]}
    disk = {}
    for _, kind, vectors, searched, stored, share, _ in rows[2:]:
        size = vectors.removeprefix("reduced to ").removesuffix(", quantised")
        bits = kind.lower().startswith(("bit", "b1")) and "then" not in kind
        least = BITS if bits and size == "full" else FLOOR.get(vectors, FLOOR[size])
        assert float(share.rstrip("%")) >= least, (kind, vectors)
        assert 0 < float(searched.replace(",", "")) <= 4 * (384 if size == "full" else int(size))
        disk[kind, size] = float(stored.replace(",", ""))
        assert disk[kind, size] > 0
    smaller = [(kind, size) for kind, size in disk if size in ("32", "64", "128") and (kind, "full") in disk]
    assert all(disk[kind, size] < 0.75 * disk[kind, "full"] for kind, size in smaller)
    return rows


@pytest.mark.component("FAISS")
def test_faiss(run, vectors):
    check("faiss", run("faiss", vectors))


@pytest.mark.component("Qdrant", "Qdrant Edge")
def test_qdrant(run, vectors):
    check("qdrant", run("qdrant", vectors))


@pytest.mark.component("Chroma")
def test_chroma(run, vectors):
    check("chroma", run("chroma", vectors))


@pytest.mark.component("LanceDB")
def test_lancedb(run, vectors):
    check("lancedb", run("lancedb", vectors))


@pytest.mark.component("pgvector")
def test_pgvector(run, vectors, postgres):
    check("pgvector", run("pgvector", postgres, vectors))


@pytest.mark.component("USearch")
def test_usearch(run, vectors):
    check("usearch", run("usearch", vectors))


@pytest.mark.component("sqlite-vec")
def test_sqlite_vec(run, vectors):
    check("sqlite_vec", run("sqlite_vec", vectors))


@pytest.mark.component("DuckDB")
def test_duckdb(run, vectors):
    check("duckdb", run("duckdb", vectors))


@pytest.mark.component("Milvus Lite")
def test_milvus_lite(run, vectors):
    check("milvus", run("milvus", vectors))


def test_another_count_than_the_file_holds(vectors, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    corpus = runpy.run_path(str(EXAMPLES / "corpus.py"))["Corpus"]
    with pytest.raises(SystemExit, match="holds 2000 documents, 100 were asked for: name another file"):
        corpus(vectors, None, "100")


def test_elasticsearch_mappings(run, vectors):
    lines = run("elasticsearch", vectors)
    fields = [json.loads(line)["mappings"]["properties"]["embedding"] for line in lines if line.startswith("{")]
    assert {(field["element_type"], field["dims"], field["similarity"]) for field in fields} == {
        *((element, 384, "l2_norm" if element == "bit" else "cosine") for element in ("float", "byte", "bit")),
        *((("byte", size, "cosine")) for size in (128, 64)),
        ("bit", 256, "l2_norm"),
    }
    check("elasticsearch", lines)


@pytest.fixture
def elasticsearch(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return runpy.run_path(str(EXAMPLES / "elasticsearch_.py"))


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"type": "knn_vector"}, "type is dense_vector"),
        ({"element_type": "int8"}, "element_type is one of"),
        ({"dims": 4097}, "dims is a whole number from 1 to 4096"),
        ({"dims": 0}, "dims is a whole number from 1 to 4096"),
        ({"dims": "128"}, "dims is a whole number from 1 to 4096"),
        ({"element_type": "bit", "dims": 100, "similarity": "l2_norm"}, "dims of bit are a multiple of 8"),
        ({"element_type": "bit"}, "similarity of bit is l2_norm"),
        ({"similarity": "hamming"}, "similarity is one of"),
        ({"index": False}, "similarity and index_options need index: true"),
        ({"index_options": {"type": "ivf"}}, "index_options.type is one of"),
        ({"index_options": {"m": 16}}, "index_options.type is one of"),
        ({"element_type": "byte", "index_options": {"type": "int8_hnsw"}}, "int8, int4 and bbq indexes take float"),
        ({"dims": 127, "index_options": {"type": "int4_flat"}}, "int4 takes an even number of dims"),
        ({"dims": 32, "index_options": {"type": "bbq_hnsw"}}, "bbq takes 64 dims or more"),
        ({"index_options": {"type": "flat", "m": 16}}, "m and ef_construction are for hnsw"),
        ({"index_options": {"type": "hnsw", "rescore_vector": {"oversample": 3}}}, "rescore_vector is for int8, int4"),
        (
            {"index_options": {"type": "bbq_hnsw", "rescore_vector": {"oversample": 10}}},
            "oversample is 0, or more than",
        ),
    ],
)
def test_a_mapping_that_elasticsearch_refuses(elasticsearch, change, rule):
    field = elasticsearch["mapping"]("float", 128)
    assert elasticsearch["wrong_mapping"](field) == []
    [wrong] = elasticsearch["wrong_mapping"](field | change)
    assert wrong.startswith(f"expected: {rule}")


def test_mappings_that_elasticsearch_takes(elasticsearch):
    field = elasticsearch["mapping"]("float", 128)
    for kind in elasticsearch["INDEXES"]:
        assert elasticsearch["wrong_mapping"](field | {"index_options": {"type": kind}}) == []
    assert elasticsearch["wrong_mapping"]({"type": "dense_vector"}) == []
    assert elasticsearch["wrong_mapping"]({"type": "dense_vector", "dims": 3, "index": False}) == []


@pytest.mark.parametrize(
    ("element", "vector", "rule"),
    [
        ("float", [1.0] * 15, "as many numbers as dims"),
        ("bit", [1] * 16, "as many numbers as dims"),
        ("float", [float("nan")] * 16, "finite numbers"),
        ("byte", [128] + [1] * 15, "whole numbers from -128 to 127"),
        ("byte", [0.5] + [1] * 15, "whole numbers from -128 to 127"),
        ("bit", [255, 0], "whole numbers from -128 to 127"),
        ("byte", [0] * 16, "a norm above 0 for cosine"),
    ],
)
def test_a_vector_that_elasticsearch_refuses(elasticsearch, element, vector, rule):
    field = elasticsearch["mapping"](element, 16)
    good = elasticsearch["codes"](element, np.random.default_rng(0).standard_normal((1, 16)).astype(np.float32))[0]
    assert elasticsearch["wrong_vector"](field, good.tolist()) == []
    assert f"expected: {rule}" in elasticsearch["wrong_vector"](field, vector)[0]
    dot = elasticsearch["mapping"]("float", 2) | {"similarity": "dot_product"}
    assert elasticsearch["wrong_vector"](dot, [3.0, 4.0]) == ["expected: a norm of 1 for dot_product"]


def test_the_summary_says_what_ran_and_what_did_not():
    # As if LanceDB were not installed.
    code = "import sys, pytest; sys.modules['lancedb'] = None; sys.exit(pytest.main(sys.argv[1:]))"
    chosen = ["tests/integration/test_stores.py", "-k", "test_lancedb or test_langchain or that_elasticsearch_takes"]
    command = [sys.executable, "-c", code, "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    assert "1 passed, 1 skipped" in done.stdout
    assert "LanceDB: no module lancedb: pip install 'st_dimreduce[test-all]'" in done.stdout
    assert "LanceDB: did not run: no module lancedb\n" in done.stdout
    assert "mteb: did not run: no test of it was chosen\n" in done.stdout
