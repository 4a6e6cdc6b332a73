"""LangChain embeddings that return int8 or binary codes."""

from __future__ import annotations

import numpy as np

from st_dimreduce.codes.precision import quantize
from st_dimreduce.enums import Precision

try:
    from langchain_core.embeddings import Embeddings
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("LangChain is missing: pip install 'st_dimreduce[frameworks]'") from error


class CodeEmbeddings(Embeddings):
    """Embeddings whose documents are codes, as lists of integers.

    Pass ``CodeEmbeddings(HuggingFaceEmbeddings(model_name="mpnet-128"))`` wherever LangChain takes embeddings. The code
    of a text does not depend on the other texts of its batch, as it does with
    ``encode_kwargs={"precision": "int8"}``.

    ========== ================================================= ================================================
    int8       k integers from -127 to 127, queries as floats    any store that compares by cosine
    binary     k / 8 bytes from 0 to 255, queries as well        stores that compare bits by Hamming distance
    int4, int2 packed bytes from 0 to 255, queries as floats     :func:`st_dimreduce.search`, no store
    ========== ================================================= ================================================

    int8 saves space only where the store has a column of bytes. A store whose queries must be bytes as well, such as
    Elasticsearch, takes ``query_precision="int8"``.

    Args:
        embeddings: The embeddings of a reduced model.
        precision: Precision of the documents. Defaults to int8.
        query_precision: Precision of the queries. Defaults to binary if ``precision`` is binary, else to float32: the
            queries as the model returns them, of any norm.

    Raises:
        ValueError: If a precision is unknown.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        precision: Precision | str = Precision.INT8,
        query_precision: Precision | str | None = None,
    ) -> None:
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
