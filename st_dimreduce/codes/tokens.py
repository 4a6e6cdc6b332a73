"""Codes of tokens: what is stored of documents for late interaction, and its exact search by MaxSim."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file

from st_dimreduce.codes.precision import check_codes, dequantize, quantize
from st_dimreduce.codes.rows import as_array, as_count, scale_rows
from st_dimreduce.codes.search import decode, keep_best
from st_dimreduce.enums import Precision
from st_dimreduce.errors import UserError
from st_dimreduce.files import new_file
from st_dimreduce.untrusted import read_arrays

if TYPE_CHECKING:
    from torch import Tensor

_FORMAT = "st_dimreduce.token_codes.1"
_ARRAYS = ("codes", "offsets")
_NO_TOKEN = np.finfo(np.float32).min  # score of a document without tokens: found last


@dataclass(frozen=True, eq=False)
class TokenCodes:
    """Documents as codes of their tokens: what a late-interaction index has to store.

    Args:
        codes: What :func:`st_dimreduce.quantize` returns for all t tokens, one document after the other, shape
            (t, width).
        offsets: int64 array of shape (n + 1,), ascending from 0 to t: document i has the tokens from offsets[i] to
            offsets[i + 1].
        precision: The precision of the codes, a ``Precision`` or its name.
        out_features: Dimensions k of a token vector.

    Raises:
        ValueError: If the codes are of another type or width than these ask for, or the offsets do not fit them.
    """

    codes: np.ndarray
    offsets: np.ndarray
    precision: Precision
    out_features: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "precision", Precision(self.precision))
        as_count(self.out_features, "out_features", "give the dimensions of a token vector, at least 1")
        check_codes(self.codes, self.precision, self.out_features)
        offsets = np.asarray(self.offsets)
        fits = offsets.ndim == 1 and offsets.dtype == np.int64 and len(offsets) > 0
        if not fits or offsets[0] != 0 or offsets[-1] != len(self.codes) or (np.diff(offsets) < 0).any():
            expected = f"ascending from 0 to {len(self.codes)}, the number of codes"
            raise UserError(f"offsets of type {offsets.dtype} and shape {offsets.shape}: expected int64, {expected}")

    @classmethod
    def of(cls, documents: Iterable[np.ndarray | Tensor], precision: Precision | str) -> TokenCodes:
        """Quantise documents, one at a time.

        Args:
            documents: For each document its token vectors, an array or tensor of shape (tokens, k), as
                ``MultiVectorEncoder.encode_document`` returns them; a generator will do.
            precision: A ``Precision`` or its name.

        Raises:
            ValueError: If there is no document, one is of another shape or width, or holds NaN or infinity.
        """
        precision, coded, width = Precision(precision), list[np.ndarray](), 0
        for row, document in enumerate(documents):
            vectors = as_array(document, f"tokens of document {row}", "(tokens, k)")
            width = width or vectors.shape[1]
            if vectors.shape[1] != width:
                raise UserError(f"document {row} has tokens of {vectors.shape[1]} dimensions, the first of {width}")
            coded.append(quantize(vectors, precision))
        if not coded:
            raise UserError("there is no document: give the token vectors of at least one")
        offsets = np.cumsum([0, *map(len, coded)], dtype=np.int64)
        return cls(np.concatenate(coded), offsets, precision, width)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """Return the decoded unit vectors of one document, float32 of shape (tokens, k)."""
        if not -len(self) <= row < len(self):
            raise IndexError(f"document {row} of {len(self)}")
        start, stop = self.offsets[row % len(self) :][:2]
        return dequantize(self.codes[start:stop], self.precision, self.out_features)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of the code of one token."""
        return self.precision.bytes_per_vector(self.out_features)

    @property
    def bytes_per_document(self) -> float:
        """Mean bytes of a document: the codes of its tokens, and 8 for its offset."""
        return len(self.codes) * self.bytes_per_token / max(len(self), 1) + self.offsets.itemsize

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the codes to one safetensors file, beside ``path`` first and then renamed."""
        said = {"format": _FORMAT, "precision": self.precision.value, "out_features": str(self.out_features)}
        with new_file(path) as file:
            save_file({name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}, file, said)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TokenCodes:
        """Read codes that :meth:`save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file holds anything else.
        """
        said, arrays = read_arrays(path, _FORMAT, _ARRAYS, "file of token codes", "TokenCodes.save")
        try:
            return cls(**arrays, precision=Precision(said["precision"]), out_features=int(said["out_features"]))
        except (KeyError, ValueError) as error:
            raise UserError(f"{path} is damaged: {error}") from error


def search_multi_vector(
    queries: Sequence[np.ndarray | Tensor] | np.ndarray | Tensor,
    documents: TokenCodes,
    top_k: int = 10,
    *,
    block_size: tuple[int, int] = (512, 8192),
) -> tuple[np.ndarray, np.ndarray]:
    """Find the documents of the highest MaxSim: for each query token the nearest token of the document, summed.

    The score of late interaction (Khattab and Zaharia, "ColBERT", SIGIR 2020), of cosines: what
    ``MultiVectorEncoder.similarity`` gives for a model that ends in ``Normalize`` and the decoded documents. Queries
    stay float. Every token is scored, a block at a time; no index proposes candidates.

    Args:
        queries: For each query its token vectors, arrays or tensors of shape (tokens, k), as
            ``MultiVectorEncoder.encode_query`` returns them; or one array of shape (q, tokens, k). A vector of zeros
            scores 0.
        documents: The codes of n documents.
        top_k: How many to find; fewer where there are fewer documents. Defaults to 10.
        block_size: Tokens of queries and of documents scored at a time; a query or document of more is scored whole.
            Defaults to (512, 8192): 16 MB of cosines.

    Returns:
        Scores, float32, and rows of documents, int64, both of shape (q, min(top_k, n)), the highest first. A document
        without tokens comes last.

    Raises:
        ValueError: If ``documents`` are no ``TokenCodes``, the queries are of another width, one has no tokens or holds
            NaN or infinity, or ``top_k`` is less than 1.
    """
    if not isinstance(documents, TokenCodes):
        kind = type(documents).__name__
        raise UserError(f"documents are of type {kind}: expected TokenCodes, as TokenCodes.of makes them of vectors")
    as_count(top_k, "top_k", "ask for at least 1")
    if min(block_size) < 1:
        raise UserError(f"block_size={block_size}: score at least 1 token of each side at a time")
    tokens, ends = _flat(queries, documents.out_features)
    kept = min(top_k, len(documents))
    scores = np.full((len(ends) - 1, kept), -np.inf, np.float32)
    rows = np.zeros(scores.shape, np.int64)
    sizes = np.diff(documents.offsets)
    for first, last in _blocks(documents.offsets, block_size[1]):
        start, stop = documents.offsets[[first, last]]
        decoded, inverse = decode(documents.codes[start:stop], documents.precision, documents.out_features)
        decoded *= inverse[:, None]
        filled = np.flatnonzero(sizes[first:last])  # reduceat takes no empty part
        starts = documents.offsets[first:last][filled] - start
        for one, other in _blocks(ends, block_size[0]):
            found = np.full((other - one, last - first), _NO_TOKEN, np.float32)
            if len(filled):
                cosines = tokens[ends[one] : ends[other]] @ decoded.T
                nearest = np.maximum.reduceat(cosines, starts, axis=1)
                found[:, filled] = np.add.reduceat(nearest, ends[one:other] - ends[one], axis=0)
            keep_best(scores[one:other], rows[one:other], found, first)
    return scores, rows


def _flat(queries: Sequence[np.ndarray | Tensor] | np.ndarray | Tensor, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the unit vectors of the tokens of all queries, (t, width), and where each query ends, from 0 on."""
    if getattr(queries, "ndim", 3) != 3:
        raise UserError("queries are one array of vectors: expected a list of arrays, one of (tokens, k) per query")
    arrays = [as_array(query, f"tokens of query {row}", "(tokens, k)") for row, query in enumerate(queries)]
    for row, array in enumerate(arrays):
        if array.shape[1] != width or not len(array):
            raise UserError(f"query {row} has shape {array.shape}: expected (tokens, {width}), at least 1 token")
    ends = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
    return scale_rows(np.concatenate(arrays)) if arrays else np.empty((0, width), np.float32), ends


def _blocks(offsets: np.ndarray, size: int) -> Iterator[tuple[int, int]]:
    """Yield the first of a run of texts that together have ``size`` tokens at most, and the one after its last."""
    first, count = 0, len(offsets) - 1
    while first < count:
        last = int(np.searchsorted(offsets, offsets[first] + size, side="right")) - 1
        last = min(max(last, first + 1), count)
        yield first, last
        first = last
