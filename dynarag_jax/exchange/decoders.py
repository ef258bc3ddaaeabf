"""Decoder weights in and out of Hugging Face directories.

The stacked per-layer arrays of ``models.decoder`` and Hugging Face's one-tensor-a-layer names are
two views of the same table; ``_NAMES`` is the bridge, used in both directions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.files import PathLike, atomic_directory, read_json, sha256_file, write_json
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig, Params, RopeScaling

ARCHITECTURES = ("LlamaForCausalLM",)
"""Architectures that load; everything else is refused by name."""

# our name -> (their name, how many leading axes of ours are the matrix's input)
_NAMES: dict[str, tuple[str, int]] = {
    "attention_norm": ("input_layernorm", 0),
    "query": ("self_attn.q_proj", 1),
    "key": ("self_attn.k_proj", 1),
    "value": ("self_attn.v_proj", 1),
    "output": ("self_attn.o_proj", 2),
    "mlp_norm": ("post_attention_layernorm", 0),
    "gate": ("mlp.gate_proj", 1),
    "up": ("mlp.up_proj", 1),
    "down": ("mlp.down_proj", 1),
}
_TOP = {
    "embedding": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
}
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


# ---------------------------------------------------------------------------- configuration


def config_from_hf(hf: dict[str, Any], where: str = "config.json") -> DecoderConfig:
    """The decoder that a Hugging Face ``config.json`` describes.

    Raises:
      InputError: the architecture or one of its features is not supported, or a field is missing
        or makes no sense.
    """
    if not isinstance(hf, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(hf).__name__}")
    found = (hf.get("architectures") or [None])[0]
    if found not in ARCHITECTURES:
        raise InputError(
            f"{where}: architecture {found!r} is not supported; supported: "
            f"{', '.join(ARCHITECTURES)}"
        )
    for field, plain in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        if hf.get(field, plain) not in (plain, None):
            raise InputError(f"{where}: {field} = {hf[field]!r} is not supported, only {plain!r}")
    try:
        heads, width = hf["num_attention_heads"], hf["hidden_size"]
        # transformers 5 gathers everything about rotary positions in one object.
        rope = hf.get("rope_parameters") or {}
        scaling = hf.get("rope_scaling") or rope
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        if kind not in ("default", "llama3"):
            raise InputError(f"{where}: rope type {kind!r} is not supported, only 'llama3'")
        return DecoderConfig(
            vocab=hf["vocab_size"],
            width=width,
            layers=hf["num_hidden_layers"],
            heads=heads,
            kv_heads=hf.get("num_key_value_heads") or heads,
            head_size=hf.get("head_dim") or width // heads,
            mlp=hf["intermediate_size"],
            rope_base=float(rope.get("rope_theta") or hf.get("rope_theta") or 10_000.0),
            rope_scaling=RopeScaling(
                factor=float(scaling["factor"]),
                low_freq_factor=float(scaling["low_freq_factor"]),
                high_freq_factor=float(scaling["high_freq_factor"]),
                original_positions=int(scaling["original_max_position_embeddings"]),
            )
            if kind == "llama3"
            else None,
            norm_eps=float(hf.get("rms_norm_eps", 1e-6)),
            tied=bool(hf.get("tie_word_embeddings", False)),
            positions=int(hf.get("max_position_embeddings", 2048)),
        )
    except KeyError as error:
        raise InputError(f"{where}: field {error} is missing") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{where}: these fields make no decoder ({error})") from None


def config_to_hf(
    cfg: DecoderConfig, dtype: str, eos: int | None, pad: int | None, bos: int | None = None
) -> dict[str, Any]:
    """The ``config.json`` of a decoder, read by transformers 4 and 5 and by vLLM."""
    scaling = None
    if (s := cfg.rope_scaling) is not None:
        scaling = {
            "rope_type": "llama3",
            "factor": s.factor,
            "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor,
            "original_max_position_embeddings": s.original_positions,
        }
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.width,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_size,
        "intermediate_size": cfg.mlp,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_base,
        "rope_scaling": scaling,
        "tie_word_embeddings": cfg.tied,
        "max_position_embeddings": cfg.positions,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "torch_dtype": dtype,
    }


# ---------------------------------------------------------------------------- tensors


def _hf_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that Hugging Face gives to our array: [out, in], heads merged."""
    inputs = _NAMES[name][1]
    if not inputs:
        return shape
    return (int(np.prod(shape[inputs:])), int(np.prod(shape[:inputs])))


