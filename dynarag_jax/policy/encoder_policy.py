"""Lists drawn passage by passage: a distribution over lists that a small encoder computes.

At each step a softmax over the candidates that are left and *stop*: Plackett-Luce with stop. The
log-probability of a list is the sum of its steps', that of stopping included, so that the
probabilities of all lists sum to 1. For objectives this is what a language model's lists are:
tokens [B, L, R] with a mask, where a token is a 1-based candidate, and 0 is stop.

What is computed once a question and what once a step is the variant's choice:

- pairs of question and candidate, each by itself (or their vectors, kept from before);
- the same, candidates seeing each other inside the encoder (``interaction``);
- pairs of question, passages chosen so far, and candidate: once a step (``reencode``), of all
  candidates or of those that scored best at the first (``reread``).

Dimension letters: B questions, N candidates, S = N + 1 with stop first, L lists, R steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.calibration import ListBias
from dynarag_jax.models.config import is_parameter
from dynarag_jax.models.encoder_layout import encoder_table
from dynarag_jax.models.encoder_parts import EncoderConfig, Params
from dynarag_jax.models.list_head import (
    ListHeadConfig,
    ListMemory,
    list_head_table,
    remember,
    step_scores,
)
from dynarag_jax.models.pairs import PairBatch, PairPooling, pair_vectors, pairs_with_chosen
from dynarag_jax.policy.list_sets import require_sets, set_logps, sets_of

STOP = 0
"""The token that ends a list."""


@dataclass(frozen=True)
class EncoderPolicyConfig:
    """How an encoder and a list head make a distribution over lists."""

    encoder: EncoderConfig = EncoderConfig()
    head: ListHeadConfig = ListHeadConfig()
    pooling: PairPooling = "first"
    """a pair's vector: the hidden state of its first position, or the mean of all"""
    interaction: bool = False
    """candidates see each other inside the encoder, through their first positions in every layer
    (Set-Encoder, arXiv 2404.06912)"""
    reencode: int = 0
    """word pieces of each chosen passage that the next step's pairs begin with, one more pass over
    the candidates a step; 0 reads candidates once"""
    reread: int = 0
    """of ``reencode``: candidates that later steps read again, those that score best before
    anything is chosen; the others stay what they then were. 0 reads all"""
    pieces: int = 160
    """word pieces of a pair at most; longer passages are cut"""
    max_list: int = 15
    """passages of a list at most"""
    bias: ListBias = ListBias()
    """what is added to the scores of stopping"""

    def __post_init__(self) -> None:
        if self.head.vectors != self.encoder.width:
            raise InputError(
                f"the list head reads vectors of {self.head.vectors} numbers, and the encoder's "
                f"have {self.encoder.width}"
            )
        if not 8 <= self.pieces <= self.encoder.positions:
            raise InputError(
                f"pieces = {self.pieces} must lie between 8 and the encoder's "
                f"{self.encoder.positions} positions"
            )
        if self.max_list < 1 or self.reencode < 0 or self.reread < 0:
            raise InputError(
                f"max_list = {self.max_list} must be positive, reencode = {self.reencode} and "
                f"reread = {self.reread} not negative"
            )
        if self.reread and not self.reencode:
            raise InputError(
                f"reread = {self.reread} is of a policy that reads again what was chosen; set "
                f"reencode, too"
            )


class CandidateBatch(NamedTuple):
    """A batch of questions with their candidates, as a policy reads them.

    Attributes:
      pairs: their word pieces; None where vectors are given.
      vectors: [B, N, D], None where pairs are given.
      scores: [B, N], the cross-encoder's logits, beside vectors.
      where: [B, N] bool, candidates that exist.
      retriever: [B, N, 3], the retriever's features; None where the head reads none.
    """

    pairs: PairBatch | None
    vectors: Any
    scores: Any
    where: Any
    retriever: Any


def policy_table(cfg: EncoderPolicyConfig) -> dict[str, Any]:
    """The policy's parameters as a tree of ``Parameter``: ``encoder`` and ``head``."""
    return {"encoder": encoder_table(cfg.encoder), "head": list_head_table(cfg.head)}


