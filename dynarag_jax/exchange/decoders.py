"""Decoder weights in and out of Hugging Face directories.

One tensor at a time goes between the stacked per-layer arrays of ``models.decoder`` and Hugging
Face's files; ``names`` says which is which.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.cards import ModelCard
from dynarag_jax.exchange.configs import ARCHITECTURES, config_from_hf, config_to_hf
from dynarag_jax.exchange.generation import generation_settings
from dynarag_jax.exchange.hub import model_directory
from dynarag_jax.exchange.names import (
    TOP,
    expected_tensors,
    fused,
    inputs,
    layer_names,
    separated,
)
from dynarag_jax.exchange.output import shared_directory
from dynarag_jax.exchange.safetensors import Tensors
from dynarag_jax.exchange.tensors import (
    Planned,
    default_place,
    fetch,
    place,
    stack,
    target_dtype,
    write_tensors,
)
from dynarag_jax.exchange.tokenizers import save_tokenizer
from dynarag_jax.files import PathLike, read_json, sha256_file, write_json
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig, Params
from dynarag_jax.processes import is_primary
from dynarag_jax.templates import turn_end

__all__ = [
    "ARCHITECTURES",
    "config_from_hf",
    "config_to_hf",
    "decoder_config",
    "expected_tensors",
    "layer_names",
    "load_decoder",
    "save_decoder",
    "weights_fingerprint",
]


def decoder_config(
    source: PathLike, param_dtype: str = "float32", **settings: Any
) -> DecoderConfig:
    """The configuration of a decoder in a directory or on the hub, without its weights.

    Raises:
      InputError: no such model, or an unsupported one.
    """
    where = model_directory(source) / "config.json"
    cfg = config_from_hf(read_json(where), str(where))
    return dataclasses.replace(cfg, **settings, param_dtype=param_dtype)


def load_decoder(
    source: PathLike, param_dtype: str = "float32", shardings: Any = None, **settings: Any
) -> tuple[DecoderConfig, Params]:
    """Read a decoder from a Hugging Face directory or hub id.

    Tensors are read one at a time and put straight into their place on the mesh; each process
    reads what its devices hold.

    Args:
      source: directory with config.json and safetensors, or hub id.
      param_dtype: type of the parameters in memory.
      shardings: function from the config to the tree of NamedSharding to place them by; None
        leaves them on the default device.
      settings: fields of DecoderConfig that config.json does not know (dtype, remat, unroll).

    Raises:
      InputError: no such model, an unsupported one, or tensors that do not fit; all are listed.
    """
    directory = model_directory(source)
    cfg = decoder_config(directory, param_dtype, **settings)
    tensors = decoder_tensors(directory)
    # Tied models may store the head as well; old ones store a table of rotary frequencies.
    copies = {TOP["head"]: TOP["embedding"]} if cfg.tied else None
    tensors.check(expected_tensors(cfg), lambda name: name.endswith("rotary_emb.inv_freq"), copies)
    tensors = separated(cfg, tensors)
    table = decoder.parameter_table(cfg)
    places = shardings(cfg) if shardings else None
    if places is None:
        places = jax.tree.map(lambda _: default_place(), table, is_leaf=decoder.is_parameter)
    dtype = target_dtype(param_dtype)
    params: dict[str, Any] = {
        name: place(tensors, theirs, places[name], dtype)
        for name, theirs in TOP.items()
        if name in table
    }
    params["layers"] = {
        name: stack(
            tensors,
            [f"model.layers.{i}.{theirs}" for i in range(cfg.layers)],
            table["layers"][name].shape,
            inputs(name),
            places["layers"][name],
            dtype,
        )
        for name, theirs in layer_names(cfg).items()
    }
    return cfg, params


def decoder_tensors(directory: Path) -> Tensors:
    """The tensors of a decoder by the names of ``expected_tensors``, as they are stored.

    A model saved without its head has no ``model.`` before its names.
    """
    tensors = Tensors(directory)
    names = tensors.names()
    if TOP["embedding"].removeprefix("model.") in names:
        return tensors.renamed(lambda name: name if name == TOP["head"] else f"model.{name}")
    return tensors


def tensor_plan(cfg: DecoderConfig, params: Params) -> list[Planned]:
    """Hugging Face's tensors of a decoder, to be fetched one at a time."""
    shapes = expected_tensors(cfg)
    plan = [
        Planned(theirs, shapes[theirs], functools.partial(fetch, params[name], None))
        for name, theirs in TOP.items()
        if name in params
    ]
    inside = {part: (theirs, parts) for theirs, parts in fused(cfg).items() for part in parts}
    for i in range(cfg.layers):
        for name, theirs in layer_names(cfg).items():
            theirs, parts = inside.get(name, (theirs, (name,)))
            if name != parts[0]:
                continue  # written with the first of its tensor
            arrays = [(params["layers"][part], inputs(part)) for part in parts]
            full = f"model.layers.{i}.{theirs}"
            plan.append(Planned(full, shapes[full], functools.partial(_together, arrays, i)))
    return plan


