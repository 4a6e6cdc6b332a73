"""Putting a head behind a base model, and taking a reduced model apart."""

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

from st_dimreduce.base_head import BaseHead
from st_dimreduce.dim_reduce import DimReduce, head_of, keep_record, plain_head
from st_dimreduce.errors import UserError
from st_dimreduce.models.encoder import Encoder
from st_dimreduce.models.encoding import assemble
from st_dimreduce.models.load import load_model

ORIGIN = ("license", "license_name", "license_link", "language")  # what a record repeats of the base model's card


def attach_head(
    model: SentenceTransformer | str | os.PathLike[str], head: BaseHead, *, trainable: bool = False
) -> SentenceTransformer:
    """Put a head that reduced stored vectors behind the model they came from, to encode queries that agree with them.

    Stored vectors usually have norm 1, but before its ``Normalize`` a model's embeddings have larger norms:
    the head's weight is divided by their mean norm, measured on a few sentences. A head fitted with the default gain
    then agrees with the reduced stored vectors to a cosine of 0.9999.

    Args:
        model: The base model: a name, a path, or a ``SentenceTransformer``, which is left unchanged.
        head: The head, whose record says the mean norm of the vectors it was fitted on; left unchanged.
        trainable: As in :func:`st_dimreduce.reduce_model`. Defaults to False.

    Returns:
        A new model with the base model's prompts, similarity function and maximum length.

    Raises:
        ValueError: If the model cannot be loaded, its embeddings are not of the head's size, or the head's record has
            no mean norm.
    """
    base = model if isinstance(model, SentenceTransformer) else load_model(model)
    body = Encoder(assemble(base, split_model(base)[0]), batch_size=32)
    if body.width != head.in_features:
        raise UserError(
            f"the head takes {head.in_features} dimensions, the model gives {body.width}: attach it to the model that "
            "the vectors came from"
        )
    return stack_head(base, head.for_norm(body.probe_norm), trainable=trainable, shared=base is model)


def stack_head(base: SentenceTransformer, head: BaseHead, *, trainable: bool, shared: bool) -> SentenceTransformer:
    """Return the base model with a head behind it.

    Args:
        base: The base model.
        head: The head, for embeddings of the norm that the base model gives there.
        trainable: Whether to stack a ``DimReduce``, instead of the stock ``Dense``.
        shared: Whether the caller keeps the base model, so that its modules are to be copied.
    """
    head = head.with_record(**origin(base))
    body, tail = split_model(base)
    if shared:
        body, tail = copy.deepcopy((body, tail))
    modules = [*body.values(), DimReduce.from_head(head) if trainable else head.to_dense(), *tail]
    reduced = assemble(base, OrderedDict((str(i), module) for i, module in enumerate(modules)))
    reduced.model_card_data.base_model = head.record.base_model
    keep_record(reduced, head.record)
    return reduced


def split_model(base: SentenceTransformer) -> tuple[OrderedDict[str, nn.Module], list[nn.Module]]:
    """Return the modules up to where a head belongs, and the ``Normalize`` behind it.

    Raises:
        ValueError: If the model cuts its embeddings.
    """
    if base.truncate_dim is not None:
        raise UserError(f"the base model has truncate_dim={base.truncate_dim}: load it without, to reduce all of it")
    modules = list(base.named_children())
    end = len(modules)
    while end and isinstance(modules[end - 1][1], Normalize):
        end -= 1
    return OrderedDict(modules[:end]), [module for _, module in modules[end:]][:1]


def detach_head(model: SentenceTransformer) -> tuple[SentenceTransformer, BaseHead]:
    """Take a reduced model apart into its body, which is still the base model, and its head.

    So one encoding serves both: ``body.encode(texts)`` gives the base model's embeddings, not normalised, and
    ``head.forward`` the reduced model's from these.

    Args:
        model: The reduced model, left unchanged; the body shares its modules.

    Returns:
        The body, and the head.

    Raises:
        ValueError: If the model ends in no head, or in one that does not read sentence embeddings.
    """
    head, record = head_of(model)
    if head.module_input_name != "sentence_embedding":
        raise UserError(f"the head reads {head.module_input_name!r}, expected 'sentence_embedding': a head on Pooling")
    modules = list(model.named_children())
    place = max(index for index, (_, module) in enumerate(modules) if isinstance(module, Dense))
    return assemble(model, OrderedDict(modules[:place])), plain_head(head, record)


def origin(base: SentenceTransformer) -> dict[str, Any]:
    """Return what a record says of the base model: its name on the Hub, licence and languages.

    The name is None for a model from a folder, whose path is private; the rest is there if its card says it.
    """
    text, stated = base._model_card_text or "", {}
    if text.startswith("---"):
        with suppress(Exception):  # a damaged card of another's model is no reason to refuse the model
            stated = ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    return {"base_model": _name(base)} | {key: stated[key] for key in ORIGIN if _plain(stated.get(key))}


def _name(base: SentenceTransformer) -> str | None:
    name = base.model_card_data.base_model
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return None if name is None or Path(name).exists() else name


def _plain(value: object) -> bool:
    """Whether a card may repeat the value: short words without markup."""
    words = value if isinstance(value, list) else [value]
    return bool(words) and all(isinstance(word, str) and re.fullmatch(r"[\w.:/+ -]{1,200}", word) for word in words)
