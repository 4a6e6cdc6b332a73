"""A head's fingerprint: the same for a head and for what it becomes behind a model, another for any other head.

A head that is attached to a model is scaled to the norm of its embeddings, which rounds every weight: a hash of the
weights would be another. So the fingerprint holds a few random projections of the weights, which are compared but for
rounding, behind a hash of what must be equal.
"""

from __future__ import annotations

import hashlib

import numpy as np

_KEYED = 16  # hexadecimal digits of the hash
_PROJECTIONS = 6
_SEED = 20_260_127  # any: the projections are part of the format
_CLOSE = 0.01  # in standard deviations of the projections of unrelated heads; float16 moves them by 0.001


def fingerprint(weight: np.ndarray, bias: np.ndarray | None, about: tuple[object, ...]) -> str:
    """Return the fingerprint of a head, 64 hexadecimal digits.

    Args:
        weight: Shape (k, d), for vectors of norm 1.
        bias: Shape (k,), if there is one.
        about: What must be equal.
    """
    rng = np.random.default_rng(_SEED)
    known = (weight.shape, bias is not None, *about)
    matrix = np.asarray(weight, np.float64)
    matrix = matrix if bias is None else np.column_stack([matrix, np.asarray(bias, np.float64)])
    left = rng.standard_normal((_PROJECTIONS, matrix.shape[0]))
    right = rng.standard_normal((_PROJECTIONS, matrix.shape[1]))
    scale = np.linalg.norm(matrix)
    values = (left @ matrix * right).sum(axis=1) / (scale or 1)
    # The scale as well: behind a Tanh, a head of twice the weights is another.
    values[0] = np.log(scale or 1)
    return hashlib.sha256(repr(known).encode()).hexdigest()[:_KEYED] + values.astype(">f4").tobytes().hex()


def same_head(one: str, other: str) -> bool:
    """Whether two fingerprints are of one head; false where one of them is none."""
    if len(one) != len(other) or one[:_KEYED] != other[:_KEYED]:
        return False
    try:
        values = [np.frombuffer(bytes.fromhex(each[_KEYED:]), ">f4") for each in (one, other)]
    except ValueError:
        return False
    return len(values[0]) == _PROJECTIONS and bool(np.abs(values[0] - values[1]).max() <= _CLOSE)


def shown(one: str) -> str:
    """Return what people are shown of a fingerprint: digits that do not depend on rounding by much."""
    return one[_KEYED : _KEYED + 4] + one[_KEYED + 8 : _KEYED + 12] + one[_KEYED + 16 : _KEYED + 20]
