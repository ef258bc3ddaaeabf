"""LangChain: a document compressor that keeps what should be read.

from langchain_classic.retrievers import ContextualCompressionRetriever
from dynarag_jax.integrations.langchain import DynamicCompressor

compressor = DynamicCompressor(reranker="http://localhost:8000")
ContextualCompressionRetriever(base_compressor=compressor, base_retriever=retriever)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dynarag_jax.errors import MissingExtra
from dynarag_jax.integrations.source import RanksDocuments, document, open_reranker

try:
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from pydantic import PrivateAttr
except ImportError:
    raise MissingExtra("langchain-core", "langchain", "the LangChain compressor") from None


class DynamicCompressor(BaseDocumentCompressor):
    """Keeps the documents that the policy chooses, in its order.

    ``relevance_score`` is added to their metadata. ``acompress_documents`` runs in a thread.
    """

    reranker: Any
    """a model directory, a server's address, or a ``Reranker``"""
    top_n: int | None = None
    """at most so many; None leaves the number to the policy"""
    title: str = "title"
    """the metadata that holds a document's title, where it has one"""
    _ranker: RanksDocuments = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        """Load the model, or take the server's address."""
        self._ranker = open_reranker(self.reranker)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """The documents to read for a query, best first; none may be needed.

        Raises:
          InputError: the query is blank, or the server refuses.
        """
        if not documents:
            return []
        texts = [document(d.page_content, d.metadata.get(self.title)) for d in documents]
        (rows,) = self._ranker.rank_all([query], [texts], self.top_n)
        kept = []
        for row in rows:
            one = documents[row["corpus_id"]]
            scored = one.metadata | {"relevance_score": row["score"]}
            kept.append(one.model_copy(update={"metadata": scored}))
        return kept
