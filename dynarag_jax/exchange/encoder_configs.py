"""The config.json of encoders: BERT, RoBERTa and ModernBERT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.known import CONFIG, Idle, TrackedFields
from dynarag_jax.models.encoder_parts import EncoderConfig

MODEL_TYPES = ("bert", "roberta", "xlm-roberta", "modernbert")
"""What config.json may call the model."""

# What an encoder's config.json may say beside the fields that are read: heads it was pretrained
# with, and what a cross-encoder does with its score, which changes no order.
IDLE: Idle = {
    **CONFIG,
    **dict.fromkeys(("tie_word_embeddings", "output_past", "sentence_transformers")),
    **dict.fromkeys(("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers")),
    **dict.fromkeys(("pooler_size_per_head", "pooler_type")),
    "sbert_ce_default_activation_function": None,
}

# The same of ModernBERT's: heads it was pretrained with, and how a GPU computes it.
_MODERN_IDLE: Idle = {
    **IDLE,
    **dict.fromkeys(("decoder_bias", "sparse_prediction", "sparse_pred_ignore_index")),
    **dict.fromkeys(("deterministic_flash_attn", "reference_compile", "repad_logits_with_grad")),
    **dict.fromkeys(("classifier_pooling", "classifier_activation", "classifier_bias")),
    # The norms' is norm_eps; and there are no position embeddings of any type.
    **dict.fromkeys(("layer_norm_eps", "position_embedding_type")),
}


def config_from_hf(hf: dict[str, Any], where: str = "config.json") -> EncoderConfig:
    """The encoder that a Hugging Face ``config.json`` describes.

    Raises:
      InputError: not a BERT, RoBERTa or ModernBERT encoder, a feature is not supported, or a
        field is missing.
    """
    fields = TrackedFields(hf)
    modern = fields.get("model_type") == "modernbert"
    try:
        cfg = (_modern if modern else _config)(fields, where)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from None
    fields.refuse_rest(_MODERN_IDLE if modern else IDLE, where)
    return cfg


def _config(hf: TrackedFields, where: str) -> EncoderConfig:
    kind = hf.get("model_type")
    if kind not in MODEL_TYPES:
        raise InputError(
            f"{where}: field 'model_type' is {kind!r}; supported are {', '.join(MODEL_TYPES)}"
        )
    plain = {
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }
    _require(hf, plain, where)
    sizes = _sizes(hf, {**_SIZES, "types": "type_vocab_size"}, where)
    # A plain dict: pyright cannot see that the sizes are not the dtype.
    shape: dict[str, Any] = sizes | {"norm_eps": float(hf.get("layer_norm_eps", 1e-12))}
    if kind != "bert":
        # Positions are counted from the padding token's id on.
        first = int(hf.get("pad_token_id", 1)) + 1
        shape |= {"first_position": first, "positions": sizes["positions"] - first}
    return EncoderConfig(**shape)


def _modern(hf: TrackedFields, where: str) -> EncoderConfig:
    """ModernBERT (arXiv 2412.13663), and the encoders of ettin."""
    plain = {"hidden_activation": "gelu", "attention_bias": False, "mlp_bias": False}
    _require(hf, {**plain, "norm_bias": False}, where)
    sizes = _sizes(hf, _SIZES, where)
    layers, every = sizes["layers"], hf.get("global_attn_every_n_layers") or 3
    kinds = hf.get("layer_types") or [
        "sliding_attention" if i % every else "full_attention" for i in range(layers)
    ]
    if len(kinds) != layers or not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise InputError(
            f"{where}: layer_types must name full_attention or sliding_attention for each of "
            f"{layers} layers"
        )
    bases = {"full_attention": 160_000.0, "sliding_attention": 10_000.0}
    ropes = TrackedFields(hf.get("rope_parameters") or {})
    for kind, field in zip(bases, ("global_rope_theta", "local_rope_theta"), strict=True):
        rope = TrackedFields(ropes.get(kind) or {})
        bases[kind] = float(rope.get("rope_theta") or hf.get(field) or bases[kind])
        rope.refuse_rest({"rope_type": ("default",)}, f"{where}: rope_parameters of {kind}")
    ropes.refuse_rest({}, f"{where}: rope_parameters")
    shape: dict[str, Any] = dict(sizes)
    return EncoderConfig(
        **shape,
        types=1,
        family="modernbert",
        norm_eps=float(hf.get("norm_eps", 1e-5)),
        rope_base=bases["full_attention"],
        window_rope_base=bases["sliding_attention"],
        window=int(hf.get("local_attention", 128)) // 2,
        windowed=tuple(kind == "sliding_attention" for kind in kinds),
    )


_SIZES = {
    "vocab": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp": "intermediate_size",
    "positions": "max_position_embeddings",
}


def _require(hf: TrackedFields, plain: Mapping[str, Any], where: str) -> None:
    """Raise InputError where a field has another value than the one that is built."""
    for field, only in plain.items():
        value = hf.get(field, only)
        if value != only:
            raise InputError(f"{where}: field '{field}' is {value!r}; only {only!r} is supported")


def _sizes(hf: TrackedFields, names: Mapping[str, str], where: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for ours, field in names.items():
        value = hf.get(field)
        if value is None:
            raise InputError(f"{where}: field '{field}' is missing")
        sizes[ours] = value
    return sizes
