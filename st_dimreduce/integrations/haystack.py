"""Haystack: a retriever over an index of codes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from st_dimreduce.codes.index import CodeIndex
from st_dimreduce.errors import MissingExtraError
from st_dimreduce.integrations.documents import found_documents

try:
    from haystack import Document, component
except ModuleNotFoundError as error:
    raise MissingExtraError("Haystack is missing: pip install 'st_dimreduce[frameworks]'") from error


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
        top_k = self._top_k if top_k is None else top_k
        found = found_documents(self._index, query_embedding, top_k, self._documents)
        return {"documents": [replace(document, score=score) for document, score in found]}
