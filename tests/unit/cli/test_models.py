"""``st-dimreduce reduce``."""

from __future__ import annotations

import json

import pytest
from sentence_transformers import SentenceTransformer

from tests.helpers.command import run
from tests.helpers.tiny import SENTENCES


@pytest.fixture
def base_path(tiny, tmp_path):
    tiny.save_pretrained(str(tmp_path / "base"))
    return str(tmp_path / "base")


@pytest.fixture
def texts_path(tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES))
    return str(tmp_path / "texts.txt")


def test_reduce_writes_a_model_and_prints_what_it_cost(base_path, texts_path, tmp_path):
    out = tmp_path / "out"
    done = run("reduce", base_path, texts_path, "--dim", "8", "--output", str(out), "--seed", "4")
    assert done.exit_code == 0, done.stderr
    for word in ("base model", "reduced model", "overlap", "held-out", f"Wrote {out}"):
        assert word in " ".join(done.stdout.split()), done.stdout
    assert "it/s" not in done.stderr, "no progress bar where there is no terminal"
    assert SentenceTransformer(str(out), device="cpu").encode(["x"]).shape == (1, 8)
    record = json.loads((out / "st_dimreduce.json").read_text())
    assert record["seed"] == 4
    base, reduced, *others = record["figures"]["rows"]
    assert [row["precision"] for row in others] == ["int8", "int4", "int2", "binary"]
    assert (base["dimensions"], reduced["dimensions"], reduced["bytes_per_vector"]) == (32, 8, 32)
    assert 0 < reduced["overlap"] <= 1
    assert record["figures"]["documents"] + record["vectors"] == len(SENTENCES)


def test_standard_input_columns_force_and_quiet(base_path, tmp_path):
    out = tmp_path / "out"
    done = run("reduce", base_path, "-", "--dim", "4", "-o", str(out), "--quiet", stdin="\n".join(SENTENCES))
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"body": text}) for text in SENTENCES))
    arguments = ("reduce", base_path, str(tmp_path / "t.jsonl"), "--column", "body", "--dim", "5", "-o", str(out))
    assert run(*arguments).exit_code == 2
    assert run(*arguments, "--force").exit_code == 0
    assert SentenceTransformer(str(out), device="cpu").get_embedding_dimension() == 5


def test_a_budget_of_a_store(base_path, texts_path, tmp_path):
    done = run("reduce", base_path, texts_path, "--bytes", "8", "--store", "pgvector", "-o", str(tmp_path / "out"))
    assert done.exit_code == 0, done.stderr
    record = json.loads((tmp_path / "out" / "st_dimreduce.json").read_text())
    assert record["choice"]["store"] == "pgvector"
    assert record["choice"]["best"]["column"] in {"bit", "halfvec"}
    assert "of what pgvector stores" in " ".join(done.stdout.split())


def test_a_budget_in_place_of_a_dimension(base_path, texts_path, tmp_path):
    done = run("reduce", base_path, texts_path, "--bytes", "8", "--objective", "fidelity", "-o", str(tmp_path / "out"))
    assert done.exit_code == 0, done.stderr
    record = json.loads((tmp_path / "out" / "st_dimreduce.json").read_text())
    best = record["choice"]["best"]
    assert best["bytes_per_vector"] <= 8
    assert (best["out_features"], best["precision"]) == (record["out_features"], record["precision"])
    measured = {row["precision"]: row["bytes_per_vector"] for row in record["figures"]["rows"][1:]}
    assert measured[best["precision"]] == best["bytes_per_vector"]
    for word in ("Chosen on held-out data", "overlap@10", best["precision"]):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("BASE", "none.txt"), "no file none.txt: give a file of texts"),
        (("BASE", "EMPTY"), "holds no text"),
        (("BASE", "TEXTS", "--column", "body"), "only .jsonl and .csv files have columns"),
        (("BASE", "TEXTS", "--dim", "0"), "dim=0: choose a size of at least 1"),
        (("BASE", "TEXTS", "--dim", "999"), "dim=999: choose a size from 1 to 32"),
        (("BASE", "TEXTS", "--bytes", "0"), "bytes=0: choose a budget of at least 1"),
        (("BASE", "TEXTS", "--bytes", "999"), "bytes=999: choose 1 to 128"),
        (("BASE", "TEXTS", "--keep", "1.5"), "keep=1.5: choose a share"),
        (("BASE", "TEXTS", "--store", "faiss"), "store='faiss' is for choosing a precision"),
        (("BASE", "TEXTS", "--keep", "0.9", "--dim", "8"), "dim and keep were given: give exactly one"),
        (
            ("BASE", "FEW", "--dim", "8"),
            "9 texts, 3 of them held out to measure on, are too few to fit 8: give at least 12",
        ),
        (("BASE", "ONE", "--dim", "1"), "are too few to fit 1: give at least 6"),
        (("no/such-model", "TEXTS"), "no model could be loaded from 'no/such-model'"),
        (("BASE", "TEXTS", "--output", "TEXTS/out"), "cannot be written"),
        (("BASE", "TEXTS", "--output", "BASE"), "exists: choose another folder"),
        (("BASE", "TEXTS", "--output", "HOME", "--force"), "this is never replaced"),
    ],
)
def test_bad_input_is_one_line_and_status_2(base_path, texts_path, tmp_path, arguments, message):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "few.txt").write_text("\n".join(SENTENCES[:9]))
    (tmp_path / "one.txt").write_text("a cat")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("three years")
    names = {
        "BASE": base_path,
        "TEXTS": texts_path,
        "EMPTY": str(tmp_path / "empty.txt"),
        "HOME": str(tmp_path / "home"),
    }
    names |= {"FEW": str(tmp_path / "few.txt"), "ONE": str(tmp_path / "one.txt"), "TEXTS/out": texts_path + "/out"}
    before = sorted(path for path in tmp_path.rglob("*"))
    given = [names.get(argument, argument) for argument in arguments]
    output = () if "--output" in given else ("--output", str(tmp_path / "out"))
    done = run("reduce", *given, *output)
    assert done.exit_code == 2, done.stdout
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
    assert lines[0].startswith("error: ")
    assert sorted(path for path in tmp_path.rglob("*")) == before, "something was written"
