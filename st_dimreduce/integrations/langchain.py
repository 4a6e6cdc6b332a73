"""Codes for LangChain: int8 or binary where a vector store takes them, from any model of embeddings."""

from __future__ import annotations

import numpy as np

from st_dimreduce.codes.precision import Precision, quantize

try:
    from langchain_core.embeddings import Embeddings
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("LangChain is missing: pip install 'st_dimreduce[frameworks]'") from error


class CodeEmbeddings(Embeddings):
    """Embeddings whose documents are codes, as lists of whole numbers.

    ``CodeEmbeddings(HuggingFaceEmbeddings(model_name="mpnet-128"))`` goes wherever LangChain takes embeddings. The grid
    is fixed: the same text has the same code whatever it is embedded with, which
    ``encode_kwargs={"precision": "int8"}`` cannot promise.

    ========== ================================================= ================================================
    int8       k numbers from -127 to 127, queries as floats     any store that compares by cosine
    binary     k / 8 bytes from 0 to 255, queries as well        stores that compare bits by Hamming distance
    int4, int2 packed bytes from 0 to 255, queries as floats     :func:`st_dimreduce.search`, no store
    ========== ================================================= ================================================

    A store saves space by int8 only in a column of bytes; one whose queries must be bytes too, as those of
    Elasticsearch, takes ``query_precision="int8"``.

    Args:
        embeddings: What embeds the texts, a reduced model behind it.
        precision: A ``Precision`` or its name. Defaults to int8.
        query_precision: That of queries. Defaults to float32 (lengths as the model gives them), for binary to binary.

    Raises:
        ValueError: If a precision is unknown.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        precision: Precision | str = Precision.INT8,
        query_precision: Precision | str | None = None,
    ) -> None:
        self.embeddings, self.precision = embeddings, Precision(precision)
        usual = self.precision if self.precision is Precision.BINARY else Precision.FLOAT32
        self.query_precision = Precision(query_precision or usual)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        vectors = self.embeddings.embed_documents(texts)
        return quantize(np.array(vectors), self.precision).tolist() if vectors else []

    def embed_query(self, text: str) -> list[float]:
        vector = self.embeddings.embed_query(text)
        if self.query_precision is Precision.FLOAT32:
            return vector
        return quantize(np.array([vector]), self.query_precision).tolist()[0]
