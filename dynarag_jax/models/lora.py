"""Low-rank adapters: small trained matrices beside frozen ones (LoRA, arXiv 2106.09685).

A frozen matrix W takes the pair (a, b) beside it, and its product becomes ``x W + scale x a b``. b
starts at zero, so that the adapted model starts as the base model, exactly. The adapters are a
parameter tree of their own: what is trained, sharded and saved is that tree and nothing else.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dynarag_jax.errors import InputError
from dynarag_jax.models.config import (
    DecoderConfig,
    Parameter,
    Params,
    initializer,
    is_parameter,
    parameter_table,
    stacked,
)
from dynarag_jax.models.products import matmul

# How many leading axes of each matrix are its input.
MATRICES: Mapping[str, int] = {
    "query": 1,
    "key": 1,
    "value": 1,
    "output": 2,
    "gate": 1,
    "up": 1,
    "down": 1,
}


@dataclass(frozen=True)
class LoraConfig:
    """Which matrices are adapted, and how."""

    rank: int = 16
    """inner size of an adapter; 0 adapts nothing"""
    alpha: float = 32.0
    """the adapters' product is scaled by alpha / rank"""
    targets: tuple[str, ...] = ("*",)
    """patterns over query, key, value, output, gate, up, down; ``*`` is all of them"""
    dropout: float = 0.0
    """share of an adapter's inputs that a training step sets to zero"""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise InputError(f"rank = {self.rank}: an adapter's rank is at least 1, or 0 for none")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout = {self.dropout} must lie in [0, 1)")
        for pattern in self.targets:
            if not fnmatch.filter(MATRICES, pattern):
                raise InputError(
                    f"targets: {pattern!r} matches no matrix; there are {', '.join(MATRICES)}"
                )
        if not self.targets:
            raise InputError("targets: no matrix is adapted; '*' adapts all")

    @property
    def scale(self) -> float:
        """Factor of the adapters' product."""
        return self.alpha / self.rank

    def names(self) -> list[str]:
        """The adapted matrices, in the model's order."""
        return [n for n in MATRICES if any(fnmatch.fnmatchcase(n, p) for p in self.targets)]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["a", "b", "key"],
    meta_fields=["scale", "dropout"],
)
@dataclass(frozen=True)
class LowRank:
    """The pair beside one matrix, as the decoder meets it.

    Attributes:
      a: [in..., rank]; b: [rank, out...]; with a leading axis of layers where stacked.
      key: random key of the dropout, one a layer; None does not drop.
    """

    a: jax.Array
    b: jax.Array
    key: jax.Array | None
    scale: float
    dropout: float

    def apply(self, x: jax.Array, stream: int) -> jax.Array:
        """The adapter's share of a product, [T, in] -> [T, out], in the type of x.

        ``stream`` tells apart the token streams of one layer, which must not share their dropout.
        """
        rank = self.a.shape[-1]
        if self.key is not None:
            kept = jax.random.bernoulli(
                jax.random.fold_in(self.key, stream), 1 - self.dropout, x.shape
            )
            x = jnp.where(kept, x / (1 - self.dropout), 0)
        low = matmul(x, self.a.reshape(-1, rank))
        return matmul(low, self.b.reshape(rank, -1)) * self.scale


def adapter_table(cfg: DecoderConfig, lora: LoraConfig) -> dict[str, Any]:
    """The adapters' parameters as a tree of ``Parameter``: ``{"query": {"a": ..., "b": ...}}``.

    Raises:
      InputError: the rank is 0.
    """
    if not lora.rank:
        raise InputError("rank = 0: there are no adapters")
    matrices = parameter_table(cfg)["layers"]
    layer = {}
    for name in lora.names():
        shape, axes = matrices[name].shape[1:], matrices[name].axes[1:]
        n = MATRICES[name]
        # The deviation of PEFT's uniform start.
        std = 1 / math.sqrt(3 * math.prod(shape[:n]))
        layer[name] = {
            "a": Parameter((*shape[:n], lora.rank), (*axes[:n], None), std),
            "b": Parameter((lora.rank, *shape[n:]), (None, *axes[n:]), 0.0),
        }
    return stacked(layer, cfg.layers)


