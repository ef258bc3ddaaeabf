"""Decoders out as GGUF files, for llama.cpp and what is built on it.

Weights as float16 or in blocks of eight bits (Q8_0); vectors stay float32, as llama.cpp has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dynarag_jax.errors import InputError, MissingExtra
from dynarag_jax.exchange.configs import config_from_hf
from dynarag_jax.exchange.decoders import decoder_tensors
from dynarag_jax.exchange.generation import generation_ends
from dynarag_jax.exchange.gguf_names import FAMILIES, PAIRED, SPLITS, TOP, layer_tensor, paired
from dynarag_jax.exchange.gguf_tokenizers import byte_level_bpe
from dynarag_jax.exchange.names import TOP as THEIRS
from dynarag_jax.exchange.names import layer_names
from dynarag_jax.exchange.tokenizers import load_tokenizer
from dynarag_jax.files import PathLike, read_json
from dynarag_jax.models.config import DecoderConfig, rope_frequencies

Kind = Literal["f16", "q8_0"]

_BLOCK = 32
"""Numbers in a block of Q8_0."""

# Texts that tokenizers of the known kinds cut into different tokens.
_PROBES = (
    "What's the 3rd port of 1987? I'll say: [12], [3]  --  or 12345.\n\n\tNone",
    "DON'T we'Re naïve café 東京 Ünïcode ½ ①② 🙂🙂 …!?\r\n  \n x_y=z+1;//()[]{}<>",
    "   leading, trailing   \n\n\n   a1b2c3 99 bottles 3.14159 1,000,000 %$#@ \u00a0\u3000.",
)


def save_gguf(directory: PathLike, target: PathLike, kind: Kind = "q8_0") -> None:
    """Write the decoder of a Hugging Face directory as one GGUF file.

    Raises:
      MissingExtra: the package ``gguf`` is not installed.
      InputError: the family or its tokenizer has no form in GGUF, or the file cannot be written.
    """
    try:
        import gguf
    except ImportError:
        raise MissingExtra("gguf", "gguf", "writing GGUF files") from None
    directory, target = Path(directory), Path(target)
    where = directory / "config.json"
    cfg = config_from_hf(read_json(where), str(where))
    arch = _architecture(cfg)
    partial = target.with_name(f".{target.name}.partial")
    writer = gguf.GGUFWriter(partial, arch)
    try:
        _write_fields(writer, cfg, arch, directory.resolve().name)
        writer.add_file_type(
            gguf.LlamaFileType.MOSTLY_Q8_0 if kind == "q8_0" else gguf.LlamaFileType.MOSTLY_F16
        )
        _write_tokenizer(writer, directory, cfg)
        _write_weights(writer, directory, cfg, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.replace(target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror or error})") from None
    finally:
        partial.unlink(missing_ok=True)


def _architecture(cfg: DecoderConfig) -> str:
    """What llama.cpp calls the family, if it computes what the configuration says."""
    family = "llama" if cfg.family == "mistral" else cfg.family
    arch = next((name for name, ours in FAMILIES.items() if ours == family), None)
    if arch is None:
        raise InputError(
            f"family {cfg.family!r} is not written as GGUF; written are {', '.join(FAMILIES)}"
        )
    if cfg.window is not None and not cfg.family.startswith("gemma"):
        raise InputError(f"GGUF does not say the window of {cfg.window} tokens of {cfg.family}")
    said = family == "granite" or cfg.query_scale in (None, cfg.head_size)
    if not said and cfg.layers not in (46, 62):
        raise InputError(f"GGUF does not say the scale {cfg.query_scale} of queries")
    every_fourth = tuple((i + 1) % 4 != 0 for i in range(cfg.layers))
    if family == "smollm3" and (cfg.rotary or (True,) * cfg.layers) != every_fourth:
        raise InputError("GGUF does not say which layers have no rotary positions but every fourth")
    return arch


def _write_fields(writer: Any, cfg: DecoderConfig, arch: str, name: str) -> None:
    writer.add_name(name)
    writer.add_block_count(cfg.layers)
    writer.add_context_length(cfg.positions)
    writer.add_embedding_length(cfg.width)
    writer.add_feed_forward_length(cfg.mlp)
    writer.add_head_count(cfg.heads)
    writer.add_head_count_kv(cfg.kv_heads)
    writer.add_key_length(cfg.head_size)
    writer.add_value_length(cfg.head_size)
    writer.add_rope_dimension_count(cfg.head_size)
    writer.add_rope_freq_base(cfg.rope_base)
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    writer.add_vocab_size(cfg.vocab)
    if cfg.window is not None:
        writer.add_sliding_window(cfg.window)
    if cfg.score_cap is not None:
        writer.add_attn_logit_softcapping(cfg.score_cap)
    if cfg.logit_cap is not None:
        writer.add_final_logit_softcapping(cfg.logit_cap)
    if cfg.family == "granite":
        writer.add_attention_scale(float(cfg.query_scale or cfg.head_size) ** -0.5)
        writer.add_embedding_scale(cfg.embedding_scale)
        writer.add_residual_scale(cfg.residual_scale)
        writer.add_logit_scale(cfg.logit_scale)
    if (scaling := cfg.rope_scaling) is not None and scaling.kind == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling.factor)


# ---------------------------------------------------------------------------- weights


def _write_weights(writer: Any, directory: Path, cfg: DecoderConfig, kind: Kind) -> None:
    tensors = decoder_tensors(directory)
    names = [(n, TOP[n], hf) for n, hf in THEIRS.items() if n != "head" or not cfg.tied]
    names += [
        (name, layer_tensor(i, name), f"model.layers.{i}.{hf}")
        for i in range(cfg.layers)
        for name, hf in layer_names(cfg).items()
    ]
    if cfg.rope_scaling is not None and cfg.rope_scaling.kind == "llama3":
        plain = rope_frequencies(DecoderConfig(head_size=cfg.head_size, rope_base=cfg.rope_base))
        _add(writer, "rope_freqs.weight", plain / rope_frequencies(cfg), kind)
    heads = {"query": cfg.heads, "key": cfg.kv_heads}
    for name, theirs, hf in names:
        array = tensors.read(hf).astype(np.float32)
        part = name.removesuffix("_bias")
        if cfg.family in PAIRED and part in heads:
            array = paired(array, heads[part])
        if cfg.norm_offset and "norm" in name:
            array = array + 1.0
        _add(writer, theirs, array, kind)


def _add(writer: Any, name: str, array: np.ndarray, kind: Kind) -> None:
    """One tensor: matrices in the file's type, vectors in float32."""
    import gguf

    array = np.ascontiguousarray(array, np.float32)
    if array.ndim == 1:
        writer.add_tensor(name, array)
    elif kind == "q8_0" and array.shape[-1] % _BLOCK == 0:
        data = gguf.quantize(array, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    else:
        half = array.astype(np.float16)
        if np.isinf(half).any():
            raise InputError(f"{name} holds values beyond float16, which GGUF is written in")
        writer.add_tensor(name, half)


# ---------------------------------------------------------------------------- tokenizer


def _write_tokenizer(writer: Any, directory: Path, cfg: DecoderConfig) -> None:
    import gguf

    tokenizer = load_tokenizer(directory)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary, merges, pre = _bpe(state, tokenizer, directory)
    tokens = [f"[PAD{i}]" for i in range(cfg.vocab)]
    types = [int(gguf.TokenType.UNUSED)] * cfg.vocab
    for token, i in vocabulary.items():
        tokens[i], types[i] = token, int(gguf.TokenType.NORMAL)
    for added in state["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = int(
            gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    ends = generation_ends(directory, tokenizer)
    writer.add_eos_token_id(ends[0])
    if len(ends) > 1:
        writer.add_eot_token_id(ends[1])
    if len(ends) > 2:
        writer.add_eom_token_id(ends[2])
    bos = tokenizer.bos_token_id
    if bos is not None:
        writer.add_bos_token_id(bos)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(bos is not None and tokenizer("a")["input_ids"][:1] == [bos])
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.get_chat_template())


def _bpe(
    state: Mapping[str, Any], tokenizer: Any, directory: Path
) -> tuple[dict[str, int], list[str], str]:
    """Vocabulary and merges of a byte-level BPE, and the kind of llama.cpp's that cuts as it does.

    Raises:
      InputError: it is another tokenizer, or none of the kinds gives its tokens.
    """
    model = state["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise InputError(
            f"{directory}: the tokenizer is no byte-level BPE, and is not written as GGUF"
        )
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    added = [(a["content"], bool(a["special"])) for a in state["added_tokens"]]
    for pre in SPLITS:
        other = byte_level_bpe(model["vocab"], merges, pre, added)
        if all(
            other.encode(text, add_special_tokens=False).ids
            == tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in _PROBES
        ):
            return model["vocab"], merges, pre
    raise InputError(
        f"{directory}: the tokenizer cuts texts as none of llama.cpp's kinds that are known here "
        f"({', '.join(SPLITS)})"
    )
