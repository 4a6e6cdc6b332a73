"""Progress bars, for people: on a terminal, for what takes long."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_PATIENCE = 1.0  # seconds before a bar appears: what is done by then needs none


def progress_bar(
    what: str,
    unit: str,
    shown: bool | None,
    over: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    done: int = 0,
) -> tqdm:
    """Return a bar on standard error, a context within which it is updated, or an iterable of what it counts.

    Args:
        what: What is done, such as "Encoding".
        unit: What is counted, in the plural.
        shown: Whether to show it; only on a terminal if None.
        over: What to iterate over. Defaults to None: the caller updates the bar.
        total: How many there are; what ``over`` says, if it does, if None (the default).
        done: How many of them an earlier run has done. Defaults to 0.
    """
    silent = None if shown is None else not shown
    return tqdm(over, what, total, unit=f" {unit}", unit_scale=True, initial=done, delay=_PATIENCE, disable=silent)
