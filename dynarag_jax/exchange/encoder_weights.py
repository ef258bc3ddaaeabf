"""Weights of BERT, RoBERTa and ModernBERT encoders from safetensors, in one file or in shards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynarag_jax.exchange.safetensors import Tensors
from dynarag_jax.files import sha256_file
from dynarag_jax.models.encoder import EncoderConfig, Params, parameter_shapes

WEIGHTS = "model.safetensors"

# our name -> their module; matrices are stored [out, in] there
LAYER = {
    "output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
QKV = tuple(f"attention.self.{part}" for part in ("query", "key", "value"))
TOP = {
    "tokens": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "types": "embeddings.token_type_embeddings.weight",
    "norm_scale": "embeddings.LayerNorm.weight",
    "norm_bias": "embeddings.LayerNorm.bias",
}


# The same of ModernBERT, whose tensors have no biases.
MODERN_LAYER = {
    "attention_norm_scale": "attn_norm",
    "qkv": "attn.Wqkv",
    "output": "attn.Wo",
    "mlp_norm_scale": "mlp_norm",
    "up": "mlp.Wi",
    "down": "mlp.Wo",
}
MODERN_TOP = {
    "tokens": "embeddings.tok_embeddings.weight",
    "norm_scale": "embeddings.norm.weight",
    "final_norm_scale": "final_norm.weight",
}


def expected_tensors(cfg: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Hugging Face's tensor names of an encoder, with their shapes."""
    if cfg.family == "modernbert":
        return _modern_tensors(cfg)
    ours = parameter_shapes(cfg)
    shapes = {theirs: ours[name] for name, theirs in TOP.items()}
    layer = {name: shape[1:] for name, shape in ours["layers"].items()}
    for i in range(cfg.layers):
        for name, theirs in LAYER.items():
            prefix = f"encoder.layer.{i}.{theirs}"
            weight = layer.get(name) or layer[f"{name}_scale"]
            shapes[f"{prefix}.weight"] = weight[::-1]
            shapes[f"{prefix}.bias"] = layer[f"{name}_bias"]
        for part in QKV:
            shapes[f"encoder.layer.{i}.{part}.weight"] = (cfg.width, cfg.width)
            shapes[f"encoder.layer.{i}.{part}.bias"] = (cfg.width,)
    return shapes


def _modern_tensors(cfg: EncoderConfig) -> dict[str, tuple[int, ...]]:
    ours = parameter_shapes(cfg)
    shapes = {theirs: ours[name] for name, theirs in MODERN_TOP.items()}
    for i in range(cfg.layers):
        for name, theirs in MODERN_LAYER.items():
            if i or name != "attention_norm_scale":  # the first layer has none
                shapes[f"layers.{i}.{theirs}.weight"] = ours["layers"][name][1:][::-1]
    return shapes


def _modern_params(tensors: Tensors, cfg: EncoderConfig) -> Params:
    def read(name: str) -> np.ndarray:
        return tensors.read(name).astype(np.float32)

    def stacked(name: str, theirs: str) -> np.ndarray:
        names = [f"layers.{i}.{theirs}.weight" for i in range(cfg.layers)]
        if name == "attention_norm_scale":
            return np.stack([np.ones(cfg.width, np.float32), *map(read, names[1:])])
        return np.stack([read(name).T for name in names])

    params: dict[str, Any] = {name: read(theirs) for name, theirs in MODERN_TOP.items()}
    params["layers"] = {name: stacked(name, theirs) for name, theirs in MODERN_LAYER.items()}
    return jax.tree.map(jnp.asarray, params)


def _plain_name(name: str) -> str:
    """A tensor's name without what older checkpoints and models with a head add to it."""
    name = name.removeprefix("bert.").removeprefix("roberta.").removeprefix("model.")
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


def _ignored(name: str) -> bool:
    """Whether a tensor may be there and is not needed: pooler, masked-language head, constants."""
    return (
        name.startswith(("pooler.", "cls.", "lm_head.", "classifier.", "head.", "decoder."))
        or name == "embeddings.position_ids"
    )


def read_params(model: Path, cfg: EncoderConfig) -> Params:
    """An encoder's parameters in float32, read one tensor at a time.

    Raises:
      InputError: no safetensors, a damaged file, or tensors that do not fit; all are listed.
    """
    tensors = Tensors(model).renamed(_plain_name)
    tensors.check(expected_tensors(cfg), _ignored)
    if cfg.family == "modernbert":
        return _modern_params(tensors, cfg)

    def read(name: str) -> np.ndarray:
        return tensors.read(name).astype(np.float32)

    def stacked(module: str, kind: str) -> np.ndarray:
        # A vector is its own transpose.
        return np.stack([read(f"encoder.layer.{i}.{module}.{kind}").T for i in range(cfg.layers)])

    layers = {
        "qkv": np.concatenate([stacked(part, "weight") for part in QKV], axis=-1),
        "qkv_bias": np.concatenate([stacked(part, "bias") for part in QKV], axis=-1),
    }
    for name, theirs in LAYER.items():
        weight = f"{name}_scale" if name.endswith("norm") else name
        layers[weight] = stacked(theirs, "weight")
        layers[f"{name}_bias"] = stacked(theirs, "bias")
    params: dict[str, Any] = {name: read(theirs) for name, theirs in TOP.items()}
    return jax.tree.map(jnp.asarray, params | {"layers": layers})


def weight_hashes(model: Path) -> list[str]:
    """SHA-256 of each file of the weights, in order of their names."""
    return [sha256_file(path) for path in Tensors(model).files]
