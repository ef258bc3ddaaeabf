"""The decoder families that Hugging Face directories hold, and what of each is said where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynarag_jax.exchange.known import Idle
from dynarag_jax.models.config import Family

ARCHITECTURES: Mapping[str, Family] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "SmolLM3ForCausalLM": "smollm3",
    "Olmo2ForCausalLM": "olmo2",
    "GraniteForCausalLM": "granite",
    "Phi3ForCausalLM": "phi3",
}
"""Architectures that load; everything else is refused by name."""

MODEL_TYPES: Mapping[Family, str] = {"gemma3": "gemma3_text"}

_GEMMA = {
    "activation": "gelu_tanh",
    "norm_offset": True,
    "post_norms": True,
    "scaled_embedding": True,
}
# What a family always has; everything else is said by the fields of its config.json.
FEATURES: Mapping[Family, Mapping[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
    "gemma2": _GEMMA,
    "gemma3": {**_GEMMA, "qk_norm": True},
    "smollm3": {},
    "olmo2": {"qk_norm": True, "qk_norm_joint": True, "pre_norms": False, "post_norms": True},
    "granite": {},
    "phi3": {},
}
SWITCHES = (
    "activation", "norm_offset", "pre_norms", "post_norms", "scaled_embedding", "qkv_bias",
    "qk_norm", "qk_norm_joint",
)  # fmt: skip
# Fields that a family's config.json can say; the others must be off.
SAID: Mapping[Family, tuple[str, ...]] = {
    "llama": ("rope_scaling",),
    "mistral": ("rope_scaling", "window"),
    "qwen2": ("rope_scaling", "window", "windowed"),
    "qwen3": ("rope_scaling", "window", "windowed"),
    "gemma2": ("rope_scaling", "window", "windowed", "query_scale", "score_cap", "logit_cap"),
    "gemma3": (
        "rope_scaling", "window", "windowed", "query_scale", "logit_cap", "window_rope_base",
    ),
    "smollm3": ("rope_scaling", "window", "windowed", "rotary"),
    "olmo2": ("rope_scaling",),
    "granite": ("rope_scaling", "query_scale", "embedding_scale", "residual_scale", "logit_scale"),
    "phi3": ("rope_scaling", "rotary_share", "window"),
}  # fmt: skip
SAYABLE = tuple(dict.fromkeys(name for names in SAID.values() for name in names))
# Fields whose other values would change the computation in ways that are not built.
PLAIN: Mapping[str, Any] = {
    "attention_bias": False,
    "mlp_bias": False,
    "use_bidirectional_attention": False,
    "quantization_config": None,
}
# Fields that a family's own code does not read.
_GEMMA_IDLE: Idle = {"hidden_act": None, "max_window_layers": None}
IDLE: Mapping[Family, Idle] = {
    "gemma2": _GEMMA_IDLE,
    "gemma3": _GEMMA_IDLE,
    "smollm3": {"max_window_layers": None},
    "phi3": {"full_attn_mod": (1,), "interpolate_factor": (1,), "lm_head_bias": (False,)},
}

# What every config.json says of a decoder.
SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
)  # fmt: skip
