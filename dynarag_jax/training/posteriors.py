"""Sampled lists by how likely each makes the reference answer: the E-step over latent lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from dynarag_jax.objectives import group
from dynarag_jax.rollout_records import Rollout
from dynarag_jax.training.preferences import check_likelihoods


@dataclass(frozen=True)
class Posterior:
    """A question's distinct lists and their weights, which sum to 1."""

    lists: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]


def posteriors_of(
    rollouts: Sequence[Rollout], path: Path, temperature: float = 1.0
) -> dict[str, Posterior]:
    """The posterior over the sampled lists of every question, by its id, as objective ``dro`` has.

    Questions none of whose lists makes the answer possible, or known to, are left out.

    Args:
      path: of the rollouts, for messages.
      temperature: of the weights, as ``Dro.temperature``.

    Raises:
      InputError: rewards are anything but likelihoods.
    """
    found = {}
    for rollout in rollouts:
        where = f"{path}: question '{rollout.id}'"
        check_likelihoods(rollout, where, "contexts.sampled")
        kept = [t for t in rollout.trajectories if not t.missing]
        likelihoods = jnp.asarray([max(t.reward, 0.0) for t in kept]) ** (1 / temperature)
        counts = jnp.asarray([float(t.count) for t in kept])
        weights = np.asarray(group.posterior(likelihoods, counts)) if kept else np.zeros(0)
        if weights.sum() > 0:
            lists = tuple(t.list for t in kept)
            found[rollout.id] = Posterior(lists, tuple(weights.tolist()))
    return found
