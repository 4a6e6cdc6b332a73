"""From a base model and texts to a reduced model in one call: encode, summarise, fit, attach."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from st_dimreduce.dim_reduce import head_of
from st_dimreduce.enums import Objective, Precision
from st_dimreduce.errors import UserError
from st_dimreduce.evaluation.compare import Comparison, compare_models
from st_dimreduce.fitting.cloze import cloze_question
from st_dimreduce.fitting.fit import check_objective, fit_head
from st_dimreduce.fitting.pairs import Pairs
from st_dimreduce.fitting.size import DEFAULT_DIM, Size
from st_dimreduce.models.attach import split_model, stack_head
from st_dimreduce.models.encoder import Encoder
from st_dimreduce.models.encoding import assemble
from st_dimreduce.models.load import load_model
from st_dimreduce.texts import all_same, check_texts


def reduce_model(
    model: SentenceTransformer | str | os.PathLike[str],
    texts: Iterable[str],
    size: int | Size = DEFAULT_DIM,
    *,
    objective: Objective | str = Objective.QUALITY,
    pairs: Sequence[Sequence[str]] | None = None,
    batch_size: int = 32,
    cache: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> SentenceTransformer:
    """Put a fitted head behind a base model.

    The head is fitted on the base model's embeddings of the given texts, so give texts like those it will encode:
    fitted on general texts it loses a fifth of its agreement with the base model on scientific abstracts. It goes
    behind the last module that is not ``Normalize``; a final ``Normalize`` stays last. If you already have the
    embeddings, use :meth:`st_dimreduce.Head.fit` and :meth:`st_dimreduce.Head.attach`.

    Args:
        model: The base model: a name, a path, or a ``SentenceTransformer``, which is left unchanged.
        texts: Texts to fit on, encoded with the base model's document prompt, if it has one.
        size: Size k of the reduced embeddings, or a :class:`st_dimreduce.Size`, such as ``Size(bytes=64)``. Defaults
            to 128.
        objective: ``"quality"``, to find what people look for, or ``"fidelity"``, to find what the base model finds.
            Defaults to ``"quality"``.
        pairs: Labelled pairs of a query and the document it should find, or triples with a document that it should
            not find, to train on. Without them, for quality, cloze pairs are made of up to 1,000 of the texts.
        batch_size: Texts that the base model encodes at a time; changes the head by rounding only. Defaults to 32.
        cache: Folder to cache embeddings in; :func:`st_dimreduce.compare` can share it. Defaults to None.
        seed: Seed of the sample and of the fit. Defaults to 0.

    Returns:
        A new model with the base model's prompts, similarity function and maximum length, whose head is a stock
        ``Dense``; ``Head.from_model(model)`` has its record.

    Raises:
        UserError: If there are no texts, too few for ``size``, or all are the same, or the model cannot be loaded, is
            already reduced or gives no sentence embedding.
    """
    size, objective = Size.of(size), Objective(objective)
    check_objective(objective, pairs)
    check_texts("texts", texts)
    base = model if isinstance(model, SentenceTransformer) else load_model(model)
    _check_whole(base)
    body = Encoder(assemble(base, split_model(base)[0]), batch_size, cache)
    _check_size(size, body.width, texts)
    labelled = None if pairs is None else body.pairs(_check_pairs(pairs))
    summary, drawn = body.summarize(texts, seed)
    if not summary.count:
        raise UserError("texts is empty: give texts to fit on, or fit on stored vectors with Head.fit")
    if summary.count > 1 and len(drawn) == 1:  # of an iterator, which is not checked before
        raise UserError(all_same("texts", summary.count))
    cloze = _cloze(body, drawn, seed) if objective is Objective.QUALITY and labelled is None else None
    head = fit_head(summary, size, objective=objective, pairs=labelled, cloze_pairs=cloze, seed=seed)
    return stack_head(base, head.for_norm(summary.mean_norm), trainable=False, shared=base is model)


def reduce_and_compare(
    model: SentenceTransformer | str | os.PathLike[str],
    texts: Sequence[str],
    size: int | Size = DEFAULT_DIM,
    *,
    objective: Objective | str = Objective.QUALITY,
    pairs: Sequence[Sequence[str]] | None = None,
    batch_size: int = 32,
    cache: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> tuple[SentenceTransformer, Comparison]:
    """Reduce a model on most of the texts, and measure the cost on the others.

    A tenth of the texts is held out, 100 to 1,000 but never more than a third. Each should be found by one of its
    sentences and by some of its keywords; texts that are too short for that search one another.

    Args:
        model: As in :func:`reduce_model`.
        texts: Texts to fit and measure on.
        size: As in :func:`reduce_model`.
        objective: As in :func:`reduce_model`.
        pairs: As in :func:`reduce_model`.
        batch_size: As in :func:`reduce_model`.
        cache: As in :func:`reduce_model`.
        seed: Seed of the split and the fit. Defaults to 0.

    Returns:
        The reduced model, and how it compares, in every precision, with the base model on the texts held out.

    Raises:
        UserError: As :func:`reduce_model`, or if there are too few texts to hold any out.
    """
    size, objective = Size.of(size), Objective(objective)
    check_objective(objective, pairs)
    check_texts("texts", texts)
    base = model if isinstance(model, SentenceTransformer) else load_model(model)
    _check_whole(base)
    if width := base.get_embedding_dimension():
        _check_size(size, width, None)
    texts = list(texts)
    held_out = min(max(len(texts) // 10, 100), 1000, len(texts) // 3)
    fewest = size.fewest_vectors
    if held_out < 2 or len(texts) - held_out < fewest:
        problem = f"{len(texts)} texts, {held_out} of them held out to measure on, are too few to fit {fewest}"
        raise UserError(f"{problem}: give at least {max(6, math.ceil(fewest * 1.5))}, or choose fewer dimensions")
    order = np.random.default_rng(seed).permutation(len(texts))
    unseen, seen = ([texts[i] for i in rows] for rows in (order[:held_out], order[held_out:]))
    options: dict[str, Any] = {"batch_size": batch_size, "cache": cache}
    reduced = reduce_model(base, seen, size, objective=objective, pairs=pairs, seed=seed, **options)
    question = cloze_question(unseen, seed)
    return reduced, compare_models(base, {"reduced model": reduced}, question, list(Precision), **options)


def _cloze(body: Encoder, vectors: Mapping[str, np.ndarray], seed: int) -> Pairs | None:
    try:
        return body.cloze_pairs(vectors, seed)
    except ValueError as error:
        raise UserError(f"the cloze pairs made of the texts cannot be used: {error}") from error


def _check_size(size: Size, width: int, texts: object) -> None:
    if size.dim is None:
        return
    if size.dim > width:
        raise UserError(f"dim={size.dim}: choose a size from 1 to {width}, what the base model gives")
    if isinstance(texts, Sized) and len(texts) < size.dim:
        asked = f"dim={size.dim}: give more, or choose fewer"
        raise UserError(f"{len(texts)} texts cannot fit {asked}")


def _check_whole(base: SentenceTransformer) -> None:
    """Refuse a model that ends in a fitted head: a head of a head loses more than one of the embeddings below."""
    try:
        dense, record = head_of(base)
    except ValueError:  # it has no head
        return
    if record.method is not None:
        named = f", {record.base_model}" if record.base_model else ""
        raise UserError(f"the model is already reduced, to {dense.out_features} dimensions: give its base model{named}")


def _check_pairs(pairs: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
    if not len(pairs):
        raise UserError("pairs is empty: give pairs of a query and the document it should find, or None")
    size = 3 if len(pairs[0]) == 3 else 2
    for row, pair in enumerate(pairs):
        if isinstance(pair, str) or len(pair) != size or not all(isinstance(text, str) for text in pair):
            asked = "a query and its document" if size == 2 else "a query, its document and one that it should not find"
            raise UserError(f"pair {row} is {pair!r:.80}: expected {size} strings, {asked}")
    return pairs
