"""The decoder's configuration and the table of its parameters.

One configuration describes every supported family: each feature that tells Gemma or Qwen from
Llama is a field, off by default. ``parameter_table`` is the single source of the parameters: Flax's
``init``, the sharding rules, the exchange with Hugging Face and every memory estimate read it.

Dimension letters are those of ``attention``; also V vocabulary, F hidden width of the MLP,
L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

Params = Mapping[str, Any]

Family = Literal[
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "smollm3", "olmo2", "granite", "phi3"
]

Kernel = Literal["plain", "cudnn", "splash"]

Remat = Literal["none", "full", "dots", "offload", "dots_offload"]


@dataclass(frozen=True)
class RopeScaling:
    """Stretching of the rotary frequencies beyond the positions of pretraining."""

    kind: Literal["llama3", "linear", "longrope"] = "llama3"
    """``llama3`` slows only the slow frequencies (Llama 3 report, section 3.4); ``linear`` all;
    ``longrope`` each by a factor of its own (arXiv 2402.13753)"""
    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_positions: int = 8192
    short: tuple[float, ...] = ()
    """of ``longrope``: each frequency is divided by its own, within ``original_positions``"""
    long: tuple[float, ...] = ()
    """beyond them, where texts are not computed here; kept for exports"""
    attention_factor: float = 1.0
    """of ``longrope``: what turned queries and keys are multiplied by"""
    positions: int = 0
    """of ``longrope``: the longest text of ``long``; kept for exports"""


@dataclass(frozen=True)
class DecoderConfig:
    """Shape and numerics of a decoder; sizes follow Hugging Face's ``config.json``."""

    family: Family = "llama"
    """the architecture it is exported as; the fields below say what it computes"""
    vocab: int = 320
    """tokens in the vocabulary"""
    width: int = 64
    """model dimension (hidden_size)"""
    layers: int = 4
    heads: int = 2
    """query heads"""
    kv_heads: int = 2
    """key/value heads; fewer than heads is grouped-query attention"""
    head_size: int = 32
    mlp: int = 172
    """hidden width of the gated MLP (intermediate_size)"""
    activation: Literal["silu", "gelu_tanh"] = "silu"
    """of the MLP's gate; ``gelu_tanh`` in Gemma"""
    rope_base: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    window_rope_base: float | None = None
    """rotary base of windowed layers, unscaled, where it differs from the others' (Gemma 3)"""
    rotary: tuple[bool, ...] = ()
    """which layers have rotary positions (SmolLM3 leaves them out of every fourth); empty means
    all of them"""
    rotary_share: float = 1.0
    """share of a head's numbers that turn, the first ones (partial_rotary_factor in Phi-4-mini)"""
    window: int | None = None
    """tokens a windowed layer looks back over, its own included (Mistral, Gemma)"""
    windowed: tuple[bool, ...] = ()
    """which layers have the window; empty means all of them"""
    qkv_bias: bool = False
    """biases on query, key and value (Qwen2.5)"""
    qk_norm: bool = False
    """norms of each query and key head (Qwen3, Gemma 3)"""
    qk_norm_joint: bool = False
    """these norms are over all heads at once (OLMo 2), not over each"""
    query_scale: float | None = None
    """scores are divided by its root; None is head_size (query_pre_attn_scalar in Gemma)"""
    score_cap: float | None = None
    """attention scores pass ``cap * tanh(score / cap)`` (Gemma 2)"""
    logit_cap: float | None = None
    """the same of the final logits (Gemma 2)"""
    norm_eps: float = 1e-5
    norm_offset: bool = False
    """norms multiply by one plus their weight (Gemma)"""
    pre_norms: bool = True
    """norms before attention and MLP; OLMo 2 has none"""
    post_norms: bool = False
    """norms after attention and MLP, before the residual sum (Gemma, OLMo 2)"""
    scaled_embedding: bool = False
    """embeddings are multiplied by the root of the width (Gemma)"""
    embedding_scale: float = 1.0
    """embeddings are multiplied by it (embedding_multiplier in Granite)"""
    residual_scale: float = 1.0
    """what attention and MLP add to the residual stream is multiplied by it (Granite)"""
    logit_scale: float = 1.0
    """the logits are divided by it (logits_scaling in Granite)"""
    tied: bool = True
    """the output projection is the embedding's transpose"""
    positions: int = 4096
    """longest sequence the model is meant for"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type of activations; norms, softmax and logits are float32 always"""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """type of the stored weights"""
    remat: Remat = "none"
    """what a training step recomputes: nothing, whole layers, or all but matrix products; with
    ``offload`` what is kept (the layers' inputs, or the products) waits in host memory"""
    attention: Literal["auto", "plain", "cudnn", "splash"] = "auto"
    """who computes the trunk's attention: cuDNN's flash kernel, splash attention, or XLA in blocks
    of queries; ``auto`` takes the platform's kernel where it can compute this model"""
    unroll: int = 1
    """layers per iteration of the layer scan; ``layers`` writes them all out: slower to compile,
    faster for small models on CPU"""

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads = {self.heads} is not a multiple of kv_heads = {self.kv_heads}"
            )
        if self.head_size % 2 or not 0 < self.rotary_share <= 1 or self.turned % 2:
            raise ValueError(
                f"head_size = {self.head_size} must be even for rotary positions, and so must the "
                f"part of it that turns, {self.rotary_share} of it"
            )
        if self.windowed and len(self.windowed) != self.layers:
            raise ValueError(f"windowed names {len(self.windowed)} layers of {self.layers}")
        if self.rotary and len(self.rotary) != self.layers:
            raise ValueError(f"rotary names {len(self.rotary)} layers of {self.layers}")
        if self.window is None and (any(self.windowed) or self.window_rope_base is not None):
            raise ValueError("windowed layers need a window")

    @property
    def strict_positions(self) -> bool:
        """Whether a text beyond ``positions`` is another computation from its beginning on."""
        return self.rope_scaling is not None and self.rope_scaling.kind == "longrope"

    @property
    def turned(self) -> int:
        """Numbers of a head that rotary positions turn."""
        return int(self.head_size * self.rotary_share)


