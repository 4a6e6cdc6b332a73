"""Checking a model's folder for what makes a reader fail, or serve other vectors than the model gives.

Text Embeddings Inference does not stop at a ``modules.json`` that it cannot parse: it leaves out every ``Dense`` and
serves the unreduced embeddings. Nothing in the folder is loaded or run here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_dimreduce.base_head import ACTIVATIONS, CONFIG, PICKLE, RECORD, WEIGHTS
from st_dimreduce.enums import Outcome
from st_dimreduce.errors import UserError
from st_dimreduce.models.folder import TEXT, Part, needs_own_code, pooling_modes, read_layout
from st_dimreduce.portable.graphs import EXPORT, Graph, graphs_of
from st_dimreduce.portable.layout import (
    BAG,
    BEFORE_5,
    BEFORE_6,
    DENSE_KEYS,
    MODEL_CONFIG,
    MODULES,
    OLD_NAMES,
    POOLING_KEYS,
    SENTENCE_CONFIG,
    SERVED,
    SIZES,
    TOKENIZER_CONFIG,
    TRANSFORMER_KEYS,
    beyond_layout,
    is_head,
    kept_sizes,
    misread_before,
    module_path,
    reads_sentences,
)
from st_dimreduce.portable.transformers4 import missing_settings
from st_dimreduce.untrusted import printable, read_json, read_object, short

SERVER = "Text Embeddings Inference"
OLDER = BEFORE_6
_SERVED = {POOLING_KEYS[mode] for mode in ("cls", "mean", "lasttoken")}
_FIRST = ("StaticEmbedding", "BoW", "WordEmbeddings", "CLIPModel", "Router")  # in place of a Transformer
_FIX = "rewrite the folder with st-dimreduce check --fix"
_REDUCE = "reduce the base model again, with the head directly behind Pooling"


@dataclass(frozen=True)
class Problem:
    """One thing in a model's folder that a reader misreads or cannot read.

    Attributes:
        where: The file, relative to the model's folder.
        what: What is wrong there.
        reader: Who is affected, and how.
        remedy: What to do about it.
        server: What Text Embeddings Inference makes of it; None if it is right.
        older: What Sentence Transformers before 6, or before a version that ``reader`` says, makes of it.
        newer: What Sentence Transformers 6 makes of it.
    """

    where: str
    what: str
    reader: str
    remedy: str
    server: Outcome | None = None
    older: Outcome | None = None
    newer: Outcome | None = None

    @property
    def fixable(self) -> bool:
        """Whether :func:`st_dimreduce.fix` mends it."""
        return self.remedy == _FIX

    def __str__(self) -> str:
        """What is wrong in one line, in which nothing that the file says is acted on by a terminal."""
        return printable(f"{self.where}: {self.what}: {self.reader}; {self.remedy}")


def check(path: str | os.PathLike[str]) -> list[Problem]:
    """Name everything in a model's folder that Text Embeddings Inference or an older Sentence Transformers misreads.

    The folder is read, never loaded: no module is imported, no weight is used. Whether Text Embeddings Inference knows
    the kind of transformer at all depends on its version, and is not checked.

    Args:
        path: The folder of a model.

    Returns:
        The problems; none for what :func:`st_dimreduce.save_portable` writes of a model that the server can express.

    Raises:
        ValueError: If the folder is no model or is damaged, as :func:`st_dimreduce.models.folder.read_layout`.
    """
    root = Path(path)
    if (root / RECORD).is_file() and not (root / MODULES).exists():
        raise UserError(f"{root} holds a head, no model: st-dimreduce attach puts it behind one, info describes it")
    return problems_of(root, read_layout(root, trust_remote_code=True))


def problems_of(root: Path, parts: list[Part], graphs: list[Graph] | None = None) -> list[Problem]:
    """Name the problems of a folder whose modules, and perhaps graphs, have been read, as :func:`check`."""
    behind = [*_left_behind(reduced_size(root, parts), graphs_of(root) if graphs is None else graphs)]
    if is_export(root):  # whose modules are those of readers that take its graph for the transformer
        return behind
    problems = [*_modules(root, parts)]
    rules = {"Transformer": _transformer, "Pooling": _pooling, "Dense": _dense, "DimReduce": _dense}
    for part in parts:
        if part.kind in rules:
            problems += rules[part.kind](part)
    return [*problems, *_misread(parts), *_model(root), *behind]


def _modules(root: Path, parts: list[Part]) -> Iterator[Problem]:
    if not (root / MODULES).exists():
        yield Problem(
            MODULES,
            "it is missing",
            f"{SERVER} finds no pooling",
            "save the model with save_portable",
            server=Outcome.UNREDUCED,
            older=Outcome.UNREDUCED,
            newer=Outcome.UNREDUCED,
        )
        return
    for number, entry in enumerate(read_json(root / MODULES)):
        idx = entry.get("idx")
        if not isinstance(idx, int) or isinstance(idx, bool) or idx < 0:
            yield Problem(
                MODULES,
                f"module {number} has no idx",
                f"{SERVER} serves unreduced embeddings",
                _FIX,
                server=Outcome.UNREDUCED,
            )
    for part in parts:
        yield from _type(part)
    kinds = [part.kind for part in parts]
    places = [place for place, kind in enumerate(kinds) if kind in {"Dense", "DimReduce"}]
    last = max(places, default=0)
    if "Normalize" in kinds[:last]:
        hurt = f"{SERVER} leaves it out and serves different vectors"
        yield Problem(MODULES, "a Normalize is before a Dense", hurt, _REDUCE, server=Outcome.DIFFERENT)
    if "Pooling" in kinds and min(places, default=len(kinds)) < kinds.index("Pooling"):
        hurt = f"{SERVER} applies it behind Pooling, to other vectors"
        yield Problem(MODULES, "a Dense is before Pooling", hurt, _REDUCE, server=Outcome.DIFFERENT)


def _type(part: Part) -> Iterator[Problem]:
    stock = part.kind in OLD_NAMES and part.type.startswith("sentence_transformers.")
    if stock and part.type != OLD_NAMES[part.kind]:
        served = f", {SERVER} may serve unreduced embeddings" if part.kind in SERVED else ""
        served_as = Outcome.UNREDUCED if served else None
        hurt = f"{OLDER} does not load it{served}"
        yield Problem(MODULES, f"{part.kind} has its new name {part.type!r}", hurt, _FIX, served_as, Outcome.FAILS)
    if stock and part.kind in _FIRST:
        what = f"it starts with a {part.kind}"
        yield Problem(
            MODULES, what, f"{SERVER} cannot serve it", "serve it with Sentence Transformers", server=Outcome.FAILS
        )
    elif is_head(part):
        hurt = f"every reader needs trust_remote_code and the package, {SERVER} serves unreduced embeddings"
        yield Problem(
            MODULES,
            f"it names {short(part.type)}",
            hurt,
            _FIX,
            server=Outcome.UNREDUCED,
            older=Outcome.FAILS,
            newer=Outcome.FAILS,
        )
    elif not (stock and part.kind in SERVED):
        hurt = f"{SERVER} serves unreduced embeddings"
        hurt += "" if part.type.startswith("sentence_transformers.") else ", every other reader needs trust_remote_code"
        others = None if part.type.startswith("sentence_transformers.") else Outcome.FAILS
        remedy = "use only Transformer, Pooling, Dense and Normalize"
        yield Problem(MODULES, f"it names {short(part.type)}", hurt, remedy, Outcome.UNREDUCED, others, others)


def _transformer(part: Part) -> Iterator[Problem]:
    config, where = part.config, f"{part.path}/".lstrip("/")
    if part.path:
        yield Problem(
            MODULES, f"the transformer is in {part.path}", f"{SERVER} looks for it above", _FIX, server=Outcome.FAILS
        )
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        hurt = f"{SERVER} does not start"
        yield Problem(
            f"{where}{CONFIG}", "it names no architectures", hurt, "save the base model again", server=Outcome.FAILS
        )
    elif any(name.endswith("Classification") for name in architectures):
        what, hurt = f"it names {short(architectures)}", f"{SERVER} takes it for a classifier"
        yield Problem(
            f"{where}{CONFIG}", what, hurt, "save the base model without its classifier", server=Outcome.FAILS
        )
    if needs_own_code(config):
        hurt = "every reader needs trust_remote_code"
        yield Problem(
            f"{where}{CONFIG}",
            "it needs code of its own",
            hurt,
            "choose a base model that does not",
            server=Outcome.FAILS,
            older=Outcome.FAILS,
            newer=Outcome.FAILS,
        )
    if not (part.folder / "tokenizer.json").exists():
        hurt = f"{SERVER} does not start"
        yield Problem(
            f"{where}tokenizer.json",
            "it is missing",
            hurt,
            "save the model with a fast tokenizer",
            server=Outcome.FAILS,
        )
    if not any((part.folder / name).exists() for name in (WEIGHTS, f"{WEIGHTS}.index.json")):
        what = f"there is no {WEIGHTS}"
        yield Problem(
            where or ".",
            what,
            "readers that refuse pickles do not load it",
            "save the model again",
            server=Outcome.FAILS,
        )
    tokenizer = part.folder / TOKENIZER_CONFIG
    for name in missing_settings(config, read_object(tokenizer) if tokenizer.exists() else {}):
        file = TOKENIZER_CONFIG if "token" in name or name == "model_input_names" else CONFIG
        hurt = "transformers before 5 fails, or gives different vectors"
        yield Problem(
            f"{where}{file}",
            f"{name} is not written as transformers before 5 reads it",
            hurt,
            _FIX,
            server=Outcome.DIFFERENT,
            older=Outcome.DIFFERENT,
        )
    yield from _sentence_config(part, f"{where}{SENTENCE_CONFIG}")


def _sentence_config(part: Part, where: str) -> Iterator[Problem]:
    if not (part.folder / SENTENCE_CONFIG).exists():
        return
    config = read_object(part.folder / SENTENCE_CONFIG)
    modes = config.get("modality_config")
    if isinstance(modes, dict) and (more := sorted(set(modes) - TEXT)):
        hurt = f"Sentence Transformers before 5.4 does not load it, {SERVER} does not serve it"
        remedy = "use it with Sentence Transformers from 5.4 on"
        yield Problem(where, f"it reads {' and '.join(map(printable, more))}", hurt, remedy, server=Outcome.FAILS)
        return
    beyond = beyond_layout(config)
    for name in beyond:
        hurt = f"{OLDER} does not load it, {SERVER} gives different vectors"
        yield Problem(
            where,
            f"it sets {name} to {short(config[name])}",
            hurt,
            "set it to its default and save the model again",
            server=Outcome.DIFFERENT,
            older=Outcome.FAILS,
        )
    if (unknown := sorted(set(config) - set(TRANSFORMER_KEYS))) and not beyond:
        yield Problem(
            where, f"it has the new keys {', '.join(unknown)}", f"{OLDER} does not load it", _FIX, older=Outcome.FAILS
        )
    if not isinstance(config.get("max_seq_length"), int) and not beyond:
        yield Problem(
            where, "it has no max_seq_length", f"{SERVER} does not start in some versions", _FIX, server=Outcome.FAILS
        )
    if config.get("do_lower_case") is True:
        what, hurt = "do_lower_case is true", f"{SERVER} does not lowercase"
        yield Problem(where, what, hurt, "lowercase in tokenizer.json", server=Outcome.DIFFERENT)


def _pooling(part: Part) -> Iterator[Problem]:
    config, where, expected = part.config, f"{part.path}/{CONFIG}", module_path(1, "Pooling")
    if part.path != expected:
        yield Problem(
            MODULES,
            f"Pooling is in {part.path!r}",
            f"{SERVER} looks only in {expected}",
            _FIX,
            server=Outcome.DIFFERENT,
        )
    known = {"word_embedding_dimension", *POOLING_KEYS.values(), "include_prompt"}
    if new := sorted(set(config) - known):
        yield Problem(
            where, f"it has the new keys {', '.join(new)}", f"{OLDER} does not load it", _FIX, older=Outcome.FAILS
        )
    missing = [key for key in (POOLING_KEYS["cls"], POOLING_KEYS["mean"]) if not isinstance(config.get(key), bool)]
    if missing:
        what = f"it does not set {', '.join(missing)} to true or false"
        yield Problem(where, what, f"{SERVER} does not start", _FIX, server=Outcome.FAILS)
    modes = pooling_modes(config)
    keys = {POOLING_KEYS.get(mode, mode) for mode in modes}
    if len(keys) > 1:
        what = f"it concatenates the poolings {', '.join(modes)}"
        yield Problem(
            where, what, f"{SERVER} takes only one of them", "choose a base model with one", server=Outcome.DIFFERENT
        )
    elif not keys & _SERVED:
        what, hurt = f"its pooling is {', '.join(modes) or 'none'}", f"{SERVER} knows only cls, mean and lasttoken"
        yield Problem(where, what, hurt, "choose a base model with one of these", server=Outcome.FAILS)
    if config.get("include_prompt") is False:
        hurt = f"{SERVER} pools the prompt too"
        yield Problem(where, "include_prompt is false", hurt, "use it without prompts there", server=Outcome.DIFFERENT)


def _misread(parts: list[Part]) -> Iterator[Problem]:
    if any(part.kind == "BoW" for part in parts):
        yield Problem(
            MODULES, f"it has {BAG}", f"{BEFORE_5} gives different vectors", "use it from 5 on", older=Outcome.DIFFERENT
        )
    pooling = next((part for part in parts if part.kind == "Pooling"), None)
    body = next((part for part in parts if part.kind == "Transformer"), None)
    if pooling is None or body is None:
        return
    tokenizer = body.folder / TOKENIZER_CONFIG
    side = read_object(tokenizer).get("padding_side", "right") if tokenizer.exists() else "right"
    found = misread_before(side, pooling_modes(pooling.config), pooling.config.get("include_prompt") is not False)
    if found:
        remedy = "pad on the right and pool the prompt, if the model gives good vectors so"
        yield Problem(
            f"{pooling.path}/{CONFIG}", found[0], f"{found[1]} gives different vectors", remedy, older=Outcome.DIFFERENT
        )


def _dense(part: Part) -> Iterator[Problem]:
    config, where = part.config, f"{part.path}/{CONFIG}"
    if new := sorted(set(config) - set(DENSE_KEYS)):
        yield Problem(
            where, f"it has the new keys {', '.join(new)}", f"{OLDER} does not load it", _FIX, older=Outcome.FAILS
        )
    if not reads_sentences(config):
        yield Problem(
            where,
            "it does not reduce the sentence embedding",
            f"{SERVER} applies it to that",
            _REDUCE,
            server=Outcome.DIFFERENT,
            older=Outcome.FAILS,
        )
    if config.get("use_residual"):
        yield Problem(
            where,
            "it has a residual connection",
            f"{SERVER} leaves it out",
            "train the head without",
            server=Outcome.DIFFERENT,
            older=Outcome.DIFFERENT,
        )
    if not isinstance(config.get("bias"), bool):
        yield Problem(
            where, "it does not set bias to true or false", f"{SERVER} does not start", _FIX, server=Outcome.FAILS
        )
    if "activation_function" not in config:
        hurt = f"{SERVER} takes Identity, all others Tanh"
        yield Problem(where, "it names no activation", hurt, _FIX, server=Outcome.DIFFERENT)
    elif config["activation_function"] not in ACTIVATIONS.values():
        what, hurt = f"its activation is {config['activation_function']}", f"{SERVER} does not start"
        yield Problem(where, what, hurt, "train the head with Tanh or Identity", server=Outcome.FAILS)
    if not (part.folder / WEIGHTS).exists():
        what = f"its weights are the pickle {PICKLE}"
        yield Problem(f"{part.path}/{PICKLE}", what, "readers that refuse pickles do not load it", _FIX)


def _model(root: Path) -> Iterator[Problem]:
    config: dict[str, Any] = read_object(root / MODEL_CONFIG) if (root / MODEL_CONFIG).exists() else {}
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        yield Problem(MODEL_CONFIG, "a prompt is no string", f"{SERVER} does not start", _FIX, server=Outcome.FAILS)
    if config.get("truncate_dim") is not None:
        what, hurt = f"truncate_dim is {short(config['truncate_dim'])}", f"{SERVER} serves all dimensions"
        remedy = "truncate the vectors where they are used, or fit a head of this size"
        yield Problem(MODEL_CONFIG, what, hurt, remedy, server=Outcome.DIFFERENT)
    sizes = kept_sizes(root)
    transformer = read_object(root / CONFIG) if (root / CONFIG).exists() else None
    if sizes and transformer is not None and transformer.get(SIZES) != sizes:
        what = f"it does not name the sizes {', '.join(map(str, sizes))} at which vectors may be truncated"
        yield Problem(CONFIG, what, "vLLM refuses dimensions=", _FIX)


def _left_behind(out_features: int | None, graphs: list[Graph]) -> Iterator[Problem]:
    """Name the graphs that are not reduced, as those of a base model that were left behind."""
    for graph in unreduced(out_features, graphs):
        sizes = " and ".join(str(size) for size in (graph.tokens, graph.sentence) if size is not None)
        what = f"it gives {sizes} dimensions, the model {out_features}" if sizes else "it is of no export of this model"
        yield Problem(graph.where, what, "readers of graphs serve unreduced embeddings", _FIX)


def unreduced(out_features: int | None, graphs: list[Graph]) -> list[Graph]:
    """Return the graphs that give other sizes than the reduced model; none for a model without a head."""
    return [graph for graph in graphs if out_features is not None and not graph.is_reduced(out_features)]


def is_export(root: Path) -> bool:
    """Whether a folder is what ``export`` wrote: graphs and settings, and no weights."""
    weights = (path for pattern in ("*.safetensors", "*/*.safetensors") for path in root.glob(pattern))
    return (root / EXPORT).exists() and not any(weights)


def reduced_size(root: Path, parts: list[Part]) -> int | None:
    """Return the size of the vectors of a reduced model, or of its export; None if it has no head."""
    if is_export(root):
        size = read_object(root / EXPORT).get("dimensions")
        return size if isinstance(size, int) else None
    sizes = [part.config.get("out_features") for part in parts if part.kind in {"Dense", "DimReduce"}]
    return sizes[-1] if sizes and isinstance(sizes[-1], int) else None
