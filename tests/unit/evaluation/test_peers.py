from __future__ import annotations

import sys

import numpy as np
import pytest

from st_dimreduce.evaluation.embeddings import Embedded
from st_dimreduce.evaluation.peers import peers

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
    binary, truncated = peers(full, [4, 16, 20])
    assert named([binary, truncated]) == [("binary quantization", "binary", None), ("truncation", "int8", None)]
    assert truncated.embedded.documents.shape == (100, 4)
    assert np.array_equal(truncated.embedded.queries, QUERIES[:, :4])
    assert [side.shape for side in truncated.embedded.scored_pairs] == [(3, 4), (3, 4)]
    assert binary.embedded.seconds is truncated.embedded.seconds is None, "nothing was encoded for them"
    decoded = binary.decoded(full.documents)
    assert np.array_equal(decoded > 0, full.documents > 0)
    assert np.linalg.norm(decoded, axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.component("FAISS")
def test_faiss_trains_on_enough_documents_only():
    few = named(peers(base(100), [4, 5]))
    assert ("FAISS PCA", "PCA4,SQ8", 4) in few
    assert not any(name == "FAISS PQ" for name, *_ in few)
    full = base(39 * 256)
    stored = list(peers(full, [4, 5]))
    assert [each[:2] for each in named(stored) if each[0] == "FAISS PQ"] == [("FAISS PQ", "PQ4")], "5 is no divisor"
    quantized = next(each for each in stored if each.name == "FAISS PQ").decoded(full.documents)
    unit = full.documents / np.linalg.norm(full.documents, axis=1, keepdims=True)
    error = np.square(quantized - unit).sum(axis=1).mean()
    assert 0.05 < error < 0.5, "codes of 4 bytes keep most of 16 dimensions, not all"
