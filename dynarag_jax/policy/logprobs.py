"""The log-probability of branch tokens: over the whole vocabulary, and under the list grammar.

The projection to the vocabulary runs on branch positions only, so that logits of the prompt are not
computed unless a term asks for them, and in chunks where the [tokens, vocabulary] array is large.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig, Params
from dynarag_jax.policy import grammar as grammars
from dynarag_jax.policy import thoughts
from dynarag_jax.policy.grammar import Grammar
from dynarag_jax.policy.thoughts import ThoughtRule
from dynarag_jax.sharding import axis_size, constrain, local_size, position_order

WHOLE = 1 << 23
"""Scores, tokens times vocabulary, that a device holds whole: 32 MB; recomputing them would cost
more."""

CHUNK = 1 << 26
"""Scores that a device holds at once where they are more than ``WHOLE``: 256 MB."""


class TokenLogps(NamedTuple):
    """Log-probabilities of given branch tokens, natural logarithm, float32."""

    unconstrained: jax.Array
    """[B, N, R], over the whole vocabulary: what an unconstrained server would assign"""
    constrained: jax.Array
    """[B, N, R], over the tokens the grammar allows where the branch is a list, a thought before it
    included; else as ``unconstrained``. A token that the grammar forbids has -inf: the policy never
    writes it"""


def _score(
    cfg: DecoderConfig,
    params: Params,
    hidden: jax.Array,
    targets: jax.Array,
    choices: jax.Array | None,
    mask: jax.Array | None,
    free: jax.Array | None = None,
    bias: jax.Array | None = None,
    thought: ThoughtRule | None = None,
) -> tuple[jax.Array, jax.Array]:
    """[B, T, D], [B, T] -> unconstrained and constrained log-probabilities [B, T].

    ``free`` [B, T] are the free tokens of thoughts, ``bias`` [B, T, A] what is added to choices.
    """
    if axis_size("positions") > 1:
        hidden = constrain(hidden, "batch", "positions", None)
    scores = constrain(decoder.logits(cfg, params, hidden), "batch", "positions", "vocab")
    target = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
    unconstrained = target - jax.nn.logsumexp(scores, axis=-1)
    if choices is None or mask is None:
        return unconstrained, unconstrained
    picked = jnp.take_along_axis(scores, jnp.maximum(choices, 0), axis=-1)
    leant = target
    if bias is not None:
        picked = picked + bias
        leant = target + jnp.where(mask & (choices == targets[..., None]), bias, 0.0).sum(-1)
    picked = jnp.where(mask, picked, -jnp.inf)
    listed = mask.any(-1)
    # Rows that nothing constrains must not put NaN into the gradient of those that are.
    picked = jnp.where(listed[..., None], picked, 0.0)
    constrained = leant - jax.nn.logsumexp(picked, axis=-1)
    legal = (mask & (choices == targets[..., None])).any(-1)
    constrained = jnp.where(legal, constrained, -jnp.inf)
    if free is not None and thought is not None:
        held = thoughts.without_banned(thought, scores)
        thinking = target - jax.nn.logsumexp(held, axis=-1)
        barred = jnp.isneginf(jnp.take_along_axis(held, targets[..., None], axis=-1)[..., 0])
        unlisted = jnp.where(free, jnp.where(barred, -jnp.inf, thinking), unconstrained)
        return unconstrained, jnp.where(listed, constrained, unlisted)
    return unconstrained, jnp.where(listed, constrained, unconstrained)


def chunk_positions(rows: int, positions: int, vocab: int) -> int:
    """How many positions of every row are projected at once, from a device's own shapes.

    Chunks are alike, so that hardly any of their positions is padding.

    Args:
      rows, positions: of the batch on one device; vocab: its part of the vocabulary.
    """
    if rows * positions * vocab <= WHOLE:
        return positions
    most = max(1, CHUNK // (rows * vocab))
    return -(-positions // -(-positions // most))


def token_logps(
    cfg: DecoderConfig,
    params: Params,
    hidden: jax.Array,
    branches: jax.Array,
    grammar: Grammar | None = None,
    is_list: jax.Array | None = None,
    n_passages: jax.Array | None = None,
) -> TokenLogps:
    """Log-probabilities of branch tokens from the hidden states that predict them.

    Args:
      hidden: [B, N, R, D] of ``decoder.trunk_and_branches``.
      branches: [B, N, R] tokens.
      grammar: of the lists; None where no branch is a list.
      is_list: [B] bool, which rows the grammar constrains.
      n_passages: [B], how many passages those rows' prompts show.

    Returns:
      Log-probabilities per token; what stands at positions of padding means nothing, not even
      that it is finite: select with a mask, do not multiply by one.
    """
    b, n, r = branches.shape
    arrays = [hidden.reshape(b, n * r, -1), branches.reshape(b, n * r)]
    names: list[str] = []
    if grammar is not None and is_list is not None and n_passages is not None:
        choices, mask, *bias = grammars.along(grammar, branches, n_passages)
        mask &= is_list[:, None, None, None]
        arrays += [choices.reshape(b, n * r, -1), mask.reshape(b, n * r, -1)]
        if grammar.thought is not None:
            free = thoughts.free_positions(grammar.thought, branches) & is_list[:, None, None]
            arrays += [free.reshape(b, n * r)]
            names += ["free"]
        arrays += [x.reshape(b, n * r, -1) for x in bias]
        names += ["bias"] * len(bias)

    def score(chunk: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        rest = chunk[2:4] or (None, None)
        return _score(
            cfg, params, chunk[0], chunk[1], *rest, **dict(zip(names, chunk[4:], strict=True)),
            thought=grammar.thought if grammar else None,
        )  # fmt: skip

    # Chunks are cut along positions: rows lie on different devices, and every chunk is theirs all.
    # Where positions lie on different devices, too, each has a part of every chunk.
    rows, vocab = local_size(b, "batch"), local_size(cfg.vocab, "vocab")
    parts = axis_size("positions")
    each = -(-n * r // parts)
    size = chunk_positions(rows, each, vocab)
    arrays = [_padded(a, 1, parts * each) for a in arrays]
    if size == each:
        both = score(arrays)
    else:
        count = -(-each // size)
        chunks = [
            jnp.moveaxis(
                _padded(a.reshape(b, parts, each, *a.shape[2:]), 2, count * size)
                .reshape(b, parts, count, size, *a.shape[2:]),
                2, 0,
            ).reshape(count, b, parts * size, *a.shape[2:])
            for a in arrays
        ]  # fmt: skip
        both = jax.lax.map(jax.checkpoint(score), chunks)
        both = (
            jnp.moveaxis(x.reshape(count, b, parts, size), 0, 2)
            .reshape(b, parts, count * size)[:, :, :each]
            .reshape(b, parts * each)
            for x in both
        )
    unconstrained, constrained = (x[:, : n * r].reshape(b, n, r) for x in both)
    return TokenLogps(unconstrained, constrained)


def _padded(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Zeros behind, up to that size of an axis."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths)


def prompt_logps(
    cfg: DecoderConfig, params: Params, hidden: jax.Array, trunk: jax.Array
) -> jax.Array:
    """Log-probability of each trunk token but the first, [B, P - 1].

    Args:
      hidden: [B, P, D], as ``decoder.trunk_and_branches`` gives them; trunk: [B, P].
    """
    if (parts := axis_size("positions")) > 1:
        order = position_order(trunk.shape[1], parts)
        # What follows the last token is nothing's target, but as many positions lie on each device.
        targets = jnp.roll(trunk, -1, axis=1)[:, order]
        logps = token_logps(cfg, params, hidden[:, None], targets[:, None]).unconstrained[:, 0]
        return logps[:, np.argsort(order)][:, :-1]
    return token_logps(cfg, params, hidden[:, None, :-1], trunk[:, None, 1:]).unconstrained[:, 0]


def said_again(trunk: jax.Array) -> jax.Array:
    """Whether each trunk token but the first follows the one before it as it did earlier.

    Args:
      trunk: [B, P].

    Returns:
      [B, P - 1] bool: the pair of this token and the one before it stands earlier in its row, the
      two pairs at most sharing a token.
    """
    before, after = trunk[:, :-1], trunk[:, 1:]
    same = (before[:, :, None] == before[:, None]) & (after[:, :, None] == after[:, None])
    places = jnp.arange(before.shape[1])
    return (same & (places < places[:, None])).any(-1)


def first_id_scores(
    cfg: DecoderConfig,
    params: Params,
    hidden: jax.Array,
    grammar: Grammar,
    before: jax.Array | None = None,
) -> jax.Array:
    """Scores [B, I] of every id at the place of the first id in each row's first branch.

    These are the scores that listwise supervision ranks (FIRST, arXiv 2406.15657, section 3).

    Args:
      before: [B], tokens of the first branch's thought, before its list.
    """
    rows = decoder.output_embedding(cfg, params)[grammar.first_token]
    if before is None:
        return decoder.score_rows(cfg, hidden[:, 0, grammar.id_position], rows)
    # A prompt of padding has a branch without tokens.
    place = jnp.minimum(before + grammar.id_position, hidden.shape[2] - 1)[:, None, None]
    return decoder.score_rows(cfg, jnp.take_along_axis(hidden[:, 0], place, axis=1)[:, 0], rows)
