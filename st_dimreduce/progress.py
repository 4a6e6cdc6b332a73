"""Progress bars on a terminal, for what takes longer than a second."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

DELAY = 1.0  # seconds before a bar appears


def progress_bar(
    what: str,
    unit: str,
    shown: bool | None,
    over: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    done: int = 0,
) -> tqdm:
    """Return a progress bar on standard error: a context to update it in, or an iterable that updates it.

    Args:
        what: The label, such as ``"Encoding"``.
        unit: What is counted, in the plural.
        shown: Whether to show the bar; only on a terminal if None.
        over: The items to iterate over. Defaults to None: the caller updates the bar.
        total: Number of items. Defaults to None: the length of ``over``, if it has one.
        done: Number of items that an earlier run has finished. Defaults to 0.
    """
    disable = None if shown is None else not shown
    return tqdm(over, what, total, unit=f" {unit}", unit_scale=True, initial=done, delay=DELAY, disable=disable)
