"""Codes of tokens, and their search against MaxSim written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from st_dimreduce import Precision, TokenCodes, dequantize, quantize, search, search_multi_vector

RNG = np.random.default_rng(0)
DOCUMENTS = [RNG.standard_normal((size, 20)).astype(np.float32) for size in (7, 1, 30, 0, 4, 12, 12, 3)]
QUERIES = [RNG.standard_normal((size, 20)).astype(np.float32) for size in (5, 1, 9)]


def maxsim(queries, documents):
    """Scores of shape (q, n), a pair at a time."""
    unit = [query / np.linalg.norm(query, axis=1, keepdims=True) for query in queries]
    return np.array([[(query @ each.T).max(axis=1).sum() for each in documents] for query in unit])


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("block_size", [(512, 8192), (1, 1), (6, 13)])
def test_finds_what_maxsim_of_the_decoded_codes_finds(precision, block_size):
    codes = TokenCodes.of(DOCUMENTS, precision)
    some = [row for row, document in enumerate(DOCUMENTS) if len(document)]
    expected = maxsim(QUERIES, [dequantize(quantize(DOCUMENTS[row], precision), precision, 20) for row in some])
    scores, rows = search_multi_vector(QUERIES, codes, top_k=8, block_size=block_size)
    order = np.argsort(-expected, axis=1)
    assert rows[:, :-1].tolist() == np.array(some)[order].tolist()
    np.testing.assert_allclose(scores[:, :-1], np.take_along_axis(expected, order, axis=1), atol=1e-4)
    assert rows[:, -1].tolist() == [3, 3, 3]  # the document without tokens
    best = search_multi_vector(QUERIES, codes, top_k=2, block_size=block_size)
    np.testing.assert_array_equal(best[1], rows[:, :2])


def test_scores_are_those_of_sentence_transformers():
    from sentence_transformers.util import maxsim as theirs

    some = [torch.nn.functional.normalize(torch.tensor(document), dim=1) for document in DOCUMENTS if len(document)]
    queries = torch.nn.functional.normalize(torch.tensor(RNG.standard_normal((3, 4, 20)), dtype=torch.float32), dim=2)
    scores, rows = search_multi_vector(queries, TokenCodes.of(some, "float32"), top_k=7)
    np.testing.assert_allclose(scores, np.take_along_axis(theirs(queries, some).numpy(), rows, axis=1), atol=1e-5)


def test_any_norm_and_type_of_a_vector_will_do():
    codes = TokenCodes.of((torch.tensor(document).half() for document in DOCUMENTS), "int8")
    plain = search_multi_vector(QUERIES, codes)
    larger = search_multi_vector([torch.tensor(7 * query) for query in QUERIES], codes)
    np.testing.assert_array_equal(plain[1], larger[1])
    np.testing.assert_allclose(plain[0][:, :7], larger[0][:, :7], atol=1e-4)
    assert search_multi_vector([], codes)[1].shape == (0, 8)


def test_says_what_it_costs():
    codes = TokenCodes.of(DOCUMENTS, "int4")
    assert (len(codes), len(codes.codes), codes.bytes_per_token) == (8, 69, 10)
    assert codes.bytes_per_document == 10 * 69 / 8 + 8
    np.testing.assert_array_equal(codes[-1], dequantize(quantize(DOCUMENTS[-1], "int4"), "int4", 20))
    assert codes[3].shape == (0, 20)
    with pytest.raises(IndexError):
        codes[8]


@pytest.mark.parametrize("precision", list(Precision))
def test_comes_back_from_a_file(tmp_path, precision):
    codes = TokenCodes.of(DOCUMENTS, precision)
    codes.save(tmp_path / "codes")
    again = TokenCodes.load(tmp_path / "codes")
    assert (again.precision, again.out_features) == (precision, 20)
    for name in ("codes", "offsets"):
        np.testing.assert_array_equal(getattr(again, name), getattr(codes, name))


def test_refuses_files_of_another_kind(tmp_path):
    path = tmp_path / "codes"
    with pytest.raises(FileNotFoundError):
        TokenCodes.load(path)
    path.write_bytes(b"no codes")
    with pytest.raises(ValueError, match=r"is not a file of token codes: expected a file written by TokenCodes\.save"):
        TokenCodes.load(path)
    TokenCodes.of(DOCUMENTS, "int8").save(path)
    arrays, said = load_file(path), {"format": "st_dimreduce.token_codes.1", "precision": "int8"}
    said["out_features"] = "20"
    for changed, message in [
        (said | {"format": "other"}, "is not a file of token codes"),
        (said | {"precision": "int3"}, "is damaged: unknown precision 'int3'"),
        (said | {"out_features": "21"}, r"is damaged: codes have shape \(69, 20\), expected \(n, 21\)"),
        (said | {"out_features": "many"}, "is damaged: invalid literal"),
    ]:
        save_file(arrays, path, changed)
        with pytest.raises(ValueError, match=message):
            TokenCodes.load(path)
    save_file({"codes": arrays["codes"]}, path, said)
    with pytest.raises(ValueError, match="is not a file of token codes"):
        TokenCodes.load(path)


@pytest.mark.parametrize(
    "offsets", [[0, 70], [1, 69], [], [0, 40, 30, 69], [[0, 69]], np.array([0.0, 69.0]), np.array([0, 69], np.int32)]
)
def test_refuses_offsets_that_do_not_fit(offsets):
    codes = TokenCodes.of(DOCUMENTS, "int8").codes
    offsets = offsets if isinstance(offsets, np.ndarray) else np.array(offsets, np.int64)
    with pytest.raises(ValueError, match="expected int64, ascending from 0 to 69, the number of codes"):
        TokenCodes(codes, offsets, "int8", 20)


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "there is no document"),
        (DOCUMENTS[0], r"tokens of document 0 have shape \(20,\): expected finite vectors of shape \(tokens, k\)"),
        ([DOCUMENTS[0], DOCUMENTS[1][:, :5]], "document 1 has tokens of 5 dimensions, the first of 20"),
        ([DOCUMENTS[0] * np.nan], "tokens of document 0 .*: expected finite vectors"),
        (["text"], "tokens of document 0 are of type str: expected an array or a tensor"),
    ],
)
def test_refuses_documents_that_are_none(documents, message):
    with pytest.raises(ValueError, match=message):
        TokenCodes.of(documents, "int8")


@pytest.mark.parametrize(
    ("queries", "more", "message"),
    [
        (QUERIES[0], {}, "queries are one array of vectors: expected a list of arrays"),
        ([QUERIES[0][:, :5]], {}, r"query 0 has shape \(5, 5\): expected \(tokens, 20\), at least 1 token"),
        ([QUERIES[0], QUERIES[1][:0]], {}, r"query 1 has shape \(0, 20\): .* at least 1 token"),
        ([QUERIES[0] * np.inf], {}, "tokens of query 0 .*: expected finite vectors"),
        (QUERIES, {"top_k": 0}, "top_k=0: ask for at least 1"),
        (QUERIES, {"block_size": (0, 1)}, "block_size"),
        (QUERIES, {"documents": DOCUMENTS}, "documents are of type list: expected TokenCodes, as TokenCodes.of"),
    ],
)
def test_refuses_queries_that_are_none(queries, more, message):
    with pytest.raises(ValueError, match=message):
        search_multi_vector(queries, **{"documents": TokenCodes.of(DOCUMENTS, "int8"), **more})


def test_functions_for_one_vector_name_those_for_several():
    codes = quantize(DOCUMENTS[0], "int8")
    for queries in (QUERIES, np.stack([QUERIES[0]] * 2), torch.tensor(np.stack([QUERIES[0]] * 2))):
        with pytest.raises(ValueError, match=r"queries are several vectors per text, .* use search_multi_vector"):
            search(queries, codes, "int8")
    for several in ([codes, codes], np.stack([codes, codes])):
        with pytest.raises(ValueError, match=r"codes are several .* use TokenCodes and search_multi_vector"):
            search(QUERIES[0], several, "int8")
    with pytest.raises(ValueError, match=r"codes are of type TokenCodes: .*search_multi_vector"):
        search(QUERIES[0], TokenCodes.of(DOCUMENTS, "int8"), "int8")
    for several in (DOCUMENTS, np.stack([DOCUMENTS[0]] * 2)):
        with pytest.raises(ValueError, match=r"embeddings are several .* use TokenCodes\.of"):
            quantize(several, "int8")
