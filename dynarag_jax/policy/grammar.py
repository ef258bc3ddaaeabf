"""The grammar of lists as a deterministic automaton over a tokenizer's tokens.

A list is ``None``, or ids ``[i]`` joined by ``, ``, each 1..n and none twice, then end of text.
``build_grammar`` lays a tokenizer's spelling of that out as small integer tables, and
``build_choices`` does it for a closed set of texts, such as the labels of a classification.
Where a policy thinks before it lists, ``thoughts`` says what may stand before the list.
``allowed`` and ``advance`` run on those tables inside jit; what they cost a step grows with ids and
arcs of a state, never with the number of states.

Letters: S states, E arcs of all states, A arcs of the busiest state, I ids, [...] any leading axes
(questions, branches).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.calibration import ListBias
from dynarag_jax.policy import thoughts
from dynarag_jax.policy.spelling import Spelling, find_spelling, read_list
from dynarag_jax.policy.thoughts import ThoughtRule, ThoughtState

__all__ = [
    "Grammar",
    "GrammarState",
    "Spelling",
    "advance",
    "allowed",
    "along",
    "biased",
    "build_choices",
    "build_grammar",
    "find_spelling",
    "leaning",
    "read_list",
    "start",
]

_ID, _MORE, _STOP, _WORD, _COMPLETES = 1, 2, 4, 8, 16
START, END = 0, 1
_NOTHING = (-1, END, 0, 0, 0)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["arcs", "first_arc", "arc_count", "order", "first_token", "thought", "bias"],
    meta_fields=["width", "id_position", "max_ids", "min_ids"],
)
@dataclass(frozen=True)
class Grammar:
    """The automaton's tables; state 0 is the start, state 1 the end.

    Ids have *places*: their order by spelling, in which the ids that begin alike, and so the ids
    that can still be completed from a state, stand side by side.

    Attributes:
      arcs: [E + A, 5], the arcs of a state one after the other, then A rows of nothing. Of each:
        its token; the state it leads to; the first place and the last + 1 of the ids one of which
        must be free to take it (equal where none need be); its purpose as bits, which say that it
        lies on the way to an id (1), to one more id (2), to the end of the list (4), to ``None``
        or another text of its own (8), and that it completes the one id of its places (16).
      first_arc, arc_count: [S], where a state's arcs begin and how many they are.
      order: [I], the id (from 0) at each place.
      first_token: [I] each id's first token, the opening left out, for listwise supervision; where
        ids take several tokens, some share it.
      width: A.
      id_position: place of that token in a list, in its first id.
      max_ids, min_ids: longest and shortest list.
      thought: what stands before a list; None where nothing does.
      bias: [2], what is added to the scores of ending a list behind a passage, and of the empty
        list; None adds nothing.
    """

    arcs: jax.Array
    first_arc: jax.Array
    arc_count: jax.Array
    order: jax.Array
    first_token: jax.Array
    width: int
    id_position: int
    max_ids: int
    min_ids: int
    thought: ThoughtRule | None = None
    bias: jax.Array | None = None


class _Builder:
    """Lays paths of tokens as arcs between states."""

    def __init__(self) -> None:
        self.arcs: list[dict[int, list[int]]] = [{}, {}]  # state -> token -> [state, id, purpose]
        self.goals = {END}

    def new_state(self) -> int:
        self.arcs.append({})
        return len(self.arcs) - 1

    def path(
        self, at: int, tokens: Sequence[int], goal: int | None, purpose: int, mark: int = -1
    ) -> int:
        """Lay ``tokens`` from state ``at`` to ``goal`` (None: a state of its own); return the end.

        ``mark`` is the place of the id that the first arc completes.
        """
        for place, token in enumerate(tokens):
            target = goal if place == len(tokens) - 1 else None
            arc = self.arcs[at].get(token)
            if arc is None:
                arc = [self.new_state() if target is None else target, mark, 0]
                self.arcs[at][token] = arc
            elif (
                arc[1] != mark
                or target not in (None, arc[0])
                # Only a text of its own, before which nothing is written, may go on through a
                # meeting point.
                or (target is None and arc[0] in self.goals and purpose != _WORD)
            ):
                raise InputError(
                    "the tokenizer spells two different lists with the same tokens, so lists "
                    "cannot be told apart"
                )
            arc[2] |= purpose
            at, mark = arc[0], -1
        return at

    def tables(self, spans: dict[int, tuple[int, int]]) -> dict[str, Any]:
        """The fields of ``Grammar`` that states and arcs decide."""
        counts = np.array([len(row) for row in self.arcs], np.int32)
        width = int(counts.max())
        rows = []
        for row in self.arcs:
            for token, (state, mark, purpose) in sorted(row.items()):
                low, high = spans.get(state, (0, 0)) if purpose & _ID else (0, 0)
                if mark >= 0:
                    low, high, purpose = mark, mark + 1, purpose | _COMPLETES
                rows.append((token, state, low, high, purpose))
        # A step reads A rows from a state's first arc on: there must be as many behind the last.
        rows += [_NOTHING] * width
        return {
            "arcs": jnp.asarray(rows, jnp.int32),
            "first_arc": jnp.asarray(np.cumsum(counts) - counts, jnp.int32),
            "arc_count": jnp.asarray(counts),
            "width": width,
        }


def build_grammar(spelling: Spelling, max_ids: int | None = None, min_ids: int = 0) -> Grammar:
    """Lay the automaton of a spelling out as tables.

    Args:
      max_ids: longest list; None means as many as there are ids.
      min_ids: shortest list; above 0, ``None`` is not in the grammar unless no passage is shown.

    Raises:
      InputError: the limits make no sense, or two spellings cannot be told apart.
    """
    n = len(spelling.ids)
    max_ids = n if max_ids is None else max_ids
    if not 0 <= min_ids <= max_ids or not 1 <= max_ids <= n:
        raise InputError(
            f"list lengths from {min_ids} to {max_ids} among {n} ids: need 0 <= shortest <= "
            f"longest and 1 <= longest <= {n}"
        )
    build = _Builder()
    root = build.new_state() if spelling.opening else START
    build.goals.add(root)
    build.path(START, spelling.opening, root, _ID)
    build.path(START, [*spelling.none, spelling.end], END, _WORD)
    order = sorted(range(n), key=lambda i: spelling.ids[i])
    spans: dict[int, tuple[int, int]] = {}
    leaves = []
    for place, i in enumerate(order):
        at = root
        for token in spelling.ids[i]:
            at = build.path(at, [token], None, _ID)
            # Ids that begin alike are neighbors: the span grows by one place at a time.
            spans[at] = (spans.get(at, (place, 0))[0], place + 1)
        leaves.append(at)
    for place, leaf in enumerate(leaves):
        build.path(leaf, spelling.between, root, _MORE, mark=place)
        build.path(leaf, [*spelling.closing, spelling.end], END, _STOP, mark=place)
    at = START
    for token in spelling.opening:
        at = build.arcs[at][token][0]
        spans[at] = (0, n)
    return Grammar(
        **build.tables(spans),
        order=jnp.asarray(order, jnp.int32),
        first_token=jnp.asarray([t[0] for t in spelling.ids], jnp.int32),
        id_position=len(spelling.opening),
        max_ids=max_ids,
        min_ids=min_ids,
        thought=thoughts.thought_rule(spelling.thought) if spelling.thought else None,
    )


def build_choices(choices: Sequence[Sequence[int]], end: int) -> Grammar:
    """The automaton of a closed set: exactly one of ``choices``, then ``end``.

    Choices may begin alike, and one may go on where another ends. How many passages a prompt shows
    does not matter to it.

    Args:
      choices: tokens of each choice, without the end.

    Raises:
      InputError: there are no choices, one is empty or holds the end, or two are the same tokens.
    """
    words = [tuple(choice) for choice in choices]
    if not words or not all(words):
        raise InputError("a closed set needs at least one choice, and every choice a token")
    if len(set(words)) < len(words):
        raise InputError("two choices of a closed set are the same tokens: cannot tell them apart")
    if any(end in word for word in words):
        raise InputError("a choice of a closed set holds the end-of-text token")
    build = _Builder()
    for word in words:
        build.path(START, [*word, end], END, _WORD)
    nothing = jnp.zeros(1, jnp.int32)
    return Grammar(
        **build.tables({}),
        order=nothing, first_token=nothing, id_position=0, max_ids=1, min_ids=0,
    )  # fmt: skip


class GrammarState(NamedTuple):
    """Where each branch stands in its list."""

    state: jax.Array
    """[...] int32"""
    used: jax.Array
    """[..., I] bool, the ids written so far, by place"""
    written: jax.Array
    """[...] int32, how many they are"""
    thought: ThoughtState | None = None
    """where it stands in its thought, if there is one"""


def start(grammar: Grammar, shape: tuple[int, ...]) -> GrammarState:
    """The state before the first token, for branches of this shape."""
    return GrammarState(
        jnp.full(shape, START, jnp.int32),
        jnp.zeros((*shape, grammar.order.shape[0]), bool),
        jnp.zeros(shape, jnp.int32),
        thoughts.start(grammar.thought, shape) if grammar.thought else None,
    )


def _arcs(grammar: Grammar, state: jax.Array) -> list[jax.Array]:
    """The columns of ``Grammar.arcs``, [..., A] each, for the arcs of states [...].

    Beyond a state's own arcs the token is -1 and the purpose 0.
    """
    place = jnp.arange(grammar.width)
    rows = grammar.arcs[grammar.first_arc[state][..., None] + place]
    real = place < grammar.arc_count[state][..., None]
    return [jnp.where(real, rows[..., i], nothing) for i, nothing in enumerate(_NOTHING)]


def allowed(grammar: Grammar, at: GrammarState, n: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The tokens that may come next; from every one of them the list can be brought to its end.

    Args:
      at: states of shape [...].
      n: [...] (broadcastable), how many passages each prompt shows.

    Returns:
      tokens [..., A] and mask [..., A]; where the mask is false the token means nothing. At the
      end of a list nothing is allowed; nor where a thought is free (``thoughts.is_free``), whose
      next token is not one of a few.
    """
    n = jnp.broadcast_to(n, at.state.shape)
    token, _, low, high, purpose = _arcs(grammar, at.state)
    free = (grammar.order < n[..., None]) & ~at.used
    # Free ids before each place: there is one among an arc's places where the count grows across
    # them. An id ends only if it is free itself, though it may lead on: 1 to 10 when 1 is used.
    before = jnp.cumsum(jnp.pad(free, [(0, 0)] * at.state.ndim + [(1, 0)]), axis=-1)
    among = jnp.take_along_axis(before, high, axis=-1) - jnp.take_along_axis(before, low, axis=-1)
    completing = (purpose & _COMPLETES) > 0
    ends = (among > 0) | ~completing
    count = at.written[..., None] + completing
    left = before[..., -1:] - completing
    shortest = jnp.minimum(grammar.min_ids, n)[..., None]
    mask = ((purpose & _ID) > 0) & (among > 0)
    mask |= ((purpose & _MORE) > 0) & ends & (left > 0) & (count < grammar.max_ids)
    mask |= ((purpose & _STOP) > 0) & ends & (count >= shortest)
    mask |= ((purpose & _WORD) > 0) & (count == 0) & (shortest == 0)
    if grammar.thought is not None and at.thought is not None:
        over = thoughts.is_over(grammar.thought, at.thought)
        due = ~over & ~thoughts.is_free(at.thought)
        first = jnp.arange(grammar.width) == 0
        mask = jnp.where(over[..., None], mask, due[..., None] & first)
        closing = thoughts.next_closing(grammar.thought, at.thought)[..., None]
        token = jnp.where(over[..., None], token, closing)
    return token, mask


