"""Whether a head still fits the vectors that arrive."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from st_dimreduce.base_head import BaseHead
from st_dimreduce.enums import OnBadRow, Verdict
from st_dimreduce.errors import UserError
from st_dimreduce.fitting.reference import FEWEST, Reference, measure
from st_dimreduce.fitting.summary import Summary
from st_dimreduce.vectors.fit import read_summary
from st_dimreduce.vectors.rows import good_rows
from st_dimreduce.vectors.sources import Batch

_SAMPLE = 5000  # rows: more would not change a verdict
_PASSING = 4000  # rows kept of those that are reduced
_ERRORS = 2  # standard errors that may be chance
# Limits of each figure, chosen on docstrings and CISI and judged on other texts: benchmarks/DRIFT.md.
_TIMES = {Verdict.WATCH: 1.15, Verdict.REFIT: 1.3}  # as much lost as at the fit, and
_MORE = {Verdict.WATCH: 0.005, Verdict.REFIT: 0.01}  # of everything
_SHIFTS = {Verdict.WATCH: 0.15, Verdict.REFIT: 0.3}
_NORMS = {Verdict.WATCH: 1.2, Verdict.REFIT: 1.5}


@dataclass(frozen=True)
class Figure:
    """One figure of a sample of vectors, and what it was at the fit.

    Attributes:
        name: What is measured.
        at_fit: Its value for vectors held out from the fit.
        now: Its value for the new vectors.
        error: Standard error of the difference.
        watch, refit: Limits. A value is over one when two standard errors less are over it. None: no value is.
    """

    name: str
    at_fit: float | None
    now: float
    error: float = 0.0
    watch: float | None = None
    refit: float | None = None

    @property
    def verdict(self) -> Verdict:
        """What this figure alone says; a value over the limit by chance, perhaps, is one to watch."""
        if self.watch is None or self.refit is None:
            return Verdict.FITS
        sure = self.now - _ERRORS * self.error
        if sure > self.refit:
            return Verdict.REFIT
        return Verdict.WATCH if sure > self.watch or self.now > self.refit else Verdict.FITS


@dataclass(frozen=True)
class Drift:
    """How vectors differ from those that a head was fitted on.

    Attributes:
        verdict: ``"fits"``, ``"watch"`` or ``"refit"``.
        explanation: The figure that decided, and its limit, in words.
        vectors: Number of vectors judged.
        figures: Every figure measured, beside that of the fit.
    """

    verdict: Verdict
    explanation: str
    vectors: int
    figures: tuple[Figure, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self) | {"verdict": self.verdict.value, "figures": [asdict(figure) for figure in self.figures]}


def drift(
    head: BaseHead,
    source: Any,
    *,
    reference: Any = None,
    column: str | None = None,
    seed: int = 0,
    on_bad_row: OnBadRow | str = OnBadRow.RAISE,
) -> Drift:
    """Judge whether a head still fits the vectors that arrive, in one pass over them and in bounded memory.

    The figures of the new vectors are compared with those of vectors held out from the fit, which are in the head's
    record. The limits are sizes of an effect, so that many vectors make no small difference count, and two standard
    errors are left to chance, so that few vectors do not either. Any of three figures can ask for a refit:

    - the share of the variance, around the vectors' own mean, that the head loses: 1.3 times that at the fit and 1
      point more;
    - the share of the ten nearest neighbours among 200 vectors that the codes lose: the same. A head for quality
      leaves the base model's neighbours on purpose, so this one says more of a head for fidelity;
    - the shift of the mean of the reduced unit vectors: 0.3. What all codes share tells none of them apart.

    About half as much asks to watch. The bits that the codes use per dimension are reported too, and the mean norm,
    which is judged only where the head's record has none: other heads scale every vector to theirs.

    Args:
        head: The head, or a module that holds one.
        source: The new vectors, 200 or more, as in :func:`st_dimreduce.reduce_vectors`.
        reference: Vectors that the head is good for, a source of 200 or more, to compare with instead of the record.
            Not those that it was fitted on: it fits these better than any others, and would seem off for all. Defaults
            to None.
        column: As in :func:`st_dimreduce.reduce_vectors`, in both sources.
        seed: Seed of the sample. Defaults to 0.
        on_bad_row: As in :func:`st_dimreduce.summarize`.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ModuleNotFoundError: If a source is a table and pyarrow is missing.
        ValueError: If there are fewer than 200 vectors, or of another width than the head takes, or a source cannot be
            read; if the head's record has no reference, or one of other weights, and none is given.
    """
    options: dict[str, Any] = {"column": column, "sample_size": _SAMPLE, "seed": seed, "head": head}
    options |= {"on_bad_row": OnBadRow(on_bad_row)}
    norm = head.record.mean_norm
    if reference is None:
        at_fit = _kept(head)
    else:
        before = read_summary(reference, **options)
        _check_count(before, "the reference has")
        # A head that knows no norm takes the rows as they are.
        at_fit, norm = measure(_for(head, before), before), norm or before.mean_norm
    summary = read_summary(source, **options)
    _check_count(summary, "there are")
    return _judge(head, at_fit, norm, summary)


class DriftSample:
    """Some of the vectors that a run reduces, from its first to its last, to be judged when it ends.

    Args:
        head: The head that reduces them.
    """

    def __init__(self, head: BaseHead) -> None:
        self._head, self._step, self._seen = head, 1, 0
        self._rows: list[np.ndarray] = []

    def add(self, vectors: Any) -> None:
        """Take note of the next vectors, an array or tensor of shape (n, d)."""
        if self._head.record.reference is None:
            return
        some = vectors[-self._seen % self._step :: self._step]
        self._rows.append(some.copy() if isinstance(some, np.ndarray) else some.detach().float().cpu().numpy())
        self._seen += len(vectors)
        while sum(map(len, self._rows)) > _PASSING:
            self._rows, self._step = [np.concatenate(self._rows)[::2]], 2 * self._step

    def judge(self) -> Drift | None:
        """Return how they differ from those of the fit; None if there are too few, or nothing to compare with."""
        if not self._rows:
            return None
        rows = good_rows(Batch(0, np.concatenate(self._rows)))
        try:
            at_fit = _kept(self._head)
        except ValueError:  # drift says what is wrong with it
            return None
        return None if len(rows) < FEWEST else _judge(self._head, at_fit, self._head.record.mean_norm, Summary.of(rows))


def _judge(head: BaseHead, at_fit: Reference, norm: float | None, summary: Summary) -> Drift:
    head = head.with_record(precision=at_fit.precision)  # which the record may have got later
    figures = _figures(head, at_fit, measure(_for(head, summary), summary), norm, summary.mean_norm)
    worst = max(figures, key=lambda figure: (list(Verdict).index(figure.verdict), _excess(figure)))
    return Drift(worst.verdict, _explanation(worst), summary.count, figures)


def _kept(head: BaseHead) -> Reference:
    how = "fit it again, or pass reference, vectors that the head is good for (--reference)"
    if head.record.reference is None:
        few = "it is of an older version, of another fit, or of fewer than 400 vectors"
        raise UserError(f"the head's record has no reference to compare with ({few}): {how}")
    kept = Reference.from_dict(head.record.reference, head.out_features)
    if not kept.is_of(head):
        raise UserError(f"the head was trained after its reference was measured: {how}")
    return kept


def _for(head: BaseHead, summary: Summary) -> BaseHead:
    return head if head.record.mean_norm is not None else head.with_record(mean_norm=summary.mean_norm)


def _check_count(summary: Summary, what: str) -> None:
    if summary.count < FEWEST:
        raise UserError(f"{what} {summary.count} vectors, too few to judge: give at least {FEWEST}")


def _figures(
    head: BaseHead, then: Reference, now: Reference, norm_then: float | None, norm_now: float
) -> tuple[Figure, ...]:
    def lost(name: str, kind: str) -> Figure:
        before, after = getattr(then, f"{kind}_lost"), getattr(now, f"{kind}_lost")
        error = math.hypot(getattr(then, f"{kind}_error"), getattr(now, f"{kind}_error"))
        limits = {verdict.value: _TIMES[verdict] * before + _MORE[verdict] for verdict in _TIMES}
        return Figure(name, before, after, error, **limits)

    means = np.asarray(now.mean), np.asarray(then.mean)
    # Both means are of samples: their chance part, which never falls below zero, is subtracted.
    chance = sum(max(1 - float(mean @ mean), 0) / of.mean_vectors for mean, of in zip(means, (now, then), strict=True))
    square = float(np.square(means[0] - means[1]).sum())
    shift = math.sqrt(max(square - chance, 0))
    error = math.sqrt(chance / head.out_features)
    judged = head.record.mean_norm is None and norm_then is not None
    norms = {v.value: (norm_then or 1) * _NORMS[v] for v in _NORMS} if judged else {}
    return (
        lost("variance lost", "variance"),
        lost("neighbours lost", "neighbours"),
        Figure("shift of the mean", 0.0, shift, error, **{v.value: _SHIFTS[v] for v in _SHIFTS}),
        Figure("bits used per dimension", then.bits_used, now.bits_used),
        Figure("mean norm", norm_then, norm_now, 0.0, **norms),
    )


def _excess(figure: Figure) -> float:
    return -math.inf if figure.refit is None else (figure.now - _ERRORS * figure.error) / max(figure.refit, 1e-12)


_MEANINGS = {
    "variance lost": "The head loses {now:.1%} of the variance of these vectors, and {at_fit:.1%} of those held out "
    "from the fit.",
    "neighbours lost": "The codes lose {now:.1%} of the ten nearest neighbours among 200 of these vectors, and "
    "{at_fit:.1%} among those held out from the fit.",
    "shift of the mean": "The mean of the reduced vectors, which have norm 1, has moved by {now:.2f} since the fit.",
    "mean norm": "The mean norm is {now:.3g}, it was {at_fit:.3g}, and the head does not scale vectors.",
}


def _explanation(figure: Figure) -> str:
    limit = getattr(figure, "refit" if figure.verdict is not Verdict.WATCH else "watch")
    form = "{:.1%}" if figure.name.endswith("lost") else "{:.3g}"
    chance = f" beyond {form.format(_ERRORS * figure.error)} that may be chance" if figure.error else ""
    asked = {
        Verdict.FITS: "That is the figure nearest to its limit: a refit is due above",
        Verdict.WATCH: "That is to be watched above",
        Verdict.REFIT: "A refit is due above",
    }[figure.verdict]
    said = _MEANINGS[figure.name].format(now=figure.now, at_fit=figure.at_fit)
    return f"{said} {asked} {form.format(limit)}{chance}."
