"""GGUF files in: weights dequantized, the tokenizer rebuilt, as a Hugging Face directory.

Everything else reads such directories, so a file is unpacked once, into the user's cache, and
again only where it changed. Needs the package ``gguf`` (extra ``[gguf]``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dynarag_jax.errors import InputError, MissingExtra
from dynarag_jax.exchange.configs import ARCHITECTURES, config_from_hf, config_to_hf
from dynarag_jax.exchange.gguf_names import FAMILIES, PAIRED, TOP, halved, layer_tensor
from dynarag_jax.exchange.gguf_tokenizers import read_tokenizer
from dynarag_jax.exchange.known import TrackedFields
from dynarag_jax.exchange.names import TOP as THEIRS
from dynarag_jax.exchange.names import expected_tensors, layer_names
from dynarag_jax.exchange.safetensors import header_bytes
from dynarag_jax.exchange.unpacked import cached_place, unpacked_once
from dynarag_jax.files import PathLike, write_json
from dynarag_jax.models.config import DecoderConfig, RopeScaling, rope_frequencies

_FORMAT = 2
"""Raised where files are unpacked otherwise."""

# Fields that say nothing about what is computed: names, licenses, how it was quantized.
_IDLE_PREFIXES = ("general.", "GGUF.", "quantize.", "split.", "tokenizer.chat_template.")


def unpack(path: PathLike) -> Path:
    """The Hugging Face directory that a GGUF file makes, in the user's cache.

    Raises:
      MissingExtra: the package ``gguf`` is not installed.
      InputError: the file is damaged, of an architecture that does not load, or holds a field,
        tensor or tokenizer that is not known.
    """
    path = Path(path).resolve()
    return unpacked_once(unpacked_place(path), lambda place: _write(path, place))


def unpacked_place(path: PathLike) -> Path:
    """Where ``unpack`` puts this file; it is not there yet where nobody has asked for it."""
    path = Path(path).resolve()
    state = path.stat()
    return cached_place("gguf", path.stem, [str(path), state.st_size, state.st_mtime_ns, _FORMAT])


def _write(path: Path, place: Path) -> None:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise MissingExtra("gguf", "gguf", "reading GGUF files") from None
    try:
        reader = GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # noqa: BLE001 - the reader raises whatever it stumbles on
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: no GGUF file that can be read ({reason[:200]})") from None
    fields = TrackedFields(values)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    family = FAMILIES.get(str(fields.get("general.architecture")))
    if family is None:
        raise InputError(
            f"{path}: architecture {fields.get('general.architecture')!r} is not read from GGUF; "
            f"read are {', '.join(FAMILIES)}"
        )
    cfg = config_from_hf(_config(fields, tensors, str(path)), str(path))
    tokenizer, settings = read_tokenizer(fields, str(path))
    ends = _ends(fields, str(path))
    ids = {
        "eos_token_id": ends[0],
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
    }
    template = fields.get("tokenizer.chat_template")
    _refuse_rest(fields, str(path))
    _write_weights(path, place, cfg, tensors)
    write_json(place / "config.json", config_to_hf(cfg, "float32", ids))
    write_json(place / "generation_config.json", {"eos_token_id": ends, "do_sample": False})
    tokenizer.save(str(place / "tokenizer.json"))
    write_json(place / "tokenizer_config.json", settings)
    if template:
        (place / "chat_template.jinja").write_text(template, encoding="utf-8")


def _refuse_rest(fields: TrackedFields, where: str) -> None:
    """Every field is used, says nothing about what is computed, or is refused."""
    names = [name for name in fields if name.startswith(_IDLE_PREFIXES)]
    fields.refuse_rest(dict.fromkeys(names), where)


# ---------------------------------------------------------------------------- configuration


def _config(fields: TrackedFields, tensors: dict[str, Any], where: str) -> dict[str, Any]:
    """The config.json that a file's fields say."""
    kind = str(fields["general.architecture"])
    family = FAMILIES[kind]

    def get(name: str, default: Any = None) -> Any:
        return fields.get(f"{kind}.{name}", default)

    try:
        heads, width, layers = (
            int(get("attention.head_count")), int(get("embedding_length")), int(get("block_count")),
        )  # fmt: skip
        head = int(get("attention.key_length") or width // heads)
        if int(get("attention.value_length") or head) != head:
            raise InputError(f"{where}: attention.value_length differs from key_length")
        if (rotated := int(get("rope.dimension_count") or head)) != head:
            raise InputError(
                f"{where}: rope.dimension_count = {rotated} rotates a part of {head} dimensions, "
                f"which is not supported"
            )
        base = float(get("rope.freq_base", 10_000.0))
        vocab = int(tensors[TOP["embedding"]].shape[-1])
        get("vocab_size")
        hf: dict[str, Any] = {
            "architectures": [next(name for name, f in ARCHITECTURES.items() if f == family)],
            "vocab_size": vocab,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": int(get("attention.head_count_kv") or heads),
            "head_dim": head,
            "intermediate_size": int(get("feed_forward_length")),
            "rms_norm_eps": _short_float(get("attention.layer_norm_rms_epsilon", 1e-6)),
            "rope_theta": _short_float(base),
            "max_position_embeddings": int(get("context_length", 2048)),
            "tie_word_embeddings": TOP["head"] not in tensors,
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: these fields make no decoder ({error})") from None
    hf["rope_scaling"] = _scaling(get, tensors, head, base, where)
    if family.startswith("gemma"):
        # Fields that llama.cpp knows by the model's size, as transformers' conversion does.
        big = layers == (46 if family == "gemma2" else 62)
        hf["query_pre_attn_scalar"] = width // heads if big else head
        hf["sliding_window"] = get("attention.sliding_window")
        hf["hidden_activation"] = "gelu_pytorch_tanh"
        hf["final_logit_softcapping"] = get("final_logit_softcapping")
        hf["attn_logit_softcapping"] = get("attn_logit_softcapping")
        if family == "gemma3":
            hf["rope_local_base_freq"] = float(get("rope.freq_base_swa", 10_000.0))
    else:
        hf["hidden_act"] = "silu"
        if get("attention.sliding_window"):
            raise InputError(f"{where}: attention.sliding_window is not supported for {kind}")
    if family == "granite":
        # What llama.cpp takes where a file says nothing, or zero.
        hf["attention_multiplier"] = float(get("attention.scale") or head**-0.5)
        hf["embedding_multiplier"] = float(get("embedding_scale") or 1.0)
        hf["residual_multiplier"] = float(get("residual_scale") or 1.0)
        hf["logits_scaling"] = float(get("logit_scale") or 1.0)
    return hf


def _short_float(value: Any) -> float:
    """A float32 of the file by the fewest digits that give it: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))


def _scaling(
    get: Callable[..., Any], tensors: dict[str, Any], head: int, base: float, where: str
) -> dict[str, Any] | None:
    """rope_scaling: linear by its fields, Llama 3's by the factors that the file holds."""
    kind, factor = get("rope.scaling.type"), get("rope.scaling.factor")
    get("rope.scaling.original_context_length")
    get("rope.scaling.finetuned")
    if kind not in (None, "none", "linear"):
        raise InputError(f"{where}: rope.scaling.type = {kind!r} is not supported")
    if kind == "linear" and factor and float(factor) != 1.0:
        return {"rope_type": "linear", "factor": float(factor)}
    if "rope_freqs.weight" not in tensors:
        return None
    factors = np.asarray(tensors.pop("rope_freqs.weight").data, np.float32).reshape(-1)
    plain = rope_frequencies(DecoderConfig(head_size=head, rope_base=base))
    for factor in (8.0, 32.0):
        scaled = RopeScaling("llama3", factor, 1.0, 4.0, 8192)
        ours = rope_frequencies(DecoderConfig(head_size=head, rope_base=base, rope_scaling=scaled))
        if len(factors) == len(plain) and np.allclose(plain / ours, factors, rtol=1e-4):
            return {
                "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            }  # fmt: skip
    raise InputError(f"{where}: rope_freqs.weight is no scaling of Llama 3.1 or 3.2")


# ---------------------------------------------------------------------------- weights


def _names(cfg: DecoderConfig) -> Iterator[tuple[str, str, str]]:
    """Ours, GGUF's and Hugging Face's name of every tensor."""
    for name, theirs in THEIRS.items():
        if name != "head" or not cfg.tied:
            yield name, TOP[name], theirs
    for i in range(cfg.layers):
        for name, theirs in layer_names(cfg).items():
            yield name, layer_tensor(i, name), f"model.layers.{i}.{theirs}"


def _write_weights(path: Path, place: Path, cfg: DecoderConfig, tensors: dict[str, Any]) -> None:
    """Dequantize one tensor at a time into model.safetensors, in float32."""
    from gguf import dequantize

    shapes, names = expected_tensors(cfg), list(_names(cfg))
    missing = [theirs for _, theirs, _ in names if theirs not in tensors]
    unknown = sorted(set(tensors) - {theirs for _, theirs, _ in names})
    if missing or unknown:
        wrong = [*(f"missing {n}" for n in missing), *(f"unknown {n}" for n in unknown)]
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(f"{path}: the tensors do not fit its fields: {'; '.join(wrong[:5])}{more}")
    heads = {"query": cfg.heads, "key": cfg.kv_heads}
    with (place / "model.safetensors").open("wb") as stream:
        stream.write(
            header_bytes({hf: ("F32", shapes[hf]) for _, _, hf in names}, {"format": "pt"})
        )
        for name, theirs, hf in names:
            tensor = tensors[theirs]
            try:
                array = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            except NotImplementedError:
                raise InputError(
                    f"{path}: {theirs} is quantized as {tensor.tensor_type.name}, which the "
                    f"installed package gguf cannot read"
                ) from None
            if array.shape != shapes[hf]:
                raise InputError(
                    f"{path}: {theirs} has shape {list(array.shape)}, not {list(shapes[hf])}"
                )
            part = name.removesuffix("_bias")
            if cfg.family in PAIRED and part in heads:
                array = halved(array, heads[part])
            if cfg.norm_offset and "norm" in name:
                array = array - 1.0
            stream.write(np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint8).data)


def _ends(fields: TrackedFields, where: str) -> list[int]:
    named = ("eos_token_id", "eot_token_id", "eom_token_id")
    declared = [fields.get(f"tokenizer.ggml.{name}") for name in named]
    ends = list(dict.fromkeys(int(i) for i in declared if i is not None))
    if not ends:
        raise InputError(f"{where}: tokenizer.ggml.eos_token_id is missing")
    return ends
