from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from st_dimreduce.evaluation.compare import compare_embeddings
from st_dimreduce.evaluation.embeddings import Embedded
from st_dimreduce.evaluation.peers import make_index, peers, train_index

RNG = np.random.default_rng(0)
QUERIES = RNG.standard_normal((5, 16)).astype(np.float32)


def base(count):
    documents = RNG.standard_normal((count, 16)).astype(np.float32)
    return Embedded(QUERIES, documents, seconds=1.0, scored_pairs=(documents[:3], documents[3:6]))


def named(stored):
    return [(each.name, each.precision, each.bytes_per_vector) for each in stored]


def test_peers_without_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    full = base(100)
    with pytest.warns(
        UserWarning, match=r"^FAISS PCA, PQ, OPQ and RaBitQ are left out: pip install 'st_dimreduce\[faiss"
    ):
        binary, truncated = peers(full, [4, 16, 20])
    assert named([binary, truncated]) == [("binary", "binary", None), ("truncation", "int8", None)]
    assert truncated.embedded.documents.shape == (100, 4)
    assert np.array_equal(truncated.embedded.queries, QUERIES[:, :4])
    assert [side.shape for side in truncated.embedded.scored_pairs] == [(3, 4), (3, 4)]
    assert binary.embedded.seconds is truncated.embedded.seconds is None, "nothing was encoded for them"
    decoded = binary.decoded(full.documents)
    assert np.array_equal(decoded > 0, full.documents > 0)
    assert np.linalg.norm(decoded, axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.component("FAISS")
def test_faiss_has_no_more_dimensions_than_documents():
    with pytest.warns(UserWarning, match="^FAISS PQ and OPQ are left out"):
        few = named(peers(base(6), [2, 4, 9]))
    assert all(int(size) <= 6 for each in few for size in re.findall(r"PCA(\d+)", each[1])), few


@pytest.mark.component("FAISS")
def test_faiss_trains_on_enough_documents_only():
    with pytest.warns(UserWarning, match="^FAISS PQ and OPQ are left out: 100 documents are too few to train"):
        few = named(peers(base(100), [4, 5]))
    assert ("PCA + int8", "PCA4,L2norm,SQ8", 4) in few
    assert not any(name in ("PQ", "OPQ") for name, *_ in few)
    assert {each[1] for each in named(peers(base(39 * 16), [4])) if each[0] == "PQ"} == {"PQ8x4"}
    full = base(39 * 256)
    stored = list(peers(full, [4, 5]))
    assert [each[:2] for each in named(stored) if each[0] == "PQ"] == [("PQ", "PQ4")], "5 is no divisor"
    quantized = next(each for each in stored if each.name == "PQ").decoded(full.documents)
    unit = full.documents / np.linalg.norm(full.documents, axis=1, keepdims=True)
    error = np.square(quantized - unit).sum(axis=1).mean()
    assert 0.05 < error < 0.5, "codes of 4 bytes keep most of 16 dimensions, not all"


@pytest.mark.component("FAISS")
def test_faiss_at_the_sizes_of_the_compared_models():
    rows = RNG.standard_normal((1000, 64)).astype(np.float32) * np.geomspace(1, 0.05, 64, dtype=np.float32)
    full = Embedded(rows[:40], rows)
    stored = list(peers(full, [16, 32, 64, 256]))
    sizes = {each.precision: each.bytes_per_vector for each in stored if each.search is not None}
    assert sizes == {
        "PCA16,L2norm,SQ8": 16,
        "PQ32x4": 16,
        "OPQ32_64,PQ32x4": 16,
        "RR64,RaBitQ1": 16,
        "PCA32,L2norm,SQ8": 32,
        "PQ64x4": 32,
        "PCA48,RR48,RaBitQ2": 32,
    }
    comparison = compare_embeddings(full, stored)
    found = {row.precision: row.overlap for row in comparison.rows}
    assert found["OPQ32_64,PQ32x4"] > found["PQ32x4"] > 0.3, "some dimensions vary far more than others"
    assert found["PQ64x4"] > found["PQ32x4"]
    assert all(row.seconds is None for row in comparison.rows)
    index = next(each for each in stored if each.precision == "RR64,RaBitQ1")
    scores, nearest = index.search(rows[:40] * 3, 10)
    assert scores.shape == nearest.shape == (40, 10)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert (nearest[:, 0] == np.arange(40)).mean() > 0.9


@pytest.mark.component("FAISS")
def test_the_same_seed_trains_the_same_index():
    rows = RNG.standard_normal((700, 16)).astype(np.float32)
    decoded = []
    for seed in (0, 0, 1):
        index = make_index("OPQ4_16,PQ4x4", 16)
        train_index(index, rows, seed)
        decoded.append(index.sa_decode(index.sa_encode(rows)))
    assert np.array_equal(decoded[0], decoded[1])
    assert not np.array_equal(decoded[0], decoded[2])
