"""DPO against its formula, and against the expression that TRL computes in PyTorch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dynarag_jax.objectives.preference import dpo_sigmoid


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


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_equals_trl_in_torch_with_gradients(beta):
    arrays = random_logps(seed=1)
    tensors: Any = [torch.tensor(x, requires_grad=True) for x in arrays]
    pi_w, pi_l, ref_w, ref_l = tensors
    # trl.DPOTrainer.dpo_loss, loss_type "sigmoid", no label smoothing.
    pi_logratios, ref_logratios = pi_w - pi_l, ref_w - ref_l
    losses = -torch.nn.functional.logsigmoid(beta * (pi_logratios - ref_logratios))
    losses.sum().backward()
    loss, gradient = jax.value_and_grad(
        lambda w, r: dpo_sigmoid(w, r, arrays[2], arrays[3], beta).loss.sum(), (0, 1)
    )(arrays[0], arrays[1])
    np.testing.assert_allclose(loss, losses.sum().item(), rtol=1e-5)
    np.testing.assert_allclose(gradient[0], pi_w.grad.numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient[1], pi_l.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_is_log_2_where_the_policy_is_the_reference():
    pi_w, pi_l, *_ = random_logps(seed=2)
    np.testing.assert_allclose(dpo_sigmoid(pi_w, pi_l, pi_w, pi_l, 0.3).loss, np.log(2), rtol=1e-6)


def test_margins_that_overflow_exp_stay_finite():
    far = jnp.array([-2000.0, 0.0])
    loss, gradient = jax.value_and_grad(
        lambda w: dpo_sigmoid(w, far[::-1], far * 0, far * 0, 1.0).loss.sum()
    )(far)
    assert loss == pytest.approx(2000)
    assert np.isfinite(gradient).all()
