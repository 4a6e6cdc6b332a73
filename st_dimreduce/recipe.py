"""One call from a base model and texts to a reduced model: encode, summarise, fit, stack."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence, Sized
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from st_dimreduce.compare import Comparison, compare
from st_dimreduce.dim_reduce import DimReduce
from st_dimreduce.encoding import Encoder, load_model
from st_dimreduce.fitting import Objective, Pairs, choose, contrast_head, distill_head, fit_head
from st_dimreduce.fitting.budget import FEWEST_VECTORS
from st_dimreduce.fitting.subspace import Rotation
from st_dimreduce.pieces import self_made_pairs
from st_dimreduce.precision import Precision
from st_dimreduce.stack import assemble, split_model, stack_head
from st_dimreduce.summary import Summary

DEFAULT_POOLED_GAIN = 0.03
MADE_PAIRS = 1000
WHITENING_BEFORE_TRAINING = 0.2  # whitening: more than a head keeps that is not trained, and better to train from


def reduce_model(
    model: SentenceTransformer | str | os.PathLike[str],
    sentences: Iterable[str] | None = None,
    out_features: int | None = None,
    *,
    bytes_per_vector: int | None = None,
    keep: float | None = None,
    nested: Sequence[int] | None = None,
    objective: Objective | str = Objective.QUALITY,
    pairs: Sequence[Sequence[str]] | None = None,
    embeddings: np.ndarray | None = None,
    summary: Summary | None = None,
    whitening: float | None = None,
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
        out_features: Size k of the reduced embeddings. Defaults to 128, where no other size is asked for.
        bytes_per_vector: What a stored vector may cost, in place of ``out_features``: the dimension and the precision,
            ``DimReduce.from_model(model).precision``, that find most within it on held-out data.
        keep: Share in (0, 1] of what the base model finds on held-out data, in place of ``out_features``: the smallest
            dimension and precision that keep it.
        nested: Sizes at which the reduced embeddings may be cut (``truncate_dim``), such as ``(64, 128, 256)``, in
            place of ``out_features``: as in :func:`st_dimreduce.fit_head`.
        objective: ``"quality"``, to find what people look for, or ``"fidelity"``, to find what the base model does.
            Defaults to ``"quality"``.
        pairs: Labelled pairs of a query and the document it should find, or triples with a document that it should
            not find, to train on. Without them, for quality, a thousand sentences are taken out of their texts, and
            tell noise from meaning in their stead.
        embeddings: The base model's embeddings, array of shape (n, d), so that no sentence is encoded for them. Give
            ``sentences`` as well where you have them: for quality, pairs are made of them.
        summary: A summary of the base model's embeddings, in place of ``embeddings``.
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
        ValueError: If there is nothing to fit on, or both ``embeddings`` and ``summary``, it does not fit the model or
            is too little for ``out_features``, or the model cannot be loaded or gives no sentence embedding.
    """
    if sentences is None or embeddings is not None or summary is not None:
        check_one(embeddings=embeddings, summary=summary)
    if nested:
        check_one(nested=nested, bytes_per_vector=bytes_per_vector, keep=keep)
        out_features = nested[-1] if out_features is None else out_features
    elif (out_features, bytes_per_vector, keep) == (None, None, None):
        out_features = 128
    check_one(out_features=out_features, bytes_per_vector=bytes_per_vector, keep=keep)
    objective = Objective(objective)
    if pairs is not None and objective is Objective.FIDELITY:
        raise ValueError("pairs train for quality, objective='fidelity' is for the base model's neighbours: drop one")
    base = model if isinstance(model, SentenceTransformer) else load_model(model)
    trunk = Encoder(assemble(base, split_model(base)[0]), batch_size, show_progress_bar)
    labelled = trunk.pairs(_check_pairs(pairs)) if pairs is not None else None
    _check_size(out_features, trunk.width, sentences)

    if embeddings is None and summary is None:
        summary, drawn = trunk.summarize(() if sentences is None else sentences, seed)
        norm = summary.mean_norm
    else:
        summary = summary or Summary.of(np.asarray(embeddings), seed=seed)
        drawn = [] if sentences is None else list(sentences)
        if summary.width != trunk.width:
            raise ValueError(f"vectors of {summary.width} dimensions were given, expected the model's {trunk.width}")
        norm = trunk.probe_norm  # stored vectors are normalised as a rule: only the model can tell how long they were
    made = None
    if objective is Objective.QUALITY and labelled is None:
        made = trunk.pairs(self_made_pairs(drawn, MADE_PAIRS, seed))

    settings: dict[str, Any] = {"whitening": whitening, "rotation": rotation, "gain": gain, "seed": seed}
    settings |= {"nested": nested, "show_progress_bar": show_progress_bar}
    head = fit_to_size(summary, out_features, bytes_per_vector, keep, objective, made, labelled, **settings)
    return stack_head(base, head, norm, trainable=trainable, shared=base is model)


