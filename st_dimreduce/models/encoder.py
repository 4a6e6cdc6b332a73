"""Encoding with a base model below its ``Normalize``, keeping no more than a fit needs."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence, Sized
from itertools import islice
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from st_dimreduce.fitting.pairs import Pairs
from st_dimreduce.fitting.summary import Summary
from st_dimreduce.progress import progress_bar

_DRAWN = 4000  # texts kept to make cloze pairs of
_CHUNK = 2048  # texts encoded at a time: enough to sort by length, few enough to hold their vectors
# Texts of several lengths, to measure the mean norm of a model's embeddings where no texts are given.
_PROBES = [
    "weather",
    "How do I reset my password?",
    "The committee approved the new budget on Tuesday after a long debate about public transport.",
    "A solution of salt in water conducts electricity because its ions move freely. The higher the concentration, "
    "the better it conducts, up to a point at which the ions hinder one another.",
]


class Encoder:
    """Encodes texts with the body of a model: the embeddings that its head reduces.

    Args:
        body: The modules below the head.
        batch_size: Texts encoded at a time.
        show_progress_bar: Whether to show progress; only on a terminal if None.

    Attributes:
        width: Size d of an embedding.
        probe_norm: Mean norm of the embeddings of a few sentences.

    Raises:
        ValueError: If the body gives no sentence embedding.
    """

    def __init__(self, body: SentenceTransformer, batch_size: int, show_progress_bar: bool | None) -> None:
        self._body = body
        self._options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": False}
        self._shown = show_progress_bar
        try:
            probes = body.encode_document(_PROBES, **self._options)
        except KeyError as error:
            names = [type(module).__name__ for module in body]
            raise ValueError(
                f"the base model {names} gives no sentence embedding: expected one, as by Pooling"
            ) from error
        self.width = probes.shape[1]
        self.probe_norm = float(np.linalg.norm(probes, axis=1).mean())

    def summarize(self, sentences: Iterable[str], seed: int) -> tuple[Summary, list[str]]:
        """Return a summary of the texts' embeddings, and a uniform sample of the texts."""
        if isinstance(sentences, str):
            raise ValueError("sentences is one string: expected a list of them")
        summary, drawn = Summary(self.width, seed=seed), list[str]()
        rng = random.Random(seed)  # noqa: S311, no secret
        texts = iter(sentences)
        total = len(sentences) if isinstance(sentences, Sized) else None
        with progress_bar("Encoding", "texts", self._shown, total=total) as bar:
            while chunk := list(islice(texts, _CHUNK)):
                for row, text in enumerate(chunk, summary.count):
                    if not isinstance(text, str):
                        raise ValueError(f"sentence {row} is of type {type(text).__name__}: expected a string")
                    if len(drawn) < _DRAWN:
                        drawn.append(text)
                    elif (place := rng.randrange(row + 1)) < _DRAWN:
                        drawn[place] = text
                summary.update(self._body.encode_document(chunk, **self._options))
                bar.update(len(chunk))
        return summary, drawn

    def pairs(self, pairs: Sequence[Sequence[str]]) -> Pairs | None:
        """Embed pairs, or triples with a negative, queries with the query prompt; None if there are none."""
        if not pairs:
            return None
        sides = []
        with progress_bar("Encoding pairs", "texts", self._shown, total=len(pairs) * len(pairs[0])) as bar:
            for side, texts in enumerate(zip(*pairs, strict=True)):
                encode = self._body.encode_document if side else self._body.encode_query
                # Equal texts are encoded once: their vectors are equal, and tell them apart from others.
                place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
                sides.append(encode(list(place), **self._options)[[place[text] for text in texts]])
                bar.update(len(texts))
        return Pairs(*sides)