def vectors_of(
    cfg: EncoderPolicyConfig, params: Params, pairs: PairBatch
) -> tuple[jax.Array, jax.Array]:
    """Vectors [B, N, D] and scores [B, N] of the candidates, by the policy's encoder."""
    return pair_vectors(cfg.encoder, params["encoder"], pairs, cfg.pooling, cfg.interaction)


class FirstReading(NamedTuple):
    """What candidates come to before anything is chosen, where later steps read some of them.

    Attributes:
      memory: of the first step.
      vectors: [B, N, D]; ``scores`` [B, N], the cross-encoder's logits.
      best: [B, C] int32, the candidates that later steps read again, from 0.
    """

    memory: ListMemory
    vectors: jax.Array
    scores: jax.Array
    best: jax.Array


def memory_of(cfg: EncoderPolicyConfig, params: Params, candidates: CandidateBatch) -> ListMemory:
    """What the candidates come to, for every step of every list."""
    if candidates.pairs is not None:
        vectors, scores = vectors_of(cfg, params, candidates.pairs)
    else:
        vectors, scores = candidates.vectors, candidates.scores
    return remember(
        cfg.head, params["head"], vectors, scores, candidates.where, candidates.retriever
    )


def _memory_after(
    cfg: EncoderPolicyConfig,
    params: Params,
    candidates: CandidateBatch,
    first: FirstReading | None,
    chosen: jax.Array,
) -> ListMemory:
    """The memory of steps at which ``chosen`` [B, M, K] stand: of B M questions.

    Args:
      first: where only its best are read again.
    """
    if candidates.pairs is None:
        raise _needs_passages()
    m = chosen.shape[1]
    pairs = pairs_with_chosen(candidates.pairs, chosen, cfg.reencode, cfg.encoder.positions)
    every = partial(jnp.repeat, repeats=m, axis=0)
    if first is None:
        vectors, scores = vectors_of(cfg, params, pairs)
    else:
        row, best = jnp.arange(len(pairs.lengths))[:, None], every(first.best)
        read = vectors_of(cfg, params, jax.tree.map(lambda x: x[row, best], pairs))
        vectors = every(first.vectors).at[row, best].set(read[0])
        scores = every(first.scores).at[row, best].set(read[1])
    where = every(candidates.where)
    retriever = None if candidates.retriever is None else every(candidates.retriever)
    return remember(cfg.head, params["head"], vectors, scores, where, retriever)


def allowed(where: jax.Array, chosen: jax.Array, max_list: int) -> jax.Array:
    """[B, M, S] bool, what may come next: stop always, candidates that exist and are left.

    Args:
      where: [B, N] bool, candidates that exist.
      chosen: [B, M, S] bool; where ``max_list`` are chosen, stop alone is left.
    """
    left = where[:, None] & ~chosen[..., 1:] & (chosen.sum(-1, keepdims=True) < max_list)
    return jnp.pad(left, [(0, 0), (0, 0), (1, 0)], constant_values=True)


class NextScores(NamedTuple):
    """One step of lists: scores, and what may come.

    Attributes:
      scores: [B, M, S], finite; ``mask`` says which count.
      mask: [B, M, S] bool.
    """

    scores: jax.Array
    mask: jax.Array


