"""Terms: what each counts, and that totals and counts of parts add up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.objectives.terms import (
    Dpo,
    ListMle,
    Objectives,
    PromptNll,
    Scores,
    Term,
    TokenNll,
)

B, N, R, P, I = 4, 2, 3, 4, 5  # noqa: E741


def make_scores(seed=0):
    rng = np.random.default_rng(seed)
    lengths = np.array([[3, 2], [1, 0], [2, 3], [0, 0]])
    relevance = np.zeros((B, I), np.float32)
    relevance[0, [3, 1]] = [2, 1]
    return Scores(
        free_logps=jnp.asarray(-rng.uniform(0.1, 3, (B, N, R))),
        policy_logps=jnp.asarray(-rng.uniform(0.1, 3, (B, N, R))),
        token_mask=jnp.arange(R) < lengths[..., None],
        supervised=jnp.array([[1.0, 0.0], [0.5, 1.0], [0.0, 0.0], [1.0, 1.0]]),
        preferred=jnp.array([True, False, True, False]),
        reference=jnp.asarray(-rng.uniform(1, 5, (B, N))),
        prompt_logps=jnp.asarray(-rng.uniform(0.1, 3, (B, P - 1))),
        prompt_mask=jnp.arange(1, P) < jnp.array([4, 2, 3, 1])[:, None],
        id_scores=jnp.asarray(rng.normal(size=(B, I))),
        relevance=jnp.asarray(relevance),
        shown=jnp.arange(I) < jnp.array([5, 0, 4, 0])[:, None],
    )


def test_token_nll_weighs_branches_and_divides_by_their_tokens():
    scores = make_scores()
    value = jax.jit(TokenNll())(scores)
    free = np.asarray(scores.free_logps)
    assert value.total == pytest.approx(-free[0, 0].sum() - 0.5 * free[1, 0, 0], rel=1e-5)
    assert value.count == pytest.approx(3 + 0.5)


def test_prompt_nll_counts_the_prompts_of_supervised_rows():
    scores = make_scores()
    value = jax.jit(PromptNll())(scores)
    logps = np.asarray(scores.prompt_logps)
    # Row 2 is sampled, not supervised; row 3's prompt has a single token, which nothing predicts.
    assert value.total == pytest.approx(-logps[0].sum() - logps[1, 0], rel=1e-5)
    assert value.count == 4


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
    mask, logps = np.asarray(scores.token_mask), np.asarray(scores.policy_logps)
    sums = np.where(mask, logps, 0).sum(-1)
    rewards = 0.5 * (sums - np.asarray(scores.reference))
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
    spoiled = scores._replace(policy_logps=scores.policy_logps.at[1].set(-jnp.inf))

    def total(free, scores):
        return Dpo(weight=1.0)(scores._replace(policy_logps=free)).total

    value, gradient = jax.jit(jax.value_and_grad(total))(spoiled.policy_logps, spoiled)
    assert value == pytest.approx(float(jax.jit(total)(scores.policy_logps, scores)))
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[1].any()


@pytest.mark.parametrize(
    "term",
    [TokenNll(), PromptNll(), ListMle(), Dpo(chosen_nll=1.0)],
    ids=lambda t: type(t).__name__,
)
def test_halves_of_a_batch_add_up_to_the_whole(term):
    scores = make_scores()
    term = jax.jit(term)
    whole = term(scores)
    halves = [term(jax.tree.map(lambda x, s=s: x[s], scores)) for s in (slice(0, 2), slice(2, 4))]
    added = jax.tree.map(lambda a, b: a + b, *halves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, added)


def test_only_terms_of_nonzero_weight_are_active():
    assert set(Objectives().active()) == {"nll"}
    chosen = Objectives(nll=TokenNll(weight=0.0), dpo=Dpo(weight=1.0), listwise=ListMle(weight=0.1))
    assert set(chosen.active()) == {"listwise", "dpo"}


def test_a_term_without_a_formula_says_so():
    with pytest.raises(TypeError, match="Term does not say how"):
        Term()(make_scores())
