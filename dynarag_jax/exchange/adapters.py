"""Low-rank adapters in and out of PEFT's directories.

A directory holds adapter_config.json and adapter_model.safetensors, two tensors a matrix and layer:
lora_A [rank, in] and lora_B [out, rank].
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.cards import ModelCard
from dynarag_jax.exchange.hub import model_directory
from dynarag_jax.exchange.known import Idle, TrackedFields
from dynarag_jax.exchange.names import fused, module_names
from dynarag_jax.exchange.output import shared_directory
from dynarag_jax.exchange.safetensors import Tensors
from dynarag_jax.exchange.tensors import (
    Planned,
    default_place,
    fetch,
    stack,
    their_shape,
    write_tensors,
)
from dynarag_jax.files import PathLike, read_json, write_json
from dynarag_jax.models.config import DecoderConfig, Params, is_parameter
from dynarag_jax.models.lora import MATRICES, LoraConfig, adapter_table
from dynarag_jax.processes import is_primary

_STEM = "adapter_model"
# Fields of adapter_config.json beside the rank, the scale and the dropout: what is written, and
# what may be read. Other values compute something else.
_PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "layers_to_transform": None,
    "layer_replication": None,
    "trainable_token_indices": None,
    "target_parameters": None,
}
# How A and B began: those that change nothing else, and those that change the base with them.
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_MOVING = ("pissa", "olora", "corda", "loftq", "lora_ga")
_OFF = (None, False, {}, [])
_KNOWN: Idle = {
    **{name: (None, plain) for name, plain in _PLAIN.items()},
    "init_lora_weights": _STARTS,
    # Names and what training did; target_modules is checked against the tensors.
    **dict.fromkeys(
        ("task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode")
    ),
    **dict.fromkeys(("exclude_modules", "layers_pattern", "peft_version", "runtime_config")),
    **dict.fromkeys(("megatron_core", "eva_config", "qalora_group_size", "unsloth_version")),
    # Variants of LoRA, known while they are off.
    **dict.fromkeys(
        ("megatron_config", "loftq_config", "corda_config", "lora_ga_config", "velora_config"), _OFF
    ),
    **dict.fromkeys(
        ("alora_invocation_tokens", "use_qalora", "monteclora_config", "lora_bias"), _OFF
    ),
    **dict.fromkeys(("use_bdlora", "arrow_config", "kasa_config", "ensure_weight_tying"), _OFF),
}


def require_adaptable(cfg: DecoderConfig) -> None:
    """Refuse a family whose adapters PEFT and this library do not have in common.

    Raises:
      InputError: the family stores several matrices as one, which PEFT adapts together.
    """
    if fused(cfg):
        raise InputError(
            f"family {cfg.family!r} stores query, key and value as one matrix, beside which PEFT "
            f"has one adapter, and here there is one beside each: train the whole model (lora.rank "
            f"0), or merge adapters with PEFT first"
        )


def _names(cfg: DecoderConfig, name: str, half: str) -> list[str]:
    """PEFT's tensor of each layer; ``half`` is ``a`` or ``b``."""
    prefix, module = "base_model.model.model.layers", module_names()[name]
    return [f"{prefix}.{i}.{module}.lora_{half.upper()}.weight" for i in range(cfg.layers)]


def _plain_name(name: str) -> str:
    """A tensor's name as PEFT saves it, without wrappers' prefixes and the adapter's own name."""
    name = re.sub(r"^(?:module\.)+", "", name)
    return re.sub(r"\.(lora_[AB])\.default\.weight$", r".\1.weight", name)


def _inputs(name: str, half: str) -> int:
    return MATRICES[name] if half == "a" else 1


