"""Choosing dimension and precision for a byte budget, by retrieval on held-out data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from st_dimreduce.codes.stores import Column, columns_of
from st_dimreduce.enums import Objective, Precision, Store
from st_dimreduce.errors import UserError
from st_dimreduce.fitting.evidence import Evidence
from st_dimreduce.fitting.pairs import Pairs
from st_dimreduce.fitting.size import DEFAULT_DIM, FEWEST_VECTORS, Size
from st_dimreduce.fitting.summary import Summary
from st_dimreduce.progress import progress_bar

_LADDER = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
_SEARCHED = [Column(precision) for precision in (Precision.BINARY, Precision.INT2, Precision.INT4, Precision.INT8)]


@dataclass(frozen=True)
class Option:
    """A way to store a vector, and its retention on held-out data.

    Attributes:
        out_features: Dimensions.
        precision: Precision of each.
        bytes_per_vector: Bytes per vector.
        retention: Share of the full embedding's metric: nDCG@10 where there are pairs, else neighbour overlap@10.
        column: The store's type for it, such as ``"halfvec"``; None if no store was given.
        low: Lower end of the 95 % interval of ``retention``.
    """

    out_features: int
    precision: str
    bytes_per_vector: int
    retention: float
    column: str | None = None
    low: float | None = None

    def keeps(self, share: float) -> bool:
        """Whether the lower end of its interval reaches a share."""
        return (self.retention if self.low is None else self.low) >= share

    @property
    def summary(self) -> str:
        """Its retention in percent, with the lower end of the interval."""
        low = "" if self.low is None else f" (at least {self.low:.1%} with 95 % confidence)"
        return f"{self.retention:.1%}{low}"


@dataclass(frozen=True)
class Choice:
    """The chosen option, and all that were measured.

    Attributes:
        best: The option to use.
        measured: Every option measured.
        metric: What ``retention`` is a share of.
        store: The store whose types were considered; None for search by this package.
        strength: The strength of the fit that was measured, as in :meth:`st_dimreduce.Head.fit`.
    """

    best: Option
    measured: list[Option]
    metric: str
    store: str | None = None
    strength: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as JSON can hold it."""
        return asdict(self)


def choose(
    summary: Summary,
    size: Size,
    *,
    objective: Objective | str = Objective.QUALITY,
    pairs: Pairs | None = None,
    cloze_pairs: Pairs | None = None,
    strength: float | None = None,
    seed: int = 0,
) -> Choice:
    """Choose dimension and precision together, by what they find on data held out from the fit.

    More dimensions with fewer bits find more than fewer dimensions with more bits, to a degree that depends on the
    texts. Each pair, if pairs are given, is held out once and searched for among the other documents; otherwise
    held-out vectors search for their neighbours.

    Each option is measured as it will be searched: by float queries, or by quantised queries if the store takes only
    those. A store's 16-bit floats count as float32 in two bytes per dimension: on unit vectors they lose nothing
    measurable.

    Args:
        summary: Summary of at least 60 vectors of size d.
        size: A byte budget, 1 to 4 d, for the best option within it; or a share to keep, for the smallest option whose
            95 % interval is above it. If there is none, fidelity's directions are tried too (strength 0), and if those
            do not reach it either, it warns and takes the best.
        objective: As in :meth:`st_dimreduce.Head.fit`.
        pairs: As in :func:`st_dimreduce.fitting.fit.fit_head`.
        cloze_pairs: As in :func:`st_dimreduce.fitting.fit.fit_head`; used where there are no labelled pairs.
        strength: As in :func:`st_dimreduce.fitting.fit.fit_head`.
        seed: Seed of what is held out. Defaults to 0.

    Raises:
        UserError: If the budget is out of range, there are too few vectors, or one dimension takes more bytes.
    """
    objective, keep = Objective(objective), size.keep
    store = None if size.store is None else Store(size.store)
    columns = _columns(store, None if size.precision is None else Precision(size.precision))
    _check_budget(summary, size.bytes, store, columns)
    evidence = Evidence(summary, objective, pairs, cloze_pairs, seed)
    if strength is None:
        strength = evidence.best_strength(min(DEFAULT_DIM, summary.width, summary.count))
    choices = []
    with progress_bar("Choosing", "options") as bar:
        for tried in (strength,) if keep is None else dict.fromkeys((strength, 0.0)):
            splits = _splits(size.bytes, summary, store, columns)
            measured = _measure(evidence, splits, tried, store, keep, bar.update)
            choices.append((_best(measured, keep), measured, tried))
            if keep is not None and choices[-1][0].keeps(keep):
                break
    best, measured, strength = max(choices, key=lambda choice: (choice[0].keeps(keep or 0), choice[0].retention))
    metric = evidence.metric
    if keep is not None and not best.keeps(keep):
        warnings.warn(f"nothing keeps {keep:.1%} of the {metric}: the best keeps {best.summary}", stacklevel=2)
    return Choice(best, measured, metric, None if store is None else store.value, strength)


