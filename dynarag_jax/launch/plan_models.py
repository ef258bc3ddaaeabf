"""Which shape a model has that is planned for, though it lies nowhere here yet."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.configs import config_from_hf
from dynarag_jax.exchange.hub import model_directory, to_unpack
from dynarag_jax.exchange.tokenizers import load_tokenizer
from dynarag_jax.files import read_json
from dynarag_jax.models.config import DecoderConfig
from dynarag_jax.training.config import Train


class NotFetched(InputError):
    """The hub has a model's config.json, perhaps; here it is not, and it was not to be fetched."""


def model_shape(
    run: Run, stages: Mapping[str, Any], stage: Train, fetch: bool = True
) -> tuple[DecoderConfig, Path | None]:
    """The model's shape with this stage's numerics, and where a tokenizer may lie.

    Args:
      fetch: a hub model's config.json, where the hub's cache lacks it; unpack a GGUF file.

    Raises:
      InputError: there is no such model, or its config.json is wrong.
      NotFetched: the model is the hub's, and ``fetch`` is off.
    """
    if not stage.init:
        directory = Path(stage.tokenizer.replace("{run}", run.directory))
        if not stage.tokenizer or not directory.exists():
            return stage.model, None
        vocab = -(-len(load_tokenizer(str(directory))) // 64) * 64
        return dataclasses.replace(stage.model, vocab=vocab), directory
    numerics = {
        name: getattr(stage.model, name)
        for name in ("dtype", "param_dtype", "remat", "attention", "unroll")
    }
    cfg, directory = shape_at(run, stages, stage.init, fetch)
    return dataclasses.replace(cfg, **numerics), directory


def shape_at(
    run: Run, stages: Mapping[str, Any], model: str, fetch: bool = True
) -> tuple[DecoderConfig, Path | None]:
    """The shape of a model by where it lies, and where a tokenizer may lie.

    Args:
      model: directory, hub id, or where an earlier stage of the run will write it.
      fetch: as of ``model_shape``, whose errors it raises.
    """
    text = model.replace("{run}", run.directory)
    if is_packed(text):
        if not fetch and to_unpack(text) is not None:
            raise NotFetched(f"{text}: is not unpacked yet")
        text = str(model_directory(text))
    path = Path(text)
    if path.exists():
        config, directory = path / "config.json", path
        if not config.exists():
            raise InputError(f"{path}: no config.json; a plan needs it, and nothing else")
    elif maker := _maker(model, stages):
        # What an earlier stage of this run will write has the shape that it begins with.
        return model_shape(run, stages, maker, fetch)
    else:
        config = hub_config(text, fetch)
        directory = config.parent
    return config_from_hf(read_json(config), str(config)), directory


def _maker(init: str, stages: Mapping[str, Any]) -> Train | None:
    parts = init.split("/")
    maker = stages.get(parts[1]) if parts[0] == "{run}" and len(parts) > 1 else None
    return maker if isinstance(maker, Train) else None


def is_packed(text: str) -> bool:
    """Whether a model lies in an installed package or a GGUF file, and is unpacked to be read."""
    path = Path(text)
    if path.is_dir() and not (path / "config.json").is_file():
        return len(list(path.glob("*.gguf"))) == 1
    return text.startswith("package:") or (path.is_file() and path.suffix == ".gguf")


def is_hub_id(name: str) -> bool:
    """Whether this may name a model of the hub: ``owner/name``."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name))


def hub_config(name: str, fetch: bool = True) -> Path:
    """The config.json of a hub id, and nothing else of it.

    Raises:
      InputError: this is no hub id, or the hub does not give it.
      NotFetched: the hub's cache lacks it, and ``fetch`` is off.
    """
    if not is_hub_id(name):
        raise InputError(f"{name}: no such model directory")
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if isinstance(cached := try_to_load_from_cache(name, "config.json"), str):
        return Path(cached)
    if not fetch:
        raise NotFetched(f"{name}: the hub's config.json is not here yet")
    try:
        return Path(hf_hub_download(name, "config.json"))
    except Exception as error:  # noqa: BLE001 - the hub's client raises errors of many classes
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name}: no such model directory, and the hub does not give its config.json "
            f"({type(error).__name__}: {reason})"
        ) from None
