"""Decoder configurations from Hugging Face's ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.config_out import check_family, config_to_hf
from dynarag_jax.exchange.families import (
    ARCHITECTURES,
    FEATURES,
    IDLE,
    MODEL_TYPES,
    PLAIN,
    SIZES,
)
from dynarag_jax.exchange.known import CONFIG, TrackedFields, short
from dynarag_jax.exchange.rope import read_phi_rope, read_rope
from dynarag_jax.models.config import DecoderConfig, Family

__all__ = ["ARCHITECTURES", "FEATURES", "check_family", "config_from_hf", "config_to_hf"]


def config_from_hf(hf: Mapping[str, Any], where: str = "config.json") -> DecoderConfig:
    """The decoder that a Hugging Face ``config.json`` describes.

    Raises:
      InputError: the architecture or one of its features is not supported, or a field is missing
        or makes no sense.
    """
    if not isinstance(hf, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(hf).__name__}")
    fields = TrackedFields(hf)
    try:
        cfg = _decoder(fields, where)
    except KeyError as error:
        raise InputError(f"{where}: field {error} is missing") from None
    except (AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{where}: these fields make no decoder ({error})") from None
    fields.refuse_rest({**CONFIG, **IDLE.get(cfg.family, {})}, where)
    return cfg


def _decoder(hf: TrackedFields, where: str) -> DecoderConfig:
    named = hf.get("architectures")
    found = named[0] if isinstance(named, list) and len(named) == 1 else named
    if found is named or not isinstance(found, str) or found not in ARCHITECTURES:
        raise InputError(
            f"{where}: architecture {found!r} is not supported; supported: "
            f"{', '.join(ARCHITECTURES)}"
        )
    family = ARCHITECTURES[found]
    kind = MODEL_TYPES.get(family, family)
    if hf.get("model_type", kind) != kind:
        raise InputError(
            f"{where}: model_type = {hf['model_type']!r} is not that of {found}, which is {kind!r}"
        )
    for field, plain in PLAIN.items():
        if hf.get(field, plain) not in (plain, None):
            raise InputError(
                f"{where}: {field} = {short(hf[field])} is not supported, only {plain!r}"
            )
    if family != "phi3" and hf.get("partial_rotary_factor", 1.0) not in (1.0, None):
        share = hf["partial_rotary_factor"]
        raise InputError(f"{where}: partial_rotary_factor = {share} is not supported, only 1.0")
    gemma = family.startswith("gemma")
    act = hf.get("hidden_activation" if gemma else "hidden_act")
    wanted = "gelu_pytorch_tanh" if gemma else "silu"
    if act not in (wanted, None):
        raise InputError(f"{where}: activation {act!r} is not supported, only {wanted!r}")
    if family == "gemma3" and hf.get("attn_logit_softcapping") is not None:
        raise InputError(f"{where}: attn_logit_softcapping is not used by {found}; set it to null")
    for name in SIZES:
        if hf[name] is None:
            raise ValueError(f"{name} = None must be a positive whole number")
    heads, width, layers = (
        hf["num_attention_heads"], hf["hidden_size"], hf["num_hidden_layers"],
    )  # fmt: skip
    head_size = hf.get("head_dim") or (
        256 if gemma else 128 if family == "qwen3" else width // heads
    )
    window, windowed = _windows(hf, family, layers)
    positions, share = int(hf.get("max_position_embeddings", 2048)), 1.0
    if family == "phi3":
        base, scaling, share = read_phi_rope(hf, head_size, where)
        window_base, positions = None, int(hf.get("max_position_embeddings", 4096))
        if scaling is not None:
            # Beyond, transformers takes other frequencies for the whole of a text, so that
            # nothing computed before could be kept.
            positions = min(positions, scaling.original_positions)
    else:
        base, scaling, window_base = read_rope(hf, family, where)
    return DecoderConfig(
        family=family,
        vocab=hf["vocab_size"],
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=hf.get("num_key_value_heads") or heads,
        head_size=head_size,
        mlp=hf["intermediate_size"],
        rope_base=base,
        rope_scaling=scaling,
        window_rope_base=window_base if window and window_base != base else None,
        window=window,
        windowed=windowed,
        query_scale=_query_scale(hf, family),
        rotary=_rotary(hf, layers) if family == "smollm3" else (),
        rotary_share=share,
        **(_multipliers(hf) if family == "granite" else {}),
        score_cap=hf.get("attn_logit_softcapping", 50.0) if family == "gemma2" else None,
        logit_cap=hf.get("final_logit_softcapping", 30.0 if family == "gemma2" else None)
        if gemma
        else None,
        norm_eps=float(hf.get("rms_norm_eps", 1e-5 if family in ("olmo2", "phi3") else 1e-6)),
        tied=bool(hf.get("tie_word_embeddings", gemma or family == "smollm3")),
        positions=positions,
        **FEATURES[family],
    )


def _query_scale(hf: Mapping[str, Any], family: Family) -> float | None:
    """What scores are divided by the root of, where it is not the size of a head."""
    if family.startswith("gemma"):
        return float(hf.get("query_pre_attn_scalar", 256))
    if family == "granite":  # which multiplies scores, by 1 unless it says otherwise
        return float(hf.get("attention_multiplier", 1.0)) ** -2
    return None


def _multipliers(hf: Mapping[str, Any]) -> dict[str, float]:
    return {
        "embedding_scale": float(hf.get("embedding_multiplier", 1.0)),
        "residual_scale": float(hf.get("residual_multiplier", 1.0)),
        "logit_scale": float(hf.get("logits_scaling", 1.0)),
    }


def _rotary(hf: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """Which layers have rotary positions; empty where all have."""
    every, said = hf.get("no_rope_layer_interval", 4), hf.get("no_rope_layers")
    if said is not None and not all(x in (0, 1) for x in said):
        raise ValueError(f"no_rope_layers = {said!r} must hold 1 and 0, one a layer")
    rotary = tuple(bool(x) for x in said or [(i + 1) % every for i in range(layers)])
    if len(rotary) < layers:
        raise ValueError(f"no_rope_layers names {len(rotary)} layers of {layers}")
    return () if all(rotary[:layers]) else rotary[:layers]


def _windows(
    hf: Mapping[str, Any], family: Family, layers: int
) -> tuple[int | None, tuple[bool, ...]]:
    """The window, and which layers have it (empty: all)."""
    if family in ("llama", "olmo2", "granite"):
        return None, ()
    # Left out, the field has the value that transformers gives it.
    window = hf.get("sliding_window", None if family in ("smollm3", "phi3") else 4096)
    everywhere = family in ("mistral", "phi3")
    kinds = None if everywhere else hf.get("layer_types")
    first = hf.get("max_window_layers", 28) if family in ("qwen2", "qwen3") else 0
    every = 6
    if family == "gemma3":
        every = hf.get("sliding_window_pattern") or hf.get("_sliding_window_pattern") or 6
    if kinds is not None and (
        len(kinds) != layers or not set(kinds) <= {"sliding_attention", "full_attention"}
    ):
        raise ValueError(
            f"layer_types = {kinds!r} must name full_attention or sliding_attention for each of "
            f"{layers} layers"
        )
    if family in ("qwen2", "qwen3", "smollm3") and not hf.get("use_sliding_window", False):
        window = None
    if window is None:
        if kinds is not None and "sliding_attention" in kinds:
            raise ValueError("layer_types names sliding_attention, and there is no sliding_window")
        return None, ()
    if everywhere:
        return window, ()
    if kinds is not None:
        windowed = tuple(kind == "sliding_attention" for kind in kinds)
    elif family == "gemma2":
        windowed = tuple(i % 2 == 0 for i in range(layers))
    elif family == "gemma3":
        windowed = tuple((i + 1) % every != 0 for i in range(layers))
    elif family == "smollm3":
        windowed = tuple(not rotary for rotary in _rotary(hf, layers))
    else:
        windowed = tuple(i >= first for i in range(layers))
    return (window, windowed) if any(windowed) else (None, ())
