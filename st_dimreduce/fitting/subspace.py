"""The closed-form head: a subspace, whitened by what the evidence says is noise, rotated."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from scipy.linalg import eigh

from st_dimreduce.choice import Choice
from st_dimreduce.dim_reduce import DimReduce
from st_dimreduce.fitting.pairs import Pairs
from st_dimreduce.progress import progress_bar
from st_dimreduce.summary import Summary

Rotation = Literal["itq", "random"]

FEWEST_PAIRS = 200  # fewer say too little about a covariance of hundreds of dimensions
_PAIR_POWER, _PAIR_RIDGE = 0.35, 0.5
_ITQ_ROWS, _ITQ_STEPS = 8192, 40
_WIDE = 4096  # dimensions from which on finding fewer directions than all saves seconds
_RANK_FLOOR = 1e-7  # of the largest eigenvalue: below it float32 vectors hold rounding noise only


class Objective(Choice):
    """What a head is to keep: what people look for, or the base model's own neighbours."""

    QUALITY = "quality"
    FIDELITY = "fidelity"


DEFAULT_WHITENING = {Objective.QUALITY: 0.1, Objective.FIDELITY: 0.0}


def fit_head(
    summary: Summary,
    out_features: int = 128,
    *,
    whitening: float | None = None,
    rotation: Rotation | None = "itq",
    gain: float = 0.1,
    seed: int = 0,
    objective: Objective | str = Objective.QUALITY,
    pairs: Pairs | None = None,
    nested: Sequence[int] | None = None,
    show_progress_bar: bool | None = None,
) -> DimReduce:
    """Fit a head in closed form: the best subspace for cosines, partly whitened, rotated, through a Tanh.

    The subspace is that of the largest eigenvalues of the Gram matrix, *not* centred: centring subtracts the mean from
    every vector before its cosine is taken, and loses 5 to 14 points of neighbour overlap by it. For quality the one
    direction of the mean, which all vectors share, is projected out instead, and the others are whitened in part:
    sentence embeddings crowd into few directions that say little about meaning. Where there are pairs, directions
    in which the two texts of a pair differ are damped first (within-class whitening with a ridge; Fukunaga,
    "Introduction to Statistical Pattern Recognition", 1990, chapter 10): they change while the subject stays.
    The rotation spreads the variance evenly over the outputs, so that one grid quantises all of them (ITQ; Gong et al.,
    "Iterative Quantization", CVPR 2011). With a small gain the Tanh is nearly linear and loses nothing.

    Args:
        summary: Summary of vectors of size d.
        out_features: Size k of the output, 1 to d and at most the number of vectors. Defaults to 128.
        whitening: Power p in [0, 1] by which direction i is divided, (eigenvalue i)^p; 1/2 whitens fully. Defaults to
            0.1 for quality, the most that never lost any on a corpus it was measured on, and to 0 for fidelity.
        rotation: ``"itq"``, ``"random"`` (nearly as good, faster), or None for the bare eigenvectors. Defaults to
            ``"itq"``.
        gain: Root mean square of the Tanh's input over the sample, greater than 0. Defaults to 0.1.
        seed: Seed of the rotation. Defaults to 0.
        objective: ``"quality"`` for what people look for, or ``"fidelity"`` for the base model's own neighbours.
            Defaults to ``"quality"``.
        pairs: Embedded pairs, for quality only: labelled, or made of the corpus itself. Fewer than 200 are not used.
        nested: Sizes at which outputs may be cut, ascending, such as ``(64, 128, 256)``; the last is ``out_features``.
            The rotation stays within the blocks between them, so that the first 64 outputs are those of a head fitted
            for 64. In multiples of 8, codes can be cut there too. Costs where few bits are stored: later blocks vary
            less than the first, and one grid serves them all. Defaults to None: one block.
        show_progress_bar: Whether to show progress; only on a terminal if None (the default).

    Returns:
        A ``DimReduce(d, out_features, bias=False)`` for vectors of length 1.

    Raises:
        ValueError: If an argument is out of range, or there are fewer vectors than ``out_features``.
    """
    objective = Objective(objective)
    whitening = DEFAULT_WHITENING[objective] if whitening is None else whitening
    blocks = (0, *(nested or [out_features]))
    _check(summary, out_features, whitening, rotation, gain)
    if blocks[-1] != out_features or any(size >= larger for size, larger in pairwise(blocks)):
        raise ValueError(f"nested={nested}: give ascending sizes, of which the last is out_features={out_features}")
    if pairs is not None and pairs.width != summary.width:
        raise ValueError(f"pairs of {pairs.width} dimensions for a summary of {summary.width}: expected equal widths")
    paired = usable_pairs(objective, pairs)
    projection = directions(summary, objective, paired, whitening, out_features)[:, :out_features]
    sample = summary.sample
    if rotation is not None:
        rows = sample[:_ITQ_ROWS] @ projection.astype(np.float32)
        for block in (slice(*ends) for ends in pairwise(blocks)):
            projection[:, block] = projection[:, block] @ rotate(rows[:, block], rotation, seed, show_progress_bar)
    outputs = sample @ projection.astype(np.float32)
    weight = projection.T * (gain / np.sqrt(np.mean(np.square(outputs, dtype=np.float64))))
    head = DimReduce(summary.width, out_features, bias=False, init_weight=torch.from_numpy(weight.astype(np.float32)))
    head.fitted = {
        "method": "subspace",
        "objective": objective.value,
        "whitening": whitening,
        "pairs": len(paired) if paired is not None else 0,
        "rotation": rotation,
        **({"nested": list(nested)} if nested else {}),
        "gain": gain,
        "seed": seed,
        "vectors": summary.count,
    }
    return head


