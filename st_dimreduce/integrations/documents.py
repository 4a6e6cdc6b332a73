"""What the retrievers of all frameworks share: the documents that an index finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from st_dimreduce.errors import UserError
from st_dimreduce.vectors.index import Index


def found_documents(index: Index, vector: Sequence[float], k: int, documents: Any) -> list[tuple[Any, float]]:
    """Return the documents nearest to a query and their cosines, the nearest first.

    Args:
        index: The index.
        vector: The query, out_features numbers.
        k: How many to find.
        documents: The documents by their ids in the index: a mapping, or a list where ids are row numbers.

    Raises:
        UserError: If there is no document for an id that was found, or as :meth:`st_dimreduce.Index.search`.
    """
    scores, ids = index.search(np.array([vector], np.float32), k)
    return [(_document(documents, one), score) for one, score in zip(ids[0].tolist(), scores[0].tolist(), strict=True)]


def _document(documents: Any, one: int | str) -> Any:
    try:
        return documents[one]
    except (LookupError, TypeError) as error:  # the latter of a list that is asked for a string
        remedy = "give a mapping with a document for each id, or remove it from the index"
        raise UserError(f"the index found id {one!r}, which no document has: {remedy}") from error
