"""LlamaIndex: a retriever over an index of codes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from st_dimreduce.codes.index import CodeIndex

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("LlamaIndex is missing: pip install 'st_dimreduce[frameworks]'") from error


class IndexRetriever(BaseRetriever):
    """A retriever over an index of codes.

    Args:
        index: The index.
        embed_model: The embeddings of the reduced model whose codes it holds.
        nodes: The nodes, by their ids in the index: a mapping or a list.
        top_k: How many to find. Defaults to 4.
    """

    def __init__(self, index: CodeIndex, embed_model: BaseEmbedding, nodes: Any, top_k: int = 4) -> None:
        self._index, self._embed_model, self._nodes, self._top_k = index, embed_model, nodes, top_k
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        vector = query_bundle.embedding or self._embed_model.get_query_embedding(query_bundle.query_str)
        scores, ids = self._index.search(np.array([vector], np.float32), self._top_k)
        found = zip(ids[0].tolist(), scores[0].tolist(), strict=True)
        return [NodeWithScore(node=self._nodes[one], score=score) for one, score in found if math.isfinite(score)]
