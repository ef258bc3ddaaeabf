"""Scoring: what the policy's forward pass says of a batch of prompts and their branches."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig, Params
from dynarag_jax.policy.batches import Batch
from dynarag_jax.policy.grammar import Grammar
from dynarag_jax.policy.logprobs import first_id_scores, prompt_logps, token_logps
from dynarag_jax.sharding import named


class BatchScores(NamedTuple):
    """Log-probabilities and scores of a batch, natural logarithm, float32.

    Attributes:
      unconstrained: [B, N, R], of branch tokens over the whole vocabulary.
      constrained: [B, N, R], under the list grammar where the branches are lists, else as
        ``unconstrained``.
      prompt: [B, P - 1], of each prompt token but the first, or None where it was not asked for.
      ids: [B, I], scores of the ids as a list's first, or None where they were not asked for.
    """

    unconstrained: jax.Array
    constrained: jax.Array
    prompt: jax.Array | None
    ids: jax.Array | None


def branch_mask(batch: Batch) -> jax.Array:
    """[B, N, R] bool, the real tokens of the branches."""
    return jnp.arange(batch.branches.shape[-1]) < batch.branch_lengths[..., None]


def score(
    cfg: DecoderConfig,
    params: Params,
    batch: Batch,
    grammar: Grammar,
    *,
    prompt: bool = False,
    ids: bool = False,
) -> BatchScores:
    """Run the model over a batch.

    Args:
      prompt: whether log-probabilities of the prompt's tokens are computed.
      ids: whether the ids are scored as a list's first.

    Returns:
      the scores; what stands at positions of padding means nothing, not even that it is finite.
    """
    trunk_hidden, hidden = decoder.trunk_and_branches(
        cfg, params, batch.trunk, batch.trunk_lengths, batch.branches
    )
    logps = token_logps(cfg, params, hidden, batch.branches, grammar, batch.shown > 0, batch.shown)
    before = None if batch.thoughts is None else batch.thoughts[:, 0]
    return BatchScores(
        unconstrained=logps.unconstrained,
        constrained=logps.constrained,
        prompt=prompt_logps(cfg, params, trunk_hidden, batch.trunk) if prompt else None,
        ids=first_id_scores(cfg, params, hidden, grammar, before) if ids else None,
    )


def make_scorer(
    cfg: DecoderConfig, mesh: Mesh, grammar: Grammar
) -> Callable[[Params, Batch], jax.Array]:
    """A jitted ``scorer(params, batch) -> [B, N, R]`` constrained log-probabilities of tokens.

    The same forward as the training step's: these are the reference log-probabilities. They are 0
    at positions of padding.
    """

    def score_lists(params: Params, batch: Batch, grammar: Grammar) -> jax.Array:
        scores = score(cfg, params, batch, grammar)
        return jnp.where(branch_mask(batch), scores.constrained, 0.0)

    rows = named(mesh, ("batch",))
    jitted = jax.jit(score_lists, in_shardings=(None, rows, None), out_shardings=rows)

    def scorer(params: Params, batch: Batch) -> jax.Array:
        with jax.set_mesh(mesh):
            return jitted(params, batch, grammar)

    return scorer
