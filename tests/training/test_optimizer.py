"""Schedules and AdamW by hand, and the decay of every rule."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.training.optimizer import OptimizerConfig, learning_rate, make_optimizer


def rates(steps=100, **settings):
    rate = learning_rate(OptimizerConfig(learning_rate=2.0, **settings), steps)
    return np.array(jax.vmap(rate)(jnp.arange(steps + 1)))


def test_cosine_rises_then_falls_to_its_end():
    values = rates(warmup=0.1, final=0.1)
    # Ten steps of warm-up from 1/11 of the peak, whose top the eleventh step has.
    np.testing.assert_allclose(values[:11], 2 * np.arange(1, 12) / 11, rtol=1e-5)
    for step in (10, 40, 99, 100):
        share = (step - 10) / 90
        expected = 2 * (0.9 * (1 + math.cos(math.pi * share)) / 2 + 0.1)
        assert values[step] == pytest.approx(expected, rel=1e-4)


def test_plateau_is_flat_then_falls_in_a_line():
    values = rates(schedule="plateau", warmup=0.05, tail=0.4)
    assert values[:6] == pytest.approx(2 * np.arange(1, 7) / 6)
    assert values[5:61] == pytest.approx(2.0)
    np.testing.assert_allclose(values[60:], 2 * (1 - np.arange(41) / 40), atol=1e-6)


def test_plateau_whose_tail_meets_the_warm_up_still_ends_at_zero():
    values = rates(schedule="plateau", warmup=0.5, tail=0.8)
    assert values.max() == pytest.approx(2.0)
    assert values[100] == pytest.approx(0.0, abs=1e-6)


def test_constant_and_no_warm_up():
    assert rates(schedule="constant", warmup=0.0) == pytest.approx(2.0)


PARAMS = {
    "query": np.linspace(-1, 1, 12).reshape(3, 4).astype(np.float32),
    "mlp_norm": np.array([1.0, 0.5], np.float32),
}


def gradients(step):
    rng = np.random.default_rng(step)
    return {name: rng.normal(size=p.shape).astype(np.float32) for name, p in PARAMS.items()}


def run(cfg, steps=5):
    rule = make_optimizer(cfg, 10)
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = rule.init(params)

    @jax.jit
    def update(params, state, grads):
        changes, state = rule.update(grads, state, params)
        return jax.tree.map(jnp.add, params, changes), state

    for step in range(steps):
        params, state = update(params, state, gradients(step))
    return params


def test_adamw_equals_its_formulas_with_clipping_and_norms_spared():
    """arXiv 1711.05101, algorithm 2, after clipping the global norm (arXiv 1211.5063)."""
    cfg = OptimizerConfig(
        learning_rate=0.05, schedule="cosine", warmup=0.3, weight_decay=0.2, clip=1.5, b2=0.95
    )
    rate = np.array(jax.vmap(learning_rate(cfg, 10))(jnp.arange(5)), np.float64)
    weights = {name: p.astype(np.float64) for name, p in PARAMS.items()}
    first = {name: 0 * p for name, p in weights.items()}
    second = {name: 0 * p for name, p in weights.items()}
    clipped = 0
    for step in range(5):
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients(step).values()))
        clipped += norm > 1.5
        for name, gradient in gradients(step).items():
            g = gradient * min(1, 1.5 / norm)
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.95 * second[name] + 0.05 * g**2
            mean, square = (
                first[name] / (1 - 0.9 ** (step + 1)),
                second[name] / (1 - 0.95 ** (step + 1)),
            )
            decay = 0.2 if name == "query" else 0.0
            change = mean / (np.sqrt(square) + 1e-8) + decay * weights[name]
            weights[name] = weights[name] - rate[step] * change
    assert clipped
    for name, value in run(cfg).items():
        np.testing.assert_allclose(value, weights[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "adafactor", "sgd", "nadamw"])
def test_decay_is_decoupled_and_spares_norms(name):
    """One step at rate 0.01 with decay 0.5 takes half a percent of every matrix, by any rule."""
    settings = {"name": name, "schedule": "constant", "warmup": 0.0, "learning_rate": 0.01}
    plain = run(OptimizerConfig(**settings), steps=1)
    decayed = run(OptimizerConfig(**settings, weight_decay=0.5), steps=1)
    np.testing.assert_array_equal(plain["mlp_norm"], decayed["mlp_norm"])
    np.testing.assert_allclose(
        plain["query"] - decayed["query"], 0.01 * 0.5 * PARAMS["query"], atol=1e-6
    )
    assert np.abs(plain["query"] - PARAMS["query"]).max() > 1e-4


@pytest.mark.parametrize(
    "setting", [{"learning_rate": 0.0}, {"warmup": 1.5}, {"final": -0.1}, {"clip": -1.0}]
)
def test_settings_without_sense_are_refused(setting):
    with pytest.raises(InputError, match=next(iter(setting))):
        OptimizerConfig(**setting)


def test_muon_turns_each_layers_matrix_into_an_orthogonal_one():
    """Its first update is U V^T of the gradient G = U S V^T, times 0.2 sqrt(max(rows, columns)).

    arXiv 2502.16982, equations 2 and 4, layer by layer; singular values within Newton-Schulz's own
    band around 1. What is no matrix of a layer moves as AdamW moves it.
    """
    shapes = {
        "embedding": (6, 8),
        "layers": {
            "query": (2, 8, 2, 3),
            "output": (2, 2, 3, 8),
            "down": (2, 16, 8),
            "mlp_norm": (2, 8),
        },
    }
    rng = np.random.default_rng(0)
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    params, grads = (
        jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple)) for _ in range(2)
    )
    cfg = OptimizerConfig(name="muon", learning_rate=0.5, schedule="constant", warmup=0.0, clip=0)
    rule = make_optimizer(cfg, 10)
    changes, _ = rule.update(grads, rule.init(params), params)

    adamw = make_optimizer(dataclasses.replace(cfg, name="adamw"), 10)
    plain, _ = adamw.update(grads, adamw.init(params), params)
    np.testing.assert_allclose(changes["embedding"], plain["embedding"], rtol=1e-5)
    np.testing.assert_allclose(
        changes["layers"]["mlp_norm"], plain["layers"]["mlp_norm"], rtol=1e-5
    )

    for name, matrix in {"query": (8, 6), "output": (6, 8), "down": (16, 8)}.items():
        for layer in range(2):
            left, _, right = np.linalg.svd(
                np.asarray(grads["layers"][name][layer]).reshape(matrix), full_matrices=False
            )
            change = np.asarray(changes["layers"][name][layer]).reshape(matrix)
            turned = -change / (0.5 * 0.2 * math.sqrt(max(matrix)))
            # In the gradient's own axes nothing is left off the diagonal.
            inside = left.T @ turned @ right.T
            assert np.diag(inside) == pytest.approx(1.0, abs=0.35)
            np.testing.assert_allclose(inside, np.diag(np.diag(inside)), atol=1e-4)
            np.testing.assert_allclose(left @ inside @ right, turned, atol=1e-4)
