"""Choosing dimension and precision for a byte budget, by retrieval on held-out data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

from st_dimreduce.codes.stores import Column, columns_of
from st_dimreduce.enums import Objective, Precision, Store
from st_dimreduce.fitting.evidence import Evidence
from st_dimreduce.fitting.pairs import Pairs
from st_dimreduce.fitting.summary import Summary
from st_dimreduce.progress import progress_bar

FEWEST_VECTORS = 60  # fewer leave too few neighbours to tell two options apart
DEFAULT_OUT_FEATURES = 128
_LADDER = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
_SEARCHED = [Column(precision) for precision in (Precision.BINARY, Precision.INT2, Precision.INT4, Precision.INT8)]


@dataclass(frozen=True)
class Size:
    """The size of a head that a user asks for: one of a dimension, a byte budget and a share to keep.

    Args:
        out_features: Dimension k of the reduced embeddings. Defaults to the last of ``nested``, or to 128 where nothing
            else is given.
        bytes_per_vector: Bytes per stored vector: the dimension and the precision that find most within them on
            held-out data.
        keep: Share in (0, 1] of what the full embeddings find on held-out data: the smallest dimension and precision
            that keep it.
        nested: Ascending sizes at which the outputs may be truncated, such as ``(64, 128, 256)``; the last is
            ``out_features``. In multiples of 8, codes can be truncated there too.
        store: The vector store, such as ``"pgvector"``: of a byte budget or of ``keep``, only those precisions are
            considered that the store searches by itself. ``docs/stores.md`` lists them.
        precision: Precision that the vectors will be stored in: of a byte budget or of ``keep`` the only one that is
            considered, with a dimension what the head's record says.

    Raises:
        ValueError: If several are given, one is out of range, or the store or precision is not known.
    """

    out_features: int | None = None
    bytes_per_vector: int | None = None
    keep: float | None = None
    nested: Sequence[int] | None = None
    store: Store | str | None = None
    precision: Precision | str | None = None

    def __post_init__(self) -> None:
        for name, kind in (("precision", Precision), ("store", Store)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, kind(value))
        if self.nested and self.out_features is None:
            object.__setattr__(self, "out_features", self.nested[-1])
        values: dict[str, Any] = {name: getattr(self, name) for name in ("out_features", "bytes_per_vector", "keep")}
        given = [name for name, value in values.items() if value is not None]
        if not given:
            object.__setattr__(self, "out_features", DEFAULT_OUT_FEATURES)
            values["out_features"] = DEFAULT_OUT_FEATURES
        if len(given) > 1:
            one_of = "out_features (--dim), bytes_per_vector (--bytes) and keep (--keep)"
            said = " and ".join("nested" if self.nested and name == "out_features" else name for name in given)
            raise ValueError(f"{said} were given: give exactly one of {one_of}")
        self._check_ranges(values)
        if self.store is not None and self.out_features is not None:
            asked = "give bytes_per_vector (--bytes) or keep (--keep), not a dimension"
            raise ValueError(f"store={str(self.store)!r} is for choosing a precision: {asked}")

    def _check_ranges(self, values: dict[str, Any]) -> None:
        if self.nested and (self.nested[-1] != self.out_features or any(a >= b for a, b in pairwise(self.nested))):
            asked = f"of which the last is out_features={self.out_features}"
            raise ValueError(f"nested={self.nested}: give ascending sizes, {asked}")
        for name, what in (("out_features", "size"), ("bytes_per_vector", "budget")):
            if (value := values[name]) is not None and value < 1:
                raise ValueError(f"{name}={value}: choose a {what} of at least 1")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise ValueError(f"keep={self.keep}: choose a share greater than 0 and at most 1, such as 0.99")

    @property
    def arguments(self) -> dict[str, Any]:
        """The size as keyword arguments of :func:`st_dimreduce.reduce_model`."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @property
    def fewest_vectors(self) -> int:
        """Number of vectors without which no head of this size can be fitted."""
        return FEWEST_VECTORS if self.out_features is None else self.out_features


@dataclass(frozen=True)
class Option:
    """A way to store a vector, and what it keeps on held-out data.

    Attributes:
        out_features: Dimensions.
        precision: Precision of each.
        bytes_per_vector: Bytes per vector.
        retention: Share of the full embedding's metric that is kept: nDCG@10 where there are pairs, else neighbour
            overlap@10.
        column: The store's type for it, such as ``"halfvec"``; None where no store was named.
        low: Lower end of the 95 % interval of ``retention``, by which a share to keep is judged.
    """

    out_features: int
    precision: str
    bytes_per_vector: int
    retention: float
    column: str | None = None
    low: float | None = None

    def keeps(self, share: float) -> bool:
        """Whether it keeps a share by the lower end of its interval."""
        return (self.retention if self.low is None else self.low) >= share

    @property
    def said(self) -> str:
        """What it keeps, in percent, with the lower end of the interval."""
        low = "" if self.low is None else f" (at least {self.low:.1%} with 95 % confidence)"
        return f"{self.retention:.1%}{low}"


