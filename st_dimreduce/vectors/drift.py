"""Whether a head still fits the vectors that arrive."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from st_dimreduce.base_head import BaseHead
from st_dimreduce.codes.fingerprint import same_head
from st_dimreduce.enums import OnBadRow, Verdict
from st_dimreduce.errors import UserError
from st_dimreduce.fitting.reference import FEWEST, Losses, measure
from st_dimreduce.vectors.fit import read_summary

_SAMPLE = 5000  # rows: more would not change a verdict
_ERRORS = 2  # standard errors that may be chance
# Limits, chosen on docstrings and CISI and judged on other texts: benchmarks/DRIFT.md.
_TIMES = {Verdict.WATCH: 1.15, Verdict.REFIT: 1.3}  # as much lost as at the fit, and
_MORE = {Verdict.WATCH: 0.005, Verdict.REFIT: 0.01}  # of everything


@dataclass(frozen=True)
class Figure:
    """What a head loses of new vectors, and what it lost of those held out from its fit, as shares in [0, 1].

    Attributes:
        name: ``"variance lost"`` or ``"neighbours lost"``.
        at_fit: Its value for vectors held out from the fit.
        now: Its value for the new vectors.
        error: Standard error of the difference.
        watch, refit: Limits. A value is over one when two standard errors less are over it.
    """

    name: str
    at_fit: float
    now: float
    error: float
    watch: float
    refit: float

    @property
    def verdict(self) -> Verdict:
        """What this figure alone says; a value over the limit by chance, perhaps, is one to watch."""
        least = self.now - _ERRORS * self.error
        if least > self.refit:
            return Verdict.REFIT
        return Verdict.WATCH if least > self.watch or self.now > self.refit else Verdict.FITS


@dataclass(frozen=True)
class Drift:
    """How vectors differ from those that a head was fitted on.

    Attributes:
        verdict: ``"fits"``, ``"watch"`` or ``"refit"``.
        explanation: The figure that decided, and its limit, in a line.
        vectors: Number of vectors judged.
        figures: Both figures, beside those of the fit.
    """

    verdict: Verdict
    explanation: str
    vectors: int
    figures: tuple[Figure, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self) | {"verdict": self.verdict.value, "figures": [asdict(figure) for figure in self.figures]}


def measure_drift(
    head: BaseHead,
    source: Any,
    *,
    column: str | None = None,
    on_bad_row: OnBadRow | str = OnBadRow.RAISE,
    seed: int = 0,
) -> Drift:
    """Judge whether a head still fits the vectors that arrive, in one pass over them and in bounded memory.

    Two figures of the new vectors are compared with those of vectors held out from the fit, which are in the head's
    record: the share of the variance, around the vectors' own mean, that the head loses; and the share of the ten
    nearest neighbours among 200 vectors that the codes miss. A head for quality departs from the base model's
    neighbours on purpose, so the second says more of a head for fidelity. The limits are sizes of an effect, so that
    many vectors make no small difference count, and two standard errors are left to chance, so that few vectors do not
    either: a refit is due at 1.3 times the loss at the fit and 1 point more, half of that is to be watched.

    Args:
        head: The head.
        source: The new vectors, 200 or more, as in :meth:`st_dimreduce.Head.fit`.
        column: As in :meth:`st_dimreduce.Head.fit`.
        on_bad_row: As in :meth:`st_dimreduce.Head.fit`.
        seed: Seed of the sample. Defaults to 0.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ModuleNotFoundError: If the source is a table and pyarrow is missing.
        UserError: If there are fewer than 200 vectors, or of another size than the head takes, or the source cannot be
            read; if the head's record has no reference, or one of other weights.
    """
    at_fit, precision = _reference(head)
    summary = read_summary(source, column, _SAMPLE, seed, OnBadRow(on_bad_row), head=head)
    if summary.count < FEWEST:
        raise UserError(f"there are {summary.count} vectors, too few to judge: give at least {FEWEST}")
    now = measure(head.with_record(precision=precision), summary)
    figures = tuple(_figure(kind, at_fit, now) for kind in ("variance", "neighbours"))
    worst = max(figures, key=lambda figure: (list(Verdict).index(figure.verdict), figure.now / figure.refit))
    return Drift(worst.verdict, _explanation(worst), summary.count, figures)


def _reference(head: BaseHead) -> tuple[Losses, str]:
    """Return what the head lost at its fit, and in which precision, from its record.

    Raises:
        UserError: If that is not known, is damaged, or is of other weights.
    """
    found = head.record.reference
    if found is None:
        raise UserError(
            "the head's record has no losses at its fit to compare with (it was fitted on fewer than 400 vectors, or "
            "with another tool): fit it again"
        )
    values: dict[str, Any] = {field.name: found.get(field.name) for field in fields(Losses)}
    for name, value in values.items():
        if not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise UserError(f"the head's record is damaged: its {name} is not a share from 0 to 1: fit the head again")
    if not same_head(str(found.get("head")), head.fingerprint):
        raise UserError("the head was trained, or its record changed, after its losses were measured: fit it again")
    return Losses(**values), str(found.get("precision"))


def _figure(kind: str, at_fit: Losses, now: Losses) -> Figure:
    before, after = getattr(at_fit, f"{kind}_lost"), getattr(now, f"{kind}_lost")
    error = math.hypot(getattr(at_fit, f"{kind}_error"), getattr(now, f"{kind}_error"))
    limits = {verdict.value: _TIMES[verdict] * before + _MORE[verdict] for verdict in _TIMES}
    return Figure(f"{kind} lost", before, after, error, **limits)


_MEANINGS = {
    "variance lost": "The head loses {now:.1%} of the variance of these vectors, and {at_fit:.1%} of those held out "
    "from the fit.",
    "neighbours lost": "The codes miss {now:.1%} of the ten nearest neighbours among 200 of these vectors, and "
    "{at_fit:.1%} among those held out from the fit.",
}


def _explanation(figure: Figure) -> str:
    watched = figure.verdict is Verdict.WATCH
    meaning = _MEANINGS[figure.name].format(now=figure.now, at_fit=figure.at_fit)
    limit = f"Watch it above {figure.watch:.1%}" if watched else f"A refit is due above {figure.refit:.1%}"
    return f"{meaning} {limit}, beyond {_ERRORS * figure.error:.1%} that may be chance."
