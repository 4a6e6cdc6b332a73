from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from st_dimreduce.evaluation import plots
from st_dimreduce.evaluation.compare import compare_embeddings
from st_dimreduce.evaluation.embeddings import Embedded, Stored
from st_dimreduce.evaluation.peers import peers
from st_dimreduce.evaluation.report import (
    choice_table,
    comparison_table,
    publication_table,
    write_figures,
    write_html,
    write_plots,
)
from st_dimreduce.texts import Question

RNG = np.random.default_rng(0)
QUESTION = Question(
    documents=[*(f"document {row}" for row in range(59)), "<script>alert(1)</script> the cat & the dog"],
    queries=[f"query {row}" for row in range(59)] + ["<b>bold</b>"],
    relevant=[{row} for row in range(60)],
)


@pytest.fixture(scope="module")
def comparison():
    """Of a base model, one of whose queries the reduced model cannot answer, in two precisions, and of its peers."""
    documents = RNG.standard_normal((60, 16)).astype(np.float32)
    base = Embedded(documents.copy(), documents, seconds=1.0)
    small = Embedded(documents[:, :8].copy(), documents[:, :8], seconds=0.5)
    small.queries[[4, 59]] *= -1
    stored = [Stored("small", small, precision) for precision in ("int8", "binary")]
    return compare_embeddings(base, [*stored, *peers(base, [8])], QUESTION.relevant)


class Outline(HTMLParser):
    """Tags of a page, and what it would fetch."""

    def __init__(self):
        super().__init__()
        self.tags, self.fetched = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href") and not value.startswith("data:")]


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


def test_figures_are_json_without_texts(comparison, tmp_path):
    write_figures(comparison.to_dict(), tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures == json.loads(json.dumps(comparison.to_dict()))
    assert figures["metric"] == "ndcg"


def test_a_page_opens_offline_and_shows_texts_as_texts(comparison, tmp_path):
    write_html(comparison, tmp_path / "report.html", QUESTION, title="a <title>")
    page = (tmp_path / "report.html").read_text()
    outline = Outline()
    outline.feed(page)
    assert outline.fetched == [], "the page opens offline"
    assert not {"script", "b"} & set(outline.tags), "a text is a text"
    assert "&lt;script&gt;" in page
    assert "a &lt;title&gt;" in page
    assert outline.tags.count("img") == 2 + 2, "plots of the models, none of the peers' cosines"
    assert outline.tags.count("tr") == 1 + len(comparison.rows)
    assert page.count("Largest losses: ") == 2, "of each precision, not of peers"
    assert page.index("query 4 ") < page.index("Largest losses: small, binary")
    assert re.search(r"document 4 <small>\(relevant\)</small>", page)
    assert re.search(r"<small>\d+\.\d-\d+\.\d</small>", page)


def test_plots_are_drawn(comparison, tmp_path):
    paths = write_plots(comparison, tmp_path)
    assert {path.name for path in paths.values()} == {
        "quality.png",
        "retention.png",
        "cosines-1.png",
        "cosines-2.png",
    }
    assert set(tmp_path.iterdir()) == set(paths.values())
    for path in paths.values():
        with Image.open(path) as image:
            assert image.width >= 900
            assert len(image.convert("RGB").getcolors(2**24)) > 10, "nothing was drawn"


NAME = "$\\frac$ [/x] \udcff"


def named(name):
    documents = RNG.standard_normal((60, 16)).astype(np.float32)
    base = Embedded(None, documents, seconds=1.0)
    return compare_embeddings(base, [Stored(name, Embedded(None, documents[:, :8], seconds=1.0), "int8")])


def test_a_name_is_no_formula_and_no_markup(tmp_path):
    comparison = named(NAME)
    texts = Question(documents=[f"document {row} \ud800" for row in range(60)])
    write_html(comparison, tmp_path / "report.html", texts)
    write_figures(comparison.to_dict(), tmp_path / "figures.json")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img ") == 3
    assert "Not drawn" not in page
    assert r"$\frac$ [/x] \udcff" in page
    assert comparison.rows[1].name == r"$\frac$ [/x] \udcff"
    assert len(write_plots(comparison, tmp_path)) == 3


def test_a_plot_that_fails_does_not_cost_the_report(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no <ink>")

    monkeypatch.setattr(plots, "plot_retention", fail)
    comparison = named("small")
    write_html(comparison, tmp_path / "report.html", Question(documents=["a"] * 60))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img ") == 2
    assert "<p>Not drawn: RuntimeError: no &lt;ink&gt;</p>" in page
    assert "Largest losses: small, int8" in page
