"""The list head: a small network over a question's candidates that scores what to read next.

A candidate is the vector of its pair with the question. Attention layers let candidates and a
*stop* token see each other; nothing says where a candidate stands, so that permuting candidates
permutes what comes out. This memory is the trunk: it is computed once a question. A step of a list
is a branch: a query that attends over the memory, knows which candidates are chosen, and scores
those that are left and stop. It depends on the set that was chosen, so that all steps of given
lists are computed at once.

Dimension letters: B questions, N candidates, S = N + 1 with stop first, M any number of steps, D
width of the encoder's vectors, W width of the head, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dynarag_jax.models.config import Parameter, stacked
from dynarag_jax.models.encoder_parts import Params, gelu, layer_norm
from dynarag_jax.models.modules import TableModule

RETRIEVER = 3
"""Features of the retriever: its score within the question, whether there is one, 1 / rank."""

COUNTS = 9
"""Numbers of chosen passages that steps tell apart; more are one."""

_EPS = 1e-6
_HIDDEN = -1e9  # a key that nothing attends to; finite, so that gradients are


@dataclass(frozen=True)
class ListHeadConfig:
    """Shape of the list head, and what it knows beside the encoder's vectors."""

    width: int = 64
    layers: int = 2
    """attention layers over the candidates; 0 is the plain head: the cross-encoder's score against
    one learned score of stopping"""
    steps: int = 2
    """attention layers of a step over the candidates, chosen or left"""
    heads: int = 4
    mlp: int = 256
    """hidden width of the MLPs"""
    pair_score: bool = True
    """the cross-encoder's own score is a feature, and what the head's scores are added to"""
    retriever: bool = False
    """the retriever's score and rank are features; without them the order of the candidates
    changes nothing"""
    vectors: int = 384
    """width of the encoder's vectors; the encoder says it"""
    param_dtype: Literal["float32"] = "float32"

    def __post_init__(self) -> None:
        if self.layers and (self.heads < 1 or self.width % self.heads):
            raise ValueError(f"width = {self.width} is not a multiple of heads = {self.heads}")
        if self.layers < 0 or (self.layers and min(self.steps, self.mlp, self.width) < 1):
            raise ValueError(
                "a list head has 0 layers or more, and steps, mlp, width of at least 1"
            )
        if not self.layers and not self.pair_score:
            raise ValueError("a plain head (layers = 0) has nothing but pair_score to order by")

    @property
    def features(self) -> int:
        """Features of a candidate beside its vector."""
        return 2 * self.pair_score + RETRIEVER * self.retriever


class ListMemory(NamedTuple):
    """What a question's candidates come to, once for all steps; stop is the first of S.

    Attributes:
      tokens: [B, S, W], None of the plain head.
      base: [B, S], scores before anything is chosen and without the step's part.
      where: [B, S] bool, candidates that exist, and stop.
    """

    tokens: jax.Array | None
    base: jax.Array
    where: jax.Array


def _attention(w: int, d: int) -> dict[str, Any]:
    return {
        "norm_scale": Parameter((w,), (None,), None),
        "norm_bias": Parameter((w,), (None,), 0.0),
        "query": Parameter((w, w), (None, None), w**-0.5),
        "key": Parameter((w, w), (None, None), w**-0.5),
        "value": Parameter((w, w), (None, None), w**-0.5),
        "output": Parameter((w, w), (None, None), d * w**-0.5),
    }


def _mlp(w: int, f: int, d: int) -> dict[str, Any]:
    return {
        "mlp_norm_scale": Parameter((w,), (None,), None),
        "mlp_norm_bias": Parameter((w,), (None,), 0.0),
        "up": Parameter((w, f), (None, None), w**-0.5),
        "up_bias": Parameter((f,), (None,), 0.0),
        "down": Parameter((f, w), (None, None), d * f**-0.5),
        "down_bias": Parameter((w,), (None,), 0.0),
    }


