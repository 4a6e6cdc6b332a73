"""Haystack: a retriever over an index of codes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from st_dimreduce.codes.index import CodeIndex

try:
    from haystack import Document, component
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("Haystack is missing: pip install 'st_dimreduce[frameworks]'") from error


@component
class IndexRetriever:
    """A retriever over an index of codes, to stand behind a text embedder of the reduced model.

    Args:
        index: The index.
        documents: The documents, by their ids in the index: a mapping or a list.
        top_k: How many to find. Defaults to 10.
    """

    def __init__(self, index: CodeIndex, documents: Any, top_k: int = 10) -> None:
        self._index, self._documents, self._top_k = index, documents, top_k

    @component.output_types(documents=list[Document])
    def run(self, query_embedding: list[float], top_k: int | None = None) -> dict[str, list[Document]]:
        """Find the documents nearest to a query, with their cosines as scores."""
        scores, ids = self._index.search(np.array([query_embedding], np.float32), top_k or self._top_k)
        found = zip(ids[0].tolist(), scores[0].tolist(), strict=True)
        there = [(self._documents[one], score) for one, score in found if math.isfinite(score)]
        return {"documents": [replace(document, score=score) for document, score in there]}