class Parameter(NamedTuple):
    """One array of a model: shape, logical axes, and the standard deviation it starts with."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    scale: float | None
    """None starts at one (the norms), 0 at zero"""


def parameter_table(cfg: DecoderConfig) -> dict[str, Any]:
    """The model's parameters as a tree of ``Parameter``; per-layer arrays are stacked on axis 0."""
    d, f, h, g, k = cfg.width, cfg.mlp, cfg.heads, cfg.kv_heads, cfg.head_size
    std = d**-0.5
    # Residual outputs start smaller, so that the depth does not blow up the stream (GPT-2).
    out = 1.0 / math.sqrt(2 * cfg.layers)
    norm = Parameter((d,), ("width",), 0.0 if cfg.norm_offset else None)
    query_norm = key_norm = Parameter((k,), (None,), norm.scale)
    if cfg.qk_norm_joint:
        query_norm = Parameter((h, k), ("heads", None), norm.scale)
        key_norm = Parameter((g, k), ("kv_heads", None), norm.scale)
    layer = {
        "attention_norm": norm,
        "query": Parameter((d, h, k), ("embed", "heads", None), std),
        "key": Parameter((d, g, k), ("embed", "kv_heads", None), std),
        "value": Parameter((d, g, k), ("embed", "kv_heads", None), std),
        "output": Parameter((h, k, d), ("heads", None, "embed"), out * (h * k) ** -0.5),
        "mlp_norm": norm,
        "gate": Parameter((d, f), ("embed", "mlp"), std),
        "up": Parameter((d, f), ("embed", "mlp"), std),
        "down": Parameter((f, d), ("mlp", "embed"), out * f**-0.5),
    }
    if cfg.qkv_bias:
        layer["query_bias"] = Parameter((h, k), ("heads", None), 0.0)
        layer["key_bias"] = Parameter((g, k), ("kv_heads", None), 0.0)
        layer["value_bias"] = Parameter((g, k), ("kv_heads", None), 0.0)
    if cfg.qk_norm:
        layer |= {"query_norm": query_norm, "key_norm": key_norm}
    if cfg.post_norms:
        layer |= {"attention_post_norm": norm, "mlp_post_norm": norm}
    if not cfg.pre_norms:
        del layer["attention_norm"], layer["mlp_norm"]
    table: dict[str, Any] = {
        "embedding": Parameter((cfg.vocab, d), ("vocab", "embed"), std),
        "layers": stacked(layer, cfg.layers),
        "final_norm": norm,
    }
    if not cfg.tied:
        table["head"] = Parameter((cfg.vocab, d), ("vocab", "embed"), std)
    return table


