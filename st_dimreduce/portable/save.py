"""Saving a reduced model in the portable form, the file layout that every consumer reads."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    StaticEmbedding,
    Transformer,
)
from torch import nn

from st_dimreduce.dim_reduce import DimReduce, head_of
from st_dimreduce.files import new_folder, write_json
from st_dimreduce.head import ACTIVATIONS, CONFIG
from st_dimreduce.models.folder import Part
from st_dimreduce.portable.card import model_card
from st_dimreduce.portable.layout import (
    CARD,
    MODEL_CONFIG,
    MODULES,
    OLD_NAMES,
    POOLING_KEYS,
    SENTENCE_CONFIG,
    SPECIAL_TOKENS,
    TEXT,
    TOKENIZER_CONFIG,
    beyond_layout,
    in_order,
    misread_before,
    module_path,
    rewrite,
    write_record,
)
from st_dimreduce.portable.transformers4 import add_old_settings
from st_dimreduce.portable.verify import check_vectors
from st_dimreduce.untrusted import read_object

_KINDS = (Transformer, Pooling, Dense, StaticEmbedding, Normalize)


def save_portable(
    model: SentenceTransformer,
    path: str | os.PathLike[str],
    *,
    figures: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Save a reduced model so that ``SentenceTransformer(path)`` loads it anywhere, without this package or any flag.

    Modules keep their order; a ``DimReduce`` is written as the stock ``Dense`` that it is at inference. Weights go to
    safetensors. Prompts, similarity function and maximum length are kept. ``st_dimreduce.json`` says how the head was
    fitted. The folder appears when it is complete, and has been loaded and found to give the model's vectors.

    Args:
        model: Transformer, Pooling, one or more heads, then Normalize or nothing; or StaticEmbedding in place of
            the first two. Left unchanged.
        path: The folder to make.
        figures: What was measured of the model, a :meth:`st_dimreduce.Comparison.to_dict`, to be kept in
            ``st_dimreduce.json``. Defaults to None.
        overwrite: Replace a model folder that is already there. Defaults to False.

    Raises:
        ValueError: If the layout cannot express something in the model, an older Sentence Transformers would give
            other vectors, or what was written does; says what it is. Nothing is left behind.
        FileExistsError: If ``path`` exists and ``overwrite`` is False, or is no model folder.
    """
    modules = list(model)
    problems = [*unportable(modules), *_misread(modules)]
    if problems:
        raise ValueError(f"the portable form cannot express this model: {'; '.join(problems)}")
    head, record = head_of(model)
    if figures:
        record = replace(record, figures=figures)
    stock = copy.copy(model)  # shares the settings and the other modules, none of which is changed
    stock._modules = {
        str(number): module.to_dense() if isinstance(module, DimReduce) else module
        for number, module in enumerate(modules)
    }
    stock.module_kwargs = None
    with new_folder(path, overwrite) as folder:
        stock.save_pretrained(str(folder), create_model_card=False)
        if isinstance(modules[0], Transformer):
            _add_settings(modules[0], folder)
        rewrite(folder, _saved_parts(modules, folder))
        write_record(folder, record, head.in_features, head.out_features)
        card = model_card(record, head.in_features, head.out_features)
        (folder / CARD).write_text(card, encoding="utf-8")
        check_vectors(model, folder)


def write_settings(model: SentenceTransformer, folder: Path, width: int, pooling: str | None) -> None:
    """Write a model's files but for weights, for readers that take a graph with the head in it for the transformer.

    Args:
        model: The model.
        folder: The folder, which holds the graph.
        width: Size k of an embedding that the graph gives.
        pooling: The pooling of its tokens; no modules are named if None.
    """
    first = model[0]
    settings = {name: getattr(model, name) for name in ("prompts", "default_prompt_name", "similarity_fn_name")}
    write_json(folder / MODEL_CONFIG, settings)
    if not isinstance(first, Transformer):
        write_json(folder / CONFIG, {"model_type": "static", "pad_token_id": 0})
        write_json(folder / TOKENIZER_CONFIG, {"tokenizer_class": "PreTrainedTokenizerFast"})
        write_json(folder / SPECIAL_TOKENS, {})
        return
    first.auto_model.config.save_pretrained(folder)
    first.processor.save_pretrained(folder)
    first.save_config(str(folder))
    _add_settings(first, folder)
    tokens = first.tokenizer.special_tokens_map
    write_json(folder / SPECIAL_TOKENS, {name: token for name, token in tokens.items() if isinstance(token, str)})
    kinds = ["Transformer", "Pooling", *(["Normalize"] if isinstance(model[-1], Normalize) else [])]
    configs = [read_object(folder / CONFIG), {"pooling_mode": pooling, "word_embedding_dimension": width}, {}]
    parts = [
        Part(path, OLD_NAMES[kind], folder / path, config)
        for number, (kind, config) in enumerate(zip(kinds, configs, strict=False))
        for path in [module_path(number, kind)]
    ]
    if pooling is None:  # then only what takes the sentence embedding is right
        add_old_settings(folder)
        return
    parts[1].folder.mkdir()
    entries = [{"name": str(number), "path": part.path, "type": part.type} for number, part in enumerate(parts)]
    write_json(folder / MODULES, entries)
    rewrite(folder, parts)


