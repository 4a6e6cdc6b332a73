from __future__ import annotations

import time

import pytest

from st_dimreduce.fitting.cloze import cloze_pairs

COLOURS = ["red", "green", "blue", "black", "white", "yellow", "brown"]
ANIMALS = ["cats", "dogs", "birds", "horses", "mice", "cows", "foxes"]
PLACES = ["forests", "deserts", "oceans", "mountains", "cities", "lakes", "fields"]
TEXTS = [
    f"The first sentence, unique{i}x, is about {COLOURS[i % 7]} things. The second is about {ANIMALS[i // 7]}! "
    f"Is the third sentence about {PLACES[i * 3 % 7]}, or is it not?"
    for i in range(49)
]


def test_a_sentence_and_keywords_find_their_own_text():
    pairs = cloze_pairs(TEXTS)
    sentences, keywords = pairs[:49], pairs[49:]
    assert {text for _, text in sentences} == {text for _, text in keywords} == set(TEXTS)
    for sentence, text in sentences:
        assert sentence in text
        assert sentence != text
    for query, text in keywords:
        words = query.split()
        assert 2 <= len(words) <= 6
        assert sorted(words, key=text.lower().index) == words


def test_keywords_tell_a_text_from_the_others():
    for query, _ in cloze_pairs(TEXTS)[49:]:
        assert not {"the", "sentence", "of"} & set(query.split()), "words of every text tell nothing"
        assert "unique" not in query, "nobody can ask with a word that occurs once"


def test_texts_of_one_sentence_are_found_by_keywords():
    pairs = cloze_pairs([f"{a} {b} {c}" for a in COLOURS for b in ANIMALS for c in PLACES])
    assert len(pairs) == len(COLOURS) * len(ANIMALS) * len(PLACES)
    assert all(len(query.split()) == 2 and set(query.split()) < set(text.split()) for query, text in pairs)


def test_count_and_seed():
    assert len(cloze_pairs(TEXTS, count=7)) == 14
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
    assert len(cloze_pairs([*TEXTS[:3] * 300])) == len(cloze_pairs(TEXTS[:3]))
    assert cloze_pairs(TEXTS, seed=3) == cloze_pairs([*TEXTS, *TEXTS], seed=3)
