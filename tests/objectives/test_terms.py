"""Terms: what each counts, and that totals and counts of parts add up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynarag_jax.errors import InputError
from dynarag_jax.objectives.terms import (
    Dpo,
    Dro,
    Grpo,
    Hinge,
    Ipo,
    LambdaLoss,
    LipoLambda,
    ListMle,
    ListNet,
    LossInputs,
    Objectives,
    PlackettLuce,
    PromptNll,
    RankNet,
    Rloo,
    RobustDpo,
    SetNll,
    SimPo,
    Term,
    TokenNll,
)

B, N, R, P, I = 4, 2, 3, 4, 5  # noqa: E741


def make_scores(seed=0):
    rng = np.random.default_rng(seed)
    lengths = np.array([[3, 2], [1, 0], [2, 3], [0, 0]])
    relevance = np.zeros((B, I), np.float32)
    relevance[0, [3, 1]] = [2, 1]
    return LossInputs(
        unconstrained_logps=jnp.asarray(-rng.uniform(0.1, 3, (B, N, R))),
        constrained_logps=jnp.asarray(-rng.uniform(0.1, 3, (B, N, R))),
        token_mask=jnp.arange(R) < lengths[..., None],
        supervised=jnp.array([[1.0, 0.0], [0.5, 1.0], [0.0, 0.0], [1.0, 1.0]]),
        preferred=jnp.array([True, False, True, False]),
        reference=jnp.asarray(-rng.uniform(0.1, 3, (B, N, R))),
        behavior=jnp.asarray(-rng.uniform(0.1, 3, (B, N, R))),
        rewards=jnp.asarray(rng.uniform(0, 1, (B, N))),
        counts=jnp.array([[2.0, 3.0], [0.0, 0.0], [1.0, 1.0], [4.0, 0.0]]),
        prompt_logps=jnp.asarray(-rng.uniform(0.1, 3, (B, P - 1))),
        prompt_mask=jnp.arange(1, P) < jnp.array([4, 2, 3, 1])[:, None],
        id_scores=jnp.asarray(rng.normal(size=(B, I))),
        relevance=jnp.asarray(relevance),
        shown=jnp.arange(I) < jnp.array([5, 0, 4, 0])[:, None],
        step_rewards=jnp.asarray(rng.uniform(-1, 1, (B, N, R))),
        step_ends=jnp.asarray(rng.random((B, N, R)) < 0.7),
        set_logps=jnp.asarray(-rng.uniform(0.1, 3, (B, N))),
    )


def test_token_nll_weighs_branches_and_divides_by_their_tokens():
    scores = make_scores()
    value = jax.jit(TokenNll())(scores)
    free = np.asarray(scores.unconstrained_logps)
    assert value.total == pytest.approx(-free[0, 0].sum() - 0.5 * free[1, 0, 0], rel=1e-5)
    assert value.count == pytest.approx(3 + 0.5)


def test_set_nll_weighs_lists_and_divides_by_their_steps():
    scores = make_scores()
    value = jax.jit(SetNll())(scores)
    whole = np.asarray(scores.set_logps)
    # Of row 1 the second list, of row 3 both have no step: they are no lists.
    assert value.total == pytest.approx(-whole[0, 0] - 0.5 * whole[1, 0], rel=1e-5)
    assert value.count == pytest.approx(3 + 0.5)


def test_an_ungraded_list_net_takes_all_listed_ids_alike():
    scores = make_scores()
    logps = np.asarray(jax.nn.log_softmax(scores.id_scores[0]))
    graded, alike = (jax.jit(ListNet(graded=g))(scores) for g in (True, False))
    assert graded.total == pytest.approx(-(2 * logps[3] + logps[1]) / 3, rel=1e-5)
    assert alike.total == pytest.approx(-(logps[3] + logps[1]) / 2, rel=1e-5)


def test_prompt_nll_counts_the_prompts_of_supervised_rows():
    scores = make_scores()
    value = jax.jit(PromptNll())(scores)
    logps = np.asarray(scores.prompt_logps)
    # Row 2 is sampled, not supervised; row 3's prompt has a single token, which nothing predicts.
    assert value.total == pytest.approx(-logps[0].sum() - logps[1, 0], rel=1e-5)
    assert value.count == 4


def test_prompt_nll_weighs_tokens_said_again():
    again = jnp.zeros((B, P - 1), bool).at[0, 1:].set(True).at[2].set(True)
    scores = make_scores()._replace(prompt_again=again)
    value = jax.jit(PromptNll(again=5.0))(scores)
    logps = np.asarray(scores.prompt_logps)
    assert value.total == pytest.approx(
        -logps[0, 0] - 5 * logps[0, 1:].sum() - logps[1, 0], rel=1e-5
    )
    assert value.count == 1 + 5 * 2 + 1


@pytest.mark.parametrize("again", [-1.0, float("nan")])
def test_prompt_nll_refuses_a_weight_below_zero(again):
    with pytest.raises(InputError, match=r"PromptNll: again = .* must not be negative"):
        PromptNll(again=again)


def test_listwise_counts_supervised_rows_that_rank_something():
    scores = make_scores()
    value = jax.jit(ListMle())(scores)
    assert scores.id_scores is not None
    s = np.asarray(scores.id_scores[0], np.float64)
    first = np.log(np.exp(s).sum()) - s[3]
    second = np.log(np.exp(np.delete(s, 3)).sum()) - s[1]
    assert value.total == pytest.approx(first + second, rel=1e-5)
    assert value.count == 1


def test_dpo_counts_preferred_rows_and_reports_their_figures():
    scores = make_scores()
    value = jax.jit(Dpo(beta=0.5, chosen_nll=0.3))(scores)
    mask, logps = np.asarray(scores.token_mask), np.asarray(scores.constrained_logps)
    sums = np.where(mask, logps, 0).sum(-1)
    rewards = 0.5 * (sums - np.where(mask, scores.reference, 0).sum(-1))
    total, accuracy = 0.0, 0
    for row in (0, 2):
        margin = rewards[row, 0] - rewards[row, 1]
        total += np.log1p(np.exp(-margin)) - 0.3 * sums[row, 0] / mask[row, 0].sum()
        accuracy += margin > 0
    assert value.total == pytest.approx(total, rel=1e-5)
    assert value.count == 2
    assert value.figures["accuracy"] == accuracy
    assert value.figures["chosen_logp"] == pytest.approx(sums[[0, 2], 0].sum(), rel=1e-5)
    assert value.figures["margin"] == pytest.approx(
        (rewards[:, 0] - rewards[:, 1])[[0, 2]].sum(), rel=1e-5
    )


def test_rows_outside_the_grammar_do_not_touch_dpo_on_the_others():
    scores = make_scores()
    spoiled = scores._replace(constrained_logps=scores.constrained_logps.at[1].set(-jnp.inf))

    def total(free, scores):
        return Dpo(weight=1.0)(scores._replace(constrained_logps=free)).total

    value, gradient = jax.jit(jax.value_and_grad(total))(spoiled.constrained_logps, spoiled)
    assert value == pytest.approx(float(jax.jit(total)(scores.constrained_logps, scores)))
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[1].any()


def test_rloo_weighs_branches_by_their_samples_and_counts_groups():
    scores = make_scores()
    value = jax.jit(Rloo(kl=0.5, clip_low=9.0, clip_high=1e9))(scores)
    mask = np.asarray(scores.token_mask)
    logps, behavior, reference = (
        np.where(mask, x, 0).sum(-1)
        for x in (scores.constrained_logps, scores.behavior, scores.reference)
    )
    rewards = np.asarray(scores.rewards) - 0.5 * (behavior - reference)
    total = 0.0
    for row, counts in ((0, (2, 3)), (2, (1, 1))):  # row 3 is one branch sampled four times: tied
        samples = np.repeat(rewards[row], counts)
        ratios = np.repeat(np.exp(logps[row] - behavior[row]), counts)
        others = (samples.sum() - samples) / (len(samples) - 1)
        total += np.mean(-ratios * (samples - others))
    assert value.total == pytest.approx(total, rel=1e-4)
    assert value.count == 3
    assert value.figures["reward"] == pytest.approx(
        sum(np.average(scores.rewards[r], weights=scores.counts[r]) for r in (0, 2, 3)), rel=1e-5
    )


def test_grpo_clips_tokens_and_pulls_toward_the_reference():
    scores = make_scores()
    mask = np.asarray(scores.token_mask)
    logps, behavior, reference = (
        np.asarray(x, np.float64)
        for x in (scores.constrained_logps, scores.behavior, scores.reference)
    )
    kl = np.exp(reference - logps) - (reference - logps) - 1
    ratio = np.exp(logps - behavior)
    expected = dict.fromkeys(("sequence", "tokens", "none"), 0.0)
    tokens = 0
    for row, counts in ((0, (2, 3)), (2, (1, 1)), (3, (4, 0))):
        samples = np.repeat(np.asarray(scores.rewards)[row], counts)
        for branch, count in enumerate(counts):
            if not count:
                continue
            a = (float(scores.rewards[row, branch]) - samples.mean()) / (samples.std(ddof=1) + 1e-4)
            loss = -np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a) + 0.3 * kl
            mine = loss[row, branch][mask[row, branch]]
            size = max(len(mine), 1)
            expected["sequence"] += count / sum(counts) * mine.sum() / size
            expected["none"] += count / sum(counts) * mine.sum()
            expected["tokens"] += count * mine.sum()
            tokens += count * len(mine)
    for normalize, total in expected.items():
        value = jax.jit(Grpo(kl=0.3, normalize=normalize))(scores)
        assert value.total == pytest.approx(total, rel=1e-4), normalize
        assert value.count == (tokens if normalize == "tokens" else 3)


def test_dro_imitates_lists_by_their_share_in_the_answer():
    """w = c p^(1/T) / sum, loss = -sum w log pi(list); a row without any likelihood is none."""
    scores = make_scores()
    scores = scores._replace(rewards=scores.rewards.at[2].set(0.0))
    logps = np.where(scores.token_mask, scores.constrained_logps, 0).sum(-1)
    rewards = np.asarray(scores.rewards)
    for temperature in (1.0, 2.0):
        total, samples = 0.0, 0.0
        for row, counts in ((0, np.array([2, 3])), (3, np.array([4, 0]))):
            p = rewards[row] ** (1 / temperature)
            w = counts * p / (counts * p).sum()
            total -= (w * logps[row]).sum()
            each = np.repeat(p / (counts * p).sum(), counts)
            samples += 1 / (each**2).sum()
        value = Dro(temperature=temperature)(scores)
        assert value.total == pytest.approx(total, rel=1e-5) and value.count == 2
        assert value.figures["effective_samples"] == pytest.approx(samples, rel=1e-5)


TERMS = [
    TokenNll(), SetNll(), PromptNll(), ListMle(), ListNet(), RankNet(), LambdaLoss(),
    Dpo(chosen_nll=1.0), Dpo(label_smoothing=0.1, length_normalized=True), RobustDpo(), Hinge(),
    Ipo(), SimPo(), PlackettLuce(), LipoLambda(), Rloo(kl=0.1), Grpo(kl=0.1),
    Grpo(normalize="tokens"), Grpo(ratio="sequence", normalize="none", scale=False),
    Dro(temperature=2.0), Rloo(credit=0.7), Grpo(credit=1.0, normalize="none"),
]  # fmt: skip
EACH = pytest.mark.parametrize("term", TERMS, ids=lambda t: type(t).__name__)
JITTED = {id(term): jax.jit(term) for term in TERMS}
GRADIENTS = {
    id(term): jax.jit(
        jax.grad(
            lambda logps, scores, term=term: (
                term(
                    scores._replace(unconstrained_logps=logps[0], constrained_logps=logps[1])
                ).total
            )
        )
    )
    for term in TERMS
}


def test_every_term_of_the_configuration_is_tested_here():
    assert {type(t) for t in vars(Objectives()).values()} == {type(t) for t in TERMS}


@EACH
def test_halves_of_a_batch_add_up_to_the_whole(term):
    scores = make_scores()
    term = JITTED[id(term)]
    whole = term(scores)
    halves = [term(jax.tree.map(lambda x, s=s: x[s], scores)) for s in (slice(0, 2), slice(2, 4))]
    added = jax.tree.map(lambda a, b: a + b, *halves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, added)


def changed_where(condition, array, rng):
    """Other values, infinities among them, where nothing may be read."""
    noise = rng.choice([-np.inf, np.inf, 13.0, -7.5], array.shape)
    return jnp.where(condition, jnp.asarray(noise, array.dtype), array)


@EACH
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(B)))
def test_padding_masked_rows_and_their_order_change_nothing(term, seed, order):
    scores, rng = make_scores(seed), np.random.default_rng(seed)
    value = JITTED[id(term)](scores)
    assert np.isfinite(value.total)
    # Tokens of padding hold anything, and so do ids that are not shown.
    padding = ~scores.token_mask
    assert scores.id_scores is not None and scores.prompt_logps is not None
    other = scores._replace(
        unconstrained_logps=changed_where(padding, scores.unconstrained_logps, rng),
        constrained_logps=changed_where(padding, scores.constrained_logps, rng),
        reference=changed_where(padding, scores.reference, rng),
        behavior=changed_where(padding, scores.behavior, rng),
        prompt_logps=changed_where(~scores.prompt_mask, scores.prompt_logps, rng),
        id_scores=jnp.where(scores.shown, scores.id_scores, 50.0),
        rewards=jnp.where(scores.counts > 0, scores.rewards, 99.0),
        step_rewards=changed_where(padding | ~scores.step_ends, scores.step_rewards, rng),
        step_ends=scores.step_ends ^ padding,
        set_logps=changed_where(~scores.token_mask.any(-1), scores.set_logps, rng),
    )
    other = jax.tree.map(lambda x: x[np.array(order)], other)
    again = JITTED[id(term)](other)
    np.testing.assert_allclose(value.total, again.total, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(value.count, again.count, rtol=1e-5)
    logps = jnp.stack([other.unconstrained_logps, other.constrained_logps])
    gradient = np.asarray(GRADIENTS[id(term)](logps, other))
    assert np.isfinite(gradient).all()
    assert not gradient[:, np.asarray(~other.token_mask)].any()


@EACH
def test_a_batch_in_which_nothing_counts_gives_zero(term):
    scores = make_scores()
    nothing = scores._replace(
        supervised=0 * scores.supervised,
        preferred=scores.preferred & False,
        counts=0 * scores.counts,
        relevance=0 * scores.relevance,
    )
    value = JITTED[id(term)](nothing)
    assert value.total == 0 and value.count == 0
    assert all(not np.any(x) for x in value.figures.values())


def test_pairwise_and_ranked_terms_agree_on_who_is_preferred():
    """Two branches, the first rewarded better: Plackett-Luce is DPO, figures and all."""
    scores = make_scores()._replace(
        preferred=jnp.array([True, False, True, False]),
        rewards=jnp.tile(jnp.array([1.0, 0.5]), (B, 1)),
        counts=jnp.array([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]),
    )
    pair, ranked = Dpo(beta=0.3)(scores), PlackettLuce(beta=0.3)(scores)
    assert pair.total == pytest.approx(float(ranked.total), rel=1e-5)
    assert pair.count == ranked.count
    for name in ranked.figures:
        assert ranked.figures[name] == pytest.approx(float(pair.figures[name]), rel=1e-5), name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dpo(beta=0.0), "Dpo: beta = 0.0 must be positive"),
        (lambda: Dpo(label_smoothing=0.5), "label_smoothing = 0.5 must lie in"),
        (lambda: RobustDpo(flipped=0.5), "flipped = 0.5 must lie in"),
        (lambda: PlackettLuce(beta=-1.0), "PlackettLuce: beta = -1.0"),
        (lambda: Grpo(kl=-0.1), "Grpo: kl = -0.1 must not be negative"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_terms_say_what_they_read():
    objectives = Objectives(
        grpo=Grpo(weight=1.0), rank_net=RankNet(weight=0.1), simpo=SimPo(weight=1.0)
    )
    assert objectives.reads("groups") == objectives.reads("behavior") == ["grpo"]
    assert objectives.reads("reference") == []  # GRPO without KL reads none
    assert objectives.reads("ids") == ["rank_net"]
    assert Objectives(grpo=Grpo(weight=1.0, kl=0.1)).reads("reference") == ["grpo"]
    assert Objectives(dpo=Dpo(weight=1.0)).reads("reference") == ["dpo"]


def test_only_terms_of_nonzero_weight_are_active():
    assert set(Objectives().active()) == {"nll"}
    chosen = Objectives(nll=TokenNll(weight=0.0), dpo=Dpo(weight=1.0), list_mle=ListMle(weight=0.1))
    assert set(chosen.active()) == {"list_mle", "dpo"}


def test_a_term_without_a_formula_says_so():
    with pytest.raises(TypeError, match="Term does not say how"):
        Term()(make_scores())
