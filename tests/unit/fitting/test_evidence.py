from __future__ import annotations

import numpy as np
import pytest

from st_dimreduce import Pairs, Precision, Size, Summary
from st_dimreduce.codes.stores import Column
from st_dimreduce.enums import Objective
from st_dimreduce.fitting.budget import choose
from st_dimreduce.fitting.closed_form import closed_form_head
from st_dimreduce.fitting.evidence import Evidence
from st_dimreduce.fitting.fit import fit_head

WIDTH, TOPIC = 48, 24
FLOAT = Column(Precision.FLOAT32)


def corpus(nuisance: float, noise: float = 0.7, rows: int = 1500, seed: int = 0) -> tuple[Summary, Pairs]:
    """Texts whose first dimensions say what they are about; in the others the two sides of a pair differ at random."""
    rng = np.random.default_rng(seed)
    spread = np.r_[np.full(TOPIC, 0.5), np.full(WIDTH - TOPIC, nuisance)]
    documents = rng.standard_normal((rows, WIDTH)) * spread
    queries = documents[:400].copy()
    queries[:, :TOPIC] += noise * 0.5 * rng.standard_normal((400, TOPIC))
    queries[:, TOPIC:] = nuisance * rng.standard_normal((400, WIDTH - TOPIC))
    return Summary.of(documents.astype(np.float32)), Pairs(queries, documents[:400])


def known(row: np.ndarray) -> tuple[float, ...]:
    return tuple(np.round(row[:6], 4).tolist())


def strength(summary: Summary, pairs: Pairs, **options: object) -> float | None:
    return fit_head(summary, TOPIC, cloze_pairs=pairs, **options).record.strength


def test_what_differs_within_a_text_is_damped_hard():
    summary, pairs = corpus(nuisance=0.8)
    assert strength(summary, pairs) >= 0.75


def test_where_no_strength_finds_more_the_head_is_that_of_fidelity():
    rng = np.random.default_rng(1)
    topics = np.r_[np.linspace(1.0, 0.4, 8), np.full(WIDTH - 8, 0.05)]  # all that tells texts apart varies most
    documents = rng.standard_normal((1500, WIDTH)) * topics
    queries = documents[:400] + rng.standard_normal((400, WIDTH)) * np.r_[np.full(8, 0.05), np.full(WIDTH - 8, 0.05)]
    summary, pairs = Summary.of(documents.astype(np.float32)), Pairs(queries, documents[:400])
    head = fit_head(summary, 8, cloze_pairs=pairs, seed=0)
    assert head.record.strength == 0
    plain = closed_form_head(summary, 8, strength=0, seed=0).for_norm(summary.mean_norm)
    assert np.array_equal(head.weight, plain.weight)


def test_without_cloze_pairs_nothing_is_chosen(monkeypatch):
    for training in ("contrastive.contrast_head", "distillation.distill_head"):
        monkeypatch.setattr(f"st_dimreduce.fitting.{training}", lambda head, *_, **__: head)
    summary, pairs = corpus(nuisance=0.8)
    few = Pairs(pairs.queries[:50], pairs.documents[:50])
    assert strength(summary, few) == 1
    assert fit_head(summary, 8).record.strength == 1
    assert fit_head(summary, 8, pairs=pairs).record.strength == 1
    assert fit_head(summary, 8, objective="fidelity", cloze_pairs=pairs).record.strength is None


def test_a_given_strength_is_taken():
    summary, pairs = corpus(nuisance=0.8)
    assert strength(summary, pairs, strength=0.3) == 0.3
    assert choose(summary, Size(bytes=8), cloze_pairs=pairs, strength=0.3).strength == 0.3
    weak, strong = (fit_head(summary, 8, cloze_pairs=pairs, strength=value) for value in (0.1, 2))
    assert not np.allclose(weak.weight, strong.weight, atol=1e-3)
    with pytest.raises(ValueError, match="strength=-1: choose 0"):
        fit_head(summary, 8, strength=-1)


def test_a_budget_measures_the_strength_that_it_fits():
    summary, pairs = corpus(nuisance=0.8)
    head = fit_head(summary, Size(bytes=8), cloze_pairs=pairs)
    assert head.record.choice is not None
    assert head.record.choice["strength"] == head.record.strength > 0.5


def test_the_metric_is_that_of_pairs_held_out():
    summary, pairs = corpus(nuisance=0.8)
    evidence = Evidence(summary, Objective.QUALITY, None, pairs, 0)
    assert evidence.metric == "nDCG@10"
    whole = pytest.approx((1, 1), abs=1e-6)
    assert evidence.retention(WIDTH, FLOAT, 0.0) == whole, "all dimensions, nothing changed"
    share, low = evidence.retention(TOPIC, FLOAT, 1.0)
    assert share > 1.2
    assert share > low > 1
    assert Evidence(summary, Objective.FIDELITY, None, pairs, 0).metric == "overlap@10"


def test_a_document_of_two_pairs_is_stored_once():
    summary, pairs = corpus(nuisance=0.1, noise=0.2)
    twice = Pairs(np.concatenate([pairs.queries, pairs.documents + 0.01]), np.concatenate([pairs.documents] * 2))
    evidence = Evidence(summary, Objective.QUALITY, None, twice, 0)
    # A second copy of each document would take the first rank of half of the queries.
    assert evidence._full.mean() > 0.9


def test_each_pair_is_held_out_once_and_shared_texts_stay_together():
    _, pairs = corpus(nuisance=0.8)
    shared = Pairs(np.concatenate([pairs.queries, -pairs.queries]), np.concatenate([pairs.documents] * 2))
    folds = shared.folds(3, seed=1)
    held = np.concatenate([held.queries for _, held in folds])
    assert sorted(map(known, held)) == sorted(map(known, shared.queries))
    for fitted, out in folds:
        assert len(fitted) + len(out) == len(shared)
        assert not set(map(known, fitted.documents)) & set(map(known, out.documents))
        assert abs(len(out) - len(shared) / 3) < 3
    with pytest.raises(ValueError, match="2 groups that share no text: expected 3"):
        Pairs(pairs.queries[:8], np.repeat(pairs.documents[:2], 4, axis=0)).folds(3)
