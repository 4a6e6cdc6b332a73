"""Haystack: a retriever over an index of codes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from st_dimreduce.errors import MissingExtraError, UserError
from st_dimreduce.integrations.documents import found_documents
from st_dimreduce.vectors.index import Index

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ModuleNotFoundError as error:
    raise MissingExtraError("Haystack is missing: pip install 'st_dimreduce[frameworks]'") from error


@component
class IndexRetriever:
    """A retriever over an index of codes, to stand behind a text embedder of the reduced model.

    Args:
        index: The index, or the folder that it was saved to. A pipeline can be dumped with the latter only.
        documents: The documents by their ids in the index: a mapping, or a list where ids are row numbers.
        k: How many to find. Defaults to 10.
    """

    def __init__(self, index: Index | str | os.PathLike[str], documents: Any, k: int = 10) -> None:
        self._folder = None if isinstance(index, Index) else os.fspath(index)
        self._index = index if isinstance(index, Index) else Index.load(index)
        self._documents, self._k = documents, k

    @component.output_types(documents=list[Document])
    def run(self, query_embedding: list[float], k: int | None = None) -> dict[str, list[Document]]:
        """Find the documents nearest to a query, with their cosines as scores."""
        found = found_documents(self._index, query_embedding, self._k if k is None else k, self._documents)
        return {"documents": [replace(document, score=score) for document, score in found]}

    def to_dict(self) -> dict[str, Any]:
        """Return what a pipeline is dumped with: the folder of the index, and the documents."""
        if self._folder is None:
            raise UserError("the retriever's index is in memory: index.save(folder), and give the folder instead")
        documents: Any
        if isinstance(self._documents, Mapping):
            documents = {one: document.to_dict() for one, document in self._documents.items()}
        else:
            documents = [document.to_dict() for document in self._documents]
        return default_to_dict(self, index=self._folder, documents=documents, k=self._k)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> IndexRetriever:
        """Return the retriever that :meth:`to_dict` wrote."""
        given = dict(data["init_parameters"])
        documents = given["documents"]
        if isinstance(documents, Mapping):
            given["documents"] = {one: Document.from_dict(document) for one, document in documents.items()}
        else:
            given["documents"] = [Document.from_dict(document) for document in documents]
        return default_from_dict(cls, {**data, "init_parameters": given})
