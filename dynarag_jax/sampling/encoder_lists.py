"""Lists drawn from an encoder policy: greedily, at random, without replacement, by beam search.

All steps run in one jitted loop over the memory that a question's candidates come to. A question's
random numbers depend on its own key, the list and the step, and a candidate's on its place: neither
on what it was batched with nor on padding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dynarag_jax.models.encoder_parts import Params
from dynarag_jax.policy.encoder_policy import (
    STOP,
    CandidateBatch,
    EncoderPolicyConfig,
    NextScores,
    step_of,
    trunk_of,
)
from dynarag_jax.sampling.choice import Sampling, Settings, choose
from dynarag_jax.sampling.search import SearchResult, rows_of, walk, width_of
from dynarag_jax.sharding import named


class Drawn(NamedTuple):
    """Lists of every question.

    Attributes:
      tokens: [B, L, R], 1-based candidates, 0 at the end and behind it.
      lengths: [B, L], steps, that of stopping included.
      logps: [B, L, R], log-probabilities of the steps at temperature 1; 0 behind a list's end.
      stops: [B, L, R], those of stopping at each step; 0 behind a list's end.
    """

    tokens: jax.Array
    lengths: jax.Array
    logps: jax.Array
    stops: jax.Array


class _Drawing(NamedTuple):
    place: jax.Array
    finished: jax.Array
    drawn: Drawn


def longest_list(cfg: EncoderPolicyConfig, n: int) -> int:
    """Steps that the longest list over ``n`` candidates takes, that of stopping included."""
    return min(cfg.max_list, n) + 1


def _most_chosen(cfg: EncoderPolicyConfig, steps: int) -> list[int]:
    """Up to how many chosen passages each stretch of a list's steps reads.

    A policy that reads again what was chosen pays for the room it leaves for it: none at the first
    step, then one, two, four and so on. For others all steps are one stretch.
    """
    if not cfg.reencode:
        return [steps - 1]
    powers = [2**i for i in range((steps - 1).bit_length()) if 2**i < steps - 1]
    return [0, *powers, *([steps - 1] if steps > 1 else [])]


def draw_lists(
    cfg: EncoderPolicyConfig,
    params: Params,
    candidates: CandidateBatch,
    keys: jax.Array,
    *,
    lists: int,
    sampling: Sampling,
    endless: bool = False,
) -> Drawn:
    """Draw ``lists`` lists of every question, each for itself; at temperature 0 the greedy one.

    Args:
      keys: [B] random keys, one a question.
      sampling: temperature, top_p, top_k and min_p, which every step applies.
      endless: stop only where nothing else is left; log-probabilities are of the policy that may.
    """
    b, n = candidates.where.shape
    r = longest_list(cfg, n)
    memory = trunk_of(cfg, params, candidates)
    own = jax.vmap(lambda key: jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(lists)))(keys)
    settings = Settings(
        jnp.full(b, sampling.temperature),
        jnp.full(b, sampling.top_p),
        jnp.full(b, sampling.top_k),
        jnp.full(b, sampling.min_p),
    )

    def step(most: int, at: _Drawing) -> _Drawing:
        drawn = at.drawn
        scores, mask = step_of(cfg, params, candidates, memory, drawn.tokens[..., :most])
        scores = jnp.where(mask, scores, -jnp.inf)
        asked = scores
        if endless:
            left = mask[..., 1:].any(-1)
            asked = scores.at[..., STOP].set(jnp.where(left, -jnp.inf, scores[..., STOP]))
        now = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, at.place)))(own)
        token = choose(
            asked, now, settings, random=sampling.temperature > 0, filters=sampling.filters
        )
        logps = jax.nn.log_softmax(scores, axis=-1)
        logp = jnp.take_along_axis(logps, token[..., None], axis=-1)[..., 0]
        token = jnp.where(at.finished, STOP, token).astype(jnp.int32)
        logp = jnp.where(at.finished, 0.0, logp)
        stop = jnp.where(at.finished, 0.0, logps[..., STOP])
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=at.place, axis=2)
        drawn = Drawn(
            put(drawn.tokens, token[..., None]),
            drawn.lengths + ~at.finished,
            put(drawn.logps, logp[..., None]),
            put(drawn.stops, stop[..., None]),
        )
        return _Drawing(at.place + 1, at.finished | (token == STOP), drawn)

    empty = Drawn(
        jnp.zeros((b, lists, r), jnp.int32),
        jnp.zeros((b, lists), jnp.int32),
        jnp.zeros((b, lists, r), jnp.float32),
        jnp.zeros((b, lists, r), jnp.float32),
    )
    at = _Drawing(jnp.zeros((), jnp.int32), jnp.zeros((b, lists), bool), empty)
    # Behind the longest list stop alone is left, and nobody needs to be asked.
    for most in _most_chosen(cfg, r - 1):
        going = lambda at, most=most: (at.place <= most) & ~at.finished.all()  # noqa: E731
        at = jax.lax.while_loop(going, partial(step, most), at)
    return at.drawn._replace(lengths=at.drawn.lengths + ~at.finished)


def _noise(key: jax.Array, width: int, arcs: int) -> jax.Array:
    """Gumbel noise [W, A] that does not depend on how many candidates padding adds."""
    each = jax.vmap(lambda rank: jax.random.fold_in(key, rank))(jnp.arange(width))
    return jax.vmap(lambda key: jax.random.gumbel(key, (arcs,), jnp.float32, mode="low"))(each)


def find_lists(
    cfg: EncoderPolicyConfig,
    params: Params,
    candidates: CandidateBatch,
    keys: jax.Array,
    *,
    lists: int,
    sampling: Sampling,
) -> SearchResult:
    """Different lists of every question: ``distinct`` without replacement, or by ``beam`` search.

    Args:
      keys: [B] random keys, one a question.
    """
    b, n = candidates.where.shape
    r = longest_list(cfg, n)
    memory = trunk_of(cfg, params, candidates)

    def scores_of(tokens: jax.Array, alive: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        step: NextScores = step_of(cfg, params, candidates, memory, tokens)
        choices = jnp.broadcast_to(jnp.arange(n + 1, dtype=jnp.int32), step.scores.shape)
        return choices, step.mask & alive[..., None], step.scores

    def advance(
        tokens: jax.Array, parent: jax.Array, token: jax.Array, place: jax.Array
    ) -> jax.Array:
        kept = rows_of(parent, tokens)
        return jax.lax.dynamic_update_slice_in_dim(kept, token[..., None], place, axis=2)

    empty = jnp.zeros((b, width_of(lists, sampling), r), jnp.int32)
    return walk(
        scores_of, advance, empty, keys,
        branches=lists, arcs=n + 1, max_tokens=r, end=STOP, sampling=sampling, noise_of=_noise,
    )  # fmt: skip


def make_list_writer(
    cfg: EncoderPolicyConfig, mesh: Mesh, lists: int, sampling: Sampling, endless: bool = False
) -> Callable[[Params, CandidateBatch, Any], Drawn | SearchResult]:
    """A jitted ``writer(params, candidates, keys)`` on ``mesh``, by the sampling's method.

    ``endless`` lists, of ``draw_lists``, are drawn independently.

    Questions are spread over the batch axes; it is compiled once for every padded shape.
    """
    write: Callable[..., Any] = find_lists
    if sampling.method == "independent":
        write = partial(draw_lists, endless=endless)

    def write_lists(params: Params, candidates: CandidateBatch, keys: Any) -> Drawn | SearchResult:
        return write(cfg, params, candidates, keys, lists=lists, sampling=sampling)

    rows = named(mesh, ("batch",))
    jitted = jax.jit(write_lists, in_shardings=(None, rows, rows), out_shardings=rows)

    def writer(params: Params, candidates: CandidateBatch, keys: Any) -> Drawn | SearchResult:
        with jax.set_mesh(mesh):
            return jitted(params, candidates, keys)

    return writer