def _best(measured: list[Option], keep: float | None) -> Option:
    """Return the smallest option that keeps the share; the best one if none does, or no share is asked for."""
    good = [option for option in measured if keep is not None and option.keeps(keep)]
    most = max(measured, key=lambda option: option.retention)
    return min(good, key=lambda option: (option.bytes_per_vector, -option.retention), default=most)


def _measure(
    evidence: Evidence,
    splits: Iterable[list[tuple[int, Column]]],
    strength: float,
    store: Store | None,
    keep: float | None,
    step: Callable[[], object],
) -> list[Option]:
    """Measure splits, budget by budget, up to the first that keeps the share."""
    measured: list[Option] = []
    for splits_of_one in splits:
        for size, column in splits_of_one:
            share, low = evidence.retention(size, column, strength)
            name, used = None if store is None else column.type, column.bytes_per_vector(size)
            measured.append(Option(size, column.precision.value, used, share, name, low))
            step()
        if keep is not None and any(option.keeps(keep) for option in measured):
            break
    return measured


def _splits(
    bytes_per_vector: int | None, summary: Summary, store: Store | None, columns: list[Column]
) -> Iterator[list[tuple[int, Column]]]:
    """Yield the splits of the budget; without one, those of a ladder of budgets, each split once."""
    seen: set[tuple[int, Column]] = set()
    for budget in _LADDER if bytes_per_vector is None else (bytes_per_vector,):
        new = [option for option in _options(budget, summary, store, columns) if option not in seen]
        seen.update(new)  # a larger budget may buy no more of a column
        yield new


def _columns(store: Store | None, precision: Precision | None) -> list[Column]:
    """Return the columns to consider: those the store searches, or every precision, restricted to a given precision."""
    columns = list(_SEARCHED if store is None else columns_of(store))
    if precision is None:
        return columns
    found = [column for column in columns if column.precision is precision]
    if store is None:
        return found or [Column(precision)]
    if not found:
        offered = ", ".join(dict.fromkeys(column.precision.value for column in columns))
        raise UserError(f"{store.value} does not search {precision.value}: choose from {offered}")
    return found


def _check_budget(summary: Summary, budget: int | None, store: Store | None, columns: list[Column]) -> None:
    """Raise ``UserError`` as documented in :func:`choose`."""
    if budget is not None and budget > 4 * summary.width:
        raise UserError(f"bytes={budget}: choose 1 to {4 * summary.width}, what the full float32 vector takes")
    if summary.count < FEWEST_VECTORS:
        needed = f"give {FEWEST_VECTORS}, or a dimension"
        raise UserError(f"{summary.count} vectors are too few to hold any out for a choice: {needed}")
    least = min(column.bytes_per_vector(1) for column in columns)
    if budget is not None and budget < least:
        where = columns[0].precision.value if store is None else store.value
        raise UserError(f"bytes={budget}: one dimension takes {least} in {where}")


def _options(budget: int, summary: Summary, store: Store | None, columns: list[Column]) -> Iterator[tuple[int, Column]]:
    """Yield the splits of a budget, limited to the dimensions there are: for a store, one for each precision.

    Without a store, splits that use less than half of the bytes of others are left out: there are better ones.
    """
    widest = min(summary.width, summary.count)
    sizes = [min(8 * budget // column.bits, widest, column.most or widest) for column in columns]
    options = [(size, column) for size, column in zip(sizes, columns, strict=True) if size]
    most = max((column.bytes_per_vector(size) for size, column in options), default=0)
    for size, column in options:
        if store is not None or 2 * column.bytes_per_vector(size) > most:
            yield size, column
    if store is None and len(columns) > 1 and budget >= 4 * summary.width:
        yield widest, Column(Precision.FLOAT32)
