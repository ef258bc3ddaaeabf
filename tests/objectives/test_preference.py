"""Preference losses against their formulas; test_trl holds them against TRL."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.objectives.preference import dpo_robust, dpo_sigmoid, hinge, ipo, simpo


def random_logps(seed=0, size=6) -> Any:
    rng = np.random.default_rng(seed)
    return [rng.uniform(-30, -1, size).astype(np.float32) for _ in range(4)]


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_equals_the_papers_equation_7(beta):
    pi_w, pi_l, ref_w, ref_l = (x.astype(np.float64) for x in random_logps())
    out = dpo_sigmoid(*random_logps(), beta=beta)
    margin = beta * np.log(np.exp(pi_w) / np.exp(ref_w)) - beta * np.log(
        np.exp(pi_l) / np.exp(ref_l)
    )
    np.testing.assert_allclose(out.loss, -np.log(1 / (1 + np.exp(-margin))), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(out.chosen_reward, beta * (pi_w - ref_w), rtol=1e-5)
    np.testing.assert_allclose(out.rejected_reward, beta * (pi_l - ref_l), rtol=1e-5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_every_loss_equals_its_papers_formula():
    arrays = random_logps(seed=1)
    pi_w, pi_l, ref_w, ref_l = (x.astype(np.float64) for x in arrays)
    beta, e = 0.2, 0.3
    h = (pi_w - ref_w) - (pi_l - ref_l)
    right, wrong = -np.log(sigmoid(beta * h)), -np.log(sigmoid(-beta * h))
    found = {
        "conservative": dpo_sigmoid(*arrays, beta, e).loss,
        "robust": dpo_robust(*arrays, beta, e).loss,
        "hinge": hinge(*arrays, beta).loss,
        "ipo": ipo(*arrays, beta).loss,
        "simpo": simpo(arrays[0], arrays[1], beta, 0.7).loss,
    }
    expected = {
        "conservative": (1 - e) * right + e * wrong,
        "robust": ((1 - e) * right - e * wrong) / (1 - 2 * e),
        "hinge": np.maximum(0, 1 - beta * h),
        "ipo": (h - 1 / (2 * beta)) ** 2,
        "simpo": -np.log(sigmoid(beta * pi_w - beta * pi_l - 0.7)),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def test_robust_dpo_is_unbiased_where_preferences_are_flipped():
    """Its mean over flipped and unflipped labels is DPO's loss on the true ones."""
    w, l, rw, rl = random_logps(seed=3)  # noqa: E741
    e = 0.3
    kept, flipped = (dpo_robust(*x, 0.2, e).loss for x in ((w, l, rw, rl), (l, w, rl, rw)))
    clean = dpo_sigmoid(w, l, rw, rl, 0.2).loss
    np.testing.assert_allclose((1 - e) * kept + e * flipped, clean, rtol=1e-4, atol=1e-5)


def test_is_exactly_log_2_where_the_policy_is_the_reference():
    pi_w, pi_l, *_ = random_logps(seed=2)
    for e in (0.0, 0.2):
        loss = dpo_sigmoid(pi_w, pi_l, pi_w, pi_l, 0.3, e).loss
        assert (np.asarray(loss) == np.float32(np.log(2))).all()
    loss = dpo_robust(pi_w, pi_l, pi_w, pi_l, 0.3, 0.2).loss
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
    assert (np.asarray(hinge(pi_w, pi_l, pi_w, pi_l, 0.3).loss) == 1).all()


def test_margins_that_overflow_exp_stay_finite():
    far = jnp.array([-2000.0, 0.0])
    loss, gradient = jax.value_and_grad(
        lambda w: dpo_sigmoid(w, far[::-1], far * 0, far * 0, 1.0).loss.sum()
    )(far)
    assert loss == pytest.approx(2000)
    assert np.isfinite(gradient).all()
