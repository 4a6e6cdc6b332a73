"""What each reader of a model's folder makes of it: the model's vectors, unreduced ones, or an error.

The rules are those of the readers' own sources, and of tests with the readers themselves; docs/serving.md names both.
Nothing in the folder is loaded or run here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from st_dimreduce.enums import Outcome
from st_dimreduce.models.folder import Part, read_layout
from st_dimreduce.portable.check import Problem, is_export, problems_of, reduced_size
from st_dimreduce.portable.graphs import Graph, graphs_of
from st_dimreduce.portable.layout import SERVED
from st_dimreduce.untrusted import printable

_WORST = (Outcome.UNREDUCED, Outcome.DIFFERENT, Outcome.FAILS)  # the silent ones first
_ADD = "export it, or publish --with onnx"
_IN_GRAPH = "the head is in the graph, before any pooling"


@dataclass(frozen=True)
class Reading:
    """What one reader makes of a model's folder.

    Attributes:
        reader: The reader.
        outcome: ``"right"``; ``"unreduced"``, the base model's vectors without a word; ``"different"``, other vectors
            without a word; or ``"fails"``, with an error.
        why: What it reads.
        remedy: What to do about it; empty where it is right.
    """

    reader: str
    outcome: Outcome
    why: str
    remedy: str = ""


@dataclass(frozen=True)
class _Folder:
    """What readers see of a folder.

    Attributes:
        parts: Its modules.
        problems: What is wrong with them.
        graphs: Its graphs, by their files.
        size: Size of the reduced vectors.
        alone: Whether there are graphs and no weights.
    """

    parts: list[Part]
    problems: list[Problem]
    graphs: dict[str, Graph]
    size: int
    alone: bool

    def reads(self, of: Callable[[Problem], Outcome | None]) -> Problem | None:
        """Return the problem that is worst for a reader; None if there is none."""
        hurt = [problem for problem in self.problems if of(problem) is not None]
        return min(hurt, key=lambda problem: _WORST.index(of(problem)), default=None)


def check_readers(path: str | os.PathLike[str]) -> list[Reading]:
    """Say what each reader makes of a reduced model's folder, or of the folder of its export.

    Args:
        path: The folder.

    Returns:
        One for each reader, as in the table in docs/serving.md; none for a model without a head.

    Raises:
        ValueError: If the folder is no model or is damaged.
    """
    root = Path(path)
    parts = read_layout(root, trust_remote_code=True)
    size = reduced_size(root, parts)
    if size is None:
        return []
    graphs = graphs_of(root)
    by_file = {graph.where: graph for graph in graphs}
    folder = _Folder(parts, problems_of(root, parts, graphs), by_file, size, is_export(root))
    return [
        _from_modules(folder, "Sentence Transformers 6", lambda problem: problem.newer),
        _from_modules(folder, "Sentence Transformers 3.4 to 5", lambda problem: problem.older),
        _by_backend(folder),
        _from_modules(folder, "Text Embeddings Inference, Candle", lambda problem: problem.server),
        _by_server_on_cpu(folder),
        _without_modules("Text Embeddings Inference, Python backend", folder),
        _by_vllm(folder),
        _from_modules(folder, "Infinity, torch", lambda problem: problem.newer),
        _from_tokens(folder, "Infinity, ONNX", "right with --pooling-method, which is cls if not given"),
        _from_tokens(folder, "fastembed"),
        _from_tokens(folder, "transformers.js"),
        _from_tokens(folder, "langchain4j, Spring AI"),
        _from_tokens(folder, "Vespa", "right if last_hidden_state or sentence_embedding is named as its output"),
        _by_semantic_kernel(folder),
        _from_modules(folder, "eland, opensearch-py-ml", lambda problem: problem.newer),
        _by_txtai(folder),
        _without_modules("llama.cpp, Ollama", folder),
    ]


def readers_table(readings: Sequence[Reading]) -> Table:
    """Return what readers make of a model's folder as a rich table.

    Args:
        readings: What :func:`check_readers` returned.
    """
    table = Table(title="What each reader makes of it", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("reader", "vectors", "why; what to do"):
        table.add_column(name, overflow="fold")
    for reading in readings:
        why = f"{reading.why}; {reading.remedy}" if reading.remedy else reading.why
        table.add_row(reading.reader, reading.outcome.value, printable(why))
    return table


def _from_modules(folder: _Folder, reader: str, of: Callable[[Problem], Outcome | None]) -> Reading:
    """Say what a reader makes of the modules that ``modules.json`` names."""
    if folder.alone:
        return _weightless(reader)
    problem = folder.reads(of)
    if problem is None:
        return Reading(reader, Outcome.RIGHT, "modules.json names the head")
    return Reading(reader, of(problem) or Outcome.FAILS, f"{problem.where}: {problem.what}", problem.remedy)


def _weightless(reader: str, remedy: str = "give it the folder that save_portable wrote") -> Reading:
    return Reading(reader, Outcome.FAILS, "there are no weights", remedy)


def _by_backend(folder: _Folder) -> Reading:
    """Say what Sentence Transformers makes of graphs, which it takes for the transformer, before the modules."""
    reader, graph = "Sentence Transformers, backend='onnx'", folder.graphs.get("onnx/model.onnx")
    if graph is None:
        return _from_modules(folder, reader, lambda problem: problem.newer)
    if folder.alone == (graph.tokens == folder.size):
        return Reading(reader, Outcome.RIGHT, _IN_GRAPH if folder.alone else "the graph is below the head")
    remedy = "model_kwargs={'export': True}" if not folder.alone else "take its sentence_embedding"
    return Reading(reader, Outcome.FAILS, "the head is in the graph and in modules.json", remedy)


def _by_server_on_cpu(folder: _Folder) -> Reading:
    """Say what the server makes of a graph: its sentence embedding, else its tokens, pooled."""
    reader = "Text Embeddings Inference, CPU"
    graph = folder.graphs.get("onnx/model.onnx") or folder.graphs.get("model.onnx")
    if graph is None:
        return _from_modules(folder, reader, lambda problem: problem.server)
    if folder.size == (graph.sentence or graph.tokens):
        return Reading(reader, Outcome.RIGHT, _IN_GRAPH)
    return _unreduced(reader, graph)


def _from_tokens(folder: _Folder, reader: str, why: str = _IN_GRAPH) -> Reading:
    """Say what a reader makes of a graph whose token embeddings it pools."""
    graph = folder.graphs.get("onnx/model.onnx")
    if graph is None:
        return Reading(reader, Outcome.FAILS, "there is no onnx/model.onnx", _ADD)
    if graph.tokens == folder.size:
        return Reading(reader, Outcome.RIGHT, why)
    if graph.tokens is None and graph.sentence == folder.size:
        return Reading(reader, Outcome.FAILS, "the graph gives no tokens to pool", "use a reader of sentence_embedding")
    return _unreduced(reader, graph)


def _unreduced(reader: str, graph: Graph) -> Reading:
    remedy = "set the graph aside with st-dimreduce check --fix"
    return Reading(reader, Outcome.UNREDUCED, f"{graph.where} is a graph without the head", remedy)


def _by_vllm(folder: _Folder) -> Reading:
    """Say what vLLM makes of the modules: it takes a stock Dense by its old and its new name, and no other module."""
    reader = "vLLM"
    others = [part.kind for part in folder.parts if part.kind not in SERVED]
    if folder.alone:
        return _weightless(reader)
    if folder.parts[0].kind != "Transformer":
        return Reading(reader, Outcome.FAILS, f"it knows no {folder.parts[0].kind}", "use Sentence Transformers")
    if "DimReduce" in others:
        return Reading(reader, Outcome.UNREDUCED, "it leaves DimReduce out", "save the model with save_portable")
    if others:
        return Reading(reader, Outcome.DIFFERENT, f"it leaves {' and '.join(others)} out", "use Sentence Transformers")
    return Reading(reader, Outcome.RIGHT, "modules.json names the head")


def _by_txtai(folder: _Folder) -> Reading:
    if folder.alone:
        return _from_tokens(folder, "txtai", "right with path=.../onnx/model.onnx and tokenizer=")
    return _without_modules("txtai", folder, "method: sentence-transformers")


def _by_semantic_kernel(folder: _Folder) -> Reading:
    reader, why = "Semantic Kernel", "it feeds token_type_ids, which the graph does not take, and wants a vocab.txt"
    missing = "onnx/model.onnx" not in folder.graphs
    return Reading(reader, Outcome.FAILS, "there is no onnx/model.onnx" if missing else why, "use ONNX Runtime itself")


def _without_modules(reader: str, folder: _Folder, remedy: str = "use another reader") -> Reading:
    """Say what a reader makes of a model that leaves out what stands behind the transformer."""
    if folder.alone:
        return _weightless(reader, "use another reader")
    return Reading(reader, Outcome.UNREDUCED, "it reads no Dense of modules.json", remedy)
