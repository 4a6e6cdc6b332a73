"""From a summary to a head: choose a size, fit in closed form, and train where there is something to train on."""

from __future__ import annotations

from typing import Any

import numpy as np

from st_dimreduce.base_head import BaseHead
from st_dimreduce.enums import Objective, Precision
from st_dimreduce.errors import UserError
from st_dimreduce.fitting.budget import choose
from st_dimreduce.fitting.closed_form import closed_form_head
from st_dimreduce.fitting.evidence import Evidence
from st_dimreduce.fitting.pairs import Pairs
from st_dimreduce.fitting.reference import with_reference
from st_dimreduce.fitting.size import DEFAULT_DIM, Size
from st_dimreduce.fitting.summary import Summary

WHITENING_BEFORE_TRAINING = 0.2  # too much for an untrained head, but a better start for training
_SAME = 1e-6  # difference between entries of unit vectors that may be rounding


def fit_head(
    summary: Summary,
    size: int | Size = DEFAULT_DIM,
    *,
    objective: Objective | str = Objective.QUALITY,
    pairs: Pairs | None = None,
    cloze_pairs: Pairs | None = None,
    strength: float | None = None,
    seed: int = 0,
) -> BaseHead:
    """Fit a head on a summary of embeddings.

    Without labels and for quality, the fit is in closed form (:mod:`st_dimreduce.fitting.closed_form`) and takes
    seconds. Labelled pairs then train it contrastively, and for fidelity it is distilled from the base model's
    cosines; both need torch. What the head loses on vectors held out from the fit is the ``reference`` in its record,
    for :meth:`st_dimreduce.Head.drift`; not where there are fewer than 400 vectors.

    Args:
        summary: Summary of embeddings of size d.
        size: Size k of the reduced embeddings, or a :class:`st_dimreduce.Size`: a byte budget, a share to keep, or
            nested sizes. At most d and the number of embeddings. Defaults to 128.
        objective: ``"quality"``, to find what people look for, or ``"fidelity"``, to find what the base model finds.
            Defaults to ``"quality"``.
        pairs: Labelled pairs, embedded, to train on; 32 or more. For quality only.
        cloze_pairs: Cloze pairs of the corpus, embedded, 200 or more. For quality, the directions in which the two
            sides of a pair differ are damped, as strongly as held-out pairs suggest. Ignored if there are labelled
            pairs.
        strength: How far quality departs from fidelity, 0 (not at all) to 2: damping to the power 0.35 x strength,
            whitening of 0.1 x strength, and, above 0, the direction of the mean removed. Defaults to None: the
            smallest of 0.25 to 1.25 that is as good as the best on held-out cloze pairs, or 0 if none beats fidelity;
            1 if there are no cloze pairs.
        seed: Seed of the rotation, of what is held out and of training. Defaults to 0.

    Returns:
        A head of shape (k, d) without bias, for vectors of the summary's mean norm, ``head.record.mean_norm``.

    Raises:
        UserError: If an argument is out of range, there are fewer vectors than ``size``, or labelled pairs are given
            for fidelity.
    """
    size, objective = Size.of(size), Objective(objective)
    check_objective(objective, pairs)
    if summary.count > 1 and np.ptp(summary.sample, axis=0).max() < _SAME:
        raise UserError(f"all {summary.count:,} vectors point the same way: give vectors of texts that differ")
    if objective is Objective.FIDELITY:
        strength = 0.0
    if objective is Objective.FIDELITY or pairs is not None:
        cloze_pairs = None
    out_features, precision, choice = size.dim, Precision(size.precision or Precision.FLOAT32), None
    if out_features is None:
        given: dict[str, Any] = {"pairs": pairs, "cloze_pairs": cloze_pairs, "strength": strength, "seed": seed}
        choice = choose(summary, size, objective=objective, **given)
        strength = choice.strength
        out_features, precision = choice.best.out_features, Precision(choice.best.precision)
    elif strength is None:
        strength = Evidence(summary, objective, pairs, cloze_pairs, seed).best_strength(out_features)
    start = closed_form_head(
        summary,
        out_features,
        nested=size.nested,
        cloze_pairs=cloze_pairs,
        strength=strength,
        whitening=None if pairs is None else WHITENING_BEFORE_TRAINING,
        seed=seed,
    ).with_record(
        objective=objective.value,
        precision=precision,
        strength=strength if objective is Objective.QUALITY else None,
        choice=None if choice is None else choice.to_dict(),
    )
    head = start
    if pairs is not None:
        from st_dimreduce.fitting.contrastive import contrast_head  # noqa: PLC0415, needs torch

        head = contrast_head(start, pairs, precision=precision, seed=seed)
    elif objective is Objective.FIDELITY:
        from st_dimreduce.fitting.distillation import distill_head  # noqa: PLC0415, needs torch

        head = distill_head(start, summary, precision=precision, seed=seed)
    return with_reference(head, start, summary, cloze_pairs).for_norm(summary.mean_norm)


def check_objective(objective: Objective, pairs: object) -> None:
    """Raise ``UserError`` if labelled pairs are given for fidelity."""
    if pairs is not None and objective is Objective.FIDELITY:
        raise UserError("pairs train for quality, objective='fidelity' is for the base model's neighbours: drop one")
