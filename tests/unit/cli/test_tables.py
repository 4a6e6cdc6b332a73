"""Tables that commands print."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from st_dimreduce.cli.tables import choice_table, comparison_table, drift_table, publication_table
from st_dimreduce.evaluation.compare import compare_embeddings
from st_dimreduce.evaluation.embeddings import Embedded, Stored

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def comparison():
    """A base model, and a reduced one in two precisions, which cannot answer two of the queries."""
    documents = RNG.standard_normal((60, 16)).astype(np.float32)
    base = Embedded(documents.copy(), documents, seconds=1.0)
    small = Embedded(documents[:, :8].copy(), documents[:, :8], seconds=0.5)
    small.queries[[4, 59]] *= -1
    stored = [Stored("small", small, precision) for precision in ("int8", "binary")]
    return compare_embeddings(base, stored, [{row} for row in range(60)])


def shown(table, width=160):
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def test_a_table_has_a_column_for_what_was_measured(comparison):
    text = shown(comparison_table(comparison, "a title", vectors=5000, price=2.5))
    for word in (
        "a title",
        "base model",
        "small",
        "int8",
        "price per",
        "month",
        "retention",
    ):
        assert word in text
    assert not any(word in text for word in ("STS", "GB for", "seconds"))
    narrow = shown(comparison_table(comparison, "a title", vectors=5000, price=2.5), 80)
    assert max(map(len, narrow.splitlines())) <= 80
    assert "…" not in narrow
    assert "GB for" in shown(comparison_table(comparison, "a title"))
    assert "5k" in shown(comparison_table(comparison, "a title", vectors=5000))
    small = comparison.rows[1]
    low, high = small.intervals["retention"]
    assert f"{100 * small.retention:.1f} ({100 * low:.1f}-{100 * high:.1f})" in text
    assert "price per" not in shown(comparison_table(comparison, "a title"))


@pytest.mark.parametrize(
    ("precision", "short"),
    [
        ("int4", "384 int4"),
        ("PCA64,RR64,RaBitQ1", "64 RaBitQ1"),
        ("RR384,RaBitQ2", "384 RaBitQ2"),
        ("PQ64x4", "384 PQ64x4"),
    ],
)
def test_faiss_settings_are_shortened(precision, short, comparison):
    row = replace(comparison.rows[0], dimensions=384, precision=precision)
    assert short in shown(comparison_table(replace(comparison, rows=[row]), "a title"), 80)


def test_without_labels_the_overlap_is_the_retention(comparison):
    overlap = replace(
        comparison,
        metric="overlap",
        rows=[replace(row, ndcg=None, recall=None, retention=row.overlap) for row in comparison.rows],
    )
    text = shown(comparison_table(overlap, "a title"))
    assert "retention" not in text
    small = overlap.rows[1]
    low, high = small.intervals["overlap"]
    assert f"{100 * small.overlap:.1f} ({100 * low:.1f}-{100 * high:.1f})" in text


def test_the_chosen_option_has_a_star():
    best = {"out_features": 64, "precision": "int4", "bytes_per_vector": 32, "retention": 0.987}
    other = {"out_features": 32, "precision": "int8", "bytes_per_vector": 32, "retention": 0.95}
    lines = shown(choice_table({"best": best, "measured": [other, best], "metric": "nDCG@10"})).splitlines()
    assert any("nDCG@10 retention" in line for line in lines)
    assert [line.split() for line in lines if "int" in line] == [
        ["32", "32", "int8", "95.0"],
        ["32", "64", "int4", "98.7", "*"],
    ]


def test_the_files_of_a_model():
    text = shown(publication_table({"config.json": 1200, "model.safetensors": 2_000_000}))
    assert "2 files, 2,001,200 bytes" in text
    assert "2,000,000" in text


def test_figures_of_drift():
    figures = [
        {"name": "variance lost", "at_fit": 0.1, "now": 0.25, "watch": 0.15, "refit": 0.2},
        {"name": "neighbours lost", "at_fit": 0.2, "now": 0.21, "watch": 0.3, "refit": 0.4},
    ]
    lines = shown(drift_table({"vectors": 12_000, "figures": figures})).splitlines()
    assert "12,000 vectors" in lines[0]
    assert [line.split()[-4:] for line in lines if "lost" in line] == [
        ["10.0%", "25.0%", "15.0%", "20.0%"],
        ["20.0%", "21.0%", "30.0%", "40.0%"],
    ]
