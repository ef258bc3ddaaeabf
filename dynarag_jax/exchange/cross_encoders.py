"""Cross-encoders with one logit from Hugging Face directories: BERT, RoBERTa and ModernBERT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from dynarag_jax.errors import InputError
from dynarag_jax.exchange import encoders
from dynarag_jax.exchange.encoder_configs import config_from_hf
from dynarag_jax.exchange.encoder_weights import read_params
from dynarag_jax.exchange.hub import model_directory
from dynarag_jax.exchange.safetensors import Tensors
from dynarag_jax.files import PathLike, read_json
from dynarag_jax.models.encoder import EncoderConfig, Params

# (dense, score) by architecture: BERT's pooler is the dense layer.
ARCHITECTURES = {
    "ModernBertForSequenceClassification": ("head.dense", "classifier"),
    "BertForSequenceClassification": ("bert.pooler.dense", "classifier"),
    "RobertaForSequenceClassification": ("classifier.dense", "classifier.out_proj"),
    "XLMRobertaForSequenceClassification": ("classifier.dense", "classifier.out_proj"),
}
"""Architectures that load, and where their heads lie."""


@dataclass(frozen=True)
class CrossEncoder:
    """A cross-encoder ready to score pairs with ``models.encoder.pair_scores``."""

    config: EncoderConfig
    params: Params
    tokenizer: Tokenizer
    """joins two texts, cuts the longer one, does not pad"""

    def batch(
        self, questions: Sequence[str], passages: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens [B, T], lengths [B] and types [B, T] of pairs, padded to the longest."""
        pairs = self.tokenizer.encode_batch(list(zip(questions, passages, strict=True)))
        longest = max(len(pair.ids) for pair in pairs)
        tokens, types = np.zeros((2, len(pairs), longest), np.int32)
        for i, pair in enumerate(pairs):
            tokens[i, : len(pair.ids)] = pair.ids
            types[i, : len(pair.ids)] = pair.type_ids
        lengths = np.array([len(pair.ids) for pair in pairs], np.int32)
        return tokens, lengths, np.minimum(types, self.config.types - 1)


def load_cross_encoder(
    source: PathLike, dtype: Literal["float32", "bfloat16"] = "float32"
) -> CrossEncoder:
    """Read a cross-encoder with one logit from a directory or hub id.

    Args:
      dtype: type of the activations; the head computes in float32.

    Raises:
      InputError: another architecture, more than one logit, or tensors that do not fit.
    """
    directory = model_directory(source)
    where = directory / "config.json"
    hf = read_json(where)
    if not isinstance(hf, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(hf).__name__}")
    architecture = (hf.get("architectures") or [None])[0]
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"{where}: architecture {architecture!r} is no cross-encoder that loads; supported: "
            f"{', '.join(ARCHITECTURES)}"
        )
    cfg = config_from_hf(hf, str(where))
    modern = cfg.family == "modernbert"
    if modern:
        _require_head(hf, str(where))
    params = read_params(directory, cfg)
    tokenizer = encoders.read_tokenizer(directory, False, cfg.positions, cfg)
    dense, score = ARCHITECTURES[architecture]
    shapes = {
        "dense": (f"{dense}.weight", (cfg.width, cfg.width)),
        **(
            {"norm_scale": ("head.norm.weight", (cfg.width,))}
            if modern
            else {"dense_bias": (f"{dense}.bias", (cfg.width,))}
        ),
        "score": (f"{score}.weight", (1, cfg.width)),
        "score_bias": (f"{score}.bias", (1,)),
    }
    tensors = Tensors(directory)
    # The encoder's own tensors are checked where they are read; of the head's, all are used.
    tensors.check(dict(shapes.values()), lambda name: not name.startswith(("classifier.", "head.")))
    head: dict[str, Any] = {
        ours: jnp.asarray(tensors.read(name).astype(np.float32).T)
        for ours, (name, _) in shapes.items()
    }
    return CrossEncoder(replace(cfg, dtype=dtype), {**params, "head": head}, tokenizer)


def _require_head(hf: Mapping[str, Any], where: str) -> None:
    """Raise InputError where ModernBERT's head is another than the one that is built."""
    plain = {
        "classifier_pooling": "cls", "classifier_activation": "gelu", "classifier_bias": False,
    }  # fmt: skip
    for field, only in plain.items():
        if (found := hf.get(field, only)) != only:
            raise InputError(f"{where}: field '{field}' is {found!r}; only {only!r} is supported")
