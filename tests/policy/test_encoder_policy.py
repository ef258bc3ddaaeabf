"""The encoder policy as a distribution over lists: enumeration, symmetry, padding, objectives."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynarag_jax.errors import InputError
from dynarag_jax.models.config import is_parameter
from dynarag_jax.models.encoder_parts import EncoderConfig
from dynarag_jax.models.list_head import (
    ListHeadConfig,
    init_list_head,
    remember,
    step_scores,
)
from dynarag_jax.models.packed import Room
from dynarag_jax.models.pairs import PairBatch, pairs_with_chosen
from dynarag_jax.objectives.terms import (
    Dpo,
    Grpo,
    LossInputs,
    PlackettLuce,
    Rloo,
    SimPo,
    TokenNll,
)
from dynarag_jax.policy.encoder_policy import (
    CandidateBatch,
    EncoderPolicyConfig,
    chance_of,
    count_policy_parameters,
    list_logps,
    policy_table,
    step_of,
    trunk_of,
    vectors_of,
)

ENCODER = EncoderConfig(vocab=40, width=12, layers=2, heads=3, mlp=16, positions=48)
HEAD = ListHeadConfig(width=8, layers=2, steps=2, heads=2, mlp=12, vectors=12, retriever=True)
VECTORS = EncoderPolicyConfig(encoder=ENCODER, head=HEAD, pieces=16, max_list=4)
PLAIN = dataclasses.replace(VECTORS, head=ListHeadConfig(layers=0, vectors=12))
INSIDE = dataclasses.replace(VECTORS, interaction=True)
AGAIN = dataclasses.replace(VECTORS, reencode=3)
SOME = dataclasses.replace(AGAIN, reread=2)
VARIANTS = pytest.mark.parametrize(
    "cfg",
    [
        pytest.param(VECTORS, id="by itself"),
        pytest.param(PLAIN, id="plain", marks=pytest.mark.slow),
        pytest.param(INSIDE, id="interaction"),
        pytest.param(AGAIN, id="reencode", marks=pytest.mark.slow),  # as reread, of all
        pytest.param(SOME, id="reread"),
    ],
)


@functools.cache
def params_of(cfg, seed=0):
    """Parameters of which none is at its start of zero or one."""
    rng = np.random.default_rng(seed)

    def one(p):
        start = 1.0 if p.scale is None else 0.0
        return jnp.asarray(start + rng.normal(size=p.shape) * ((p.scale or 0) + 0.3), jnp.float32)

    return jax.tree.map(one, policy_table(cfg), is_leaf=is_parameter)


def pairs_of(rng, b, n, missing=0):
    """Pairs of word pieces [CLS] question [SEP] passage [SEP], of random lengths."""
    tokens, types = np.zeros((2, b, n, 16), np.int32)
    lengths, second = np.zeros((2, b, n), np.int32)
    for i, j in itertools.product(range(b), range(n - missing)):
        q, p = rng.integers(2, 4), rng.integers(1, 8)
        row = [1, *rng.integers(3, 40, q), 2, *rng.integers(3, 40, p), 2]
        tokens[i, j, : len(row)] = row
        types[i, j, q + 2 : len(row)] = 1
        lengths[i, j], second[i, j] = len(row), q + 2
    return PairBatch(*map(jnp.asarray, (tokens, lengths, types, second)))


def candidates_of(cfg, n, seed=0, b=1):
    rng = np.random.default_rng(seed)
    retriever = jnp.asarray(rng.normal(size=(b, n, 3)), jnp.float32)
    where = jnp.ones((b, n), bool)
    if cfg.reencode or cfg.interaction:
        return CandidateBatch(pairs_of(rng, b, n), None, None, where, retriever)
    vectors = jnp.asarray(rng.normal(size=(b, n, 12)), jnp.float32)
    scores = jnp.asarray(2 * rng.normal(size=(b, n)), jnp.float32)
    return CandidateBatch(None, vectors, scores, where, retriever)


def every_list(n, longest):
    return [
        p for k in range(min(n, longest) + 1) for p in itertools.permutations(range(1, n + 1), k)
    ]


def packed(lists, r):
    """Lists of one question as tokens [1, L, R] and lengths [1, L]."""
    tokens = np.zeros((1, len(lists), r), np.int32)
    for i, one in enumerate(lists):
        tokens[0, i, : len(one)] = one
    return jnp.asarray(tokens), jnp.asarray([[len(one) + 1 for one in lists]])


# Compiled once a shape: op by op these tests would take minutes.
jitted = jax.jit(list_logps, static_argnums=0)


def logps_of(cfg, params, candidates, lists, r=None):
    tokens, lengths = packed(lists, r or max(map(len, lists)) + 1)
    return jitted(cfg, params, candidates, tokens, lengths)


@VARIANTS
@pytest.mark.parametrize("longest", [2, 4])
def test_the_probabilities_of_all_lists_sum_to_one(cfg, longest):
    cfg = dataclasses.replace(cfg, max_list=longest)
    lists = every_list(4, longest)
    steps = logps_of(cfg, params_of(cfg), candidates_of(cfg, 4), lists, r=5).steps
    whole = np.asarray(steps, np.float64).sum(-1)
    assert len(lists) == {2: 17, 4: 65}[longest]
    assert np.exp(whole).sum() == pytest.approx(1, abs=1e-5)
    assert np.exp(whole).max() < 0.9  # no single list has it all


@pytest.mark.slow  # 500 small programs
def test_later_steps_read_the_best_of_the_first_again():
    n, params = 5, params_of(AGAIN)
    candidates = candidates_of(AGAIN, n, seed=3)
    assert SOME.reread == 2
    tokens = jnp.asarray([[[4, 2]]])
    first = step_of(AGAIN, params, candidates, None, jnp.zeros((1, 1, 0), jnp.int32)).scores[0, 0]
    best = np.argsort(-np.asarray(first[1:]))[:2]
    # By hand: vectors of the question alone, and of the best those behind what was chosen.
    vectors, scores = (np.array(x[0]) for x in vectors_of(AGAIN, params, candidates.pairs))
    pairs = pairs_with_chosen(candidates.pairs, tokens, AGAIN.reencode, ENCODER.positions)
    again, anew = (np.array(x[0]) for x in vectors_of(AGAIN, params, pairs))
    assert np.abs(again[best] - vectors[best]).min(-1).max() > 1e-3
    vectors[best], scores[best] = again[best], anew[best]
    memory = remember(
        HEAD, params["head"], vectors[None], jnp.asarray(scores)[None], candidates.where,
        candidates.retriever,
    )  # fmt: skip
    chosen = jnp.zeros((1, 1, n + 1), bool).at[0, 0, jnp.asarray([2, 4])].set(True)
    expected = step_scores(HEAD, params["head"], memory, chosen)
    shared = trunk_of(SOME, params, candidates)
    found = step_of(SOME, params, candidates, shared, tokens)
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)
    whole = step_of(AGAIN, params, candidates, None, tokens)
    assert np.abs(found.scores - whole.scores).max() > 1e-3
    # Where all are among the best, it is reading all of them.
    every = dataclasses.replace(SOME, reread=n)
    assert trunk_of(every, params, candidates) is None
    with pytest.raises(InputError, match="needs the passages, not their vectors"):
        trunk_of(SOME, params, candidates._replace(pairs=None))
    with pytest.raises(InputError, match="reread = 2 is of a policy that reads again"):
        dataclasses.replace(VECTORS, reread=2)


def moved(candidates, order):
    """The candidates in another order."""

    def take(x):
        return None if x is None else jax.tree.map(lambda a: a[:, order], x)

    return CandidateBatch(*(take(x) for x in candidates))


@VARIANTS
@settings(max_examples=8)
@given(order=st.permutations(range(5)), seed=st.integers(0, 99))
def test_permuting_candidates_permutes_the_lists(cfg, order, seed):
    params, candidates = params_of(cfg), candidates_of(cfg, 5, seed)
    rng = np.random.default_rng(seed)
    lists = [tuple(rng.permutation(5)[:k] + 1) for k in (0, 1, 2, 4)]
    place = {old + 1: new + 1 for new, old in enumerate(order)}
    renamed = [tuple(place[i] for i in one) for one in lists]
    before = logps_of(cfg, params, candidates, lists)
    after = logps_of(cfg, params, moved(candidates, np.array(order)), renamed)
    np.testing.assert_allclose(after.steps, before.steps, atol=2e-4)
    np.testing.assert_allclose(after.first, before.first[:, np.array(order)], atol=2e-4)


def padded(candidates, more):
    """The candidates and ``more`` that do not exist, with garbage in their places."""

    def pad(x, name):
        if x is None:
            return None
        if name == "pairs":
            wide = [(0, 0), (0, more)]
            return jax.tree.map(lambda a: jnp.pad(a, wide + [(0, 0)] * (a.ndim - 2)), x)
        fill = False if x.dtype == bool else 7.0
        return jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)

    return CandidateBatch(*(pad(x, name) for name, x in candidates._asdict().items()))


@VARIANTS
def test_padding_changes_nothing(cfg):
    params, candidates = params_of(cfg), candidates_of(cfg, 4)
    lists = every_list(4, 2)
    plain = logps_of(cfg, params, candidates, lists)
    wide = logps_of(cfg, params, padded(candidates, 5), lists, r=5)
    np.testing.assert_allclose(wide.steps[..., :3], plain.steps, atol=2e-5)
    np.testing.assert_array_equal(wide.steps[..., 3:], 0)
    np.testing.assert_allclose(wide.first[:, :4], plain.first, atol=2e-5)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("cfg", [SOME, VECTORS], ids=["reread", "by itself"])
def test_pairs_without_padding_between_them_change_nothing(cfg, rows):
    """Neither lists, of which each step reads again what was chosen, nor gradients."""
    rng = np.random.default_rng(3)
    pairs = pairs_of(rng, 2, 5, missing=1)
    where = pairs.lengths > 0
    retriever = jnp.asarray(rng.normal(size=(2, 5, 3)), jnp.float32)
    lists = jnp.asarray([[[1, 3, 0], [2, 0, 0]], [[4, 0, 0], [0, 0, 0]]])
    lengths = jnp.asarray([[3, 2], [2, 1]])
    # All pairs of a question with two passages put into each.
    most = int(pairs.lengths.sum(1).max()) + 4 * 2 * (cfg.reencode + 1)

    def total(params, room):
        read = CandidateBatch(pairs._replace(room=room), None, None, where, retriever)
        found = list_logps(cfg, params, read, lists, lengths)
        return found.steps.sum() + (found.first * where).sum(), found.steps

    params = params_of(cfg)
    run = jax.jit(jax.value_and_grad(total, has_aux=True), static_argnums=1)
    (_, plain), gradients = run(params, None)
    (_, ours), own = run(params, Room(rows, rows * most))
    np.testing.assert_allclose(ours, plain, atol=1e-4)
    for one, other in zip(jax.tree.leaves(own), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * max(1, np.abs(other).max()))


@VARIANTS
def test_what_the_policy_never_writes_has_no_probability(cfg):
    candidates = padded(candidates_of(cfg, 3), 1)
    cfg = dataclasses.replace(cfg, max_list=2)
    lists = [(1, 1), (4,), (5,), (1, 2, 3), (2, 1)]
    steps = logps_of(cfg, params_of(cfg), candidates, lists).steps[0]
    assert steps[0, 1] == steps[1, 0] == steps[2, 0] == steps[3, 2] == -math.inf
    # At the longest list only stop is left.
    assert np.isfinite(steps[4, :3]).all()
    assert steps[4, 2] == 0


@pytest.mark.parametrize("n", [1, 500])
def test_one_candidate_and_five_hundred(n):
    candidates = candidates_of(VECTORS, n)
    lists = [(), (n,)] if n == 1 else [(), (500,), (1, 250, 500, 3)]
    steps = np.asarray(logps_of(VECTORS, params_of(VECTORS), candidates, lists).steps)
    assert np.isfinite(steps).all()
    assert (steps <= 0).all()
    if n == 1:
        assert np.exp(steps.sum(-1)).sum() == pytest.approx(1, abs=1e-6)


def test_an_untrained_head_ranks_as_the_cross_encoder_does():
    cfg = dataclasses.replace(VECTORS, head=dataclasses.replace(HEAD, retriever=False))
    head = init_list_head(cfg.head, jax.random.key(3))
    candidates = candidates_of(cfg, 6)
    first = logps_of(cfg, {"encoder": {}, "head": head}, candidates, [()]).first
    np.testing.assert_allclose(first, candidates.scores, atol=1e-6)


def test_the_plain_head_is_plackett_luce_over_the_scores_and_a_threshold():
    params = params_of(PLAIN)
    candidates = candidates_of(PLAIN, 3)
    scores = np.asarray(candidates.scores[0], np.float64)
    stop = float(params["head"]["stop_bias"])
    weights = np.exp(scores)
    expected = [
        weights[1] / (weights.sum() + np.exp(stop)),
        weights[0] / (weights[0] + weights[2] + np.exp(stop)),
        np.exp(stop) / (weights[2] + np.exp(stop)),
    ]
    steps = logps_of(PLAIN, params, candidates, [(2, 1)]).steps[0, 0]
    np.testing.assert_allclose(np.exp(steps), expected, rtol=1e-5)


# ---------------------------------------------------------------------------- objectives


def inputs_of(cfg, params, candidates, lists, r, **given):
    """What objectives read, from a forward pass over given lists."""
    tokens, lengths = packed(lists, r)
    logps = list_logps(cfg, params, candidates, tokens, lengths).steps
    zeros = jnp.zeros(logps.shape)
    base = {
        "unconstrained_logps": logps,
        "constrained_logps": logps,
        "token_mask": jnp.arange(r) < lengths[..., None],
        "supervised": jnp.ones(lengths.shape),
        "preferred": jnp.ones(1, bool),
        "reference": zeros,
        "behavior": zeros,
        "rewards": jnp.zeros(lengths.shape),
        "counts": jnp.zeros(lengths.shape),
        "prompt_logps": None,
        "prompt_mask": jnp.zeros((1, 0), bool),
        "id_scores": None,
        "relevance": jnp.zeros((1, 4)),
        "shown": jnp.ones((1, 4), bool),
    }
    return LossInputs(**(base | given))


def by_hand(params, candidates, one, cfg):
    """The log-probability of one list, from the scores of its steps one after another."""
    memory = remember(
        cfg.head, params["head"], candidates.vectors, candidates.scores, candidates.where,
        candidates.retriever,
    )  # fmt: skip
    total, taken = 0.0, []
    for token in [*one, 0]:
        chosen = jnp.zeros((1, 1, 5), bool)
        for i in taken:
            chosen = chosen.at[0, 0, i].set(True)
        scores = step_scores(cfg.head, params["head"], memory, chosen)[0, 0]
        left = [i for i in range(5) if i not in taken] if len(taken) < cfg.max_list else [0]
        total += scores[token] - jax.nn.logsumexp(scores[jnp.array(left)])
        taken.append(token)
    return total


TERMS = {
    "nll": (TokenNll(weight=1.0), {}),
    "dpo": (Dpo(weight=1.0, beta=0.7), {"supervised": jnp.zeros((1, 3))}),
    "simpo": (SimPo(weight=1.0), {"supervised": jnp.zeros((1, 3))}),
    "plackett_luce": (
        PlackettLuce(weight=1.0),
        {"rewards": jnp.array([[1.0, 0.1, 0.5]]), "counts": jnp.ones((1, 3))},
    ),
    "rloo": (
        Rloo(weight=1.0),
        {"rewards": jnp.array([[1.0, 0.1, 0.5]]), "counts": jnp.array([[2.0, 1.0, 1.0]])},
    ),
    "grpo": (
        Grpo(weight=1.0),
        {"rewards": jnp.array([[1.0, 0.1, 0.5]]), "counts": jnp.array([[2.0, 1.0, 1.0]])},
    ),
}


@pytest.mark.slow  # compiles for long
def test_gradients_of_objectives_are_those_of_lists_worked_out_one_by_one():
    lists, r = [(2, 1), (), (3, 1, 4)], 4
    cfg = dataclasses.replace(VECTORS, head=dataclasses.replace(HEAD, layers=1, steps=1))
    params, candidates = {"head": params_of(cfg, 5)["head"]}, candidates_of(VECTORS, 4)
    behavior = logps_of(cfg, params, candidates, lists, r).steps

    def values(inputs):
        found = []
        for term, given_ in TERMS.values():
            value = term(inputs._replace(behavior=behavior, **given_))
            found.append(value.total / value.count)
        return jnp.stack(found)

    def ours(params):
        return values(inputs_of(cfg, params, candidates, lists, r))

    def enumerated(params):
        # The same terms on log-probabilities of whole lists, worked out step after step: what a
        # list's changes by stands at its first step.
        inputs = inputs_of(cfg, params, candidates, lists, r)
        whole = jnp.stack([by_hand(params, candidates, one, cfg) for one in lists])
        constant = jax.lax.stop_gradient(inputs.constrained_logps)
        changed = (whole - jax.lax.stop_gradient(whole))[None, :, None]
        first = jnp.arange(r) == 0
        logps = jnp.where(inputs.token_mask, constant + jnp.where(first, changed, 0.0), 0.0)
        return values(inputs._replace(constrained_logps=logps, unconstrained_logps=logps))

    one, other = (jax.jit(jax.jacrev(f))(params) for f in (ours, enumerated))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)
    for i, name in enumerate(TERMS):
        assert max(float(jnp.abs(x[i]).max()) for x in jax.tree.leaves(one)) > 1e-4, name


IN_ANY_ORDER = pytest.mark.parametrize(
    "cfg", [VECTORS, PLAIN, INSIDE], ids=["by itself", "plain", "interaction"]
)
in_sets = jax.jit(list_logps, static_argnums=(0, 5))


@IN_ANY_ORDER
@pytest.mark.parametrize("longest", [3, 4])
def test_a_set_is_as_likely_as_all_its_orders_together(cfg, longest):
    cfg = dataclasses.replace(cfg, max_list=longest)
    params, candidates = params_of(cfg), candidates_of(cfg, 4, b=1)
    lists = every_list(4, longest)
    tokens, lengths = packed(lists, longest + 1)
    found = in_sets(cfg, params, candidates, tokens, lengths, True)
    each = np.exp(np.asarray(found.steps, np.float64).sum(-1)[0])
    for one, whole in zip(lists, np.exp(np.asarray(found.sets[0])), strict=True):
        orders = [p for p, other in zip(each, lists, strict=True) if set(other) == set(one)]
        assert len(orders) == math.factorial(len(one))
        assert whole == pytest.approx(sum(orders), rel=2e-4)


@pytest.mark.slow  # compiles for long
def test_the_gradient_of_a_set_is_that_of_its_orders():
    cfg = dataclasses.replace(VECTORS, head=dataclasses.replace(HEAD, layers=1, steps=1))
    params, candidates = {"head": params_of(cfg, 5)["head"]}, candidates_of(VECTORS, 4)
    # The second list is shorter than there is room for, the third is none.
    lists = [(4, 1, 2), (3,), ()]
    tokens, lengths = packed(lists, 4)
    lengths = lengths.at[0, 2].set(0)

    def ours(params):
        sets = list_logps(cfg, params, candidates, tokens, lengths, True).sets[0]
        return sets[0] + 2 * sets[1] + 4 * sets[2]

    def enumerated(params):
        orders = [*itertools.permutations(lists[0]), lists[1]]
        every, their = packed(orders, 4)
        steps = list_logps(cfg, params, candidates, every, their).steps[0].sum(-1)
        return jax.nn.logsumexp(steps[:6]) + 2 * steps[6]

    one, other = (jax.jit(jax.value_and_grad(f))(params) for f in (ours, enumerated))
    assert float(jnp.abs(other[0])) > 0.1
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


@VARIANTS
def test_the_chance_of_what_may_follow_is_that_of_each_together(cfg):
    params, candidates = params_of(cfg), candidates_of(cfg, 4)
    chosen = jnp.asarray([[[3, 1, 0], [0, 0, 0]]])
    following = jnp.zeros((1, 2, 5), bool).at[0, 0, jnp.array([0, 4])].set(True)
    following = following.at[0, 1, jnp.array([1, 3])].set(True)
    found = jax.jit(chance_of, static_argnums=0)(cfg, params, candidates, chosen, following)[0]
    lists = [(3, 1), (3, 1, 4), (1,), (3,)]
    steps = np.exp(np.asarray(logps_of(cfg, params, candidates, lists, 4).steps[0], np.float64))
    assert float(jnp.exp(found[0])) == pytest.approx(steps[0, 2] + steps[1, 2], rel=1e-3)
    assert float(jnp.exp(found[1])) == pytest.approx(steps[2, 0] + steps[3, 0], rel=1e-3)


def test_a_state_is_read_alike_whatever_it_is_padded_to():
    params, candidates = params_of(AGAIN), candidates_of(AGAIN, 4)
    following = jnp.zeros((1, 2, 5), bool).at[0, :, jnp.array([0, 4])].set(True)
    found = [
        jax.jit(chance_of, static_argnums=0)(
            AGAIN, params, candidates, jnp.asarray([[[3, 0, 0][:k], [0, 0, 0][:k]]]), following
        )
        for k in (1, 3)
    ]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
    nothing = jnp.zeros((1, 2, 0), jnp.int32)
    begun = jax.jit(chance_of, static_argnums=0)(AGAIN, params, candidates, nothing, following)
    np.testing.assert_allclose(begun[0, 1], found[0][0, 1], rtol=1e-5)
    assert float(jnp.abs(begun[0, 0] - found[0][0, 0])) > 1e-3


def test_what_has_no_sets_is_refused():
    tokens, lengths = packed([(1, 2)], 3)
    with pytest.raises(InputError, match="reencode"):
        list_logps(AGAIN, params_of(AGAIN), candidates_of(AGAIN, 4), tokens, lengths, True)
    tokens, lengths = packed([tuple(range(1, 10))], 10)
    cfg = dataclasses.replace(VECTORS, max_list=9)
    with pytest.raises(InputError, match="up to 9 passages where 8 are the most"):
        list_logps(cfg, params_of(cfg), candidates_of(cfg, 9), tokens, lengths, True)


@pytest.mark.slow
def test_the_expected_reward_over_all_lists_has_the_policy_gradient():
    """RLOO over a group is unbiased; enumerated, the gradient of the expectation itself."""
    cfg = dataclasses.replace(VECTORS, max_list=2)
    params, candidates = params_of(cfg, 2), candidates_of(cfg, 3)
    lists = every_list(3, 2)
    rewards = jnp.asarray(np.random.default_rng(0).uniform(size=len(lists)))

    def expected(params):
        whole = logps_of(cfg, params, candidates, lists).steps.sum(-1)[0]
        return (jnp.exp(whole) * rewards).sum()

    def score(params):
        whole = logps_of(cfg, params, candidates, lists).steps.sum(-1)[0]
        weight = jax.lax.stop_gradient(jnp.exp(whole))
        mean = (weight * rewards).sum()
        return (weight * (rewards - mean) * whole).sum()

    one, other = (jax.jit(jax.grad(f))({"head": params["head"]}) for f in (expected, score))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5)


# ---------------------------------------------------------------------------- configuration


def test_wrong_configurations_are_refused():
    with pytest.raises(InputError, match="vectors of 384 numbers, and the encoder's have 12"):
        EncoderPolicyConfig(encoder=ENCODER, head=ListHeadConfig())
    with pytest.raises(InputError, match="pieces = 49 must lie between 8 and the encoder's 48"):
        dataclasses.replace(VECTORS, pieces=49)
    with pytest.raises(InputError, match="max_list = 0"):
        dataclasses.replace(VECTORS, max_list=0)
    with pytest.raises(ValueError, match="plain head"):
        ListHeadConfig(layers=0, pair_score=False)
    with pytest.raises(ValueError, match="multiple of heads"):
        ListHeadConfig(width=10, heads=4)
    with pytest.raises(InputError, match="needs the passages, not their vectors"):
        logps_of(AGAIN, params_of(AGAIN), candidates_of(VECTORS, 3), [(1,)])


def test_parameters_are_counted():
    counts = count_policy_parameters(PLAIN)
    assert counts["head"] == 1
    assert counts["encoder"] == sum(x.size for x in jax.tree.leaves(params_of(PLAIN)["encoder"]))
