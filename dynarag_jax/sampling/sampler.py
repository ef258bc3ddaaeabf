"""Sampling branches: the trunk is computed once, its branches decode beside each other.

The loop is one jitted ``while``: grammar, choice of the token and the caches never leave the
device. A request's random numbers depend on its own key, branch and position alone, so that its
result does not depend on what it was batched with.

``sample`` takes one batch from beginning to end. ``engine`` has the same parts work on a stream of
requests that enter and leave.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dynarag_jax.models import decoder, decoding
from dynarag_jax.models.decoder import BranchCache, DecoderConfig, Params, TrunkCache
from dynarag_jax.policy import grammar as grammars
from dynarag_jax.policy import thoughts
from dynarag_jax.policy.grammar import Grammar, GrammarState
from dynarag_jax.sampling.choice import Sampling, Settings, choose
from dynarag_jax.sampling.prefilling import apart
from dynarag_jax.sharding import named

__all__ = ["Samples", "Sampling", "make_sampler", "sample"]

CHUNK = 512
"""Tokens of a prompt that are computed at a time."""


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


class Mode(NamedTuple):
    """What the rows of a program need between them; decided while tracing."""

    constrained: bool
    """some row follows the grammar"""
    unconstrained: bool
    """some row does not"""
    random: bool
    """some row has a temperature"""
    filters: bool
    """some row leaves candidates out"""


class SlotRows(NamedTuple):
    """What is known of each slot beside its caches; all arrays begin with S, slots.

    Attributes:
      lengths: [S] of the trunks.
      keys: [S, W] data of the requests' random keys.
      shown: [S] ids the grammar may use.
      listed: [S] bool, whether the grammar constrains the slot.
      limit: [S] tokens a branch takes at most.
      stops: [S, J] tokens that end a branch; -1 is none.
      settings: [S] each.
      place: [S] tokens that the slot's unfinished branches have written.
      at: [S, N], where each branch stands in the grammar.
      last: [S, N] the token written last.
      tokens: [S, N, R], zero beyond what is written.
      logps, unconstrained: [S, N, R] log-probabilities of the tokens at temperature 1: under the
        grammar where the slot is listed, and over the whole vocabulary.
      written: [S, N] tokens.
      ended: [S, N] bool, whether a stop was written.
      done: [S, N] bool, whether the branch writes no more.
    """

    lengths: Any
    keys: Any
    shown: Any
    listed: Any
    limit: Any
    stops: Any
    settings: Settings
    place: Any
    at: GrammarState
    last: Any
    tokens: Any
    logps: Any
    unconstrained: Any
    written: Any
    ended: Any
    done: Any


class Slots(NamedTuple):
    """The whole state of decoding."""

    trunk_cache: TrunkCache
    branch_cache: BranchCache
    rows: SlotRows


def new_rows(
    lengths: Any,
    keys: Any,
    shown: Any,
    listed: Any,
    limit: Any,
    stops: Any,
    settings: Settings,
    done: Any,
    length: int,
    grammar: Grammar | None,
) -> SlotRows:
    """SlotRows before their first token; ``done`` [S, N] marks the branches that are not wanted."""
    shape = done.shape
    zeros = jnp.zeros(shape, jnp.int32)
    at = GrammarState(zeros, zeros[..., None] > 0, zeros)
    if grammar is not None:
        at = grammars.start(grammar, shape)
    logps = jnp.zeros((*shape, length), jnp.float32)
    return SlotRows(
        lengths=lengths, keys=keys, shown=shown, listed=listed, limit=limit, stops=stops,
        settings=settings, place=zeros[:, 0], at=at, last=zeros,
        tokens=jnp.zeros((*shape, length), jnp.int32), logps=logps, unconstrained=logps,
        written=zeros, ended=zeros > 0, done=done,
    )  # fmt: skip


def write(scores: jax.Array, rows: SlotRows, mode: Mode, grammar: Grammar | None) -> SlotRows:
    """Choose each branch's next token from its scores [S, N, V]."""
    n = scores.shape[1]
    keys = jax.vmap(
        lambda data, place: jax.vmap(
            lambda i: jax.random.fold_in(
                jax.random.fold_in(jax.random.wrap_key_data(data), i), place
            )
        )(jnp.arange(n))
    )(rows.keys, rows.place)
    how = {"random": mode.random, "filters": mode.filters}
    total = jax.nn.logsumexp(scores, axis=-1)
    token = logp = jnp.zeros(())
    at = rows.at
    if mode.unconstrained:
        token = choose(scores, keys, rows.settings, **how).astype(jnp.int32)
        logp = jnp.take_along_axis(scores, token[..., None], axis=-1)[..., 0] - total
    if mode.constrained and grammar is not None:
        choices, mask = grammars.allowed(grammar, rows.at, rows.shown[:, None])
        picked = jnp.take_along_axis(scores, jnp.maximum(choices, 0), axis=-1)
        if grammar.bias is not None:
            picked = picked + grammars.leaning(grammar, rows.at)
        # A finished branch has no candidates: give it finite scores, its choice is unused.
        unused = rows.done
        if grammar.thought is not None and rows.at.thought is not None:
            unused = unused | thoughts.is_free(rows.at.thought)
        picked = jnp.where(mask | unused[..., None], picked, -jnp.inf)
        index = choose(picked, keys, rows.settings, **how)[..., None]
        listed = jnp.take_along_axis(choices, index, axis=-1)[..., 0]
        under = jnp.take_along_axis(jax.nn.log_softmax(picked, axis=-1), index, axis=-1)[..., 0]
        if grammar.thought is not None and rows.at.thought is not None:
            free = thoughts.is_free(rows.at.thought)
            held = thoughts.without_banned(grammar.thought, scores)
            thought = choose(held, keys, rows.settings, **how)[..., None]
            held = jnp.take_along_axis(jax.nn.log_softmax(held, axis=-1), thought, axis=-1)
            listed = jnp.where(free, thought[..., 0].astype(jnp.int32), listed)
            under = jnp.where(free, held[..., 0], under)
        if mode.unconstrained:
            listed = jnp.where(rows.listed[:, None], listed, token)
            under = jnp.where(rows.listed[:, None], under, logp)
        token, logp = listed, under
        at = grammars.advance(grammar, rows.at, token)
    live = ~rows.done
    token = jnp.where(live, token, 0)
    whole = jnp.take_along_axis(scores, jnp.maximum(token, 0)[..., None], axis=-1)[..., 0] - total
    here = live[..., None] & (jnp.arange(rows.tokens.shape[-1]) == rows.place[:, None, None])
    written = rows.written + live
    ended = rows.ended | live & (token[..., None] == rows.stops[:, None]).any(-1)
    return rows._replace(
        place=rows.place + live.any(-1),
        at=at,
        last=token,
        tokens=jnp.where(here, token[..., None], rows.tokens),
        logps=jnp.where(here, logp[..., None], rows.logps),
        unconstrained=jnp.where(here, whole[..., None], rows.unconstrained),
        written=written,
        ended=ended,
        done=rows.done | ended | (written >= rows.limit[:, None]),
    )


