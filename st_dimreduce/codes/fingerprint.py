"""Fingerprints of heads: the same for a head alone and attached to a model, different for any other head.

Attaching a head to a model scales it to the norm of the embeddings, which rounds every weight and would change a hash
of them. So a fingerprint is a hash of what must be equal, followed by a few random projections of the weights, which
are compared up to rounding.
"""

from __future__ import annotations

import hashlib

import numpy as np

_KEYED = 16  # hexadecimal digits of the hash
_PROJECTIONS = 6
_SEED = 20_260_127  # arbitrary, but part of the format
_CLOSE = 0.01  # in standard deviations of the projections of unrelated heads; float16 moves them by 0.001


def fingerprint(weight: np.ndarray, bias: np.ndarray | None, about: tuple[object, ...]) -> str:
    """Return the fingerprint of a head, 64 hexadecimal digits.

    Args:
        weight: Shape (k, d), for vectors of norm 1.
        bias: Shape (k,), if there is one.
        about: Everything else that must be equal.
    """
    rng = np.random.default_rng(_SEED)
    known = (weight.shape, bias is not None, *about)
    matrix = np.asarray(weight, np.float64)
    matrix = matrix if bias is None else np.column_stack([matrix, np.asarray(bias, np.float64)])
    left = rng.standard_normal((_PROJECTIONS, matrix.shape[0]))
    right = rng.standard_normal((_PROJECTIONS, matrix.shape[1]))
    scale = np.linalg.norm(matrix)
    values = (left @ matrix * right).sum(axis=1) / (scale or 1)
    # The scale counts too: with a Tanh, twice the weights make a different head.
    values[0] = np.log(scale or 1)
    return hashlib.sha256(repr(known).encode()).hexdigest()[:_KEYED] + values.astype(">f4").tobytes().hex()


def same_head(one: str, other: str) -> bool:
    """Whether two fingerprints are those of one head; False if one is not a fingerprint."""
    if len(one) != len(other) or one[:_KEYED] != other[:_KEYED]:
        return False
    try:
        values = [np.frombuffer(bytes.fromhex(each[_KEYED:]), ">f4") for each in (one, other)]
    except ValueError:
        return False
    return len(values[0]) == _PROJECTIONS and bool(np.abs(values[0] - values[1]).max() <= _CLOSE)


def abbreviate(full: str) -> str:
    """Return twelve digits of a fingerprint, for people: those that rounding hardly changes."""
    return full[_KEYED : _KEYED + 4] + full[_KEYED + 8 : _KEYED + 12] + full[_KEYED + 16 : _KEYED + 20]
