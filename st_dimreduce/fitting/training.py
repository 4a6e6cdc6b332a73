"""The training loop that contrastive training and distillation share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812, the name everybody gives it

from st_dimreduce.base_head import BaseHead
from st_dimreduce.codes.precision import dequantize, quantize
from st_dimreduce.enums import Precision
from st_dimreduce.progress import progress_bar

Loss = Callable[[torch.Tensor], torch.Tensor]
_EVERY, _WARM_UP = 25, 20


def train(
    head: BaseHead,
    loss: Loss,
    held_out: Loss,
    *,
    steps: int,
    learning_rate: float,
) -> tuple[BaseHead, int]:
    """Train a head's weight with Adam and a cosine schedule.

    A head with nested sizes is trained at all of them (Kusupati et al., "Matryoshka Representation Learning", 2022).

    Args:
        head: A head for vectors of norm 1, without bias.
        loss: From a weight of shape (k, d) and root mean square 1 to the loss of the next batch.
        held_out: From a weight to the loss on held-out data.
        steps: Steps to take.
        learning_rate: Greatest learning rate, for a weight of root mean square 1.

    Returns:
        The head of the step with the lowest held-out loss, at the same gain, and that step: 0 if none beat the start.
    """
    sizes = head.record.nested or (head.out_features,)

    def over_sizes(one: Loss, weight: torch.Tensor) -> torch.Tensor:
        return torch.stack([one(weight[:size]) for size in sizes]).mean()

    start = torch.tensor(head.weight)
    scale = start.square().mean().sqrt()
    weight = (start / scale).requires_grad_(True)
    optimizer = torch.optim.Adam([weight], lr=learning_rate, betas=(0.9, 0.98))
    with torch.no_grad():
        least, best, best_step = float(over_sizes(held_out, weight)), weight.detach().clone(), 0
    for step in progress_bar("Training", "steps", range(1, steps + 1)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, step / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        over_sizes(loss, weight).backward()
        optimizer.step()
        if step % _EVERY == 0 or step == steps:
            with torch.no_grad():
                now = float(over_sizes(held_out, weight))
            if now < least:
                least, best, best_step = now, weight.detach().clone(), step
    # The gain is proportional to the weight: at the same root mean square, the Tanh stays linear.
    best = best * scale / best.square().mean().sqrt()
    return replace(head, weight=best.numpy()), best_step


def read_back(embeddings: torch.Tensor, precision: Precision) -> torch.Tensor:
    """Return unit rows as decoded from their codes, with a straight-through gradient (Bengio et al., 2013)."""
    unit = F.normalize(embeddings, dim=1)
    if precision is Precision.FLOAT32:
        return unit
    rows = unit.detach().numpy()
    rounded = torch.from_numpy(dequantize(quantize(rows, precision), precision, rows.shape[1]))
    return unit + (rounded - unit).detach()


def batches(count: int, size: int, seed: int) -> Callable[[], torch.Tensor]:
    """Return a function that draws the row numbers of another batch at each call."""
    rng = np.random.default_rng(seed)
    return lambda: torch.from_numpy(rng.choice(count, min(size, count), replace=False))
