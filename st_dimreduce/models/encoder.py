"""Encoding with a base model below its ``Normalize``, keeping no more than a fit needs."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping, Sequence, Sized
from itertools import islice
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from st_dimreduce.codes.metrics import cosines
from st_dimreduce.errors import UserError
from st_dimreduce.fitting.cloze import cloze_pairs
from st_dimreduce.fitting.pairs import Pairs
from st_dimreduce.fitting.summary import Summary
from st_dimreduce.models.cache import Cache
from st_dimreduce.models.encoding import CHUNK, Role, SharedEncoder
from st_dimreduce.models.folder import TEXT
from st_dimreduce.progress import progress_bar

_SEEN, _SAME = 8, 0.999  # texts encoded to see whether given embeddings are theirs, and the cosine if so
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
        cache: Where embeddings are kept. Defaults to None.

    Attributes:
        width: Size d of an embedding.
        probe_norm: Mean norm of the embeddings of a few sentences.

    Raises:
        ValueError: If the body gives no sentence embedding.
    """

    def __init__(
        self,
        body: SentenceTransformer,
        batch_size: int,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        self._body = body
        kept = None if cache is None else Cache(cache)
        self._encoder = SharedEncoder({"": body}, batch_size, kept)
        try:
            probes = body.encode_document(_PROBES, batch_size=batch_size, show_progress_bar=False)
        except KeyError as error:
            names = [type(module).__name__ for module in body]
            raise UserError(
                f"the base model {names} gives no sentence embedding: expected one, as by Pooling"
            ) from error
        self.width = probes.shape[1]
        self.probe_norm = float(np.linalg.norm(probes, axis=1).mean())

    def summarize(self, sentences: Iterable[str], seed: int) -> tuple[Summary, dict[str, np.ndarray]]:
        """Return a summary of the texts' embeddings, and a uniform sample of the texts with their embeddings."""
        summary, drawn = Summary(self.width, seed=seed), list[tuple[str, np.ndarray]]()
        rng = random.Random(seed)  # noqa: S311, no secret
        texts = iter(sentences)
        total = len(sentences) if isinstance(sentences, Sized) else None
        with progress_bar("Encoding", "texts", total=total) as bar:
            while chunk := list(islice(texts, CHUNK)):
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
                raise UserError(f"sentence {row} is of type {kind}: expected a string, the model reads text alone")

    def _vectors(self, chunk: list[Any]) -> np.ndarray:
        """Encode texts, and apart from them the images and the like, which are no part of the same batch."""
        rows = np.array([isinstance(each, str) for each in chunk])
        if rows.all() or not rows.any():
            return self._rows(chunk, "document")
        vectors = np.empty((len(chunk), self.width), np.float32)
        for some in (rows, ~rows):
            vectors[some] = self._rows([chunk[row] for row in np.flatnonzero(some)], "document")
        return vectors

    def _rows(self, texts: Sequence[Any], role: Role, what: str = "Encoding") -> np.ndarray:
        return self._encoder.encode(texts, role, what)[""]

    def known(self, texts: Sequence[str], embeddings: np.ndarray) -> Mapping[str, np.ndarray] | None:
        """Return the embeddings of texts by text, if row i is that of text i; None if it is not.

        A few texts are encoded to see; rows may be scaled, or rounded to half the digits.
        """
        if len(texts) != len(embeddings) or not all(isinstance(text, str) for text in texts):
            return None
        rows = np.linspace(0, len(texts) - 1, min(_SEEN, len(texts))).astype(int)
        own = self._rows([texts[row] for row in rows], "document")
        given = np.asarray(embeddings[rows], np.float32)
        return dict(zip(texts, embeddings, strict=True)) if cosines(own, given).min() > _SAME else None

    def cloze_pairs(self, texts: Mapping[str, np.ndarray] | Sequence[str], seed: int) -> Pairs | None:
        """Make cloze pairs of texts and embed them; of a mapping the embeddings of the texts are known."""
        made = cloze_pairs(list(texts), seed=seed)
        if not isinstance(texts, Mapping) or not made:
            return self.pairs(made)
        return Pairs(self._unique([query for query, _ in made], "query"), np.array([texts[text] for _, text in made]))

    def pairs(self, pairs: Sequence[Sequence[str]]) -> Pairs | None:
        """Embed pairs, or triples with a negative, queries with the query prompt; None if there are none."""
        if not pairs:
            return None
        documents: list[Role] = ["document"] * (len(pairs[0]) - 1)
        roles: list[Role] = ["query", *documents]
        return Pairs(*(self._unique(side, role) for side, role in zip(zip(*pairs, strict=True), roles, strict=True)))

    def _unique(self, texts: Sequence[str], role: Role) -> np.ndarray:
        # Equal texts are encoded once: their vectors are equal, and tell them apart from others.
        place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        return self._rows(list(place), role, "Encoding pairs")[[place[text] for text in texts]]
