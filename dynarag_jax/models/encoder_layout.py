"""An encoder's parameters as a table, and the part of them that is trained.

``frozen`` trains nothing of the encoder; ``last`` its last layers; ``lora`` low-rank adapters
beside its matrices; ``full`` all of it. A cross-encoder's head is trained with all but
``frozen``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from dynarag_jax.errors import InputError
from dynarag_jax.models.config import Parameter
from dynarag_jax.models.encoder import parameter_shapes
from dynarag_jax.models.encoder_parts import EncoderConfig, Params
from dynarag_jax.models.lora import LowRank

TrainedPart = Literal["frozen", "last", "lora", "full"]

_AXES: Mapping[str, tuple[str | None, ...]] = {
    "tokens": (None, "embed"),
    "positions": (None, "embed"),
    "types": (None, "embed"),
    "qkv": ("embed", None),
    "output": (None, "embed"),
    "up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
    "up_bias": ("mlp",),
    "dense": ("embed", None),
}
"""Logical axes by name, without that of layers; arrays not named are whole everywhere."""

ADAPTED = ("qkv", "output", "up", "down")
"""Matrices of a layer that ``lora`` puts adapters beside."""

_TAIL = ("head", "final_norm_scale")
"""What stands behind the layers: trained with the last of them."""


@dataclass(frozen=True)
class TrainedEncoder:
    """Which part of the encoder is trained."""

    part: TrainedPart = "full"
    """frozen: nothing, and vectors are computed once; last: the last layers; lora: adapters; full:
    all of it"""
    layers: int = 2
    """of ``last``: how many"""
    rank: int = 16
    """of ``lora``: inner size of the adapters"""
    alpha: float = 32.0
    """of ``lora``: the adapters' product is scaled by alpha / rank"""

    def __post_init__(self) -> None:
        if min(self.layers, self.rank) < 1:
            raise InputError(
                f"trained: layers = {self.layers} and rank = {self.rank} must be positive"
            )


def encoder_table(cfg: EncoderConfig, scored: bool = True) -> dict[str, Any]:
    """The encoder's parameters as a tree of ``Parameter``, with their axes on a mesh."""

    def one(name: str, shape: tuple[int, ...], stacked: bool) -> Parameter:
        axes = _AXES.get(name, (None,) * (len(shape) - stacked))
        scale = 0.0 if name.endswith("bias") else None if name.endswith("scale") else 0.02
        return Parameter(shape, ("layers", *axes) if stacked else axes, scale)

    return {
        name: {n: one(n, s, name == "layers") for n, s in shape.items()}
        if isinstance(shape, dict)
        else one(name, shape, False)
        for name, shape in parameter_shapes(cfg, scored).items()
    }


def adapter_shapes(cfg: EncoderConfig, trained: TrainedEncoder) -> dict[str, Any]:
    """The adapters' table, ``{"qkv": {"a": ..., "b": ...}, ...}``; b starts at zero."""
    layers = encoder_table(cfg)["layers"]
    table = {}
    for name in ADAPTED:
        _, d, f = layers[name].shape
        _, into, out = layers[name].axes
        table[name] = {
            "a": Parameter((cfg.layers, d, trained.rank), ("layers", into, None), d**-0.5),
            "b": Parameter((cfg.layers, trained.rank, f), ("layers", None, out), 0.0),
        }
    return table


def trained_encoder_table(cfg: EncoderConfig, trained: TrainedEncoder) -> dict[str, Any]:
    """The table of the part of the encoder that is trained; empty of a frozen one.

    Raises:
      InputError: there are not so many layers.
    """
    if trained.part == "frozen":
        return {}
    table = encoder_table(cfg)
    if trained.part == "full":
        return table
    if trained.part == "lora":
        return {"adapters": adapter_shapes(cfg, trained), "head": table["head"]}
    if trained.layers > cfg.layers:
        raise InputError(f"trained: layers = {trained.layers}, and the encoder has {cfg.layers}")
    upper = {
        name: p._replace(shape=(trained.layers, *p.shape[1:]))
        for name, p in table["layers"].items()
    }
    return {"layers": upper} | {name: table[name] for name in _TAIL if name in table}


def begin_encoder(
    cfg: EncoderConfig, trained: TrainedEncoder, params: Params, key: jax.Array
) -> Params:
    """What training begins with, of the encoder's parameters: the tree of the trained part."""
    if trained.part == "frozen":
        return {}
    if trained.part == "full":
        return dict(params)
    if trained.part == "lora":
        keys = jax.random.split(key, len(ADAPTED))
        table = adapter_shapes(cfg, trained)
        adapters = {
            name: {
                "a": table[name]["a"].scale * jax.random.normal(k, table[name]["a"].shape),
                "b": jnp.zeros(table[name]["b"].shape),
            }
            for name, k in zip(ADAPTED, keys, strict=True)
        }
        return {"adapters": adapters, "head": params["head"]}
    upper = {name: x[cfg.layers - trained.layers :] for name, x in params["layers"].items()}
    return {"layers": upper} | {name: params[name] for name in _TAIL if name in params}


def whole_encoder(
    cfg: EncoderConfig, trained: TrainedEncoder, part: Params, base: Params, joined: bool = False
) -> Params:
    """The whole encoder from its trained part and the parameters that training began with.

    Args:
      joined: one stack of layers, as files have it; else frozen layers stay a stack of their own,
        through which no gradient is computed, and adapters stay beside their matrices
        (``encoder_parts.product``), whose gradients need not be computed either.
    """
    if trained.part == "frozen":
        return base
    if trained.part == "full":
        return part
    if trained.part == "lora":
        layers, scale = dict(base["layers"]), trained.alpha / trained.rank
        pairs = {
            name: LowRank(pair["a"], pair["b"], None, scale, 0.0)
            for name, pair in part["adapters"].items()
        }
        if not joined:
            return {**base, "layers": layers | {"adapters": pairs}, "head": part["head"]}
        for name, pair in pairs.items():
            layers[name] += jnp.einsum("ldr,lrf->ldf", pair.a, pair.b) * scale
        return {**base, "layers": layers, "head": part["head"]}
    lower = {name: x[: cfg.layers - trained.layers] for name, x in base["layers"].items()}
    both: Any = (lower, part["layers"])
    if joined:
        both = {name: jnp.concatenate([lower[name], part["layers"][name]]) for name in lower}
    return {**base, "layers": both} | {name: part[name] for name in _TAIL if name in part}
