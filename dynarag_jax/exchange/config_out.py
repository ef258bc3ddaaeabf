"""Decoder configurations as Hugging Face's ``config.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, get_args

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.families import (
    ARCHITECTURES,
    FEATURES,
    MODEL_TYPES,
    SAID,
    SAYABLE,
    SWITCHES,
)
from dynarag_jax.models.config import DecoderConfig, Family


def check_family(cfg: DecoderConfig) -> None:
    """Raise InputError if a configuration has features its family's ``config.json`` cannot say."""
    plain = DecoderConfig()
    family = FEATURES[cfg.family]
    wrong = [
        f"{name} = {getattr(cfg, name)}"
        for name in SWITCHES
        if getattr(cfg, name) != family.get(name, getattr(plain, name))
    ]
    wrong += [
        f"{name} = {getattr(cfg, name)}"
        for name in SAYABLE
        if getattr(cfg, name) != getattr(plain, name) and name not in SAID[cfg.family]
    ]
    if (s := cfg.rope_scaling) is not None and (s.kind == "longrope") != (cfg.family == "phi3"):
        wrong.append(f"rope_scaling of kind {s.kind!r}")
    if wrong:
        raise InputError(
            f"family {cfg.family!r} cannot be exported with {', '.join(wrong)}; the families are "
            f"{', '.join(get_args(Family))}"
        )


def config_to_hf(cfg: DecoderConfig, dtype: str, ids: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` of a decoder, read by transformers 4 and 5 and by vLLM.

    Args:
      dtype: of the stored weights.
      ids: ``bos_token_id``, ``eos_token_id`` and ``pad_token_id``.

    Raises:
      InputError: the family cannot say what the configuration computes.
    """
    check_family(cfg)
    family = cfg.family
    architecture = next(name for name, f in ARCHITECTURES.items() if f == family)
    gemma = family.startswith("gemma")
    scaling = None
    if (s := cfg.rope_scaling) is not None:
        scaling = {"rope_type": s.kind, "factor": s.factor}
        if s.kind == "llama3":
            scaling |= {
                "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_positions,
            }
    hf: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": MODEL_TYPES.get(family, family),
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_size,
        "intermediate_size": cfg.mlp,
        "hidden_activation" if gemma else "hidden_act": "gelu_pytorch_tanh" if gemma else "silu",
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_base,
        "rope_scaling": scaling,
        "tie_word_embeddings": cfg.tied,
        "max_position_embeddings": cfg.positions,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": dtype,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **ids,
    }
    if family == "phi3":
        hf["partial_rotary_factor"] = cfg.rotary_share
        if (s := cfg.rope_scaling) is not None and s.kind == "longrope":
            # Three fields, and no others, are what transformers 4 takes.
            hf["rope_scaling"] = {
                "type": "longrope", "short_factor": list(s.short), "long_factor": list(s.long),
            }  # fmt: skip
            hf["max_position_embeddings"] = s.positions
            hf["original_max_position_embeddings"] = s.original_positions
            usual = s.positions / s.original_positions
            usual = (
                (1 + math.log(usual) / math.log(s.original_positions)) ** 0.5 if usual > 1 else 1
            )
            if abs(s.attention_factor - usual) > 1e-6:
                hf["rope_scaling"]["attention_factor"] = s.attention_factor
    if family != "mistral" and family != "qwen2":
        hf["attention_bias"] = False
    if family in ("llama", "smollm3", "granite"):
        hf["mlp_bias"] = False
    if "window" in SAID[family]:
        hf["sliding_window"] = cfg.window
    if family in ("qwen2", "qwen3", "smollm3"):
        hf["use_sliding_window"] = cfg.window is not None
    if "windowed" in SAID[family]:
        local = cfg.windowed or (cfg.window is not None,) * cfg.layers
        hf["layer_types"] = [
            "sliding_attention" if windowed else "full_attention" for windowed in local
        ]
    if gemma:
        hf["query_pre_attn_scalar"] = _whole(cfg.query_scale or cfg.head_size)
        hf["attn_logit_softcapping"] = cfg.score_cap
        hf["final_logit_softcapping"] = cfg.logit_cap
    if family == "gemma3":
        hf["rope_local_base_freq"] = cfg.window_rope_base or cfg.rope_base
    if family == "smollm3":
        hf["no_rope_layers"] = [int(rotary) for rotary in cfg.rotary or (True,) * cfg.layers]
    if family == "granite":
        hf["attention_multiplier"] = float(cfg.query_scale or cfg.head_size) ** -0.5
        hf["embedding_multiplier"] = cfg.embedding_scale
        hf["residual_multiplier"] = cfg.residual_scale
        hf["logits_scaling"] = cfg.logit_scale
    return hf


def _whole(x: float) -> int | float:
    # transformers types the field as an integer.
    return int(x) if float(x).is_integer() else x
