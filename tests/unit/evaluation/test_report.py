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

from st_dimreduce.enums import Precision
from st_dimreduce.evaluation import plots, report
from st_dimreduce.evaluation.compare import compare_embeddings
from st_dimreduce.evaluation.embeddings import Embedded, Stored
from st_dimreduce.evaluation.peers import peers
from st_dimreduce.evaluation.report import (
    choice_table,
    comparison_table,
    publication_table,
    write_html,
    write_plots,
)
from st_dimreduce.texts import Question

TIMES = "\N{MULTIPLICATION SIGN}"
RNG = np.random.default_rng(0)
QUESTION = Question(
    documents=[*(f"document {row}" for row in range(59)), "<script>alert(1)</script> the cat & the dog"],
    queries=[f"query {row}" for row in range(59)] + ["<b>bold</b>"],
    relevant=[{row} for row in range(60)],
)


def measured(*only_reduced):
    """Of a base model, two of whose queries the reduced model cannot answer, in two precisions, and of its peers.

    The base model cannot answer the given queries, which the reduced one can.
    """
    documents = RNG.standard_normal((60, 16)).astype(np.float32)
    base = Embedded(documents.copy(), documents, seconds=1.0)
    small = Embedded(documents[:, :8].copy(), documents[:, :8], seconds=0.5)
    small.queries[[4, 59]] *= -1
    base.queries[list(only_reduced)] *= -1
    stored = [Stored("small", small, precision) for precision in ("int8", "binary")]
    return compare_embeddings(base, [*stored, *peers(base, [8])], QUESTION.relevant)


@pytest.fixture(scope="module")
def comparison():
    return measured()


@pytest.fixture(scope="module")
def gaining():
    return measured(7)


@pytest.fixture
def no_plots(monkeypatch):
    """Plots take most of the time that a page takes."""
    monkeypatch.setattr(report, "_plot", lambda caption, _: report._Plot(caption))


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


@pytest.mark.parametrize(
    ("precision", "said"),
    [
        ("int4", "384 int4"),
        ("PCA64,RR64,RaBitQ1", "64 RaBitQ1"),
        ("RR384,RaBitQ2", "384 RaBitQ2"),
        ("PQ64x4", "384 PQ64x4"),
    ],
)
def test_what_faiss_stores_is_said_in_short(precision, said, comparison):
    row = replace(comparison.rows[0], dimensions=384, precision=precision)
    assert said in shown(comparison_table(replace(comparison, rows=[row]), "a title"), 80)


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


def test_figures_are_json_without_texts(comparison):
    figures = json.loads(json.dumps(comparison.to_dict()))
    assert figures["metric"] == "ndcg"
    assert not any(text in str(figures) for text in QUESTION.documents)


