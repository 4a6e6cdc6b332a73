"""What a head loses on vectors that it was not fitted on, measured at the fit, to compare later vectors with."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

import numpy as np

from st_dimreduce.base_head import BaseHead
from st_dimreduce.codes.metrics import TOP_K, nearest, others, overlaps
from st_dimreduce.codes.precision import quantize
from st_dimreduce.codes.search import search
from st_dimreduce.enums import Precision
from st_dimreduce.fitting.closed_form import directions, usable_pairs
from st_dimreduce.fitting.pairs import Pairs
from st_dimreduce.fitting.summary import Summary

FEWEST = 200  # vectors that can be judged; the more there are, the fewer of the nearest a code finds: always so many
_MOST = 3000  # vectors whose neighbours are looked for, 200 at a time
_HELD_OUT, _MOST_HELD_OUT = 0.1, 1000


@dataclass(frozen=True)
class Losses:
    """What a head loses of some vectors, as shares in [0, 1].

    Attributes:
        variance_lost: Share of the variance of the unit vectors, around their own mean, outside the row space of the
            head's weight.
        variance_error: Standard error of ``variance_lost``.
        neighbours_lost: 1 - neighbour overlap@10: share of the full vectors' ten nearest among 200 that the codes miss.
        neighbours_error: Standard error of ``neighbours_lost``.
    """

    variance_lost: float
    variance_error: float
    neighbours_lost: float
    neighbours_error: float


def measure(head: BaseHead, summary: Summary) -> Losses:
    """Measure what a head loses of summarised vectors, in the precision of its record.

    The variance is that of every vector, the neighbours are those of 3,000 of the sample at most.
    """
    sample, mean = summary.sample, summary.mean
    basis = np.linalg.qr(head.weight.T.astype(np.float64))[0]
    around = max(float(np.trace(summary.gram) - mean @ mean), 1e-12)
    inside = float(np.trace(basis.T @ summary.gram @ basis) - np.square(mean @ basis).sum())
    variance = min(max(1 - inside / around, 0.0), 1.0)
    centred = sample - mean
    whole = np.square(centred).sum(axis=1)
    outside = whole - np.square(centred @ basis).sum(axis=1)
    error = float(np.std(outside - variance * whole)) / around / math.sqrt(summary.count)
    missed = 1 - neighbours_found(sample[:_MOST], head.transform(sample[:_MOST]), head.precision)
    return Losses(variance, min(error, 1.0), float(missed.mean()), float(missed.std()) / math.sqrt(len(missed)))


def neighbours_found(full: np.ndarray, reduced: np.ndarray, precision: Precision) -> np.ndarray:
    """Return for each vector the share of its ten nearest, among 200, that its codes find; the rest is left out."""
    own, codes = np.arange(FEWEST), quantize(reduced, precision)
    shares = []
    for start in range(0, len(full) - FEWEST + 1, FEWEST):
        rows = slice(start, start + FEWEST)
        found = others(search(reduced[rows], codes[rows], precision, TOP_K + 1)[1], own)
        shares.append(overlaps(nearest(full[rows], full[rows], own), found))
    return np.concatenate(shares)


def with_reference(head: BaseHead, start: BaseHead, summary: Summary, cloze_pairs: Pairs | None) -> BaseHead:
    """Return the head with what it loses on vectors held out from the fit in its record, for later vectors.

    A head fits the vectors that it saw better than those that come later. So a tenth of the sample is taken out of the
    summary, 200 to 1,000 vectors, and the subspace found again without them. What training changed in the head is added
    as it shows on vectors that were seen: the loss of the head, less that of the closed form it started from.

    Args:
        head: The head, for vectors of norm 1.
        start: The closed-form head that it was trained from, or the head itself.
        summary: The summary that it was fitted on.
        cloze_pairs: The cloze pairs that it was fitted on.

    Returns:
        The head as it is if there are fewer than 400 vectors in the sample, or too few without those held out.
    """
    sample, record = summary.sample, start.record
    rows = sample[: min(max(FEWEST, int(len(sample) * _HELD_OUT)), _MOST_HELD_OUT)]
    if len(sample) - len(rows) < max(FEWEST, head.out_features):
        return head
    pairs = usable_pairs(cloze_pairs)
    found = directions(summary.without(rows), pairs, record.strength or 0.0, record.whitening, head.out_features)
    found = found[:, : head.out_features]
    # Turned as the head is: a rotation changes no cosine, but the codes (orthogonal Procrustes; Schonemann, 1966).
    left, _, right = np.linalg.svd(start.weight @ found)
    weight = (left @ right) @ found.T * (np.linalg.norm(start.weight) / np.linalg.norm(found))
    held_out = Summary.of(rows)
    losses = measure(replace(start, weight=weight), held_out)
    if head is not start:
        trained, untrained = measure(head, held_out), measure(start, held_out)
        for name in ("variance_lost", "neighbours_lost"):
            loss = getattr(losses, name) + getattr(trained, name) - getattr(untrained, name)
            losses = replace(losses, **{name: min(max(loss, 0.0), 1.0)})
    values = {name: float(f"{value:.5g}") for name, value in asdict(losses).items()}
    about = {"head": head.fingerprint, "precision": head.precision.value, "vectors": len(rows)}
    return head.with_record(reference=about | values)
