"""Similarity distillation: training a head to rank cosines as the base model does."""

from __future__ import annotations

import warnings

import torch
from torch.nn import functional as F  # noqa: N812, the name everybody gives it

from st_dimreduce.base_head import BaseHead
from st_dimreduce.enums import Precision
from st_dimreduce.errors import UserError
from st_dimreduce.fitting.summary import Summary
from st_dimreduce.fitting.training import batches, read_back, train

FEWEST_VECTORS = 64
_BATCH, _HELD_OUT, _TEMPERATURE = 1024, 1000, 0.05


def distill_head(
    head: BaseHead,
    summary: Summary,
    *,
    precision: Precision | str = Precision.FLOAT32,
    steps: int = 150,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> BaseHead:
    """Train a head so that, within a batch, its cosines rank as the base model's do.

    The softmax of each row of the base model's cosines, at temperature 0.05, is the target distribution of the reduced
    ones (similarity-preserving distillation; Tung and Mori, ICCV 2019). For fidelity only: it restores the cosines that
    whitening changed on purpose, so quality may drop.

    Args:
        head: The head to start from, in closed form.
        summary: Summary of the base model's vectors, of which the sample is used, an eighth at most held out.
        precision: The precision that documents will be stored in, so that the head learns to round well. Defaults to
            ``"float32"``.
        steps: Steps to take. Defaults to 150.
        learning_rate: For a weight of root mean square 1. Defaults to 0.003.
        seed: Seed of the batches. Defaults to 0.

    Returns:
        The head of the best step; the given head, with a warning, if there are fewer than 64 vectors.

    Raises:
        UserError: If the precision is unknown or the summary is not of the head's width.
    """
    precision = Precision(precision)
    if summary.width != head.in_features:
        raise UserError(f"a summary of {summary.width} dimensions for a head of {head.in_features}: expected the same")
    sample = torch.from_numpy(summary.sample)
    if len(sample) < FEWEST_VECTORS:
        warnings.warn(
            f"{len(sample)} vectors are too few to distil from, {FEWEST_VECTORS} are needed: the head is not trained",
            stacklevel=2,
        )
        return head
    count = min(_HELD_OUT, len(sample) // 8)
    held, rows = sample[:count], sample[count:]
    draw = batches(len(rows), _BATCH, seed)

    def divergence(weight: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        itself = torch.eye(len(batch), dtype=torch.bool)
        target = (batch @ batch.T / _TEMPERATURE).masked_fill(itself, -1e4).softmax(dim=1)
        reduced = batch @ weight.T
        cosines = F.normalize(reduced, dim=1) @ read_back(reduced, precision).T
        given = (cosines / _TEMPERATURE).masked_fill(itself, -1e4).log_softmax(dim=1)
        return -(target * given).sum(dim=1).mean()

    trained, step = train(
        head,
        lambda weight: divergence(weight, rows[draw()]),
        lambda weight: divergence(weight, held),
        steps=steps,
        learning_rate=learning_rate,
    )
    return trained.with_record(distilled_steps=step)