@pytest.fixture(scope="module")
def page(gaining, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_html(gaining, path, QUESTION, title="a <title>", chosen={"small": Precision.INT8})
    return path.read_text()


def test_a_page_opens_offline_and_shows_texts_as_texts(gaining, page):
    outline = Outline()
    outline.feed(page)
    assert outline.fetched == [], "the page opens offline"
    assert not {"script", "b"} & set(outline.tags), "a text is a text"
    assert "&lt;script&gt;" in page
    assert "a &lt;title&gt;" in page
    assert outline.tags.count("img") == 2 * 3, "for light and dark: quality, and of the chosen row what changed; more"
    groups = len({row.name for row in gaining.rows})
    assert outline.tags.count("tr") == 1 + groups + len(gaining.rows)
    assert re.search(r"<small>\d+\.\d-\d+\.\d</small>", page)


def test_the_verdict_comes_first_and_the_chosen_row_is_marked(gaining, page):
    int8 = gaining.rows[1]
    (verdict,) = re.findall(r"<h1>(.*?)</h1>", page)
    assert verdict.startswith(
        "small stored as int8 takes 8 bytes per vector, 1/8 of the base model&#39;s 64, and finds "
    )
    assert f"nDCG@10 {100 * int8.ndcg:.1f} against {100 * gaining.rows[0].ndcg:.1f}" in verdict
    assert page.index("<h1>") < page.index("<img") < page.index("<table")
    (chosen,) = re.findall(r'<tr role="row" class="chosen"><th role="rowheader" scope="row">(.*?)</th>', page)
    assert chosen == f'8 {TIMES} int8 <span class="badge">chosen</span>'


def test_rows_are_grouped_by_method_in_the_words_of_the_field(gaining, page):
    groups = re.findall(r'scope="rowgroup" colspan="\d+">(.*?)</th>', page)
    methods = [re.sub(r" <small>.*", "", group) for group in groups]
    assert methods[:4] == ["base model", "small", "binary", "truncation"]


def test_what_queries_lost_and_gained(page):
    lost, gained = page.index("Queries that lost most"), page.index("Queries that gained most")
    assert page.index(">query 4<") < gained
    assert page.index(">query 7<") > gained > lost
    assert re.search(r'relevant" value="\d+"><span class="rank">\d+</span><span class="text">document 4</span>', page)
    assert re.search(r"100\.0</span><span class=\"text\">query 4</span><small>relevant document: rank 1 → \d+<", page)
    assert re.search(r'\+100\.0</span><span class="text">query 7</span><small>relevant document: rank \d+ → 1<', page)
    assert "<details open" not in page


@pytest.mark.usefixtures("no_plots")
def test_of_several_relevant_documents_those_that_moved_most_are_shown(comparison, tmp_path):
    several = replace(QUESTION, relevant=[{row, *range(20, 40)} for row in range(60)])
    write_html(comparison, tmp_path / "report.html", several)
    assert re.search(r"relevant among the first ten: \d+ → \d+ of 21", (tmp_path / "report.html").read_text())


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    ("retention", "interval", "words"),
    [
        (1.1, (1.02, 1.2), "finds more: nDCG@10"),
        (0.9, (0.8, 0.97), "finds less: nDCG@10"),
        (1.01, (0.97, 1.04), "finds as much, give or take chance: nDCG@10"),
    ],
)
def test_the_verdict_says_no_more_than_the_interval(comparison, tmp_path, retention, interval, words):
    rows = [*comparison.rows]
    for number in (1, 2):
        rows[number] = replace(rows[number], retention=retention, intervals={"retention": interval})
    write_html(replace(comparison, rows=rows), tmp_path / "report.html", QUESTION)
    (verdict,) = re.findall(r"<h1>(.*?)</h1>", (tmp_path / "report.html").read_text())
    assert words in verdict
    assert ("binary" in verdict) == (interval[1] >= 1), "the fewest bytes that do not fall behind, else the first"


@pytest.mark.usefixtures("no_plots")
def test_without_a_choice_the_fewest_bytes_that_keep_up_are_marked(comparison, tmp_path):
    overlap = replace(
        comparison,
        metric="overlap",
        rows=[replace(row, ndcg=None, recall=None, retention=row.overlap) for row in comparison.rows],
        gained=[[] for _ in comparison.rows],
    )
    write_html(overlap, tmp_path / "report.html", replace(QUESTION, relevant=None))
    page = (tmp_path / "report.html").read_text()
    assert re.search(r"<h1>small stored as \w+ .* finds [\d.]+\s% of the base model&#39;s ten nearest neighbours", page)
    assert "Queries that gained" not in page


def test_plots_are_drawn(comparison, tmp_path):
    paths = write_plots(comparison, tmp_path)
    assert {path.name for path in paths.values()} == {
        "quality.png",
        *(f"{kind}-{row}.png" for kind in ("changes", "cosines") for row in (1, 2)),
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
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img ") == 2 * 3
    assert "Not drawn" not in page
    assert r"$\frac$ [/x] \udcff" in page
    assert comparison.rows[1].name == r"$\frac$ [/x] \udcff"
    assert len(write_plots(comparison, tmp_path)) == 3


def test_a_plot_that_fails_does_not_cost_the_report(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no <ink>")

    monkeypatch.setattr(plots, "plot_changes", fail)
    comparison = named("small")
    write_html(comparison, tmp_path / "report.html", Question(documents=["a"] * 60))
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img ") == 2 * 2
    assert "<p>Not drawn: RuntimeError: no &lt;ink&gt;</p>" in page
    assert f"Query by query: small, 8 {TIMES} int8" in page


def test_a_plot_by_dimensions_joins_the_reduced_models_only(comparison, monkeypatch, tmp_path):
    lines = []
    monkeypatch.setattr(plots, "label_ends", lambda axes, ends: lines.extend(axes.get_lines()))
    plots.plot_retention(comparison, tmp_path / "retention.png")
    assert [line.get_xdata() for line in lines[1:]] == [[8], [8]], "a point for int8 and one for binary, none of peers"


def test_labels_are_moved_apart_in_their_order():
    places = plots.spread({"a": 0.5, "b": 0.51, "c": 0.0}, 0.1)
    assert places["b"] - places["a"] == pytest.approx(0.1, abs=0.01)
    assert places["c"] == 0.0
