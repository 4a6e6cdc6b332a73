"""Every output of ``st-dimreduce compare`` in one run."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from PIL import Image
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


def test_every_output_of_a_comparison(files):
    out = files / "out"
    done = run(
        *("compare", files / "base", files / "tiny-16", files / "tiny-4", "--texts", files / "texts.txt"),
        *("--queries", files / "queries.txt", "--relevant", files / "relevant.tsv", "--pairs", files / "sts.csv"),
        *("--peers", "--report", out / "report.html", "--json", out / "figures.json", "--plots", out / "plots"),
        *("--vectors", "5000", "--price", "2.5"),
    )
    assert done.exit_code == 0, done.output
    words = ("base model", "tiny-16", "tiny-4", "int2", "GB for", "5k", "per month", "retention", "binary quantization")
    for word in words:
        assert word in done.output
    figures = json.loads((out / "figures.json").read_text())
    assert figures["metric"] == "ndcg"
    assert figures["rows"][0]["ndcg"] == pytest.approx(1), "each query is the text it should find"
    assert {(row["name"], row["precision"]) for row in figures["rows"]} >= {
        ("tiny-4", "binary"),
        ("tiny-16", "float32"),
    }
    page = (out / "report.html").read_text()
    assert page.count("<img") == 2 + 2 * 5, "plots of the models, none of the peers' cosines"
    assert page.count("<tr>") == 1 + len(figures["rows"])
    assert page.count("Largest losses: ") == sum(row["ndcg"] < 1 for row in figures["rows"] if row["seconds"])
    pictures = sorted((out / "plots").iterdir())
    assert len(pictures) == 2 + 2 * 5
    for picture in pictures:
        with Image.open(picture) as image:
            assert image.width >= 900
            assert len(image.convert("RGB").getcolors(2**24)) > 10, "nothing was drawn"
