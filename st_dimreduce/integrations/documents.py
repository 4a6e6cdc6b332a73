"""What the retrievers of all frameworks share: the documents that an index finds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from st_dimreduce.codes.index import CodeIndex
from st_dimreduce.errors import UserError


def found_documents(index: CodeIndex, vector: Sequence[float], top_k: int, documents: Any) -> list[tuple[Any, float]]:
    """Return the documents nearest to a query and their cosines, the nearest first.

    Args:
        index: The index.
        vector: The query, k numbers.
        top_k: How many to find.
        documents: The documents, by their ids in the index: a mapping or a list.

    Raises:
        ValueError: If there is no document for an id that was found, or as :meth:`st_dimreduce.CodeIndex.search`.
    """
    scores, ids = index.search(np.array([vector], np.float32), top_k)
    found = []
    for one, score in zip(ids[0].tolist(), scores[0].tolist(), strict=True):
        if math.isfinite(score):
            try:
                found.append((documents[one], score))
            except LookupError as error:
                remedy = "give a document for each, or remove it from the index"
                raise UserError(f"the index found id {one!r}, which no document has: {remedy}") from error
    return found
