"""Encoding with a base model below its ``Normalize``, for a fit: in one pass and in bounded memory."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping, Sequence, Sized
from itertools import islice
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from tqdm import tqdm

from st_dimreduce.errors import UserError
from st_dimreduce.fitting.cloze import cloze_pairs
from st_dimreduce.fitting.pairs import Pairs
from st_dimreduce.fitting.summary import Summary
from st_dimreduce.models.cache import Cache
from st_dimreduce.models.encoding import CHUNK, Role, SharedEncoder
from st_dimreduce.models.folder import TEXT
from st_dimreduce.progress import progress_bar

_DRAWN = 4000  # texts kept, with their embeddings, to make cloze pairs of
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
        cache: Folder to keep embeddings in. Defaults to None.

    Attributes:
        width: Size d of an embedding.
        probe_norm: Mean norm of the embeddings of a few sentences.

    Raises:
        UserError: If the body gives no sentence embedding.
    """

    def __init__(self, body: SentenceTransformer, batch_size: int, cache: str | os.PathLike[str] | None = None) -> None:
        self._body = body
        self._encoder = SharedEncoder({"": body}, batch_size, None if cache is None else Cache(cache))
        try:
            probes = body.encode_document(_PROBES, batch_size=batch_size, show_progress_bar=False)
        except KeyError as error:
            names = [type(module).__name__ for module in body]
            message = f"the base model {names} gives no sentence embedding: expected one, as by Pooling"
            raise UserError(message) from error
        self.width = probes.shape[1]
        self.probe_norm = float(np.linalg.norm(probes, axis=1).mean())

    def summarize(self, texts: Iterable[str], seed: int) -> tuple[Summary, dict[str, np.ndarray]]:
        """Return a summary of the texts' embeddings, and a uniform sample of the texts with their embeddings."""
        summary, drawn = Summary(self.width, seed=seed), list[tuple[str, np.ndarray]]()
        rng = random.Random(seed)  # noqa: S311, no secret
        left = iter(texts)
        with progress_bar("Encoding", "texts", total=len(texts) if isinstance(texts, Sized) else None) as bar:
            while chunk := list(islice(left, CHUNK)):
                self._check(chunk, summary.count)
                vectors = self._vectors(chunk, bar)
                for row, pair in enumerate(zip(chunk, vectors, strict=True), summary.count):
                    if not isinstance(pair[0], str):  # an image, which makes no cloze pair
                        continue
                    if len(drawn) < _DRAWN:
                        drawn.append(pair)
                    elif (place := rng.randrange(row + 1)) < _DRAWN:
                        drawn[place] = pair
                summary.update(vectors)
        return summary, {text: vector.copy() for text, vector in drawn}

    def _check(self, chunk: list[Any], start: int) -> None:
        """Refuse anything but text, unless the model reads more than text."""
        if {str(modality) for modality in self._body.modalities} - TEXT:
            return
        for row, text in enumerate(chunk, start):
            if not isinstance(text, str):
                kind = type(text).__name__
                raise UserError(f"text {row} is of type {kind}: expected a string, the model reads text alone")

    def _vectors(self, chunk: list[Any], bar: tqdm) -> np.ndarray:
        """Encode documents: texts and images apart, since a batch holds one kind."""
        is_text = np.array([isinstance(each, str) for each in chunk])
        vectors = np.empty((len(chunk), self.width), np.float32)
        for rows in (np.flatnonzero(is_text), np.flatnonzero(~is_text)):
            if len(rows):
                vectors[rows] = self._encoder.encode([chunk[row] for row in rows], "document", bar)[""]
        return vectors

    def cloze_pairs(self, vectors: Mapping[str, np.ndarray], seed: int) -> Pairs | None:
        """Make cloze pairs of texts whose embeddings are known; None where the texts are too short to make any."""
        made = cloze_pairs(list(vectors), seed=seed)
        if not made:
            return None
        queries, texts = zip(*made, strict=True)
        return Pairs(self._unique(queries, "query"), np.array([vectors[text] for text in texts]))

    def pairs(self, pairs: Sequence[Sequence[str]]) -> Pairs | None:
        """Embed pairs, or triples with a negative, queries with the query prompt; None if there are none."""
        if not pairs:
            return None
        documents: list[Role] = ["document"] * (len(pairs[0]) - 1)
        roles: list[Role] = ["query", *documents]
        return Pairs(*(self._unique(side, role) for side, role in zip(zip(*pairs, strict=True), roles, strict=True)))

    def _unique(self, texts: Sequence[str], role: Role) -> np.ndarray:
        """Encode equal texts once, so that their vectors are equal: that is how a fit recognises them."""
        place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        with progress_bar("Encoding pairs", "texts", total=len(place)) as bar:
            return self._encoder.encode(list(place), role, bar)[""][[place[text] for text in texts]]
