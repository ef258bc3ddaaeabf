"""A checkpoint in, checked, and out again: another type, adapters merged in, shards cut anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dynarag_jax.config import Mesh as MeshSizes
from dynarag_jax.errors import InputError
from dynarag_jax.exchange import peers
from dynarag_jax.exchange.adapters import load_adapters
from dynarag_jax.exchange.calibration import carry_calibration
from dynarag_jax.exchange.cards import ModelCard, model_card
from dynarag_jax.exchange.decoders import (
    decoder_tensors,
    expected_tensors,
    load_decoder,
    save_decoder,
    tensor_plan,
)
from dynarag_jax.exchange.gguf_out import save_gguf
from dynarag_jax.exchange.hub import model_directory
from dynarag_jax.exchange.safetensors import STORED, Tensors
from dynarag_jax.exchange.tokenizers import check_vocabulary, load_tokenizer
from dynarag_jax.files import PathLike
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig, Params
from dynarag_jax.models.layout import param_shardings
from dynarag_jax.models.lora import attach, merge_layers, whole
from dynarag_jax.processes import is_primary
from dynarag_jax.sharding import mesh_of, mesh_sizes, whole_prompts


@dataclass(frozen=True)
class Convert:
    """Import a decoder from a Hugging Face directory or hub id, check it, export it."""

    source: str = ""
    """directory or hub id of the model"""
    target: str = ""
    """directory to write; empty only imports and checks"""
    adapters: str = ""
    """directory or hub id of PEFT adapters to merge into the model"""
    tokenizer: str = ""
    """where the tokenizer comes from; empty is the source"""
    dtype: Literal["same", "float32", "bfloat16", "float16"] = "same"
    """type of the written weights; same is the source's"""
    shard_bytes: int = 5_000_000_000
    """start a new file beyond this size"""
    gguf: Literal["none", "f16", "q8_0"] = "none"
    """also write TARGET/model.gguf, for llama.cpp"""
    overwrite: bool = False
    """replace the target if it exists"""
    check: bool = False
    """read the target back, and report the largest difference of each tensor and of the logits;
    the logits are compared with those of transformers, too, where it and PyTorch are installed"""
    against_transformers: bool = True
    """with check: false leaves transformers out"""
    mesh: MeshSizes = field(default_factory=lambda: MeshSizes(data=1, fsdp=-1))
    """the devices the weights are spread over on the way"""


@dataclass(frozen=True)
class Differences:
    """The largest absolute differences of an exported model from its source."""

    tensors: dict[str, float]
    """by Hugging Face's names"""
    logits: float
    """on a fixed random text, both computed in float32"""


def convert(
    stage: Convert,
    log: Callable[[str], None] = lambda _: None,
    title: str = "",
    about: str = "",
    manifest: Mapping[str, Any] | None = None,
    style: str = "",
    thought_tokens: int = 0,
) -> Differences | None:
    """Import, export and check as ``stage`` says.

    Args:
      title, about: the model card's; by default they say what was converted.
      manifest: what made the model, for the card.
      style: of a reranker, the style of its prompts.
      thought_tokens: of one that thinks before it lists, its longest thought.

    Returns:
      The differences where they were asked for, of the target from the source (with adapters, the
      tensors they were merged into differ by them, and the logits are those of the adapted model).

    Raises:
      InputError: the source, the adapters, the tokenizer or the target is wrong.
    """
    if not stage.source:
        raise InputError("--source is empty; give a model directory or hub id")
    if stage.check and not stage.target:
        raise InputError("--check compares the target with the source; give --target too")
    source = model_directory(stage.source)
    tokenizer = load_tokenizer(stage.tokenizer or source)
    m = stage.mesh
    sizes = mesh_sizes(m.data, m.fsdp, m.tensor, len(jax.devices()), m.sequence)
    mesh = mesh_of(whole_prompts(sizes))
    kind = _common_type(decoder_tensors(source))
    dtype = stage.dtype if stage.dtype != "same" else kind
    # Half the memory where nothing is lost by it.
    halves = {kind, dtype} == {"bfloat16"} and not stage.adapters
    held = "bfloat16" if halves else "float32"
    cfg, params = _load(source, mesh, held)
    check_vocabulary(cfg, tokenizer, stage.tokenizer or str(source))
    log(f"{stage.source}: {cfg.family}, {decoder.count_parameters(cfg):,} parameters")
    merged, adapted = params, params
    if stage.adapters:
        lora, adapters = load_adapters(
            stage.adapters, cfg, lambda lora: param_shardings(cfg, mesh, lora)
        )
        merged = merge_layers(lora, params, adapters)
        adapted = attach(cfg, lora, params, adapters)
    if not stage.target:
        return None
    made = {
        "source": stage.source,
        "adapters": stage.adapters or None,
        "family": cfg.family,
        "parameters": decoder.count_parameters(cfg),
        "jax": jax.__version__,
    }
    name = stage.source.rstrip("/").split("/")[-1]
    card = model_card(
        title or f"Converted from {name}",
        about or f"The model {name}, with its tokenizer.",
        dtype,
        made if manifest is None else {**manifest, **made},
        stage.source,
        style,
        thought_tokens,
    )
    save_decoder(
        stage.target, cfg, merged, tokenizer, dtype=dtype, shard_bytes=stage.shard_bytes,
        card=card, source=source, overwrite=stage.overwrite,
    )  # fmt: skip
    log(f"{stage.target}: {dtype}")
    if is_primary() and (calibration := carry_calibration(source, stage.target)):
        log(f"{stage.target}: {calibration}")
    if stage.gguf != "none" and is_primary():
        path = Path(stage.target) / "model.gguf"
        save_gguf(stage.target, path, stage.gguf)
        log(f"{path}: {stage.gguf}")
    if not stage.check:
        return None
    here = _logits(cfg, adapted, mesh)
    del params, merged, adapted
    there = _logits(*_load(Path(stage.target), mesh, held), mesh)
    if stage.against_transformers:
        _compare(cfg, source, here, log, stage.adapters)
        _compare(cfg, Path(stage.target), there, log)
    return Differences(
        dict(tensor_differences(cfg, source, Path(stage.target))),
        float(np.abs(here - there).max()),
    )


