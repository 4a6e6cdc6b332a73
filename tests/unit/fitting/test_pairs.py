"""Embedded pairs: of one length, and cut so that what is held out is unseen."""

from __future__ import annotations

import numpy as np
import pytest

from st_dimreduce import Pairs

RNG = np.random.default_rng(0)
ROWS = RNG.standard_normal((300, 4)).astype(np.float32)


def test_every_side_is_scaled_to_length_one_in_float32():
    pairs = Pairs(ROWS.astype(np.float64) * 7, ROWS[::-1] / 3, ROWS + 1)
    for found, given in ((pairs.queries, ROWS), (pairs.documents, ROWS[::-1]), (pairs.negatives, ROWS + 1)):
        assert found.dtype == np.float32
        assert np.allclose(found, given / np.linalg.norm(given, axis=1, keepdims=True), atol=1e-6)
    assert (len(pairs), pairs.width) == (300, 4)


ASKED = r"expected two equal shapes \(m, d\), m >= 1$"


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ([np.ones((0, 4)), np.ones((0, 4))], rf"^queries and documents of pairs have shapes \(0, 4\) .*: {ASKED}"),
        ([np.ones((3, 4)), np.ones((2, 4))], rf"documents of pairs have shapes \(3, 4\) and \(2, 4\): {ASKED}"),
        ([np.ones(4), np.ones(4)], r"the queries of pairs: got shape \(4,\), expected \(m, d\)"),
        ([ROWS, ROWS, ROWS[:9]], rf"^queries and negatives of pairs have shapes \(300, 4\) and \(9, 4\): {ASKED}"),
        ([ROWS, ROWS * 0], "the vector in row 0 is all zeros"),
        ([np.ma.masked_less(ROWS[:3], 0), ROWS[3:6]], "the queries of pairs: got a masked array with"),
        ([np.ones((3, 4)), np.ones((3, 4))], "^all 3 pairs are the same: give pairs that differ$"),
        ([np.ones((2, 4)), np.ones((2, 4))], "^all 2 pairs are the same"),
    ],
)
def test_pairs_that_are_none(sides, message):
    with pytest.raises(ValueError, match=message):
        Pairs(*sides)


def test_one_pair_and_pairs_that_differ_on_one_side_are_pairs():
    assert len(Pairs(ROWS[:1], ROWS[:1])) == 1
    assert len(Pairs(ROWS[:2], ROWS[[0, 0]])) == len(Pairs(ROWS[[0, 0]], ROWS[:2])) == 2


def test_equal_rows_have_equal_numbers():
    queries, documents = Pairs(ROWS[[5, 5, 7, 5]], ROWS[[1, 2, 2, 1]]).ids()
    assert (queries.tolist(), documents.tolist()) == ([0, 0, 1, 0], [0, 1, 1, 0])


def numbers(side):
    """Which of ROWS the queries are."""
    return (side.queries @ Pairs(ROWS, ROWS).queries.T).argmax(axis=1).tolist()


def keys(rows):
    return {row.tobytes() for row in rows}


def test_what_is_held_out_shares_no_text_with_what_is_not():
    several = Pairs(ROWS[np.arange(300) // 3], ROWS[::-1])  # three documents a query
    seen, unseen = several.split(1 / 8, seed=3)
    assert (len(seen), len(unseen)) == (264, 36)
    assert not keys(seen.queries) & keys(unseen.queries)
    chained = Pairs(ROWS[np.arange(300) // 2], ROWS[(np.arange(300) + 1) // 2 % 75])  # through queries and documents
    with pytest.raises(ValueError, match="all 300 pairs share texts with one another: none can be held out, give oth"):
        chained.split(0.5)
    with pytest.raises(ValueError, match="all 10 pairs share texts with one another: none can be held out"):
        Pairs(ROWS[:10], ROWS[[0] * 10]).split(0.5)


def test_a_negative_stays_with_its_pair():
    whole = Pairs(ROWS, ROWS[::-1], ROWS + 1)
    sides = whole.split(0.5)
    assert [len(side) for side in sides] == [150, 150]
    for side in sides:
        assert np.allclose(side.negatives, whole.negatives[numbers(side)], atol=1e-6)
        assert np.allclose(side.documents, whole.documents[numbers(side)], atol=1e-6)


def test_groups_that_are_larger_than_what_is_wanted():
    uneven = Pairs(ROWS[[0] * 290 + [*range(1, 11)]], ROWS)  # one query of 290 documents, and ten others
    assert len(uneven.split(1 / 8)[1]) == 10
    halves = Pairs(ROWS[[0] * 6 + [1] * 4], ROWS[:10])  # no group is as small as one pair
    assert [len(side) for side in halves.split(0.1)] == [6, 4], "the smallest that there is"
    assert [len(side) for side in Pairs(ROWS, ROWS).split(0.001)] == [299, 1], "at least one"


def test_a_split_depends_on_its_seed_alone():
    pairs = Pairs(ROWS, ROWS)
    splits = [numbers(pairs.split(0.3, seed)[1]) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] == numbers(pairs.split(0.3)[1])
    assert splits[0] == sorted(np.random.default_rng(0).permutation(300)[:90].tolist())
    assert splits[0] != splits[2]
