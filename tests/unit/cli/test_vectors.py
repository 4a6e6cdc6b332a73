"""``st-dimreduce fit``, ``transform``, ``attach`` and ``drift``."""

from __future__ import annotations

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import SentenceTransformer

from st_dimreduce import DimReduce, Head
from st_dimreduce.codes.tables import codes_of
from st_dimreduce.vectors import batches
from tests.helpers.command import run
from tests.helpers.tiny import SENTENCES


@pytest.fixture
def stored(tiny, tmp_path):
    """A tiny model's folder, its texts' vectors, and a Parquet file of them."""
    tiny.save_pretrained(str(tmp_path / "base"))
    vectors = tiny.encode(SENTENCES)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 32)
    pq.write_table(pa.table({"text": SENTENCES, "embedding": column}), tmp_path / "x.parquet")
    return vectors


def test_from_stored_vectors_to_a_model_that_finds_them(stored, tmp_path):
    done = run("fit", tmp_path / "x.parquet", "--bytes", 8, "--output", tmp_path / "head", "--objective", "fidelity")
    assert done.exit_code == 0, done.output
    head = Head.load(tmp_path / "head")
    for word in (
        "Chosen on held-out data",
        "Wrote",
        f"{head.out_features} dimensions in {head.precision.value} from 128 vectors of 32 dimensions",
    ):
        assert word in " ".join(done.output.split()), done.output
    record = json.loads((tmp_path / "head" / "st_dimreduce.json").read_text())
    assert (record["in_features"], record["precision"], record["gain"]) == (32, head.precision, 0.03)

    done = run("transform", tmp_path / "head", tmp_path / "x.parquet", tmp_path / "codes.parquet")
    assert done.exit_code == 0, done.output
    assert f"128 vectors of {head.out_features} dimensions in {head.precision.value}" in " ".join(done.output.split())
    reduced = pq.read_table(tmp_path / "codes.parquet")
    assert reduced["text"].to_pylist() == SENTENCES
    assert np.array_equal(codes_of(reduced["embedding"]), head.encode(stored).values)

    done = run("attach", tmp_path / "head", tmp_path / "base", "--output", tmp_path / "model")
    assert done.exit_code == 0, done.output
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    ours, theirs = model.encode(SENTENCES), head.transform(stored)
    assert (ours * theirs).sum(axis=1).min() >= 0.9999

    done = run("transform", tmp_path / "model", tmp_path / "x.parquet", tmp_path / "again", "--precision", "float32")
    assert done.exit_code == 0, done.output
    again = codes_of(pq.read_table(tmp_path / "again")["embedding"])
    assert (again * theirs).sum(axis=1).min() >= 0.9999, "a reduced model's own head reduces them the same"


def test_a_store_is_named_with_its_types(stored, tmp_path):
    done = run("fit", tmp_path / "x.parquet", "--bytes", 8, "--store", "pgvector", "--output", tmp_path / "head")
    assert done.exit_code == 0, done.output
    words = " ".join(done.output.split())
    assert "of what pgvector stores" in words
    assert "binary in bit" in words
    assert "float32 in halfvec" in words
    assert Head.load(tmp_path / "head").record.choice["store"] == "pgvector"
    done = run("fit", tmp_path / "x.parquet", "--bytes", 8, "--store", "pinecone", "--output", tmp_path / "other")
    assert done.exit_code == 2
    assert "sqlite-vec" in done.stderr  # all are listed
    assert not (tmp_path / "other").exists()


def test_bad_rows_force_and_quiet(tmp_path):
    rows = np.random.default_rng(0).standard_normal((70, 8))
    rows[3] = 0
    np.save(tmp_path / "x.npy", rows)
    fit = ("fit", tmp_path / "x.npy", "--dim", 4, "-o", tmp_path / "head", "--seed", 5)
    done = run(*fit)
    assert done.exit_code == 2
    assert "row 3 is all zeros" in done.stderr
    done = run(*fit, "--on-bad-row", "zero", "--quiet")
    assert (done.exit_code, done.output) == (0, "")
    assert Head.load(tmp_path / "head").record.seed == 5
    assert run(*fit, "--on-bad-row", "zero").exit_code == 2
    assert run(*fit, "--on-bad-row", "zero", "--force").exit_code == 0
    transform = ("transform", tmp_path / "head", tmp_path / "x.npy", tmp_path / "y.npy", "--on-bad-row", "zero")
    done = run(*transform, "--precision", "int8")
    assert "70 vectors of 4 dimensions in int8, 408 bytes, 1 of them stored as zeros" in " ".join(done.stdout.split())
    assert run(*transform).exit_code == 2
    assert run(*transform, "--force", "--quiet").output == ""
    assert np.load(tmp_path / "y.npy").dtype == np.float32, "a head that was given a size is for float32"


