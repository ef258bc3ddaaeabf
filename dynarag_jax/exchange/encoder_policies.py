"""Encoder policies in and out: a cross-encoder's directory with a list head beside it.

``config.json``, ``model.safetensors`` and the tokenizer are those of a cross-encoder with one
logit: sentence-transformers reads the directory as a CrossEncoder. ``list_policy.json`` says how
lists are made of it, and ``list_head.safetensors`` holds the head's weights.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from dynarag_jax.errors import InputError, nearest
from dynarag_jax.exchange.cards import ModelCard
from dynarag_jax.exchange.cross_encoders import ARCHITECTURES, load_cross_encoder
from dynarag_jax.exchange.encoder_configs import config_from_hf
from dynarag_jax.exchange.encoder_out import (
    CLASSIFIERS,
    cross_encoder_config,
    cross_encoder_tensors,
    write_safetensors,
)
from dynarag_jax.exchange.encoder_weights import read_params
from dynarag_jax.exchange.encoders import read_tokenizer
from dynarag_jax.exchange.hub import model_directory
from dynarag_jax.exchange.output import shared_directory
from dynarag_jax.exchange.safetensors import Tensors
from dynarag_jax.files import PathLike, read_json, sha256_file, write_json
from dynarag_jax.models.config import is_parameter
from dynarag_jax.models.encoder import parameter_shapes
from dynarag_jax.models.encoder_parts import EncoderConfig, Params
from dynarag_jax.models.list_head import ListHeadConfig, list_head_table
from dynarag_jax.processes import is_primary

POLICY, HEAD = "list_policy.json", "list_head.safetensors"
FORMAT = 1
"""Version of list_policy.json."""

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"),
    *("vocab.json", "merges.txt", "sentencepiece.bpe.model", "added_tokens.json"),
)


@dataclass(frozen=True)
class StoredPolicy:
    """What a policy's directory holds, or what one begins with.

    Attributes:
      source: where it was read from.
      hf: config.json.
      encoder: the encoder's shape; ``encoder_params`` its parameters with a cross-encoder's head.
      tokenizer: joins two texts, does not pad.
      settings: what list_policy.json says beside the head's shape; empty where there is none.
      head: the list head's shape and ``head_params`` its parameters; None where there is none.
    """

    source: Path
    hf: dict[str, Any]
    encoder: EncoderConfig
    encoder_params: Params
    tokenizer: Tokenizer
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    head: ListHeadConfig | None = None
    head_params: Params | None = None


def is_encoder_policy(directory: PathLike) -> bool:
    """Whether a model's directory holds an encoder policy."""
    return (Path(directory) / POLICY).is_file()


def read_encoder_policy(
    source: PathLike, dtype: Literal["float32", "bfloat16"] = "float32"
) -> StoredPolicy:
    """Read a policy's directory, or a cross-encoder's or encoder's to begin one with.

    An encoder that has no cross-encoder's head gets one whose scores are all 0.

    Args:
      source: a directory, a hub id, or package:NAME.
      dtype: type of the encoder's activations.

    Raises:
      InputError: no such model, another architecture, or weights or settings that do not fit.
    """
    directory = model_directory(source)
    where = directory / "config.json"
    hf = read_json(where)
    if not isinstance(hf, dict) or hf.get("model_type") not in CLASSIFIERS:
        kind = hf.get("model_type") if isinstance(hf, dict) else type(hf).__name__
        raise InputError(
            f"{where}: field 'model_type' is {kind!r}; an encoder policy begins with "
            f"{', '.join(CLASSIFIERS)}"
        )
    if (hf.get("architectures") or [None])[0] in ARCHITECTURES:
        model = load_cross_encoder(directory, dtype)
        cfg, params, tokenizer = model.config, model.params, model.tokenizer
    else:
        cfg = replace(config_from_hf(hf, str(where)), dtype=dtype)
        params = {**read_params(directory, cfg), "head": _silent_head(cfg)}
        tokenizer = read_tokenizer(directory, False, cfg.positions, cfg)
    stored = StoredPolicy(directory, hf, cfg, params, tokenizer)
    return _with_head(stored) if is_encoder_policy(directory) else stored