def unportable(modules: list[nn.Module]) -> list[str]:
    """Name everything in a sequence of modules that the portable layout cannot express, and what to do about it."""
    if isinstance(modules[0], StaticEmbedding):
        problems, rest = [], modules[1:]
    elif len(modules) > 1 and isinstance(modules[0], Transformer) and isinstance(modules[1], Pooling):
        problems, rest = _body_problems(modules[0], modules[1]), modules[2:]
    else:
        names = [type(module).__name__ for module in modules[:2]]
        return [f"it starts with {names}, expected Transformer then Pooling: keep the head behind Pooling"]
    last = rest[-1] if rest and isinstance(rest[-1], Normalize) else None
    heads = rest if last is None else rest[:-1]
    if not heads:
        problems.append("there is no head (DimReduce or Dense) behind Pooling: fit one with reduce_model")
    problems += [problem for head in heads for problem in _head_problems(head)]
    problems += [] if last is None else _feature_problems(last)
    return problems + [problem for module in modules for problem in _kind_problems(module)]


def _kind_problems(module: nn.Module) -> list[str]:
    """Refuse a derived class, which readers would load as the stock class."""
    stock = next((kind for kind in _KINDS if isinstance(module, kind)), None)
    if stock is None or type(module) in (stock, DimReduce):
        return []
    name = type(module).__name__
    return [f"{name} is a {stock.__name__} of its own kind, which readers load as a stock {stock.__name__}: use that"]


def _misread(modules: list[nn.Module]) -> list[str]:
    if not isinstance(modules[0], Transformer) or not isinstance(modules[1], Pooling):
        return []
    tokenizer, pooling = modules[0].tokenizer, modules[1]
    modes = [pooling.pooling_mode] if isinstance(pooling.pooling_mode, str) else pooling.pooling_mode
    found = misread_before(getattr(tokenizer, "padding_side", "right"), modes, pooling.include_prompt)
    how = "set its tokenizer's padding_side to 'right' and include_prompt to True, or use save_pretrained"
    return [f"{found[1]} gives different vectors for {found[0]}: {how}"] if found else []


def _body_problems(transformer: Transformer, pooling: Pooling) -> list[str]:
    problems = []
    if any(part.__module__.startswith("transformers_modules") for part in _classes(transformer)):
        problems.append("its Transformer runs code that comes with it: choose a base model that transformers knows")
    if transformer.backend != "torch":
        problems.append(f"its Transformer runs on {transformer.backend}: load the base model with backend='torch'")
    if "text" not in transformer.modality_config or set(transformer.modality_config) - TEXT:
        problems.append("its Transformer reads more than text: use save_pretrained")
    problems += [
        f"its Transformer sets {name}, which older readers do not know: set it to its default, or use save_pretrained"
        for name in beyond_layout(transformer.get_config_dict())
        if name != "modality_config" or not problems  # which has been named
    ]
    if not in_order(pooling.pooling_mode):
        order = ", ".join(POOLING_KEYS)
        problems.append(
            f"its Pooling concatenates {pooling.pooling_mode}, readers do so in the order {order}: use that one"
        )
    return problems


def _classes(transformer: Transformer) -> list[type]:
    """Return the classes of what a Transformer loads; transformers imports code of a model's own under one name."""
    return [type(part) for part in (transformer.auto_model, transformer.auto_model.config, transformer.processor)]


def _head_problems(module: nn.Module) -> list[str]:
    name = type(module).__name__
    if not isinstance(module, Dense):
        return [f"{name} is behind Pooling, where only Dense, DimReduce and a last Normalize may be: leave it out"]
    problems = _feature_problems(module)
    activation = type(module.activation_function)
    if f"{activation.__module__}.{activation.__qualname__}" not in ACTIVATIONS.values():
        problems.append(f"{name} ends in {activation.__name__}, expected Tanh or Identity: train it with one of these")
    if module.use_residual:
        problems.append(f"{name} has a residual connection, which older readers ignore: train it without")
    return problems


def _feature_problems(module: Dense | Normalize) -> list[str]:
    if {module.module_input_name, module.module_output_name} == {"sentence_embedding"}:
        return []
    features = f"reads {module.module_input_name!r} and writes {module.module_output_name!r}"
    return [f"{type(module).__name__} {features}, expected 'sentence_embedding' for both: put it behind Pooling"]


def _add_settings(transformer: Transformer, folder: Path) -> None:
    """Add what older readers look for in these files, and what was set since the tokenizer was loaded."""
    sides = ("padding_side", "truncation_side", "split_special_tokens")
    settings = {
        SENTENCE_CONFIG: {"max_seq_length": transformer.max_seq_length, "do_lower_case": transformer.do_lower_case},
        TOKENIZER_CONFIG: {side: value for side in sides if (value := getattr(transformer.tokenizer, side, None))},
    }
    for name, more in settings.items():
        content = json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).exists() else {}
        write_json(folder / name, content | more)


def _saved_parts(modules: list[nn.Module], folder: Path) -> list[Part]:
    """Return what was saved of the modules, a ``DimReduce`` as the stock ``Dense``."""
    parts = []
    for entry, module in zip(json.loads((folder / MODULES).read_text(encoding="utf-8")), modules, strict=True):
        kind = next(kind.__name__ for kind in _KINDS if isinstance(module, kind))
        place = folder / entry["path"]
        config = json.loads((place / CONFIG).read_text(encoding="utf-8")) if (place / CONFIG).exists() else {}
        parts.append(Part(entry["path"], OLD_NAMES[kind], place, config))
    return parts
