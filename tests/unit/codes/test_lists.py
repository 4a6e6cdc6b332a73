"""How codes lie in the file of an index, and ids beside them."""

from __future__ import annotations

import numpy as np
import pytest

from st_dimreduce import Precision, quantize
from st_dimreduce.codes.ids import Names, as_keys, keys_of, new_ids
from st_dimreduce.codes.lists import BLOCK, Lists, from_stored, is_packed, to_stored

SIZES = np.array([0, 77, 0, 5, BLOCK, 8])


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("size", [5, 32])
def test_codes_are_found_again_wherever_they_lie(precision, size):
    rng = np.random.default_rng(0)
    codes = quantize(rng.standard_normal((SIZES.sum(), size)).astype(np.float32), precision)
    stored = to_stored(codes, precision)
    lists = Lists(SIZES, stored.shape[1], is_packed(precision))
    cells = [lists.cell_bytes(cell, stored[lists.starts[cell] : lists.starts[cell + 1]]) for cell in range(len(SIZES))]
    data = np.concatenate(cells)
    assert len(data) == lists.offsets[-1]
    assert not (lists.offsets % 64).any()
    order = rng.permutation(SIZES.sum())
    assert np.array_equal(from_stored(lists.gather(data, order), precision), codes[order])
    assert np.array_equal(np.concatenate(list(lists.read(data, 0, len(SIZES)))), stored)
    assert np.array_equal(np.concatenate(list(lists.read(data, 1, 4))), stored[:82])


def test_behind_the_codes_of_a_cell_are_the_positions_of_its_vectors():
    lists = Lists(SIZES, 3, True)
    cell = lists.cell_bytes(3, np.zeros((5, 3), np.uint8))
    assert cell[BLOCK * 3 :][: 5 * 8].view(np.int64).tolist() == [77, 78, 79, 80, 81]


def test_names_keep_every_letter_in_any_order():
    strings = ["a", "über", "", "文書", "x" * 70_000, "b"]
    names = Names.of(strings)
    order = np.array([4, 0, 3, 3, 1, 5, 2])
    taken = names.take(order)
    assert [taken[row] for row in range(len(taken))] == [strings[row] for row in order]
    joined = Names.joined([taken, names])
    assert [joined[row] for row in range(len(joined))] == [strings[row] for row in order] + strings
    assert len(names.take(np.empty(0, np.int64))) == 0
    many = Names.of(map(str, range(100_000)))
    backwards = many.take(np.arange(99_999, -1, -1))
    assert [backwards[row] for row in (0, 65_535, 65_536, 99_999)] == ["99999", "34464", "34463", "0"]


def test_keys_of_names_differ_and_stay():
    keys = keys_of(["a", "b", "a"])
    assert keys[0] == keys[2] != keys[1]
    assert keys_of(["a"])[0] == 3405396810240292928
    assert as_keys(["a", "b"], named=True)[0].tolist() == keys[:2].tolist()


@pytest.mark.parametrize(
    ("ids", "named", "said"),
    [
        ([1, 2, 1], False, "id 1 is given to several vectors: expected a different one for each"),
        (["a", "b", "b"], True, "id 'b' is given to several vectors"),
        ([1, 2], False, "2 ids were given for 3 vectors: expected as many"),
        ([1, -2, 3], False, "id -2 is negative"),
        ([1.5, 2, 3], False, "id 1.5 is of type float: expected integers"),
        (["a", "b", "c"], False, "id 'a' is a string: expected integers"),
        ([1, 2, 3], True, "id 1 is of type int: expected strings"),
        (["a", 2, "c"], True, "some ids are strings and some are not"),
        (None, True, "no ids were given: expected strings"),
        (np.array([2**63, 1, 2], np.uint64), False, "too large"),
        ([True, False, True], False, "of type bool"),
    ],
)
def test_ids_that_cannot_be(ids, named, said):
    with pytest.raises(ValueError, match=said):
        new_ids(ids, 3, named, 0)


def test_ids_that_were_not_given_follow_the_largest():
    assert new_ids(None, 3, False, 7)[0].tolist() == [7, 8, 9]
