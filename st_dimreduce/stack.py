"""A head behind a base model: where it belongs, and how long the vectors are that it sees there."""

from __future__ import annotations

import copy
import os
import re
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.utils import HFValidationError, validate_repo_id
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from torch import nn

from st_dimreduce.card import ORIGIN
from st_dimreduce.dim_reduce import DimReduce
from st_dimreduce.encoding import Encoder, load_model


def attach_head(
    model: SentenceTransformer | str | os.PathLike[str], head: DimReduce, *, trainable: bool = False
) -> SentenceTransformer:
    """Put a head that reduced stored vectors behind the model they came from, to encode queries that agree with them.

    The stored vectors are of length 1 as a rule, but before its ``Normalize`` a model's are longer: the head's weight
    is divided by their mean length, measured on a few sentences. A head fitted with a gain of 0.03, as
    ``st-dimreduce fit`` does, then agrees with the reduced stored vectors to a cosine of 0.9999.

    Args:
        model: The base model: a name, a path, or a ``SentenceTransformer``, which is left unchanged.
        head: The head, for vectors as long as ``head.fitted["mean_norm"]`` in the mean, or 1 where that is not said;
            left unchanged.
        trainable: As in :func:`st_dimreduce.reduce_model`. Defaults to False.

    Returns:
        A new model with the base model's prompts, similarity function and maximum length.

    Raises:
        ValueError: If the model cannot be loaded or its embeddings are not of the head's size.
    """
    base = model if isinstance(model, SentenceTransformer) else load_model(model)
    trunk = Encoder(assemble(base, split_model(base)[0]), batch_size=32, show_progress_bar=False)
    if trunk.width != head.in_features:
        raise ValueError(
            f"the head takes {head.in_features} dimensions, the model gives {trunk.width}: attach it to the model that "
            "the vectors came from"
        )
    return stack_head(base, copy.deepcopy(head), trunk.probe_norm, trainable=trainable, shared=base is model)


def stack_head(
    base: SentenceTransformer, head: DimReduce, norm: float, *, trainable: bool, shared: bool
) -> SentenceTransformer:
    """Return the base model with the head, whose weight is changed to take vectors of the given mean length.

    Args:
        base: The base model.
        head: The head.
        norm: Mean length of the base model's vectors where the head will stand.
        trainable: Whether to stack it as it is, instead of as the stock ``Dense``.
        shared: Whether somebody else keeps the base model, so that its modules are to be copied.
    """
    head.linear.weight.data /= norm / head.fitted.get("mean_norm", 1.0)
    head.fitted |= {"mean_norm": norm, **origin(base)}
    body, tail = split_model(base)
    if shared:
        body, tail = copy.deepcopy((body, tail))
    modules = [*body.values(), head if trainable else head.to_dense(), *tail]
    reduced = assemble(base, OrderedDict((str(i), module) for i, module in enumerate(modules)))
    reduced.model_card_data.base_model = head.fitted["base_model"]
    return reduced


def split_model(base: SentenceTransformer) -> tuple[OrderedDict[str, nn.Module], list[nn.Module]]:
    """Return the modules up to where a head belongs, and the ``Normalize`` behind it.

    Raises:
        ValueError: If the model cuts its embeddings.
    """
    if base.truncate_dim is not None:
        raise ValueError(f"the base model has truncate_dim={base.truncate_dim}: load it without, to reduce all of it")
    modules = list(base.named_children())
    end = len(modules)
    while end and isinstance(modules[end - 1][1], Normalize):
        end -= 1
    return OrderedDict(modules[:end]), [module for _, module in modules[end:]][:1]


def detach_head(model: SentenceTransformer) -> tuple[SentenceTransformer, DimReduce]:
    """Take a reduced model apart: below its head it is still the base model.

    So one encoding serves both: ``below.encode(texts)`` gives the base model's vectors, not scaled to length 1, and
    ``head.reduce`` the reduced model's from these.

    Args:
        model: The reduced model, left unchanged; the model below shares its modules.

    Returns:
        The model below the head, and a copy of the head.

    Raises:
        ValueError: If the model ends in no head, or in one that does not read sentence embeddings.
    """
    head = DimReduce.from_model(model)
    if head.module_input_name != "sentence_embedding":
        raise ValueError(f"the head reads {head.module_input_name!r}, expected 'sentence_embedding': a head on Pooling")
    modules = list(model.named_children())
    place = max(index for index, (_, module) in enumerate(modules) if isinstance(module, Dense))
    return assemble(model, OrderedDict(modules[:place])), head


def assemble(base: SentenceTransformer, modules: Any) -> SentenceTransformer:
    """Return a model of these modules that treats texts and scores as the base model does."""
    model = SentenceTransformer(
        modules=modules,
        device=str(base.device),
        prompts={name: prompt or "" for name, prompt in base.prompts.items()},
        default_prompt_name=base.default_prompt_name,
        similarity_fn_name=base.similarity_fn_name,
    )
    model.module_kwargs = base.module_kwargs
    return model


def origin(base: SentenceTransformer) -> dict[str, Any]:
    """Return what a reduced model's card says of its base model: its name on the Hub, licence and languages.

    The name is None for a model from a folder, whose path is nobody's business; the rest is there if its card says it.
    """
    text, said = base._model_card_text or "", {}
    if text.startswith("---"):
        with suppress(Exception):  # whatever is wrong with another's card, the model is as good without
            said = ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    return {"base_model": _name(base)} | {key: said[key] for key in ORIGIN[1:] if _plain(said.get(key))}


def _name(base: SentenceTransformer) -> str | None:
    name = base.model_card_data.base_model
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if name is None or Path(name).exists() else name


def _plain(value: object) -> bool:
    """Whether a card may repeat it: short words, no markup."""
    words = value if isinstance(value, list) else [value]
    return bool(words) and all(isinstance(word, str) and re.fullmatch(r"[\w.:/+ -]{1,200}", word) for word in words)
