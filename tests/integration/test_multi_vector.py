"""A real model's token vectors in late interaction: what is left of its answers in few bytes."""

from __future__ import annotations

import numpy as np
import pytest
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask
from sentence_transformers.sentence_transformer.modules import Normalize

from st_dimreduce import TokenCodes, reduce_multi_vector, search_multi_vector
from st_dimreduce.apps.docstrings import docstring_pairs
from st_dimreduce.codes.metrics import overlaps, retrieval
from st_dimreduce.models.multi_vector import token_record

PAIRS = docstring_pairs()[:250]
QUERIES, DOCUMENTS = ([*side] for side in zip(*PAIRS, strict=True))


@pytest.fixture(scope="module")
def late(minilm):
    ends = [MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
    return MultiVectorEncoder(modules=[minilm[0], *ends], device="cpu")


@pytest.fixture(scope="module")
def found(late):
    """The rows that the full token vectors find."""
    codes = TokenCodes.of(late.encode_document(DOCUMENTS), "float32")
    return search_multi_vector(late.encode_query(QUERIES), codes)[1]


def ndcg(rows):
    return retrieval(rows, range(len(rows)))[0].mean()


def test_a_twelfth_of_the_bytes_and_a_loaded_model_find_nearly_the_same(late, found, tmp_path):
    reduce_multi_vector(late, DOCUMENTS, 128).save_pretrained(str(tmp_path / "reduced"))
    model = MultiVectorEncoder(str(tmp_path / "reduced"), device="cpu")
    assert token_record(model).vectors > 10_000
    documents, queries = model.encode_document(DOCUMENTS), model.encode_query(QUERIES)
    shares, ratios = {}, {}
    for precision in ("float32", "int8", "int4", "int2", "binary"):
        codes = TokenCodes.of(documents, precision)
        rows = search_multi_vector(queries, codes)[1]
        ratios[precision], shares[precision] = 4 * 384 / codes.bytes_per_token, ndcg(rows) / ndcg(found)
        if precision == "float32":
            scores = model.similarity(queries[:20], documents).numpy()
            np.testing.assert_array_equal(rows[:20, 0], scores.argmax(axis=1))
            assert overlaps(found, rows).mean() > 0.8
    assert ratios == {"float32": 3, "int8": 12, "int4": 24, "int2": 48, "binary": 96}
    assert min(shares[precision] for precision in ("float32", "int8", "int4")) > 0.95, shares
    assert shares["binary"] > 0.85, shares


def test_a_byte_budget_per_token_and_pooled_tokens_go_together(late, found):
    model = reduce_multi_vector(late, DOCUMENTS, bytes_per_token=32, objective="quality")
    precision = token_record(model).precision
    documents = model.encode_document(DOCUMENTS, token_pooling=HierarchicalTokenPooling(2))
    codes = TokenCodes.of(documents, precision)
    assert codes.bytes_per_token <= 32
    assert ndcg(search_multi_vector(model.encode_query(QUERIES), codes)[1]) / ndcg(found) > 0.9
