"""Hugging Face's names and shapes of a decoder's tensors.

Phi-3 stores query, key and value as one tensor, and gate and up as another; ``separated`` takes
them apart as they are read.

The stacked per-layer arrays of ``models.decoder`` and Hugging Face's one-tensor-a-layer names are
two views of the same table; ``layer_names`` is the bridge, used in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping

from dynarag_jax.exchange.safetensors import Tensors
from dynarag_jax.exchange.tensors import their_shape
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.models.lora import MATRICES

_MODULES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_FUSED = {
    "self_attn.qkv_proj.weight": ("query", "key", "value"),
    "mlp.gate_up_proj.weight": ("gate", "up"),
}
TOP = {
    "embedding": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
}
"""The tensors outside of the layers."""


def layer_names(cfg: DecoderConfig) -> dict[str, str]:
    """Hugging Face's name of each array of a layer, without the layer's prefix."""
    names = {
        "attention_norm": "input_layernorm.weight",
        # Gemma's norm of this name comes after attention, not before the MLP.
        "mlp_norm": "post_attention_layernorm.weight",
        **{name: f"{module}.weight" for name, module in _MODULES.items()},
        **{f"{name}_bias": f"{_MODULES[name]}.bias" for name in ("query", "key", "value")},
        "query_norm": "self_attn.q_norm.weight",
        "key_norm": "self_attn.k_norm.weight",
    }
    if cfg.post_norms:
        names |= {
            "attention_post_norm": "post_attention_layernorm.weight",
            "mlp_norm": "pre_feedforward_layernorm.weight",
            "mlp_post_norm": "post_feedforward_layernorm.weight",
        }
    table = decoder.parameter_table(cfg)["layers"]
    return {name: names[name] for name in table}


def fused(cfg: DecoderConfig) -> Mapping[str, tuple[str, ...]]:
    """Tensors of a layer that hold several of its matrices, one below the other."""
    return _FUSED if cfg.family == "phi3" else {}


def separated(cfg: DecoderConfig, tensors: Tensors) -> Tensors:
    """The tensors of a decoder with every matrix by its own name, as ``layer_names`` has them."""
    table, names = decoder.parameter_table(cfg)["layers"], layer_names(cfg)
    for theirs, parts in fused(cfg).items():
        rows = [their_shape(table[part].shape[1:], inputs(part))[0] for part in parts]
        for i in range(cfg.layers):
            layer = f"model.layers.{i}."
            into = [f"{layer}{names[part]}" for part in parts]
            tensors = tensors.divided(f"{layer}{theirs}", dict(zip(into, rows, strict=True)))
    return tensors


def module_names() -> Mapping[str, str]:
    """Hugging Face's module of each matrix, ``query`` -> ``self_attn.q_proj``."""
    return _MODULES


def inputs(name: str) -> int:
    """How many axes of an array of a layer are its input; 0 is a vector."""
    return MATRICES.get(name, 0)


def expected_tensors(cfg: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Hugging Face's tensor names of a decoder, with their shapes."""
    table = decoder.parameter_table(cfg)
    shapes = {TOP[name]: p.shape for name, p in table.items() if name in TOP}
    own = {
        name: their_shape(table["layers"][name].shape[1:], inputs(name))
        for name in layer_names(cfg)
    }
    layer = {theirs: own[name] for name, theirs in layer_names(cfg).items()}
    for theirs, parts in fused(cfg).items():
        layer[theirs] = (sum(own[part][0] for part in parts), own[parts[0]][1])
        for part in parts:
            del layer[layer_names(cfg)[part]]
    for theirs, shape in layer.items():
        shapes |= {f"model.layers.{i}.{theirs}": shape for i in range(cfg.layers)}
    return shapes
