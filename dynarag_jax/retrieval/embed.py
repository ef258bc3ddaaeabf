"""Texts to vectors: tokenized in parallel, batched by length, spread over the local devices."""

from __future__ import annotations

import functools
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.encoders import LoadedEncoder, Pooling
from dynarag_jax.models.encoder import EncoderConfig, Params, encode
from dynarag_jax.records import Passage
from dynarag_jax.sharding import make_mesh, named

# Texts tokenized at a time: bounds the memory that their word pieces take.
CHUNK = 65_536
# Batches handed to the devices before the first result is fetched.
_IN_FLIGHT = 3
# What one more batch shape may cost in padding elsewhere, in floating-point operations: about half
# of what a device does while it compiles a shape, since a shape serves the calls to come as well.
_SHAPE_FLOP = {"cpu": 7e10}
_SHAPE_FLOP_ACCELERATOR = 2e13


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


# ---------------------------------------------------------------------------- batching


class Bucket(NamedTuple):
    """Texts padded to one length: which, and the fixed shape [rows, length] of their batches."""

    texts: np.ndarray
    rows: int
    length: int


def _candidate_lengths(longest: int) -> list[int]:
    """Padded lengths to choose from: multiples of 4, in coarser steps as they grow."""
    lengths, step = [4], 4
    while lengths[-1] < longest:
        lengths.append(lengths[-1] + step)
        step = max(4, 2 ** (lengths[-1].bit_length() - 4))
    return lengths


def plan(
    lengths: np.ndarray,
    limit: int,
    batch_tokens: int,
    devices: int,
    overhead: float,
    compiled: set[tuple[int, int]],
) -> list[Bucket]:
    """Divide texts into the buckets that cost least.

    The cost is all padded word pieces, empty rows included, plus ``overhead`` for every shape that
    is not in ``compiled`` yet; the optimum over all divisions by length, by dynamic programming.

    Args:
      lengths: word pieces of each text, [n].
      limit: no bucket is longer; at least ``lengths.max()``.
      batch_tokens: word pieces of a full batch, padding included.
      devices: rows are a multiple of this.
      overhead: cost of a new shape, in word pieces.
      compiled: shapes (rows, length) that are free.
    """
    order = np.argsort(lengths, kind="stable")
    ends = [min(c, limit) for c in _candidate_lengths(limit)]
    below = np.searchsorted(lengths[order], ends, side="right")

    def rows(length: int, count: int) -> int:
        full = max(1, batch_tokens // length // devices)
        # Powers of two, so that calls of various sizes share their shapes.
        needed = 2 ** math.ceil(math.log2(math.ceil(count / devices)))
        return devices * min(2 ** int(math.log2(full)), needed)

    def cost(length: int, count: int) -> float:
        shape = (rows(length, count), length)
        padded = math.ceil(count / shape[0]) * shape[0] * length
        return padded + (0 if shape in compiled else overhead)

    # best[j]: cost of all texts up to ends[j - 1], and where the last bucket starts.
    best: list[tuple[float, int]] = [(0.0, 0)]
    starts = [0, *(int(b) for b in below)]
    for j in range(1, len(starts)):
        best.append(
            min(
                (best[i][0] + (cost(ends[j - 1], c) if (c := starts[j] - starts[i]) else 0.0), i)
                for i in range(j)
            )
        )
    buckets, j = [], len(ends)
    while j:
        i = best[j][1]
        if count := starts[j] - starts[i]:
            length = ends[j - 1]
            buckets.append(Bucket(order[starts[i] : starts[j]], rows(length, count), length))
        j = i
    return buckets[::-1]


def _batches(
    ids: Sequence[Sequence[int]], buckets: Sequence[Bucket]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (which texts, tokens [rows, T], lengths [rows]); the last rows may be empty."""
    for bucket in buckets:
        for first in range(0, len(bucket.texts), bucket.rows):
            which = bucket.texts[first : first + bucket.rows]
            tokens = np.zeros((bucket.rows, bucket.length), np.int32)
            lengths = np.zeros(bucket.rows, np.int32)
            for row, text in enumerate(which):
                tokens[row, : len(ids[text])] = ids[text]
                lengths[row] = len(ids[text])
            yield which, tokens, lengths


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


def default_batch_tokens() -> int:
    """Word pieces of a full batch on one device of this machine."""
    if jax.default_backend() == "cpu":
        return max(2048, 512 * (os.cpu_count() or 1))
    return 65_536


def embed(
    encoder: LoadedEncoder,
    texts: Sequence[str],
    *,
    prompt: str = "",
    batch_tokens: int | None = None,
    progress: Callable[[int], None] | None = None,
    out: np.ndarray | None = None,
    devices: Sequence[Any] | None = None,
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

    Returns:
      float32 [n, d], in the order of ``texts``; ``out`` if given.

    Raises:
      InputError: something in ``texts`` is not text, ``out`` has another shape, or
        ``batch_tokens`` is below 1.
    """
    _check_texts(texts)
    cfg, size = encoder.config, len(texts)
    batch_tokens = default_batch_tokens() if batch_tokens is None else batch_tokens
    if batch_tokens < 1:
        raise InputError(f"embed: batch_tokens must be at least 1, found {batch_tokens}")
    if out is None:
        out = np.empty((size, cfg.width), np.float32)
    elif out.shape != (size, cfg.width) or out.dtype != np.float32:
        raise InputError(
            f"embed: out must be float32 {[size, cfg.width]}, found {out.dtype} {list(out.shape)}"
        )
    mesh = make_mesh(devices=devices or jax.local_devices())
    params = jax.device_put(encoder.params, named(mesh, ()))
    by_rows = (named(mesh, ("batch", None)), named(mesh, ("batch",)))
    flop = _SHAPE_FLOP.get(jax.default_backend(), _SHAPE_FLOP_ACCELERATOR)
    weights = cfg.layers * cfg.width * (4 * cfg.width + 2 * cfg.mlp)
    compiled: set[tuple[int, int]] = set()
    waiting: deque[tuple[np.ndarray, jax.Array]] = deque()
    done = 0

    def fetch() -> None:
        nonlocal done
        which, vectors = waiting.popleft()
        out[which] = np.asarray(vectors)[: len(which)]
        done += len(which)
        if progress is not None:
            progress(done)

    def chunk(first: int) -> list[list[int]]:
        return _tokenize(encoder, [prompt + text for text in texts[first : first + CHUNK]])

    # One thread tokenizes the next chunk while the devices work on this one.
    with ThreadPoolExecutor(1) as pool_of_one:
        upcoming = pool_of_one.submit(chunk, 0) if size else None
        for first in range(0, size, CHUNK):
            assert upcoming is not None
            ids = upcoming.result()
            if first + CHUNK < size:
                upcoming = pool_of_one.submit(chunk, first + CHUNK)
            lengths = np.array([len(i) for i in ids])
            buckets = plan(
                lengths, encoder.max_length, batch_tokens, mesh.size, flop / (2 * weights), compiled
            )
            for which, tokens, used in _batches(ids, buckets):
                compiled.add(tokens.shape)
                arrays = jax.device_put((tokens, used), by_rows)
                vectors = _vectors(cfg, encoder.pooling, encoder.normalize, params, *arrays)
                waiting.append((first + which, vectors))
                if len(waiting) >= _IN_FLIGHT:
                    fetch()
        while waiting:
            fetch()
    return out
