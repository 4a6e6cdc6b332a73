"""One call from a base model and texts to a reduced model: encode, summarise, fit, stack."""

from __future__ import annotations

import copy
import math
import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence, Sized
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from torch import nn
from tqdm import tqdm

from st_dimreduce.compare import Comparison, compare
from st_dimreduce.fitting.subspace import DEFAULT_WHITENING, Rotation, fit_head
from st_dimreduce.summary import Summary

DEFAULT_POOLED_GAIN = 0.03
_CHUNK = 2048  # texts encoded at a time: enough to sort by length, few enough that their vectors are soon forgotten
# Texts of several lengths, to learn how long a model's vectors are before Normalize when no text was given.
_PROBES = [
    "weather",
    "How do I reset my password?",
    "The committee approved the new budget on Tuesday after a long debate about public transport.",
    "A solution of salt in water conducts electricity because its ions move freely. The higher the concentration, "
    "the better it conducts, up to a point at which the ions hinder one another.",
]


def reduce_model(
    model: SentenceTransformer | str | os.PathLike[str],
    sentences: Iterable[str] | None = None,
    out_features: int = 128,
    *,
    embeddings: np.ndarray | None = None,
    summary: Summary | None = None,
    whitening: float = DEFAULT_WHITENING,
    rotation: Rotation | None = "itq",
    gain: float = DEFAULT_POOLED_GAIN,
    seed: int = 0,
    trainable: bool = False,
    batch_size: int = 32,
    show_progress_bar: bool | None = None,
) -> SentenceTransformer:
    """Put a fitted head behind a base model.

    The head is fitted on what the base model says of the given texts, so give texts like those it will encode: fitted
    on general sentences it loses a fifth of its agreement with the base model on scientific abstracts. It stands behind
    the last module that is not ``Normalize``, and a ``Normalize`` at the end stays at the end.

    Args:
        model: The base model: a name, a path, or a ``SentenceTransformer``, which is left unchanged.
        sentences: Texts to fit on, encoded with the base model's document prompt, if it has one.
        out_features: Size k of the reduced embeddings. Defaults to 128.
        embeddings: The base model's embeddings, array of shape (n, d), in place of ``sentences``.
        summary: A summary of the base model's embeddings, in place of ``sentences``.
        whitening: As in :func:`st_dimreduce.fit_head`.
        rotation: As in :func:`st_dimreduce.fit_head`.
        gain: Root mean square of the Tanh's input. Defaults to 0.03: behind Pooling, a short query's vector may be
            three times as long as a document's, and at this gain even then a stored vector reduced by the head and
            the same text encoded anew agree to a cosine of 0.9999.
        seed: Seed of the sample and the rotation. Defaults to 0.
        trainable: Whether to stack a ``DimReduce``, to be trained further, instead of the stock ``Dense``, which
            loads without a flag. Defaults to False.
        batch_size: Texts the base model encodes at a time. Defaults to 32.
        show_progress_bar: Whether to show progress; only on a terminal if None (the default).

    Returns:
        A new model with the base model's prompts, similarity function and maximum length.

    Raises:
        ValueError: If not exactly one of ``sentences``, ``embeddings`` and ``summary`` is given, it does not fit the
            model or is too little for ``out_features``, or the model cannot be loaded or gives no sentence embedding.
    """
    if sum(source is not None for source in (sentences, embeddings, summary)) != 1:
        raise ValueError("give exactly one of sentences, embeddings and summary to fit on")
    base = model if isinstance(model, SentenceTransformer) else load_model(model)
    body, tail = _split(base)
    trunk = _assemble(base, body)
    probes = _encode_probes(trunk)
    width = probes.shape[1]
    if not 1 <= out_features <= width:
        raise ValueError(f"out_features={out_features}: choose a size from 1 to {width}, what the base model gives")

    if isinstance(sentences, Sized) and len(sentences) < out_features:
        raise ValueError(f"{len(sentences)} texts cannot fit out_features={out_features}: give more, or choose fewer")
    if sentences is not None:
        summary = _summarize_texts(trunk, sentences, Summary(width, seed=seed), batch_size, show_progress_bar)
        norm = summary.mean_norm
    else:
        summary = summary or Summary.of(np.asarray(embeddings), seed=seed)
        if summary.width != width:
            raise ValueError(f"vectors of {summary.width} dimensions were given, expected the model's {width}")
        # Stored vectors are normalised as a rule: how long they are where the head stands, only the model can tell.
        norm = float(np.linalg.norm(probes, axis=1).mean())

    head = fit_head(summary, out_features, whitening=whitening, rotation=rotation, gain=gain, seed=seed)
    head.linear.weight.data /= norm
    head.fitted |= {"gain": gain, "mean_norm": norm, "base_model": _name(base)}
    if base is model:
        body, tail = copy.deepcopy((body, tail))
    modules = [*body.values(), head if trainable else head.to_dense(), *tail]
    reduced = _assemble(base, OrderedDict((str(i), module) for i, module in enumerate(modules)))
    reduced.model_card_data.base_model = head.fitted["base_model"]
    return reduced


