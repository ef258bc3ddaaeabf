"""Embedding's real program, compiled for machines that are not here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dynarag_jax.exchange.encoders import EncoderShape
from dynarag_jax.models.batching import default_batch_tokens, full_rows
from dynarag_jax.models.encoder import count_parameters, parameter_shapes
from dynarag_jax.retrieval.embed import embed_batch
from dynarag_jax.sharding import laid_out, named


@dataclass(frozen=True)
class EmbeddingNeeds:
    """What a stage embeds with.

    Attributes:
      encoder: as of ``exchange.encoders.load_encoder``.
      batch_tokens: word pieces of a full batch; 0 fits the device.
    """

    encoder: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_tokens: int = 0


@dataclass(frozen=True)
class EmbeddedBatch:
    """A full batch of the longest texts: its shape, and bytes of weights on each device."""

    rows: int
    length: int
    weights: int


def embedded_batch(
    shape: EncoderShape, mesh: Mesh, needs: EmbeddingNeeds, platform: str
) -> EmbeddedBatch:
    """A full batch as it is embedded on the devices of ``mesh``, each with all weights."""
    tokens = needs.batch_tokens or default_batch_tokens(platform)
    rows = full_rows(shape.max_length, tokens, mesh.size)
    return EmbeddedBatch(rows, shape.max_length, 4 * count_parameters(shape.config))


def lower_batch(
    shape: EncoderShape, mesh: Mesh, needs: EmbeddingNeeds, batch: EmbeddedBatch
) -> jax.stages.Lowered:
    """The program that embeds a batch on the devices of ``mesh``; from shapes."""
    cfg = replace(shape.config, dtype=needs.dtype)
    weights = jax.tree.map(
        lambda size: jax.ShapeDtypeStruct(size, jnp.float32),
        parameter_shapes(cfg),
        is_leaf=lambda x: isinstance(x, tuple),
    )
    tokens = jax.ShapeDtypeStruct((batch.rows, batch.length), jnp.int32)
    lengths = jax.ShapeDtypeStruct((batch.rows,), jnp.int32)
    places = named(mesh, ("batch", None)), named(mesh, ("batch",))
    params = laid_out(weights, named(mesh, ()))
    texts = laid_out((tokens, lengths), places)
    with jax.set_mesh(mesh):
        return embed_batch.lower(cfg, shape.pooling, shape.normalize, params, *texts)
