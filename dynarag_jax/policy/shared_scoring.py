"""Log-probabilities of continuations of prompts that begin alike: what is common is computed once.

Of prompts over sub-lists of one question's passages, the longest are *trunks*, run once with their
caches kept. Every other prompt is a continuation of the trunk that it has most in common with: it
attends to as many of the trunk's tokens as are its own, too, and is positioned behind them. Causal
attention makes this exact, whatever the tokenizer.

Letters: B trunks of P tokens, M continuations of T tokens, A target tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig, Params, TrunkCache
from dynarag_jax.policy.logprobs import token_logps
from dynarag_jax.sharding import named

WORTH = 0.9
"""A prompt is a continuation where less than this share of it is its own."""

STEP = 64
"""Continuations are padded to multiples of this."""


@dataclass(frozen=True)
class Continuation:
    """A prompt and what follows it.

    Attributes:
      group: prompts of one group may share what they begin with.
      prompt, target: tokens; the target's are scored.
    """

    group: int
    prompt: Sequence[int]
    target: Sequence[int]


@dataclass(frozen=True)
class SharedPlan:
    """Which prompts are computed whole.

    Attributes:
      trunks: places of the prompts that are trunks.
      trunk: of each prompt, the place of its trunk among these.
      seen: of each, how many of the trunk's tokens are its own; at least one is left to compute.
      computed: prompt tokens that are computed in all.
    """

    trunks: tuple[int, ...]
    trunk: tuple[int, ...]
    seen: tuple[int, ...]
    computed: int


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two prompts begin with alike."""
    n = min(len(a), len(b))
    differs = np.asarray(a[:n]) != np.asarray(b[:n])
    return int(differs.argmax()) if differs.any() else n


def plan_shared(scored: Sequence[Continuation]) -> SharedPlan:
    """Choose trunks, the longest prompts first."""
    trunks: list[int] = []
    of: dict[int, list[int]] = {}
    trunk, seen = [0] * len(scored), [0] * len(scored)
    computed = 0
    for place in sorted(range(len(scored)), key=lambda i: -len(scored[i].prompt)):
        own = scored[place].prompt
        known = of.setdefault(scored[place].group, [])
        alike = [common_prefix(own, scored[trunks[t]].prompt) for t in known]
        best = max(range(len(known)), key=lambda i: alike[i], default=-1)
        if best < 0 or len(own) - alike[best] >= WORTH * len(own):
            known.append(len(trunks))
            trunk[place], seen[place] = len(trunks), len(own) - 1
            trunks.append(place)
            computed += len(own)
        else:
            # One token at least is run, since it predicts what follows.
            seen[place] = min(alike[best], len(own) - 1)
            trunk[place] = known[best]
            computed += len(own) - seen[place]
    return SharedPlan(tuple(trunks), tuple(trunk), tuple(seen), computed)


SharedScorer = Callable[[Params, Sequence[Continuation], SharedPlan], list[tuple[float, ...]]]


def make_shared_scorer(cfg: DecoderConfig, mesh: Mesh, lengths: Sequence[int]) -> SharedScorer:
    """A scorer of continuations: the log-probabilities of every target's tokens.

    One process only.

    Args:
      lengths: padded lengths of prompts to choose from.
    """
    everywhere = named(mesh, ())

    def prefill(params: Params, trunk: Any, sizes: Any) -> TrunkCache:
        return decoder.prefill(cfg, params, trunk, sizes)[1]

    def follow(
        params: Params, cache: TrunkCache, rows: Any, seen: Any, tokens: Any, at: Any, targets: Any
    ) -> jax.Array:
        """tokens [M, T]; the token at ``at`` [M] predicts the first target of [M, A]."""
        own = TrunkCache(*(jnp.take(x, rows, axis=1) for x in cache))
        empty = decoder.empty_branch_cache(cfg, *tokens[:, None].shape)
        hidden, _ = decoder.extend(
            cfg, params, tokens[:, None], own, seen, empty, jnp.zeros((), jnp.int32)
        )
        places = at[:, None] + jnp.arange(targets.shape[1])
        places = jnp.minimum(places, tokens.shape[1] - 1)
        predicting = jnp.take_along_axis(hidden[:, 0], places[..., None], axis=1)
        return token_logps(cfg, params, predicting[:, None], targets[:, None]).unconstrained[:, 0]

    begun = jax.jit(prefill)
    followed = jax.jit(follow, out_shardings=everywhere)

    def score(
        params: Params, scored: Sequence[Continuation], plan: SharedPlan
    ) -> list[tuple[float, ...]]:
        trunk: Any = np.zeros(
            (len(plan.trunks), _padded(max(len(scored[t].prompt) for t in plan.trunks), lengths)),
            np.int32,
        )
        sizes = np.ones(len(plan.trunks), np.int32)
        for row, place in enumerate(plan.trunks):
            own = scored[place].prompt
            trunk[row, : len(own)], sizes[row] = own, len(own)
        results: list[tuple[float, ...]] = [()] * len(scored)
        by_length: dict[int, list[int]] = {}
        for place, one in enumerate(scored):
            rest = len(one.prompt) - plan.seen[place] + len(one.target) - 1
            by_length.setdefault(-(-rest // STEP) * STEP, []).append(place)
        longest = max(len(one.target) for one in scored)
        with jax.set_mesh(mesh):
            cache = begun(params, trunk, sizes)
            for length, places in sorted(by_length.items()):
                # Few shapes: as many rows as the next power of two.
                rows = 1 << (len(places) - 1).bit_length()
                tokens = np.zeros((rows, length), np.int32)
                targets = np.zeros((rows, longest), np.int32)
                of, seen, at = (np.zeros(rows, np.int32) for _ in range(3))
                for row, place in enumerate(places):
                    one, start = scored[place], plan.seen[place]
                    rest = [*one.prompt[start:], *one.target[:-1]]
                    tokens[row, : len(rest)] = rest
                    targets[row, : len(one.target)] = one.target
                    of[row], seen[row] = plan.trunk[place], start
                    at[row] = len(one.prompt) - start - 1
                found = np.asarray(followed(params, cache, of, seen, tokens, at, targets))
                for row, place in enumerate(places):
                    results[place] = tuple(found[row, : len(scored[place].target)].tolist())
        return results

    return score


def _padded(size: int, lengths: Sequence[int]) -> int:
    return min((n for n in sorted(lengths) if n >= size), default=size)
