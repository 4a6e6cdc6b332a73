"""Which program reads what of a model's folder, as data, and what each makes of one: right vectors, others, an error.

The rules are those of the readers' own sources, and of tests with the readers themselves; docs/serving.md names both,
and has this table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.table import Table

from st_dimreduce.enums import Outcome
from st_dimreduce.portable.graphs import Graph
from st_dimreduce.untrusted import printable

FIX = "rewrite the folder with st-dimreduce check --fix"
EXPORT_IT = "export it, or publish --with onnx"
REMOVE = "remove it, or export the reduced model in its place"
RULES = {  # by which modules.json is read, or the ONNX files
    "new": "Sentence Transformers 6",
    "old": "Sentence Transformers before 6",
    "tei": "Text Embeddings Inference",
    "vllm": "vLLM",
    "onnx": "readers of ONNX files",
}
_EFFECTS = {
    Outcome.UNREDUCED: "would give unreduced vectors",
    Outcome.DIFFERENT: "would give other vectors",
    Outcome.FAILS: "would fail",
}
_WORST = list(_EFFECTS)  # the silent ones first


@dataclass(frozen=True)
class Problem:
    """One thing in a model's folder that a reader misreads or cannot read.

    Attributes:
        where: The file, relative to the model's folder.
        what: What is wrong there.
        remedy: What to do about it.
        outcomes: What becomes of it, by the rule of :data:`RULES` that a reader follows; right by those not named.
    """

    where: str
    what: str
    remedy: str
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)

    @property
    def fixable(self) -> bool:
        """Whether ``check(path, fix=True)`` mends it."""
        return self.remedy == FIX

    def __str__(self) -> str:
        """Return it in one line that a terminal can print."""
        effects = []
        for outcome, effect in _EFFECTS.items():
            if names := [RULES[rule] for rule, each in self.outcomes.items() if each is outcome]:
                effects.append(f"{' and '.join(names)} {effect}")
        affected = f": {', '.join(effects)}" if effects else ""
        return printable(f"{self.where}: {self.what}{affected}; {self.remedy}")


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
class Reader:
    """A program that reads model folders.

    Attributes:
        name: Its name.
        reads: What it reads.
        tested: Whether a test runs it, rather than computes what its source says.
        modules: The rule of :data:`RULES` by which it reads ``modules.json``; ``"none"`` if it reads the weights of the
            transformer and no ``Dense``; None if it reads no weights.
        graph: What it takes of an ONNX file: ``"tokens"``, which it pools; ``"sentence"``, ready-made; ``"body"``, in
            place of the transformer; ``"no"`` if it feeds inputs that ours have not; None if it reads none.
        hint: What it gives the model's vectors with.
    """

    name: str
    reads: str
    tested: bool
    modules: str | None = None
    graph: str | None = None
    hint: str = ""


READERS = (
    Reader("Sentence Transformers 6", "modules.json", True, "new"),
    Reader("Sentence Transformers 3.4 to 5", "modules.json", True, "old"),
    Reader("Sentence Transformers, backend='onnx'", "modules.json and ONNX", True, "new", "body"),
    Reader("LangChain, LlamaIndex, Haystack, mteb", "modules.json", True, "new"),
    Reader("eland, opensearch-py-ml", "modules.json", False, "new"),
    Reader("Text Embeddings Inference, Candle", "modules.json", False, "tei"),
    Reader("Text Embeddings Inference, CPU", "ONNX, else modules.json", False, "tei", "sentence"),
    Reader("Text Embeddings Inference, Python backend", "weights, first token", False, "none"),
    Reader("vLLM", "modules.json", True, "vllm"),
    Reader("Infinity, torch", "modules.json", True, "new"),
    Reader("Infinity, ONNX", "ONNX", True, None, "tokens", "--pooling-method, which is cls unless given"),
    Reader("fastembed", "ONNX", True, None, "tokens"),
    Reader("transformers.js", "ONNX", True, None, "tokens", "texts up to the maximum length"),
    Reader("ONNX Runtime", "ONNX", True, None, "sentence"),
    Reader("txtai", "weights, or ONNX", True, "none", "tokens", "method: sentence-transformers"),
    Reader("langchain4j", "ONNX", False, None, "tokens"),
    Reader("Spring AI", "ONNX", False, None, "tokens", "vectors not of norm 1"),
    Reader("Vespa, hugging-face-embedder", "ONNX", False, None, "tokens", "the name of the output"),
    Reader("Vespa, bert-embedder", "ONNX, vocab.txt", False, None, "no"),
    Reader("Semantic Kernel", "ONNX, vocab.txt", False, None, "no"),
    Reader("llama.cpp, Ollama", "weights, pooling", False, "none"),
)


@dataclass(frozen=True)
class Facts:
    """What a reader may find in the folder of a reduced model, or of its export.

    Attributes:
        size: Size of the reduced vectors.
        problems: What is wrong with its modules.
        graphs: Its ONNX files, by their place.
        weights: Whether there are weights, or ONNX files alone.
    """

    size: int
    problems: Sequence[Problem] = ()
    graphs: Mapping[str, Graph] = field(default_factory=dict)
    weights: bool = True


def readings(facts: Facts) -> list[Reading]:
    """Return what each reader makes of a folder."""
    return [Reading(reader.name, *_read(reader, facts)) for reader in READERS]


def _read(reader: Reader, facts: Facts) -> tuple[Outcome, str, str]:
    """Return the outcome, what is read, and what to do about it."""
    graph = facts.graphs.get("onnx/model.onnx") or next(
        (graph for where, graph in facts.graphs.items() if where.startswith("onnx/")), None
    )
    if reader.modules == "tei":
        graph = facts.graphs.get("onnx/model.onnx") or facts.graphs.get("model.onnx")
    if reader.graph and graph and not (reader.modules == "none" and facts.weights):
        return _of_graph(reader, facts, graph)
    if reader.modules is None:
        return Outcome.FAILS, "there is no ONNX file", EXPORT_IT
    if not facts.weights:
        return Outcome.FAILS, "there are no weights", "give it the folder that save_portable wrote"
    if reader.modules == "none":
        remedy = f"use it with {reader.hint}" if reader.hint else "use another reader"
        return Outcome.UNREDUCED, "it reads no Dense of modules.json", remedy
    hurt = [problem for problem in facts.problems if reader.modules in problem.outcomes]
    if not hurt:
        return Outcome.RIGHT, "modules.json names the head", ""
    worst = min(hurt, key=lambda problem: _WORST.index(problem.outcomes[reader.modules]))  # type: ignore[index]
    return worst.outcomes[reader.modules], f"{worst.where}: {worst.what}", worst.remedy


def _of_graph(reader: Reader, facts: Facts, graph: Graph) -> tuple[Outcome, str, str]:
    if reader.graph == "no":
        return Outcome.FAILS, "it feeds token_type_ids, which the graph does not take", "use ONNX Runtime"
    if reader.graph == "body":
        if facts.weights != (graph.tokens == facts.size):
            return Outcome.RIGHT, "the graph is below the head" if facts.weights else "the head is in the graph", ""
        remedy = "model_kwargs={'export': True}" if facts.weights else "take its sentence_embedding"
        return Outcome.FAILS, "the head is in the graph and in modules.json", remedy
    found = graph.tokens if reader.graph == "tokens" else graph.sentence or graph.tokens
    if found == facts.size:
        hint = f"; with {reader.hint}" if reader.hint and reader.modules is None else ""
        return Outcome.RIGHT, f"the head is in the graph{hint}", ""
    if found is None and graph.sentence == facts.size:
        return Outcome.FAILS, "the graph gives no tokens to pool", "use a reader of sentence_embedding"
    return Outcome.UNREDUCED, f"{graph.where} is a graph without the head", REMOVE


def readers_table(found: Sequence[Reading]) -> Table:
    """Return what readers make of a model's folder as a rich table."""
    table = Table(title="What each reader makes of it", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("reader", "vectors", "why; what to do"):
        table.add_column(name, overflow="fold")
    for each in found:
        why = f"{each.why}; {each.remedy}" if each.remedy else each.why
        table.add_row(each.reader, each.outcome.value, printable(why))
    return table
