"""The grammar of lists as a deterministic automaton over a tokenizer's tokens.

A list is ``None``, or ids ``[i]`` joined by ``, ``, each 1..n and none twice, then end of text.
``build_grammar`` spells this with any tokenizer: it finds how ids and separators come out as
tokens, checks that the pieces put together are the tokens of the whole text, and lays the result
out as small integer tables. ``allowed`` and ``advance`` run on those tables inside jit.

Letters: S states, A arcs of the busiest state, I ids, [...] any leading axes (questions, branches).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.prompts import Tokenizer, format_list
from dynarag_jax.records import valid_list


@dataclass(frozen=True)
class Spelling:
    """How a tokenizer spells lists: ``opening id (between id)* closing end``, or ``none end``.

    For ``[3], [1]`` in single characters: opening ``[``, ids ``3`` and ``1``, between ``], [`` and
    closing ``]``. Any of opening and closing may be empty.
    """

    opening: tuple[int, ...]
    ids: tuple[tuple[int, ...], ...]
    between: tuple[int, ...]
    closing: tuple[int, ...]
    none: tuple[int, ...]
    end: int

    def spell(self, ids: Sequence[int]) -> list[int]:
        """Tokens of a list of 1-based ids, end of text included."""
        if not ids:
            return [*self.none, self.end]
        joined = list(self.opening)
        for place, i in enumerate(ids):
            joined += (self.between if place else ()) + self.ids[i - 1]
        return [*joined, *self.closing, self.end]

    def longest(self, max_ids: int) -> int:
        """Most tokens that a list of at most ``max_ids`` ids takes, end of text included."""
        count = min(max_ids, len(self.ids))
        ids = sum(sorted(map(len, self.ids))[-count:]) + (count - 1) * len(self.between)
        return max(len(self.opening) + ids + len(self.closing), len(self.none)) + 1


def _common(sequences: Sequence[tuple[int, ...]]) -> int:
    """Length of the longest common prefix."""
    columns = itertools.takewhile(lambda c: len(set(c)) == 1, zip(*sequences, strict=False))
    return sum(1 for _ in columns)


def find_spelling(tokenizer: Tokenizer, ids: int) -> Spelling:
    """Find how ``tokenizer`` spells lists over ids 1..``ids``.

    The pieces are read off the tokens of whole lists, so that a constrained sample has the very
    tokens the tokenizer gives for its text. Where a tokenizer merges across pieces in a way that
    depends on the neighboring ids, each piece is encoded alone instead: another, equally valid
    spelling of the same text, up to spaces.

    Raises:
      InputError: the tokenizer has no end-of-text token, or cannot spell lists at all.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise InputError("the tokenizer has no end-of-text token; set its eos_token")

    def encode(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    none = encode("None")
    single = [encode(format_list([i])) for i in range(1, ids + 1)]
    for find in (_whole_spelling, _piecewise_spelling):
        spelling = find(encode, single, none, end)
        if spelling and _spells(tokenizer, spelling, ids):
            return spelling
    raise InputError(
        "the tokenizer cannot spell lists such as '[3], [1]': digits, brackets or 'None' are "
        "missing from its vocabulary, or are not restored when decoding"
    )


Tokens = tuple[int, ...]


def _bare(single: list[Tokens]) -> tuple[Tokens, tuple[Tokens, ...], Tokens]:
    """Split the spellings of ``[1]``, ``[2]``, ... into their common beginning, ids, common end."""
    if len(single) < 2:
        return (), tuple(single), ()
    opening = _common(single)
    rest = [s[opening:] for s in single]
    closing = _common([s[::-1] for s in rest])
    bodies = tuple(s[: len(s) - closing] for s in rest)
    if not all(bodies):
        return (), tuple(single), ()
    return single[0][:opening], bodies, rest[0][len(rest[0]) - closing :]


def _whole_spelling(
    encode: Callable[[str], Tokens], single: list[Tokens], none: Tokens, end: int
) -> Spelling | None:
    if len(single) < 2:
        return None
    prefix, bodies, suffix = _bare(single)
    pair = encode(format_list([1, 2]))
    start, stop = len(prefix + bodies[0]), len(pair) - len(bodies[1] + suffix)
    spelling = Spelling(prefix, bodies, pair[start:stop], suffix, none, end)
    n = len(single)
    probes = [[i, j] for i in range(1, n + 1) for j in {1 + i % n, 1 + (i * 7 + 3) % n} - {i}]
    probes += [list(range(1, n + 1))]
    agrees = all((*encode(format_list(p)), end) == tuple(spelling.spell(p)) for p in probes)
    return spelling if agrees and spelling.between else None


def _piecewise_spelling(
    encode: Callable[[str], Tokens], single: list[Tokens], none: Tokens, end: int
) -> Spelling | None:
    between = encode(", ")
    prefix, bodies, suffix = _bare(single)
    return Spelling(prefix, bodies, suffix + between + prefix, suffix, none, end)


def _spells(tokenizer: Tokenizer, spelling: Spelling, ids: int) -> bool:
    """Whether decoding the spelled tokens gives the text back, up to spaces."""
    if not spelling.none or len(set(spelling.ids)) != len(spelling.ids):
        return False
    squeeze = str.maketrans("", "", " ")
    for probe in ([], [1], [ids], list(range(1, ids + 1)), list(range(ids, 0, -1))):
        text = tokenizer.decode(spelling.spell(probe)[:-1])
        if text.translate(squeeze) != format_list(probe).translate(squeeze):
            return False
    return True


# ---------------------------------------------------------------------------- the automaton

_ID, _MORE, _STOP, _NONE = 1, 2, 4, 8
START, END = 0, 1


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["arc_token", "arc_state", "arc_id", "arc_purpose", "reach", "first_token"],
    meta_fields=["id_position", "max_ids", "min_ids"],
)
@dataclass(frozen=True)
class Grammar:
    """The automaton's tables; state 0 is the start, state 1 the end.

    Attributes:
      arc_token: [S, A] token of each arc, -1 where there is none.
      arc_state: [S, A] where it leads.
      arc_id: [S, A] the id (from 0) that is complete once this arc is taken, else -1.
      arc_purpose: [S, A] bits: an arc lies on the way to an id (1), to one more id (2), to the
        end of the list (4), to ``None`` (8).
      reach: [S, I] ids that can still be completed from a state without a separator.
      first_token: [I] each id's first token, the opening left out, for listwise supervision; where
        ids take several tokens, some share it.
      id_position: branch position of that token in a list's first id.
      max_ids, min_ids: longest and shortest list.
    """

    arc_token: jax.Array
    arc_state: jax.Array
    arc_id: jax.Array
    arc_purpose: jax.Array
    reach: jax.Array
    first_token: jax.Array
    id_position: int
    max_ids: int
    min_ids: int


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

        ``mark`` is the id that the first arc completes.
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
                # Only ``None``, before which nothing is written, may go on through a meeting point.
                or (target is None and arc[0] in self.goals and purpose != _NONE)
            ):
                raise InputError(
                    "the tokenizer spells two different lists with the same tokens, so lists "
                    "cannot be told apart"
                )
            arc[2] |= purpose
            at, mark = arc[0], -1
        return at


