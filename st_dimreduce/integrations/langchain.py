"""LangChain: embeddings that return codes, and a retriever over an index of codes."""

from __future__ import annotations

from typing import Any

import numpy as np

from st_dimreduce.codes.precision import quantize
from st_dimreduce.enums import Precision
from st_dimreduce.errors import MissingExtraError, UserError
from st_dimreduce.integrations.documents import found_documents
from st_dimreduce.untrusted import short
from st_dimreduce.vectors.index import Index

try:
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
    from pydantic import ConfigDict
except ModuleNotFoundError as error:
    raise MissingExtraError("LangChain is missing: pip install 'st_dimreduce[frameworks]'") from error


class CodeEmbeddings(Embeddings):
    """Embeddings whose documents are codes, as lists of integers.

    Pass ``CodeEmbeddings(HuggingFaceEmbeddings(model_name="mpnet-128"))`` wherever LangChain takes embeddings. The code
    of a text does not depend on the other texts of its batch, as it does with
    ``encode_kwargs={"precision": "int8"}``.

    ========== ================================================= ================================================
    int8       k integers from -127 to 127, queries as floats    any store that compares by cosine
    binary     k / 8 bytes from 0 to 255, queries as well        stores that compare bits by Hamming distance
    int4, int2 packed bytes from 0 to 255, queries as floats     :class:`IndexRetriever`
    ========== ================================================= ================================================

    int8 saves space only where the store has a column of bytes. A store whose queries must be bytes as well, such as
    Elasticsearch, takes ``query_precision="int8"``.

    Args:
        embeddings: The embeddings of a reduced model.
        precision: Precision of the documents. Defaults to int8.
        query_precision: Precision of the queries. Defaults to binary if ``precision`` is binary, else to float32: the
            queries as the model returns them, of any norm.

    Raises:
        ValueError: If a precision is unknown, or ``embeddings`` are none of LangChain's.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        precision: Precision | str = Precision.INT8,
        query_precision: Precision | str | None = None,
    ) -> None:
        if not hasattr(embeddings, "embed_documents"):
            asked = "expected LangChain's embeddings of it, such as HuggingFaceEmbeddings(model_name=...)"
            raise UserError(f"embeddings is {short(embeddings)}: {asked}")
        self.embeddings = embeddings
        self.precision = Precision(precision)
        if query_precision is None:
            query_precision = Precision.BINARY if self.precision is Precision.BINARY else Precision.FLOAT32
        self.query_precision = Precision(query_precision)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        vectors = self.embeddings.embed_documents(texts)
        return quantize(np.array(vectors), self.precision).tolist() if vectors else []

    def embed_query(self, text: str) -> list[float]:
        vector = self.embeddings.embed_query(text)
        if self.query_precision is Precision.FLOAT32:
            return vector
        return quantize(np.array([vector]), self.query_precision).tolist()[0]


class IndexRetriever(BaseRetriever):
    """A retriever over an index of codes.

    Attributes:
        index: The index.
        embeddings: The embeddings of the reduced model whose codes it holds.
        documents: The documents by their ids in the index: a mapping, or a list where ids are row numbers.
        k: How many to find; ``invoke(query, k=...)`` asks for another number. Defaults to 4.
    """

    index: Index
    embeddings: Embeddings
    documents: Any
    k: int = 4

    model_config = ConfigDict(arbitrary_types_allowed=True)

    def _get_relevant_documents(self, query: str, *, run_manager: Any, k: int | None = None) -> list[Document]:
        vector = self.embeddings.embed_query(query)
        found = found_documents(self.index, vector, self.k if k is None else k, self.documents)
        return [
            document.model_copy(update={"metadata": {**document.metadata, "score": score}}) for document, score in found
        ]
