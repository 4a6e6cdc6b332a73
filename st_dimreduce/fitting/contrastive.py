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
    Coding", 2018) with temperature 0.05; a pair's negative serves every query of the batch. An eighth of the pairs is
    held out, and the step with the lowest held-out loss is returned: on a few thousand pairs, training overfits within
    a hundred steps.

    Args:
        head: The head to start from, in closed form.
        pairs: Embedded pairs, 32 or more, with or without negatives.
        precision: The precision that documents will be stored in. Defaults to ``"float32"``.
        steps: Steps to take. Defaults to 200.
        learning_rate: For a weight of root mean square 1. Defaults to 0.005.
        seed: Seed of the batches and of what is held out. Defaults to 0.

    Returns:
        The head of the best step; the given head, with a warning, if there are too few pairs to hold any out.

    Raises:
        UserError: If the precision is unknown, the pairs are not of the head's width, or all of them share texts, so
            that none can be held out.
    """
    precision = Precision(precision)
    if pairs.width != head.in_features:
        raise UserError(f"pairs of {pairs.width} dimensions for a head of {head.in_features}: expected the same")
    if len(pairs) < FEWEST_PAIRS:
        warnings.warn(
            f"{len(pairs)} pairs are too few to train on, {FEWEST_PAIRS} are needed: the head is not trained",
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
    """Return the contrastive loss of a weight on the pairs that are drawn."""
    ids = [torch.from_numpy(each) for each in pairs.ids()]
    queries, documents = torch.from_numpy(pairs.queries), torch.from_numpy(pairs.documents)
    negatives = None if pairs.negatives is None else torch.from_numpy(pairs.negatives)

    def loss(weight: torch.Tensor) -> torch.Tensor:
        rows = draw()
        reduced = F.normalize(queries[rows] @ weight.T, dim=1)
        scores = reduced @ read_back(documents[rows] @ weight.T, precision).T / _TEMPERATURE
        # A query or a document that occurs twice in the batch is not a negative of itself.
        equal = torch.stack([each[rows, None] == each[rows] for each in ids]).any(dim=0)
        scores = scores.masked_fill(equal & ~torch.eye(len(rows), dtype=torch.bool), -torch.inf)
        labels, to_documents = torch.arange(len(rows)), scores
        if negatives is not None:
            hard = reduced @ read_back(negatives[rows] @ weight.T, precision).T / _TEMPERATURE
            to_documents = torch.cat([scores, hard], dim=1)
        return (F.cross_entropy(to_documents, labels) + F.cross_entropy(scores.T, labels)) / 2

    return loss