@dataclass(frozen=True)
class Choice:
    """The option chosen, and all that were measured.

    Attributes:
        best: The option to use.
        measured: Every option measured.
        metric: What ``retention`` is a share of.
        store: The store whose types were considered; None for :func:`st_dimreduce.search`.
        strength: The strength of the fit that was measured, as in :func:`st_dimreduce.fit_head`.
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
    *,
    bytes_per_vector: int | None = None,
    keep: float | None = None,
    objective: Objective | str = Objective.QUALITY,
    pairs: Pairs | None = None,
    cloze_pairs: Pairs | None = None,
    strength: float | None = None,
    store: Store | str | None = None,
    precision: Precision | str | None = None,
    seed: int = 0,
    show_progress_bar: bool | None = None,
) -> Choice:
    """Choose dimension and precision together, by what they find on data held out from the fit.

    More dimensions with fewer bits find more than fewer dimensions with more, but how far that goes depends on the
    texts. Given pairs, each is held out once and searched for among the other documents; without, held-out vectors
    search for their neighbours.

    Each option is measured as it will be searched: by float queries, or by queries in codes where a store takes no
    others. A 16-bit float type of a store counts as float32 in two bytes per dimension: of a unit vector it loses
    nothing that could be measured.

    Args:
        summary: Summary of at least 60 vectors of size d.
        bytes_per_vector: Bytes per stored vector, 1 to 4 d. Takes the best option within it.
        keep: Share in (0, 1] of the full embedding's metric to keep. Takes the smallest option that does, by the lower
            end of its 95 % interval. Where none does, fidelity's directions are tried, strength 0; where these do not
            either, it warns and takes the best.
        objective: As in :func:`st_dimreduce.fit_head`.
        pairs: As in :func:`st_dimreduce.fit_head`.
        cloze_pairs: As in :func:`st_dimreduce.fit_head`; used where there are no labelled pairs.
        strength: As in :func:`st_dimreduce.fit_head`.
        store: As in :class:`Size`. Any precision if None (the default), to be searched by
            :func:`st_dimreduce.search`.
        precision: The only precision to consider. Defaults to None: all of them.
        seed: Seed of what is held out. Defaults to 0.
        show_progress_bar: Whether to show progress; only on a terminal if None (the default).

    Raises:
        ValueError: If not exactly one of ``bytes_per_vector`` and ``keep`` is given, it is out of range, there are
            too few vectors, or the store or precision is not known or holds nothing in so few bytes.
    """
    objective, store = Objective(objective), None if store is None else Store(store)
    columns = _columns(store, None if precision is None else Precision(precision))
    _check_budget(summary, bytes_per_vector, keep, store, columns)
    evidence = Evidence(summary, objective, pairs, cloze_pairs, seed)
    if strength is None:
        widest = min(DEFAULT_OUT_FEATURES, summary.width, summary.count)
        strength = evidence.best_strength(widest, show_progress_bar)
    choices = []
    with progress_bar("Choosing", "options", show_progress_bar) as bar:
        for tried in (strength,) if keep is None else dict.fromkeys((strength, 0.0)):
            splits = _splits(bytes_per_vector, summary, store, columns)
            measured = _measure(evidence, splits, tried, store, keep, bar.update)
            choices.append((_best(measured, keep), measured, tried))
            if keep is not None and choices[-1][0].keeps(keep):
                break
    best, measured, strength = max(choices, key=lambda choice: (choice[0].keeps(keep or 0), choice[0].retention))
    metric = evidence.metric
    if keep is not None and not best.keeps(keep):
        warnings.warn(f"nothing keeps {keep:.1%} of the {metric}: the best keeps {best.said}", stacklevel=2)
    return Choice(best, measured, metric, None if store is None else store.value, strength)


def _best(measured: list[Option], keep: float | None) -> Option:
    """Return the smallest option that keeps enough; the one that finds most where none does, or nothing is asked."""
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
    """Measure splits, budget by budget, up to the first that keeps enough."""
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
    """Yield the splits of the budget, or of each of a ladder of budgets those that no smaller one had."""
    seen: set[tuple[int, Column]] = set()
    for budget in _LADDER if bytes_per_vector is None else (bytes_per_vector,):
        new = [option for option in _options(budget, summary, store, columns) if option not in seen]
        seen.update(new)  # a larger budget may buy no more of a column
        yield new


def _columns(store: Store | None, precision: Precision | None) -> list[Column]:
    """Return what is considered: what the store searches, or every precision; of these the one that is asked for."""
    columns = list(_SEARCHED if store is None else columns_of(store))
    if precision is None:
        return columns
    found = [column for column in columns if column.precision is precision]
    if store is None:
        return found or [Column(precision)]
    if not found:
        there = ", ".join(dict.fromkeys(column.precision.value for column in columns))
        raise ValueError(f"{store.value} searches no {precision.value} by itself: choose from {there}")
    return found


def _check_budget(
    summary: Summary, bytes_per_vector: int | None, keep: float | None, store: Store | None, columns: list[Column]
) -> None:
    """Raise ``ValueError`` as :func:`choose` says."""
    if (bytes_per_vector is None) == (keep is None):
        raise ValueError("give either bytes_per_vector or keep")
    if bytes_per_vector is not None and not 1 <= bytes_per_vector <= 4 * summary.width:
        most = 4 * summary.width
        raise ValueError(f"bytes_per_vector={bytes_per_vector}: choose 1 to {most}, what the full float32 vector takes")
    if keep is not None and not 0 < keep <= 1:
        raise ValueError(f"keep={keep}: choose a share greater than 0 and at most 1, such as 0.99")
    if summary.count < FEWEST_VECTORS:
        needed = f"give {FEWEST_VECTORS}, or a dimension"
        raise ValueError(f"{summary.count} vectors are too few to hold any out for a choice: {needed}")
    least = min(column.bytes_per_vector(1) for column in columns)
    if bytes_per_vector is not None and bytes_per_vector < least:
        where = columns[0].precision.value if store is None else store.value
        raise ValueError(f"bytes_per_vector={bytes_per_vector}: one dimension takes {least} in {where}")


def _options(budget: int, summary: Summary, store: Store | None, columns: list[Column]) -> Iterator[tuple[int, Column]]:
    """Yield the splits of the budget, of no more dimensions than there are: for a store, one for each precision.

    Without a store, those that use less than half of what others use are left out: there are better ones.
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
