"""``st-dimreduce compare``."""

from __future__ import annotations

import json

import pytest

from tests.helpers.command import run


def test_pairs_alone_and_nothing_but_texts(inputs):
    done = run("compare", inputs / "base", inputs / "tiny-16", "--pairs", inputs / "sts.csv", "--precision", "int8")
    assert done.exit_code == 0, done.output
    assert "STS" in done.output
    assert "Encoded once, by the base model: tiny-16 has the same modules below its head.\n" in done.stdout
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


def test_the_base_model_comes_first(inputs):
    done = run("compare", inputs / "tiny-16", inputs / "base", "--texts", inputs / "texts.txt")
    assert done.exit_code == 2
    assert done.stderr == (
        "error: the first model has a fitted head and 'base' has none: give the base model first, then the reduced "
        "ones\n"
    )


def test_equal_texts_are_refused(inputs):
    (inputs / "same.txt").write_text("the cat sings\n" * 300)
    for arguments in (("compare", inputs / "base", inputs / "tiny-16", "--texts"), ("reduce", inputs / "base")):
        output = ("--output", inputs / "new", "--dim", "4") if arguments[0] == "reduce" else ()
        done = run(*arguments, inputs / "same.txt", *output)
        assert done.exit_code == 2
        assert "are the same: give texts that differ" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_folder_of_beir_twice_from_a_cache(inputs):
    texts = (inputs / "texts.txt").read_text().splitlines()[:60]
    rows = [{"_id": f"d{row}", "title": "the cat", "text": text} for row, text in enumerate(texts)]
    (inputs / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = [{"_id": f"q{row}", "text": f"the cat {text}"} for row, text in enumerate(texts)]
    (inputs / "queries.jsonl").write_text("\n".join(map(json.dumps, asked)))
    grades = [f"q{row}\td{row}\t2\nq{row}\td{(row + 1) % 60}\t1\n" for row in range(50)]
    (inputs / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(grades))
    figures = []
    for _ in range(2):
        arguments = ("--texts", inputs / "corpus.jsonl", "--queries", inputs / "queries.jsonl")
        arguments += ("--relevant", inputs / "test.tsv", "--cache", inputs / "cache", "--json")
        done = run("compare", inputs / "base", inputs / "tiny-16", *arguments, "--precision", "int8")
        assert done.exit_code == 0, done.output
        assert "10 of 60 queries have no relevant document" in done.stderr
        rows = json.loads(done.stdout)["rows"]
        figures.append([(row["ndcg"], row["recall"], row["overlap"]) for row in rows])
    assert figures[0] == figures[1]
    assert 0.5 < figures[0][0][0] < 1, "the most relevant comes first, not always the other second"
    assert len(list((inputs / "cache").iterdir())) == 2
