"""Cross-encoders out: config.json and tensors under Hugging Face's names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dynarag_jax.exchange.cross_encoders import ARCHITECTURES
from dynarag_jax.exchange.encoder_weights import (
    LAYER,
    MODERN_LAYER,
    MODERN_TOP,
    QKV,
    TOP,
)
from dynarag_jax.exchange.safetensors import STORED, header_bytes
from dynarag_jax.models.encoder_parts import EncoderConfig, Params

CLASSIFIERS: Mapping[str, str] = {
    "bert": "BertForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "xlm-roberta": "XLMRobertaForSequenceClassification",
    "modernbert": "ModernBertForSequenceClassification",
}
"""The architecture of a cross-encoder by config.json's model_type."""

_PREFIX = {
    "bert": "bert.",
    "roberta": "roberta.",
    "xlm-roberta": "roberta.",
    "modernbert": "model.",
}


def cross_encoder_config(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a cross-encoder with one logit, from that of its encoder.

    sentence-transformers reads it as a CrossEncoder whose score is the logit itself.
    """
    kind = hf["model_type"]
    config = dict(hf) | {
        "architectures": [CLASSIFIERS[kind]],
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},
    }
    config.pop("sbert_ce_default_activation_function", None)
    if kind == "modernbert":
        config |= {"classifier_pooling": "cls", "classifier_activation": "gelu"}
        config |= {"classifier_bias": False}
    return config


def cross_encoder_tensors(cfg: EncoderConfig, kind: str, params: Params) -> dict[str, np.ndarray]:
    """A cross-encoder's parameters under Hugging Face's names; matrices are [out, in] there.

    Args:
      kind: config.json's model_type.
      params: of ``encoder.pair_scores``, one stack of layers.
    """
    ours: Any = jax.tree.map(lambda x: np.asarray(x, np.float32), jax.device_get(params))
    prefix, modern = _PREFIX[kind], cfg.family == "modernbert"
    top = MODERN_TOP if modern else TOP
    tensors = {prefix + theirs: ours[name] for name, theirs in top.items()}
    layers = ours["layers"]
    for i in range(cfg.layers):
        if modern:
            for name, theirs in MODERN_LAYER.items():
                if i or name != "attention_norm_scale":
                    tensors[f"{prefix}layers.{i}.{theirs}.weight"] = layers[name][i].T
            continue
        base = f"{prefix}encoder.layer.{i}"
        for name, theirs in LAYER.items():
            weight = f"{name}_scale" if name.endswith("norm") else name
            tensors[f"{base}.{theirs}.weight"] = layers[weight][i].T
            tensors[f"{base}.{theirs}.bias"] = layers[f"{name}_bias"][i]
        for part, weight, bias in zip(
            QKV,
            np.split(layers["qkv"][i], 3, axis=-1),
            np.split(layers["qkv_bias"][i], 3, axis=-1),
            strict=True,
        ):
            tensors[f"{base}.{part}.weight"] = weight.T
            tensors[f"{base}.{part}.bias"] = bias
    head = ours["head"]
    dense, score = ARCHITECTURES[CLASSIFIERS[kind]]
    tensors[f"{dense}.weight"] = head["dense"].T
    if modern:
        tensors["head.norm.weight"] = head["norm_scale"]
    else:
        tensors[f"{dense}.bias"] = head["dense_bias"]
    tensors[f"{score}.weight"] = head["score"].T
    tensors[f"{score}.bias"] = head["score_bias"]
    return tensors


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write float32 tensors as one safetensors file, in order of their names."""
    # Not ascontiguousarray, which makes a number a vector.
    named = {name: np.asarray(tensors[name], np.float32, order="C") for name in sorted(tensors)}
    kinds = {name: (STORED["float32"], x.shape) for name, x in named.items()}
    with path.open("wb") as stream:
        stream.write(header_bytes(kinds, {"format": "pt"}))
        for x in named.values():
            stream.write(x.tobytes())