def list_head_table(cfg: ListHeadConfig) -> dict[str, Any]:
    """The head's parameters as a tree of ``Parameter``; per-layer arrays are stacked on axis 0.

    What adds to the cross-encoder's scores starts at zero: an untrained head ranks as the
    cross-encoder does.
    """
    w, f = cfg.width, cfg.mlp
    stop = {"stop_bias": Parameter((), (), 0.0)}
    if not cfg.layers:
        return stop
    depth = (2 * (cfg.layers + cfg.steps)) ** -0.5
    begin = 0.0 if cfg.pair_score else w**-0.5
    table: dict[str, Any] = {
        **stop,
        "vector_norm_scale": Parameter((cfg.vectors,), (None,), None),
        "vector_norm_bias": Parameter((cfg.vectors,), (None,), 0.0),
        "input": Parameter((cfg.vectors, w), ("embed", None), cfg.vectors**-0.5),
        "input_bias": Parameter((w,), (None,), 0.0),
        "stop": Parameter((w,), (None,), 0.5),
        "layers": stacked(_attention(w, depth) | _mlp(w, f, depth), cfg.layers),
        "final_norm_scale": Parameter((w,), (None,), None),
        "final_norm_bias": Parameter((w,), (None,), 0.0),
        "base": Parameter((w,), (None,), begin),
        "counts": Parameter((COUNTS, w), (None, None), 0.5),
        "steps": stacked(
            _attention(w, depth)
            | _mlp(w, f, depth)
            | {
                "chosen_key": Parameter((w,), (None,), w**-0.5),
                "chosen_value": Parameter((w,), (None,), w**-0.5),
            },
            cfg.steps,
        ),
        "step_norm_scale": Parameter((w,), (None,), None),
        "step_norm_bias": Parameter((w,), (None,), 0.0),
        "point_query": Parameter((w, w), (None, None), w**-0.5),
        "point_key": Parameter((w, w), (None, None), 0.0),
        "joint_chosen": Parameter((w, w), (None, None), w**-0.5),
        "joint_left": Parameter((w, w), (None, None), 0.0),
    }
    if cfg.features:
        table["features"] = Parameter((cfg.features, w), (None, None), 0.3)
    return table


def _norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    return layer_norm(x, scale, bias, _EPS)


def _split(x: jax.Array, heads: int) -> jax.Array:
    """[..., T, W] -> [..., H, T, W / H]."""
    return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3)


def _join(x: jax.Array) -> jax.Array:
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], -1)


def _feed(w: Params, x: jax.Array) -> jax.Array:
    hidden = _norm(x, w["mlp_norm_scale"], w["mlp_norm_bias"])
    return x + gelu(hidden @ w["up"] + w["up_bias"]) @ w["down"] + w["down_bias"]


def _features(
    cfg: ListHeadConfig, scores: jax.Array, retriever: jax.Array | None, where: jax.Array
) -> jax.Array:
    """[B, N, F]: the pair's score, how far it is below the best, and the retriever's features."""
    parts = []
    if cfg.pair_score:
        best = jnp.where(where, scores, -jnp.inf).max(-1, keepdims=True)
        below = jnp.where(where, scores - best, 0.0)
        parts.append(jnp.stack([scores, below], axis=-1) / 4.0)
    if cfg.retriever:
        if retriever is None:
            raise ValueError("the head reads the retriever's features, and none are given")
        parts.append(retriever.astype(jnp.float32))
    return jnp.concatenate(parts, axis=-1)


def remember(
    cfg: ListHeadConfig,
    params: Params,
    vectors: jax.Array,
    scores: jax.Array,
    where: jax.Array,
    retriever: jax.Array | None = None,
) -> ListMemory:
    """The memory of a question's candidates.

    Args:
      params: the tree of ``list_head_table``.
      vectors: [B, N, D], one a candidate.
      scores: [B, N], the cross-encoder's logits; no matter where ``cfg.pair_score`` is off.
      where: [B, N] bool, candidates that exist; what stands at others changes nothing.
      retriever: [B, N, 3], the retriever's features, where ``cfg.retriever`` is on.

    Returns:
      The memory, in float32.
    """
    b = where.shape[0]
    scores = jnp.where(where, scores.astype(jnp.float32), 0.0)
    pair = scores if cfg.pair_score else jnp.zeros_like(scores)
    stop = jnp.broadcast_to(params["stop_bias"], (b, 1))
    base = jnp.concatenate([stop, pair], axis=-1)
    every = jnp.pad(where, [(0, 0), (1, 0)], constant_values=True)
    if not cfg.layers:
        return ListMemory(None, base, every)
    vectors = jnp.where(where[..., None], vectors.astype(jnp.float32), 0.0)
    x = _norm(vectors, params["vector_norm_scale"], params["vector_norm_bias"]) @ params["input"]
    if cfg.features:
        x = x + _features(cfg, scores, retriever, where) @ params["features"]
    x = x + params["input_bias"]
    x = jnp.concatenate([jnp.broadcast_to(params["stop"], (b, 1, cfg.width)), x], axis=1)
    visible = jnp.where(every, 0.0, _HIDDEN)[:, None, None]

    def layer(x: jax.Array, w: Params) -> tuple[jax.Array, None]:
        normed = _norm(x, w["norm_scale"], w["norm_bias"])
        q, k, v = (_split(normed @ w[name], cfg.heads) for name in ("query", "key", "value"))
        size = cfg.width // cfg.heads
        weights = jax.nn.softmax(q @ k.swapaxes(-1, -2) * size**-0.5 + visible, axis=-1)
        return _feed(w, x + _join(weights @ v) @ w["output"]), None

    x, _ = jax.lax.scan(layer, x, params["layers"])
    tokens = _norm(x, params["final_norm_scale"], params["final_norm_bias"])
    return ListMemory(tokens, base + tokens @ params["base"], every)


