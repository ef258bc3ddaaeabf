"""Thoughts before lists in tokens: how they are spelled, read, and held to their limit.

The grammar of a policy that thinks is: any tokens but those that end a text or steer the
conversation, up to a limit; then the tokens that close a thought; then the list. A thought that is
not closed at the limit is closed for it: these tokens are no choice of the policy, their
log-probability is 0, and the thought counts as *cut*.

Letters: C tokens that close a thought, K banned tokens, [...] any leading axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dynarag_jax.errors import InputError
from dynarag_jax.prompts import ChatTokenizer
from dynarag_jax.templates import turn_end, without_markers
from dynarag_jax.thoughts import Thinking


@dataclass(frozen=True)
class ThoughtSpelling:
    """How a tokenizer spells thoughts.

    Attributes:
      end: tokens that end a thought where the policy writes them.
      behind: tokens that follow by themselves, before the list.
      limit: the most tokens a policy writes, its own end included.
      banned: tokens that no thought holds: ends of text and other special tokens.
      vocab: tokens that the tokenizer knows; a thought holds none beyond.
    """

    end: tuple[int, ...]
    behind: tuple[int, ...]
    limit: int
    banned: tuple[int, ...]
    vocab: int

    @property
    def closing(self) -> tuple[int, ...]:
        """All that stands between what was thought and the list."""
        return (*self.end, *self.behind)

    @property
    def longest(self) -> int:
        """Most tokens of a thought, all that closes it included."""
        return self.limit + len(self.closing)

    def spell(self, thought: Sequence[int]) -> tuple[list[int], bool]:
        """A thought's tokens with what closes it, and whether it is cut at the limit.

        Raises:
          ValueError: it holds what ends a thought, or a banned token.
        """
        cut = len(thought) + len(self.end) > self.limit
        written = [*thought, *self.end][: self.limit] if cut else list(thought)
        whole = [*written, *self.closing[self._begun(written) if cut else 0 :]]
        try:
            fits = self.split(whole) == (len(whole), cut)
        except ValueError:
            fits = False
        if not fits or {*written} & {*self.banned}:
            raise ValueError("it holds what ends a thought")
        return whole, cut

    def split(self, tokens: Sequence[int]) -> tuple[int, bool]:
        """How many tokens of a branch are its thought and what closes it; whether it was cut.

        Raises:
          ValueError: the branch ends within its thought, or it is not closed as it must be.
        """
        size = len(self.end)
        for place in range(size, min(self.limit, len(tokens)) + 1):
            if tuple(tokens[place - size : place]) == self.end:
                stop, cut, rest = place, False, self.behind
                break
        else:
            stop, cut = self.limit, True
            rest = self.closing[self._begun(tokens[: self.limit]) :]
        count = stop + len(rest)
        if count > len(tokens) or tuple(tokens[stop:count]) != rest:
            raise ValueError(f"a thought without its end: {list(tokens)}")
        return count, cut

    def thought(self, tokens: Sequence[int]) -> list[int]:
        """What was thought, of the tokens that ``split`` counts, without what closes it."""
        count, cut = self.split(tokens)
        if not cut:
            return list(tokens[: count - len(self.closing)])
        return list(tokens[: self.limit - self._begun(tokens[: self.limit])])

    def _begun(self, tokens: Sequence[int]) -> int:
        """How many tokens of its end a thought has begun to write."""
        for size in range(min(len(self.end) - 1, len(tokens)), 0, -1):
            if tuple(tokens[-size:]) == self.end[:size]:
                return size
        return 0


def find_thoughts(tokenizer: ChatTokenizer, thinking: Thinking, limit: int) -> ThoughtSpelling:
    """How ``tokenizer`` spells thoughts of at most ``limit`` tokens.

    Raises:
      InputError: the tokenizer cannot spell what closes them.
    """
    end = _encode(tokenizer, thinking.closing)
    # Up to spaces, which word-level tokenizers leave out.
    spelled, wanted = ("".join(x.split()) for x in (tokenizer.decode(list(end)), thinking.closing))
    if not end or wanted not in spelled:
        raise InputError(
            f"the tokenizer cannot spell {thinking.closing!r}, which closes a thought; set "
            f"prompts.thought_tokens to 0"
        )
    if limit < len(end):
        raise InputError(
            f"prompts.thought_tokens = {limit} does not hold {thinking.closing!r}, which closes a "
            f"thought and takes {len(end)} tokens; raise it"
        )
    behind = _encode(tokenizer, thinking.behind) if thinking.behind else ()
    special = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
    ends = [tokenizer.eos_token_id, turn_end(tokenizer)]
    banned = {i for i in (*special, *ends) if i is not None} - {*end, *behind}
    return ThoughtSpelling(end, behind, limit, tuple(sorted(banned)), len(tokenizer))  # type: ignore[arg-type]


def thought_tokens(tokenizer: ChatTokenizer, text: str) -> list[int]:
    """Tokens of a thought, as text of elsewhere: without markers in it, and a line of its own."""
    text = without_markers(text, tokenizer).strip()
    return list(_encode(tokenizer, f"{text}\n")) if text else []


def _encode(tokenizer: ChatTokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


# ---------------------------------------------------------------------------- inside jit


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["closing", "banned"],
    meta_fields=["size", "limit", "vocab"],
)
@dataclass(frozen=True)
class ThoughtRule:
    """``ThoughtSpelling`` as arrays.

    Attributes:
      closing: [C] what closes a thought; its first ``size`` tokens end it.
      banned: [K].
    """

    closing: jax.Array
    banned: jax.Array
    size: int
    limit: int
    vocab: int


def thought_rule(spelling: ThoughtSpelling) -> ThoughtRule:
    """The rule that holds branches to a spelling."""
    return ThoughtRule(
        jnp.asarray(spelling.closing, jnp.int32),
        jnp.asarray(spelling.banned, jnp.int32),
        len(spelling.end),
        spelling.limit,
        spelling.vocab,
    )


class ThoughtState(NamedTuple):
    """Where each branch stands in its thought."""

    tokens: Any
    """[...] int32, written by the policy"""
    matched: Any
    """[..., size] bool, whether the last i + 1 tokens are the first i + 1 of its end"""
    closing: Any
    """[...] int32, the place in ``closing`` of the token that must come next; -1 while it is free,
    and C once the list has begun"""


def start(rule: ThoughtRule, shape: tuple[int, ...]) -> ThoughtState:
    """The state before the first token."""
    zeros = jnp.zeros(shape, jnp.int32)
    return ThoughtState(zeros, jnp.zeros((*shape, rule.size), bool), zeros - 1)


def is_free(at: ThoughtState) -> jax.Array:
    """Whether the next token is free, [...]."""
    return at.closing < 0


def is_over(rule: ThoughtRule, at: ThoughtState) -> jax.Array:
    """Whether the list has begun, [...]."""
    return at.closing >= rule.closing.shape[0]


def next_closing(rule: ThoughtRule, at: ThoughtState) -> jax.Array:
    """The token [...] that must come next, where a thought is being closed."""
    return rule.closing[jnp.clip(at.closing, 0, rule.closing.shape[0] - 1)]


def advance(rule: ThoughtRule, at: ThoughtState, token: jax.Array) -> ThoughtState:
    """The states after ``token`` [...]; nothing changes once the list has begun."""
    free = is_free(at)
    before = jnp.concatenate([jnp.ones_like(at.matched[..., :1]), at.matched[..., :-1]], axis=-1)
    matched = before & (token[..., None] == rule.closing[: rule.size])
    tokens = at.tokens + free
    begun = jnp.max(jnp.where(matched, jnp.arange(1, rule.size + 1), 0), axis=-1)
    closed = matched[..., -1] | (tokens >= rule.limit)
    then = jnp.where(closed, begun, -1)
    last = rule.closing.shape[0]
    closing = jnp.where(free, then, jnp.minimum(at.closing + 1, last))
    return ThoughtState(tokens, jnp.where(free[..., None], matched, at.matched), closing)


def without_banned(rule: ThoughtRule, scores: jax.Array) -> jax.Array:
    """Scores [..., V] of what a thought may hold; -inf elsewhere."""
    tokens = jnp.arange(scores.shape[-1])
    barred = (tokens >= rule.vocab) | (tokens[:, None] == rule.banned).any(-1)
    return jnp.where(barred, -jnp.inf, scores)


def free_positions(rule: ThoughtRule, branches: jax.Array) -> jax.Array:
    """Where tokens of given branches [B, N, R] were free, [B, N, R] bool."""

    def step(at: ThoughtState, token: jax.Array) -> tuple[ThoughtState, jax.Array]:
        return advance(rule, at, token), is_free(at)

    tokens = jnp.moveaxis(branches, -1, 0)
    _, free = jax.lax.scan(step, start(rule, branches.shape[:2]), tokens)
    return jnp.moveaxis(free, 0, 2)