def save_adapters(
    directory: PathLike,
    cfg: DecoderConfig,
    lora: LoraConfig,
    adapters: Params,
    *,
    base: str | None = None,
    dtype: str = "float32",
    card: ModelCard | None = None,
    overwrite: bool = False,
) -> None:
    """Write adapters as PEFT does, for ``PeftModel.from_pretrained``.

    Args:
      base: the model they belong to, a directory or hub id.
      card: README.md and manifest.json.

    Raises:
      InputError: the directory exists or cannot be written, or PEFT has no form for them.
    """
    require_adaptable(cfg)
    plan = []
    for name, pair in adapters.items():
        for half in ("a", "b"):
            shape = their_shape(pair[half].shape[1:], _inputs(name, half))
            for i, theirs in enumerate(_names(cfg, name, half)):
                get = functools.partial(fetch, pair[half], _inputs(name, half), i)
                plan.append(Planned(theirs, shape, get))
    config = {
        **_PLAIN,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": [module_names()[name].split(".")[-1] for name in adapters],
        "inference_mode": True,
        "use_rslora": False,
    }
    with shared_directory(directory, overwrite) as temporary:
        write_tensors(temporary, plan, dtype, 1 << 62, _STEM)
        if is_primary():
            write_json(temporary / "adapter_config.json", config)
            if card:
                card.write(temporary)


def load_adapters(
    source: PathLike,
    cfg: DecoderConfig,
    shardings: Callable[[LoraConfig], Any] | None = None,
) -> tuple[LoraConfig, Params]:
    """Read PEFT adapters for a decoder, as float32.

    Args:
      source: directory or hub id.
      shardings: function from the adapters' configuration to their tree of NamedSharding.

    Raises:
      InputError: no adapters there, of a kind that is not LoRA, or they do not fit the model.
    """
    require_adaptable(cfg)
    directory = model_directory(source)
    where = directory / "adapter_config.json"
    config = read_json(where)
    if not isinstance(config, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(config).__name__}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MOVING):
        raise InputError(
            f"{where}: init_lora_weights = {start!r} is not supported: it changes the base model, "
            f"too; save the adapters with PEFT's path_initial_model_for_weight_conversion"
        )
    used = ("r", "lora_alpha", "use_rslora", "lora_dropout", "target_modules")
    fields = TrackedFields(config)
    fields.refuse_rest({**_KNOWN, **dict.fromkeys(used)}, str(where))
    tensors = Tensors(directory, _STEM).renamed(_plain_name)
    adapted = {n for n in MATRICES if any(t in tensors.names() for t in _names(cfg, n, "a"))}
    if not adapted:
        raise InputError(f"{directory}: holds adapters of no matrix of this model")
    targets = config.get("target_modules")
    if isinstance(targets, list):
        bare = [m for n, m in module_names().items() if n not in adapted]
        if absent := [t for t in targets if any(m.endswith(str(t)) for m in bare)]:
            raise InputError(
                f"{where}: target_modules names '{absent[0]}', and there are no tensors for it"
            )
    try:
        rank, alpha = fields["r"], float(fields["lora_alpha"])
        if fields.get("use_rslora"):
            alpha *= math.sqrt(rank)  # scaled by alpha / sqrt(rank) there
        lora = LoraConfig(
            rank,
            alpha,
            tuple(n for n in MATRICES if n in adapted),
            float(fields.get("lora_dropout") or 0.0),
        )
    except KeyError as error:
        raise InputError(f"{where}: field {error} is missing") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: these fields make no adapters ({error})") from None
    table = adapter_table(cfg, lora)
    expected = {
        theirs: their_shape(p.shape[1:], _inputs(name, half))
        for name, pair in table.items()
        for half, p in pair.items()
        for theirs in _names(cfg, name, half)
    }
    tensors.check(expected, config=where.name)
    if shardings:
        places = shardings(lora)
    else:
        places = jax.tree.map(lambda _: default_place(), table, is_leaf=is_parameter)
    return lora, {
        name: {
            half: stack(
                tensors,
                _names(cfg, name, half),
                p.shape,
                _inputs(name, half),
                places[name][half],
                np.dtype(np.float32),
            )
            for half, p in pair.items()
        }
        for name, pair in table.items()
    }
