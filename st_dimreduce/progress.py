"""Progress bars on a terminal, for what takes longer than a second, and the one switch that turns them off."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_DELAY = 1.0  # seconds before a bar appears
_disabled: bool | None = None  # None: shown on a terminal only, as tqdm understands it


def disable_progress_bars() -> None:
    """Show no progress bars of this package, until :func:`enable_progress_bars` is called."""
    global _disabled  # noqa: PLW0603, one switch for the package, as in datasets
    _disabled = True


def enable_progress_bars() -> None:
    """Show progress bars again, where standard error is a terminal; that is the default."""
    global _disabled  # noqa: PLW0603
    _disabled = None


def progress_bar(
    label: str, unit: str, items: Iterable[Any] | None = None, *, total: int | None = None, done: int = 0
) -> tqdm:
    """Return a progress bar on standard error: a context to update it in, or an iterable that updates it.

    Args:
        label: Such as ``"Encoding"``.
        unit: What is counted, in the plural.
        items: The items to iterate over. Defaults to None: the caller updates the bar.
        total: Number of items. Defaults to None: the length of ``items``, if it has one.
        done: Number of items that an earlier run has finished. Defaults to 0.
    """
    return tqdm(items, label, total, unit=f" {unit}", unit_scale=True, initial=done, delay=_DELAY, disable=_disabled)
