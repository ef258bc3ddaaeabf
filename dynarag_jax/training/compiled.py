"""A training stage's real step, compiled for machines that are not here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dynarag_jax.models.config import DecoderConfig
from dynarag_jax.models.layout import param_shapes
from dynarag_jax.policy.batches import Batch, BatchShape, collate
from dynarag_jax.policy.grammar import Grammar, build_grammar
from dynarag_jax.policy.spelling import plain_spelling
from dynarag_jax.sharding import laid_out, named
from dynarag_jax.training.config import Train
from dynarag_jax.training.flops import PaddedShape
from dynarag_jax.training.optimizer import make_optimizer
from dynarag_jax.training.step import Adapting, make_step, state_shapes, state_shardings
from dynarag_jax.training.update import StreamLoss


def lower_step(
    stage: Train,
    cfg: DecoderConfig,
    streams: Mapping[str, PaddedShape],
    mesh: Mesh,
    grammar: Grammar | None = None,
) -> jax.stages.Lowered:
    """The stage's update as a program for the devices of ``mesh``; from shapes, nothing is made.

    Args:
      streams: padded shapes by stream, those that take part.
      grammar: of the tokenizer's lists; None takes one of as many ids, each a token of its own.

    Raises:
      InputError: the mesh does not divide the model.
    """
    lora = stage.lora if stage.lora.rank else None
    # The steps of a run shape its schedule alone.
    optimizer = make_optimizer(stage.optimizer, 1000)
    grammar = grammar or build_grammar(plain_spelling(stage.prompts.ids), stage.prompts.max_list)
    base: Any = {}
    if lora is not None:
        base = param_shapes(cfg, mesh)
    losses = {
        name: StreamLoss(getattr(stage, name).objectives, getattr(stage, name).weight)
        for name in streams
    }
    step = make_step(
        cfg,
        mesh,
        optimizer,
        grammar,
        losses,
        stage.accumulate,
        Adapting(lora, base) if lora else None,
        offload=stage.optimizer.offload,
        skip_nonfinite=stage.nonfinite == "skip",
    )
    step = dataclasses.replace(step, rest=(base, jax.tree.map(_shape, grammar)))
    state = laid_out(
        state_shapes(cfg, optimizer, lora),
        state_shardings(cfg, mesh, optimizer, lora, stage.optimizer.offload),
    )
    rows = named(mesh, ("batch",))
    batches = {
        name: _batch(
            BatchShape(
                s.prompt,
                s.branches,
                s.branch,
                stage.prompts.ids,
                name == "reranker" and stage.prompts.thought_tokens > 0,
            ),
            s.batch,
            rows,
        )
        for name, s in streams.items()
    }
    return step.lower(state, batches)


def _shape(x: Any) -> Any:
    return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) if hasattr(x, "dtype") else x


def _batch(shape: BatchShape, rows: int, place: Any) -> Batch:
    """The shapes of a batch, with that many rows."""
    none: Sequence[Any] = ()
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=place),
        collate(none, shape),
    )
