"""The portable layout of a model's folder, and the rewrite of a saved folder into it.

Sentence Transformers before 6, and Text Embeddings Inference to this day, know modules by their old names
(``sentence_transformers.models.*``) and Pooling by boolean keys. Sentence Transformers 6 reads that layout too, so it
is the one to ship. No other file of the package spells it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from st_dimreduce.base_head import ACTIVATIONS, CONFIG, PICKLE, WEIGHTS
from st_dimreduce.enums import Variant
from st_dimreduce.files import write_json
from st_dimreduce.models.folder import (
    OTHER_CONFIGS,
    ROUTER_CONFIG,
    TEXT,
    TOKENIZER_CLASSES,
    Part,
    direct_parts,
    pooling_modes,
)
from st_dimreduce.portable.transformers4 import add_old_settings
from st_dimreduce.record import RECORD, FitRecord, write_record
from st_dimreduce.untrusted import read_json, read_object, read_pickle

MODULES = "modules.json"
MODEL_CONFIG = "config_sentence_transformers.json"
SENTENCE_CONFIG = "sentence_bert_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
CARD = "README.md"
GRAPHS = {  # the ONNX file of each variant, by the names that transformers.js and others look for
    Variant.FP32: "onnx/model.onnx",
    Variant.FP16: "onnx/model_fp16.onnx",
    Variant.INT8: "onnx/model_quantized.onnx",
}
_KINDS = {"BoW", "CLIPModel", "CNN", "Dense", "Dropout", "LSTM", "LayerNorm", "Normalize", "Pooling", "Router"}
_KINDS |= {"StaticEmbedding", "Transformer", "WeightedLayerPooling", "WordEmbeddings", "WordWeights"}
OLD_NAMES = {kind: f"sentence_transformers.models.{kind}" for kind in _KINDS}
SERVED = ("Transformer", "Pooling", "Dense", "Normalize")  # what servers know
_RENAMED: dict[str, dict[str, str]] = {  # of kinds with new names of settings: the old by the new
    "CNN": {"in_embedding_dimension": "in_word_embedding_dimension"},
    "LSTM": {"embedding_dimension": "word_embedding_dimension"},
    "WeightedLayerPooling": {"embedding_dimension": "word_embedding_dimension"},
    "WordEmbeddings": {},
}
TRANSFORMER_KEYS = ("max_seq_length", "do_lower_case", "model_args", "tokenizer_args", "config_args")
_OLD_KEYS = {"model_kwargs": "model_args", "processor_kwargs": "tokenizer_args", "config_kwargs": "config_args"}
# What the settings of a Transformer may say beyond these: what a reader assumes that does not find them.
_ASSUMED: dict[str, tuple[Any, ...]] = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "processing_kwargs": (None, {}),
    "unpad_inputs": (None,),
    "query_length": (None,),
    "document_length": (None,),
    "query_expansion": (None,),
}
_TEXT_MODE = {"method": "forward", "method_output_name": "last_hidden_state"}
POOLING_KEYS = {  # by mode, in the order in which readers concatenate several
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_MODES = {key: mode for mode, key in POOLING_KEYS.items()}
BEFORE_6 = "Sentence Transformers before 6"
SIZES = "matryoshka_dimensions"  # of the sizes of a nested head, in the config of its transformer
DENSE_KEYS = ("in_features", "out_features", "bias", "activation_function")
_STATIC_FILES = (WEIGHTS, PICKLE, TOKENIZER)
_NO_LIMIT = 10**9  # tokenizers without a maximum length report a huge one
_SENTENCE = {"sentence_embedding"}


def module_path(number: int, kind: str) -> str:
    """Return where a module lies: a Transformer in the model's folder itself, all others in one of their own."""
    return "" if kind == "Transformer" else f"{number}_{kind}"


def in_order(modes: str | Sequence[str]) -> bool:
    """Whether boolean keys, which have no order, can express these modes of pooling."""
    return isinstance(modes, str) or list(modes) == [mode for mode in POOLING_KEYS if mode in modes]


def is_head(part: Part) -> bool:
    """Whether a module of a folder is a ``DimReduce``."""
    return part.kind == "DimReduce" and part.type.partition(".")[0] == "st_dimreduce"


def reads_sentences(config: dict[str, Any]) -> bool:
    """Whether a module with these settings reads and writes the sentence embedding."""
    return {config.get(f"module_{end}_name", "sentence_embedding") for end in ("input", "output")} == _SENTENCE


