"""How the next token is chosen: greedily, or at random from what the settings leave.

Settings may differ from row to row; a row's choice depends on its own scores, key and settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 1.0
    """0 is greedy"""
    top_p: float = 1.0
    """keep the most probable tokens whose probabilities reach this sum (arXiv 1904.09751)"""
    top_k: int = 0
    """keep this many of the most probable tokens; 0 keeps all"""
    min_p: float = 0.0
    """keep tokens at least this probable, relative to the most probable (arXiv 2407.01082)"""
    method: Literal["independent", "distinct", "beam"] = "independent"
    """independent: each list for itself, so that some may be alike; distinct: without replacement,
    by stochastic beam search; beam: the most probable lists, found by beam search"""
    width: int = 8
    """prefixes that beam search keeps; more find better lists"""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature = {self.temperature} must not be negative")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p} must lie in (0, 1]")
        if self.top_k < 0:
            raise ValueError(f"top_k = {self.top_k} must not be negative")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p = {self.min_p} must lie in [0, 1]")
        if self.method not in ("independent", "distinct", "beam"):
            raise ValueError(f"method = {self.method!r} must be independent, distinct or beam")
        if self.method == "distinct" and self.temperature == 0:
            raise ValueError(
                "temperature = 0 draws nothing, and distinct lists must be drawn: set it above 0, "
                "or method = 'beam' for the most probable lists"
            )
        if self.width < 1:
            raise ValueError(f"width = {self.width} must be positive")

    @property
    def filters(self) -> bool:
        """Whether candidates are left out."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


GREEDY = Sampling(temperature=0.0)
"""The likeliest at every step."""


class Settings(NamedTuple):
    """The settings of rows [S]: the fields of ``Sampling``."""

    temperature: Any
    top_p: Any
    top_k: Any
    min_p: Any


def keep_top_p(scores: jax.Array, top_p: Any) -> jax.Array:
    """Mask scores [..., A] outside the smallest set of probability ``top_p``; never the best.

    Args:
      top_p: a number, or an array [..., 1].
    """
    order = jnp.sort(scores, axis=-1)[..., ::-1]
    before = jnp.cumsum(jax.nn.softmax(order, axis=-1), axis=-1) - jax.nn.softmax(order, axis=-1)
    last = jnp.sum(before < top_p, axis=-1, keepdims=True) - 1
    threshold = jnp.take_along_axis(order, jnp.maximum(last, 0), axis=-1)
    # The sum of many small probabilities may round to 1 before the last: 1 keeps all of them.
    return jnp.where((scores >= threshold) | (jnp.asarray(top_p) >= 1), scores, -jnp.inf)


def keep_top_k(scores: jax.Array, top_k: Any) -> jax.Array:
    """Mask scores [..., A] below the ``top_k``-th best; equals of that one stay; 0 keeps all."""
    top_k = jnp.asarray(top_k)
    order = jnp.sort(scores, axis=-1)[..., ::-1]
    place = jnp.clip(top_k - 1, 0, scores.shape[-1] - 1)
    place = jnp.broadcast_to(place, (*scores.shape[:-1], 1))
    threshold = jnp.take_along_axis(order, place, axis=-1)
    return jnp.where((scores >= threshold) | (top_k == 0), scores, -jnp.inf)


def keep_min_p(scores: jax.Array, min_p: Any) -> jax.Array:
    """Mask scores [..., A] whose probability is below ``min_p`` times the best one's."""
    least = scores.max(-1, keepdims=True) + jnp.log(jnp.asarray(min_p, jnp.float32))
    return jnp.where(scores >= least, scores, -jnp.inf)


def shape_scores(scores: jax.Array, sampling: Sampling) -> jax.Array:
    """Scores [..., A] of the distribution that tokens are drawn from, at a temperature above 0."""
    scores = scores / sampling.temperature
    if sampling.filters:
        scores = keep_top_p(keep_top_k(scores, sampling.top_k), sampling.top_p)
        scores = keep_min_p(scores, sampling.min_p)
    return scores


def choose(
    scores: jax.Array, keys: jax.Array, settings: Settings, *, random: bool, filters: bool
) -> jax.Array:
    """Index [S, N] of the chosen candidate among scores [S, N, A].

    Temperature, top-k, top-p and min-p apply in this order, as in transformers.

    Args:
      keys: [S, N] random keys.
      settings: [S].
      random: whether any row has a temperature; filters: whether any row leaves candidates out.
    """
    if not random:
        return best(scores)
    temperature, top_p, top_k, min_p = (jnp.asarray(x)[:, None, None] for x in settings)
    greedy = temperature == 0
    scores = scores / jnp.where(greedy, 1, temperature)
    if filters:  # none of them leaves the best one out
        scores = keep_min_p(keep_top_p(keep_top_k(scores, top_k), top_p), min_p)
    draw = jax.vmap(jax.vmap(lambda key, x: jax.random.gumbel(key, x.shape, x.dtype)))
    return best(scores + jnp.where(greedy, 0, draw(keys, scores)))


def best(scores: jax.Array) -> jax.Array:
    """Index [...] of the largest of scores [..., A], the first among equals.

    As ``argmax``, which takes longer on a CPU where noise is added on the way.
    """
    size = scores.shape[-1]
    top = scores.max(axis=-1, keepdims=True)
    return jnp.where(scores == top, jnp.arange(size), size - 1).min(axis=-1)
