"""A folder of a model, rewritten into the layout that every reader knows: settings only, no vector changes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from st_dimreduce.files import new_folder
from st_dimreduce.models.folder import PICKLE, WEIGHTS, Part, pooling_modes, read_layout
from st_dimreduce.portable.check import DENSE_KEYS, OLD_NAMES, TRANSFORMER_KEYS
from st_dimreduce.portable.transformers4 import speak_older
from st_dimreduce.portable.save import POOLING_KEYS, in_order, write_json
from st_dimreduce.untrusted import read_json, read_object, read_pickle, stay_inside

_TANH = "torch.nn.modules.activation.Tanh"


def fix(path: str | os.PathLike[str]) -> None:
    """Rewrite a model's folder in place, in the layout that every reader knows, as far as that can say what it says.

    The model is not loaded and gives the same vectors as before. Files that belong to no module stay as they are, and
    what the layout has no words for stays too: see what :func:`st_dimreduce.portable.check` says afterwards. The new
    folder takes the place of the old one when it is complete.

    Args:
        path: The folder of a model.

    Raises:
        ValueError: If the folder is no model or is damaged.
        OSError: If the folder cannot be written.
    """
    root = Path(path).absolute()
    parts = read_layout(root, trust_remote_code=True)
    if not (root / "modules.json").exists():
        raise ValueError(f"{root} has no modules.json: save the model with save_portable")
    for place, _, _ in os.walk(root):
        stay_inside(root, Path(place))
    with new_folder(root, overwrite=True) as folder:
        shutil.copytree(root, folder, dirs_exist_ok=True)
        entries = read_json(folder / "modules.json")
        for number, (entry, part) in enumerate(zip(entries, parts, strict=True)):
            entry["idx"] = number
            kind = {"DimReduce": "Dense"}.get(part.kind, part.kind)
            if part.type.startswith("sentence_transformers.") or part.kind == "DimReduce":
                entry["type"] = OLD_NAMES.get(kind, part.type)
                if kind == "StaticEmbedding":
                    entry["type"] = f"sentence_transformers.models.{kind}"
            if kind in {"Transformer", "Pooling", "Dense"}:
                entry["path"] = _move(folder, part.path, "" if kind == "Transformer" else f"{number}_{kind}")
                _REWRITE[kind](folder / entry["path"], part)
        write_json(folder / "modules.json", entries)
        _rewrite_model(folder / "config_sentence_transformers.json")


def _move(root: Path, old: str, new: str) -> str:
    """Move a module's files to where they are looked for, unless others are there; returns where they are."""
    if Path(old) == Path(new) or not old:
        return old
    names = [file.name for file in (root / old).iterdir()]
    if any((root / new / name).exists() for name in names):
        return old
    (root / new).mkdir(exist_ok=True)
    for name in names:
        (root / old / name).rename(root / new / name)
    (root / old).rmdir()
    return new


def _rewrite_transformer(folder: Path, part: Part) -> None:
    speak_older(folder)
    path = folder / "sentence_bert_config.json"
    config = read_object(path) if path.exists() else {}
    if set(config.get("modality_config", {})) - {"text", "message"}:
        return  # it reads more than text, which the older words cannot say
    if not isinstance(config.get("max_seq_length"), int):
        tokenizer = read_object(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
        lengths = [tokenizer.get("model_max_length"), part.config.get("max_position_embeddings")]
        known = [length for length in lengths if isinstance(length, int) and 0 < length < 10**9]
        config["max_seq_length"] = min(known, default=None)
    config.setdefault("do_lower_case", False)
    write_json(path, {key: value for key, value in config.items() if key in TRANSFORMER_KEYS})


def _rewrite_pooling(folder: Path, part: Part) -> None:
    given = pooling_modes(part.config)
    keys = {POOLING_KEYS.get(mode, mode) for mode in given}
    if not keys <= set(POOLING_KEYS.values()) or ("pooling_mode" in part.config and not in_order(given)):
        return
    width = part.config.get("word_embedding_dimension", part.config.get("embedding_dimension"))
    modes: dict[str, Any] = {key: key in keys for key in POOLING_KEYS.values()}
    prompt = part.config.get("include_prompt", True)
    write_json(folder / "config.json", {"word_embedding_dimension": width, **modes, "include_prompt": prompt})


def _rewrite_dense(folder: Path, part: Part) -> None:
    config = {"bias": True, "activation_function": _TANH, **part.config}
    names = {config.get(f"module_{end}_name", "sentence_embedding") for end in ("input", "output")}
    if names == {"sentence_embedding"} and not config.get("use_residual"):
        write_json(folder / "config.json", {key: value for key, value in config.items() if key in DENSE_KEYS})
    if not (folder / WEIGHTS).exists():
        weights = read_pickle(folder / PICKLE)
        save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / WEIGHTS)
        (folder / PICKLE).unlink()


def _rewrite_model(path: Path) -> None:
    config = read_object(path) if path.exists() else {}
    if isinstance(config.get("prompts"), dict):
        config["prompts"] = {name: prompt or "" for name, prompt in config["prompts"].items()}
        write_json(path, config)


_REWRITE = {"Transformer": _rewrite_transformer, "Pooling": _rewrite_pooling, "Dense": _rewrite_dense}
