"""What a layer keeps for the backward pass, where activations are bfloat16 and weights float32."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from jax.interpreters.partial_eval import dce_jaxpr

from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig

CFG = DecoderConfig(
    vocab=64, width=16, layers=2, heads=4, kv_heads=2, head_size=8, mlp=24, dtype="bfloat16"
)
TRUNK, BRANCHES = (3, 300), (3, 2, 9)


def gradient(remat, **changes):
    """The gradient of a forward pass over trunks and branches, and shapes to trace it with."""
    cfg = dataclasses.replace(CFG, remat=remat, **changes)
    params = jax.eval_shape(lambda key: decoder.init_params(cfg, key), jax.random.key(0))
    tokens = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in (TRUNK, TRUNK[:1], BRANCHES)]

    def loss(params, trunk, lengths, branches):
        hidden = decoder.trunk_and_branches(cfg, params, trunk, lengths, branches)[1]
        return (hidden.astype(jnp.float32) ** 2).sum()

    return jax.grad(loss), (params, *tokens)


def products(remat, **changes):
    """How many matrix products the compiled gradient holds, of both passes' loops."""
    run, arguments = gradient(remat, **changes)
    text = jax.jit(run).lower(*arguments).compile().as_text()
    return len(re.findall(r" dot\(", text))


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_products_that_are_kept_are_not_computed_again(dtype):
    none, dots, full = (products(remat, dtype=dtype) for remat in ("none", "dots", "full"))
    # Of a layer: seven products for the trunk, seven for the branches, and their repetition.
    assert full - dots >= 14
    # What is left are the scores, of the branches over trunk and own keys.
    assert none <= dots <= none + 4


def test_products_of_two_types_wait_on_the_host():
    run, arguments = gradient("dots_offload")
    kept = set(re.findall(r"bf16<host>\[([\d,]+)\]", str(jax.make_jaxpr(run)(*arguments))))
    trunk, branches = 3 * 300, 3 * 2 * 8
    # Over two layers, of trunk and branches: query, key or value, output, gate and up.
    expected = {f"2,{t},{width}" for t in (trunk, branches) for width in (32, 16, 24)}
    assert expected <= kept


def test_what_a_flash_kernel_attended_is_kept_with_the_products():
    def kernels(remat):
        run, arguments = gradient(remat, attention="splash", head_size=128)
        whole = jax.make_jaxpr(run)(*arguments).jaxpr
        used, _ = dce_jaxpr(whole, [True] * len(whole.outvars))
        # Each kernel stands there once: forward, again where the layer is computed again, and
        # backward for queries, and for keys and values.
        return len(re.findall(r"pallas_call\[", str(used)))

    assert [kernels(remat) for remat in ("none", "dots", "full")] == [3, 3, 4]