def biased(grammar: Grammar, bias: ListBias) -> Grammar:
    """The grammar with a bias on ending lists; without one, as it is."""
    numbers = jnp.asarray([bias.stop, bias.empty], jnp.float32) if bias else None
    return replace(grammar, bias=numbers)


def leaning(grammar: Grammar, at: GrammarState) -> jax.Array:
    """What the bias adds to the scores of the tokens [..., A] of ``allowed``.

    It is added where ending a list parts from going on with it. Tokens behind that have no
    alternative, so that each list gets it once.
    """
    assert grammar.bias is not None
    purpose = _arcs(grammar, at.state)[4]
    stops = ((purpose & _STOP) > 0) & ((purpose & _MORE) == 0)
    empty = ((purpose & _WORD) > 0) & ((purpose & _ID) == 0)
    return jnp.where(stops, grammar.bias[0], 0.0) + jnp.where(empty, grammar.bias[1], 0.0)


def advance(grammar: Grammar, at: GrammarState, token: jax.Array) -> GrammarState:
    """The states after ``token`` [...]; a token without an arc leads to the end."""
    tokens, target, low, _, purpose = _arcs(grammar, at.state)
    match = (tokens == token[..., None]) & (tokens >= 0)
    state = jnp.where(match.any(-1), jnp.max(jnp.where(match, target, 0), axis=-1), END)
    completes = match & ((purpose & _COMPLETES) > 0)
    completed = jnp.max(jnp.where(completes, low, -1), axis=-1)
    used = at.used | (jnp.arange(at.used.shape[-1]) == completed[..., None])
    after = GrammarState(state, used, at.written + (completed >= 0))
    if grammar.thought is None or at.thought is None:
        return after
    over = thoughts.is_over(grammar.thought, at.thought)
    then = thoughts.advance(grammar.thought, at.thought, token)
    return GrammarState(
        jnp.where(over, state, at.state),
        jnp.where(over[..., None], used, at.used),
        jnp.where(over, after.written, at.written),
        then,
    )


def along(grammar: Grammar, branches: jax.Array, n: jax.Array) -> tuple[jax.Array, ...]:
    """What the grammar allowed at every position of given lists.

    Args:
      branches: [B, N, R] tokens of lists.
      n: [B] passages shown.

    Returns:
      tokens and mask, [B, N, R, A]; of a grammar with a bias also what it adds.
    """

    def step(at: GrammarState, token: jax.Array) -> tuple[GrammarState, Any]:
        choices = allowed(grammar, at, n[:, None])
        if grammar.bias is not None:
            choices = (*choices, leaning(grammar, at))
        return advance(grammar, at, token), choices

    tokens = jnp.moveaxis(branches, -1, 0)
    _, found = jax.lax.scan(step, start(grammar, branches.shape[:2]), tokens)
    return tuple(jnp.moveaxis(x, 0, 2) for x in found)
