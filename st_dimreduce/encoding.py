"""What a base model says of texts, kept as no more than a fit needs."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence, Sized
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from sentence_transformers import SentenceTransformer

from st_dimreduce.fitting import Pairs
from st_dimreduce.layout import REMOTE, check_entries, read_layout
from st_dimreduce.progress import progress_bar
from st_dimreduce.reading import read_json
from st_dimreduce.summary import Summary

_DRAWN = 4000  # texts kept to make pairs of
_CHUNK = 2048  # texts encoded at a time: enough to sort by length, few enough that their vectors are soon forgotten
# Texts of several lengths, to learn how long a model's vectors are before Normalize when no text was given.
_PROBES = [
    "weather",
    "How do I reset my password?",
    "The committee approved the new budget on Tuesday after a long debate about public transport.",
    "A solution of salt in water conducts electricity because its ions move freely. The higher the concentration, "
    "the better it conducts, up to a point at which the ions hinder one another.",
]


def load_model(name_or_path: str | os.PathLike[str], *, trust_remote_code: bool = False) -> SentenceTransformer:
    """Load a model by name or path, its files having been checked.

    Args:
        name_or_path: Name of a model on the Hub, or a folder.
        trust_remote_code: Whether code that comes with the model may run. Defaults to False; say True only of a model
            whose code you have read.

    Raises:
        ValueError: If it cannot be loaded; says why in one line.
    """
    name = os.fspath(name_or_path)
    try:
        if Path(name).is_dir():
            read_layout(name, trust_remote_code)
        else:
            _check_name(name, trust_remote_code)
        return SentenceTransformer(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # which of them a damaged file calls forth in the readers is not ours to list
        reason = " ".join(str(error).split()) or type(error).__name__
        if "trust_remote_code" in reason and REMOTE not in reason:
            reason = REMOTE
        raise ValueError(f"no model could be loaded from {name!r}: {reason:.1000}") from error


def _check_name(name: str, trust_remote_code: bool) -> None:
    """Check a name on the Hub, and the list of modules it stands for before any other file is asked for."""
    if Path(name).exists():
        raise ValueError("it is a file, expected the folder of a model")
    try:
        validate_repo_id(name)
        if name.startswith((".", "~", "/")):
            raise HFValidationError
    except HFValidationError as error:
        raise ValueError("it is no folder, and no name of a model on the Hub such as 'user/model'") from error
    try:
        modules = hf_hub_download(name if "/" in name else f"sentence-transformers/{name}", "modules.json")
    except (
        OSError,
        HfHubHTTPError,
        ValueError,
    ):  # Sentence Transformers knows more ways, and says why if none leads there
        return
    check_entries(read_json(Path(modules)), trust_remote_code)


class Encoder:
    """What a base model says of texts, before any ``Normalize``: the vectors that the head will see."""

    def __init__(self, trunk: SentenceTransformer, batch_size: int, show_progress_bar: bool | None) -> None:
        self._trunk = trunk
        self._options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": False}
        self._shown = show_progress_bar
        try:
            probes = trunk.encode_document(_PROBES, **self._options)
        except KeyError as error:
            names = [type(module).__name__ for module in trunk]
            raise ValueError(
                f"the base model {names} gives no sentence embedding: expected one, as by Pooling"
            ) from error
        self.width = probes.shape[1]
        self.probe_norm = float(np.linalg.norm(probes, axis=1).mean())

    def summarize(self, sentences: Iterable[str], seed: int) -> tuple[Summary, list[str]]:
        """Return a summary of the texts' vectors, and a uniform draw of the texts."""
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
                summary.update(self._trunk.encode_document(chunk, **self._options))
                bar.update(len(chunk))
        return summary, drawn

    def pairs(self, pairs: Sequence[Sequence[str]]) -> Pairs | None:
        """Return pairs, or triples with a negative, embedded, queries with their own prompt; None if there are none."""
        if not pairs:
            return None
        sides = []
        with progress_bar("Encoding pairs", "texts", self._shown, total=len(pairs) * len(pairs[0])) as bar:
            for side, texts in enumerate(zip(*pairs, strict=True)):
                encode = self._trunk.encode_document if side else self._trunk.encode_query
                # Encoded once, equal texts have equal vectors: by these they are known.
                place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
                sides.append(encode(list(place), **self._options)[[place[text] for text in texts]])
                bar.update(len(texts))
        return Pairs(*sides)
