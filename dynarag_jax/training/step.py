"""The one training step of reranker and generator.

A step takes one batch per stream (lists, answers, ...), each with objectives of its own, and makes
one update of the shared weights. ``jax.jit`` with NamedSharding, donated state, explicit layouts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
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
from dynarag_jax.objectives.terms import LossInputs, Objectives
from dynarag_jax.policy.batches import Batch
from dynarag_jax.policy.grammar import Grammar
from dynarag_jax.policy.scoring import branch_mask, score
from dynarag_jax.sharding import named, on_host, require_host_memory
from dynarag_jax.training.meter import batch_figures, reference_kl


@partial(
    jax.tree_util.register_dataclass, data_fields=["step", "params", "optimizer"], meta_fields=[]
)
@dataclass(frozen=True)
class State:
    """Everything a training run is, but its configuration."""

    step: Any
    """scalar int32: updates made; also the position in the input and the source of randomness"""
    params: Params
    optimizer: Any


@dataclass(frozen=True)
class StreamLoss:
    """How one stream enters the loss."""

    objectives: Objectives
    weight: float = 1.0


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
    return _masks(batch)._replace(
        unconstrained_logps=scores.unconstrained,
        constrained_logps=scores.constrained,
        prompt_logps=scores.prompt,
        id_scores=scores.ids,
    )


def _masks(batch: Batch) -> LossInputs:
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
    )


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
    loss, figures = jnp.zeros((), jnp.float32), {}
    for number, (name, part) in enumerate(parts.items()):
        own = with_own_dropout(params, number)
        scores = loss_inputs(cfg, own, batches[name], grammar, part.objectives)
        for key, term in part.objectives.active().items():
            value = term(scores)
            count = jnp.maximum(term(_masks(whole[name])).count, 1)
            loss += part.weight * term.weight * value.total / count
            figures[f"{name}/{key}"] = value.total / count
            figures |= {f"{name}/{key}/{k}": v / count for k, v in value.figures.items()}
        if part.objectives.reads("reference"):
            count = jnp.maximum(reference_kl(_masks(whole[name]))[1], 1)
            figures[f"{name}/kl"] = reference_kl(scores)[0] / count
    return loss, figures


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
    params = param_shardings(cfg, mesh, lora)
    shapes = state_shapes(cfg, optimizer, lora)
    everywhere = NamedSharding(mesh, PartitionSpec())
    places = {
        tuple(path): (shape.shape, sharding)
        for (path, shape), sharding in zip(
            jax.tree_util.tree_flatten_with_path(shapes.params)[0],
            jax.tree.leaves(params),
            strict=True,
        )
    }

    def place(path: tuple[Any, ...], x: Any) -> NamedSharding:
        """A moment's path ends with its parameter's; counts and factored moments stay whole."""
        for start in range(len(path)):
            shape, sharding = places.get(path[start:], (None, None))
            if sharding is not None and shape == x.shape:
                return sharding
        return everywhere

    moments = jax.tree_util.tree_map_with_path(place, shapes.optimizer)
    if offload:
        require_host_memory(mesh, "optimizer.offload")
        moments = on_host(moments, shapes.optimizer)
    return State(everywhere, params, moments)


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


def _kept_where_finite(
    figures: dict[str, jax.Array], new: Any, old: Any
) -> tuple[Any, dict[str, jax.Array]]:
    """``new``, or ``old`` where any figure is not finite; the figure ``skipped`` is then 1.

    It is decided inside jit from figures that every device has, so that all processes do the same.
    """
    good = jnp.isfinite(jnp.stack([x.astype(jnp.float32) for x in figures.values()])).all()
    kept = jax.tree.map(partial(jnp.where, good), new, old)
    return kept, figures | {"skipped": 1.0 - good.astype(jnp.float32)}


def _lost_updates(old: Params, new: Params, changes: Any) -> jax.Array:
    """The share of changes that are not 0 and yet leave their parameter as it was, by rounding."""

    def count(keep: Any) -> jax.Array:
        each = jax.tree.map(lambda *x: keep(*x).sum(dtype=jnp.float32), old, new, changes)
        return jnp.stack(jax.tree.leaves(each)).sum()

    lost = count(lambda old, new, change: (change != 0) & (old == new))
    return lost / jnp.maximum(count(lambda old, new, change: change != 0), 1)


@dataclass(frozen=True)
class Step:
    """The jitted update with what it closes over; call it, or ``lower`` it to be looked at."""

    jitted: Any
    mesh: Mesh
    streams: tuple[str, ...]
    rest: tuple[Params, Grammar]

    def __call__(
        self, state: State, batches: Mapping[str, Batch]
    ) -> tuple[State, dict[str, jax.Array]]:
        """One update; ``state`` is given away."""
        with jax.set_mesh(self.mesh):
            return self.jitted(state, {name: batches[name] for name in self.streams}, self.rest)

    def lower(self, state: State, batches: Mapping[str, Batch]) -> jax.stages.Lowered:
        """The update as a program, from arrays or from their shapes; nothing is computed."""
        with jax.set_mesh(self.mesh):
            rows = {name: batches[name] for name in self.streams}
            return self.jitted.lower(state, rows, self.rest)


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

    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def update(state: State, batches: Any, rest: tuple[Params, Grammar]) -> tuple[State, Any]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        if accumulate == 1:
            (loss, figures), grads = gradient(state.params, key, batches, batches, rest)
        else:
            # Rows of one shard stay on it: microbatch i takes every ``accumulate``-th row.
            micro = jax.tree.map(
                lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batches
            )

            def add(total: Any, one: tuple[Any, Any]) -> tuple[Any, None]:
                more = gradient(state.params, *one, batches, rest)
                values, grads = jax.tree.map(jnp.add, total, more)
                return (values, jax.lax.with_sharding_constraint(grads, layout.params)), None

            each = (jax.random.split(key, accumulate), micro)

            # Many small gradients of bfloat16 weights would vanish in a bfloat16 sum.
            zero = jax.tree.map(
                lambda x: jnp.zeros(x.shape, jnp.float32),
                jax.eval_shape(
                    gradient, state.params, *jax.tree.map(lambda x: x[0], each), batches, rest
                ),
            )
            ((loss, figures), grads), _ = jax.lax.scan(add, zero, each)
        # Reduced onto the shards that the parameters lie on, not to copies everywhere.
        grads = jax.lax.with_sharding_constraint(grads, layout.params)
        before = jax.device_put(state.optimizer, on_device) if offload else state.optimizer
        changes, moments = optimizer.update(grads, before, state.params)
        params: Any = optax.apply_updates(state.params, changes)
        figures = {"loss": loss, "gradient_norm": optax.tree.norm(grads), **figures}
        if cfg.param_dtype == "bfloat16" and lora is None:
            figures |= {"lost_updates": _lost_updates(state.params, params, changes)}
        if skip_nonfinite:
            (params, moments), figures = _kept_where_finite(
                figures, (params, moments), (state.params, before)
            )
        return State(state.step + 1, params, moments), figures | batch_figures(batches)

    rows = named(mesh, ("batch",))
    jitted = jax.jit(
        update,
        in_shardings=(layout, rows, (param_shardings(cfg, mesh) if base else None, everywhere)),
        out_shardings=(layout, everywhere),
        donate_argnums=0,
    )

    return Step(jitted, mesh, tuple(parts), (base, grammar))
