"""Many different lists of one prompt at once: stochastic and deterministic beam search.

Both walk the tree of lists from its root and keep, after every token, the ``width`` best prefixes.
They differ in what best means:

- *Beam search* ranks prefixes by their log-probability, to find the most probable list.
- *Stochastic beam search* (Kool, van Hoof and Welling 2019, arXiv 1903.06059) ranks them by a
  log-probability perturbed by Gumbel noise, drawn so that a prefix scores as much as the best list
  that goes on from it. The lists that remain are then exactly the ``width`` lists of the largest
  perturbed log-probability over *all* lists: a sample without replacement (the Gumbel top-k trick).

The trunk is computed once; prefixes that are kept take their cache from the prefix they
extend. Random numbers depend on a request's own key, the position and the rank among its prefixes
alone, not on what the request was batched with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dynarag_jax.models import decoding
from dynarag_jax.models.decoder import BranchCache, DecoderConfig, Params
from dynarag_jax.policy import grammar as grammars
from dynarag_jax.policy.grammar import Grammar, GrammarState
from dynarag_jax.sampling.choice import Sampling, shape_scores
from dynarag_jax.sampling.prefilling import read_prompts
from dynarag_jax.sharding import constrain, named


class SearchResult(NamedTuple):
    """Different branches of every prompt, best score first.

    Attributes:
      tokens: [B, N, R], zero beyond each branch's length.
      lengths: [B, N], tokens written, the end included; 0 where ``valid`` is false.
      valid: [B, N] bool; false where fewer branches exist than were asked for.
      logps: [B, N], log-probability of the branch at temperature 1, under the grammar.
      drawn: [B, N], its log-probability under the distribution that was drawn from.
      scores: [B, N], what branches are ranked by: perturbed ``drawn``, or ``logps`` (beam search).
      threshold: [B], the largest score of any branch not returned, -inf if there is none. Of beam
        search an upper bound: a first branch that scores above it is the most probable of all.
    """

    tokens: jax.Array
    lengths: jax.Array
    valid: jax.Array
    logps: jax.Array
    drawn: jax.Array
    scores: jax.Array
    threshold: jax.Array


class _Loop(NamedTuple):
    place: jax.Array
    state: Any
    finished: jax.Array
    out: SearchResult


def _log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) for x <= 0."""
    near = x > -0.693
    return jnp.where(near, jnp.log(-jnp.expm1(jnp.where(near, x, -1.0))), jnp.log1p(-jnp.exp(x)))


def gumbel_children(parent: jax.Array, logps: jax.Array, noise: jax.Array) -> jax.Array:
    """Perturbed log-probabilities of children, the largest of which is their parent's.

    Args:
      parent: [...], perturbed log-probabilities of parents.
      logps: [..., A], log-probabilities of whole prefixes; -inf where there is no child.
      noise: [..., A], standard Gumbel.

    Returns:
      [..., A], Gumbel noise with locations ``logps``, conditioned on its maximum (arXiv 1903.06059,
      section 3.3 and the stable form of appendix B.3).
    """
    perturbed = logps + noise
    top = perturbed.max(-1, keepdims=True)
    # A compiler may work the largest out twice and round it otherwise: it is never above itself.
    below = jnp.where(jnp.isfinite(perturbed), jnp.minimum(perturbed - top, 0.0), -jnp.inf)
    v = parent[..., None] - perturbed + _log1mexp(below)
    children = parent[..., None] - jnp.maximum(v, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(v)))
    return jnp.where(jnp.isfinite(perturbed), children, -jnp.inf)


def rows_of(parent: jax.Array, tree: Any) -> Any:
    """Rows [B, W, ...] of a tree of arrays at each row's ``parent`` [B, W]."""
    return jax.tree.map(lambda x: jax.vmap(lambda y, rows: y[rows])(x, parent), tree)


