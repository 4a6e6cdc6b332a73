"""Cloze pairs: a sentence taken out of a text as the query, the rest of the text as its document.

Finding a text from one of its own sentences is a search task that needs no label (the inverse cloze task; Lee et al.,
"Latent Retrieval for Weakly Supervised Open Domain Question Answering", ACL 2019). Here nothing is trained on it: the
pairs show which directions of an embedding change within a text, and which size finds most.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

MOST_PAIRS = 1000
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])|\n+")
_SHORTEST_SENTENCE, _SHORTEST_REST = 15, 40  # bytes of UTF-8, which suit scripts without spaces too


def cloze_pairs(texts: Sequence[str], count: int = MOST_PAIRS, seed: int = 0) -> list[tuple[str, str]]:
    """Make cloze pairs of texts drawn at random.

    Args:
        texts: Texts; only those of two sentences or more give a pair, and of equal ones only the first.
        count: Number of pairs to make at most. Defaults to 1,000.
        seed: Seed of the draw. Defaults to 0.

    Returns:
        Pairs of a sentence and its text without it; fewer than ``count``, or none, where texts are too short.
    """
    rng = random.Random(seed)  # noqa: S311, no secret
    pairs: list[tuple[str, str]] = []
    texts = list(dict.fromkeys(texts))
    for row in rng.sample(range(len(texts)), len(texts)):
        sentences = [part.strip() for part in _SENTENCE_END.split(texts[row]) if part.strip()]
        sizes = [len(sentence.encode()) for sentence in sentences]
        whole = sum(sizes)
        fit = [i for i, size in enumerate(sizes) if size >= _SHORTEST_SENTENCE and whole - size >= _SHORTEST_REST]
        if not fit:
            continue
        taken = rng.choice(fit)
        rest = " ".join(sentences[:taken] + sentences[taken + 1 :])
        if sentences[taken] not in rest:
            pairs.append((sentences[taken], rest))
            if len(pairs) == count:
                break
    return pairs