def build_grammar(spelling: Spelling, max_ids: int | None = None, min_ids: int = 0) -> Grammar:
    """Lay the automaton of a spelling out as tables.

    Args:
      max_ids: longest list; None means as many as there are ids.
      min_ids: shortest list; above 0, ``None`` is not in the grammar.

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
    build.path(START, [*spelling.none, spelling.end], END, _NONE)
    reach: dict[int, set[int]] = {}
    leaves = []
    for i, tokens in enumerate(spelling.ids):
        at = root
        for token in tokens:
            at = build.path(at, [token], None, _ID)
            reach.setdefault(at, set()).add(i)
        leaves.append(at)
    for i, leaf in enumerate(leaves):
        build.path(leaf, spelling.between, root, _MORE, mark=i)
        build.path(leaf, [*spelling.closing, spelling.end], END, _STOP, mark=i)
    at = START
    for token in spelling.opening:
        at = build.arcs[at][token][0]
        reach[at] = set(range(n))

    width = max(map(len, build.arcs))
    token_state_id = np.full((3, len(build.arcs), width), -1, np.int32)
    purposes = np.zeros((len(build.arcs), width), np.int32)
    for state, row in enumerate(build.arcs):
        for column, (token, (to, mark, purpose)) in enumerate(sorted(row.items())):
            token_state_id[:, state, column] = token, to, mark
            purposes[state, column] = purpose
    can = np.zeros((len(build.arcs), n), bool)
    for state, ids in reach.items():
        can[state, list(ids)] = True
    return Grammar(
        arc_token=jnp.asarray(token_state_id[0]),
        arc_state=jnp.asarray(token_state_id[1]),
        arc_id=jnp.asarray(token_state_id[2]),
        arc_purpose=jnp.asarray(purposes),
        reach=jnp.asarray(can),
        first_token=jnp.asarray([t[0] for t in spelling.ids], jnp.int32),
        id_position=len(spelling.opening),
        max_ids=max_ids,
        min_ids=min_ids,
    )


class GrammarState(NamedTuple):
    """Where each branch stands in its list."""

    state: jax.Array
    """[...] int32"""
    used: jax.Array
    """[..., I] bool, the ids written so far"""
    written: jax.Array
    """[...] int32, how many they are"""


def start(grammar: Grammar, shape: tuple[int, ...]) -> GrammarState:
    """The state before the first token, for branches of this shape."""
    return GrammarState(
        jnp.full(shape, START, jnp.int32),
        jnp.zeros((*shape, grammar.reach.shape[1]), bool),
        jnp.zeros(shape, jnp.int32),
    )


def allowed(grammar: Grammar, at: GrammarState, n: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The tokens that may come next.

    Args:
      at: states of shape [...].
      n: [...] (broadcastable), how many passages each prompt shows.

    Returns:
      tokens [..., A] and mask [..., A]; where the mask is false the token means nothing. At the
      end of a list nothing is allowed.
    """
    ids = grammar.reach.shape[1]
    n = jnp.broadcast_to(n, at.state.shape)
    free = (jnp.arange(ids) < n[..., None]) & ~at.used
    completing = grammar.arc_id[at.state] >= 0
    # An id may end here only if it is free: 1 is on the way to 10 even when it is used itself.
    ends = jnp.take_along_axis(free, jnp.maximum(grammar.arc_id[at.state], 0), axis=-1)
    ends |= ~completing
    count = at.written[..., None] + completing
    left = free.sum(-1)[..., None] - completing
    # Which states still lead to a free id, as a matrix product: [..., I] x [I, S].
    leads = jnp.einsum("...i,si->...s", free.astype(jnp.float32), grammar.reach.astype(jnp.float32))
    arc_state = jnp.maximum(grammar.arc_state[at.state], 0)
    leads = jnp.take_along_axis(leads, arc_state, axis=-1) > 0
    purpose = grammar.arc_purpose[at.state]
    shortest = jnp.minimum(grammar.min_ids, n)[..., None]
    mask = ((purpose & _ID) > 0) & leads
    mask |= ((purpose & _MORE) > 0) & ends & (left > 0) & (count < grammar.max_ids)
    mask |= ((purpose & _STOP) > 0) & ends & (count >= shortest)
    mask |= ((purpose & _NONE) > 0) & (count == 0) & (shortest == 0)
    return grammar.arc_token[at.state], mask


