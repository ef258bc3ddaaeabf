"""Haystack: a ranker component that keeps what should be read.

from dynarag_jax.integrations.haystack import DynamicRanker

pipeline.add_component("ranker", DynamicRanker("http://localhost:8000"))
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from dynarag_jax.errors import InputError, MissingExtra
from dynarag_jax.integrations.source import RanksDocuments, document, open_reranker

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ImportError:
    raise MissingExtra("haystack-ai", "haystack", "the Haystack ranker") from None


@component
class DynamicRanker:
    """Keeps the documents that the policy chooses, in its order, with its scores.

    Args:
      reranker: a model directory or a server's address; or a ``Reranker``, which a pipeline that is
        saved cannot hold.
      top_k: at most so many; None leaves the number to the policy.
      title: the metadata that holds a document's title, where it has one.
    """

    def __init__(self, reranker: Any, top_k: int | None = None, title: str = "title"):
        self.reranker, self.top_k, self.title = reranker, top_k, title
        self._ranker: RanksDocuments | None = None

    def warm_up(self) -> None:
        """Load the model, or take the server's address."""
        if self._ranker is None:
            self._ranker = open_reranker(self.reranker)

    def to_dict(self) -> dict[str, Any]:
        """The component as a saved pipeline holds it.

        Raises:
          InputError: its reranker is an object.
        """
        if not isinstance(self.reranker, str):
            raise InputError(
                "DynamicRanker: a pipeline that is saved names its reranker by a model directory "
                "or a server's address, and this one was given an object"
            )
        return default_to_dict(self, reranker=self.reranker, top_k=self.top_k, title=self.title)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DynamicRanker:
        """The component out of a saved pipeline."""
        return default_from_dict(cls, data)

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """The documents to read for a query, best first; none may be needed.

        Raises:
          InputError: the query is blank, or the server refuses.
        """
        if not documents:
            return {"documents": []}
        self.warm_up()
        assert self._ranker is not None
        texts = [document(d.content, d.meta.get(self.title)) for d in documents]
        most = self.top_k if top_k is None else top_k
        (rows,) = self._ranker.rank_all([query], [texts], most)
        return {"documents": [replace(documents[r["corpus_id"]], score=r["score"]) for r in rows]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """``run`` in a thread."""
        return await asyncio.to_thread(self.run, query, documents, top_k)
