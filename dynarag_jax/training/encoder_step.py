"""The training step of an encoder policy: its lists under every objective, one update.

The state holds the list head and what of the encoder is trained; the rest is given beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dynarag_jax.models.config import Params, is_parameter
from dynarag_jax.models.encoder_layout import (
    TrainedEncoder,
    begin_encoder,
    trained_encoder_table,
    whole_encoder,
)
from dynarag_jax.models.list_head import list_head_table
from dynarag_jax.models.pairs import pairs_with_chosen
from dynarag_jax.objectives.terms import LossInputs, Objectives
from dynarag_jax.policy.encoder_model import policy_shardings
from dynarag_jax.policy.encoder_policy import EncoderPolicyConfig, chance_of, list_logps
from dynarag_jax.policy.list_batches import ListBatch
from dynarag_jax.sharding import named
from dynarag_jax.training.update import (
    State,
    Step,
    StreamLoss,
    make_update,
    placed_state,
    weighted_terms,
)


def encoder_inputs(
    cfg: EncoderPolicyConfig, params: Params, batch: ListBatch, objectives: Objectives
) -> LossInputs:
    """Run the policy over a batch and gather what the active objectives read.

    A list's probability is the same whoever writes it: constrained and unconstrained are one.
    """
    if batch.following is not None:
        chosen, following = batch.branches[..., :-1], batch.following
        chance = chance_of(cfg, params, batch.candidates, chosen, following[:, None])
        return list_masks(batch)._replace(set_logps=chance)
    sets = bool(objectives.reads("sets"))
    logps = list_logps(cfg, params, batch.candidates, batch.branches, batch.branch_lengths, sets)
    return list_masks(batch)._replace(
        unconstrained_logps=logps.steps,
        constrained_logps=logps.steps,
        id_scores=logps.first,
        decisions=None if batch.step_ends is None else logps.decisions,
        set_logps=logps.sets,
    )


def list_masks(batch: ListBatch) -> LossInputs:
    """The part of the inputs that no model is needed for; the others zero."""
    zeros = jnp.zeros(batch.branches.shape, jnp.float32)
    return LossInputs(
        unconstrained_logps=zeros,
        constrained_logps=zeros,
        token_mask=jnp.arange(batch.branches.shape[-1]) < batch.branch_lengths[..., None],
        supervised=batch.supervised,
        preferred=batch.preferred,
        reference=batch.reference,
        behavior=batch.behavior,
        rewards=batch.rewards,
        counts=batch.counts,
        prompt_logps=None,
        prompt_mask=jnp.zeros((batch.branches.shape[0], 0), bool),
        id_scores=jnp.zeros(batch.relevance.shape, jnp.float32),
        relevance=batch.relevance,
        shown=batch.candidates.where,
        step_rewards=batch.step_rewards,
        step_ends=batch.step_ends,
        decisions=None if batch.step_ends is None else zeros,
        decided=batch.step_ends,
        set_logps=jnp.zeros(batch.branch_lengths.shape, jnp.float32),
    )


def list_figures(
    cfg: EncoderPolicyConfig, batches: Mapping[str, ListBatch]
) -> dict[str, jax.Array]:
    """What a step's batches hold: as ``meter.batch_figures``; pairs that lost word pieces."""
    figures = {}
    for name, batch in batches.items():
        where, pairs = batch.candidates.where, batch.candidates.pairs
        if pairs is None:
            real, positions = where.sum(), where.size
        else:
            # States are read with what they hold.
            if batch.following is not None and batch.branches.shape[-1] > 1:
                chosen = batch.branches[..., :-1]
                pairs = pairs_with_chosen(pairs, chosen, cfg.reencode, cfg.encoder.positions)
            real, positions = pairs.lengths.sum(), pairs.tokens.size
            if pairs.room is not None:
                groups = len(pairs.lengths) // pairs.room.rows
                positions = min(positions, groups * pairs.room.positions)
        figures |= {
            f"{name}/tokens": real.astype(jnp.float32),
            f"{name}/positions": jnp.float32(positions),
            f"{name}/dropped_ids": batch.dropped_ids.sum().astype(jnp.float32),
            f"{name}/dropped_pair_ends": batch.cut.sum().astype(jnp.float32),
        }
    return figures


