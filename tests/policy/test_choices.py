"""Closed sets of labels, and lists over five hundred ids."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.policy import grammar as grammars
from dynarag_jax.policy.grammar import Spelling, build_choices, build_grammar, read_list
from dynarag_jax.policy.model import label_grammar
from dynarag_jax.prompts import PromptConfig, answer_tokens, decode_answer

END = 9


def language(grammar, n=0, end=END, longest=12):
    """All token sequences of an automaton, by walking every arc it allows."""
    found: set[tuple[int, ...]] = set()
    going: list[Any] = [((), grammars.start(grammar, ()))]
    while going:
        tokens, at = going.pop()
        assert len(tokens) < longest
        choices, mask = grammars.allowed(grammar, at, jnp.int32(n))
        for token in np.asarray(choices)[np.asarray(mask)].tolist():
            if token == end:
                found.add((*tokens, token))
            else:
                after = grammars.advance(grammar, at, jnp.int32(token))
                going.append(((*tokens, token), after))
    return found


@pytest.mark.parametrize(
    "words",
    [[(1,)], [(1,), (2,), (3,)], [(1,), (1, 2), (1, 2, 1), (2, 1)], [(4, 5, 6), (4, 5, 7), (4,)]],
)
def test_a_closed_set_is_exactly_its_choices(words):
    for n in (0, 3):
        assert language(build_choices(words, END), n) == {(*word, END) for word in words}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs at least one choice"),
        ([(1,), ()], "every choice a token"),
        ([(1, 2), (2,), (1, 2)], "the same tokens"),
        ([(1, END)], "holds the end-of-text token"),
    ],
)
def test_closed_sets_that_cannot_be_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        build_choices(words, END)


FEVER = ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO")


def test_labels_in_the_tokens_of_real_tokenizers(family):
    """A tokenizer that restores the labels spells them as in training; another one is refused."""
    name, tokenizer = family
    prompts = PromptConfig(labels=FEVER)
    spelled = [answer_tokens(tokenizer, label, 50) for label in FEVER]
    if [decode_answer(tokenizer, tokens) for tokens in spelled] != list(FEVER):
        assert not name.startswith(("byte-bpe", "llama", "qwen"))
        with pytest.raises(InputError, match="'SUPPORTS' cannot be written"):
            label_grammar(tokenizer, prompts)
        return
    longest, grammar = label_grammar(tokenizer, prompts)
    assert longest == max(map(len, spelled))
    assert language(grammar, end=tokenizer.eos_token_id, longest=longest) == set(
        map(tuple, spelled)
    )


# ---------------------------------------------------------------------------- many ids

MANY = Spelling(
    opening=(20,),
    ids=tuple(tuple(1 + int(c) for c in str(i)) for i in range(1, 501)),
    between=(21, 22, 20), closing=(21,), none=(30,), end=31,
)  # fmt: skip
"""Ids to 500 in single digits: 1 begins 10 to 19 and 100 to 199."""


@pytest.mark.parametrize(
    ("max_ids", "min_ids"), [pytest.param(500, 0, marks=pytest.mark.slow), (15, 3)]
)
def test_no_walk_over_five_hundred_ids_meets_a_dead_end(max_ids, min_ids):
    """Every allowed token, taken at random, leads to a list within the most tokens it may take."""
    rows = 64
    grammar = build_grammar(MANY, max_ids, min_ids)
    rng = np.random.default_rng(0)
    n: Any = np.concatenate([np.arange(0, 24), rng.integers(24, 501, rows - 24)]).astype(np.int32)
    longest = MANY.longest(max_ids)

    @jax.jit
    def walk(key):
        def move(at, key):
            choices, mask = grammars.allowed(grammar, at, n)
            stuck = ~mask.any(-1) & (at.state != grammars.END)
            # Rather on than to an end, so that walks are long.
            ends = choices == MANY.end
            weight = jnp.where(mask, jnp.where(ends, -5.0, 0.0), -jnp.inf)
            arc = jax.random.categorical(key, jnp.where(mask.any(-1, keepdims=True), weight, 0.0))
            token = jnp.take_along_axis(choices, arc[:, None], axis=-1)[:, 0]
            token = jnp.where(mask.any(-1), token, 0)
            return grammars.advance(grammar, at, token), (token, stuck)

        at, (tokens, stuck) = jax.lax.scan(
            move, grammars.start(grammar, (rows,)), jax.random.split(key, longest)
        )
        return at, tokens.T, stuck

    sizes = []
    for seed in range(2):
        at, tokens, stuck = walk(jax.random.key(seed))
        assert not np.asarray(stuck).any()
        assert (np.asarray(at.state) == grammars.END).all(), "a list was not at its end in time"
        for row, shown in zip(np.asarray(tokens).tolist(), n.tolist(), strict=True):
            ids = read_list(MANY, row)  # raises unless every token is in place and no id repeats
            assert all(i <= shown for i in ids)
            assert min(min_ids, shown) <= len(ids) <= max_ids
            sizes.append(len(ids))
    assert max(sizes) == min(max_ids, max(sizes))
    assert max(sizes) > 10


def test_tables_for_five_hundred_ids_are_small():
    """Arcs, not states times arcs: ids of one token each would need a row of 500 at every state."""
    words = Spelling((20,), tuple((50 + i,) for i in range(500)), (21, 20), (21,), (30,), 31)
    for spelling in (MANY, words):
        grammar = build_grammar(spelling)
        assert sum(x.nbytes for x in jax.tree.leaves(grammar)) < 100_000
    assert [*itertools.islice(np.asarray(grammar.order), 3)] == [0, 1, 2]
