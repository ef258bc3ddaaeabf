"""What a ``config.json`` says of rotary positions, in transformers 4's fields and in 5's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.known import Idle, TrackedFields
from dynarag_jax.models.config import Family, RopeScaling

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
# What Phi-3's own code takes for the one scaling that it has.
_LONGROPE = ("longrope", "su", "yarn")


def _base(given: Any, default: float) -> float:
    """A rotary base, if one is given."""
    return default if given is None else float(given)


def read_rope(
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
        window_base = _base(hf.get("rope_local_base_freq"), 10_000.0)
        window_base = _base(local.get("rope_theta"), window_base)
        local.refuse_rest(_UNSCALED, f"{where}: rope_parameters of sliding_attention")
        default = 1_000_000.0
    elif family == "smollm3":
        default = 2_000_000.0
    fields = TrackedFields(rope)
    base = _base(fields.get("rope_theta"), _base(hf.get("rope_theta"), default))
    # Older releases' object; transformers 5 takes it for rope_parameters.
    given = hf.get("rope_scaling")
    scaled = TrackedFields(given) if given else fields
    base = _base(scaled.get("rope_theta"), base)
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


def read_phi_rope(
    hf: Mapping[str, Any], head_size: int, where: str
) -> tuple[float, RopeScaling | None, float]:
    """Rotary base, its scaling, and the share of a head that turns, of Phi-3's config.json.

    Raises:
      InputError: the fields disagree, or say what is not known.
    """
    given = hf.get("rope_parameters") or {}
    # Older releases' object; transformers 5 takes it for rope_parameters.
    scaled = hf.get("rope_scaling") or given
    if hf.get("rope_scaling") and given and dict(scaled) != dict(given):
        raise InputError(f"{where}: rope_scaling and rope_parameters disagree; keep one")
    rope = TrackedFields(scaled)
    base = _base(rope.get("rope_theta"), _base(hf.get("rope_theta"), 10_000.0))
    share = rope.get("partial_rotary_factor", hf.get("partial_rotary_factor"))
    if hf.get("partial_rotary_factor", share) != share:
        raise InputError(f"{where}: two values of partial_rotary_factor; keep one")
    share = 1.0 if share is None else float(share)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("type", kind) != kind:
        raise InputError(f"{where}: rope type {kind!r} and type {rope['type']!r} disagree")
    most = int(hf.get("max_position_embeddings", 4096))
    first = hf.get("original_max_position_embeddings")
    first = int(first or rope.get("original_max_position_embeddings") or 4096)
    if kind == "default":
        rope.refuse_rest(_UNSCALED, f"{where}: rotary positions")
        return base, None, share
    if kind not in _LONGROPE:
        raise InputError(f"{where}: rope type {kind!r} is not supported, only default, longrope")
    turned = int(head_size * share) // 2
    factors = []
    for name in ("short_factor", "long_factor"):
        values = rope[name]
        if not isinstance(values, list) or len(values) != turned:
            raise ValueError(f"{name} must be a list of {turned} numbers, one a frequency")
        factors.append(tuple(float(x) for x in values))
    factor = float(rope.get("factor") or most / first)
    attention = rope.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(first)) if factor > 1 else 1.0
    rope.get("original_max_position_embeddings")
    rope.refuse_rest({"partial_rotary_factor": None}, f"{where}: rotary positions")
    scaling = RopeScaling(
        "longrope",
        factor=factor,
        original_positions=first,
        short=factors[0],
        long=factors[1],
        attention_factor=float(attention),
        positions=most,
    )
    return base, scaling, share
