"""Listwise supervision: rank the candidate ids by their scores at the place of a list's first id.

As FIRST does (arXiv 2406.15657), where a ranking loss is joined with the token likelihood.
``relevance`` is k for the expert's first id down to 1 for its last, and 0 for ids it left out.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp

from dynarag_jax.errors import MissingExtra


def _rax(what: str) -> ModuleType:
    try:
        import rax
    except ImportError:
        raise MissingExtra("rax", "listwise", f"listwise supervision ({what})") from None
    return rax


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
    rax = _rax("ListMLE")
    # rax ranks every item, the unranked ones in some order of its own; that part is the same loss
    # on them alone, since their terms only see what comes after. What is left is the top-k part.
    everything = rax.listmle_loss(scores, relevance, where=where, reduce_fn=None)
    unranked = rax.listmle_loss(scores, relevance, where=where & (relevance <= 0), reduce_fn=None)
    return jnp.where((where & (relevance > 0)).any(-1), everything - unranked, 0.0)


def list_net(scores: jax.Array, relevance: jax.Array, *, where: jax.Array) -> jax.Array:
    """Softmax cross-entropy with the relevances as target distribution (ListNet, ICML 2007).

    Args:
      scores, relevance, where: as for ``list_mle``; the target is relevance over its sum.

    Returns:
      [...] nats; 0 for a row that ranks nothing.
    """
    target = jnp.where(where, relevance, 0.0)
    target = target / jnp.maximum(target.sum(-1, keepdims=True), 1e-9)
    # A row that shows nothing must not put NaN into the gradient.
    kept = where | ~where.any(-1, keepdims=True)
    logps = jax.nn.log_softmax(jnp.where(kept, scores, -jnp.inf), axis=-1)
    return -jnp.where(where, target * jnp.where(where, logps, 0.0), 0.0).sum(-1)


def rank_net(
    scores: jax.Array, relevance: jax.Array, *, where: jax.Array, by_rank: bool = False
) -> jax.Array:
    """RankNet: the logistic loss of every pair that the expert orders (ICML 2005).

    Args:
      scores, relevance, where: as for ``list_mle``; ids left out are below all ranked ones, and
        unordered among themselves.
      by_rank: weigh a pair by 1 / (sum of its ranks), as FIRST does (arXiv 2406.15657);
        all ids left out have the rank behind the last.

    Returns:
      [...] sum over pairs of ``log(1 + exp(s_worse - s_better))``.
    """
    pair = where[..., :, None] & where[..., None, :]
    pair &= relevance[..., :, None] > relevance[..., None, :]
    scores = jnp.where(where, scores, 0.0)
    loss = -jax.nn.log_sigmoid(scores[..., :, None] - scores[..., None, :])
    if by_rank:
        better = where[..., None, :] & (relevance[..., None, :] > relevance[..., :, None])
        rank = 1 + better.sum(-1)
        loss = loss / (rank[..., :, None] + rank[..., None, :])
    return jnp.where(pair, loss, 0.0).sum((-2, -1))


def lambda_loss(
    scores: jax.Array, relevance: jax.Array, *, where: jax.Array, normalize: bool = True
) -> jax.Array:
    """LambdaLoss: pairs weighted by what their exchange does to DCG (CIKM 2018), by rax.

    ``rax.pairwise_logistic_loss`` with ``rax.dcg_lambdaweight``, without rax's factor for the
    length of the list, in which masked ids would count.

    Args:
      scores, relevance, where: as for ``list_mle``; the gain of an id is 2^relevance - 1.
      normalize: weigh by nDCG instead of DCG.

    Returns:
      [...] weighted sum over pairs.

    Raises:
      MissingExtra: rax is not installed.
    """
    rax = _rax("LambdaLoss")
    pairs = rax.pairwise_logistic_loss(
        scores,
        relevance,
        where=where,
        lambdaweight_fn=partial(rax.dcg_lambdaweight, normalize=normalize),
        reduce_fn=None,
    )
    return pairs.sum(-1) / scores.shape[-1]