def init_adapters(cfg: DecoderConfig, lora: LoraConfig, key: jax.Array) -> Params:
    """Fresh adapters in float32: a random, b zero, so that the model is unchanged."""
    table = adapter_table(cfg, lora)
    leaves, tree = jax.tree.flatten(table, is_leaf=is_parameter)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        tree,
        [initializer(p)(k, p.shape, jnp.float32) for k, p in zip(keys, leaves, strict=True)],
    )


def attach(
    cfg: DecoderConfig,
    lora: LoraConfig,
    params: Params,
    adapters: Params,
    key: jax.Array | None = None,
) -> Params:
    """The parameters with adapters beside them, for every function of ``models.decoder``.

    Args:
      key: random key of the dropout in a training step; None, or a dropout of 0, does not drop.
    """
    pairs = {}
    for i, (name, pair) in enumerate(adapters.items()):
        keys = None
        if key is not None and lora.dropout:
            keys = jax.random.split(jax.random.fold_in(key, i), cfg.layers)
        pairs[name] = LowRank(pair["a"], pair["b"], keys, lora.scale, lora.dropout)
    return {**params, "adapters": pairs}


def with_own_dropout(params: Params, number: int) -> Params:
    """The same parameters, whose adapters drop other inputs than those of another ``number``.

    For the streams of a step, which have the step's key in common: batches of one shape, or of
    shapes that begin alike, would otherwise drop the same places. Number 0 has the key as it is.
    """
    if not number or "adapters" not in params:
        return params
    pairs: dict[str, LowRank] = {
        name: pair
        if pair.key is None
        else replace(pair, key=jax.vmap(partial(_fold, number=number))(pair.key))
        for name, pair in params["adapters"].items()
    }
    return {**params, "adapters": pairs}


def _fold(key: jax.Array, number: int) -> jax.Array:
    return jax.random.fold_in(key, number)


@partial(jax.tree_util.register_dataclass, data_fields=["w", "a", "b"], meta_fields=["scale"])
@dataclass(frozen=True)
class MergedMatrix:
    """A stacked matrix with its adapter merged in, each layer computed when it is asked for.

    It stands where the matrix stood, for what reads a model layer by layer: so a model is written
    out without a second copy of it.
    """

    w: jax.Array
    """[L, in..., out...]"""
    a: jax.Array
    b: jax.Array
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        """The matrix's."""
        return self.w.shape

    @property
    def dtype(self) -> Any:
        """The matrix's."""
        return self.w.dtype

    @property
    def sharding(self) -> Any:
        """The matrix's."""
        return self.w.sharding

    def layer(self, i: Any) -> jax.Array:
        """One layer of w + scale a b, in the type of w."""
        w, a, b = (
            jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=True) for x in (self.w, self.a, self.b)
        )
        return (w + self.scale * product(a, b).reshape(w.shape)).astype(w.dtype)[0]


def merge_layers(lora: LoraConfig, params: Params, adapters: Params) -> Params:
    """The parameters of the plain model that computes what the adapted one does, layer by layer."""
    layers = dict(params["layers"])
    for name, pair in adapters.items():
        layers[name] = MergedMatrix(layers[name], pair["a"], pair["b"], lora.scale)
    return {**params, "layers": layers}


def whole(params: Params) -> Params:
    """The parameters as arrays, as the decoder takes them: what is merged by layer, computed."""
    layers = {
        name: jax.lax.map(w.layer, jnp.arange(w.shape[0])) if isinstance(w, MergedMatrix) else w
        for name, w in params["layers"].items()
    }
    return {**params, "layers": layers}


def merge(lora: LoraConfig, params: Params, adapters: Params) -> Params:
    """As ``merge_layers``, whole: arrays as the decoder takes them."""
    return whole(merge_layers(lora, params, adapters))


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """The stacked product a b in float32: [L, in..., r], [L, r, out...] -> [L, in, out]."""
    layers, rank = a.shape[0], a.shape[-1]
    a, b = a.reshape(layers, -1, rank), b.reshape(layers, rank, -1)
    return jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32), precision="highest")
