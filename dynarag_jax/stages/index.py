"""Build the index of an embedded corpus.

    dynarag index configs/wikipedia.py
    dynarag index configs/wikipedia.py --index.target_recall 0.99

Writes index/ into RUN/index, and says its measured recall.
"""

from __future__ import annotations

from dataclasses import dataclass

from dynarag_jax.data.reading import stream_questions
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.encoders import load_encoder
from dynarag_jax.launch.context import Context
from dynarag_jax.retrieval.compiled import EmbeddingNeeds
from dynarag_jax.retrieval.embed import MINILM, embed
from dynarag_jax.retrieval.index import IndexConfig
from dynarag_jax.retrieval.materials import INDEX, VECTORS, embedded, index_of, require_encoder


@dataclass(frozen=True)
class BuildIndex:
    """Build the index of an embedded corpus, and measure its recall."""

    embedded: str = "{run}/embed"
    """directory of an embed stage"""
    index: IndexConfig = IndexConfig()
    shards: int = 0
    """cut the corpus into so many indexes, for one that no host holds; several processes build and
    search them, each its share; 0 builds one index"""
    queries: str = ""
    """question file on which recall is measured; empty takes passages of the corpus"""
    encoder: str = MINILM
    """the encoder that embedded the corpus; needed for ``queries``"""

    def __post_init__(self) -> None:
        self.index.check()
        if self.shards < 0:
            raise InputError(f"shards = {self.shards} must not be negative")


def to_plan(stage: BuildIndex) -> list[EmbeddingNeeds]:
    """What the stage embeds its measured queries with, where it has some."""
    return [EmbeddingNeeds(stage.encoder)] if stage.queries else []


def run(context: Context, stage: BuildIndex) -> None:
    """Write index/."""
    manifest = context.path(stage.embedded) / VECTORS / "manifest.json"
    asked = {"queries": context.path(stage.queries)} if stage.queries else {}
    context.manifest(inputs={"vectors": manifest} | asked)
    _, store, vectors = embedded(context.path(stage.embedded))
    queries = None
    if stage.queries:
        encoder = load_encoder(stage.encoder)
        require_encoder(stage.embedded, vectors, stage.encoder, encoder)
        texts = [question.text for question in stream_questions(asked["queries"])]
        queries = embed(encoder, texts, prompt=encoder.query_prompt)
    directory = context.begin() / INDEX
    index_of(context, store, vectors, directory, stage.index, queries, stage.shards)
