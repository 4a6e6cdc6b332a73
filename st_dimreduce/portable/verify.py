"""Whether what was written gives the vectors of the model that it was made of, found out before it gets its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from st_dimreduce.codes.metrics import cosines
from st_dimreduce.errors import UserError
from st_dimreduce.models.load import load_model

KEPT = "nothing was changed; please report it with the model's name"
_ALIKE, _NORM = 0.9999, 0.01  # cosine and share of the norm to which two vectors of one text agree
# In one batch, so that all but the longest are padded, and up to beyond the length at which most models cut.
TEXTS = [
    "a",
    "Weather",
    "How do I reset my password?",
    "The committee approved the new budget on Tuesday, after a long debate about public transport.",
    "\uacf5\ud56d\uae4c\uc9c0 \uc5bc\ub9c8\ub098 \uac78\ub9ac\ub098\uc694?",
    "A solution of salt in water conducts electricity because its ions move freely. " * 12,
]
_FAR = ["Ships pass the canal at night. " * 400]  # longer than a model reads, for each that reads a few hundred words


def check_vectors(model: SentenceTransformer, folder: Path, *, trust_remote_code: bool = False) -> None:
    """Load the model in a folder and compare its vectors with those of another, for each prompt, padding and length.

    Args:
        model: The model that it was made of; left as it is.
        folder: The folder that was written.
        trust_remote_code: As in :func:`st_dimreduce.models.load.load_model`. Defaults to False.

    Raises:
        ValueError: If the folder does not load, a vector differs by more than rounding, or the model gives none.
    """
    written, compared = load_model(folder, trust_remote_code=trust_remote_code, device=str(model.device)), 0
    for how, encode in _ways(model):
        try:
            expected = encode(model)
        except (IndexError, RuntimeError):  # longer than it can read, which nothing told its tokenizer
            continue
        compare_vectors(expected, encode(written), how)
        compared += 1
    if not compared:
        raise UserError("the model encodes none of a few short texts: expected vectors to compare with")


def compare_vectors(expected: np.ndarray, found: np.ndarray, how: str) -> None:
    """Compare vectors of the same texts, both of shape (n, k).

    Raises:
        ValueError: If their shapes differ, or a vector by more than rounding.
    """
    if expected.shape != found.shape:
        raise UserError(f"what was written gives {found.shape[1]} dimensions, the model {expected.shape[1]}: {KEPT}")
    agreement = cosines(expected.astype(np.float64), found)
    norms = np.linalg.norm(expected, axis=1), np.linalg.norm(found, axis=1)
    same = (agreement >= _ALIKE) & (np.abs(norms[1] - norms[0]) <= _NORM * norms[0])
    same |= (expected == found).all(axis=1)  # zeros too
    if not same.all():
        worst = float(np.where(same, 2, agreement).min())
        raise UserError(f"what was written gives other vectors than the model {how}, cosine {worst:.4f}: {KEPT}")


def _ways(model: SentenceTransformer) -> Iterator[tuple[str, Callable[[SentenceTransformer], np.ndarray]]]:
    """Yield ways to encode texts, and what to say of each: with every prompt, as query and document, padded and not."""

    def way(texts: list[str], method: str = "encode", **options: Any) -> Callable[[SentenceTransformer], np.ndarray]:
        return lambda each: encode_as_it_was(each, texts, method, **options)

    yield "for texts in a batch", way(TEXTS)
    yield "for its special tokens in a text", way([special_words(model)])
    yield "for texts one at a time", way(TEXTS[:4], batch_size=1)
    yield "for a text longer than it reads", way(_FAR)
    yield "as queries", way(TEXTS[:4], "encode_query")
    yield "as documents", way(TEXTS, "encode_document")
    yield "without a prompt", way(TEXTS[:4], prompt="")
    for name, prompt in model.prompts.items():
        if prompt:
            yield f"with the prompt {name!r}", way(TEXTS[:4], prompt_name=name)


def special_words(model: SentenceTransformer) -> str:
    """Return a text of the special tokens of a model's tokenizer, which some tokenizers split as they split others."""
    tokenizer: Any = model.tokenizer
    if hasattr(tokenizer, "all_special_tokens"):
        return " ".join(["a", *tokenizer.all_special_tokens[:16], "b"])
    added: dict[int, Any] = getattr(tokenizer, "get_added_tokens_decoder", dict)()
    return " ".join(["a", *[str(token.content) for token in added.values() if token.special][:16], "b"])


def encode_as_it_was(
    model: SentenceTransformer, texts: list[str], method: str = "encode", **options: Any
) -> np.ndarray:
    """Encode texts, float32 of shape (n, k), and put modules that are in training back there: encoding ends it."""
    training = [module for module in model.modules() if module.training]
    try:
        return np.asarray(getattr(model, method)(texts, show_progress_bar=False, **options), np.float32)
    finally:
        for module in training:
            module.training = True
