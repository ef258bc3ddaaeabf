"""The one training step of reranker and generator.

A step takes one batch per stream (lists, answers, ...), each with objectives of its own, and makes
one update of the shared weights. ``jax.jit`` with NamedSharding, donated state, explicit layouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dynarag_jax.errors import InputError
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig, Params
from dynarag_jax.models.layout import param_shardings, trained_table
from dynarag_jax.models.lora import LoraConfig, attach, init_adapters, with_own_dropout
from dynarag_jax.objectives.diagnostics import decisions
from dynarag_jax.objectives.terms import LossInputs, Objectives
from dynarag_jax.policy.batches import Batch
from dynarag_jax.policy.grammar import Grammar
from dynarag_jax.policy.logprobs import said_again
from dynarag_jax.policy.scoring import branch_mask, score
from dynarag_jax.sharding import named, require_host_memory
from dynarag_jax.training.update import (
    State,
    Step,
    StreamLoss,
    make_update,
    placed_state,
    weighted_terms,
)


def loss_inputs(
    cfg: DecoderConfig, params: Params, batch: Batch, grammar: Grammar, objectives: Objectives
) -> LossInputs:
    """Run the model over a batch and gather what the active objectives read."""
    scores = score(
        cfg,
        params,
        batch,
        grammar,
        prompt=bool(objectives.reads("prompt")),
        ids=bool(objectives.reads("ids")),
    )
    inputs = _masks(batch, objectives)._replace(
        unconstrained_logps=scores.unconstrained,
        constrained_logps=scores.constrained,
        prompt_logps=scores.prompt,
        id_scores=scores.ids,
    )
    if batch.step_ends is None:
        return inputs
    logps = jax.lax.stop_gradient(scores.constrained)
    return inputs._replace(decisions=decisions(logps, batch.deciding, batch.step_ends))


def _masks(batch: Batch, objectives: Objectives) -> LossInputs:
    """The part of the scores that no model is needed for; the others zero."""
    p = batch.trunk.shape[-1]
    zeros = jnp.zeros(batch.branches.shape, jnp.float32)
    learned = branch_mask(batch)
    if batch.given is not None:
        learned &= jnp.arange(batch.branches.shape[-1]) >= batch.given[..., None]
    return LossInputs(
        unconstrained_logps=zeros,
        constrained_logps=zeros,
        token_mask=learned,
        supervised=batch.supervised,
        preferred=batch.preferred,
        reference=batch.reference,
        behavior=batch.behavior,
        rewards=batch.rewards,
        counts=batch.counts,
        prompt_logps=jnp.zeros((batch.trunk.shape[0], p - 1), jnp.float32),
        prompt_mask=jnp.arange(1, p) < batch.trunk_lengths[:, None],
        id_scores=jnp.zeros(batch.relevance.shape, jnp.float32),
        relevance=batch.relevance,
        shown=jnp.arange(batch.relevance.shape[-1]) < batch.shown[:, None],
        step_rewards=batch.step_rewards,
        step_ends=batch.step_ends,
        decisions=None if batch.step_ends is None else zeros,
        decided=_decided(batch),
        prompt_again=said_again(batch.trunk) if objectives.reads("again") else None,
    )


def _decided(batch: Batch) -> jax.Array | None:
    """Where a step of a list ends that had to decide whether to go on."""
    if batch.step_ends is None:
        return None
    # One for each deciding token, as log-probabilities are summed.
    return decisions(-batch.deciding.astype(jnp.float32), batch.deciding, batch.step_ends) < 0


def loss_and_figures(
    cfg: DecoderConfig,
    params: Params,
    batches: Mapping[str, Batch],
    whole: Mapping[str, Batch],
    grammar: Grammar,
    parts: Mapping[str, StreamLoss],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted loss of (micro)batches, each term over the count of the ``whole`` batch.

    Dividing by the whole batch's counts makes the sum over microbatches equal to the loss of the
    whole, however unequal their token counts are.
    """
    scores = {
        name: loss_inputs(
            cfg, with_own_dropout(params, number), batches[name], grammar, part.objectives
        )
        for number, (name, part) in enumerate(parts.items())
    }
    masks = {name: _masks(whole[name], part.objectives) for name, part in parts.items()}
    return weighted_terms(parts, scores, masks)


@dataclass(frozen=True)
class Adapting:
    """Train adapters beside frozen parameters: the state then holds the adapters alone."""

    lora: LoraConfig
    base: Params
    """the frozen parameters, on the mesh"""


def state_shapes(
    cfg: DecoderConfig, optimizer: optax.GradientTransformation, lora: LoraConfig | None = None
) -> State:
    """The state as ``jax.ShapeDtypeStruct``: what a checkpoint is read into; nothing is made."""
    dtype = jnp.dtype(cfg.param_dtype if lora is None else jnp.float32)
    params = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, dtype),
        trained_table(cfg, lora),
        is_leaf=decoder.is_parameter,
    )
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return State(step, params, jax.eval_shape(optimizer.init, params))


