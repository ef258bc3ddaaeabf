"""What a training step will need, before it runs: from shapes alone, on no device.

Parameters, gradients and moments are counted exactly, array by array, as the mesh lays them out.
Activations are an estimate from the layers' shapes and the rematerialization; docs/benchmarks.md
sets it beside the compiler's own figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from dynarag_jax.models import decoder
from dynarag_jax.models.attention import BLOCK
from dynarag_jax.models.config import DecoderConfig, Kernel
from dynarag_jax.models.kernels import LANES
from dynarag_jax.models.layout import trained_table
from dynarag_jax.models.lora import LoraConfig
from dynarag_jax.models.products import GRADIENT
from dynarag_jax.policy.logprobs import chunk_positions
from dynarag_jax.sharding import Sizes, abstract_mesh, axis_size, batch_shards
from dynarag_jax.training.flops import PaddedShape, StepOperations, step_work
from dynarag_jax.training.optimizer import OptimizerConfig, make_optimizer
from dynarag_jax.training.step import state_shardings

USABLE = 0.9
"""Share of a device's memory that a program can count on; the rest is the runtime's."""

FAST = 96 << 20
"""Bytes of an array that libtpu finds room for in a chip's fast memory of 128 MiB (VMEM)."""


@dataclass(frozen=True)
class MemoryPlan:
    """A step's needs; bytes are those of one device."""

    parameters: int
    """numbers in the model"""
    trained: int
    """numbers that are trained: all of them, or the adapters'"""
    weights: int
    """bytes of the parameters, as stored"""
    gradients: int
    moments: int
    """bytes of the optimizer's state, on the device between updates or on the host"""
    activations: int
    """bytes that the forward pass keeps for the backward one"""
    working: int
    """bytes of the largest piece at work: a layer computed back, or a chunk of scores"""
    host: int
    """bytes in host memory: moments and activations that are offloaded"""
    cache: int
    """bytes of keys and values if the same prompts and branches were sampled"""
    work: StepOperations
    devices: int
    sent: int = 0
    """bytes of keys, values and their gradients that a device sends over the sequence axis"""

    @property
    def total(self) -> int:
        """Bytes that a device holds at the height of a step."""
        return self.weights + self.gradients + self.moments + self.activations + self.working

    def seconds(self, peak: float, utilization: float) -> float:
        """Time of a step on devices of this peak (operations a second) at a model FLOP
        utilization."""
        return self.work.model / (self.devices * peak * utilization)


def plan(
    cfg: DecoderConfig,
    streams: Sequence[PaddedShape],
    sizes: Sizes,
    optimizer: OptimizerConfig,
    accumulate: int = 1,
    lora: LoraConfig | None = None,
    kernel: Kernel = "plain",
) -> MemoryPlan:
    """MemoryPlan a step of these streams on a mesh of these sizes.

    Args:
      streams: of prompts that divide over the sequence axis.
      kernel: of the trunk's attention (``models.kernels``): a flash kernel holds no scores, and it
        says whose compiler makes the program.

    Raises:
      InputError: the mesh does not divide an array of the model.
    """
    mesh = abstract_mesh(sizes)
    lora = lora if lora is not None and lora.rank else None
    stored = jnp.dtype(cfg.param_dtype)
    rule = make_optimizer(optimizer, 100)
    base, _ = _laid_out(cfg, mesh, make_optimizer(OptimizerConfig("sgd"), 100), None, stored)
    moments_of = stored if lora is None else jnp.dtype("float32")
    adapted, moments = _laid_out(cfg, mesh, rule, lora, moments_of)
    trained = _numbers(cfg, lora)
    # Microbatches add to a float32 sum, beside the gradient of the one at work.
    width = moments_of.itemsize if accumulate == 1 else moments_of.itemsize + 4
    gradients = adapted // moments_of.itemsize * width
    kept, offloaded, working = _activations(cfg, streams, mesh, accumulate, lora, kernel, gradients)
    if optimizer.offload:
        # They pass through the device one array at a time at best, all at once at worst.
        offloaded, working = offloaded + moments, max(working, moments)
        moments = 0
    return MemoryPlan(
        parameters=decoder.count_parameters(cfg),
        trained=trained,
        weights=base + (adapted if lora else 0),
        gradients=gradients,
        moments=moments,
        activations=kept,
        working=working,
        host=offloaded,
        cache=_cache(cfg, streams, mesh, accumulate),
        work=step_work(cfg, streams, lora),
        devices=math.prod(sizes),
        sent=_sent(cfg, streams, mesh),
    )


