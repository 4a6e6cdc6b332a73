"""Checking a model's folder before anything in it is loaded: nothing is imported or run that it names.

What is wrong in a folder is found here first, and reported in one line; only then does Sentence Transformers open it.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_dimreduce.base_head import CONFIG, PICKLE, WEIGHTS, read_dense
from st_dimreduce.errors import UserError
from st_dimreduce.models.settings import check_settings, inside
from st_dimreduce.untrusted import (
    Shapes,
    check_relative,
    check_tree,
    read_json,
    read_object,
    read_shapes,
    read_text,
    short,
)

CARD = "README.md"
TEXT = frozenset({"text", "message"})  # what a model that reads texts alone reads
_MOST_MODULES = 100
_MOST_DEPTH = 8  # of modules in modules
_MOST_LAYERS = 1_000
_LEAST_LAYERS = 16  # a number of layers up to here is accepted whatever the weights say: some share theirs
_MOST_IN_CONFIG = 2**20  # positions, tokens and the like
_LEAST_WIDTH = 4_096  # a width up to here is accepted whatever the weights say: it allocates little
_WIDTH = re.compile(r"(size|dim|d_model|d_ff|d_kv|embd|inner)s?$")
_LAYERS = re.compile(r"(?<!window_)(layers?|blocks|depths?|experts?)$")  # max_window_layers is the place of one
_TOKENIZERS = re.compile(r"(token|vocab|merges|spiece|sentencepiece|preprocessor_|processor_).*|.*\.(model|spm)")
# The modules of sentence_transformers.sentence_transformer.modules, without importing it.
KNOWN_MODULES = (
    "Transformer",
    "StaticEmbedding",
    "Asym",
    "BoW",
    "CNN",
    "Dense",
    "Dropout",
    "LayerNorm",
    "LSTM",
    "Normalize",
    "Pooling",
    "WeightedLayerPooling",
    "WordEmbeddings",
    "WordWeights",
    "CLIPModel",
    "Module",
    "InputModule",
    "Router",
)
_TRANSFORMERS = ("Transformer", "CLIPModel")
TOKENIZER_CLASSES = ("WhitespaceTokenizer", "WordTokenizer", "PhraseTokenizer", "TransformersTokenizerWrapper")
ROUTER_CONFIG = "router_config.json"
OTHER_CONFIGS = {"LSTM": "lstm_config.json", "CNN": "cnn_config.json", "WordEmbeddings": "wordembedding_config.json"}
MULTI_VECTOR = "examples/7_late_interaction.py shows what to do with its tokens"
REMOTE = (
    "it needs code that comes with the model or from another package; if you trust that, use --trust-remote-code, or "
    "load it yourself, SentenceTransformer(path, trust_remote_code=True), and give that model"
)


@dataclass(frozen=True)
class Part:
    """One module of a model's folder.

    Attributes:
        path: Where it lies in the model's folder; empty for the folder itself.
        type: The class that ``modules.json`` names.
        folder: Where it lies.
        config: What its ``config.json`` says; empty if there is none.
    """

    path: str
    type: str
    folder: Path
    config: dict[str, Any]

    @property
    def kind(self) -> str:
        """Name of the class without its package."""
        return self.type.rpartition(".")[2]


def read_layout(path: str | os.PathLike[str], trust_remote_code: bool = False) -> list[Part]:
    """Read a model's folder as far as can be done without loading it.

    Args:
        path: The folder.
        trust_remote_code: Whether modules that Sentence Transformers does not know, and a base model with code of its
            own, may be named in it. Nothing of theirs is run here in either case. Defaults to False.

    Returns:
        The modules, in their order; one Transformer for the folder of a bare transformer.

    Raises:
        ValueError: If it is no model's folder, or anything in it is unreadable, leads out of it or does not fit; says
            what, in one line.
    """
    parts = read_parts(path, trust_remote_code)
    width = None
    for part in parts:
        width = _check_part(part, width, trust_remote_code)
        for inner in inner_parts(part, trust_remote_code):
            _check_part(inner, None, trust_remote_code)
    return parts


def read_parts(path: str | os.PathLike[str], trust_remote_code: bool = False) -> list[Part]:
    """Read the modules and check the settings of a model's folder, whose weights need not be there yet.

    Args:
        path: The folder.
        trust_remote_code: As in :func:`read_layout`. Defaults to False.

    Returns:
        The modules, as :func:`read_layout`.

    Raises:
        ValueError: As :func:`read_layout`.
    """
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"{root} is no folder: expected the folder of a model")
    if not any((root / name).exists() for name in ("modules.json", CONFIG)):
        raise UserError(f"{root} is no model: expected a folder with modules.json, or config.json of a transformer")
    check_tree(root)
    entries = [("", "sentence_transformers.models.Transformer")]
    if (root / "modules.json").exists():
        entries = check_entries(read_json(root / "modules.json"), trust_remote_code)
    if (root / CARD).exists():
        read_text(root / CARD, errors="replace")  # which Sentence Transformers reads whole
    own_code = trust_remote_code and any(not type_.startswith("sentence_transformers.") for _, type_ in entries)
    check_settings(root, root, own_code=own_code)
    for folder in {root / relative for relative, _ in entries} - {root}:  # what lies beside them is none of theirs
        for place, _, _ in os.walk(folder):
            check_settings(root, Path(place), own_code=own_code)
    return [_part(root, relative, type_) for relative, type_ in entries]


def _part(root: Path, relative: str, type_: str) -> Part:
    folder = root / relative
    config = read_object(folder / CONFIG) if (folder / CONFIG).exists() else {}
    return Part(relative, type_, folder, config)


def inner_parts(part: Part, trust_remote_code: bool = False, depth: int = 1) -> list[Part]:
    """Return the modules in a module, such as the branches of a Router, at every depth.

    Raises:
        ValueError: As :func:`read_layout`.
    """
    if depth > _MOST_DEPTH:
        raise UserError(f"{part.folder} holds modules in modules, more than {_MOST_DEPTH} deep")
    parts = []
    for inner in direct_parts(part, trust_remote_code):
        parts += [inner, *inner_parts(inner, trust_remote_code, depth + 1)]
    return parts


def direct_parts(part: Part, trust_remote_code: bool = False) -> list[Part]:
    """Return the modules in a Router, not those in them; none for a module of another kind.

    Raises:
        ValueError: As :func:`read_layout`.
    """
    if part.kind not in {"Router", "Asym"}:
        return []
    router = part.folder / ROUTER_CONFIG
    types = (read_object(router) if router.exists() else part.config).get("types")
    if not isinstance(types, dict) or len(types) > _MOST_MODULES:
        raise UserError(f"{part.folder} says types {short(types)}: expected the class of each of its modules")
    for name, type_ in types.items():
        check_relative(name, f"{part.folder}")
        _check_type(type_, part.folder.name or "the Router", trust_remote_code)
    return [_part(part.folder, name, type_) for name, type_ in types.items()]


def _check_part(part: Part, width: int | None, trust_remote_code: bool) -> int | None:
    """Check a module and return the size of the sentence embedding behind it, where that is known."""
    if part.kind in _TRANSFORMERS:
        _check_transformer(part, trust_remote_code)
    elif part.kind == "StaticEmbedding" and not (part.folder / "tokenizer.json").exists():
        raise UserError(f"{part.folder} holds no tokenizer: expected tokenizer.json")
    elif part.kind == "Pooling":
        return _pooled_width(part)
    elif part.kind in {"Dense", "DimReduce"}:
        config, _ = read_dense(part.folder)
        columns, rows = config["in_features"], config["out_features"]
        if part.config.get("module_input_name", "sentence_embedding") == "sentence_embedding":
            if width not in {None, columns}:
                raise UserError(f"{part.folder} takes {columns} dimensions, the module before it gives {width}")
            return rows
    elif part.kind not in {"Router", "Asym", "Normalize", "StaticEmbedding", "BoW"}:
        _check_other(part, trust_remote_code)
    return width


def _check_other(part: Part, trust_remote_code: bool) -> None:
    """Check a module of a kind that is in few models: its sizes, and the tokenizer that it names."""
    path = part.folder / OTHER_CONFIGS.get(part.kind, CONFIG)
    config = read_object(path) if path.exists() else {}
    if "tokenizer_class" in config and not trust_remote_code:
        kind = str(config["tokenizer_class"])
        if not kind.startswith("sentence_transformers.") or kind.rpartition(".")[2] not in TOKENIZER_CLASSES:
            expected = f"expected one of Sentence Transformers' {', '.join(TOKENIZER_CLASSES)}"
            raise UserError(f"{path} names the tokenizer {short(config['tokenizer_class'])}: {expected}")
    _check_numbers(path, config, read_held(part.folder))


def check_entries(content: Any, trust_remote_code: bool = False) -> list[tuple[str, str]]:
    """Check what a ``modules.json`` says and return the path and the type of each module.

    Raises:
        ValueError: As :func:`read_layout`.
    """
    if not isinstance(content, list) or not 0 < len(content) <= _MOST_MODULES:
        raise UserError(f"modules.json holds {short(content)}: expected a list of 1 to {_MOST_MODULES} modules")
    entries = []
    for entry in content:
        fields = [entry.get(key) for key in ("path", "type", "name")] if isinstance(entry, dict) else []
        relative, type_ = [str(field) for field in fields[:2]] or ["", ""]
        if not fields or not all(isinstance(field, str) for field in fields):
            raise UserError(f"modules.json names a module as {short(entry)}: expected a path, a type and a name")
        check_relative(relative, "modules.json")
        _check_type(type_, "modules.json", trust_remote_code)
        entries.append((relative, type_))
    return entries


def _check_type(type_: Any, where: str, trust_remote_code: bool) -> None:
    if not isinstance(type_, str) or not type_.isprintable():
        raise UserError(f"{where} names {short(type_)}: expected the class of a module")
    if trust_remote_code:
        return
    if not type_.startswith("sentence_transformers."):
        raise UserError(f"{where} names {short(type_)}, no module of Sentence Transformers: {REMOTE}")
    if type_.startswith("sentence_transformers.multi_vector_encoder."):
        raise UserError(f"{where} names {short(type_)}, of a model that gives a vector for each token: {MULTI_VECTOR}")
    if type_.rpartition(".")[2] not in KNOWN_MODULES:
        raise UserError(
            f"{where} names {short(type_)}, which Sentence Transformers has not for sentence embeddings: "
            f"expected one of {', '.join(KNOWN_MODULES)}"
        )


def _check_transformer(part: Part, trust_remote_code: bool) -> None:
    if not part.config:
        raise UserError(f"{part.folder} holds no transformer: expected config.json")
    if not trust_remote_code and needs_own_code(part.config):
        model_type = short(part.config.get("model_type"))
        raise UserError(f"{part.folder} holds {model_type}, no model that transformers knows: {REMOTE}")
    if not any(_TOKENIZERS.fullmatch(path.name) for path in part.folder.iterdir()):
        raise UserError(f"{part.folder} holds no tokenizer: expected tokenizer.json, or the files of another kind")
    _check_numbers(part.folder / CONFIG, part.config, read_held(part.folder))


def _check_numbers(path: Path, config: dict[str, Any], held: Shapes | None) -> None:
    """Refuse numbers of layers and widths for which the loader would allocate much more than the weights call for."""
    deepest, widest = _MOST_LAYERS, _MOST_IN_CONFIG
    if held is not None:
        deepest = min(_MOST_LAYERS, max(_LEAST_LAYERS, len(held)))  # a layer has a tensor of its own, or shares all
        widest = max([_LEAST_WIDTH, *(size for shape in held.values() for size in shape)])
    numbers = _numbers(config)
    for name, times in Counter(name for name, _ in numbers if _LAYERS.search(name)).items():
        if times > deepest:
            raise UserError(f"{path} says {name} {times:,} times: expected at most {deepest:,}")
    for name, value in numbers:
        most = deepest if _LAYERS.search(name) else widest if _WIDTH.search(name) else _MOST_IN_CONFIG
        if abs(value) > most and not re.search("theta|seed|window", name):
            raise UserError(f"{path} says {name} {short(value)}: expected at most {most:,}")


def needs_own_code(config: dict[str, Any]) -> bool:
    """Whether a transformer's config names code that comes with it, for a kind of model that transformers lacks."""
    if "auto_map" not in config:
        return False
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # noqa: PLC0415, rarely needed

    return str(config.get("model_type")) not in CONFIG_MAPPING_NAMES


