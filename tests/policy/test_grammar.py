"""The automaton accepts exactly the lists, whatever their spelling."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import assume, example, given, settings

from dynarag_jax.errors import InputError
from dynarag_jax.policy import grammar as grammars
from dynarag_jax.policy.grammar import Spelling, build_grammar, read_list

IDS, ROWS, LENGTH = 4, 65, 26

END = 40
CHARACTERS = Spelling(
    opening=(10,), ids=((1,), (1, 2), (2,), (1, 2, 1)), between=(20, 21, 10), closing=(20,),
    none=(30,), end=END,
)  # fmt: skip
"""Ids that begin alike, as in [1], [12], [2], [121] spelled by single characters."""


def tokens_of(low, high):
    return st.lists(st.integers(low, high), min_size=1, max_size=3).map(tuple)


@st.composite
def spellings(draw):
    ids = draw(st.lists(tokens_of(1, 3), min_size=IDS, max_size=IDS, unique=True))
    return Spelling(
        opening=draw(st.sampled_from([(), (10,), (10, 11)])),
        ids=tuple(ids),
        between=draw(st.sampled_from([(20,), (21,), (20, 21), (20, 10), (20, 20)])),
        closing=draw(st.sampled_from([(), (20,), (22,), (20, 22), (20, 20)])),
        none=draw(st.sampled_from([(30,), (30, 31), (10, 30), (10,), (10, 11, 30)])),
        end=END,
    )


def lists(n, max_ids, min_ids):
    """Every list of the grammar, by the definition."""
    shortest = min(min_ids, n)
    for size in range(shortest, min(max_ids, n) + 1):
        yield from itertools.permutations(range(1, n + 1), size)


@jax.jit
def walk(grammar, tokens, n):
    """States after each token, and what is allowed after the last."""
    at = grammars.start(grammar, tokens.shape[:1])
    for place in range(tokens.shape[1]):
        at = grammars.advance(grammar, at, tokens[:, place])
    return at, grammars.allowed(grammar, at, n)


@jax.jit
def along(grammar, branches, n):
    return grammars.along(grammar, branches[None], n[None])


def permitted(grammar, branches, n):
    """The set of tokens allowed at every position of every branch."""
    array = np.zeros((ROWS, LENGTH), np.int32)
    for row, tokens in enumerate(branches):
        array[row, : len(tokens)] = tokens
    tokens, mask = (np.asarray(x[0]) for x in along(grammar, array, np.int32(n)))
    return [
        [set(tokens[i, t][mask[i, t]].tolist()) for t in range(LENGTH)]
        for i in range(len(branches))
    ]


@settings(max_examples=60)
@given(
    spelling=spellings(),
    n=st.integers(0, IDS),
    limits=st.sampled_from([(IDS, 0), (2, 0), (3, 2)]),
)
@example(spelling=CHARACTERS, n=4, limits=(4, 0))
@example(spelling=CHARACTERS, n=3, limits=(3, 2))
def test_allowed_tokens_are_exactly_those_that_go_on_to_a_list(pad, spelling, n, limits):
    max_ids, min_ids = limits
    try:
        grammar = build_grammar(spelling, max_ids, min_ids)
    except InputError:
        # Refused only where a list that goes on and one that ends have begun with the same tokens.
        assert spelling.closing[: len(spelling.between)] == spelling.between
        assume(False)
        raise
    language = [tuple(spelling.spell(ids)) for ids in lists(n, max_ids, min_ids)]
    assert len(set(language)) == len(language)
    follow: dict[tuple, set] = {}
    for tokens in language:
        for place, token in enumerate(tokens):
            follow.setdefault(tokens[:place], set()).add(token)
    for tokens, sets in zip(language, permitted(pad(grammar, 40, 8), language, n), strict=True):
        for place, found in enumerate(sets):
            assert found == (follow[tokens[:place]] if place < len(tokens) else set())


@given(spelling=spellings())
def test_lists_read_back_and_longest_is_the_longest(spelling):
    for limit in range(1, IDS + 1):
        language = list(lists(IDS, limit, 0))
        spelled = [spelling.spell(ids) for ids in language]
        assert [read_list(spelling, tokens) for tokens in spelled] == language
        assert max(map(len, spelled)) == spelling.longest(limit)


@given(
    spelling=spellings(),
    ids=st.lists(st.integers(1, IDS), unique=True),
    cut=st.integers(0, 20),
    replaced=st.sampled_from([(), (1,), (20,), (END,), (1, 20), (99,)]),
)
def test_spoiled_lists_are_refused_or_are_other_lists(spelling, ids, cut, replaced):
    tokens = spelling.spell(ids)
    spoiled = [*tokens[:cut], *replaced, *tokens[cut + 1 :]]
    try:
        read = read_list(spelling, spoiled)
    except ValueError:
        return
    # What is read stands in the tokens up to the first end, to the last token.
    assert spelling.spell(read) == spoiled[: spoiled.index(END) + 1]
    assert len(set(read)) == len(read)


def test_repeated_ids_are_not_read():
    tokens = [10, 2, 20, 21, 10, 2, 20, END]
    with pytest.raises(ValueError, match="not a list"):
        read_list(CHARACTERS, tokens)


def test_a_used_id_leads_on_to_longer_ones_but_does_not_end_again():
    """After ``[1], [`` a 1 may only go on to 12 and 121."""
    grammar = build_grammar(CHARACTERS)
    _, (tokens, mask) = walk(grammar, np.array([[10, 1, 20, 21, 10, 1]]), np.int32(4))
    assert set(np.asarray(tokens)[np.asarray(mask)].tolist()) == {2}


def test_a_forbidden_token_leads_to_the_end_where_nothing_is_allowed():
    grammar = build_grammar(CHARACTERS)
    at, (_, mask) = walk(grammar, np.array([[99], [-1]]), np.array([4, 4]))
    assert not mask.any()
    assert at.written.tolist() == [0, 0]


@pytest.mark.parametrize(("max_ids", "min_ids"), [(0, 0), (5, 0), (2, 3), (3, -1)])
def test_limits_without_sense_are_refused(max_ids, min_ids):
    with pytest.raises(InputError, match="need 0 <= shortest <= longest"):
        build_grammar(CHARACTERS, max_ids, min_ids)


def test_spellings_that_cannot_be_told_apart_are_refused():
    same = Spelling((), ((1,), (2,)), between=(5,), closing=(5,), none=(7,), end=9)
    with pytest.raises(InputError, match="cannot be told apart"):
        build_grammar(same)
