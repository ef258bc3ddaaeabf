"""Supervised objectives: token likelihood and listwise ranking of the first id."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dynarag_jax.errors import MissingExtra


def token_nll(logps: jax.Array, *, where: jax.Array) -> jax.Array:
    """Negative log-likelihood of every branch.

    Args:
      logps: [..., R] token log-probabilities.
      where: [..., R] bool, real tokens.

    Returns:
      [...] nats, summed over a branch's tokens.
    """
    return -jnp.where(where, logps, 0.0).sum(-1)


def list_mle(scores: jax.Array, relevance: jax.Array, *, where: jax.Array) -> jax.Array:
    """ListMLE: the Plackett-Luce likelihood of the order that ``relevance`` gives (ICML 2008).

    Ids of equal relevance carry no order among themselves, so the loss takes the likelihood of
    the ranked ids each chosen from what is left, the unranked ones (relevance 0) being only
    competitors: the top-k form (Xia et al., NeurIPS 2009). Computed by rax.

    Args:
      scores: [..., I], higher is better.
      relevance: [..., I], distinct positive numbers for ranked ids, best highest; 0 for others.
      where: [..., I] bool, the ids that are shown.

    Returns:
      [...] nats; 0 for a row that ranks nothing.

    Raises:
      MissingExtra: rax is not installed.
    """
    try:
        import rax
    except ImportError:
        raise MissingExtra("rax", "listwise", "listwise supervision (ListMLE)") from None
    # rax ranks every item, the unranked ones in some order of its own; that part is the same loss
    # on them alone, since their terms only see what comes after. What is left is the top-k part.
    everything = rax.listmle_loss(scores, relevance, where=where, reduce_fn=None)
    unranked = rax.listmle_loss(scores, relevance, where=where & (relevance <= 0), reduce_fn=None)
    return jnp.where((where & (relevance > 0)).any(-1), everything - unranked, 0.0)
