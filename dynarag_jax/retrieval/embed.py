"""Texts to vectors: tokenized in parallel, batched by length, spread over the devices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.encoders import LoadedEncoder, Pooling
from dynarag_jax.models.encoder import EncoderConfig, Params, encode
from dynarag_jax.records import Passage
from dynarag_jax.retrieval.batching import Batches
from dynarag_jax.retrieval.blocks import Blocks
from dynarag_jax.sharding import make_mesh, named

# Texts tokenized at a time: bounds the memory that their word pieces take.
CHUNK = 65_536


def passage_text(passage: Passage) -> str:
    """What encoders read of a passage: title and text joined by one space."""
    return f"{passage.title} {passage.text}" if passage.title else passage.text


# ---------------------------------------------------------------------------- on the devices


def pool(hidden: jax.Array, lengths: jax.Array, pooling: Pooling, normalize: bool) -> jax.Array:
    """One float32 vector a text: hidden [B, T, D], lengths [B] -> [B, D].

    ``mean`` averages the hidden states of all word pieces, special tokens included, as
    sentence-transformers does; ``cls`` takes the first.
    """
    hidden = hidden.astype(jnp.float32)
    if pooling == "cls":
        vectors = hidden[:, 0]
    else:
        inside = (jnp.arange(hidden.shape[1]) < lengths[:, None])[..., None]
        vectors = jnp.where(inside, hidden, 0).sum(axis=1) / jnp.maximum(lengths, 1)[:, None]
    if normalize:
        norm = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
        vectors = vectors / jnp.maximum(norm, 1e-12)
    return vectors


@functools.partial(jax.jit, static_argnames=("cfg", "pooling", "normalize"))
def _vectors(
    cfg: EncoderConfig,
    pooling: Pooling,
    normalize: bool,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
) -> jax.Array:
    return pool(encode(cfg, params, tokens, lengths), lengths, pooling, normalize)


def _tokenize(encoder: LoadedEncoder, texts: Sequence[str]) -> list[list[int]]:
    # The tokenizers library spreads a batch over all cores by itself.
    return [encoding.ids for encoding in encoder.tokenizer.encode_batch_fast(texts)]


def _check_texts(texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise InputError(f"embed: expected a list of texts, found one string {texts[:40]!r}")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"embed: text {number} must be a string, found {text!r:.60}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"embed: text {number} holds half of a surrogate pair, which is no character: "
                f"{text!r:.60}"
            ) from None


def embed(
    encoder: LoadedEncoder,
    texts: Sequence[str],
    *,
    prompt: str = "",
    batch_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
    out: np.ndarray | None = None,
    devices: Sequence[Any] | None = None,
    blocks: Blocks | None = None,
) -> np.ndarray:
    """Embed texts; the result does not depend on what else is in the batch, but for rounding.

    Float32 products are as exact as ``jax_default_matmul_precision`` says; by default GPUs and TPUs
    round their inputs. Each batch is divided among the devices.

    Args:
      texts: cut off after the encoder's ``max_length`` word pieces.
      prompt: put before every text, as ``encoder.query_prompt`` and ``encoder.passage_prompt``.
      batch_tokens: word pieces of a full batch per device, padding included.
      progress: called with the number of texts done so far.
      out: float32 [n, d] to write into, such as a memory-mapped file.
      devices: those that share each batch; all local ones if None.
      blocks: keeps what is done, and continues what was cut off.

    Returns:
      float32 [n, d], in the order of ``texts``; ``out`` if given.

    Raises:
      InputError: something in ``texts`` is not text, ``out`` has another shape, or
        ``batch_tokens`` is below 1.
    """
    _check_texts(texts)
    cfg, size = encoder.config, len(texts)
    if out is None:
        out = np.empty((size, cfg.width), np.float32)
    elif out.shape != (size, cfg.width) or out.dtype != np.float32:
        raise InputError(
            f"embed: out must be float32 {[size, cfg.width]}, found {out.dtype} {list(out.shape)}"
        )
    mesh = make_mesh(devices=devices or jax.local_devices())
    params = jax.device_put(encoder.params, named(mesh, ()))
    weights = cfg.layers * cfg.width * (4 * cfg.width + 2 * cfg.mlp)
    run = functools.partial(_vectors, cfg, encoder.pooling, encoder.normalize, params)
    batches = Batches(run, mesh, encoder.max_length, weights, batch_tokens)
    done, step = 0, CHUNK
    if blocks is not None:
        step = blocks.size
        done, batches.compiled = blocks.load(out)
        if done and progress is not None:
            progress(done)
    firsts = range(done, size, step)

    def chunk(first: int) -> list[list[int]]:
        return _tokenize(encoder, [prompt + text for text in texts[first : first + step]])

    # One thread tokenizes the next chunk while the devices work on this one.
    with ThreadPoolExecutor(1) as pool_of_one:
        upcoming = pool_of_one.submit(chunk, firsts[0]) if firsts else None
        for first in firsts:
            assert upcoming is not None
            ids = upcoming.result()
            if first + step < size:
                upcoming = pool_of_one.submit(chunk, first + step)
            for which, vectors in batches.through([ids]):
                out[first + which] = vectors
                done += len(which)
                if progress is not None:
                    progress(done)
            if blocks is not None:
                blocks.save(first, out[first : first + step], batches.compiled)
    return out
