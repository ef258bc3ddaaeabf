"""One update of any model: its state, how objectives enter the loss, the gradient's way.

A step takes one batch per stream, each with objectives of its own, and makes one update. What a
model says of a batch is ``LossInputs``; nothing else of it is known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dynarag_jax.models.config import Params
from dynarag_jax.objectives.diagnostics import list_figures
from dynarag_jax.objectives.terms import LossInputs, Objectives
from dynarag_jax.rings import Rings, along, rings_of
from dynarag_jax.sharding import on_host, require_host_memory
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


def weighted_terms(
    parts: Mapping[str, StreamLoss],
    inputs: Mapping[str, LossInputs],
    whole: Mapping[str, LossInputs],
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum of all terms of all streams, and their figures.

    Args:
      inputs: per stream, what the model says of a (micro)batch.
      whole: per stream, the masks of the whole batch, whose counts the terms are divided by.
    """
    loss, figures = jnp.zeros((), jnp.float32), {}
    for name, part in parts.items():
        scores = inputs[name]
        for key, term in part.objectives.active().items():
            value = term(scores)
            count = jnp.maximum(term(whole[name]).count, 1)
            loss += part.weight * term.weight * value.total / count
            figures[f"{name}/{key}"] = value.total / count
            figures |= {f"{name}/{key}/{k}": v / count for k, v in value.figures.items()}
        if part.objectives.reads("behavior"):
            of_whole = list_figures(whole[name])
            for key, (total, _) in list_figures(scores).items():
                figures[f"{name}/{key}"] = total / jnp.maximum(of_whole[key][1], 1)
        if part.objectives.reads("reference"):
            count = jnp.maximum(reference_kl(whole[name])[1], 1)
            figures[f"{name}/kl"] = reference_kl(scores)[0] / count
    return loss, figures


def placed_state(mesh: Mesh, params: Any, shapes: State, offload: bool = False) -> State:
    """NamedSharding of a state whose parameters lie as ``params`` says, of any model.

    Args:
      shapes: the state as ``jax.ShapeDtypeStruct``.

    Raises:
      InputError: as ``state_shardings``.
    """
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
    rest: Any
    """what the update takes beside state and batches: frozen parameters, the grammar"""

    def __call__(
        self, state: State, batches: Mapping[str, Any]
    ) -> tuple[State, dict[str, jax.Array]]:
        """One update; ``state`` is given away."""
        with self._laid_out():
            return self.jitted(state, {name: batches[name] for name in self.streams}, self.rest)

    def lower(self, state: State, batches: Mapping[str, Any]) -> jax.stages.Lowered:
        """The update as a program, from arrays or from their shapes; nothing is computed."""
        with self._laid_out():
            rows = {name: batches[name] for name in self.streams}
            return self.jitted.lower(state, rows, self.rest)

    @cached_property
    def _rings(self) -> Rings:
        return rings_of(self.mesh)

    @contextmanager
    def _laid_out(self) -> Iterator[None]:
        """While this lasts, what is traced lies on the step's mesh, and knows its rings."""
        with jax.set_mesh(self.mesh), along(self._rings):
            yield


def make_update(
    loss_of: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    layout: State,
    on_device: Any = None,
    accumulate: int = 1,
    seed: int = 0,
    skip_nonfinite: bool = False,
    count_lost: bool = False,
    describe: Callable[[Any], dict[str, jax.Array]] = batch_figures,
) -> Callable[..., Any]:
    """One update of any model, to be jitted: ``update(state, batches, rest) -> (state, figures)``.

    Args:
      loss_of: (trained, key, microbatches, whole batches, rest) to the loss and figures.
      layout: where the state lies.
      on_device: where the moments lie while they are used, if they wait in host memory.
      accumulate, seed, skip_nonfinite: as ``make_step``.
      count_lost: whether updates that round away are counted.
      describe: what a step's batches hold, as figures.
    """
    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def update(state: State, batches: Any, rest: Any) -> tuple[State, Any]:
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
        before = (
            state.optimizer if on_device is None else jax.device_put(state.optimizer, on_device)
        )
        changes, moments = optimizer.update(grads, before, state.params)
        params: Any = optax.apply_updates(state.params, changes)
        figures = {"loss": loss, "gradient_norm": optax.tree.norm(grads), **figures}
        if count_lost:
            figures |= {"lost_updates": _lost_updates(state.params, params, changes)}
        if skip_nonfinite:
            (params, moments), figures = _kept_where_finite(
                figures, (params, moments), (state.params, before)
            )
        return State(state.step + 1, params, moments), figures | describe(batches)

    return update
