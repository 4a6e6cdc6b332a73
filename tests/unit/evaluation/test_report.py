from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from st_dimreduce.enums import Precision
from st_dimreduce.evaluation import plots
from st_dimreduce.evaluation.compare import compare_embeddings
from st_dimreduce.evaluation.embeddings import Embedded, Stored
from st_dimreduce.evaluation.peers import peers
from st_dimreduce.evaluation.report import write_html
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
    """Drawing takes most of the time that a page takes."""
    monkeypatch.setattr(plots, "plot_quality", lambda *_: None)


class Outline(HTMLParser):
    """Tags of a page, and what it would fetch."""

    def __init__(self):
        super().__init__()
        self.tags, self.fetched = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href") and not value.startswith("data:")]


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
    assert outline.tags.count("img") == 2, "for light and dark"
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
        helped=[[] for _ in comparison.rows],
    )
    write_html(overlap, tmp_path / "report.html", replace(QUESTION, relevant=None))
    page = (tmp_path / "report.html").read_text()
    assert re.search(r"<h1>small stored as \w+ .* finds [\d.]+\s% of the base model&#39;s ten nearest neighbours", page)
    assert "Queries that gained" not in page


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_plot_is_drawn(comparison, tmp_path, theme):
    plots.plot_quality(comparison.to_dict(), tmp_path / "quality.png", theme)
    with Image.open(tmp_path / "quality.png") as image:
        assert image.width >= 900
        assert len(image.convert("RGB").getcolors(2**24)) > 10, "nothing was drawn"
        assert (max(image.convert("RGB").getpixel((2, 2))) < 60) == (theme == "dark")


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
    assert page.count("<img ") == 2
    assert r"$\frac$ [/x] \udcff" in page
    assert comparison.rows[1].name == r"$\frac$ [/x] \udcff"


def test_labels_are_moved_apart_in_their_order():
    places = plots.spread({"a": 0.5, "b": 0.51, "c": 0.0}, 0.1)
    assert places["b"] - places["a"] == pytest.approx(0.1, abs=0.01)
    assert places["c"] == 0.0
