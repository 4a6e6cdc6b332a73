"""Checking a model's folder before anything in it is loaded: nothing is imported or run that it names.

What is wrong in a folder is found here first, and reported in one line; only then does Sentence Transformers open it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_dimreduce.head import WEIGHTS, read_dense
from st_dimreduce.untrusted import check_relative, read_json, read_object, read_shapes, short, stay_inside

_MOST_MODULES = 100
_MOST_LAYERS = 1_000
_MOST_IN_CONFIG = 2**20  # positions, tokens and the like
_LEAST_WIDTH = 4_096  # a width up to here is accepted whatever the weights say: it allocates little
_WIDTH = re.compile(r"(size|dim|d_model|d_ff|d_kv|embd|inner)s?$")
_LAYERS = re.compile(r"(layers?|blocks|depth)$")
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
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"{root} is no folder: expected the folder of a model")
    if not any((root / name).exists() for name in ("modules.json", "config.json")):
        raise ValueError(f"{root} is no model: expected a folder with modules.json, or config.json of a transformer")
    stay_inside(root, root)
    entries = [("", "sentence_transformers.models.Transformer")]
    if (root / "modules.json").exists():
        entries = check_entries(read_json(root / "modules.json"), trust_remote_code)
    parts = []
    for relative, type_ in entries:
        folder = root / relative
        if folder.is_dir():
            stay_inside(root, folder)
        config = read_object(folder / "config.json") if (folder / "config.json").exists() else {}
        parts.append(Part(relative, type_, folder, config))
    width = None
    for part in parts:
        width = _check_part(part, width, trust_remote_code)
    return parts


def _check_part(part: Part, width: int | None, trust_remote_code: bool) -> int | None:
    """Check a module and return the size of the sentence embedding behind it, where that is known."""
    if part.kind == "Transformer":
        _check_transformer(part, trust_remote_code)
    elif part.kind == "StaticEmbedding" and not (part.folder / "tokenizer.json").exists():
        raise ValueError(f"{part.folder} holds no tokenizer: expected tokenizer.json")
    elif part.kind == "Pooling":
        return _pooled_width(part)
    elif part.kind in {"Dense", "DimReduce"}:
        config, _ = read_dense(part.folder)
        columns, rows = config["in_features"], config["out_features"]
        if part.config.get("module_input_name", "sentence_embedding") == "sentence_embedding":
            if width not in {None, columns}:
                raise ValueError(f"{part.folder} takes {columns} dimensions, the module before it gives {width}")
            return rows
    elif part.kind in {"Router", "Asym"}:
        for name in ("router_config.json", "config.json"):
            types = read_object(part.folder / name).get("types") if (part.folder / name).exists() else {}
            for inner in types if isinstance(types, dict) else [types]:
                check_relative(inner, name)
    return width


def check_entries(content: Any, trust_remote_code: bool = False) -> list[tuple[str, str]]:
    """Check what a ``modules.json`` says and return the path and the type of each module.

    Raises:
        ValueError: As :func:`read_layout`.
    """
    if not isinstance(content, list) or not 0 < len(content) <= _MOST_MODULES:
        raise ValueError(f"modules.json holds {short(content)}: expected a list of 1 to {_MOST_MODULES} modules")
    entries = []
    for entry in content:
        fields = [entry.get(key) for key in ("path", "type", "name")] if isinstance(entry, dict) else []
        relative, type_ = [str(field) for field in fields[:2]] or ["", ""]
        if not fields or not all(isinstance(field, str) for field in fields):
            raise ValueError(f"modules.json names a module as {short(entry)}: expected a path, a type and a name")
        check_relative(relative, "modules.json")
        if not trust_remote_code:
            if not type_.startswith("sentence_transformers."):
                raise ValueError(f"modules.json names {short(type_)}, no module of Sentence Transformers: {REMOTE}")
            if type_.rpartition(".")[2] not in KNOWN_MODULES:
                raise ValueError(
                    f"modules.json names {short(type_)}, which Sentence Transformers has not for sentence embeddings: "
                    f"expected one of {', '.join(KNOWN_MODULES)}"
                )
        entries.append((relative, type_))
    return entries


def _check_transformer(part: Part, trust_remote_code: bool) -> None:
    if not part.config:
        raise ValueError(f"{part.folder} holds no transformer: expected config.json")
    if not trust_remote_code and needs_own_code(part.config):
        model_type = short(part.config.get("model_type"))
        raise ValueError(f"{part.folder} holds {model_type}, no model that transformers knows: {REMOTE}")
    if not any(_TOKENIZERS.fullmatch(path.name) for path in part.folder.iterdir()):
        raise ValueError(f"{part.folder} holds no tokenizer: expected tokenizer.json, or the files of another kind")
    for name in ("config_sentence_transformers.json", "sentence_bert_config.json", "tokenizer_config.json"):
        if (part.folder / name).exists():
            read_object(part.folder / name)
    widest = _widest(part.folder)
    for name, value in _numbers(part.config):
        most = _MOST_LAYERS if _LAYERS.search(name) else widest if _WIDTH.search(name) else _MOST_IN_CONFIG
        if abs(value) > most and "theta" not in name:
            raise ValueError(f"{part.folder / 'config.json'} says {name} {short(value)}: expected at most {most:,}")


def needs_own_code(config: dict[str, Any]) -> bool:
    """Whether a transformer's config names code that comes with it, for a kind of model that transformers lacks."""
    if "auto_map" not in config:
        return False
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # noqa: PLC0415, rarely needed

    return str(config.get("model_type")) not in CONFIG_MAPPING_NAMES


def _widest(folder: Path) -> int:
    """Return what a width in the config may be, so that no more is allocated for it than the weights call for."""
    if (folder / WEIGHTS).exists():
        shapes = read_shapes(folder / WEIGHTS)
        return max([_LEAST_WIDTH, *(size for shape in shapes.values() for size in shape)])
    if (folder / f"{WEIGHTS}.index.json").exists():
        places = read_object(folder / f"{WEIGHTS}.index.json").get("weight_map")
        for place in places.values() if isinstance(places, dict) else [places]:
            check_relative(place, f"{WEIGHTS}.index.json")
    return _MOST_IN_CONFIG


def _numbers(config: Any, name: str = "") -> list[tuple[str, int]]:
    if isinstance(config, dict):
        return [found for key, value in config.items() for found in _numbers(value, key)]
    if isinstance(config, list):
        return [found for value in config for found in _numbers(value, name)]
    return [(name, config)] if isinstance(config, int) and not isinstance(config, bool) else []


def _pooled_width(part: Part) -> int | None:
    width = part.config.get("word_embedding_dimension", part.config.get("embedding_dimension"))
    if not isinstance(width, int) or isinstance(width, bool) or not 1 <= width <= _MOST_IN_CONFIG:
        where = part.folder / "config.json"
        raise ValueError(f"{where} says word_embedding_dimension {short(width)}: expected 1 to {_MOST_IN_CONFIG:,}")
    return width * max(len(pooling_modes(part.config)), 1)


def pooling_modes(config: dict[str, Any]) -> list[str]:
    """Return the modes of a Pooling whose outputs are concatenated, from its settings of any version."""
    modes = config.get("pooling_mode")
    if modes is not None:
        return [str(mode) for mode in (modes if isinstance(modes, list) else [modes])]
    return [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