def reduce_and_compare(
    model: SentenceTransformer | str | os.PathLike[str],
    sentences: Sequence[str],
    out_features: int = 128,
    *,
    seed: int = 0,
    batch_size: int = 32,
    show_progress_bar: bool | None = None,
) -> tuple[SentenceTransformer, Comparison]:
    """Reduce a model on most of the texts, and measure what it cost on the others.

    A tenth of the texts, at most 1,000 and at least 100, is held out (never more than a third).

    Args:
        model: As in :func:`reduce_model`.
        sentences: Texts to fit and measure on.
        out_features: As in :func:`reduce_model`.
        seed: Seed of the split and the fit. Defaults to 0.
        batch_size: As in :func:`reduce_model`.
        show_progress_bar: As in :func:`reduce_model`.

    Returns:
        The reduced model, and how it compares with the base model on texts it has not seen.

    Raises:
        ValueError: As :func:`reduce_model`, or if there are too few texts to hold any out.
    """
    base = model if isinstance(model, SentenceTransformer) else load_model(model)
    texts = list(sentences)
    held_out = min(max(len(texts) // 10, 100), 1000, len(texts) // 3)
    if held_out < 2 or len(texts) - held_out < out_features:
        asked = f"{len(texts)} texts, {held_out} of them held out to measure on, cannot fit out_features={out_features}"
        raise ValueError(f"{asked}: give at least {max(6, math.ceil(out_features * 1.5))}, or choose fewer dimensions")
    order = np.random.default_rng(seed).permutation(len(texts))
    unseen, seen = ([texts[i] for i in rows] for rows in (order[:held_out], order[held_out:]))
    options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": show_progress_bar}
    reduced = reduce_model(base, seen, out_features, seed=seed, **options)
    return reduced, compare(base, reduced, unseen, **options)


def load_model(name_or_path: str | os.PathLike[str]) -> SentenceTransformer:
    """Load a model by name or path.

    Raises:
        ValueError: If it cannot be loaded; says why in one line.
    """
    try:
        return SentenceTransformer(os.fspath(name_or_path))
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"no model could be loaded from {os.fspath(name_or_path)!r}: {reason}") from error


def _name(base: SentenceTransformer) -> str | None:
    """Return the base model's name on the Hub; None for one from a folder, whose path is nobody's business."""
    name = base.model_card_data.base_model
    return None if name is None or Path(name).exists() else name


def _split(base: SentenceTransformer) -> tuple[OrderedDict[str, nn.Module], list[nn.Module]]:
    """Return the modules up to where a head belongs, and the ``Normalize`` behind it."""
    if base.truncate_dim is not None:
        raise ValueError(f"the base model has truncate_dim={base.truncate_dim}: load it without, to reduce all of it")
    modules = list(base.named_children())
    end = len(modules)
    while end and isinstance(modules[end - 1][1], Normalize):
        end -= 1
    return OrderedDict(modules[:end]), [module for _, module in modules[end:]][:1]


def _assemble(base: SentenceTransformer, modules: Any) -> SentenceTransformer:
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


def _encode_probes(trunk: SentenceTransformer) -> np.ndarray:
    try:
        return trunk.encode_document(_PROBES, show_progress_bar=False)
    except KeyError as error:
        names = [type(module).__name__ for module in trunk]
        raise ValueError(f"the base model {names} gives no sentence embedding: expected Pooling or the like") from error


def _summarize_texts(
    trunk: SentenceTransformer,
    sentences: Iterable[str],
    summary: Summary,
    batch_size: int,
    show_progress_bar: bool | None,
) -> Summary:
    if isinstance(sentences, str):
        raise ValueError("sentences is one string: expected a list of them")
    texts = iter(sentences)
    total = len(sentences) if isinstance(sentences, Sized) else None
    disable = None if show_progress_bar is None else not show_progress_bar
    with tqdm(desc="Encoding", unit=" texts", total=total, disable=disable) as bar:
        while chunk := list(islice(texts, _CHUNK)):
            for row, text in enumerate(chunk, summary.count):
                if not isinstance(text, str):
                    raise ValueError(f"sentence {row} is of type {type(text).__name__}: expected a string")
            summary.update(trunk.encode_document(chunk, batch_size=batch_size, show_progress_bar=False))
            bar.update(len(chunk))
    return summary