def step_of(
    cfg: EncoderPolicyConfig,
    params: Params,
    candidates: CandidateBatch,
    memory: ListMemory | FirstReading | None,
    tokens: jax.Array,
) -> NextScores:
    """Scores of the next passage of lists that have begun.

    Args:
      memory: of ``trunk_of``: None where the policy reads all candidates anew each step.
      tokens: [B, M, K] int32, 1-based candidates in order, 0 behind them. With K = 0 nothing is
        chosen, and candidates are read once for all M.
    """
    n = candidates.where.shape[-1]
    if not tokens.shape[-1]:
        if memory is None:
            memory = memory_of(cfg, params, candidates)
        elif isinstance(memory, FirstReading):
            memory = memory.memory
    chosen = ((tokens[..., None] == jnp.arange(n + 1)) & (tokens[..., None] > 0)).any(-2)
    mask = allowed(candidates.where, chosen, cfg.max_list)
    if not isinstance(memory, ListMemory):
        b, m = tokens.shape[:2]
        again = _memory_after(cfg, params, candidates, memory, tokens)
        flat = chosen.reshape(b * m, 1, n + 1)
        scores = step_scores(cfg.head, params["head"], again, flat).reshape(b, m, n + 1)
    else:
        scores = step_scores(cfg.head, params["head"], memory, chosen)
    return NextScores(_leant(cfg, scores, chosen), mask)


def _leant(cfg: EncoderPolicyConfig, scores: jax.Array, chosen: jax.Array) -> jax.Array:
    """Scores [B, M, S] with the bias on stopping, which is another before anything is chosen."""
    if not cfg.bias:
        return scores
    return scores.at[..., 0].add(jnp.where(chosen.any(-1), cfg.bias.stop, cfg.bias.empty))


def trunk_of(
    cfg: EncoderPolicyConfig, params: Params, candidates: CandidateBatch
) -> ListMemory | FirstReading | None:
    """What all lists of a question share: the memory, or the first reading; None where nothing."""
    if not cfg.reencode:
        return memory_of(cfg, params, candidates)
    b, n = candidates.where.shape
    if not cfg.reread or cfg.reread >= n:
        return None
    if candidates.pairs is None:
        raise _needs_passages()
    vectors, scores = vectors_of(cfg, params, candidates.pairs)
    where, retriever = candidates.where, candidates.retriever
    memory = remember(cfg.head, params["head"], vectors, scores, where, retriever)
    nothing = jnp.zeros((b, 1, n + 1), bool)
    first = step_scores(cfg.head, params["head"], memory, nothing)[:, 0, 1:]
    best = jax.lax.top_k(jnp.where(where, jax.lax.stop_gradient(first), -jnp.inf), cfg.reread)[1]
    return FirstReading(memory, vectors, scores, best)


def _needs_passages() -> InputError:
    return InputError(
        "a policy that reads again what was chosen needs the passages, not their vectors: train "
        "its encoder, or set reencode to 0"
    )


class ListLogps(NamedTuple):
    """Log-probabilities of given lists, and the scores of their first step.

    Attributes:
      steps: [B, L, R] natural logarithms in float32; 0 beyond a list's end, -inf of what the policy
        never writes (a candidate twice, one that does not exist, one too many).
      first: [B, N], scores of the candidates at an empty list, for losses on scores.
      decisions: [B, L, R], of stopping where a list stops, and of not stopping where it goes on; 0
        beyond a list's end. No gradient goes through them.
      sets: [B, L], of the lists' passages in any order; None where not asked for.
    """

    steps: jax.Array
    first: jax.Array
    decisions: jax.Array
    sets: jax.Array | None = None


