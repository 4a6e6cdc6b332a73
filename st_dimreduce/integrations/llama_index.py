"""LlamaIndex: a retriever over an index of codes."""

from __future__ import annotations

from typing import Any

from st_dimreduce.errors import MissingExtraError
from st_dimreduce.integrations.documents import found_documents
from st_dimreduce.vectors.index import Index

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, QueryBundle
except ModuleNotFoundError as error:
    raise MissingExtraError("LlamaIndex is missing: pip install 'st_dimreduce[frameworks]'") from error


class IndexRetriever(BaseRetriever):
    """A retriever over an index of codes.

    Args:
        index: The index.
        embed_model: The embeddings of the reduced model whose codes it holds.
        nodes: The nodes by their ids in the index: a mapping, or a list where ids are row numbers.
        k: How many to find. Defaults to 4.
    """

    def __init__(self, index: Index, embed_model: BaseEmbedding, nodes: Any, k: int = 4) -> None:
        self._index, self._embed_model, self._nodes, self._k = index, embed_model, nodes, k
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        vector = query_bundle.embedding
        if vector is None:
            vector = self._embed_model.get_agg_embedding_from_queries(query_bundle.embedding_strs)
        found = found_documents(self._index, vector, self._k, self._nodes)
        return [NodeWithScore(node=node, score=score) for node, score in found]