def _compare(
    cfg: DecoderConfig,
    directory: Path,
    ours: np.ndarray,
    log: Callable[[str], None],
    adapters: str = "",
) -> None:
    """Say how far our logits are from transformers' own, or why nobody compared them."""
    if reason := peers.missing(adapters):
        log(f"{directory}: not compared with transformers ({reason})")
        return
    with_adapters = f" with {adapters}" if adapters else ""
    place = model_directory(adapters) if adapters else ""
    theirs, releases = peers.transformers_logits(directory, _text(cfg), place)
    log(
        f"{directory}{with_adapters}: logits within {np.abs(theirs - ours).max():.1e} of {releases}"
    )


def export_live(
    target: PathLike,
    cfg: DecoderConfig,
    params: Params,
    tokenizer: Any,
    mesh: Mesh,
    *,
    dtype: str,
    shard_bytes: int,
    card: ModelCard,
    source: PathLike | None = None,
    check: bool = True,
) -> Differences | None:
    """Export parameters that live on a mesh, as ``save_decoder`` does, and check what was written.

    Args:
      source: the directory the model was trained from, if any.
      check: read the target back and compare it with the parameters.

    Raises:
      InputError: the target cannot be written.
    """
    save_decoder(
        target, cfg, params, tokenizer, dtype=dtype, shard_bytes=shard_bytes, card=card,
        source=source, overwrite=True,
    )  # fmt: skip
    if not check:
        return None
    written = Tensors(Path(target))
    tensors = {
        tensor.name: _largest(np.asarray(tensor.get()), written.read(tensor.name))
        for tensor in tensor_plan(cfg, params)
    }
    plain = dataclasses.replace(cfg, dtype="float32", remat="none")
    here = _logits(plain, params, mesh)
    there = _logits(*_load(Path(target), mesh, cfg.param_dtype), mesh)
    return Differences(tensors, float(np.abs(here - there).max()))


def _largest(a: np.ndarray, b: np.ndarray) -> float:
    """The largest absolute difference, computed as exactly as the wider of the two types."""
    wide = np.float64 if np.dtype(np.float64) in (a.dtype, b.dtype) else np.float32
    return float(np.abs(a.astype(wide) - b.astype(wide)).max())


def _load(directory: Path, mesh: Mesh, param_dtype: str) -> tuple[DecoderConfig, Params]:
    return load_decoder(directory, param_dtype, lambda cfg: param_shardings(cfg, mesh))


def _common_type(tensors: Tensors) -> str:
    """The type all tensors have, if it can be written; else float32."""
    kinds = {tensors.dtype(name) for name in tensors.names()}
    return next((name for name, kind in STORED.items() if kinds == {kind}), "float32")


def _text(cfg: DecoderConfig) -> np.ndarray:
    """A fixed random text, [1, T] tokens."""
    return np.random.default_rng(0).integers(0, cfg.vocab, (1, min(64, cfg.positions)))


def _logits(cfg: DecoderConfig, params: Params, mesh: Mesh) -> np.ndarray:
    """Logits in float32 of a fixed random text, whole on every process."""
    tokens = _text(cfg)
    lengths = jnp.array([tokens.shape[1]])

    def run(params: Params) -> jax.Array:
        params = whole(params)
        hidden, _ = decoder.prefill(cfg, params, jnp.asarray(tokens, jnp.int32), lengths)
        return decoder.logits(cfg, params, hidden)

    return np.asarray(jax.jit(run, out_shardings=jax.sharding.NamedSharding(mesh, _WHOLE))(params))


_WHOLE = jax.sharding.PartitionSpec()


def tensor_differences(cfg: DecoderConfig, a: Path, b: Path) -> Iterator[tuple[str, float]]:
    """The largest absolute difference of each of a decoder's tensors between two directories."""
    here, there = decoder_tensors(a), decoder_tensors(b)
    for name in expected_tensors(cfg):
        yield name, _largest(here.read(name), there.read(name))