Scores = Callable[[Any, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]
"""From the prefixes' state and what is alive [B, W] to tokens, mask and scores [B, W, A]."""

Advance = Callable[[Any, jax.Array, jax.Array, jax.Array], Any]
"""From state, parents [B, W], tokens [B, W] and the place of these tokens to the next state."""


Noise = Callable[[jax.Array, int, int], jax.Array]
"""From a row's key at a step, its prefixes W and their children A to standard Gumbel noise."""


def walk(
    scores_of: Scores,
    advance: Advance,
    state: Any,
    keys: jax.Array,
    *,
    branches: int,
    arcs: int,
    max_tokens: int,
    end: int,
    sampling: Sampling,
    noise_of: Noise | None = None,
) -> SearchResult:
    """Find ``branches`` different continuations of every row, by the sampling's method.

    Whatever writes lists can be searched: what may come next, and what follows from it, are given.

    Args:
      scores_of: of the prefixes that are alive; rows without candidates are masked.
      advance: the state of the prefixes that are kept.
      state: of B rows of W = ``width_of(branches, sampling)`` prefixes, all empty.
      keys: [B] random keys, one a request; beam search has no use for them.
      arcs: A, what may follow a prefix at most.
      max_tokens: R, the most tokens written, the end included: what the longest list takes.
      end: the token that ends a branch.
      noise_of: how Gumbel noise is drawn for the children of a row's prefixes.
    """
    beam = sampling.method == "beam"
    width, b = width_of(branches, sampling), keys.shape[0]
    pairs = jax.vmap(jax.random.split)(keys)
    root_keys, step_keys = pairs[:, 0], pairs[:, 1]

    def gumbel(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.gumbel(key, shape, jnp.float32, mode="high")

    def step(loop: _Loop) -> _Loop:
        out = loop.out
        alive = out.valid & ~loop.finished
        choices, mask, candidates = scores_of(loop.state, alive)
        # A prefix without candidates gets finite scores, so that its softmax is finite.
        some = mask.any(-1, keepdims=True)
        candidates = jnp.where(mask, candidates, jnp.where(some, -jnp.inf, 0.0))
        logps = out.logps[..., None] + jax.nn.log_softmax(candidates, axis=-1)
        if beam:
            drawn = scores = logps
        else:
            shaped = jax.nn.log_softmax(shape_scores(candidates, sampling), axis=-1)
            drawn = jnp.where(mask, out.drawn[..., None] + shaped, -jnp.inf)
            now = jax.vmap(lambda key: jax.random.fold_in(key, loop.place))(step_keys)
            of = noise_of or (lambda key, width, arcs: gumbel(key, (width, arcs)))
            noise = jax.vmap(lambda key: of(key, width, arcs))(now)
            scores = gumbel_children(out.scores, drawn, noise)
        scores = jnp.where(mask, scores, -jnp.inf)
        # A finished branch stays as it is: its one child is itself.
        itself = loop.finished[..., None] & (jnp.arange(arcs) == 0)
        scores = jnp.where(itself, out.scores[..., None], scores)
        flat = jnp.pad(scores.reshape(b, -1), [(0, 0), (0, 1)], constant_values=-jnp.inf)
        best, index = jax.lax.top_k(flat, width + 1)
        # A prefix that is left out scores as much as the best branch below it.
        threshold = jnp.maximum(out.threshold, best[:, width])
        best, index = best[:, :width], jnp.minimum(index[:, :width], width * arcs - 1)
        parent = index // arcs

        def chosen(children: jax.Array) -> jax.Array:
            return jnp.take_along_axis(children.reshape(b, -1), index, axis=-1)

        was, out_of = rows_of(parent, (loop.finished, out._replace(threshold=None)))
        token = jnp.where(was, 0, chosen(choices))
        out = SearchResult(
            jax.lax.dynamic_update_slice_in_dim(
                out_of.tokens, token[..., None], loop.place, axis=2
            ),
            out_of.lengths + ~was,
            best > -jnp.inf,
            jnp.where(was, out_of.logps, chosen(logps)),
            jnp.where(was, out_of.drawn, chosen(drawn)),
            best,
            threshold,
        )
        state = advance(loop.state, parent, token, loop.place)
        return _Loop(loop.place + 1, state, was | (token == end) & out.valid, out)

    zeros = jnp.zeros((b, width))
    alone = jnp.where(jnp.arange(width) == 0, zeros, -jnp.inf)
    # All lists together have probability 1: the best of them scores like one Gumbel variable.
    top = zeros[:, :1] if beam else jax.vmap(lambda key: gumbel(key, (1,)))(root_keys)
    loop = _Loop(
        jnp.zeros((), jnp.int32),
        state,
        zeros > 0,
        SearchResult(
            jnp.zeros((b, width, max_tokens), jnp.int32),
            jnp.zeros((b, width), jnp.int32),
            alone == 0,
            alone,
            alone,
            alone + top,
            jnp.full(b, -jnp.inf),
        ),
    )

    def going(loop: _Loop) -> jax.Array:
        # Scores only fall: once the best are finished, nothing behind them overtakes.
        open_ = loop.out.valid & ~loop.finished
        return (loop.place < max_tokens) & open_[:, :branches].any()

    loop = jax.lax.while_loop(going, step, loop)
    out, rest = loop.out, loop.out.scores[:, branches:]
    kept: SearchResult = jax.tree.map(lambda x: x[:, :branches] if x.ndim > 1 else x, out)
    valid = kept.valid & loop.finished[:, :branches]
    return kept._replace(
        valid=valid,
        lengths=jnp.where(valid, kept.lengths, 0),
        tokens=jnp.where(valid[..., None], kept.tokens, 0),
        threshold=jnp.maximum(out.threshold, rest.max(-1, initial=-jnp.inf)),
    )


def width_of(branches: int, sampling: Sampling) -> int:
    """Prefixes that a search for ``branches`` lists keeps."""
    return max(branches, sampling.width) if sampling.method == "beam" else branches


class _Prefixes(NamedTuple):
    """What the decoder knows of prefixes [B, W]."""

    hidden: jax.Array
    cache: BranchCache
    at: GrammarState


def search(
    cfg: DecoderConfig,
    mesh: Mesh,
    params: Params,
    arrays: decoding.LayerArrays,
    trunk: jax.Array,
    lengths: jax.Array,
    keys: jax.Array,
    n_passages: jax.Array,
    *,
    branches: int,
    max_tokens: int,
    end: int,
    sampling: Sampling,
    grammar: Grammar,
    chunk: int = 0,
) -> SearchResult:
    """Find ``branches`` different continuations of every trunk, by the sampling's method.

    ``distinct`` draws them without replacement from the policy at the sampling's temperature and
    nucleus; ``beam`` searches for the most probable ones with the sampling's width.

    Args:
      arrays: the layers' of ``decoding.unstack``.
      trunk: tokens [B, P], right-padded; lengths: [B], at least 1.
      keys: [B] random keys, one a request; beam search has no use for them.
      n_passages: [B], how many ids the grammar may use.
      max_tokens: R, the most tokens written, the end included: what the longest list takes.
      end: the token that ends a branch.
      chunk: of ``read_prompts``.
    """
    width = width_of(branches, sampling)
    b = trunk.shape[0]
    first, trunk_cache = read_prompts(cfg, mesh, params, trunk, lengths, chunk)
    layers = decoding.layers_of(cfg, arrays)

    def scores_of(state: _Prefixes, alive: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        choices, mask = grammars.allowed(grammar, state.at, n_passages[:, None])
        candidates = jnp.take_along_axis(
            decoding.token_logits(cfg, params, state.hidden), jnp.maximum(choices, 0), axis=-1
        )
        if grammar.bias is not None:
            candidates = candidates + grammars.leaning(grammar, state.at)
        return choices, mask & alive[..., None], candidates

    def advance(
        state: _Prefixes, parent: jax.Array, token: jax.Array, place: jax.Array
    ) -> _Prefixes:
        following, cache = decoding.decode_token(
            cfg, params, layers, token, trunk_cache, lengths,
            rows_of(parent, state.cache), jnp.broadcast_to(place, (b,)),
        )  # fmt: skip
        at = grammars.advance(grammar, rows_of(parent, state.at), token)
        return _Prefixes(following, cache, at)

    empty = decoding.empty_branch_cache(cfg, b, width, max_tokens)
    state = _Prefixes(
        jnp.broadcast_to(first[:, None], (b, width, first.shape[-1])),
        jax.tree.map(lambda x: constrain(x, "batch", None, "kv_heads", None, None), empty),
        grammars.start(grammar, (b, width)),
    )
    return walk(
        scores_of, advance, state, keys,
        branches=branches, arcs=grammar.width, max_tokens=max_tokens, end=end, sampling=sampling,
    )  # fmt: skip


class ListSearch:
    """``search``, jitted on ``mesh``, the questions spread over the batch axes.

    It runs with the trainer's own sharded parameters, and with their layers apart
    (``decoding.unstack``), which each token reads where they lie.
    """

    def __init__(self, cfg: DecoderConfig, mesh: Mesh, *, grammar: Grammar, **options: Any):
        """Args are those of ``search``."""

        def find_lists(
            params: Params, arrays: decoding.LayerArrays, grammar: Grammar, *rows: jax.Array
        ) -> SearchResult:
            return search(cfg, mesh, params, arrays, *rows, grammar=grammar, **options)

        rows = named(mesh, ("batch",))
        self._mesh, self._grammar = mesh, grammar
        self._jitted = jax.jit(
            find_lists, in_shardings=(None, None, None, rows, rows, rows, rows), out_shardings=rows
        )

    def __call__(
        self,
        params: Params,
        arrays: decoding.LayerArrays,
        trunk: Any,
        lengths: Any,
        keys: Any,
        n_passages: Any,
    ) -> SearchResult:
        """Lists of every row."""
        with jax.set_mesh(self._mesh):
            return self._jitted(params, arrays, self._grammar, trunk, lengths, keys, n_passages)

    def lower(self, params: Any, arrays: Any, *rows: Any) -> jax.stages.Lowered:
        """The program for such shapes; nothing runs."""
        with jax.set_mesh(self._mesh):
            return self._jitted.lower(params, arrays, self._grammar, *rows)
