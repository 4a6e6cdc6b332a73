"""What would make a reader of a model's folder fail, or serve other vectors than the model gives.

Text Embeddings Inference does not stop at a ``modules.json`` that it cannot parse: it leaves out every ``Dense`` and
serves the unreduced embeddings. Nothing in the folder is loaded or run here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from st_dimreduce.models.folder import PICKLE, WEIGHTS, Part, pooling_modes, read_layout
from st_dimreduce.portable.transformers4 import missing_words
from st_dimreduce.portable.save import ACTIVATIONS, POOLING_KEYS
from st_dimreduce.untrusted import read_json, read_object, short

SERVER = "Text Embeddings Inference"
OLDER = "Sentence Transformers before 6"
OLD_NAMES = {kind: f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling", "Dense", "Normalize")}
TRANSFORMER_KEYS = {"max_seq_length", "do_lower_case", "model_args", "tokenizer_args", "config_args"}
DENSE_KEYS = {"in_features", "out_features", "bias", "activation_function"}
_SERVED = {POOLING_KEYS[mode] for mode in ("cls", "mean", "lasttoken")}
_FIX = "rewrite the folder with st-dimreduce check --fix"
_REDUCE = "reduce the base model again, with the head directly behind Pooling"


@dataclass(frozen=True)
class Problem:
    """One thing in a model's folder that a reader would stumble over.

    Attributes:
        where: The file, as seen from the model's folder.
        what: What is wrong there.
        reader: Who stumbles, and how.
        remedy: What to do about it.
    """

    where: str
    what: str
    reader: str
    remedy: str

    @property
    def fixable(self) -> bool:
        """Whether :func:`st_dimreduce.portable.fix` mends it."""
        return self.remedy == _FIX

    def __str__(self) -> str:
        return f"{self.where}: {self.what}: {self.reader}; {self.remedy}"


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
    parts = read_layout(root, trust_remote_code=True)
    problems = [*_modules(root, parts)]
    rules = {"Transformer": _transformer, "Pooling": _pooling, "Dense": _dense, "DimReduce": _dense}
    for part in parts:
        if part.kind in rules:
            problems += rules[part.kind](part)
    return [*problems, *_model(root)]


def _modules(root: Path, parts: list[Part]) -> Iterator[Problem]:
    where = "modules.json"
    if not (root / where).exists():
        yield Problem(where, "it is missing", f"{SERVER} finds no pooling", "save the model with save_portable")
        return
    for number, entry in enumerate(read_json(root / where)):
        if not isinstance(entry.get("idx"), int) or isinstance(entry.get("idx"), bool) or entry["idx"] < 0:
            yield Problem(where, f"module {number} has no idx", f"{SERVER} serves unreduced embeddings", _FIX)
    for part in parts:
        yield from _type(part)
    kinds = [part.kind for part in parts]
    places = [place for place, kind in enumerate(kinds) if kind in {"Dense", "DimReduce"}]
    last = max(places, default=0)
    if "Normalize" in kinds[:last]:
        what = "a Normalize stands before a Dense"
        yield Problem(where, what, f"{SERVER} leaves it out and serves different vectors", _REDUCE)
    if "Pooling" in kinds and min(places, default=len(kinds)) < kinds.index("Pooling"):
        yield Problem(where, "a Dense stands before Pooling", f"{SERVER} applies it behind, to other vectors", _REDUCE)


def _type(part: Part) -> Iterator[Problem]:
    where = "modules.json"
    if part.type in OLD_NAMES.values():
        return
    if part.kind == "DimReduce":
        hurt = f"every reader needs trust_remote_code and the package, {SERVER} serves unreduced embeddings"
        yield Problem(where, f"it names {short(part.type)}", hurt, _FIX)
    elif part.kind in OLD_NAMES and part.type.startswith("sentence_transformers."):
        hurt = f"{OLDER} does not load it, {SERVER} may serve unreduced embeddings"
        yield Problem(where, f"{part.kind} has its new name {part.type!r}", hurt, _FIX)
    elif part.kind == "StaticEmbedding":
        new = part.type != "sentence_transformers.models.StaticEmbedding"
        hurt = f"{SERVER} cannot serve it" + (f", {OLDER} does not load it by this name" if new else "")
        yield Problem(where, "it starts with a StaticEmbedding", hurt, "serve it with Sentence Transformers")
    else:
        hurt = f"{SERVER} serves unreduced embeddings"
        hurt += "" if part.type.startswith("sentence_transformers.") else ", every other reader needs trust_remote_code"
        yield Problem(
            where, f"it names {short(part.type)}", hurt, "use Transformer, Pooling, Dense and Normalize alone"
        )


def _transformer(part: Part) -> Iterator[Problem]:
    config, where = part.config, f"{part.path}/".lstrip("/")
    if part.path:
        yield Problem("modules.json", f"the transformer lies in {part.path}", f"{SERVER} looks for it above", _FIX)
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        hurt = f"{SERVER} does not start"
        yield Problem(f"{where}config.json", "it names no architectures", hurt, "save the base model again")
    elif any(name.endswith("Classification") for name in architectures):
        what, hurt = f"it names {short(architectures)}", f"{SERVER} takes it for a classifier"
        yield Problem(f"{where}config.json", what, hurt, "save the base model without its classifier")
    if "auto_map" in config and str(config.get("model_type")) not in CONFIG_MAPPING_NAMES:
        hurt = "every reader needs trust_remote_code"
        yield Problem(f"{where}config.json", "it needs code of its own", hurt, "choose a base model that does not")
    if not (part.folder / "tokenizer.json").exists():
        hurt = f"{SERVER} does not start"
        yield Problem(f"{where}tokenizer.json", "it is missing", hurt, "save the model with a fast tokenizer")
    if not any((part.folder / name).exists() for name in (WEIGHTS, f"{WEIGHTS}.index.json")):
        what = f"there is no {WEIGHTS}"
        yield Problem(where or ".", what, "readers that refuse pickles do not load it", "save the model again")
    tokenizer = part.folder / "tokenizer_config.json"
    for name in missing_words(config, read_object(tokenizer) if tokenizer.exists() else {}):
        file = "tokenizer_config.json" if "token" in name or name == "model_input_names" else "config.json"
        hurt = "transformers before 5 fails, or gives different vectors"
        yield Problem(f"{where}{file}", f"{name} is not said as transformers before 5 reads it", hurt, _FIX)
    yield from _sentence_config(part, f"{where}sentence_bert_config.json")


def _sentence_config(part: Part, where: str) -> Iterator[Problem]:
    if not (part.folder / "sentence_bert_config.json").exists():
        return
    config = read_object(part.folder / "sentence_bert_config.json")
    if unknown := sorted(set(config) - TRANSFORMER_KEYS):
        yield Problem(where, f"it has the new keys {', '.join(unknown)}", f"{OLDER} does not load it", _FIX)
    if not isinstance(config.get("max_seq_length"), int):
        yield Problem(where, "it says no max_seq_length", f"{SERVER} does not start in some versions", _FIX)
    if config.get("do_lower_case") is True:
        what, hurt = "do_lower_case is true", f"{SERVER} does not lower the case"
        yield Problem(where, what, hurt, "lower the case in tokenizer.json")


def _pooling(part: Part) -> Iterator[Problem]:
    config, where = part.config, f"{part.path}/config.json"
    if part.path != "1_Pooling":
        yield Problem("modules.json", f"Pooling lies in {part.path!r}", f"{SERVER} looks for 1_Pooling alone", _FIX)
    known = {"word_embedding_dimension", *POOLING_KEYS.values(), "include_prompt"}
    if new := sorted(set(config) - known):
        yield Problem(where, f"it has the new keys {', '.join(new)}", f"{OLDER} does not load it", _FIX)
    missing = [key for key in (POOLING_KEYS["cls"], POOLING_KEYS["mean"]) if not isinstance(config.get(key), bool)]
    if missing:
        yield Problem(where, f"it says no true or false for {', '.join(missing)}", f"{SERVER} does not start", _FIX)
    modes = pooling_modes(config)
    keys = {POOLING_KEYS.get(mode, mode) for mode in modes}
    if len(keys) > 1:
        what = f"it joins the poolings {', '.join(modes)}"
        yield Problem(where, what, f"{SERVER} takes one of them alone", "choose a base model with one")
    elif not keys & _SERVED:
        what = f"its pooling is {', '.join(modes) or 'none'}"
        yield Problem(
            where, what, f"{SERVER} knows cls, mean and lasttoken alone", "choose a base model with one of these"
        )
    if config.get("include_prompt") is False:
        yield Problem(
            where, "include_prompt is false", f"{SERVER} pools the prompt too", "use it without prompts there"
        )


def _dense(part: Part) -> Iterator[Problem]:
    config, where = part.config, f"{part.path}/config.json"
    if new := sorted(set(config) - DENSE_KEYS):
        yield Problem(where, f"it has the new keys {', '.join(new)}", f"{OLDER} does not load it", _FIX)
    if {config.get(f"module_{end}_name", "sentence_embedding") for end in ("input", "output")} != {
        "sentence_embedding"
    }:
        yield Problem(where, "it does not reduce the sentence embedding", f"{SERVER} applies it to that", _REDUCE)
    if config.get("use_residual"):
        yield Problem(where, "it has a residual connection", f"{SERVER} leaves it out", "train the head without")
    if not isinstance(config.get("bias"), bool):
        yield Problem(where, "it says no true or false for bias", f"{SERVER} does not start", _FIX)
    if "activation_function" not in config:
        yield Problem(where, "it names no activation", f"{SERVER} takes Identity, all others Tanh", _FIX)
    elif config["activation_function"] not in ACTIVATIONS.values():
        what, hurt = f"its activation is {config['activation_function']}", f"{SERVER} does not start"
        yield Problem(where, what, hurt, "train the head with Tanh or Identity")
    if not (part.folder / WEIGHTS).exists():
        what = f"its weights are the pickle {PICKLE}"
        yield Problem(f"{part.path}/{PICKLE}", what, "readers that refuse pickles do not load it", _FIX)


def _model(root: Path) -> Iterator[Problem]:
    where = "config_sentence_transformers.json"
    config: dict[str, Any] = read_object(root / where) if (root / where).exists() else {}
    prompts = config.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        yield Problem(where, "a prompt is no string", f"{SERVER} does not start", _FIX)
    if config.get("truncate_dim") is not None:
        what, hurt = f"truncate_dim is {short(config['truncate_dim'])}", f"{SERVER} serves all dimensions"
        yield Problem(where, what, hurt, "cut the vectors where they are used, or fit a head of this size")
