"""Products of bfloat16 beside float32 on one CPU: matrices alone, and an encoder that learns.

    python -m benchmarks.products
    python -m benchmarks.products --texts 16 --repeats 10

The three products of a dense layer (forward, gradient of the input, gradient of the weights) in
float32, in bfloat16 as XLA takes them, and by ``models.products``; then an encoder of MiniLM-L12's
shape, forward and with gradients, in both types, its layers in a scan, rematerialized there, or
written out. Prints Markdown: the best and the worst of the repeats, in GFLOP a second for products,
in seconds for the encoder.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from dynarag_jax.evaluation.tables import markdown
from dynarag_jax.models.encoder import EncoderConfig, encode, parameter_shapes
from dynarag_jax.models.products import matmul

SHAPES = ((2560, 384, 1536), (2560, 1536, 384), (2048, 576, 1536), (2048, 2048, 2048))
"""Tokens, and what a layer takes and gives."""


def times(function: Callable[..., Any], repeats: int, *args: Any) -> tuple[float, float]:
    """Best and worst seconds of the jitted function, compiled before."""
    compiled = jax.jit(function).lower(*args).compile()
    jax.block_until_ready(compiled(*args))
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        taken.append(time.perf_counter() - began)
    return min(taken), max(taken)


def rates(shape: tuple[int, int, int], repeats: int) -> list[list[str]]:
    """A row for each of a layer's products."""
    tokens, inside, outside = shape
    keys = jax.random.split(jax.random.key(0), 3)
    x, w, g = (
        jax.random.normal(key, size)
        for key, size in zip(
            keys, ((tokens, inside), (inside, outside), (tokens, outside)), strict=True
        )
    )
    half = jnp.bfloat16

    def pulled(place: int) -> Callable[..., Any]:
        return lambda x, w, g: jax.vjp(matmul, x, w)[1](g)[place]

    # The gradients as autodiff alone would take them.
    plain = {
        "forward": lambda x, w, g: x @ w.astype(x.dtype),
        "input's gradient": lambda x, w, g: g @ w.astype(g.dtype).T,
        "weights' gradient": lambda x, w, g: jnp.matmul(x.T, g, preferred_element_type=jnp.float32),
    }
    ours = {
        "forward": lambda x, w, g: matmul(x, w),
        "input's gradient": pulled(0),
        "weights' gradient": pulled(1),
    }
    rows = []
    for name, product in plain.items():
        row = [" x ".join(map(str, shape)), name]
        narrow = (x.astype(half), w, g.astype(half))
        for function, given in ((product, (x, w, g)), (product, narrow), (ours[name], narrow)):
            best, worst = times(function, repeats, *given)
            work = 2e-9 * tokens * inside * outside
            row.append(f"{work / best:.0f} ({work / worst:.0f})")
        rows.append(row)
    return rows


def encoder_row(texts: int, repeats: int, dtype: str, remat: str, unroll: int) -> list[str]:
    """Seconds of the encoder, forward and with gradients."""
    cfg = replace(EncoderConfig(layers=12), dtype=dtype, remat=remat, unroll=unroll)
    sizes, tree = jax.tree.flatten(parameter_shapes(cfg), is_leaf=lambda x: isinstance(x, tuple))
    key = jax.random.key(0)
    params = jax.tree.unflatten(
        tree, [0.02 * jax.random.normal(jax.random.fold_in(key, i), s) for i, s in enumerate(sizes)]
    )
    tokens = jax.random.randint(key, (texts, 128), 0, cfg.vocab)
    lengths = jnp.full(texts, 128)

    def first(params: Any) -> jax.Array:
        return encode(cfg, params, tokens, lengths)[:, 0].astype(jnp.float32)

    forward = times(first, repeats, params)
    both = times(jax.grad(lambda params: (first(params) ** 2).mean()), repeats, params)
    how = "written out" if unroll > 1 else "a scan, rematerialized" if remat == "full" else "a scan"
    return [dtype, how, *(f"{best:.2f} ({worst:.2f})" for best, worst in (forward, both))]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--texts", type=int, default=40, help="of 128 word pieces")
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--encoder", action="store_true", help="the encoder alone")
    args = parser.parse_args()
    head = ("tokens x in x out", "product", "float32", "bfloat16 by XLA", "bfloat16, ours")
    if not args.encoder:
        print(markdown(head, [row for shape in SHAPES for row in rates(shape, args.repeats)]))
    head = ("encoder in", "layers", "forward, s", "with gradients, s")
    layers = (("none", 1), ("full", 1), ("none", 12))
    ways = [(dtype, *how) for dtype in ("float32", "bfloat16") for how in layers]
    print(markdown(head, [encoder_row(args.texts, args.repeats, *way) for way in ways]))


if __name__ == "__main__":
    main()
