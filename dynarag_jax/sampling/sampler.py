"""Sampling branches: the trunk is computed once, its branches decode beside each other.

The loop is one jitted ``while``: grammar, choice of the token and the caches never leave the
device. A request's random numbers depend on its own key, branch and position alone, so that its
result does not depend on what it was batched with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import Cache, DecoderConfig, Params
from dynarag_jax.policy import grammar as grammars
from dynarag_jax.policy.grammar import Grammar, GrammarState
from dynarag_jax.sharding import named


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 1.0
    """0 is greedy"""
    top_p: float = 1.0
    """keep the most probable tokens whose probabilities reach this sum (arXiv 1904.09751)"""
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
        if self.method not in ("independent", "distinct", "beam"):
            raise ValueError(f"method = {self.method!r} must be independent, distinct or beam")
        if self.method == "distinct" and self.temperature == 0:
            raise ValueError(
                "temperature = 0 draws nothing, and distinct lists must be drawn: set it above 0, "
                "or method = 'beam' for the most probable lists"
            )
        if self.width < 1:
            raise ValueError(f"width = {self.width} must be positive")


class Samples(NamedTuple):
    """Sampled branches.

    Attributes:
      tokens: [B, N, R], zero beyond each branch's length.
      lengths: [B, N], tokens written, the end included.
      finished: [B, N] bool, whether the end was reached within R tokens.
      logps: [B, N], log-probability of the branch at temperature 1, under the grammar if any.
    """

    tokens: jax.Array
    lengths: jax.Array
    finished: jax.Array
    logps: jax.Array


class _Loop(NamedTuple):
    place: jax.Array
    hidden: jax.Array
    own: Cache
    at: GrammarState
    out: Samples


def _keep_top_p(scores: jax.Array, top_p: float) -> jax.Array:
    """Mask scores [..., A] outside the smallest set of probability ``top_p``; never the best."""
    order = jnp.sort(scores, axis=-1)[..., ::-1]
    before = jnp.cumsum(jax.nn.softmax(order, axis=-1), axis=-1) - jax.nn.softmax(order, axis=-1)
    last = jnp.sum(before < top_p, axis=-1, keepdims=True) - 1
    threshold = jnp.take_along_axis(order, jnp.maximum(last, 0), axis=-1)
    return jnp.where(scores >= threshold, scores, -jnp.inf)


def shape_scores(scores: jax.Array, sampling: Sampling) -> jax.Array:
    """Scores [..., A] of the distribution that tokens are drawn from, at a temperature above 0."""
    scores = scores / sampling.temperature
    return _keep_top_p(scores, sampling.top_p) if sampling.top_p < 1 else scores


def _choose(scores: jax.Array, keys: jax.Array, sampling: Sampling) -> jax.Array:
    """Index [B, N] of the chosen candidate among scores [B, N, A]."""
    if sampling.temperature == 0:
        return jnp.argmax(scores, axis=-1)
    return jax.vmap(jax.vmap(jax.random.categorical))(keys, shape_scores(scores, sampling))


def sample(
    cfg: DecoderConfig,
    params: Params,
    trunk: jax.Array,
    lengths: jax.Array,
    keys: jax.Array,
    *,
    branches: int,
    max_tokens: int,
    end: int,
    sampling: Sampling,
    grammar: Grammar | None = None,
    n_passages: jax.Array | None = None,
) -> Samples:
    """Sample ``branches`` continuations of every trunk.

    Args:
      trunk: tokens [B, P], right-padded; lengths: [B].
      keys: [B] random keys, one a request.
      branches: N.
      max_tokens: R, the most tokens written, the end included.
      end: the token that ends a branch.
      grammar: constrains the branches to lists over the first ``n_passages`` [B] ids.
    """
    b = trunk.shape[0]
    hidden, cache = decoder.prefill(cfg, params, trunk, lengths)
    first = decoder.last_hidden(hidden, lengths)
    first = jnp.broadcast_to(first[:, None], (b, branches, first.shape[-1]))
    branch_keys = jax.vmap(
        lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(branches))
    )(keys)

    def step(loop: _Loop) -> _Loop:
        scores = decoder.logits(cfg, params, loop.hidden)
        choices = None
        if grammar is not None and n_passages is not None:
            choices, mask = grammars.allowed(grammar, loop.at, n_passages[:, None])
            candidates = jnp.take_along_axis(scores, jnp.maximum(choices, 0), axis=-1)
            # A finished branch has no candidates: give it finite scores, its choice is unused.
            mask |= loop.out.finished[..., None]
            scores = jnp.where(mask, candidates, -jnp.inf)
        now = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, loop.place)))(branch_keys)
        chosen = _choose(scores, now, sampling)[..., None]
        logp = jnp.take_along_axis(jax.nn.log_softmax(scores, axis=-1), chosen, axis=-1)[..., 0]
        token = chosen[..., 0].astype(jnp.int32)
        at = loop.at
        if grammar is not None and choices is not None:
            token = jnp.take_along_axis(choices, chosen, axis=-1)[..., 0]
            at = grammars.advance(grammar, at, token)
        live = ~loop.out.finished
        token = jnp.where(live, token, 0)
        out = Samples(
            jax.lax.dynamic_update_slice_in_dim(
                loop.out.tokens, token[..., None], loop.place, axis=2
            ),
            loop.out.lengths + live,
            loop.out.finished | (token == end) & live,
            loop.out.logps + jnp.where(live, logp, 0.0),
        )
        following, own = decoder.extend(
            cfg, params, token[..., None], cache, lengths, loop.own, loop.place
        )
        return _Loop(loop.place + 1, following[:, :, 0], own, at, out)

    zeros = jnp.zeros((b, branches), jnp.int32)
    loop = _Loop(
        jnp.zeros((), jnp.int32),
        first,
        decoder.empty_cache(cfg, b, branches, max_tokens),
        grammars.start(grammar, (b, branches))
        if grammar is not None
        else GrammarState(zeros, zeros[..., None] > 0, zeros),
        Samples(
            jnp.zeros((b, branches, max_tokens), jnp.int32),
            zeros,
            zeros > 0,
            zeros.astype(jnp.float32),
        ),
    )

    def going(loop: _Loop) -> jax.Array:
        return (loop.place < max_tokens) & ~loop.out.finished.all()

    return jax.lax.while_loop(going, step, loop).out


def make_sampler(
    cfg: DecoderConfig,
    mesh: Mesh,
    *,
    branches: int,
    max_tokens: int,
    end: int,
    sampling: Sampling,
    grammar: Grammar | None = None,
) -> Callable[..., Samples]:
    """A jitted ``sampler(params, trunk, lengths, keys, n_passages) -> Samples`` on ``mesh``.

    It samples with the trainer's own sharded parameters, the questions spread over the batch axes.
    """

    def run(params: Params, trunk: Any, lengths: Any, keys: Any, n_passages: Any) -> Samples:
        return sample(
            cfg,
            params,
            trunk,
            lengths,
            keys,
            branches=branches,
            max_tokens=max_tokens,
            end=end,
            sampling=sampling,
            grammar=grammar,
            n_passages=n_passages,
        )

    rows = named(mesh, ("batch",))
    jitted = jax.jit(run, in_shardings=(None, rows, rows, rows, rows), out_shardings=rows)

    def sampler(params: Params, trunk: Any, lengths: Any, keys: Any, n_passages: Any) -> Samples:
        with jax.set_mesh(mesh):
            return jitted(params, trunk, lengths, keys, n_passages)

    return sampler
