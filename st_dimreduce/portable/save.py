"""Saving a reduced model in the portable form, the file layout that every consumer reads."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as stock_modules
from sentence_transformers.sentence_transformer.modules import BoW, Dense, Normalize, Pooling, Router, Transformer
from torch import nn

from st_dimreduce.base_head import ACTIVATIONS, CONFIG, is_activation
from st_dimreduce.dim_reduce import DimReduce, head_of
from st_dimreduce.errors import UserError
from st_dimreduce.files import new_folder, write_json
from st_dimreduce.models.folder import ROUTER_CONFIG, TEXT, Part
from st_dimreduce.models.load import no_model
from st_dimreduce.portable.card import model_card
from st_dimreduce.portable.layout import (
    BAG,
    BEFORE_5,
    CARD,
    MODEL_CONFIG,
    MODULES,
    OLD_NAMES,
    POOLING_KEYS,
    SENTENCE_CONFIG,
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    beyond_layout,
    in_order,
    misread_before,
    module_path,
    name_sizes,
    rewrite,
)
from st_dimreduce.portable.serving import Serving
from st_dimreduce.portable.transformers4 import add_old_settings
from st_dimreduce.portable.verify import check_vectors
from st_dimreduce.record import write_record
from st_dimreduce.untrusted import read_object

_KINDS = tuple(getattr(stock_modules, kind) for kind in OLD_NAMES)


def save_portable(
    model: SentenceTransformer,
    path: str | os.PathLike[str],
    *,
    figures: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Save a reduced model so that ``SentenceTransformer(path)`` loads it anywhere, without this package or any flag.

    That is, in every version of Sentence Transformers from 3.4 on that knows the modules of the base model: Router came
    with 5.0, and one Transformer for texts and images with 5.4. :func:`st_dimreduce.check` names the readers that do
    not know them.

    Modules keep their order; a ``DimReduce`` is written as the stock ``Dense`` that it is at inference. Weights go to
    safetensors. Prompts, similarity function and maximum length are kept. ``st_dimreduce.json`` says how the head was
    fitted. The folder appears when it is complete, and has been loaded and found to give the model's vectors.

    Args:
        model: Modules of Sentence Transformers, the last of them a head, or a head and Normalize. Left unchanged.
        path: The folder to make.
        figures: What was measured of the model, a :meth:`st_dimreduce.Comparison.to_dict`, to be kept in
            ``st_dimreduce.json``. Defaults to None.
        overwrite: Replace a model folder that is already there. Defaults to False.

    Raises:
        ValueError: If the layout cannot express something in the model, an older Sentence Transformers would give
            other vectors, or what was written does; says what it is. Nothing is left behind.
        FileExistsError: If ``path`` exists and ``overwrite`` is False, or is no model folder.
    """
    if not isinstance(model, SentenceTransformer):
        raise no_model(model)
    modules = list(model)
    problems = [*unportable(modules), *_misread(modules)]
    if problems:
        raise UserError(f"the portable form cannot express this model: {'; '.join(problems)}")
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
        parts = _saved_parts(modules, folder)
        for part, module in zip(parts, modules, strict=True):
            for place, each in _with_inner(part.folder, module):
                if isinstance(each, Transformer):
                    _add_settings(each, place)
        rewrite(folder, parts)
        write_record(folder, record, head.in_features, head.out_features)
        name_sizes(folder)
        card = model_card(record, head.in_features, head.out_features, serving=Serving.of(folder))
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
    if pooling is None:  # then only what takes the sentence embedding is right
        add_old_settings(folder)
        return
    kinds = ["Transformer", "Pooling", *(["Normalize"] if isinstance(model[-1], Normalize) else [])]
    configs = [read_object(folder / CONFIG), {"pooling_mode": pooling, "word_embedding_dimension": width}, {}]
    parts = [
        Part(path, OLD_NAMES[kind], folder / path, config)
        for number, (kind, config) in enumerate(zip(kinds, configs, strict=False))
        for path in [module_path(number, kind)]
    ]
    parts[1].folder.mkdir()
    entries = [{"name": str(number), "path": part.path, "type": part.type} for number, part in enumerate(parts)]
    write_json(folder / MODULES, entries)
    rewrite(folder, parts)


def unportable(modules: list[nn.Module]) -> list[str]:
    """Name everything in a sequence of modules that the portable layout cannot express, and what to do about it."""
    problems = [problem for module in _every(modules) for problem in _module_problems(module)]
    heads = [module for module in modules if isinstance(module, Dense)]
    if not heads or not all(isinstance(module, Normalize) for module in modules[modules.index(heads[-1]) + 1 :]):
        problems.append("there is no head (DimReduce or Dense) behind all others: fit one with reduce_model")
    elif _class_of(heads[-1]) not in ACTIVATIONS.values():
        name, kind = type(heads[-1]).__name__, type(heads[-1].activation_function).__name__
        problems.append(f"{name} ends in {kind}, expected Tanh or Identity: train it with one of these")
    if any(isinstance(module, Normalize) for module in modules[:-1]) and isinstance(modules[-1], (Dense, Normalize)):
        problems.append("Normalize is before the head, where servers leave it out: leave it out, or put it behind")
    return problems


