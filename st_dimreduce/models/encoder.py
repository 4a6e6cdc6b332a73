"""Encoding with a base model below its ``Normalize``, keeping no more than a fit needs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from itertools import islice
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from st_dimreduce.fitting.cloze import cloze_pairs
from st_dimreduce.fitting.pairs import Pairs
from st_dimreduce.fitting.summary import Summary
from st_dimreduce.models.folder import TEXT
from st_dimreduce.progress import progress_bar

_DRAWN = 4000  # texts kept, with their embeddings, to make cloze pairs of
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

    def summarize(self, sentences: Iterable[str], seed: int) -> tuple[Summary, dict[str, np.ndarray]]:
        """Return a summary of the texts' embeddings, and a uniform sample of the texts with their embeddings."""
        if isinstance(sentences, str):
            raise ValueError("sentences is one string: expected a list of them")
        summary, drawn = Summary(self.width, seed=seed), list[tuple[str, np.ndarray]]()
        rng = random.Random(seed)  # noqa: S311, no secret
        texts = iter(sentences)
        total = len(sentences) if isinstance(sentences, Sized) else None
        with progress_bar("Encoding", "texts", self._shown, total=total) as bar:
            while chunk := list(islice(texts, _CHUNK)):
                self._check(chunk, summary.count)
                vectors = self._vectors(chunk)
                for row, pair in enumerate(zip(chunk, vectors, strict=True), summary.count):
                    if not isinstance(pair[0], str):  # of which no cloze pair can be made
                        continue
                    if len(drawn) < _DRAWN:
                        drawn.append(pair)
                    elif (place := rng.randrange(row + 1)) < _DRAWN:
                        drawn[place] = pair
                summary.update(vectors)
                bar.update(len(chunk))
        return summary, {text: vector.copy() for text, vector in drawn}

    def _check(self, chunk: list[Any], start: int) -> None:
        """Refuse what is no text, unless the model reads more than texts."""
        modalities = [str(modality) for modality in self._body.modalities]
        if set(modalities) - TEXT:
            return
        for row, text in enumerate(chunk, start):
            if not isinstance(text, str):
                kind = type(text).__name__
                raise ValueError(f"sentence {row} is of type {kind}: expected a string, the model reads text alone")

    def _vectors(self, chunk: list[Any]) -> np.ndarray:
        """Encode texts, and apart from them the images and the like, which are no part of the same batch."""
        rows = np.array([isinstance(each, str) for each in chunk])
        if rows.all() or not rows.any():
            return self._body.encode_document(chunk, **self._options)
        vectors = np.empty((len(chunk), self.width), np.float32)
        for some in (rows, ~rows):
            vectors[some] = self._body.encode_document([chunk[row] for row in np.flatnonzero(some)], **self._options)
        return vectors

    def cloze_pairs(self, texts: Mapping[str, np.ndarray] | Sequence[str], seed: int) -> Pairs | None:
        """Make cloze pairs of texts and embed them; of a mapping the embeddings of the texts are known."""
        made = cloze_pairs(list(texts), seed=seed)
        if not isinstance(texts, Mapping) or not made:
            return self.pairs(made)
        queries = self._encode(self._body.encode_query, [query for query, _ in made])
        return Pairs(queries, np.array([texts[text] for _, text in made]))

    def pairs(self, pairs: Sequence[Sequence[str]]) -> Pairs | None:
        """Embed pairs, or triples with a negative, queries with the query prompt; None if there are none."""
        if not pairs:
            return None
        encode = (self._body.encode_query, *(self._body.encode_document for _ in pairs[0][1:]))
        return Pairs(*(self._encode(*side) for side in zip(encode, zip(*pairs, strict=True), strict=True)))

    def _encode(self, encode: Callable[..., np.ndarray], texts: Sequence[str]) -> np.ndarray:
        # Equal texts are encoded once: their vectors are equal, and tell them apart from others.
        place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        unique = list(place)
        with progress_bar("Encoding pairs", "texts", self._shown, total=len(unique)) as bar:
            chunks = []
            for start in range(0, len(unique), _CHUNK):
                chunks.append(encode(unique[start : start + _CHUNK], **self._options))
                bar.update(len(chunks[-1]))
        return np.concatenate(chunks)[[place[text] for text in texts]]
