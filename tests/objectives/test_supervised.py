"""The likelihood of tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dynarag_jax.objectives.supervised import token_nll


def test_token_nll_sums_real_tokens_only_even_beside_infinities():
    logps = jnp.array([[-1.0, -2.0, -jnp.inf], [-0.5, jnp.nan, -jnp.inf]])
    where = jnp.array([[True, True, False], [True, False, False]])
    value, gradient = jax.value_and_grad(lambda x: token_nll(x, where=where).sum())(logps)
    assert value == 3.5
    assert gradient.tolist() == [[-1, -1, 0], [-1, 0, 0]]
