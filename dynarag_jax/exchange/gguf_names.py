"""GGUF's names of families, fields and tensors, as llama.cpp reads and writes them.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dynarag_jax.models.config import Family

FAMILIES: Mapping[str, Family] = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "smollm3": "smollm3",
    "olmo2": "olmo2",
    "granite": "granite",
}
"""Our family of each ``general.architecture``; Mistral's files are called llama, too."""

PAIRED: tuple[Family, ...] = ("llama", "mistral", "smollm3", "granite")
"""Families whose query and key rows llama.cpp has in pairs."""

TOP = {
    "embedding": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
}
"""The tensors outside of the layers, by our names."""

_LAYER = {
    "attention_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_output",
    "mlp_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "query_norm": "attn_q_norm",
    "key_norm": "attn_k_norm",
    "attention_post_norm": "post_attention_norm",
    "mlp_post_norm": "post_ffw_norm",
}


def layer_tensor(layer: int, name: str) -> str:
    """GGUF's name of one of our arrays of a layer."""
    if name.endswith("_bias"):
        return f"blk.{layer}.{_LAYER[name.removesuffix('_bias')]}.bias"
    return f"blk.{layer}.{_LAYER[name]}.weight"


def paired(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix as llama.cpp's rotation pairs them: neighbors, not halves."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def halved(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of ``paired``."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


# Regular expressions by which byte-level tokenizers cut texts before they merge, by the name that
# llama.cpp gives them. Digits alone come first where they are cut one by one.
_GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS: Mapping[str, tuple[bool, str]] = {
    "default": (False, _GPT2),
    "gpt-2": (False, _GPT2),
    "smollm": (True, _GPT2),
    "llama-bpe": (False, _LLAMA3),
    "qwen2": (False, _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")),
}
"""``tokenizer.ggml.pre``: whether digits stand alone, and the expression."""
