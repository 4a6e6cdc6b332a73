"""From a base model and texts to a reduced model in one call: encode, summarise, fit, attach."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from st_dimreduce.dim_reduce import head_of
from st_dimreduce.enums import Objective, Precision, Store
from st_dimreduce.evaluation.compare import Comparison, compare
from st_dimreduce.evaluation.encoding import assemble
from st_dimreduce.fitting.budget import Size
from st_dimreduce.fitting.cloze import cloze_question
from st_dimreduce.fitting.fit import check_objective, fit_head
from st_dimreduce.fitting.pairs import Pairs
from st_dimreduce.fitting.summary import Summary
from st_dimreduce.models.attach import split_model, stack_head
from st_dimreduce.models.encoder import Encoder
from st_dimreduce.models.load import load_model
from st_dimreduce.texts import all_same, check_texts


def reduce_model(
    model: SentenceTransformer | str | os.PathLike[str],
    sentences: Iterable[str] | None = None,
    out_features: int | None = None,
    *,
    bytes_per_vector: int | None = None,
    keep: float | None = None,
    nested: Sequence[int] | None = None,
    store: Store | str | None = None,
    precision: Precision | str | None = None,
    objective: Objective | str = Objective.QUALITY,
    pairs: Sequence[Sequence[str]] | None = None,
    embeddings: np.ndarray | None = None,
    summary: Summary | None = None,
    seed: int = 0,
    trainable: bool = False,
    batch_size: int = 32,
    show_progress_bar: bool | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> SentenceTransformer:
    """Put a fitted head behind a base model.

    The head is fitted on the base model's embeddings of the given texts, so give texts like those it will encode:
    fitted on general sentences it loses a fifth of its agreement with the base model on scientific abstracts. It
    stands behind the last module that is not ``Normalize``, and a ``Normalize`` at the end stays at the end. For more
    control over the fit, call :func:`st_dimreduce.fit_head` and :func:`st_dimreduce.attach_head`.

    Args:
        model: The base model: a name, a path, or a ``SentenceTransformer``, which is left unchanged.
        sentences: Texts to fit on, encoded with the base model's document prompt, if it has one.
        out_features: Size k of the reduced embeddings. Defaults to 128, where no other size is given.
        bytes_per_vector: Bytes per stored vector, in place of ``out_features``: takes the dimension and the precision,
            ``load_head(path).precision``, that find most within it on held-out data.
        keep: Share in (0, 1] of what the base model finds on held-out data, in place of ``out_features``: takes the
            smallest dimension and precision that keep it.
        nested: Sizes at which the reduced embeddings may be truncated (``truncate_dim``), such as ``(64, 128, 256)``,
            in place of ``out_features``.
        store: The vector store, such as ``"pgvector"``, to which ``bytes_per_vector`` or ``keep`` is restricted; see
            :class:`st_dimreduce.Size`.
        precision: Precision that the vectors will be stored in; see :class:`st_dimreduce.Size`. Defaults to None: what
            a budget finds best, float32 with a dimension.
        objective: ``"quality"``, to find what people look for, or ``"fidelity"``, to find what the base model finds.
            Defaults to ``"quality"``.
        pairs: Labelled pairs of a query and the document it should find, or triples with a document that it should
            not find, to train on. Without them, for quality, cloze pairs are made of up to 1,000 of the texts.
        embeddings: The base model's embeddings, array of shape (n, d), in place of encoding the sentences. Give
            ``sentences`` as well where you have them: for quality, cloze pairs are made of them. Where row i is the
            embedding of sentence i, only queries are encoded; else the texts that they were taken from as well.
        summary: A summary of the base model's embeddings, in place of ``embeddings``.
        seed: Seed of the sample and of the fit. Defaults to 0.
        trainable: Whether to stack the head as a ``DimReduce``, to be trained, instead of the stock ``Dense``, which
            loads without a flag. Defaults to False.
        batch_size: Texts the base model encodes at a time; the head is the same for every size, but for rounding.
            Defaults to 32.
        show_progress_bar: Whether to show progress; only on a terminal if None (the default).
        cache: Folder to keep embeddings in, and to take those from that are there; :func:`st_dimreduce.compare` can
            share it. Defaults to None.

    Returns:
        A new model with the base model's prompts, similarity function and maximum length.

    Raises:
        ValueError: If there is nothing to fit on, all sentences are the same, both ``embeddings`` and ``summary`` are
            given, it does not fit the model or is too little for ``out_features``, or the model cannot be loaded, is
            reduced already or gives no sentence embedding.
    """
    size, objective = Size(out_features, bytes_per_vector, keep, nested, store, precision), Objective(objective)
    check_objective(objective, pairs)
    check_texts("sentences", sentences)
    if sentences is None or embeddings is not None or summary is not None:
        given = [name for name, value in (("embeddings", embeddings), ("summary", summary)) if value is not None]
        if len(given) != 1:
            said = " and ".join(given) or "nothing"
            raise ValueError(f"{said} was given to fit on: give sentences, or exactly one of embeddings and summary")
    base = model if isinstance(model, SentenceTransformer) else load_model(model)
    _check_whole(base)
    body = Encoder(assemble(base, split_model(base)[0]), batch_size, show_progress_bar, cache)
    _check_size(size, body.width, sentences)
    labelled = None if pairs is None else body.pairs(_check_pairs(pairs))

    drawn: Mapping[str, np.ndarray] | Sequence[str]
    if embeddings is None and summary is None:
        summary, drawn = body.summarize(() if sentences is None else sentences, seed)
        norm = summary.mean_norm
    else:
        drawn = [] if sentences is None else list(sentences)
        if summary is None:
            rows = np.asanyarray(embeddings)  # a mask is kept, and refused
            summary = Summary.of(rows, seed=seed)
            if summary.width == body.width and drawn and objective is Objective.QUALITY and labelled is None:
                drawn = body.known(drawn, rows) or drawn
        if summary.width != body.width:
            raise ValueError(f"vectors of {summary.width} dimensions were given, expected the model's {body.width}")
        # Stored vectors are usually normalised: only the model tells their norm before that.
        norm = body.probe_norm
    if summary.count > 1 and len(drawn) == 1:  # of texts that could be read but once
        raise ValueError(all_same("sentences", summary.count))
    cloze = _cloze(body, drawn, seed) if objective is Objective.QUALITY and labelled is None else None
    head = fit_head(
        summary,
        size,
        objective=objective,
        pairs=labelled,
        cloze_pairs=cloze,
        seed=seed,
        show_progress_bar=show_progress_bar,
    )
    return stack_head(base, head.for_norm(norm), trainable=trainable, shared=base is model)


def reduce_and_compare(
    model: SentenceTransformer | str | os.PathLike[str],
    sentences: Sequence[str],
    size: Size,
    *,
    objective: Objective | str = Objective.QUALITY,
    pairs: Sequence[Sequence[str]] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    show_progress_bar: bool | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> tuple[SentenceTransformer, Comparison]:
    """Reduce a model on most of the texts, and measure what it cost on the others.

    A tenth of the texts, at most 1,000 and at least 100, is held out (never more than a third). Each of these is to be
    found by one of its sentences and by some of its keywords; where they are too short, they search one another.

    Args:
        model: As in :func:`reduce_model`.
        sentences: Texts to fit and measure on.
        size: The size to reduce to.
        objective: As in :func:`reduce_model`.
        pairs: As in :func:`reduce_model`.
        seed: Seed of the split and the fit. Defaults to 0.
        batch_size: As in :func:`reduce_model`.
        show_progress_bar: As in :func:`reduce_model`.
        cache: As in :func:`reduce_model`.

    Returns:
        The reduced model, and how it compares, in every precision, with the base model on the texts held out.

    Raises:
        ValueError: As :func:`reduce_model`, or if there are too few texts to hold any out.
    """
    objective = Objective(objective)
    check_objective(objective, pairs)
    check_texts("sentences", sentences)
    base = model if isinstance(model, SentenceTransformer) else load_model(model)
    _check_whole(base)
    if width := base.get_embedding_dimension():
        _check_size(size, width, None)
    texts = list(sentences)
    held_out = min(max(len(texts) // 10, 100), 1000, len(texts) // 3)
    fewest = size.fewest_vectors
    if held_out < 2 or len(texts) - held_out < fewest:
        asked = f"{len(texts)} texts, {held_out} of them held out to measure on, are too few to fit {fewest}"
        raise ValueError(f"{asked}: give at least {max(6, math.ceil(fewest * 1.5))}, or choose fewer dimensions")
    order = np.random.default_rng(seed).permutation(len(texts))
    unseen, seen = ([texts[i] for i in rows] for rows in (order[:held_out], order[held_out:]))
    options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": show_progress_bar, "cache": cache}
    reduced = reduce_model(base, seen, **size.arguments, objective=objective, pairs=pairs, seed=seed, **options)
    question = cloze_question(unseen, seed)
    options["precision"] = list(Precision)
    return reduced, compare(base, reduced, unseen, question.queries, question.relevant, **options)


def _cloze(body: Encoder, texts: Mapping[str, np.ndarray] | Sequence[str], seed: int) -> Pairs | None:
    try:
        return body.cloze_pairs(texts, seed)
    except ValueError as error:
        raise ValueError(f"the cloze pairs made of the sentences cannot be used: {error}") from error


def _check_size(size: Size, width: int, sentences: object) -> None:
    if size.out_features is None:
        return
    if size.out_features > width:
        raise ValueError(
            f"out_features={size.out_features}: choose a size from 1 to {width}, what the base model gives"
        )
    if isinstance(sentences, Sized) and len(sentences) < size.out_features:
        asked = f"out_features={size.out_features}: give more, or choose fewer"
        raise ValueError(f"{len(sentences)} texts cannot fit {asked}")


def _check_whole(base: SentenceTransformer) -> None:
    """Refuse a model that ends in a fitted head: a head of a head loses more than one of the embeddings below."""
    try:
        dense, record = head_of(base)
    except ValueError:  # it has no head
        return
    if record.method is not None:
        named = f", {record.base_model}" if record.base_model else ""
        raise ValueError(
            f"the model is already reduced, to {dense.out_features} dimensions: give its base model{named}"
        )


def _check_pairs(pairs: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
    if not len(pairs):
        raise ValueError("pairs is empty: give pairs of a query and the document it should find, or None")
    size = 3 if len(pairs[0]) == 3 else 2
    for row, pair in enumerate(pairs):
        if isinstance(pair, str) or len(pair) != size or not all(isinstance(text, str) for text in pair):
            asked = "a query and its document" if size == 2 else "a query, its document and one that it should not find"
            raise ValueError(f"pair {row} is {pair!r:.80}: expected {size} strings, {asked}")
    return pairs
