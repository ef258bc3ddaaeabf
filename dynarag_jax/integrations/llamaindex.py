"""LlamaIndex: a node postprocessor that keeps what should be read.

from dynarag_jax.integrations.llamaindex import DynamicPostprocessor

postprocessor = DynamicPostprocessor(reranker="http://localhost:8000")
index.as_query_engine(similarity_top_k=20, node_postprocessors=[postprocessor])
"""

from __future__ import annotations

from typing import Any

from dynarag_jax.errors import InputError, MissingExtra
from dynarag_jax.integrations.source import RanksDocuments, document, open_reranker

try:
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
except ImportError:
    raise MissingExtra("llama-index-core", "llamaindex", "the LlamaIndex postprocessor") from None


class DynamicPostprocessor(BaseNodePostprocessor):
    """Keeps the nodes that the policy chooses, in its order, with its scores.

    ``apostprocess_nodes`` runs in a thread.
    """

    reranker: Any
    """a model directory, a server's address, or a ``Reranker``"""
    top_n: int | None = None
    """at most so many; None leaves the number to the policy"""
    title: str = "title"
    """the metadata that holds a node's title, where it has one"""
    _ranker: RanksDocuments = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Load the model, or take the server's address."""
        super().model_post_init(context)
        self._ranker = open_reranker(self.reranker)

    @classmethod
    def class_name(cls) -> str:
        """Its name where LlamaIndex writes it down."""
        return "DynamicPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise InputError("DynamicPostprocessor: there is no query; give query_bundle")
        if not nodes:
            return []
        texts = [
            document(
                node.node.get_content(metadata_mode=MetadataMode.NONE),
                node.node.metadata.get(self.title),
            )
            for node in nodes
        ]
        (rows,) = self._ranker.rank_all([query_bundle.query_str], [texts], self.top_n)
        return [NodeWithScore(node=nodes[r["corpus_id"]].node, score=r["score"]) for r in rows]