def _to_ours(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return tensor.T.reshape(shape) if _NAMES[name][1] else tensor


def _to_theirs(name: str, array: np.ndarray) -> np.ndarray:
    if not _NAMES[name][1]:
        return array
    out, inputs = _hf_shape(name, array.shape)
    return np.ascontiguousarray(array.reshape(inputs, out).T)


def expected_tensors(cfg: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Hugging Face's tensor names of a decoder, with their shapes."""
    table = decoder.parameter_table(cfg)
    shapes = {_TOP[name]: p.shape for name, p in table.items() if name in _TOP}
    for name, p in table["layers"].items():
        for i in range(cfg.layers):
            shapes[f"model.layers.{i}.{_NAMES[name][0]}.weight"] = _hf_shape(name, p.shape[1:])
    return shapes


class _Tensors:
    """The tensors of a directory's safetensors files, read one at a time."""

    def __init__(self, directory: Path):
        from safetensors import SafetensorError, safe_open

        index = directory / "model.safetensors.index.json"
        single = directory / "model.safetensors"
        if index.is_file():
            try:
                files = sorted(set(read_json(index)["weight_map"].values()))
            except (KeyError, TypeError, AttributeError):
                raise InputError(f"{index}: no index of shards (field 'weight_map')") from None
        elif single.is_file():
            files = [single.name]
        elif pickles := [*directory.glob("*.bin"), *directory.glob("*.pt")]:
            raise InputError(
                f"{pickles[0]}: a pickle checkpoint can run any code when it is read; "
                f"convert it to safetensors first"
            )
        else:
            raise InputError(f"{directory}: no model.safetensors and no index of shards")
        self._where: dict[str, Any] = {}
        for name in files:
            path = directory / name
            if not path.is_file():
                raise InputError(f"{path}: this shard is missing")
            try:
                handle = safe_open(path, framework="numpy")
            except SafetensorError as error:
                raise InputError(f"{path}: damaged safetensors file ({error})") from None
            for tensor in handle.keys():  # noqa: SIM118 - the handle is no mapping
                self._where[tensor] = (handle, path)

    def names(self) -> set[str]:
        return set(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._where[name][0].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        return self._where[name][0].get_slice(name).get_dtype()

    def read(self, name: str) -> np.ndarray:
        return self._where[name][0].get_tensor(name)


def _check(tensors: _Tensors, cfg: DecoderConfig, directory: Path) -> None:
    expected, found = expected_tensors(cfg), tensors.names()
    # Tied models may store the head as well; old ones store a table of rotary frequencies.
    ignored = {n for n in found if n.endswith("rotary_emb.inv_freq")}
    ignored |= {_TOP["head"]} if cfg.tied else set()
    wrong = [f"missing {name}" for name in sorted(set(expected) - found)]
    wrong += [f"unknown {name}" for name in sorted(found - set(expected) - ignored)]
    for name in sorted(set(expected) & found):
        if tensors.shape(name) != expected[name]:
            wrong.append(
                f"{name} has shape {list(tensors.shape(name))}, not {list(expected[name])}"
            )
        elif tensors.dtype(name) not in _DTYPES:
            wrong.append(f"{name} has type {tensors.dtype(name)}, not a float type")
    if wrong:
        raise InputError(f"{directory}: the weights do not fit config.json: " + "; ".join(wrong))


def load_decoder(
    source: PathLike, param_dtype: str = "float32", shardings: Any = None, **settings: Any
) -> tuple[DecoderConfig, Params]:
    """Read a decoder from a Hugging Face directory.

    Args:
      source: directory with config.json and safetensors.
      param_dtype: type of the parameters in memory.
      shardings: function from the config to the tree of NamedSharding to place them by; None
        leaves them on the default device.
      settings: fields of DecoderConfig that config.json does not know (dtype, remat, unroll).

    Raises:
      InputError: no such model, an unsupported one, or tensors that do not fit; all are listed.
    """
    directory = Path(source)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such model directory")
    hf = read_json(directory / "config.json")
    cfg = config_from_hf(hf, str(directory / "config.json"))
    cfg = dataclasses.replace(cfg, **(settings | {"param_dtype": param_dtype}))
    tensors = _Tensors(directory)
    _check(tensors, cfg, directory)
    table = decoder.parameter_table(cfg)
    places = shardings(cfg) if shardings else None
    target = np.dtype(ml_dtypes.bfloat16) if param_dtype == "bfloat16" else np.dtype(np.float32)

    def put(array: np.ndarray, place: Any) -> jax.Array:
        return jax.device_put(array, place)

    params: dict[str, Any] = {"layers": {}}
    for name, theirs in _TOP.items():
        if name in table:
            array = tensors.read(theirs).astype(target)
            params[name] = put(array, places[name] if places else None)
    for name, p in table["layers"].items():
        stacked = np.empty(p.shape, target)
        for i in range(cfg.layers):
            tensor = tensors.read(f"model.layers.{i}.{_NAMES[name][0]}.weight")
            stacked[i] = _to_ours(name, tensor, p.shape[1:])
        params["layers"][name] = put(stacked, places["layers"][name] if places else None)
    return cfg, params


def _theirs(
    cfg: DecoderConfig, params: Params, dtype: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
    """Hugging Face's tensors, one at a time; what a type cannot hold becomes infinite."""

    def read(array: jax.Array) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.asarray(jax.device_get(array)).astype(dtype)

    for name, theirs in _TOP.items():
        if name in params:
            yield theirs, read(params[name])
    for i in range(cfg.layers):
        for name, (theirs, _) in _NAMES.items():
            array = read(params["layers"][name][i])
            yield f"model.layers.{i}.{theirs}.weight", _to_theirs(name, array)


def save_decoder(
    directory: PathLike,
    cfg: DecoderConfig,
    params: Params,
    tokenizer: Any,
    *,
    dtype: str = "float32",
    shard_bytes: int = 5_000_000_000,
    card: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a decoder and its tokenizer as a directory that transformers and vLLM load.

    Args:
      tokenizer: ``transformers`` tokenizer; its files and chat template are written beside.
      dtype: of the stored weights, float32, bfloat16 or float16.
      shard_bytes: start a new file beyond this size.
      card: text of README.md, the model card.
      overwrite: replace an existing directory; otherwise it is an InputError.

    The directory appears whole or not at all.

    Raises:
      InputError: the directory exists, the type is unknown, or a weight is too large for it.
    """
    from safetensors.numpy import save_file

    stored = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
    if dtype not in stored:
        raise InputError(f"export dtype {dtype!r} is unknown; choose one of {', '.join(stored)}")
    with atomic_directory(directory, overwrite) as temporary:
        shards: list[dict[str, int]] = []
        shard: dict[str, np.ndarray] = {}

        def flush() -> None:
            if shard:
                save_file(shard, temporary / f"shard-{len(shards)}", metadata={"format": "pt"})
                shards.append({name: x.nbytes for name, x in shard.items()})
                shard.clear()

        for name, tensor in _theirs(cfg, params, np.dtype(stored[dtype])):
            if dtype == "float16" and np.isinf(tensor).any():
                raise InputError(f"{name} holds values beyond float16; export as bfloat16 instead")
            if sum(x.nbytes for x in shard.values()) + tensor.nbytes > shard_bytes:
                flush()
            shard[name] = tensor
        flush()
        if len(shards) == 1:
            (temporary / "shard-0").rename(temporary / "model.safetensors")
        else:
            weights = {}
            for i, names in enumerate(shards):
                file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
                (temporary / f"shard-{i}").rename(temporary / file)
                weights |= dict.fromkeys(names, file)
            total = sum(size for names in shards for size in names.values())
            write_json(
                temporary / "model.safetensors.index.json",
                {"metadata": {"total_size": total}, "weight_map": weights},
            )
        eos, pad, bos = tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id
        write_json(temporary / "config.json", config_to_hf(cfg, dtype, eos, pad, bos))
        write_json(
            temporary / "generation_config.json",
            {"do_sample": False, "eos_token_id": eos, "pad_token_id": pad, "bos_token_id": bos},
        )
        tokenizer.save_pretrained(temporary)
        if card:
            (temporary / "README.md").write_text(card, encoding="utf-8")


def weights_fingerprint(directory: PathLike) -> str:
    """A hash of a saved model's weights, for stamping what was computed with them."""
    files = sorted(Path(directory).glob("*.safetensors"))
    if not files:
        raise InputError(f"{directory}: no safetensors files")
    hashes = [f"{path.name}:{sha256_file(path)}" for path in files]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:16]