def read_held(folder: Path) -> Shapes | None:
    """Return the shapes of the tensors that a module's safetensors files hold; None if there are none.

    Raises:
        ValueError: If one of the files is missing or damaged.
    """
    shards = {name: _shards(folder / f"{name}.index.json") for name in (WEIGHTS, PICKLE)}
    if (folder / WEIGHTS).exists():
        return read_shapes(folder / WEIGHTS)
    if not shards[WEIGHTS]:
        return None
    held: Shapes = {}
    for place in shards[WEIGHTS]:
        held |= read_shapes(folder / place)
    return held


def _shards(index: Path) -> list[str]:
    """Return the files that hold the tensors of a model in several; none without an index."""
    if not index.exists():
        return []
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict):
        raise UserError(f"{index} says weight_map {short(places)}: expected the file of each tensor")
    for place in places.values():
        check_relative(place, index.name)
    return list(dict.fromkeys(places.values()))


def count_held(part: Part) -> int:
    """Return how many weights the files of a module may hold, of two bytes or more each."""
    size = sum(path.stat().st_size for path in part.folder.iterdir() if path.suffix in {".safetensors", ".bin"})
    held = read_held(part.folder)
    return min(size // 2, sum(math.prod(shape) for shape in held.values()) if held is not None else size)


def find_transformers(parts: list[Part], trust_remote_code: bool = False) -> Iterator[Part]:
    """Yield the transformers among the modules of a model, and in them."""
    for part in parts:
        for each in (part, *inner_parts(part, trust_remote_code)):
            if each.kind in _TRANSFORMERS:
                yield each


def _numbers(config: Any) -> list[tuple[str, int]]:
    """Return each whole number in a config with the key that it belongs to, at every depth."""
    found, rest = [], [("", config)]
    while rest:
        key, each = rest.pop()
        if isinstance(each, int) and not isinstance(each, bool):
            found.append((key, each))
        rest += each.items() if isinstance(each, dict) else [(key, inner) for inner in inside(each)]
    return found


def _pooled_width(part: Part) -> int | None:
    width = part.config.get("word_embedding_dimension", part.config.get("embedding_dimension"))
    if not isinstance(width, int) or isinstance(width, bool) or not 1 <= width <= _MOST_IN_CONFIG:
        where = part.folder / "config.json"
        raise UserError(f"{where} says word_embedding_dimension {short(width)}: expected 1 to {_MOST_IN_CONFIG:,}")
    return width * max(len(pooling_modes(part.config)), 1)


def pooling_modes(config: dict[str, Any]) -> list[str]:
    """Return the modes of a Pooling whose outputs are concatenated, from its settings of any version."""
    modes = config.get("pooling_mode")
    if modes is not None:
        return [str(mode) for mode in (modes if isinstance(modes, list) else [modes])]
    return [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