def stacked(layer: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The table of one layer repeated over a leading axis of layers."""
    return {
        name: Parameter((layers, *p.shape), ("layers", *p.axes), p.scale)
        if is_parameter(p)
        else stacked(p, layers)
        for name, p in layer.items()
    }


def is_parameter(x: Any) -> bool:
    """Whether ``x`` is a leaf of a parameter table."""
    return isinstance(x, Parameter)


def initializer(p: Parameter) -> Callable[..., jax.Array]:
    """The function ``(key, shape, dtype)`` that makes a parameter's first values."""
    if p.scale is None:
        return jax.nn.initializers.ones
    return jax.nn.initializers.normal(p.scale) if p.scale else jax.nn.initializers.zeros


def count_parameters(cfg: DecoderConfig) -> int:
    """How many numbers the model holds."""
    leaves = jax.tree.leaves(parameter_table(cfg), is_leaf=is_parameter)
    return sum(math.prod(p.shape) for p in leaves)


def rope_frequencies(cfg: DecoderConfig) -> np.ndarray:
    """Rotary frequencies in radians per position, scaled if so configured.

    They are [K / 2], fewer where only a part of a head turns.
    """
    half = np.arange(0, cfg.turned, 2, dtype=np.float64) / cfg.turned
    freq = 1.0 / cfg.rope_base**half
    if (s := cfg.rope_scaling) is not None and s.kind == "longrope":
        return (freq / np.array(s.short)).astype(np.float32)
    if s is not None:
        smooth = np.zeros_like(freq)
        if s.kind == "llama3":
            wavelength = 2 * np.pi / freq
            smooth = (s.original_positions / wavelength - s.low_freq_factor) / (
                s.high_freq_factor - s.low_freq_factor
            )
            smooth = np.clip(smooth, 0.0, 1.0)
        freq = freq * (smooth + (1 - smooth) / s.factor)
    return freq.astype(np.float32)


class AttentionSpec(NamedTuple):
    """How a layer attends, beside its weights: how far back, and by which rotary frequencies.

    Where all layers are alike these are constants of the program; where they differ, arrays with
    a leading axis of layers, which the layer scan takes apart.
    """

    window: Any
    """how far back, or None"""
    freq: Any
    """rotary frequencies [K / 2]"""


def attention_specs(cfg: DecoderConfig) -> tuple[AttentionSpec, AttentionSpec]:
    """What all layers share of ``AttentionSpec``, and what differs [L, ...]; None in the other."""
    freq = rope_frequencies(cfg)
    local = cfg.windowed or (cfg.window is not None,) * cfg.layers
    shared, differing = AttentionSpec(None, None), AttentionSpec(None, None)
    if all(local) or not any(local):
        if local[0] and cfg.window_rope_base is not None:
            freq = _window_frequencies(cfg)
        shared = shared._replace(window=cfg.window if local[0] else None)
    else:
        everything = np.iinfo(np.int32).max // 2
        windows = np.where(local, cfg.window or everything, everything).astype(np.int32)
        differing = differing._replace(window=windows)
        if cfg.window_rope_base is not None:
            freq = np.where(np.array(local)[:, None], _window_frequencies(cfg), freq)
    if cfg.rotary and not all(cfg.rotary):
        # Positions that turn nothing: the rotation by frequency zero is exactly the identity.
        freq = np.where(np.array(cfg.rotary)[:, None], freq, np.float32(0))
    if freq.ndim == 1:
        return shared._replace(freq=freq), differing
    return shared, differing._replace(freq=freq)


def _window_frequencies(cfg: DecoderConfig) -> np.ndarray:
    half = np.arange(0, cfg.head_size, 2, dtype=np.float64) / cfg.head_size
    return (1.0 / float(cfg.window_rope_base or cfg.rope_base) ** half).astype(np.float32)
