"""The fits that train, held against their definitions written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from st_dimreduce import Pairs, Precision, Size, Summary, progress
from st_dimreduce.codes.precision import dequantize, quantize
from st_dimreduce.fitting import contrastive, distillation
from st_dimreduce.fitting.budget import choose
from st_dimreduce.fitting.closed_form import closed_form_head
from st_dimreduce.fitting.contrastive import contrast_head
from st_dimreduce.fitting.distillation import distill_head
from st_dimreduce.fitting.fit import fit_head
from st_dimreduce.fitting.training import batches, read_back, train

RNG = np.random.default_rng(0)
X = (RNG.standard_normal((900, 16)) * np.linspace(2, 0.3, 16)).astype(np.float32)
SUMMARY = Summary.of(X)
HEAD = fit_head(SUMMARY, 8)
PAIRS = Pairs(X[:400] + 0.3 * RNG.standard_normal((400, 16)), X[:400])


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def log_softmax(scores):
    scores = scores - scores.max(axis=1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def through(rows, precision):
    return dequantize(quantize(rows.astype(np.float32), precision), precision, rows.shape[1])


@pytest.fixture
def losses(monkeypatch):
    """What a fit hands to the common loop, in place of training."""
    handed = {}

    def record(head, loss, held_out, **settings):
        handed.update(head=head, loss=loss, held_out=held_out, settings=settings)
        return fit_head(SUMMARY, 8), 7

    for module in (contrastive, distillation):
        monkeypatch.setattr(module, "train", record)
    return handed


@pytest.mark.parametrize("precision", ["float32", "int2"])
def test_distillation_teaches_the_cosines_softmax(precision, losses):
    trained = distill_head(HEAD, SUMMARY, precision=precision, steps=9, learning_rate=0.5)
    assert losses["head"] is HEAD
    assert losses["settings"] == {"steps": 9, "learning_rate": 0.5}
    assert trained.record.distilled_steps == 7
    weight = torch.from_numpy(HEAD.weight)

    def expected(rows):
        target = rows @ rows.T / 0.05
        reduced = rows @ HEAD.weight.T
        given = unit(reduced) @ through(reduced, precision).T / 0.05
        for scores in (target, given):
            np.fill_diagonal(scores, -1e4)
        return -(np.exp(log_softmax(target)) * log_softmax(given)).sum(axis=1).mean()

    sample = SUMMARY.sample
    assert float(losses["held_out"](weight)) == pytest.approx(expected(sample[: 900 // 8]), rel=1e-3)
    assert float(losses["loss"](weight)) == pytest.approx(expected(sample[900 // 8 :]), rel=1e-3), "all in one batch"
    distill_head(HEAD, Summary.of(np.repeat(X, 10, axis=0) + 1e-3 * RNG.standard_normal((9000, 16))))
    assert losses["settings"] == {"steps": 150, "learning_rate": 3e-3}


@pytest.mark.parametrize("precision", ["float32", "int2"])
@pytest.mark.parametrize("negatives", [False, True])
def test_contrast_is_the_symmetric_loss_over_a_batch(precision, negatives, losses):
    queries, documents = PAIRS.queries[:40].copy(), PAIRS.documents[:40].copy()
    queries[1], documents[3] = queries[0], documents[2]  # one query with two answers, one document of two queries
    wrong = X[40:80] if negatives else None
    pairs = Pairs(queries, documents, wrong)
    trained = contrast_head(HEAD, pairs, precision=precision, steps=9, learning_rate=0.5, seed=3)
    assert losses["settings"] == {"steps": 9, "learning_rate": 0.5}
    assert (trained.record.labelled_pairs, trained.record.trained_steps) == (40, 7)
    weight = torch.from_numpy(HEAD.weight)

    def expected(some):
        asked, answers = (rows @ HEAD.weight.T for rows in (some.queries, some.documents))
        scores = unit(asked) @ through(answers, precision).T / 0.05
        for row in range(len(some)):
            for other in range(len(some)):
                same = (some.queries[row] == some.queries[other]).all() or (
                    some.documents[row] == some.documents[other]
                ).all()
                if same and row != other:
                    scores[row, other] = -np.inf
        forth = scores
        if some.negatives is not None:
            forth = np.hstack([scores, unit(asked) @ through(some.negatives @ HEAD.weight.T, precision).T / 0.05])
        return -(np.diag(log_softmax(forth)).mean() + np.diag(log_softmax(scores.T)).mean()) / 2

    seen, unseen = pairs.split(1 / 8, 3)
    assert len(unseen) == 5
    assert float(losses["held_out"](weight)) == pytest.approx(expected(unseen), rel=1e-3)
    assert float(losses["loss"](weight)) == pytest.approx(expected(seen), rel=1e-3), "all in one batch"
    contrast_head(HEAD, PAIRS)
    assert losses["settings"] == {"steps": 200, "learning_rate": 5e-3}


@pytest.mark.parametrize("nested", [None, (4, 8)])
def test_training_is_adam_with_a_warm_up_and_a_cosine_and_keeps_the_best_held_out_step(nested):
    head = fit_head(SUMMARY, Size(8, nested=nested))
    torch.manual_seed(0)
    target = torch.randn(8, 16)
    seen = []

    def loss(weight):
        seen.append(tuple(weight.shape))
        return ((weight - target[: len(weight)]) ** 2).mean()

    sizes = nested or (8,)
    told = iter(np.repeat([3.0, 1.0, 1.0, 2.0], len(sizes)))  # at steps 0, 25, 50 and 60

    def held_out(weight):
        assert not weight.requires_grad or not torch.is_grad_enabled()
        return torch.tensor(next(told))

    trained, step = train(head, loss, held_out, steps=60, learning_rate=0.1)

    scale = float(np.sqrt(np.square(head.weight).mean()))
    weight = (torch.from_numpy(head.weight) / scale).requires_grad_()
    first, second = torch.zeros(8, 16), torch.zeros(8, 16)
    for t in range(1, 26):
        mean = sum(loss(weight[:size]) for size in sizes) / len(sizes)
        (gradient,) = torch.autograd.grad(mean, weight)
        first, second = 0.9 * first + 0.1 * gradient, 0.98 * second + 0.02 * gradient**2
        rate = 0.1 * min(1, t / 20) * 0.5 * (1 + math.cos(math.pi * t / 60))
        change = (first / (1 - 0.9**t)) / ((second / (1 - 0.98**t)).sqrt() + 1e-8)
        weight = (weight.detach() - rate * change).requires_grad_()
    assert step == 25
    assert next(told, None) is None
    expected = weight.detach() * scale / weight.detach().square().mean().sqrt()
    assert np.allclose(trained.weight, expected, rtol=1e-4, atol=1e-6)
    assert trained.bias is None
    assert trained.record == head.record
    assert set(seen) == {(size, 16) for size in sizes}


def test_the_last_step_is_evaluated_too():
    target = torch.ones(8, 16)
    losses = [lambda weight: ((weight - target) ** 2).mean()] * 2
    assert train(HEAD, *losses, steps=7, learning_rate=0.01)[1] == 7


@pytest.mark.parametrize("precision", Precision)
def test_the_gradient_passes_straight_through_the_grid(precision):
    rows = torch.from_numpy(X[:20].copy()).requires_grad_()
    upstream = torch.from_numpy(X[20:40])
    found = read_back(rows, precision)
    assert np.allclose(found.detach(), through(X[:20], precision), atol=1e-6)
    (gradient,) = torch.autograd.grad(found, rows, upstream)
    (plain,) = torch.autograd.grad(F.normalize(rows, dim=1), rows, upstream)
    assert torch.allclose(gradient, plain)


def test_batches_draw_other_rows_each_time_and_the_same_with_one_seed():
    draw, again, other = batches(50, 10, 1), batches(50, 10, 1), batches(50, 10, 2)
    drawn = [draw() for _ in range(3)]
    assert all(len(set(rows.tolist())) == 10 and rows.min() >= 0 and rows.max() < 50 for rows in drawn)
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(again(), drawn[0])
    assert not torch.equal(other(), drawn[0])
    assert sorted(batches(5, 10, 1)().tolist()) == [0, 1, 2, 3, 4]


def test_every_fit_shows_its_progress(monkeypatch, capsys):
    fits = {
        "Rotating: 100%": lambda: fit_head(SUMMARY, 8),
        "Training: 100%": lambda: distill_head(HEAD, SUMMARY, steps=2),
        "Choosing: 3.00 options": lambda: choose(SUMMARY, Size(bytes=4)),
        "Choosing: 100%": lambda: fit_head(SUMMARY, 8, cloze_pairs=PAIRS),
    }
    monkeypatch.setattr(progress, "_DELAY", 0)
    for begin, fit in fits.items():
        monkeypatch.setattr(progress, "_disabled", True)
        fit()
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(progress, "_disabled", False)  # shown without a terminal too
        fit()
        lines = capsys.readouterr().err.replace("\n", "\r").split("\r")
        assert any(line.startswith(begin) for line in lines), lines
        assert any(f" {unit}/s" in line for line in lines for unit in ("steps", "options", "strengths")), lines
    contrast_head(HEAD, PAIRS, steps=2)
    assert "\rTraining: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("fit", [distill_head, contrast_head])
def test_the_same_seed_gives_the_same_head_and_another_another(fit):
    rows = (np.random.default_rng(1).standard_normal((2600, 16)) * np.linspace(2, 0.3, 16)).astype(np.float32)
    evidence = Summary.of(rows) if fit is distill_head else Pairs(rows[:1300], rows[1300:] + 2 * rows[:1300])
    start = closed_form_head(Summary.of(rows), 8, whitening=0.5)
    heads = [fit(start, evidence, steps=50, **settings) for settings in ({}, {"seed": 0}, {"seed": 1})]
    weights = [head.weight for head in heads]
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])
    begun, ended = start.record.to_dict(), [head.record.to_dict() for head in heads]
    assert all(begun.items() <= record.items() for record in ended), "it keeps how it began"
    assert ended[0].keys() - begun.keys() in ({"distilled_steps"}, {"labelled_pairs", "trained_steps"})


@pytest.mark.filterwarnings("error")
def test_the_fewest_that_are_enough_are_trained_on():
    assert distill_head(HEAD, Summary.of(X[:64]), steps=25, learning_rate=1e-4) is not HEAD
    assert (
        contrast_head(HEAD, Pairs(PAIRS.queries[:32], PAIRS.documents[:32]), steps=25, learning_rate=1e-4) is not HEAD
    )