def first_tokens(
    cfg: DecoderConfig,
    params: Params,
    hidden: jax.Array,
    rows: SlotRows,
    mode: Mode,
    grammar: Grammar | None,
) -> SlotRows:
    """Each branch's first token, from the hidden states [S, D] of the trunks' last tokens."""
    scores = decoder.logits(cfg, params, hidden)[:, None]
    branches = rows.done.shape[1]
    return write(jnp.broadcast_to(scores, (len(hidden), branches, cfg.vocab)), rows, mode, grammar)


def decode(
    cfg: DecoderConfig,
    params: Params,
    slots: Slots,
    mode: Mode,
    grammar: Grammar | None,
    want: Any,
    steps: Any,
    arrays: decoding.LayerArrays | None = None,
) -> Slots:
    """Decode until ``want`` slots have finished, but no more than ``steps`` tokens.

    ``arrays`` are the layers' of ``decoding.unstack``; without them they are copied here.
    """
    layers = decoding.layers_of(cfg, arrays or decoding.unstack(cfg, params))

    def going(carry: tuple[jax.Array, Slots]) -> jax.Array:
        count, slots = carry
        return (count < steps) & (slots.rows.done.all(-1).sum() < want)

    def step(carry: tuple[jax.Array, Slots]) -> tuple[jax.Array, Slots]:
        count, (trunk_cache, branch_cache, rows) = carry
        place = jnp.maximum(rows.place - 1, 0)
        hidden, branch_cache = decoding.decode_token(
            cfg, params, layers, rows.last, trunk_cache, rows.lengths, branch_cache, place
        )
        rows = write(decoding.token_logits(cfg, params, hidden), rows, mode, grammar)
        return count + 1, Slots(trunk_cache, branch_cache, rows)

    return jax.lax.while_loop(going, step, (jnp.int32(0), slots))[1]


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
    b, p = trunk.shape
    lists = grammar is not None and n_passages is not None
    mode = Mode(lists, not lists, sampling.temperature > 0, sampling.filters)
    rows = new_rows(
        lengths=lengths,
        keys=jax.random.key_data(keys),
        shown=n_passages if n_passages is not None else jnp.zeros(b, jnp.int32),
        listed=jnp.full(b, lists),
        limit=jnp.full(b, max_tokens, jnp.int32),
        stops=jnp.full((b, 1), end, jnp.int32),
        settings=Settings(
            *(
                jnp.full(b, value)
                for value in (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p)
            )
        ),
        done=jnp.zeros((b, branches), bool),
        length=max_tokens,
        grammar=grammar if lists else None,
    )
    hidden, cache = decoding.prefill(cfg, params, trunk, jnp.maximum(lengths, 1), min(p, CHUNK))
    rows = first_tokens(cfg, params, hidden, rows, mode, grammar)
    slots = Slots(
        TrunkCache(*map(apart, cache)),
        decoding.empty_branch_cache(cfg, b, branches, max_tokens),
        rows,
    )
    rows = decode(cfg, params, slots, mode, grammar, b, max_tokens).rows
    return Samples(rows.tokens, rows.written, rows.ended, rows.logps.sum(-1))


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

    def write_lists(
        params: Params, trunk: Any, lengths: Any, keys: Any, n_passages: Any
    ) -> Samples:
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
    jitted = jax.jit(write_lists, in_shardings=(None, rows, rows, rows, rows), out_shardings=rows)

    def sampler(params: Params, trunk: Any, lengths: Any, keys: Any, n_passages: Any) -> Samples:
        with jax.set_mesh(mesh):
            return jitted(params, trunk, lengths, keys, n_passages)

    return sampler
