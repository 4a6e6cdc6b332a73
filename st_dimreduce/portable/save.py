"""Saving a reduced model in the portable form, the file layout that every consumer reads."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Module, Normalize, Transformer

from st_dimreduce.base_head import CONFIG
from st_dimreduce.dim_reduce import DimReduce, head_of, plain_head
from st_dimreduce.errors import UserError
from st_dimreduce.files import new_folder, write_json
from st_dimreduce.models.folder import find_transformers, read_parts
from st_dimreduce.models.load import no_model
from st_dimreduce.portable.card import model_card
from st_dimreduce.portable.check import check, unportable
from st_dimreduce.portable.layout import (
    CARD,
    MODEL_CONFIG,
    MODULES,
    OLD_NAMES,
    SENTENCE_CONFIG,
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    module_path,
    name_sizes,
    read_settings,
    rewrite,
)
from st_dimreduce.portable.serving import Serving
from st_dimreduce.portable.transformers4 import add_old_settings
from st_dimreduce.portable.verify import check_vectors
from st_dimreduce.record import write_record


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
        UserError: If the model has no head, the layout cannot express something in it, a reader would give other
            vectors without a word, or what was written does; says what it is. Nothing is left behind.
        FileExistsError: If ``path`` exists and ``overwrite`` is False, or is not a model folder.
    """
    if not isinstance(model, SentenceTransformer):
        raise no_model(model)
    head, record = head_of(model)
    plain_head(head, record)  # raises what is wrong with it
    if foreign := [type(module).__name__ for module in model if not isinstance(module, Module)]:
        raise UserError(f"{foreign[0]} is not a module of Sentence Transformers, which cannot save it: leave it out")
    transformers = [module for module in model.modules() if isinstance(module, Transformer)]
    for transformer in transformers:
        if transformer.backend != "torch":  # whose weights are not there to be saved
            raise UserError(f"its Transformer runs on {transformer.backend}: load the base model with backend='torch'")
    if figures:
        record = replace(record, figures=figures)
    stock = copy.copy(model)  # shares the settings and the other modules, none of which is changed
    stock._modules = {
        str(number): module.to_dense() if type(module) is DimReduce else module for number, module in enumerate(model)
    }
    stock.module_kwargs = None
    with new_folder(path, overwrite) as folder:
        stock.save_pretrained(str(folder), create_model_card=False)
        parts = read_parts(folder, trust_remote_code=True)
        for part, transformer in zip(find_transformers(parts, trust_remote_code=True), transformers, strict=False):
            _add_settings(transformer, part.folder)
        rewrite(folder, parts)
        write_record(folder, record, head.in_features, head.out_features)
        name_sizes(folder)
        if problems := unportable(check(folder)):
            raise UserError(f"the portable form cannot express this model: {'; '.join(problems)}")
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
    entries = [
        {"name": str(number), "path": module_path(number, kind), "type": OLD_NAMES[kind]}
        for number, kind in enumerate(kinds)
    ]
    write_json(folder / MODULES, entries)
    (folder / entries[1]["path"]).mkdir()
    write_json(folder / entries[1]["path"] / CONFIG, {"pooling_mode": pooling, "word_embedding_dimension": width})
    rewrite(folder, read_parts(folder, trust_remote_code=True))


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
        write_json(folder / name, read_settings(folder / name) | more)