def advance(grammar: Grammar, at: GrammarState, token: jax.Array) -> GrammarState:
    """The states after ``token`` [...]; a token without an arc leads to the end."""
    arcs = (grammar.arc_token[at.state] == token[..., None]) & (token[..., None] >= 0)
    arc = jnp.argmax(arcs, axis=-1)
    known = arcs.any(-1)
    completed = jnp.where(known, grammar.arc_id[at.state, arc], -1)
    used = at.used | (jnp.arange(at.used.shape[-1]) == completed[..., None])
    return GrammarState(
        jnp.where(known, grammar.arc_state[at.state, arc], END), used, at.written + (completed >= 0)
    )


def along(grammar: Grammar, branches: jax.Array, n: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What the grammar allowed at every position of given lists.

    Args:
      branches: [B, N, R] tokens of lists.
      n: [B] passages shown.

    Returns:
      tokens and mask, [B, N, R, A].
    """

    def step(at: GrammarState, token: jax.Array) -> tuple[GrammarState, Any]:
        choices = allowed(grammar, at, n[:, None])
        return advance(grammar, at, token), choices

    tokens = jnp.moveaxis(branches, -1, 0)
    _, (choices, mask) = jax.lax.scan(step, start(grammar, branches.shape[:2]), tokens)
    return jnp.moveaxis(choices, 0, 2), jnp.moveaxis(mask, 0, 2)


def read_list(spelling: Spelling, tokens: Sequence[int]) -> tuple[int, ...]:
    """The 1-based ids of a list that ``Spelling.spell`` or the sampler wrote; drops padding.

    Raises:
      ValueError: the tokens are no list of this spelling.
    """
    tokens = list(tokens)
    if spelling.end not in tokens:
        raise ValueError(f"a list without its end: {tokens}")
    tokens = tokens[: tokens.index(spelling.end) + 1]
    if tokens == spelling.spell(()):
        return ()
    body = tokens[len(spelling.opening) : len(tokens) - 1 - len(spelling.closing)]
    place = {spelled: i for i, spelled in enumerate(spelling.ids, 1)}
    ids: list[int] = []
    while body:
        # The separator ends an id: the id is the spelling that the separator or nothing follows.
        for size in range(len(body), 0, -1):
            rest = body[size:]
            follows = not rest or tuple(rest[: len(spelling.between)]) == spelling.between
            if tuple(body[:size]) in place and follows:
                ids.append(place[tuple(body[:size])])
                body = rest[len(spelling.between) :]
                break
        else:
            raise ValueError(f"not a list of this spelling: {tokens}")
    if spelling.spell(ids) != tokens or valid_list(ids, len(spelling.ids)):
        raise ValueError(f"not a list of this spelling: {tokens}")
    return tuple(ids)
