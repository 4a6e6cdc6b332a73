"""Contrastive training of a head on labelled pairs."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch.nn import functional as F  # noqa: N812, the name everybody gives it

from st_dimreduce.base_head import BaseHead
from st_dimreduce.enums import Precision
from st_dimreduce.errors import UserError
from st_dimreduce.fitting.pairs import Pairs
from st_dimreduce.fitting.training import Loss, batches, read_back, train

FEWEST_PAIRS = 32
_BATCH, _TEMPERATURE, _HELD_OUT = 1024, 0.05, 1 / 8


def contrast_head(
    head: BaseHead,
    pairs: Pairs,
    *,
    precision: Precision | str = Precision.FLOAT32,
    steps: int = 200,
    learning_rate: float = 5e-3,
    seed: int = 0,
) -> BaseHead:
    """Train a head on labelled pairs of embeddings, with in-batch negatives.

    The symmetric contrastive loss (InfoNCE; van den Oord et al., "Representation Learning with Contrastive Predictive
    Coding", 2018) with temperature 0.05; a pair's negative is one for every query of the batch. An eighth of the pairs
    is held out, and the step with the lowest loss on them is kept: on a few thousand pairs, training overfits within a
    hundred steps.

    Args:
        head: The head to start from, in closed form.
        pairs: Embedded pairs, 32 or more, with or without negatives.
        precision: The precision that documents will be stored in. Defaults to ``"float32"``.
        steps: Steps to take. Defaults to 200.
        learning_rate: For a weight of root mean square 1. Defaults to 0.005.
        seed: Seed of the batches and of what is held out. Defaults to 0.

    Returns:
        The head of the best step; the one given, with a warning, where there are too few pairs to hold any out.

    Raises:
        ValueError: If the precision is unknown, the pairs are not of the head's width, or all of them share texts, so
            that none can be held out.
    """
    precision = Precision(precision)
    if pairs.width != head.in_features:
        raise UserError(f"pairs of {pairs.width} dimensions for a head of {head.in_features}: expected the same")
    if len(pairs) < FEWEST_PAIRS:
        warnings.warn(
            f"{len(pairs)} pairs are too few to train on, {FEWEST_PAIRS} are needed: the head stays as it was",
            stacklevel=2,
        )
        return head
    seen, unseen = pairs.split(_HELD_OUT, seed)
    draw = batches(len(seen), _BATCH, seed)

    trained, step = train(
        head,
        _loss(seen, precision, draw),
        _loss(unseen, precision, lambda: torch.arange(len(unseen))),
        steps=steps,
        learning_rate=learning_rate,
    )
    return trained.with_record(labelled_pairs=len(pairs), trained_steps=step)


def _loss(pairs: Pairs, precision: Precision, draw: Callable[[], torch.Tensor]) -> Loss:
    """The contrastive loss of a weight on the pairs that are drawn."""
    same = [torch.from_numpy(numbers) for numbers in pairs.same()]
    queries, documents = torch.from_numpy(pairs.queries), torch.from_numpy(pairs.documents)
    negatives = None if pairs.negatives is None else torch.from_numpy(pairs.negatives)

    def loss(weight: torch.Tensor) -> torch.Tensor:
        rows = draw()
        asked = F.normalize(queries[rows] @ weight.T, dim=1)
        scores = asked @ read_back(documents[rows] @ weight.T, precision).T / _TEMPERATURE
        # A query or a document that occurs twice in the batch is no negative of itself.
        twice = torch.stack([numbers[rows, None] == numbers[rows] for numbers in same]).any(dim=0)
        scores = scores.masked_fill(twice & ~torch.eye(len(rows), dtype=torch.bool), -torch.inf)
        right, forth = torch.arange(len(rows)), scores
        if negatives is not None:
            wrong = asked @ read_back(negatives[rows] @ weight.T, precision).T / _TEMPERATURE
            forth = torch.cat([scores, wrong], dim=1)
        return (F.cross_entropy(forth, right) + F.cross_entropy(scores.T, right)) / 2

    return loss
