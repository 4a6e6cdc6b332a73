"""A size, as a user asks for it."""

from __future__ import annotations

import numpy as np
import pytest

from st_dimreduce import Precision, Size, UserError
from st_dimreduce.enums import Store


def test_a_dimension_is_the_default():
    assert Size() == Size(128)
    assert (Size().dim, Size().bytes, Size().keep, Size().nested, Size().precision) == (128, None, None, None, None)
    assert Size(precision="int4").dim == 128
    assert Size(bytes=64).dim is None
    assert Size(keep=0.9).dim is None
    assert Size(nested=(8, 16)).dim == 16
    assert Size(16, nested=[8, 16]).dim == 16


def test_strings_and_numbers_of_numpy_are_taken():
    size = Size(bytes=np.int64(64), precision="int2", store="faiss")
    assert (size.bytes, type(size.bytes), size.precision, size.store) == (64, int, Precision.INT2, Store.FAISS)
    assert Size.of(np.int32(8)) == Size.of(8) == Size(8)
    assert Size.of(size) is size


def test_the_fewest_vectors_that_can_be_fitted():
    assert Size(200).fewest_vectors == 200
    assert Size(bytes=8).fewest_vectors == Size(keep=0.5).fewest_vectors == 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "^dim=0: choose a size of at least 1$"),
        ({"dim": -3}, "^dim=-3: choose a size of at least 1$"),
        ({"dim": 8.5}, "^dim=8.5: choose a size of at least 1$"),
        ({"dim": "8"}, "^dim=8: choose a size of at least 1$"),
        ({"dim": True}, "^dim=True: choose a size of at least 1$"),
        ({"bytes": 0}, "^bytes=0: choose a budget of at least 1$"),
        ({"keep": 0}, "^keep=0: choose a share greater than 0 and at most 1, such as 0.99$"),
        ({"keep": float("nan")}, "^keep=nan: choose a share"),
        ({"dim": 8, "bytes": 8}, r"^dim and bytes were given: give exactly one of dim \(--dim\), bytes \(--bytes\)"),
        ({"keep": 0.9, "bytes": 8}, "^bytes and keep were given: give exactly one of dim"),
        ({"nested": (4, 8), "bytes": 8}, "^nested and bytes were given"),
        ({"nested": (4, 8), "dim": 16}, r"^nested=\(4, 8\): give ascending sizes, of which the last is dim=16$"),
        ({"nested": (8, 8)}, "give ascending sizes"),
        ({"nested": (0, 8)}, "give ascending sizes"),
        ({"precision": "int3"}, "^unknown precision 'int3': choose from float32, int8, int4, int2, binary$"),
        ({"bytes": 8, "store": "pinecone"}, "^unknown store 'pinecone': choose from faiss"),
        ({"store": "faiss"}, "^store='faiss' is for choosing a precision: give bytes"),
    ],
)
def test_bad_sizes(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        Size(**arguments)
    assert "\n" not in str(error.value)