def _numbers(cfg: DecoderConfig, lora: LoraConfig | None) -> int:
    leaves = jax.tree.leaves(trained_table(cfg, lora), is_leaf=decoder.is_parameter)
    return sum(math.prod(p.shape) for p in leaves)


def _laid_out(
    cfg: DecoderConfig, mesh: Any, rule: Any, lora: LoraConfig | None, dtype: Any
) -> tuple[int, int]:
    """A device's bytes of parameters and of moments."""
    layout = state_shardings(cfg, mesh, rule, lora)
    shapes = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, dtype),
        trained_table(cfg, lora),
        is_leaf=decoder.is_parameter,
    )

    def size(arrays: Any, shardings: Any) -> int:
        each = jax.tree.map(
            lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, arrays, shardings
        )
        return sum(jax.tree.leaves(each))

    moments = jax.eval_shape(rule.init, shapes)
    return size(shapes, layout.params), size(moments, layout.optimizer)


def _activations(
    cfg: DecoderConfig,
    streams: Sequence[PaddedShape],
    mesh: Any,
    accumulate: int,
    lora: Any,
    kernel: Kernel,
    gradients: int,
) -> tuple[int, int, int]:
    """Bytes kept on the device, kept on the host, and at work."""
    a, d = jnp.dtype(cfg.dtype).itemsize, cfg.width
    tensor, parts = mesh.shape["tensor"], axis_size("positions", mesh)
    heads = cfg.heads // tensor
    q, kv = heads * cfg.head_size, cfg.kv_heads * cfg.head_size // tensor
    f, vocab = cfg.mlp // tensor, -(-cfg.vocab // tensor)
    # What the last product of a layer makes is only added to what entered, which no gradient reads,
    # unless a norm comes between.
    products = a * (q + 2 * kv + d + 2 * f + (d if cfg.post_norms else 0))
    # Two residual sums and two norms with their float32 copies, queries, keys and values before and
    # after rotation, the attended, and four arrays of the MLP.
    everything = a * (4 * d + 3 * q + 3 * kv + 4 * f) + 8 * d
    flash = kernel != "plain"
    if not flash:  # sums of values in float32 (``attention.KEPT``)
        everything += 4 * q
    # At the height of a layer's backward pass: its values and gradients as if none made way.
    height = 2 * everything
    attending = 0
    if kernel == "cudnn":
        # XLA for GPUs takes what lives, and writes in place what it can: in the MLP's backward pass
        # its three arrays and their gradients; what entered the layer, both sums, both norms'
        # results and the gradient that came; queries, keys, values and the attended.
        height = a * (6 * f + 6 * d + 2 * q + 2 * kv)
    elif flash:
        # That for TPUs keeps four arrays of each kind in the MLP's, as its peaks come out
        # (docs/benchmarks.md), and has let go of the MLP's where it comes to attention. Heads are
        # padded to its lanes there.
        q, kv = (x // cfg.head_size * -(-cfg.head_size // LANES) * LANES for x in (q, kv))
        height = a * (4 * f + 4 * d + 4 * q + 4 * kv)
        if cfg.qk_norm:  # in float32, before and after
            height += 8 * (q + kv)
        attending = height - 4 * a * f
    # Weights come together, or in their products' dtype, for these alone.
    apart = axis_size("embed", mesh) > 1 or cfg.dtype != cfg.param_dtype
    kept = offloaded = 0
    layer = scores = 0
    for rows in streams:
        local = -(-rows.batch // (accumulate * batch_shards(mesh)))
        prompt = rows.prompt // parts
        tokens = local * (prompt + -(-rows.branches * (rows.branch - 1) // parts))
        # Scores of the branches over trunk and own keys: float32, and rounded for the product.
        seen = local * rows.branches * (rows.branch - 1) * (prompt + rows.branch) * heads
        branches = seen * (4 + 4 + a)
        entering = tokens * d * a
        # Of attention in blocks of queries: sums of values, maxima and sums of weights, in float32.
        stretches = 1 if parts == 1 else 2
        blocks = stretches * _in_blocks(prompt // stretches)
        attended = 0 if flash else local * blocks * 4 * (q + 2 * heads)
        if kernel == "splash":  # what it attended, and the log-sum-exp
            attended = local * prompt * (a * q + 4 * heads)
        device, host = {
            "none": (tokens * everything + branches, 0),
            "full": (entering, 0),
            "dots": (entering + attended + tokens * products, 0),
            "offload": (0, entering),
            "dots_offload": (entering + attended, tokens * products),
        }[cfg.remat]
        # The hidden states before and after the last norm.
        kept += cfg.layers * device + 2 * entering
        offloaded += cfg.layers * host
        # A block of queries over all keys: scores, weights and their gradients in float32.
        block = 0 if flash else local * heads * min(prompt // stretches, BLOCK) * rows.prompt
        # The keys and values of all positions, as gathered and in their order, and their gradients.
        everyones = 0 if parts == 1 else local * rows.prompt * 3 * 2 * kv * a
        at_work = tokens * height + branches
        if kernel == "cudnn" and lora is not None:  # one of the two in float32, by its peaks
            at_work -= 4 * seen
        if kernel == "splash":  # one of the two in float32 at a time, both as products read them
            # One that fits lies in fast memory, where no gathered weights take that.
            apiece = 4 + (2 if apart or seen * a > FAST else 1) * a
            at_work = max(tokens * height, tokens * attending + seen * apiece)
        layer = max(layer, at_work + 4 * 4 * block + everyones)
        positions = -(-rows.branches * rows.branch // parts) + (prompt if rows.prompt_loss else 0)
        chunk = local * chunk_positions(local, positions, vocab)
        scores = max(scores, 3 * 4 * chunk * vocab)
    # Weights come together for their product, and their gradients before these are scattered.
    matrices = sum(
        math.prod(p.shape[1:])
        for p in jax.tree.leaves(
            decoder.parameter_table(cfg)["layers"], is_leaf=decoder.is_parameter
        )
    )
    if apart and kernel == "splash":  # as it comes out, too: not all of a layer's at one time
        gathered = 3 * a * matrices // (2 * tensor)
        # Gradients, too, are whole before they are scattered; fewer at one time, the fewer tokens
        # a device has (by the peaks of meshes that cut positions).
        if lora is None and axis_size("embed", mesh) > 1:
            gathered = (2 if parts == 1 else 1) * a * matrices // tensor
    elif apart:
        gathered = (2 * a + (4 if lora is None else 0)) * matrices // tensor
    else:  # copied out of their stack, where a kernel or a library's product reads them
        gathered = a * matrices // tensor if kernel == "cudnn" else 0
    head = a * vocab * d if apart else 0
    if apart and lora is None:
        # Cut, its gradient is made whole a part at a time, of which one is sent meanwhile; and one
        # more where the data axis adds them up, too.
        cut = axis_size("embed", mesh) > 1
        chunks = 3 if mesh.shape["data"] > 1 else 2
        head += 4 * min(vocab * d, chunks * GRADIENT if cut else vocab * d)
    # Scores come before the layers' gradients have a place, which the compiler of TPUs knows; that
    # of the vocabulary's weights comes with them.
    own = 4 * vocab * d // axis_size("embed", mesh) if lora is None else 0
    early = gradients - own if kernel == "splash" else 0
    return kept, offloaded, max(layer + gathered, scores + head - early)


def _in_blocks(positions: int) -> int:
    """Prompt positions, padded to blocks of queries where there are several."""
    return positions if positions <= BLOCK else -(-positions // BLOCK) * BLOCK


def _cache(cfg: DecoderConfig, streams: Sequence[PaddedShape], mesh: Any, accumulate: int) -> int:
    token = 2 * cfg.layers * cfg.kv_heads * cfg.head_size * jnp.dtype(cfg.dtype).itemsize
    per_token = token // mesh.shape["tensor"]
    # What samples has whole prompts, and its rows over the sequence axis, too.
    shards = batch_shards(mesh) * axis_size("positions", mesh)
    return max(
        -(-rows.batch // (accumulate * shards))
        * (rows.prompt + rows.branches * rows.branch)
        * per_token
        for rows in streams
    )


def _sent(cfg: DecoderConfig, streams: Sequence[PaddedShape], mesh: Any) -> int:
    """Bytes that rings over the sequence axis make a device send in a step: keys and values are
    gathered forward, again where the layer is computed again, and their gradients are scattered."""
    parts = axis_size("positions", mesh)
    token = 2 * cfg.kv_heads * cfg.head_size * jnp.dtype(cfg.dtype).itemsize
    token = token * cfg.layers // mesh.shape["tensor"]
    times = 2 if cfg.remat == "none" else 3
    rows = sum(-(-rows.batch // batch_shards(mesh)) * rows.prompt for rows in streams)
    return times * rows * token * (parts - 1) // parts
