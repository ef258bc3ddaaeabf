"""Thoughts before lists: spelled and read back, held to their limit, normalized with the lists."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.policy import thoughts
from dynarag_jax.policy.grammar import Spelling, build_grammar, read_list
from dynarag_jax.policy.logprobs import first_id_scores, token_logps
from dynarag_jax.policy.thoughts import ThoughtSpelling

END, NONE, CLOSE, BEHIND = 7, 6, 4, 5
CFG = DecoderConfig(vocab=8, width=16, layers=2, heads=2, kv_heads=1, head_size=8, mlp=24)


def lists_behind(end: tuple[int, ...], behind: tuple[int, ...], limit: int) -> Spelling:
    """Lists of ids 1 and 2 behind thoughts of tokens below 6 but 0, which is banned."""
    thought = ThoughtSpelling(end, behind, limit, banned=(0, END), vocab=7)
    return Spelling((), ((1,), (2,)), (3,), (), (NONE,), END, thought)


# ---------------------------------------------------------------------------- spelled and read


ENDS = st.lists(st.integers(1, 2), min_size=1, max_size=3).map(tuple)


@settings(max_examples=300, deadline=None)
@given(ENDS, st.integers(0, 2), st.integers(0, 3), st.lists(st.integers(1, 3), max_size=7))
def test_a_thought_is_read_as_it_was_spelled(end, behind, more, tokens):
    """Ends that overlap themselves among them; what holds its own end is refused."""
    spelling = ThoughtSpelling(end, (4,) * behind, len(end) + more, banned=(0,), vocab=9)
    kept = tokens[: spelling.limit]
    # The rule, worked out anew: the end stands where it is first complete, within the limit.
    written = [*kept, *end][: spelling.limit]
    ends = [i for i in range(len(written) + 1) if tuple(written[max(i - len(end), 0) : i]) == end]
    if ends and ends[0] < len(kept) + len(end):
        with pytest.raises(ValueError, match="holds what ends a thought"):
            spelling.spell(tokens)
        return
    whole, cut = spelling.spell(tokens)
    assert cut == (len(tokens) + len(end) > spelling.limit)
    assert whole[-len(end) - behind :] == [*end, *(4,) * behind]
    assert len(whole) <= spelling.longest
    for rest in ([], [1, 2], [*end]):
        assert spelling.split([*whole, *rest]) == (len(whole), cut)
    if not cut:
        assert spelling.thought(whole) == tokens


@pytest.mark.slow  # many small programs
@settings(max_examples=50, deadline=None)
@given(ENDS, st.integers(0, 2), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_the_automaton_writes_what_the_reader_reads(end, behind, more, seed):
    """Random free tokens, and what must follow them."""
    spelling = ThoughtSpelling(end, (4,) * behind, len(end) + more, banned=(0,), vocab=9)
    rule, rng = thoughts.thought_rule(spelling), np.random.default_rng(seed)
    with jax.disable_jit():
        at, written, free = thoughts.start(rule, ()), [], 0
        while not thoughts.is_over(rule, at):
            free += int(thoughts.is_free(at))
            forced = int(thoughts.next_closing(rule, at))
            token = int(rng.integers(1, 4)) if thoughts.is_free(at) else forced
            written.append(token)
            at = thoughts.advance(rule, at, jnp.int32(token))
            assert len(written) <= spelling.longest
    assert spelling.split([*written, 1]) == (len(written), spelling.split(written)[1])
    assert spelling.split(written)[0] == len(written)
    assert free <= spelling.limit
    branches = jnp.asarray([[[*written, *(1,) * (spelling.longest - len(written))]]])
    found = np.asarray(thoughts.free_positions(rule, branches))[0, 0]
    assert found[:free].all() and not found[free:].any()


def test_branches_that_end_within_their_thought_are_no_lists():
    spelling = lists_behind((CLOSE,), (BEHIND,), 3)
    assert read_list(spelling, [1, 1, CLOSE, BEHIND, 2, END]) == (2,)
    assert read_list(spelling, [1, 1, 1, CLOSE, BEHIND, NONE, END, 0, 0]) == ()
    for tokens in ([1, 1, END], [1, 1, 1, 2, END], [CLOSE, 2, END], [CLOSE], []):
        with pytest.raises(ValueError, match="without its end"):
            read_list(spelling, tokens)


# ---------------------------------------------------------------------------- probabilities


@pytest.fixture(scope="module")
def params():
    return decoder.init_params(CFG, jax.random.key(1))


SPELLINGS = {
    "a marker": lists_behind((CLOSE,), (), 2),
    "a marker and a line": lists_behind((CLOSE,), (BEHIND,), 2),
    "two words": lists_behind((CLOSE, CLOSE), (BEHIND,), 3),
}
FREE = range(1, 7)
LISTS: list[tuple[int, ...]] = [ids for k in range(3) for ids in itertools.permutations((1, 2), k)]


def every_thought(spelling: ThoughtSpelling) -> list[tuple[int, ...]]:
    """All thoughts, as branches have them: by the rule, token by token."""
    found, going = [], [()]
    while going:
        more: list[tuple[int, ...]] = []
        for written in going:
            size = len(spelling.end)
            if written[-size:] == spelling.end:
                found.append((*written, *spelling.behind))
            elif len(written) == spelling.limit:
                begun = max(i for i in range(size) if i == 0 or written[-i:] == spelling.end[:i])
                found.append((*written, *spelling.end[begun:], *spelling.behind))
            else:
                more += [(*written, token) for token in FREE]
        going = more
    return found


def scored(params, spelling: Spelling, branches: list[list[int]]) -> Any:
    """Log-probabilities of branches over one prompt, by the training forward."""
    size = spelling.longest(2)
    tokens: Any = np.zeros((1, len(branches), size), np.int32)
    for row, branch in enumerate(branches):
        tokens[0, row, : len(branch)] = branch

    @jax.jit
    def run(params, tokens):
        trunk, lengths = jnp.array([[5, 6, 2]]), jnp.array([3])
        _, hidden = decoder.trunk_and_branches(CFG, params, trunk, lengths, tokens)
        return token_logps(
            CFG, params, hidden, tokens, build_grammar(spelling), jnp.array([True]), jnp.array([2])
        )

    logps = run(params, tokens)
    real = np.arange(size) < np.array([len(b) for b in branches])[:, None]
    return [np.where(real, np.asarray(x)[0], 0) for x in (logps.unconstrained, logps.constrained)]


@pytest.mark.parametrize("name", SPELLINGS)
def test_thoughts_and_lists_are_one_distribution(params, name):
    """The probabilities of all thoughts with all lists add up to one; so do a thought's lists."""
    spelling = SPELLINGS[name]
    assert spelling.thought is not None
    every = every_thought(spelling.thought)
    assert len(set(every)) == len(every)
    branches = [spelling.spell(ids, thought) for thought in every for ids in LISTS]
    assert max(map(len, branches)) == spelling.longest(2)
    _, logps = scored(params, spelling, branches)
    total = np.exp(logps.sum(-1).astype(np.float64))
    assert total.sum() == pytest.approx(1, abs=1e-5)
    of_thought = np.array([math.fsum(total[i : i + 5]) for i in range(0, len(total), 5)])
    lengths = [len(thought) for thought in every for _ in LISTS]
    lists = [row[n:].sum() for row, n in zip(logps, lengths, strict=True)]
    for i, p in enumerate(of_thought):
        assert math.fsum(np.exp(lists[5 * i : 5 * i + 5])) == pytest.approx(1, abs=1e-5)
        assert p == pytest.approx(np.exp(logps[5 * i, : len(every[i])].sum()), rel=1e-4)


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_token_is_what_a_naive_reading_gives(params, name):
    """One forward pass a prefix, the softmax over what the rules leave, written out in numpy."""
    spelling = SPELLINGS[name]
    thought = spelling.thought
    assert thought is not None
    rng = np.random.default_rng(0)
    every = every_thought(thought)
    picked = [every[i] for i in rng.permutation(len(every))[:12]]
    branches = [spelling.spell(LISTS[i % 5], t) for i, t in enumerate(picked)]
    unconstrained, constrained = scored(params, spelling, branches)
    forward = jax.jit(
        lambda params, row: decoder.logits(
            CFG, params, decoder.prefill(CFG, params, row, jnp.array([row.shape[1]]))[0]
        )
    )
    for row, (branch, before) in enumerate(zip(branches, picked, strict=True)):
        padded = np.zeros(3 + spelling.longest(2), np.int32)
        padded[: 3 + len(branch)] = [5, 6, 2, *branch]
        scores = np.asarray(forward(params, padded[None]), np.float64)[0]
        count, cut = thought.split(branch)
        assert count == len(before)
        free = thought.limit if cut else count - len(thought.behind)
        for place, token in enumerate(branch):
            s = scores[2 + place]
            whole = s[token] - np.log(np.exp(s).sum())
            assert unconstrained[row, place] == pytest.approx(whole, abs=1e-5)
            if place < free:
                expected = s[token] - np.log(np.exp(s[1:7]).sum())
            elif place < count:
                expected = 0.0
            else:
                done = branch[count:place]
                used = [t for t in done if t in (1, 2)]
                left = [t for t in (1, 2) if t not in used]
                if not done:
                    allowed = [1, 2, NONE]
                elif done[-1] in (1, 2):
                    allowed = [END, *([3] if left else [])]
                else:
                    allowed = left if done[-1] == 3 else [END]
                expected = s[token] - np.log(np.exp(s[allowed]).sum())
            assert constrained[row, place] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow  # compiles for long
def test_what_no_thought_holds_is_impossible(params):
    spelling = SPELLINGS["a marker"]
    branches = [[0, CLOSE, 1, END], [END, 1, END], [1, 1, 1, 1, END], [CLOSE, 1, END]]
    _, logps = scored(params, spelling, branches)
    assert np.isneginf(logps.sum(-1)).tolist() == [True, True, True, False]


@pytest.mark.slow  # compiles for long
def test_listwise_supervision_looks_behind_the_thought(params):
    hidden = jax.random.normal(jax.random.key(0), (2, 1, 6, CFG.width))
    grammar = build_grammar(SPELLINGS["a marker"])
    plain = build_grammar(Spelling((), ((1,), (2,)), (3,), (), (NONE,), END))
    found = first_id_scores(CFG, params, hidden, grammar, jnp.array([2, 4]))
    for row, place in enumerate((2, 4)):
        expected = first_id_scores(CFG, params, hidden[row : row + 1, :, place:], plain)
        np.testing.assert_allclose(found[row], expected[0], rtol=1e-6)
