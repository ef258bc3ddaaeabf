"""The sampler's real programs, compiled for machines that are not here.

Prompts that enter (prefill) and tokens that are written (decode), of a pool as ``engine`` opens it
where so much memory is free.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dynarag_jax.models import decoding
from dynarag_jax.models.config import DecoderConfig
from dynarag_jax.models.kernels import Platform
from dynarag_jax.models.layout import param_shapes
from dynarag_jax.policy.grammar import Grammar
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.sampling.choice import Sampling
from dynarag_jax.sampling.pool import Pool
from dynarag_jax.sampling.pool_sizes import PoolShape, largest_pool, pool_shape, trunk_bytes
from dynarag_jax.sampling.prefilling import CHUNK, computes_whole, prompts_at_a_time
from dynarag_jax.sampling.requests import EngineConfig
from dynarag_jax.sampling.sampler import Mode
from dynarag_jax.sharding import axis_size, batch_shards


@dataclass(frozen=True)
class SamplingNeeds:
    """What a stage samples: lists, answers, or both with one model.

    Attributes:
      model: directory, hub id, or where an earlier stage of the run will write it.
      lists: a question; 0 writes none.
      answers: whether it answers, too.
      batch: prompts in flight at most.
      sampling: of the lists.
    """

    model: str
    lists: int
    answers: bool
    prompts: PromptConfig
    sampling: Sampling
    batch: int
    engine: EngineConfig
    dtype: Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Written:
    """Branches that are written behind prompts.

    Attributes:
      name: what they are.
      prompt, branch: tokens at most; branches: of a prompt.
      grammar: of lists; None for answers, which follow none.
    """

    name: str
    prompt: int
    branches: int
    branch: int
    grammar: Grammar | None
    sampling: Sampling


@dataclass(frozen=True)
class LoweredPool:
    """A pool's two programs.

    Attributes:
      shape: of the pool.
      prefill: prompts enter; its loops run ``prefill_trips`` times.
      decode: a turn of tokens; its loop runs ``decode_trips`` times.
      at_once: prompts that all devices compute at a time, where they compute them whole.
    """

    shape: PoolShape
    prefill: jax.stages.Lowered
    prefill_trips: tuple[float, ...]
    decode: jax.stages.Lowered
    decode_trips: tuple[float, ...]
    at_once: int


def open_shape(
    cfg: DecoderConfig, mesh: Mesh, needs: SamplingNeeds, written: Written, free: int | None
) -> PoolShape | None:
    """The pool that an engine opens for the longest prompts; None where memory holds none.

    Args:
      free: bytes of a device beside the weights; of them a part is left to the runtime, and half
        of the rest is for lists and half for answers, as the sampler has it. None is not known,
        and takes all prompts that are asked for.
    """
    shards = batch_shards(mesh)
    given = int(needs.engine.cache_gib * 2**30)
    budget = (given or (1 << 62 if free is None else int(0.9 * free) * mesh.size)) // 2
    most = -(-needs.batch // shards) * shards

    def shape(slots: int) -> PoolShape:
        one, refill = written, needs.engine.refill
        return pool_shape(slots, one.prompt, one.branches, one.branch, refill, shards)

    slots = largest_pool(cfg, most, budget, shape, shards)
    return shape(slots) if slots else None


def cache_bytes(cfg: DecoderConfig, mesh: Mesh, shape: PoolShape) -> int:
    """What a device holds of a pool's caches."""
    heads, rows = mesh.shape["tensor"], batch_shards(mesh)
    tokens = shape.slots // rows * (shape.prompt + shape.branches * shape.branch)
    return trunk_bytes(cfg, tokens) // heads


class WorkingBytes(NamedTuple):
    """What a device holds of a pool's programs beside weights and caches, about."""

    prefill: int
    decode: int