def _silent_head(cfg: EncoderConfig) -> Params:
    """A cross-encoder's head whose score is 0 for every pair, and which can be trained."""
    shapes = parameter_shapes(cfg, scored=True)["head"]
    head = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    head["dense"] = 0.02 * jax.random.normal(jax.random.key(0), shapes["dense"])
    if "norm_scale" in head:
        head["norm_scale"] = jnp.ones(shapes["norm_scale"])
    return head


def _with_head(stored: StoredPolicy) -> StoredPolicy:
    path = stored.source / POLICY
    said = read_json(path)
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        found = said.get("format") if isinstance(said, dict) else type(said).__name__
        raise InputError(f"{path}: field 'format' is {found!r}; this version reads {FORMAT}")
    settings = {k: v for k, v in said.items() if k not in ("format", "head")}
    shape = said.get("head")
    known = [f.name for f in dataclasses.fields(ListHeadConfig)]
    if not isinstance(shape, dict):
        raise InputError(f"{path}: field 'head' must be an object")
    if alien := [name for name in shape if name not in known]:
        raise InputError(f"{path}: field 'head.{alien[0]}' is not known{nearest(alien[0], known)}")
    try:
        head = ListHeadConfig(**shape)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: field 'head': {error}") from None
    return replace(
        stored, settings=settings, head=head, head_params=_read_head(stored.source, head)
    )


def _read_head(directory: Path, cfg: ListHeadConfig) -> Params:
    """The head's parameters, each by the path of its name."""
    paths, tree = jax.tree_util.tree_flatten_with_path(list_head_table(cfg), is_leaf=is_parameter)
    names = [_name(path) for path, _ in paths]
    tensors = Tensors(directory, HEAD.removesuffix(".safetensors"))
    tensors.check({n: p.shape for n, (_, p) in zip(names, paths, strict=True)}, config=POLICY)
    leaves = [jnp.asarray(tensors.read(name).astype(np.float32)) for name in names]
    return jax.tree.unflatten(tree, leaves)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def save_encoder_policy(
    directory: PathLike,
    stored: StoredPolicy,
    *,
    card: ModelCard | None = None,
    overwrite: bool = False,
) -> None:
    """Write a policy as a directory that is a cross-encoder's, too.

    Args:
      stored: with a head; its ``source`` gives the tokenizer's files.

    Raises:
      InputError: the directory exists and ``overwrite`` is false, or it cannot be written.
    """
    if stored.head is None or stored.head_params is None:
        raise InputError(f"{directory}: the policy has no list head")
    kind = stored.hf["model_type"]
    tensors = cross_encoder_tensors(stored.encoder, kind, stored.encoder_params)
    head = {
        _name(path): np.asarray(x)
        for path, x in jax.tree_util.tree_flatten_with_path(jax.device_get(stored.head_params))[0]
    }
    with shared_directory(directory, overwrite) as temporary:
        if not is_primary():
            return
        write_safetensors(temporary / "model.safetensors", tensors)
        write_safetensors(temporary / HEAD, head)
        write_json(temporary / "config.json", cross_encoder_config(stored.hf))
        shape = dataclasses.asdict(stored.head)
        write_json(temporary / POLICY, {"format": FORMAT, **stored.settings, "head": shape})
        for name in _TOKENIZER_FILES:
            if (stored.source / name).is_file():
                shutil.copyfile(stored.source / name, temporary / name)
        if card:
            card.write(temporary)


def policy_fingerprint(directory: PathLike) -> str:
    """A hash of a policy's weights and of how lists are made of them."""
    parts = {
        name: sha256_file(Path(directory) / name)
        for name in ("model.safetensors", HEAD, POLICY, "config.json", "tokenizer.json")
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def settings_of(
    settings: Mapping[str, Any], known: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """What list_policy.json says of fields by name and default, each of the default's type.

    Raises:
      InputError: a field is unknown or of another type.
    """
    for name, value in settings.items():
        if name not in known:
            raise InputError(f"{where}: field '{name}' is not known{nearest(name, known)}")
        if type(value) is not type(known[name]):
            raise InputError(
                f"{where}: field '{name}' must be {type(known[name]).__name__}, found {value!r}"
            )
    return {**known, **settings}