def _check(summary: Summary, out_features: int, whitening: float, rotation: str | None, gain: float) -> None:
    if not 1 <= out_features <= summary.width:
        raise ValueError(f"out_features={out_features}: choose a size from 1 to in_features={summary.width}")
    if summary.count < out_features:
        raise ValueError(f"{summary.count} vectors cannot fit out_features={out_features}: give more, or choose fewer")
    if not 0 <= whitening <= 1:
        raise ValueError(f"whitening={whitening}: choose a power from 0 (none) to 1")
    if not gain > 0:
        raise ValueError(f"gain={gain}: choose a root mean square greater than 0, such as 0.1")
    if rotation not in ("itq", "random", None):
        raise ValueError(f"rotation={rotation!r}: choose 'itq', 'random' or None")


def _without_mean(summary: Summary) -> np.ndarray | None:
    """Projector (d, d) that drops the direction of the mean; None where that direction is one among many."""
    square = float(summary.mean @ summary.mean)
    if not 2 / summary.width < square < 1 - _RANK_FLOOR:
        return None
    return np.eye(summary.width) - np.outer(summary.mean, summary.mean) / square


def _damping(pairs: Pairs) -> np.ndarray:
    """Symmetric (d, d) matrix that damps the directions in which the two texts of a pair differ."""
    apart = (pairs.queries - pairs.documents).astype(np.float64)
    within = apart.T @ apart / (2 * len(pairs))
    size = len(within)
    values, vectors = np.linalg.eigh(within + _PAIR_RIDGE * max(np.trace(within), _RANK_FLOOR) / size * np.eye(size))
    return vectors * values**-_PAIR_POWER @ vectors.T


def usable_pairs(objective: Objective, pairs: Pairs | None) -> Pairs | None:
    """Return the pairs if the objective asks for them and they are enough to tell a covariance by."""
    return pairs if objective is Objective.QUALITY and pairs is not None and len(pairs) >= FEWEST_PAIRS else None


def directions(
    summary: Summary, objective: Objective, pairs: Pairs | None, whitening: float, count: int | None = None
) -> np.ndarray:
    """Directions, the one to keep first in front, each divided by its eigenvalue^whitening: columns of (d, d).

    Where d is large and only ``count`` are needed, others may be left out.
    """
    gram, metric = summary.gram, _without_mean(summary) if objective is Objective.QUALITY else None
    if pairs is not None:
        metric = _damping(pairs) if metric is None else metric @ _damping(pairs)
    values, vectors = _eigen(gram if metric is None else metric.T @ gram @ metric, count or summary.width)
    # The sign of an eigenvector is arbitrary; fixed, the same summary gives the same head on every machine.
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))])
    vectors = vectors if metric is None else metric @ vectors
    return vectors * np.maximum(values, _RANK_FLOOR * values[0]) ** -whitening


def _eigen(matrix: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors of a symmetric matrix, the largest first: all, or ``count`` of a wide matrix."""
    size = len(matrix)
    if count < size and size > _WIDE:
        values, vectors = eigh(matrix, subset_by_index=[size - count, size - 1])
    else:
        values, vectors = np.linalg.eigh(matrix)
    return values[::-1], vectors[:, ::-1]


def rotate(rows: np.ndarray, kind: Rotation, seed: int, shown: bool | None = False) -> np.ndarray:
    """Orthogonal (k, k) matrix: random, or turned until the signs of the rows, shape (n, k), say most about them."""
    size = rows.shape[1]
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0].astype(np.float32)
    if kind == "itq":
        centred = rows - rows.mean(axis=0)
        for _ in progress_bar("Rotating", "steps", shown, range(_ITQ_STEPS)):
            left, _, right = np.linalg.svd(centred.T @ np.sign(centred @ rotation))
            rotation = left @ right
    return rotation