def list_logps(
    cfg: EncoderPolicyConfig,
    params: Params,
    candidates: CandidateBatch,
    lists: jax.Array,
    lengths: jax.Array,
    sets: bool = False,
) -> ListLogps:
    """Log-probabilities of lists, all steps at once.

    Args:
      lists: int32 [B, L, R], 1-based candidates and 0 (stop) at the end; right-padded.
      lengths: [B, L], steps of each list, stop included; 0 of a list that is none.
      sets: also add up all orders of each list.

    Raises:
      InputError: ``sets``, and lists are longer than ``list_sets.MOST``, or the policy reads again
        what was chosen, for which a set is no state.
    """
    b, count, r = lists.shape
    n = candidates.where.shape[-1]
    if sets:
        require_sets(r - 1)
        if cfg.reencode:
            raise InputError(
                "the orders of a list are added up by the sets they pass through, and a policy "
                "that reads again what was chosen (reencode) tells orders apart"
            )
    place = jnp.arange(r)
    inside = place < lengths[..., None]
    tokens = jnp.where(inside, lists, 0)
    # Before step t stand the tokens of the steps before it: [B, L, R, R].
    before = jnp.where(place[None, :] < place[:, None], tokens[:, :, None, :], 0)
    memory = trunk_of(cfg, params, candidates)
    if not isinstance(memory, ListMemory):
        step = step_of(cfg, params, candidates, memory, before.reshape(b, count * r, r))
        # The first step is alike in all lists.
        first = step.scores[:, 0, 1:]
    else:
        taken = (tokens[..., None] == jnp.arange(n + 1)) & (tokens[..., None] > 0)
        chosen = (jnp.cumsum(taken, axis=2) - taken) > 0
        chosen = chosen.reshape(b, count * r, n + 1)
        mask = allowed(candidates.where, chosen, cfg.max_list)
        scores = step_scores(cfg.head, params["head"], memory, chosen)
        step = NextScores(_leant(cfg, scores, chosen), mask)
        first = step.scores[:, 0, 1:]
    scores = step.scores.reshape(b, count, r, n + 1)
    mask = step.mask.reshape(b, count, r, n + 1)
    following = jax.nn.log_softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
    known = jnp.clip(tokens, 0, n)[..., None]
    picked = jnp.take_along_axis(following, known, axis=-1)[..., 0]
    legal = jnp.take_along_axis(mask, known, axis=-1)[..., 0] & (tokens >= 0) & (tokens <= n)
    # A choice that is nearly certain is rounded to either side of 0.
    logps = jnp.where(legal, jnp.minimum(picked, 0.0), -jnp.inf)
    stops = jnp.minimum(jax.lax.stop_gradient(following[..., STOP]), 0.0)
    goes_on = jnp.log(-jnp.expm1(jnp.minimum(stops, -1e-7)))
    decisions = jnp.where(inside, jnp.where(tokens == STOP, stops, goes_on), 0.0)
    whole = None
    if sets and isinstance(memory, ListMemory):
        whole = _set_logps(cfg, params, candidates, memory, tokens, lengths)
    return ListLogps(jnp.where(inside, logps, 0.0), first, decisions, whole)


def chance_of(
    cfg: EncoderPolicyConfig,
    params: Params,
    candidates: CandidateBatch,
    chosen: jax.Array,
    following: jax.Array,
) -> jax.Array:
    """Log-probability that one of some comes next, in given states.

    Args:
      chosen: int32 [B, M, K], 1-based candidates in order, 0 behind them.
      following: [B, M, S] bool, what may come, stop first.

    Returns:
      [B, M] nats.
    """
    step = step_of(cfg, params, candidates, trunk_of(cfg, params, candidates), chosen)
    logps = jax.nn.log_softmax(jnp.where(step.mask, step.scores, -jnp.inf), axis=-1)
    return jnp.minimum(jax.nn.logsumexp(jnp.where(following, logps, -jnp.inf), axis=-1), 0.0)


def _set_logps(
    cfg: EncoderPolicyConfig,
    params: Params,
    candidates: CandidateBatch,
    memory: ListMemory,
    tokens: jax.Array,
    lengths: jax.Array,
) -> jax.Array:
    """[B, L], log-probabilities of lists in any order of theirs."""
    b, n = candidates.where.shape
    chosen = sets_of(tokens, n)
    flat = chosen.reshape(b, -1, n + 1)
    scores = _leant(cfg, step_scores(cfg.head, params["head"], memory, flat), flat)
    mask = allowed(candidates.where, flat, cfg.max_list)
    logps = jax.nn.log_softmax(jnp.where(mask, scores, -jnp.inf), axis=-1)
    return set_logps(logps.reshape(chosen.shape), tokens, lengths)


def count_policy_parameters(cfg: EncoderPolicyConfig) -> Mapping[str, int]:
    """How many numbers the encoder and the head hold."""
    return {
        name: sum(math.prod(p.shape) for p in jax.tree.leaves(part, is_leaf=is_parameter))
        for name, part in policy_table(cfg).items()
    }
