"""A head is known by its fingerprint, alone and behind a model."""

from __future__ import annotations

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from st_dimreduce import Codes, DimReduce, Head, Size, UserError, save_portable
from st_dimreduce.codes.fingerprint import abbreviate, same_head
from tests.helpers.tiny import SENTENCES

RNG = np.random.default_rng(0)
HEAD = Head.fit(RNG.normal(size=(300, 32)), 8)


@pytest.mark.parametrize("norm", [1e-3, 7.3, 1e4])
def test_it_does_not_depend_on_the_norm_that_the_head_is_for(norm):
    scaled = HEAD.for_norm(norm)
    assert same_head(scaled.fingerprint, HEAD.fingerprint)
    halved = Head(HEAD.weight.astype(np.float16), None, record=HEAD.record)
    assert same_head(halved.fingerprint, HEAD.fingerprint), "saved in half precision"
    assert len(HEAD.fingerprint) == 64
    assert len(abbreviate(HEAD.fingerprint)) == 12


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight * 1.1,
        lambda weight: weight[::-1],
        lambda weight: -weight,
        lambda weight: weight + 0.1 * RNG.normal(size=weight.shape) * weight.std(),
        lambda weight: weight[:7],
    ],
)
def test_different_heads_have_different_fingerprints(change):
    other = Head(change(HEAD.weight).astype(np.float32), None, record=HEAD.record)
    assert not same_head(other.fingerprint, HEAD.fingerprint)
    assert not same_head(Head(HEAD.weight, np.ones(8, np.float32), record=HEAD.record).fingerprint, HEAD.fingerprint)


@pytest.mark.parametrize("damaged", ["", "x" * 64, HEAD.fingerprint[:-1], HEAD.fingerprint[:16] + "g" * 48])
def test_a_damaged_fingerprint_matches_no_head(damaged):
    assert not same_head(damaged, HEAD.fingerprint)
    assert not same_head(damaged, damaged) or damaged == HEAD.fingerprint


def test_codes_of_stored_vectors_are_searched_by_the_model_that_the_head_is_attached_to(tiny, tmp_path):
    head = Head.fit(tiny.encode(SENTENCES), Size(8, precision="int4"))
    head.save(tmp_path / "head")
    Head.load(tmp_path / "head").transform_file(tiny.encode(SENTENCES), tmp_path / "codes.npy")
    save_portable(head.attach(tiny), tmp_path / "model")
    model = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert same_head(DimReduce.from_model(model).to_head().fingerprint, head.fingerprint)
    codes = Codes.load(tmp_path / "codes.npy")
    codes.origin.check(Head.from_model(model).fingerprint, "codes.npy")
    _, rows = codes.search(model.encode([SENTENCES[3]]), 5)
    assert rows.shape == (1, 5)
    assert rows[0, 0] == 3
    other = Head(-head.weight, record=head.record)
    with pytest.raises(UserError, match=r"codes.npy holds codes made by head \w{12}, not by \w{12}: give the head"):
        codes.origin.check(other.fingerprint, "codes.npy")
