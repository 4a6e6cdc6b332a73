"""What only a GPU can show: tensors stay where they are, and a model there is what was written of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from st_dimreduce import Head, reduce_model, save_portable
from st_dimreduce.codes.precision import quantize
from st_dimreduce.codes.search import search
from tests.helpers.tiny import SENTENCES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")
RNG = np.random.default_rng(0)
HEAD = Head(RNG.standard_normal((16, 64)) / 64).with_record(mean_norm=1.0)


@pytest.mark.parametrize("norm", [1e-20, 1.0, 50.0, 1e20])
def test_stored_vectors_of_any_norm_are_reduced_where_they_are(norm):
    rows = RNG.standard_normal((1000, 64)).astype(np.float32) * np.float32(norm)
    found = HEAD.transform(torch.from_numpy(rows).cuda())
    assert found.is_cuda
    assert np.abs(found.cpu().numpy() - HEAD.transform(rows)).max() < 1e-5
    codes = HEAD.encode(torch.from_numpy(rows).cuda(), "int4")
    assert (codes.values != HEAD.encode(rows, "int4").values).mean() < 0.01, "rounding at a threshold aside"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_queries_on_the_gpu_find_what_they_find_in_memory(dtype):
    codes = quantize(RNG.standard_normal((5000, 64)), "int2")
    queries = torch.from_numpy(RNG.standard_normal((20, 64)).astype(np.float32)).to(dtype)
    scores, rows = search(queries.cuda(), codes, "int2", 10)
    expected, places = search(queries.float().numpy(), codes, "int2", 10)
    assert np.array_equal(rows, places)
    assert np.allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("trainable", [True, False])
def test_a_model_on_the_gpu_is_written_and_compared_there(dtype, trainable, tiny, tmp_path):
    reduced = reduce_model(tiny.to("cuda"), SENTENCES, 8)
    reduced = (Head.from_model(reduced).attach(tiny, trainable=True) if trainable else reduced).to(dtype)
    before = torch.cuda.memory_allocated()
    save_portable(reduced, tmp_path / "p")
    assert next(reduced.parameters()).is_cuda
    assert torch.cuda.memory_allocated() - before < 1 << 20, "the copy that was compared is gone"
    again = SentenceTransformer(str(tmp_path / "p"), device="cuda")
    one, other = (model.encode(SENTENCES).astype(np.float64) for model in (reduced, again))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    assert ((one * other).sum(axis=1) / norms).min() > 0.9999
