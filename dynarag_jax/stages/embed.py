"""Read a corpus and embed its passages.

    dynarag embed configs/wikipedia.py
    dynarag embed configs/wikipedia.py --corpus.files psgs_w100.tsv.gz --stored bfloat16

Writes passages/ and vectors/ into RUN/embed; killed, it goes on with the next shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.encoders import load_encoder
from dynarag_jax.launch.context import Context
from dynarag_jax.retrieval.compiled import EmbeddingNeeds
from dynarag_jax.retrieval.corpora import CorpusConfig, located
from dynarag_jax.retrieval.embed import MINILM
from dynarag_jax.retrieval.materials import (
    PASSAGES,
    VECTORS,
    corpus_inputs,
    passage_vectors,
    store_of,
)
from dynarag_jax.retrieval.shards import Stored


@dataclass(frozen=True)
class Embed:
    """Read a corpus and embed its passages: makes ``passages/`` and ``vectors/``.

    Several processes share the shards; what is killed goes on with the next shard.
    """

    corpus: CorpusConfig = CorpusConfig()
    encoder: str = MINILM
    """embedding model: a directory, a hub id, or package:NAME of an installed package"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type of the encoder's activations"""
    stored: Stored = "float32"
    """type in which vectors are stored; bfloat16 takes half the disk"""
    shard: int = 0
    """passages a shard, the unit of work; 0 fits the device"""
    batch_tokens: int = 0
    """word pieces of a full batch a device; 0 fits the device"""

    def __post_init__(self) -> None:
        for name in ("shard", "batch_tokens"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} = {getattr(self, name)} must not be negative")


def to_plan(stage: Embed) -> list[EmbeddingNeeds]:
    """What the stage embeds with."""
    return [EmbeddingNeeds(stage.encoder, stage.dtype, stage.batch_tokens)]


def run(context: Context, stage: Embed) -> None:
    """Write passages/ and vectors/."""
    corpus = located(stage.corpus, context.path)
    context.manifest(inputs=corpus_inputs(corpus))
    encoder = load_encoder(stage.encoder, dtype=stage.dtype)
    directory = context.begin()
    store = store_of(context, corpus, directory / PASSAGES)
    vectors = passage_vectors(
        context,
        encoder,
        store,
        directory / VECTORS,
        "passages",
        stored=stage.stored,
        shard=stage.shard,
        batch_tokens=stage.batch_tokens,
    )
    context.log(
        f"{len(vectors)} vectors of {vectors.shape[1]} numbers in {len(vectors.parts)} shards"
    )
