"""The optimizer and its schedule, by configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from optax.contrib import MuonDimensionNumbers

from dynarag_jax.errors import InputError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW unless told otherwise, after clipping the global gradient norm."""

    name: Literal["adamw", "muon", "lion", "adafactor", "sgd", "nadamw", "lamb"] = "adamw"
    """muon: orthogonalized momentum (arXiv 2502.16982) for the layers' matrices, its updates scaled
    to the size of AdamW's, and AdamW for all else"""
    learning_rate: float = 1e-5
    """peak learning rate"""
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    """after warm-up: cosine to the end, flat with a linear tail, or flat"""
    warmup: float = 0.1
    """share of the steps spent rising to the peak"""
    tail: float = 0.4
    """share of the steps that the plateau schedule spends falling"""
    final: float = 0.0
    """learning rate at the end, as a share of the peak"""
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    """decoupled decay of matrices, a share of the learning rate per step; norms and biases are
    spared"""
    clip: float = 1.0
    """largest global gradient norm; 0 does not clip"""
    offload: bool = False
    """moments wait in host memory and come to the device for the update only"""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise InputError(f"learning_rate = {self.learning_rate} must be positive")
        if self.clip < 0:
            raise InputError(f"clip = {self.clip} must be positive, or 0 not to clip")
        for name in ("warmup", "tail", "final"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} = {getattr(self, name)} must lie in [0, 1]")


def learning_rate(cfg: OptimizerConfig, steps: int) -> Callable[[Any], Any]:
    """The learning rate as a function of the step, over ``steps`` steps."""
    peak, warm = cfg.learning_rate, round(cfg.warmup * steps)
    rest = max(steps - warm, 1)
    if cfg.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, rest, alpha=cfg.final)
    elif cfg.schedule == "plateau":
        tail = min(max(round(cfg.tail * steps), 1), rest)
        after = optax.linear_schedule(peak, peak * cfg.final, tail, transition_begin=rest - tail)
    else:
        after = optax.constant_schedule(peak)
    if not warm:
        return after
    # Step 0 already moves: the ramp starts one notch above zero.
    rise = optax.linear_schedule(peak / (warm + 1), peak, warm)
    return optax.join_schedules([rise, after], [warm])


# The layers' matrices, stacked over layers: the axes they read from, the axes they write to.
_MATRICES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "query": ((1,), (2, 3)),
    "key": ((1,), (2, 3)),
    "value": ((1,), (2, 3)),
    "output": ((1, 2), (3,)),
    "gate": ((1,), (2,)),
    "up": ((1,), (2,)),
    "down": ((1,), (2,)),
}


def _matrices(params: Any) -> Any:
    """For every array, how Muon reads it as matrices; None for AdamW's."""

    def one(path: Any, array: Any) -> MuonDimensionNumbers | None:
        read, written = _MATRICES.get(getattr(path[-1], "key", ""), ((), ()))
        if read and array.ndim == 1 + len(read) + len(written):
            return MuonDimensionNumbers(read, written)
        return None

    return jax.tree_util.tree_map_with_path(one, params)


def _rules(params: Any) -> Any:
    return jax.tree.map(
        lambda axes: "adamw" if axes is None else "muon",
        _matrices(params),
        is_leaf=lambda x: x is None or isinstance(x, MuonDimensionNumbers),
    )


def make_optimizer(cfg: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The optax transformation of a configuration, for a run of ``steps`` steps."""
    rate = learning_rate(cfg, steps)

    def decayed(params: Any) -> Any:
        def is_matrix(path: Any, _: Any) -> bool:
            return not any("norm" in str(part) or "bias" in str(part) for part in path)

        return jax.tree_util.tree_map_with_path(is_matrix, params)

    adamw = optax.adamw(rate, cfg.b1, cfg.b2, cfg.eps, weight_decay=cfg.weight_decay, mask=decayed)
    if cfg.name == "adamw":
        rule = adamw
    elif cfg.name == "muon":
        muon = optax.contrib.muon(
            rate,
            weight_decay=cfg.weight_decay,
            muon_weight_dimension_numbers=_matrices,
            # The root mean square of AdamW's updates: one learning rate serves both rules.
            consistent_rms=0.2,
        )
        # Not Muon's own rule for other arrays, which is Nesterov's Adam and decays norms, too.
        rule = optax.partition({"muon": muon, "adamw": adamw}, _rules)
    elif cfg.name in ("nadamw", "lamb"):
        make = {"nadamw": optax.nadamw, "lamb": optax.lamb}[cfg.name]
        rule = make(rate, cfg.b1, cfg.b2, cfg.eps, weight_decay=cfg.weight_decay, mask=decayed)
    elif cfg.name == "lion":
        rule = optax.lion(rate, cfg.b1, cfg.b2, weight_decay=cfg.weight_decay, mask=decayed)
    else:
        rule = optax.adafactor(rate) if cfg.name == "adafactor" else optax.sgd(rate, cfg.b1)
        if cfg.weight_decay:
            # Adafactor's own decay is not scaled by the rate, and SGD has none: add AdamW's.
            decay = optax.add_decayed_weights(lambda step: -cfg.weight_decay * rate(step), decayed)
            rule = optax.chain(rule, decay)
    clip = [optax.clip_by_global_norm(cfg.clip)] if cfg.clip else []
    return _in_float32(optax.chain(*clip, rule))


def _in_float32(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """The rule on float32 copies: moments of bfloat16 weights are float32, and so is the sum."""

    def wide(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def init(params: Any) -> Any:
        return rule.init(wide(params))

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return rule.update(wide(updates), state, wide(params))

    return optax.GradientTransformation(init, update)
