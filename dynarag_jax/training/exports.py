"""What training leaves: models and adapters, from its live state or from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dynarag_jax.exchange.adapters import save_adapters
from dynarag_jax.exchange.cards import ModelCard
from dynarag_jax.exchange.decoders import save_decoder
from dynarag_jax.models.decoder import DecoderConfig, Params, is_parameter
from dynarag_jax.models.layout import param_shardings, trained_table
from dynarag_jax.models.lora import LoraConfig, merge_layers
from dynarag_jax.policy.grammar import Grammar, Spelling
from dynarag_jax.training.checkpoints import Checkpoints


@dataclass(frozen=True)
class Start:
    """What a training stage begins with."""

    cfg: DecoderConfig
    params: Params | None
    """None begins at random"""
    tokenizer: Any
    spelling: Spelling
    grammar: Grammar
    init: str = ""
    """where ``params`` were read"""
    lora: LoraConfig | None = None
    """train adapters, and leave ``params`` as they are"""
    adapters: Params | None = None
    """adapters to begin with; None begins with fresh ones, which change nothing"""


def merged(start: Start, trained: Params) -> Params:
    """The whole model, to be saved: what was trained, or the start with the adapters merged in.

    Adapters are merged as the tensors are written, one at a time.
    """
    if start.lora is None or start.params is None:
        return trained
    return merge_layers(start.lora, start.params, trained)


def save_trained(
    directory: Path, start: Start, trained: Params, card: ModelCard | None = None
) -> None:
    """Write ``directory/model``, and ``directory/adapters`` where adapters were trained.

    Works on parameters of a mesh of one process or of several: each writes its part.

    Args:
      trained: the parameters of a state or a checkpoint: the model's, or its adapters'.
      card: README.md and manifest.json of both.

    Raises:
      InputError: a directory cannot be written.
    """
    if start.lora:
        save_adapters(
            directory / "adapters", start.cfg, start.lora, trained,
            base=start.init, card=card, overwrite=True,
        )  # fmt: skip
    save_decoder(
        directory / "model", start.cfg, merged(start, trained), start.tokenizer,
        dtype=start.cfg.param_dtype, card=card, source=start.init or None, overwrite=True,
    )  # fmt: skip


def restore_trained(start: Start, mesh: Mesh, directory: Path, step: int = 0) -> tuple[int, Params]:
    """What a checkpoint holds of the model that ``start`` describes, on any mesh.

    Args:
      directory: of the training stage's checkpoints.
      step: which one; 0 is the newest.

    Returns:
      The step, and the parameters, or the adapters where adapters are trained.

    Raises:
      InputError: no such checkpoint, or it holds another model's arrays.
    """
    dtype = jnp.dtype(start.cfg.param_dtype if start.lora is None else jnp.float32)
    shapes = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, dtype),
        trained_table(start.cfg, start.lora),
        is_leaf=is_parameter,
    )
    checkpoints = Checkpoints(directory, read_only=True)
    try:
        return checkpoints.restore_params(
            param_shardings(start.cfg, mesh, start.lora), shapes, step
        )
    finally:
        checkpoints.close()