def beyond_layout(config: dict[str, Any]) -> list[str]:
    """Name the settings of a Transformer that change its vectors, and that the layout has no place for."""
    names = [name for name, assumed in _ASSUMED.items() if name in config and config[name] not in assumed]
    modes = config.get("modality_config") or {"text": _TEXT_MODE}
    plain = isinstance(modes, dict) and not set(modes) - TEXT and (modes.get("text") or _TEXT_MODE) == _TEXT_MODE
    return names + ([] if plain else ["modality_config"])


def misread_before(padding_side: str, modes: Sequence[str], include_prompt: bool) -> tuple[str, str] | None:
    """Say what an older Sentence Transformers pools elsewhere than this one does, and which; None if nothing.

    Args:
        padding_side: ``"left"`` or ``"right"``, that of the tokenizer.
        modes: Modes of the Pooling.
        include_prompt: Whether it pools the prompt too.
    """
    left, kinds = padding_side == "left", {_MODES.get(mode, mode) for mode in modes}
    if left and "weightedmean" in kinds:
        return "padding on the left with weightedmean pooling", "Sentence Transformers before 6.1"
    if left and "cls" in kinds:
        return "padding on the left with cls pooling", BEFORE_6
    if not include_prompt and ("cls" in kinds or (left and kinds != {"lasttoken"})):
        where = "cls pooling" if "cls" in kinds else "padding on the left"
        return f"include_prompt=False with {where}", BEFORE_6
    return None


def rewrite(folder: Path, parts: list[Part]) -> None:
    """Rewrite a folder that Sentence Transformers saved into the portable layout; the vectors stay the same.

    What the layout cannot express stays as it is, and so do files that belong to no module.

    Args:
        folder: The folder.
        parts: Its modules, one for each entry of ``modules.json``.
    """
    entries = read_json(folder / MODULES)
    for number, (entry, part) in enumerate(zip(entries, parts, strict=True)):
        entry["idx"] = number
        kind = "Dense" if is_head(part) else part.kind
        if not (is_head(part) or part.type.startswith("sentence_transformers.")):
            continue  # a class of another package, whatever its name
        entry["type"] = OLD_NAMES.get(kind, part.type)
        if kind in _SETTINGS:
            entry["path"] = _move(folder, part.path, module_path(number, kind))
            _SETTINGS[kind](folder / entry["path"], part)
        elif kind == "StaticEmbedding":
            entry["path"] = _move_static(folder, part.path, module_path(number, kind))
        elif kind == "Normalize":
            _remove_settings(folder, part)
    write_json(folder / MODULES, entries)
    _rewrite_model(folder / MODEL_CONFIG)
    _keep_record(folder, parts)
    name_sizes(folder)


def to_safetensors(folder: Path, parts: list[Part]) -> None:
    """Turn pickled weights of a ``Dense`` into safetensors, which every reader reads.

    Args:
        folder: The folder.
        parts: Its modules.
    """
    for part in parts:
        here = replace(part, folder=folder / part.path)
        for each in (here, *(direct_parts(here) if part.kind == "Router" else ())):
            pickle, weights = each.folder / PICKLE, each.folder / WEIGHTS
            if each.kind in {"Dense", "DimReduce"} and not weights.exists():
                tensors = read_pickle(pickle)
                save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, weights)
                pickle.unlink()


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings in a JSON file; none if it is not there."""
    return read_object(path) if path.exists() else {}


def name_sizes(folder: Path) -> None:
    """Name the sizes of a nested head in the transformer's config, where servers look for them."""
    record = read_settings(folder / RECORD)
    nested, most = record.get("nested"), record.get("out_features")
    if not (folder / CONFIG).exists():
        return
    if isinstance(nested, list) and all(isinstance(size, int) for size in [*nested, most]):
        write_json(folder / CONFIG, read_object(folder / CONFIG) | {SIZES: sorted({*nested, most})})


def _move(root: Path, old: str, new: str, names: Sequence[str] | None = None) -> str:
    """Move a module's files, unless others are in their new place; returns where they are."""
    if Path(old) == Path(new) or (names is None and not old):
        return old
    found = [file.name for file in (root / old).iterdir() if names is None or file.name in names]
    if any((root / new / name).exists() for name in found):
        return old
    (root / new).mkdir(exist_ok=True)
    for name in found:
        (root / old / name).rename(root / new / name)
    if old and not any((root / old).iterdir()):
        (root / old).rmdir()
    return new


def _move_static(root: Path, old: str, new: str) -> str:
    """Move a static embedding out of the model's folder, where readers before 5 expect a Transformer alone."""
    if Path(old) != Path() or (root / CONFIG).exists():  # a config.json is of another library, which reads it there
        return old
    return _move(root, "", new, _STATIC_FILES)