def _together(arrays: Sequence[tuple[Any, int]], i: int) -> jax.Array:
    """Matrices of a layer as Hugging Face has them, one below the other."""
    each = [fetch(array, axes, i) for array, axes in arrays]
    return each[0] if len(each) == 1 else jnp.concatenate(each)


def save_decoder(
    directory: PathLike,
    cfg: DecoderConfig,
    params: Params,
    tokenizer: Any,
    *,
    dtype: str = "float32",
    shard_bytes: int = 5_000_000_000,
    card: ModelCard | None = None,
    source: PathLike | None = None,
    overwrite: bool = False,
) -> None:
    """Write a decoder and its tokenizer as a directory that transformers and vLLM load.

    Parameters may live on a mesh, of one process or of several: each writes its shards of the
    files, into a directory they share.

    Args:
      tokenizer: ``transformers`` tokenizer; its files and chat template are written beside.
      dtype: of the stored weights, float32, bfloat16 or float16.
      shard_bytes: start a new file beyond this size.
      card: README.md and manifest.json.
      source: the directory or hub id the model came from; what its generation_config.json and
        config.json say of ends, beginnings and sampling is kept.
      overwrite: replace an existing directory; otherwise it is an InputError.

    The directory appears whole or not at all.

    Raises:
      InputError: the directory exists or cannot be written, or the configuration has features
        that its family cannot say.
    """
    ids, generation = _generation(tokenizer, source)
    config = config_to_hf(cfg, dtype, ids)
    with shared_directory(directory, overwrite) as temporary:
        write_tensors(temporary, tensor_plan(cfg, params), dtype, shard_bytes)
        if is_primary():
            write_json(temporary / "config.json", config)
            write_json(temporary / "generation_config.json", generation)
            save_tokenizer(tokenizer, temporary)
            if card:
                card.write(temporary)


_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def _generation(tokenizer: Any, source: PathLike | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Token ids for config.json, and generation_config.json."""
    ids = {name: getattr(tokenizer, name) for name in _IDS}
    generation: dict[str, Any] = {"do_sample": False}
    if source is not None:
        source = model_directory(source)
        before = read_json(source / "config.json")
        ids |= {name: before[name] for name in _IDS if before.get(name) is not None}
        generation = generation_settings(source) or generation
    generation = {**{k: v for k, v in ids.items() if v is not None}, **generation}
    # What was trained ends with the tokenizer's end of text, what was not by the other ends that
    # the source declares: whoever serves it must stop at all of them.
    declared = generation.get("eos_token_id")
    declared = declared if isinstance(declared, list) else [] if declared is None else [declared]
    closing = turn_end(tokenizer)
    known = [*declared, tokenizer.eos_token_id, *([] if closing is None else [closing])]
    known = list(dict.fromkeys(known))
    generation["eos_token_id"] = known[0] if len(known) == 1 else known
    return ids, generation


def weights_fingerprint(directory: PathLike) -> str:
    """A hash of a saved model's weights, for stamping what was computed with them."""
    files = sorted(Path(directory).glob("*.safetensors"))
    if not files:
        raise InputError(f"{directory}: no safetensors files")
    hashes = [f"{path.name}:{sha256_file(path)}" for path in files]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:16]
