"""Cloze pairs: a part of a text as the query, the text as its document.

Finding a text from one of its own sentences is a search task that needs no label (the inverse cloze task; Lee et al.,
"Latent Retrieval for Weakly Supervised Open Domain Question Answering", ACL 2019). People also search with
keywords: words that distinguish a text from the others. The pairs are not trained on. They show which directions of an
embedding vary within a text, how strongly to damp them, and which size retrieves best.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice

from st_dimreduce.texts import Question

MOST_TEXTS = 1000
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n+")
_SHORTEST_SENTENCE, _SHORTEST_REST = 15, 40  # bytes of UTF-8, which suit scripts without spaces too
_WORD = re.compile(r"[^\W\d_][\w-]+")
_WORDS_READ = 2000  # of a text
_FEWEST_WORDS, _MOST_WORDS = 2, 6  # of a query
_COMMON = 0.2  # share of the texts from which on a word distinguishes nothing


def cloze_pairs(texts: Sequence[str], count: int = MOST_TEXTS, seed: int = 0) -> list[tuple[str, str]]:
    """Make cloze pairs of texts drawn at random: a sentence of each, and keywords by TF-IDF.

    Args:
        texts: Texts. A sentence is taken only from those of two sentences or more, keywords where three of a text's
            words occur in others too; duplicates count once.
        count: Number of texts to make pairs of at most, for sentences and for keywords. Defaults to 1,000.
        seed: Seed of the draw. Defaults to 0.

    Returns:
        Pairs of a query and its text, first those whose query is a sentence; none where texts are too short.
    """
    rng = random.Random(seed)  # noqa: S311, no secret
    texts = list(dict.fromkeys(texts))
    texts = rng.sample(texts, len(texts))
    sentences = ((_sentence(text, rng), text) for text in texts)
    words = [_WORD.findall(text.lower())[:_WORDS_READ] for text in texts]
    spread = Counter(word for some in words for word in set(some))
    keywords = ((_keywords(some, spread, len(texts), rng), text) for some, text in zip(words, texts, strict=True))
    made = (((query, text) for query, text in some if query) for some in (sentences, keywords))
    return [pair for some in made for pair in islice(some, count)]


def cloze_question(documents: Sequence[str], seed: int = 0) -> Question:
    """Make a retrieval task of documents alone: a sentence and some keywords of each should find it.

    Args:
        documents: Texts to search.
        seed: Seed of the sentences and keywords. Defaults to 0.

    Returns:
        The task. If the documents are too short to make queries of, it has none: they search one another.
    """
    places: dict[str, set[int]] = {}
    for row, text in enumerate(documents):
        places.setdefault(text, set()).add(row)
    made = cloze_pairs(list(documents), seed=seed)
    if not made:
        return Question(list(documents))
    return Question(list(documents), [query for query, _ in made], [places[text] for _, text in made], cloze=True)


def _sentence(text: str, rng: random.Random) -> str | None:
    """Return a sentence of a text of several sentences; None if it has only one, or too short ones."""
    sentences = [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]
    sizes = [len(sentence.encode()) for sentence in sentences]
    whole = sum(sizes)
    fit = [i for i, size in enumerate(sizes) if size >= _SHORTEST_SENTENCE and whole - size >= _SHORTEST_REST]
    return sentences[rng.choice(fit)] if fit else None


def _keywords(words: list[str], spread: Counter[str], texts: int, rng: random.Random) -> str | None:
    """Return some words that distinguish a text from the others, in the order of the text; None if it has too few."""
    weights = {
        word: (1 + math.log(often)) * math.log(texts / spread[word])
        for word, often in Counter(words).items()
        if 1 < spread[word] < _COMMON * texts
    }
    if len(weights) <= _FEWEST_WORDS:
        return None
    size = rng.randint(_FEWEST_WORDS, min(_MOST_WORDS, len(weights) - 1))
    # Drawn from twice as many: people rarely choose exactly the rarest words.
    distinctive = sorted(weights, key=lambda word: (-weights[word], word))[: 2 * size]
    return " ".join(sorted(rng.sample(distinctive, size), key=words.index))