def working_bytes(
    cfg: DecoderConfig, mesh: Mesh, shape: PoolShape, chunk: int, platform: Platform
) -> WorkingBytes:
    """What a pool's programs hold beside weights and caches, about.

    A prefill: keys and values of the prompts at work before they lie in the caches, a layer's
    weights where they come together, and two arrays of its MLP; or at the end the vocabulary's
    weights. Decoding: a layer's weights where they come together, or, where the vocabulary's are
    cut by their width, each part's share of the scores of all rows that have these weights.

    Args:
      chunk: of ``EngineConfig``.
      platform: that the programs are for.
    """
    own, a = shape.entering // batch_shards(mesh), jnp.dtype(cfg.dtype).itemsize
    whole = computes_whole(cfg, chunk, platform)
    prompts = prompts_at_a_time(mesh, shape.entering, shape.prompt) if whole else own
    tokens = prompts * (shape.prompt if whole else min(chunk or CHUNK, shape.prompt))
    gathered = vocabulary = scores = 0
    if (cut := axis_size("embed", mesh)) > 1:
        layers = jax.tree.leaves(param_shapes(cfg, mesh)["layers"])
        gathered = a * sum(math.prod(x.shape[1:]) for x in layers)
        vocabulary = a * cfg.vocab * cfg.width
        rows = shape.slots * cut // batch_shards(mesh) * shape.branches
        scores = 4 * rows * cfg.vocab
    made = trunk_bytes(cfg, prompts * shape.prompt)
    prefill = max(made + gathered + 2 * a * tokens * cfg.mlp, made // 2 + vocabulary)
    tensor = axis_size("mlp", mesh)
    return WorkingBytes(prefill // tensor, max(gathered, scores) // tensor)


def lower_pool(
    cfg: DecoderConfig,
    mesh: Mesh,
    shape: PoolShape,
    engine: EngineConfig,
    written: Written,
) -> LoweredPool:
    """A pool's programs for the devices of ``mesh``; from shapes, nothing is made.

    Raises:
      InputError: the mesh does not divide the model.
    """
    params, grammar, sampling = param_shapes(cfg, mesh), written.grammar, written.sampling
    pool = Pool(cfg, mesh, shape, grammar, engine.chunk)
    slots, entering = pool.shapes()
    arrays = unstacked_shapes(cfg, params)
    mode = Mode(grammar is not None, grammar is None, sampling.temperature > 0, sampling.filters)
    rules = jax.tree.map(_shape, grammar)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    with jax.set_mesh(mesh):
        prefill: Any = pool.prefill(mode, False)
        decode: Any = pool.decoding(mode)
        lowered = (
            prefill.lower(params, slots, entering, rules),
            decode.lower(params, slots, arrays, rules, number, number),
        )
    # Prompts of full length: chunk after chunk, each over the keys before it and its own.
    chunks = -(-shape.prompt // pool.chunk)
    turn = max(1, min(engine.turn, shape.branch - 1))  # a prompt's end writes the first token
    entering = () if pool.whole else (float(chunks), (chunks + 1) / 2)
    trips = entering, (float(turn),)
    at_once = pool.each * batch_shards(mesh)
    return LoweredPool(shape, lowered[0], trips[0], lowered[1], trips[1], at_once)


def resident_bytes(cfg: DecoderConfig, mesh: Mesh) -> tuple[int, int]:
    """What a device holds of a model that samples: its weights, and the layers once more."""
    params = param_shapes(cfg, mesh)
    return bytes_of(params), bytes_of(unstacked_shapes(cfg, params))


def unstacked_shapes(cfg: DecoderConfig, params: Any) -> decoding.LayerArrays:
    """The shapes of ``decoding.unstack``, each where the stacked one lies."""
    shapes = jax.eval_shape(lambda params: decoding.unstack(cfg, params), params)

    def place(x: Any, stacked: Any) -> Any:
        where = stacked.sharding
        own = NamedSharding(where.mesh, PartitionSpec(*where.spec[1:]))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=own)

    stacked = (params["layers"], params.get("adapters", {}))
    return tuple(jax.tree.map(place, layer, stacked) for layer in shapes)


def bytes_of(shapes: Any) -> int:
    """What one device holds of arrays that lie where their shapes say."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(shapes)
    )


def _shape(x: Any) -> Any:
    return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) if hasattr(x, "dtype") else x