def _every(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    """Yield modules, and those in a Router."""
    for module in modules:
        yield module
        for route in module.sub_modules.children() if isinstance(module, Router) else ():
            yield from _every(route.children())


def _module_problems(module: nn.Module) -> list[str]:
    name = type(module).__name__
    stock = next((kind for kind in _KINDS if isinstance(module, kind)), None)
    if stock is None:
        return [f"{name} is no module of Sentence Transformers, which readers have: use save_pretrained"]
    if type(module) not in (stock, DimReduce):  # which readers would load as the stock class
        kind = stock.__name__
        return [f"{name} is a {kind} of its own kind, which readers load as a stock {kind}: use that"]
    if isinstance(module, Transformer):
        return _transformer_problems(module)
    if isinstance(module, Pooling) and not in_order(module.pooling_mode):
        order = ", ".join(POOLING_KEYS)
        return [f"its Pooling concatenates {module.pooling_mode}, readers do so in the order {order}: use that one"]
    if isinstance(module, (Dense, Normalize)):
        return _dense_problems(module)
    return []


def _transformer_problems(transformer: Transformer) -> list[str]:
    problems = []
    if any(part.__module__.startswith("transformers_modules") for part in _classes(transformer)):
        problems.append("its Transformer runs code that comes with it: choose a base model that transformers knows")
    if transformer.backend != "torch":
        problems.append(f"its Transformer runs on {transformer.backend}: load the base model with backend='torch'")
    if set(transformer.modality_config) - TEXT:  # older readers do not load it, nor the base model
        return problems
    return problems + [
        f"its Transformer sets {name}, which older readers do not know: set it to its default, or use save_pretrained"
        for name in beyond_layout(transformer.get_config_dict())
    ]


def _dense_problems(module: Dense | Normalize) -> list[str]:
    name, problems = type(module).__name__, []
    if {module.module_input_name, module.module_output_name} != {"sentence_embedding"}:
        features = f"reads {module.module_input_name!r} and writes {module.module_output_name!r}"
        problems.append(f"{name} {features}, expected 'sentence_embedding' for both: put it behind Pooling")
    if isinstance(module, Dense) and not is_activation(_class_of(module)):
        kind = type(module.activation_function).__name__
        problems.append(f"{name} ends in {kind}, which is none of torch.nn's: train it with one of these")
    if isinstance(module, Dense) and module.use_residual:
        problems.append(f"{name} has a residual connection, which older readers ignore: train it without")
    return problems


def _class_of(dense: Dense) -> str:
    kind = type(dense.activation_function)
    return f"{kind.__module__}.{kind.__qualname__}"


def _misread(modules: list[nn.Module]) -> list[str]:
    bags = [module for module in _every(modules) if isinstance(module, BoW)]
    problems = [f"{BEFORE_5} gives different vectors for {BAG}: use save_pretrained"] if bags else []
    for before, pooling in pairwise(_every(modules)):
        if isinstance(before, Transformer) and isinstance(pooling, Pooling):
            modes = [pooling.pooling_mode] if isinstance(pooling.pooling_mode, str) else pooling.pooling_mode
            side = getattr(before.tokenizer, "padding_side", "right")
            found = misread_before(side, modes, pooling.include_prompt)
            how = "set its tokenizer's padding_side to 'right' and include_prompt to True, or use save_pretrained"
            problems += [f"{found[1]} gives different vectors for {found[0]}: {how}"] if found else []
    return problems


def _classes(transformer: Transformer) -> list[type]:
    """Return the classes of what a Transformer loads; transformers imports code of a model's own under one name."""
    return [type(part) for part in (transformer.auto_model, transformer.auto_model.config, transformer.processor)]


def _add_settings(transformer: Transformer, folder: Path) -> None:
    """Add what older readers look for in these files, and what was set since the tokenizer was loaded."""
    sides = ("padding_side", "truncation_side", "split_special_tokens")
    settings = {
        SENTENCE_CONFIG: {"max_seq_length": transformer.max_seq_length, "do_lower_case": transformer.do_lower_case},
        TOKENIZER_CONFIG: {side: value for side in sides if (value := getattr(transformer.tokenizer, side, None))},
    }
    # What the base model's tokenizer.json cuts at, which transformers writes down but ignores. fastembed goes by it.
    if transformer.max_seq_length and "max_length" in getattr(transformer.tokenizer, "init_kwargs", {}):
        settings[TOKENIZER_CONFIG]["max_length"] = transformer.max_seq_length
    for name, more in settings.items():
        content = json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).exists() else {}
        write_json(folder / name, content | more)


def _with_inner(folder: Path, module: nn.Module) -> Iterator[tuple[Path, nn.Module]]:
    """Yield a module that was saved and those in a Router, each with its folder."""
    yield folder, module
    if isinstance(module, Router):
        names = read_object(folder / ROUTER_CONFIG)["structure"]
        for route, inner in module.sub_modules.items():
            for name, each in zip(names[route], list(inner), strict=True):  # type: ignore[call-overload]
                yield from _with_inner(folder / name, each)


def _saved_parts(modules: list[nn.Module], folder: Path) -> list[Part]:
    """Return what was saved of the modules, a ``DimReduce`` as the stock ``Dense``."""
    parts = []
    for entry, module in zip(json.loads((folder / MODULES).read_text(encoding="utf-8")), modules, strict=True):
        kind = next(kind.__name__ for kind in _KINDS if isinstance(module, kind))
        place = folder / entry["path"]
        config = json.loads((place / CONFIG).read_text(encoding="utf-8")) if (place / CONFIG).exists() else {}
        parts.append(Part(entry["path"], OLD_NAMES[kind], place, config))
    return parts