def step_scores(
    cfg: ListHeadConfig, params: Params, memory: ListMemory, chosen: jax.Array
) -> jax.Array:
    """Scores of what may come next, given the set that is chosen.

    Args:
      chosen: [B, M, S] bool, the candidates chosen before each of M steps; never stop.

    Returns:
      [B, M, S] float32: stop's first, then the candidates'; those that are chosen or do not exist
      have scores of no meaning, and ``policy.encoder_policy`` leaves them out.
    """
    if memory.tokens is None:
        return jnp.broadcast_to(memory.base[:, None], chosen.shape)
    tokens, taken = memory.tokens, chosen.astype(jnp.float32)
    count = jnp.minimum(chosen.sum(-1), COUNTS - 1)
    x = params["counts"][count]  # [B, M, W]
    visible = jnp.where(memory.where, 0.0, _HIDDEN)[:, None, None]
    size = cfg.width // cfg.heads

    def layer(x: jax.Array, w: Params) -> tuple[jax.Array, None]:
        q = _split(_norm(x, w["norm_scale"], w["norm_bias"]) @ w["query"], cfg.heads)
        k, v = (_split(tokens @ w[name], cfg.heads) for name in ("key", "value"))
        # A chosen candidate's key and value have a vector added, without [M, S, W] arrays.
        flag_k = w["chosen_key"].reshape(cfg.heads, 1, size)
        flag_v = w["chosen_value"].reshape(cfg.heads, 1, size)
        scores = q @ k.swapaxes(-1, -2) + (q * flag_k).sum(-1, keepdims=True) * taken[:, None]
        weights = jax.nn.softmax(scores * size**-0.5 + visible, axis=-1)  # [B, H, M, S]
        share = (weights * taken[:, None]).sum(-1, keepdims=True)
        return _feed(w, x + _join(weights @ v + share * flag_v) @ w["output"]), None

    x, _ = jax.lax.scan(layer, x, params["steps"])
    x = _norm(x, params["step_norm_scale"], params["step_norm_bias"])
    pointed = (x @ params["point_query"]) @ (tokens @ params["point_key"]).swapaxes(-1, -2)
    # What a candidate gains beside those that are chosen: a sum over pairs.
    beside = (taken @ (tokens @ params["joint_chosen"])) @ (tokens @ params["joint_left"]).swapaxes(
        -1, -2
    )
    return memory.base[:, None] + (pointed + beside) * cfg.width**-0.5


class ListHead(TableModule):
    """The list head as a Flax module, in front of this file's functions.

    ``ListHead(cfg).apply({"params": params}, vectors, scores, where, chosen)`` is ``step_scores``
    of ``remember``.
    """

    cfg: ListHeadConfig = ListHeadConfig()

    def table(self) -> Mapping[str, Any]:
        """``list_head_table``."""
        return list_head_table(self.cfg)

    def __call__(
        self,
        vectors: jax.Array,
        scores: jax.Array,
        where: jax.Array,
        chosen: jax.Array,
        retriever: jax.Array | None = None,
    ) -> jax.Array:
        """Scores [B, M, S] of the steps at which the sets ``chosen`` [B, M, S] are chosen."""
        params = self.parameters()
        memory = remember(self.cfg, params, vectors, scores, where, retriever)
        return step_scores(self.cfg, params, memory, chosen)


def init_list_head(cfg: ListHeadConfig, key: jax.Array) -> Params:
    """Parameters of an untrained head."""
    boxed = jax.jit(partial(ListHead(cfg).init, method="parameters"))(key)["params"]
    return nn.unbox(boxed)
