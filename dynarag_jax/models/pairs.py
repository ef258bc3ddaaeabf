"""A question's candidates through the encoder: a vector and a score for each pair of texts.

Dimension letters: B questions, N candidates, T positions of a pair, D width of the encoder, M
steps, K chosen candidates of a step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from dynarag_jax.models.encoder import encode, encode_first, head_scores
from dynarag_jax.models.encoder_parts import EncoderConfig, Params
from dynarag_jax.models.packed import Room

PairPooling = Literal["first", "mean"]


class PairBatch(NamedTuple):
    """Pairs of a question and its candidates, right-padded; a candidate of length 0 does not exist.

    Attributes:
      tokens: [B, N, T] int32.
      lengths: [B, N], word pieces of each pair.
      types: [B, N, T], token types.
      second: [B, N], where the passage begins in each pair.
      room: for the word pieces of so many questions, where they are computed without padding: no
        fewer than their pairs have with all that is put into them (``pairs_with_chosen``).
    """

    tokens: jax.Array
    lengths: jax.Array
    types: jax.Array
    second: jax.Array
    room: Room | None = None


def pair_vectors(
    cfg: EncoderConfig,
    params: Params,
    pairs: PairBatch,
    pooling: PairPooling = "first",
    interaction: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """The vector and the cross-encoder's logit of every candidate.

    Args:
      params: of ``encoder.encode``, with a cross-encoder's ``head`` or without.
      pooling: a pair's vector is the hidden state of its first position, or the mean of all.
      interaction: whether a question's candidates see each other in the encoder.

    Returns:
      vectors [B, N, D] and scores [B, N] in float32; without a head, scores are 0. What stands at
      candidates that do not exist is finite and means nothing.
    """
    b, n, t = pairs.tokens.shape
    lengths = pairs.lengths.reshape(b * n)
    whole = (
        cfg,
        params,
        pairs.tokens.reshape(b * n, t),
        lengths,
        pairs.types.reshape(b * n, t),
        pairs.lengths > 0 if interaction else None,
        None if pairs.room is None else room_of_texts(pairs.room, n, t),
    )
    if pooling == "mean":
        hidden = encode(*whole).astype(jnp.float32)
        first = hidden[:, 0]
        real = (jnp.arange(t) < jnp.maximum(lengths, 1)[:, None]).astype(jnp.float32)
        vectors = jnp.einsum("btd,bt->bd", hidden, real) / real.sum(-1, keepdims=True)
    else:
        vectors = first = encode_first(*whole).astype(jnp.float32)
    scores = head_scores(cfg, params["head"], first) if "head" in params else jnp.zeros(b * n)
    return vectors.reshape(b, n, -1), scores.reshape(b, n)


def room_of_texts(room: Room, n: int, t: int) -> Room:
    """The room that questions of n texts of t positions share, as one of those texts."""
    texts = room.rows * n
    return Room(texts, min(room.positions, texts * t))


def pairs_with_chosen(pairs: PairBatch, chosen: jax.Array, pieces: int, most: int) -> PairBatch:
    """The pairs of a step that reads what was chosen: question, chosen passages, candidate.

    Every chosen passage stands behind the question with a separator, cut to its first ``pieces``
    word pieces (beam retrieval, arXiv 2308.08973; compositional retrieval, arXiv 2504.11420). What
    no longer fits is cut from the candidate's end.

    Args:
      chosen: int32 [B, M, K], 1-based candidates in the order chosen before each of M steps; 0 is
        none.
      most: positions that the encoder has.

    Returns:
      Pairs of B M questions: [B M, N, T + K (pieces + 1)], or ``most`` where that is less.
    """
    b, n, t = pairs.tokens.shape
    m, k = chosen.shape[1:]
    width = min(t + k * (pieces + 1), most)
    at = jnp.arange(b)[:, None, None]
    index = jnp.maximum(chosen - 1, 0)
    own = jnp.where(pairs.lengths > 0, pairs.second, 0)
    begin = own[at, index]  # [B, M, K]: where each chosen passage begins in its own pair
    # The last word piece of a pair is a separator.
    size = jnp.clip(pairs.lengths[at, index] - 1 - begin, 0, pieces)
    size = jnp.where(chosen > 0, size + 1, 0)  # with the separator before it
    ends = jnp.cumsum(size, axis=-1)  # [B, M, K]
    added = ends[..., -1]  # [B, M]
    # A pair is the question, its separators, the passage, a separator. The chosen go behind the
    # question: where its first separator stands, and each brings one.
    gap = _first_separator(pairs)  # [B, N]
    position = jnp.arange(width)
    before = position < gap[:, None, :, None]  # [B, 1, N, W]
    place = position - gap[:, None, :, None]  # [B, 1, N, W], within what is inserted
    inside = ~before & (place < added[:, :, None, None])
    # Which chosen passage a position of the insert belongs to, and where in it.
    which = (place[..., None] >= ends[:, :, None, None]).sum(-1)
    which = jnp.minimum(which, k - 1)
    start = jnp.take_along_axis(
        jnp.broadcast_to((ends - size)[:, :, None], (b, m, n, k)), which, axis=-1
    )
    offset = place - start - 1
    row = jnp.take_along_axis(jnp.broadcast_to(index[:, :, None], (b, m, n, k)), which, axis=-1)
    column = jnp.take_along_axis(jnp.broadcast_to(begin[:, :, None], (b, m, n, k)), which, axis=-1)
    column = jnp.clip(column + offset, 0, t - 1)
    questions = jnp.arange(b)[:, None, None, None]
    separator = jnp.take_along_axis(pairs.tokens, jnp.minimum(gap, t - 1)[..., None], axis=-1)
    inserted = pairs.tokens[questions, row, column]
    inserted = jnp.where(offset < 0, separator[:, None], inserted)
    source = jnp.clip(jnp.where(before, position, position - added[:, :, None, None]), 0, t - 1)
    rows = jnp.arange(n)[None, None, :, None]
    tokens = jnp.where(inside, inserted, pairs.tokens[questions, rows, source])
    types = jnp.where(inside, 0, pairs.types[questions, rows, source])
    there = (pairs.lengths > 0)[:, None]
    whole = pairs.lengths[:, None] + added[..., None]
    lengths = jnp.where(there, jnp.minimum(whole, width), 0)
    # What is cut keeps its last separator.
    last = (whole > width)[..., None] & (position == width - 1)
    tokens = jnp.where(last, separator[:, None], tokens)
    tokens = jnp.where(position < lengths[..., None], tokens, 0)
    types = jnp.where(position < lengths[..., None], types, 0)
    second = jnp.where(there, jnp.minimum(pairs.second[:, None] + added[..., None], width - 1), 0)
    return PairBatch(
        tokens.reshape(b * m, n, width),
        lengths.reshape(b * m, n),
        types.reshape(b * m, n, width),
        second.reshape(b * m, n),
        None if pairs.room is None else _room_with(pairs.room, k),
    )


def _room_with(room: Room, chosen: int) -> Room:
    return replace(room, positions=room.positions + chosen * room.inserted)


def _first_separator(pairs: PairBatch) -> jax.Array:
    """[B, N], the position behind the question's last word piece.

    The separators between question and passage are all one token: they run back from the passage.
    """
    t = pairs.tokens.shape[-1]
    before = jnp.take_along_axis(
        pairs.tokens, jnp.clip(pairs.second - 1, 0, t - 1)[..., None], axis=-1
    )
    previous = jnp.take_along_axis(
        pairs.tokens, jnp.clip(pairs.second - 2, 0, t - 1)[..., None], axis=-1
    )
    doubled = (before == previous)[..., 0]  # RoBERTa puts two
    return jnp.maximum(pairs.second - 1 - doubled, 0)