def reduce_and_compare(
    model: SentenceTransformer | str | os.PathLike[str],
    sentences: Sequence[str],
    out_features: int | None = None,
    *,
    bytes_per_vector: int | None = None,
    keep: float | None = None,
    objective: Objective | str = Objective.QUALITY,
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
        bytes_per_vector: As in :func:`reduce_model`.
        keep: As in :func:`reduce_model`.
        objective: As in :func:`reduce_model`.
        seed: Seed of the split and the fit. Defaults to 0.
        batch_size: As in :func:`reduce_model`.
        show_progress_bar: As in :func:`reduce_model`.

    Returns:
        The reduced model, and how it compares, in every precision, with the base model on texts it has not seen.

    Raises:
        ValueError: As :func:`reduce_model`, or if there are too few texts to hold any out.
    """
    base = model if isinstance(model, SentenceTransformer) else load_model(model)
    if width := base.get_embedding_dimension():
        _check_size(out_features, width, None)
    texts = list(sentences)
    held_out = min(max(len(texts) // 10, 100), 1000, len(texts) // 3)
    fewest = (
        FEWEST_VECTORS if (bytes_per_vector, keep) != (None, None) else 128 if out_features is None else out_features
    )
    if held_out < 2 or len(texts) - held_out < fewest:
        asked = f"{len(texts)} texts, {held_out} of them held out to measure on, are too few to fit {fewest}"
        raise ValueError(f"{asked}: give at least {max(6, math.ceil(fewest * 1.5))}, or choose fewer dimensions")
    order = np.random.default_rng(seed).permutation(len(texts))
    unseen, seen = ([texts[i] for i in rows] for rows in (order[:held_out], order[held_out:]))
    options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": show_progress_bar}
    size: dict[str, Any] = {"out_features": out_features, "bytes_per_vector": bytes_per_vector, "keep": keep}
    reduced = reduce_model(base, seen, **size, objective=objective, seed=seed, **options)
    return reduced, compare(base, reduced, unseen, precision=list(Precision), **options)


def fit_to_size(
    summary: Summary,
    out_features: int | None,
    bytes_per_vector: int | None,
    keep: float | None,
    objective: Objective,
    made: Pairs | None,
    labelled: Pairs | None,
    whitening: float | None,
    **settings: Any,
) -> DimReduce:
    """Choose a size where none was given, fit in closed form, and train where there is something to train on."""
    evidence = labelled if labelled is not None else made
    common: dict[str, Any] = {name: settings[name] for name in ("seed", "show_progress_bar")}
    precision, record = Precision.FLOAT32, {}
    if out_features is None:
        size: dict[str, Any] = {"bytes_per_vector": bytes_per_vector, "keep": keep}
        choice = choose(summary, objective=objective, pairs=evidence, **size, **common)
        out_features, precision = choice.best.out_features, Precision(choice.best.precision)
        record = {"choice": choice.to_dict()}
    if labelled is not None and whitening is None:
        whitening = WHITENING_BEFORE_TRAINING
    head = fit_head(summary, out_features, whitening=whitening, objective=objective, pairs=made, **settings)
    if labelled is not None:
        head = contrast_head(head, labelled, precision=precision, **common)
    elif objective is Objective.FIDELITY:
        head = distill_head(head, summary, precision=precision, **common)
    head.fitted |= {"precision": precision.value, **record}
    return head


def check_one(**arguments: object) -> None:
    """Refuse anything but exactly one argument that is not None."""
    given = [name for name, value in arguments.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"{', '.join(given) or 'nothing'} was given: give exactly one of {', '.join(arguments)}")


def _check_size(out_features: int | None, width: int, sentences: object) -> None:
    if out_features is None:
        return
    if not 1 <= out_features <= width:
        raise ValueError(f"out_features={out_features}: choose a size from 1 to {width}, what the base model gives")
    if isinstance(sentences, Sized) and len(sentences) < out_features:
        raise ValueError(f"{len(sentences)} texts cannot fit out_features={out_features}: give more, or choose fewer")


def _check_pairs(pairs: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
    if not len(pairs):
        raise ValueError("pairs is empty: give pairs of a query and the document it should find, or None")
    size = 3 if len(pairs[0]) == 3 else 2
    for row, pair in enumerate(pairs):
        if isinstance(pair, str) or len(pair) != size or not all(isinstance(text, str) for text in pair):
            asked = "a query and its document" if size == 2 else "a query, its document and one that it should not find"
            raise ValueError(f"pair {row} is {pair!r:.80}: expected {size} strings, {asked}")
    return pairs