def _remove_settings(root: Path, part: Part) -> None:
    """Remove the folder of a Normalize, which readers before 6 do without, if its settings are the defaults."""
    folder = root / part.path
    if Path(part.path) == Path() or not folder.is_dir() or not reads_sentences(part.config):
        return
    if set(part.config) <= {"module_input_name", "module_output_name"}:
        (folder / CONFIG).unlink(missing_ok=True)
        if not any(folder.iterdir()):
            folder.rmdir()


def _rewrite_transformer(folder: Path, part: Part) -> None:
    add_old_settings(folder)
    path = folder / SENTENCE_CONFIG
    config = read_settings(path)
    if beyond_layout(config):
        return
    for new, old in _OLD_KEYS.items():
        if config.get(new):
            config[old] = config[new]
    length = config.get("max_seq_length")
    if not isinstance(length, int):
        tokenizer = read_settings(folder / TOKENIZER_CONFIG)
        lengths = [tokenizer.get("model_max_length"), part.config.get("max_position_embeddings")]
        length = min((each for each in lengths if isinstance(each, int) and 0 < each < _NO_LIMIT), default=_NO_LIMIT)
    config["max_seq_length"] = length if length < _NO_LIMIT else None
    config.setdefault("do_lower_case", False)
    write_json(path, {key: config[key] for key in TRANSFORMER_KEYS if key in config})


def _rewrite_pooling(folder: Path, part: Part) -> None:
    given = pooling_modes(part.config)
    keys = {POOLING_KEYS.get(mode, mode) for mode in given}
    if not keys <= set(POOLING_KEYS.values()) or ("pooling_mode" in part.config and not in_order(given)):
        return
    width = part.config.get("word_embedding_dimension", part.config.get("embedding_dimension"))
    modes: dict[str, Any] = {key: key in keys for key in POOLING_KEYS.values()}
    prompt = part.config.get("include_prompt", True)
    write_json(folder / CONFIG, {"word_embedding_dimension": width, **modes, "include_prompt": prompt})


def _rewrite_dense(folder: Path, part: Part) -> None:
    config = {"bias": True, "activation_function": ACTIVATIONS["Tanh"], **part.config}
    if reads_sentences(config) and not config.get("use_residual"):
        write_json(folder / CONFIG, {key: config[key] for key in DENSE_KEYS if key in config})


def _rewrite_other(folder: Path, part: Part) -> None:
    """Rewrite the settings of a kind that is in few models, by the names that all readers know."""
    renamed, path = _RENAMED[part.kind], folder / OTHER_CONFIGS.get(part.kind, CONFIG)
    config = {renamed.get(key, key): value for key, value in read_settings(path).items()}
    kind = str(config.get("tokenizer_class", "")).rpartition(".")[2]
    if kind in TOKENIZER_CLASSES:
        config["tokenizer_class"] = f"sentence_transformers.models.tokenizer.{kind}.{kind}"
    write_json(path, config)


def _rewrite_router(folder: Path, part: Part) -> None:
    """Rewrite the modules in a Router, which stay where they are."""
    path = folder / ROUTER_CONFIG
    if not path.exists():
        return
    content = read_object(path)
    for inner in direct_parts(Part(part.path, part.type, folder, part.config)):
        if inner.type.startswith("sentence_transformers."):
            content["types"][inner.path] = OLD_NAMES.get(inner.kind, inner.type)
            if inner.kind in _SETTINGS:
                _SETTINGS[inner.kind](inner.folder, inner)
    parameters = content.get("parameters")
    if isinstance(parameters, dict) and not parameters.get("route_mappings"):  # which came with 5.4
        parameters.pop("route_mappings", None)
    write_json(path, content)


def _rewrite_model(path: Path) -> None:
    """Rewrite the model's settings, without the versions, which older readers compare with their own and warn about."""
    if not path.exists():
        return
    config = read_object(path)
    config.pop("__version__", None)
    if config.get("model_type") == "SentenceTransformer":  # the default
        del config["model_type"]
    if isinstance(config.get("prompts"), dict):
        config["prompts"] = {name: prompt or "" for name, prompt in config["prompts"].items()}
    write_json(path, config)


def _keep_record(folder: Path, parts: list[Part]) -> None:
    """Keep the record of a ``DimReduce``, whose own config has lost it: a ``Dense`` has no place for it."""
    for part in parts:
        if is_head(part) and isinstance(part.config.get("record"), dict):
            record = FitRecord.from_dict(part.config["record"])
            write_record(folder, record, part.config["in_features"], part.config["out_features"])


_SETTINGS = {
    "Transformer": _rewrite_transformer,
    "Pooling": _rewrite_pooling,
    "Dense": _rewrite_dense,
    "Router": _rewrite_router,
    **dict.fromkeys(_RENAMED, _rewrite_other),
}
