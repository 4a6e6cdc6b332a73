"""``st-dimreduce demo``, with the real model."""

from __future__ import annotations

import json

import pytest
from sentence_transformers import SentenceTransformer

from tests.helpers.command import run


def test_demo(tmp_path):
    done = run("demo", "--pairs", "300", "--output", str(tmp_path / "model"))
    assert done.exit_code == 0, done.stderr
    for word in ("base model", "untrained Tanh", "reduced, int8", "loaded by SentenceTransformer"):
        assert word in " ".join(done.stdout.split()), done.stdout
    assert "…" not in done.stdout, "a figure was cut"
    rows = json.loads((tmp_path / "model" / "st_dimreduce.json").read_text())["figures"]["rows"]
    full, untrained, reduced, int8 = (row["ndcg"] for row in rows)
    assert reduced >= 0.93 * full, "128 dimensions keep at least 93 % of the full model's nDCG@10"
    assert untrained < min(reduced, int8)
    assert int8 == pytest.approx(reduced, abs=0.01)
    assert SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(["x"]).shape == (1, 128)
    assert run("demo", "--pairs", "10").exit_code == 2
