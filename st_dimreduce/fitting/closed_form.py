"""The closed-form fit: a subspace, partly whitened, rotated."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy.linalg import LinAlgError, eigh

from st_dimreduce.base_head import BaseHead
from st_dimreduce.errors import UserError
from st_dimreduce.fitting.pairs import Pairs
from st_dimreduce.fitting.summary import Summary
from st_dimreduce.progress import progress_bar
from st_dimreduce.record import FitRecord

Rotation = Literal["itq", "random"]

GAIN = 0.03  # behind Pooling the norm of a short query may be three times the mean
DEFAULT_STRENGTH, MOST_STRENGTH = 1.0, 2.0
FEWEST_PAIRS = 200  # fewer are too few to estimate a covariance of hundreds of dimensions
_PAIR_POWER, _PAIR_RIDGE, _WHITENING = 0.35, 0.5, 0.1  # the powers at strength 1
_ITQ_ROWS, _ITQ_STEPS = 8192, 40
_ITQ_SHARPNESS = 2.0  # slope of the smoothed sign at 0, for values of root mean square 1
_WIDE = 4096  # dimensions from which on computing only some eigenvectors saves seconds
_RANK_FLOOR = 1e-7  # share of the largest eigenvalue below which float32 vectors hold only rounding noise
_PACKAGES = ("st_dimreduce", "sentence-transformers", "transformers", "torch", "numpy")  # whose versions are recorded


def closed_form_head(
    summary: Summary,
    out_features: int = 128,
    *,
    nested: Sequence[int] | None = None,
    cloze_pairs: Pairs | None = None,
    strength: float = DEFAULT_STRENGTH,
    whitening: float | None = None,
    rotation: Rotation | None = "itq",
    seed: int = 0,
) -> BaseHead:
    """Fit a head in closed form: the best subspace for cosines, partly whitened, rotated, through a Tanh.

    The subspace is that of the largest eigenvalues of the Gram matrix, *not* centred: centring subtracts the mean from
    every vector before its cosine is taken, which costs 5 to 14 points of neighbour overlap. For quality the direction
    of the mean, which all vectors share, is projected out instead, and the others are partly whitened: sentence
    embeddings vary most along a few directions that carry little meaning. Given cloze pairs, the directions in which
    the two sides of a pair differ are damped first (within-class whitening with a ridge; Fukunaga, "Introduction to
    Statistical Pattern Recognition", 1990, chapter 10). The rotation spreads the variance evenly over the outputs, so
    that one grid quantises all of them (ITQ; Gong et al., "Iterative Quantization", CVPR 2011). At a small gain the
    Tanh is nearly linear and loses nothing.

    Args:
        summary: Summary of vectors of size d.
        out_features: Size k of the output, 1 to d and at most the number of vectors. Defaults to 128.
        nested: As in :class:`st_dimreduce.Size`. The rotation stays within the blocks between the sizes, so that the
            first 64 outputs are those of a head fitted for 64. Costs quality at few bits: later blocks vary less than
            the first, and one grid serves them all. Defaults to None: one block.
        cloze_pairs: Cloze pairs, embedded; fewer than 200 are not used. Defaults to None.
        strength: How far the fit departs from fidelity, 0 (not at all) to 2. Defaults to 1.
        whitening: Power p in [0, 1] by which direction i is divided, (eigenvalue i)^p; 1/2 whitens fully. Defaults to
            None: 0.1 x strength.
        rotation: ``"itq"`` (the default), ``"random"`` (nearly as good, faster), or None for the bare eigenvectors.
        seed: Seed of the rotation. Defaults to 0.

    Returns:
        A head of shape (k, d) without bias, for vectors of norm 1.

    Raises:
        UserError: If an argument is out of range, or there are fewer vectors than ``out_features``.
    """
    whitening = _WHITENING * strength if whitening is None else whitening
    blocks = (0, *(nested or [out_features]))
    _check(summary, out_features, strength, whitening, rotation)
    if blocks[-1] != out_features or any(size >= larger for size, larger in pairwise(blocks)):
        raise UserError(f"nested={nested}: give ascending sizes, of which the last is dim={out_features}")
    if cloze_pairs is not None and cloze_pairs.width != summary.width:
        widths = f"pairs of {cloze_pairs.width} dimensions for a summary of {summary.width}"
        raise UserError(f"{widths}: expected equal widths")
    used = usable_pairs(cloze_pairs)
    projection = directions(summary, used, strength, whitening, out_features)[:, :out_features]
    sample = summary.sample
    if rotation is not None:
        rows = sample[:_ITQ_ROWS] @ projection.astype(np.float32)
        for block in (slice(*ends) for ends in pairwise(blocks)):
            projection[:, block] = projection[:, block] @ rotate(rows[:, block], rotation, seed)
    outputs = sample @ projection.astype(np.float32)
    weight = projection.T * (GAIN / np.sqrt(np.mean(np.square(outputs, dtype=np.float64))))
    record = FitRecord(
        mean_norm=1.0,
        nested=tuple(nested) if nested else None,
        method="subspace",
        vectors=summary.count,
        cloze_pairs=0 if used is None else len(used),
        strength=strength,
        whitening=whitening,
        rotation=rotation,
        gain=GAIN,
        seed=seed,
        versions={name: version(name) for name in _PACKAGES},
    )
    return BaseHead(weight, record=record)


def _check(summary: Summary, out_features: int, strength: float, whitening: float, rotation: str | None) -> None:
    if not 1 <= out_features <= summary.width:
        raise UserError(f"dim={out_features}: choose a size from 1 to {summary.width}, that of the vectors")
    if summary.count < out_features:
        raise UserError(f"{summary.count} vectors cannot fit dim={out_features}: give more, or choose fewer")
    if not 0 <= strength <= MOST_STRENGTH:
        raise UserError(f"strength={strength}: choose 0 (as for fidelity) to {MOST_STRENGTH:g}, or None")
    if not 0 <= whitening <= 1:
        raise UserError(f"whitening={whitening}: choose a power from 0 (none) to 1")
    if rotation not in ("itq", "random", None):
        raise UserError(f"rotation={rotation!r}: choose 'itq', 'random' or None")


def _without_mean(summary: Summary) -> np.ndarray | None:
    """Return the projector (d, d) that removes the direction of the mean; None if the mean is near zero."""
    square = float(summary.mean @ summary.mean)
    if not 2 / summary.width < square < 1 - _RANK_FLOOR:
        return None
    return np.eye(summary.width) - np.outer(summary.mean, summary.mean) / square


def _damping(pairs: Pairs, power: float) -> np.ndarray:
    """Return the symmetric (d, d) matrix that damps directions in which the two sides of a pair differ."""
    apart = (pairs.queries - pairs.documents).astype(np.float64)
    within = apart.T @ apart / (2 * len(pairs))
    size = len(within)
    values, vectors = np.linalg.eigh(within + _PAIR_RIDGE * max(np.trace(within), _RANK_FLOOR) / size * np.eye(size))
    return vectors * values**-power @ vectors.T


def usable_pairs(pairs: Pairs | None) -> Pairs | None:
    """Return the pairs if they are enough to estimate a covariance; else None."""
    return pairs if pairs is not None and len(pairs) >= FEWEST_PAIRS else None


def directions(
    summary: Summary, pairs: Pairs | None, strength: float, whitening: float | None = None, count: int | None = None
) -> np.ndarray:
    """Return the directions in order, each divided by its eigenvalue^whitening: the columns of a (d, d) matrix.

    At strength 0 they are the eigenvectors of the Gram matrix, as for fidelity. Where d is large, only the first
    ``count`` may be returned.
    """
    metric = _without_mean(summary) if strength else None
    if strength and pairs is not None:
        damping = _damping(pairs, _PAIR_POWER * strength)
        metric = damping if metric is None else metric @ damping
    gram = summary.gram
    values, vectors = _eigen(gram if metric is None else metric.T @ gram @ metric, count or summary.width)
    whitening = _WHITENING * strength if whitening is None else whitening
    # The sign of an eigenvector is arbitrary: fixing it gives the same head on every machine.
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))])
    vectors = vectors if metric is None else metric @ vectors
    return vectors * np.maximum(values, _RANK_FLOOR * values[0]) ** -whitening


def _eigen(matrix: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues and eigenvectors of a symmetric matrix, the largest first: all, or ``count`` of a wide one."""
    size = len(matrix)
    try:
        some = count < size and size > _WIDE
        values, vectors = eigh(matrix, subset_by_index=[size - count, size - 1]) if some else np.linalg.eigh(matrix)
    except LinAlgError:  # LAPACK's search for some eigenvectors may fail where eigenvalues are equal
        values, vectors = eigh(matrix, driver="evd")
    return values[::-1], vectors[:, ::-1]


def rotate(rows: np.ndarray, kind: Rotation, seed: int) -> np.ndarray:
    """Return an orthogonal (k, k) matrix: random, or by ITQ on rows of shape (n, k).

    ITQ maximises the sum of absolute values by way of their signs. A sign is discontinuous: where two runs differ by
    rounding, one flipped sign moves the next step a thousand times as far, and 40 steps end in different rotations. So
    the sign of z is smoothed to tanh(a z) here: just as good, and reproducible up to rounding.
    """
    size = rows.shape[1]
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0].astype(np.float32)
    if kind == "itq":
        centred = rows - rows.mean(axis=0)
        sharp = centred * np.float32(_ITQ_SHARPNESS / max(np.sqrt(np.mean(np.square(centred))), 1e-30))
        for _ in progress_bar("Rotating", "steps", range(_ITQ_STEPS)):
            left, _, right = np.linalg.svd(centred.T @ np.tanh(sharp @ rotation))
            rotation = left @ right
    return rotation