def test_a_run_goes_on_when_it_is_called_again(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "BATCH_BYTES", 4 * 4 * 4)  # 32 rows per part
    torch.manual_seed(0)
    DimReduce(4, 2).to_head().save(tmp_path / "head")
    rows = np.random.default_rng(0).standard_normal((100, 4))
    rows[70] = np.nan
    np.save(tmp_path / "x.npy", rows)
    transform = ("transform", tmp_path / "head", tmp_path / "x.npy", tmp_path / "y.npy", "--precision", "int8")
    done = run(*transform)
    assert done.exit_code == 2
    assert json.loads((tmp_path / ".y.npy.parts" / "job.json").read_text())["done"]["rows"] == 64
    assert run(*transform, "--on-bad-row", "zero").exit_code == 0
    assert len(np.load(tmp_path / "y.npy")) == 100
    (tmp_path / "y.npy").unlink()
    run(*transform)
    os.utime(tmp_path / "x.npy", ns=(1, 1))
    done = run(*transform, "--on-bad-row", "zero")
    assert done.exit_code == 2
    assert "of a run with another source: call again with the same arguments, or start anew" in done.stderr
    assert run(*transform, "--on-bad-row", "zero", "--force").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "none.npy", "-o", "OUT"), "no file or folder none.npy: give an array"),
        (("fit", "X", "-o", "OUT", "--dim", 99), "dim=99: choose a size from 1 to 8"),
        (("fit", "X", "-o", "OUT", "--dim", 4, "--keep", 0.9), "give exactly one of dim"),
        (("fit", "X", "-o", "OUT", "--dim", 4, "--store", "pgvector"), "is for choosing a precision"),
        (("fit", "X", "-o", "OUT", "--bytes", 99), "99: choose 1 to 32"),
        (("fit", "X", "-o", "OUT", "--dim", 4, "--column", "v"), "column 'v' was named, but"),
        (("fit", "X", "-o", "HOME", "--dim", 4), "exists: choose another folder"),
        (("fit", "X", "-o", "HOME", "--dim", 4, "--force"), "holds no st_dimreduce.json: choose another folder"),
        (("transform", "HEAD", "none", "OUT"), "no file or folder none"),
        (("transform", "HEAD", "X", "X"), "contain one another"),
        (("transform", "HEAD", "X", "OUT.txt"), "OUT.txt ends in .txt: expected .npy"),
        (("transform", "HOME", "X", "OUT"), "home holds no head: expected the folder of a head"),
        (("transform", "OTHER", "X", "OUT"), "the vectors have 8 dimensions, the head takes 9"),
        (("drift", "HEAD", "none"), "the head's record has no losses at its fit to compare with"),
        (("drift", "HOME", "X"), "home holds no head: expected the folder of a head"),
        (("attach", "HEAD", "no/such-model", "-o", "OUT"), "no model could be loaded from 'no/such-model'"),
        (("attach", "HEAD", "BASE", "-o", "OUT"), "the head takes 8 dimensions, the model gives 32"),
        (("attach", "HEAD", "BASE", "-o", "HOME"), "exists: choose another folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tiny, tmp_path, arguments, message):
    names = {name: tmp_path / name.lower() for name in ("OUT", "HOME", "HEAD", "OTHER", "BASE")}
    names["X"] = tmp_path / "x.npy"
    np.save(names["X"], np.random.default_rng(0).standard_normal((100, 8)))
    names["HOME"].mkdir()
    (names["HOME"] / "thesis.txt").write_text("three years")
    DimReduce(8, 4).to_head().save(names["HEAD"])
    DimReduce(9, 4).to_head().save(names["OTHER"])
    tiny.save_pretrained(str(names["BASE"]))
    before = sorted(tmp_path.rglob("*"))
    done = run(*(names.get(argument, argument) for argument in arguments))
    assert done.exit_code == 2, done.output
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
    assert sorted(tmp_path.rglob("*")) == before, "something was written"


def test_drift_says_in_its_exit_status_whether_to_refit(tmp_path):
    rng, variances = np.random.default_rng(0), np.geomspace(3, 0.1, 16)
    for name, rows, axes in (("fit", 900, variances), ("later", 400, variances), ("other", 400, variances[::-1])):
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((rows, 16)) * axes)
    assert run("fit", tmp_path / "fit.npy", "--dim", 4, "-o", tmp_path / "head", "--quiet").exit_code == 0
    done = run("drift", tmp_path / "head", tmp_path / "later.npy")
    assert done.exit_code == 0, done.output
    words = " ".join(done.stdout.split())
    for expected in ("400 vectors", "at the fit", "refit above", "variance lost", "neighbours lost", "fits: The "):
        assert expected in words, done.stdout
    written = json.loads(run("drift", tmp_path / "head", tmp_path / "later.npy", "--json").stdout)
    assert (written["verdict"], written["vectors"]) == ("fits", 400)
    done = run("drift", tmp_path / "head", tmp_path / "other.npy")
    assert done.exit_code == 1, done.output
    assert "refit: The head loses" in done.stdout
    done = run("drift", tmp_path / "head", tmp_path / "other.npy", "--json")
    assert (done.exit_code, json.loads(done.stdout)["verdict"]) == (1, "refit")
    done = run("drift", tmp_path / "head", tmp_path / "other.npy", "--quiet")
    assert (done.exit_code, done.output) == (1, "")


def test_a_path_is_no_markup(stored, tmp_path):
    done = run("fit", tmp_path / "x.parquet", "--output", tmp_path / "[" / "x]", "--bytes", 8)
    assert done.exit_code == 0, done.output
    done = run("transform", tmp_path / "[" / "x]", tmp_path / "x.parquet", tmp_path / "[" / "x].npy")
    assert done.exit_code == 0, done.output
    assert "/[/x].npy: 128 vectors" in done.output
