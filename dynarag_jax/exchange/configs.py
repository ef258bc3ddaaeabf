"""Decoder configurations from and to Hugging Face's ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.known import CONFIG, Idle, TrackedFields, short
from dynarag_jax.models.config import DecoderConfig, Family, RopeScaling

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
}
"""Architectures that load; everything else is refused by name."""

_MODEL_TYPES: Mapping[Family, str] = {"gemma3": "gemma3_text"}

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
}
_SWITCHES = (
    "activation", "norm_offset", "pre_norms", "post_norms", "scaled_embedding", "qkv_bias",
    "qk_norm", "qk_norm_joint",
)  # fmt: skip
# Fields that a family's config.json can say; the others must be off.
_SAID: Mapping[Family, tuple[str, ...]] = {
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
}  # fmt: skip
_SAYABLE = tuple(dict.fromkeys(name for names in _SAID.values() for name in names))
# Fields whose other values would change the computation in ways that are not built.
_PLAIN: Mapping[str, Any] = {
    "attention_bias": False,
    "mlp_bias": False,
    "use_bidirectional_attention": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}
# Fields that a family's own code does not read.
_GEMMA_IDLE: Idle = {"hidden_act": None, "max_window_layers": None}
_IDLE: Mapping[Family, Idle] = {
    "gemma2": _GEMMA_IDLE,
    "gemma3": _GEMMA_IDLE,
    "smollm3": {"max_window_layers": None},
}
_SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
)  # fmt: skip
# What may stand beside rotary positions that are not scaled.
_UNSCALED: Idle = {
    "type": None,
    "rope_type": None,
    "partial_rotary_factor": (None, 1.0),
    "factor": (None, 1.0),
    "original_max_position_embeddings": None,
}
_SCALED: Idle = {"partial_rotary_factor": (None, 1.0), "attention_factor": (None, 1.0)}
_ROPE_KINDS = ("default", "llama3", "linear")


def config_from_hf(hf: Mapping[str, Any], where: str = "config.json") -> DecoderConfig:
    """The decoder that a Hugging Face ``config.json`` describes.

    Raises:
      InputError: the architecture or one of its features is not supported, or a field is missing
        or makes no sense.
    """
    if not isinstance(hf, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(hf).__name__}")
    fields = TrackedFields(hf)
    cfg = _decoder(fields, where)
    fields.refuse_rest({**CONFIG, **_IDLE.get(cfg.family, {})}, where)
    return cfg


def _decoder(hf: TrackedFields, where: str) -> DecoderConfig:
    found = (hf.get("architectures") or [None])[0]
    if not isinstance(found, str) or found not in ARCHITECTURES:
        raise InputError(
            f"{where}: architecture {found!r} is not supported; supported: "
            f"{', '.join(ARCHITECTURES)}"
        )
    family = ARCHITECTURES[found]
    kind = _MODEL_TYPES.get(family, family)
    if hf.get("model_type", kind) != kind:
        raise InputError(
            f"{where}: model_type = {hf['model_type']!r} is not that of {found}, which is {kind!r}"
        )
    for field, plain in _PLAIN.items():
        if hf.get(field, plain) not in (plain, None):
            raise InputError(
                f"{where}: {field} = {short(hf[field])} is not supported, only {plain!r}"
            )
    gemma = family.startswith("gemma")
    act = hf.get("hidden_activation" if gemma else "hidden_act")
    wanted = "gelu_pytorch_tanh" if gemma else "silu"
    if act not in (wanted, None):
        raise InputError(f"{where}: activation {act!r} is not supported, only {wanted!r}")
    if family == "gemma3" and hf.get("attn_logit_softcapping") is not None:
        raise InputError(f"{where}: attn_logit_softcapping is not used by {found}; set it to null")
    try:
        heads, width, layers = (
            hf["num_attention_heads"], hf["hidden_size"], hf["num_hidden_layers"],
        )  # fmt: skip
        head_size = hf.get("head_dim") or (
            256 if gemma else 128 if family == "qwen3" else width // heads
        )
        for field in _SIZES:
            size = hf.get(field, 1)
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise ValueError(f"{field} = {size!r} must be a positive whole number")
        window, windowed = _windows(hf, family, layers)
        base, scaling, window_base = _rope(hf, family, where)
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
            **(_multipliers(hf) if family == "granite" else {}),
            score_cap=hf.get("attn_logit_softcapping", 50.0) if family == "gemma2" else None,
            logit_cap=hf.get("final_logit_softcapping", 30.0 if family == "gemma2" else None)
            if gemma
            else None,
            norm_eps=float(hf.get("rms_norm_eps", 1e-5 if family == "olmo2" else 1e-6)),
            tied=bool(hf.get("tie_word_embeddings", gemma or family == "smollm3")),
            positions=int(hf.get("max_position_embeddings", 2048)),
            **FEATURES[family],
        )
    except KeyError as error:
        raise InputError(f"{where}: field {error} is missing") from None
    except (AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"{where}: these fields make no decoder ({error})") from None


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
    window = hf.get("sliding_window", None if family == "smollm3" else 4096)
    kinds = None if family == "mistral" else hf.get("layer_types")
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
    if family == "mistral":
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


def _rope(
    hf: Mapping[str, Any], family: Family, where: str
) -> tuple[float, RopeScaling | None, float | None]:
    """Rotary base, its scaling, and the base of windowed layers."""
    # transformers 5 gathers everything about rotary positions in one object; Gemma 3 has one a kind
    # of layer.
    rope = hf.get("rope_parameters") or {}
    window_base = None
    default = 10_000.0
    if family == "gemma3":
        kinds = TrackedFields(rope)
        local = TrackedFields(kinds.get("sliding_attention") or {})
        rope = kinds.get("full_attention") or {}
        kinds.refuse_rest({}, f"{where}: rope_parameters")
        if local.get("rope_type", "default") != "default":
            raise InputError(f"{where}: scaled rotary positions of windowed layers are unsupported")
        window_base = float(local.get("rope_theta") or hf.get("rope_local_base_freq") or 10_000.0)
        local.refuse_rest(_UNSCALED, f"{where}: rope_parameters of sliding_attention")
        default = 1_000_000.0
    elif family == "smollm3":
        default = 2_000_000.0
    fields = TrackedFields(rope)
    base = float(fields.get("rope_theta") or hf.get("rope_theta") or default)
    # Older releases' object; transformers 5 takes it for rope_parameters.
    given = hf.get("rope_scaling")
    scaled = TrackedFields(given) if given else fields
    base = float(scaled.get("rope_theta") or base)
    kind = scaled.get("rope_type", scaled.get("type", "default"))
    if scaled.get("type", kind) != kind:
        raise InputError(f"{where}: rope type {kind!r} and type {scaled['type']!r} disagree")
    if kind not in _ROPE_KINDS:
        raise InputError(
            f"{where}: rope type {kind!r} is not supported, only {', '.join(_ROPE_KINDS)}"
        )
    if given and fields.get("rope_type", "default") not in ("default", kind):
        raise InputError(f"{where}: rope_scaling and rope_parameters disagree; keep one")
    scaling = None
    if kind == "linear":
        scaling = RopeScaling("linear", float(scaled["factor"]))
    elif kind == "llama3":
        scaling = RopeScaling(
            "llama3",
            factor=float(scaled["factor"]),
            low_freq_factor=float(scaled["low_freq_factor"]),
            high_freq_factor=float(scaled["high_freq_factor"]),
            original_positions=int(scaled["original_max_position_embeddings"]),
        )
    scaled.refuse_rest(_UNSCALED if kind == "default" else _SCALED, f"{where}: rotary positions")
    if given:
        fields.refuse_rest(dict.fromkeys((*_UNSCALED, *scaled)), f"{where}: rope_parameters")
    return base, scaling, window_base


def check_family(cfg: DecoderConfig) -> None:
    """Raise InputError if a configuration has features its family's ``config.json`` cannot say."""
    plain = DecoderConfig()
    family = FEATURES[cfg.family]
    wrong = [
        f"{name} = {getattr(cfg, name)}"
        for name in _SWITCHES
        if getattr(cfg, name) != family.get(name, getattr(plain, name))
    ]
    wrong += [
        f"{name} = {getattr(cfg, name)}"
        for name in _SAYABLE
        if getattr(cfg, name) != getattr(plain, name) and name not in _SAID[cfg.family]
    ]
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
        "model_type": _MODEL_TYPES.get(family, family),
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
    if family != "mistral" and family != "qwen2":
        hf["attention_bias"] = False
    if family in ("llama", "smollm3", "granite"):
        hf["mlp_bias"] = False
    if "window" in _SAID[family]:
        hf["sliding_window"] = cfg.window
    if family in ("qwen2", "qwen3", "smollm3"):
        hf["use_sliding_window"] = cfg.window is not None
    if "windowed" in _SAID[family]:
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
