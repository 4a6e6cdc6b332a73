"""``st-dimreduce compare``."""

from __future__ import annotations

import pytest

from tests.helpers.command import run


def test_pairs_alone_and_nothing_but_texts(inputs):
    done = run("compare", inputs / "base", inputs / "tiny-16", "--pairs", inputs / "sts.csv", "--precision", "int8")
    assert done.exit_code == 0, done.output
    assert "STS" in done.output
    assert "binary" not in done.output
    done = run("compare", inputs / "base", inputs / "tiny-16", "--texts", inputs / "texts.txt", "--quiet")
    assert (done.exit_code, done.output) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "no texts to search were given"),
        (("--texts", "texts.txt", "--relevant", "relevant.tsv"), "but no queries were given: give --queries FILE"),
        (("--texts", "texts.txt", "--queries", "none.txt"), "no file none.txt"),
        (("--texts", "texts.txt", "--report", "texts.txt/report.html"), "cannot be written"),
        (
            ("--pairs", "texts.txt"),
            "expected scored pairs: a .csv or .tsv file with the columns sentence1, sentence2 and score",
        ),
    ],
)
def test_bad_input_is_one_line(inputs, monkeypatch, arguments, message):
    monkeypatch.chdir(inputs)
    done = run("compare", "base", "tiny-16", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_two_models_of_one_name_are_refused(inputs):
    done = run("compare", inputs / "base", inputs / "tiny-16", inputs / "tiny-16", "--texts", inputs / "texts.txt")
    assert done.exit_code == 2
    assert "have folders of one name" in done.stderr
