from __future__ import annotations

import time

import pytest

from st_dimreduce.fitting.cloze import cloze_pairs

TEXTS = [
    f"The first sentence of text {i} is about cats. The second of {i} is about dogs! Is the third, {i}, about birds?"
    for i in range(50)
]


def test_a_sentence_is_taken_out_of_its_own_text():
    pairs = cloze_pairs(TEXTS)
    assert len(pairs) == 50
    for sentence, rest in pairs:
        whole = next(text for text in TEXTS if sentence in text)
        assert sentence not in rest
        assert sorted((sentence + " " + rest).split()) == sorted(whole.split())


def test_count_and_seed():
    assert len(cloze_pairs(TEXTS, count=7)) == 7
    assert cloze_pairs(TEXTS, seed=3) == cloze_pairs(TEXTS, seed=3)
    assert cloze_pairs(TEXTS, seed=3) != cloze_pairs(TEXTS, seed=4)


def test_languages_without_spaces_and_line_breaks():
    japanese = "これは最初の文章であり、猫について書かれている。次の文章は犬についての長い話である。"
    assert len(cloze_pairs([japanese])) == 1
    assert (
        len(cloze_pairs(["A title without a full stop\nand below it a text that is long enough to be a document"])) == 1
    )


def test_short_texts_give_no_pair():
    assert cloze_pairs(["cat", "One sentence that is quite long but stays alone.", "Short. Too. Tiny.", ""]) == []
    assert cloze_pairs([]) == []


@pytest.mark.parametrize(
    "text",
    ["This is one of many short sentences. " * 40_000, "word " * 300_000, ". " * 700_000, "\n" * 10**6 + "a" * 10**6],
    ids=["sentences", "one sentence", "stops", "lines"],
)
def test_a_long_text_takes_time_in_proportion_to_its_length(text):
    start = time.process_time()
    cloze_pairs([text])
    assert time.process_time() - start < 1


def test_equal_texts_give_one_pair():
    assert len(cloze_pairs([*TEXTS[:3] * 300])) == 3
    assert cloze_pairs(TEXTS, seed=3) == cloze_pairs([*TEXTS, *TEXTS], seed=3)
