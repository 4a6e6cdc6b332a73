"""Every output of ``st-dimreduce compare`` in one run."""

from __future__ import annotations

import json

import pytest

from tests.helpers.command import run


def test_every_output_of_a_comparison(inputs):
    out = inputs / "out"
    command = ["compare", inputs / "base", inputs / "tiny-16", inputs / "tiny-4", "--texts", inputs / "texts.txt"]
    command += [
        "--queries",
        inputs / "queries.txt",
        "--relevant",
        inputs / "relevant.tsv",
        "--pairs",
        inputs / "sts.csv",
    ]
    command += ["--peers", "--vectors", "5000", "--price", "2.5"]
    done = run(*command, "--report", out / "report.html")
    assert done.exit_code == 0, done.output
    words = ("base model", "tiny-16", "tiny-4", "int2", "price per", "month", "retention")
    words += ("binary", "truncation", "PCA + int8")
    for word in words:
        assert word in done.output
    printed = run(*command, "--json")
    assert printed.exit_code == 0, printed.output
    figures = json.loads(printed.stdout)
    assert figures["metric"] == "ndcg"
    assert figures["rows"][0]["ndcg"] == pytest.approx(1), "each query is the text it should find"
    assert {(row["name"], row["precision"]) for row in figures["rows"]} >= {
        ("tiny-4", "binary"),
        ("tiny-16", "float32"),
    }
    peers = {(row["name"], row["bytes_per_vector"]) for row in figures["rows"][11:]}
    assert {("binary", 4), ("truncation", 1), ("truncation", 2), ("PCA + int8", 2)} <= peers
    assert not any(name == "PQ" for name, _ in peers), "too few documents to train it on"
    page = (out / "report.html").read_text()
    assert page.count("<img") == 2, "for light and dark"
    assert page.count("<tr") == 1 + len({row["name"] for row in figures["rows"]}) + len(figures["rows"])
    assert page.count("Query by query: ") == page.count('class="chosen"') == 2
    assert page.count("per month") == 1 + len(figures["rows"]), "a column, and its label on a phone"
