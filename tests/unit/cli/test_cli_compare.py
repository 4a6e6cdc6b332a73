from __future__ import annotations

from itertools import pairwise

import pytest
from typer.testing import CliRunner

from st_dimreduce import reduce_model, save_portable
from st_dimreduce.cli import app
from tests.helpers.tiny import SENTENCES


@pytest.fixture
def files(tiny, tmp_path):
    tiny.save_pretrained(str(tmp_path / "base"))
    for size in (16, 4):
        save_portable(reduce_model(tiny, SENTENCES, size), tmp_path / f"tiny-{size}")
    texts = [*SENTENCES[:60], "<script>alert(1)</script> the cat & the dog"]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    (tmp_path / "queries.txt").write_text("\n".join(reversed(texts)))
    (tmp_path / "relevant.tsv").write_text("".join(f"{61 - row}\t{row + 1}\t1\n" for row in range(61)))
    rows = [f'"{one}","{other}",{row % 6}\n' for row, (one, other) in enumerate(pairwise(texts))]
    (tmp_path / "sts.csv").write_text("".join(rows))
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_pairs_alone_and_nothing_but_texts(files):
    done = run("compare", files / "base", files / "tiny-16", "--pairs", files / "sts.csv", "--precision", "int8")
    assert done.exit_code == 0, done.output
    assert "STS" in done.output
    assert "binary" not in done.output
    done = run("compare", files / "base", files / "tiny-16", "--texts", files / "texts.txt", "--quiet")
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
def test_bad_input_is_one_line(files, monkeypatch, arguments, message):
    monkeypatch.chdir(files)
    done = run("compare", "base", "tiny-16", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_two_models_of_one_name_are_refused(files):
    done = run("compare", files / "base", files / "tiny-16", files / "tiny-16", "--texts", files / "texts.txt")
    assert done.exit_code == 2
    assert "have folders of one name" in done.stderr