def trained_policy_table(cfg: EncoderPolicyConfig, trained: TrainedEncoder) -> dict[str, Any]:
    """The table of what is trained: the head, and a part of the encoder."""
    encoder = trained_encoder_table(cfg.encoder, trained)
    return {"head": list_head_table(cfg.head)} | ({"encoder": encoder} if encoder else {})


def whole_policy(
    cfg: EncoderPolicyConfig,
    trained: TrainedEncoder,
    part: Params,
    base: Params,
    joined: bool = False,
) -> Params:
    """The whole policy from what is trained and the encoder that training began with."""
    encoder = whole_encoder(cfg.encoder, trained, part.get("encoder", {}), base, joined)
    return {"encoder": encoder, "head": part["head"]}


def slower_encoder(rule: optax.GradientTransformation, rate: float) -> optax.GradientTransformation:
    """The rule with the encoder's updates scaled by ``rate``: its learning rate's share."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        changes, state = rule.update(updates, state, params)
        named: dict[str, Any] = dict(cast(Mapping[str, Any], changes))
        if "encoder" in named:
            named["encoder"] = jax.tree.map(lambda x: x * rate, named["encoder"])
        return named, state

    return optax.GradientTransformation(rule.init, update)


def encoder_state_shapes(
    cfg: EncoderPolicyConfig, trained: TrainedEncoder, optimizer: optax.GradientTransformation
) -> State:
    """The state as ``jax.ShapeDtypeStruct``; nothing is made."""
    params = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32),
        trained_policy_table(cfg, trained),
        is_leaf=is_parameter,
    )
    step = jax.ShapeDtypeStruct((), jnp.int32)
    return State(step, params, jax.eval_shape(optimizer.init, params))


def encoder_state_shardings(
    cfg: EncoderPolicyConfig,
    trained: TrainedEncoder,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
) -> State:
    """NamedSharding of the whole state, by the one table of axes.

    Raises:
      InputError: the mesh does not divide an array.
    """
    params = policy_shardings(cfg, mesh, trained_policy_table(cfg, trained))
    return placed_state(mesh, params, encoder_state_shapes(cfg, trained, optimizer))


def init_encoder_state(
    cfg: EncoderPolicyConfig,
    trained: TrainedEncoder,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    params: Params,
    seed: int,
) -> State:
    """A fresh state on the mesh: the head and the trained part of ``params``."""
    layout = encoder_state_shardings(cfg, trained, mesh, optimizer)

    def make(params: Params) -> State:
        encoder = begin_encoder(cfg.encoder, trained, params["encoder"], jax.random.key(seed))
        part = {"head": params["head"]} | ({"encoder": encoder} if encoder else {})
        return State(jnp.zeros((), jnp.int32), part, optimizer.init(part))

    return jax.jit(make, out_shardings=layout)(params)


def make_encoder_step(
    cfg: EncoderPolicyConfig,
    trained: TrainedEncoder,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    base: Params,
    parts: Mapping[str, StreamLoss],
    accumulate: int = 1,
    seed: int = 0,
    skip_nonfinite: bool = False,
) -> Step:
    """The jitted update ``step(state, batches) -> (state, figures)``; the state is donated.

    Args:
      base: the encoder that training began with, on the mesh; of ``full`` it is not kept.
      parts: per stream of lists, its objectives and weight.
    """
    parts = {name: part for name, part in parts.items() if part.objectives.active()}
    layout = encoder_state_shardings(cfg, trained, mesh, optimizer)
    everywhere = NamedSharding(mesh, PartitionSpec())
    rest = {} if trained.part == "full" else base

    def loss_of(part: Params, key: Any, micro: Any, whole: Any, rest: Any) -> Any:
        del key  # nothing is drawn
        params = whole_policy(cfg, trained, part, rest)
        inputs = {
            name: encoder_inputs(cfg, params, micro[name], part.objectives)
            for name, part in parts.items()
        }
        return weighted_terms(parts, inputs, {name: list_masks(whole[name]) for name in parts})

    update = make_update(
        loss_of,
        optimizer,
        layout,
        accumulate=accumulate,
        seed=seed,
        skip_nonfinite=skip_nonfinite,
        describe=partial(list_figures, cfg),
    )
    rest_layout = policy_shardings(cfg, mesh)["encoder"] if rest else None
    jitted = jax.jit(
        update,
        in_shardings=(layout, named(mesh, ("batch",)), rest_layout),
        out_shardings=(layout, everywhere),
        donate_argnums=0,
    )
    return Step(jitted, mesh, tuple(parts), rest)