def state_shardings(
    cfg: DecoderConfig,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    lora: LoraConfig | None = None,
    offload: bool = False,
) -> State:
    """NamedSharding of the whole state: moments lie where their parameters lie.

    With ``offload`` they lie so in host memory.

    Raises:
      InputError: the mesh does not divide an array, or its devices cannot address host memory.
    """
    params, shapes = param_shardings(cfg, mesh, lora), state_shapes(cfg, optimizer, lora)
    return placed_state(mesh, params, shapes, offload)


def init_state(
    cfg: DecoderConfig,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    params: Params | None = None,
    seed: int = 0,
    lora: LoraConfig | None = None,
    offload: bool = False,
    donate: bool = False,
) -> State:
    """A fresh state on the mesh, from ``params`` or at random; with ``lora``, of adapters alone.

    Args:
      donate: the state takes the arrays of ``params`` themselves, which are gone for others; else
        they are copied.
    """
    layout = state_shardings(cfg, mesh, optimizer, lora, offload)
    fresh = (
        (lambda key: decoder.init_params(cfg, key))
        if lora is None
        else (lambda key: init_adapters(cfg, lora, key))
    )

    def make(params: Params) -> State:
        return State(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    if params is None:
        start = jax.jit(lambda key: make(fresh(key)), out_shardings=layout)
        return start(jax.random.key(seed))
    params = jax.device_put(params, layout.params)
    return jax.jit(make, out_shardings=layout, donate_argnums=(0,) if donate else ())(params)


def _require_distinct(grammar: Grammar, name: str) -> None:
    tokens = np.asarray(grammar.first_token).tolist()
    for i, token in enumerate(tokens):
        if token in tokens[:i]:
            raise InputError(
                f"{name}: listwise supervision scores ids by their first token, but this tokenizer "
                f"begins [{tokens.index(token) + 1}] and [{i + 1}] with the same one; show fewer "
                f"passages, take another tokenizer, or set the weights of 'list_mle' and its "
                f"like to 0"
            )


def make_step(
    cfg: DecoderConfig,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    grammar: Grammar,
    parts: Mapping[str, StreamLoss],
    accumulate: int = 1,
    adapting: Adapting | None = None,
    seed: int = 0,
    offload: bool = False,
    skip_nonfinite: bool = False,
) -> Step:
    """The jitted update ``step(state, batches) -> (state, figures)``; the state is donated.

    Args:
      parts: per stream, its objectives and weight; ``batches`` has the same keys.
      accumulate: microbatches an update is made of.
      adapting: train adapters, which the state then holds, beside these frozen parameters.
      seed: of the adapters' dropout; the key of a step follows from it and the step's number.
      offload: the state's moments lie in host memory, as ``init_state`` puts them there.
      skip_nonfinite: where a figure is not finite, leave parameters and moments as they are; the
        step number advances all the same.

    Raises:
      InputError: the mesh does not divide the model, its devices cannot address host memory where
        the configuration offloads, or listwise supervision is asked for with a
        tokenizer in which ids begin with the same token.
    """
    parts = {name: part for name, part in parts.items() if part.objectives.active()}
    for name, part in parts.items():
        if part.objectives.reads("ids"):
            _require_distinct(grammar, name)
    lora, base = (adapting.lora, adapting.base) if adapting else (None, {})
    if cfg.remat in ("offload", "dots_offload"):
        require_host_memory(mesh, f"model.remat {cfg.remat}")
    layout = state_shardings(cfg, mesh, optimizer, lora, offload)
    on_device = state_shardings(cfg, mesh, optimizer, lora).optimizer
    everywhere = NamedSharding(mesh, PartitionSpec())

    def loss_of(trained: Params, key: Any, micro: Any, whole: Any, rest: Any) -> Any:
        frozen, grammar = rest
        params = trained if lora is None else attach(cfg, lora, frozen, trained, key)
        return loss_and_figures(cfg, params, micro, whole, grammar, parts)

    rows = named(mesh, ("batch",))
    base_layout = param_shardings(cfg, mesh) if base else None
    update = make_update(
        loss_of,
        optimizer,
        layout,
        on_device if offload else None,
        accumulate,
        seed,
        skip_nonfinite,
        count_lost=cfg.param_dtype == "bfloat16" and lora is None,
    )
    jitted = jax.jit(
        update,
        in_shardings=(layout, rows, (base_layout, everywhere)),
        out_shardings=(layout, everywhere),
        donate_argnums=0,
    )
    return Step(jitted, mesh, tuple(parts), (base, grammar))
