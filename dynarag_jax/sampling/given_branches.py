"""Log-probabilities of branches that are given, by the training forward."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

import jax

from dynarag_jax.policy.batches import BatchShape, Example, collate, place, process_rows
from dynarag_jax.policy.model import Policy
from dynarag_jax.policy.scoring import make_scorer
from dynarag_jax.processes import ProcessTeam
from dynarag_jax.sampling.pool import local_part
from dynarag_jax.sharding import batch_shards, local_size

SCORES = 1 << 28
"""Scores of attention that a device holds at once while given branches are scored: 1 GiB."""


LEAST = 8
"""Prompts that a program is compiled for at least: few shapes."""


def _power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << max(n - 1, 0).bit_length()


def _above(sizes: Sequence[int], least: int) -> int:
    """The smallest of ascending sizes that is not below."""
    return sizes[bisect.bisect_left(sizes, least)]


class GivenBranches:
    """Scores given branches of prompts with one policy; compiled programs are kept between calls.

    In a run of several processes all of them call it, each with its share, however small.

    Args:
      ids: passages that a prompt shows at most.
      batch: prompts scored at once, of all processes.
    """

    def __init__(self, policy: Policy, ids: int, batch: int, team: ProcessTeam):
        self._policy, self._ids, self._batch, self._team = policy, ids, batch, team
        self._scorer = make_scorer(policy.cfg, policy.mesh, policy.grammar)

    def _at_once(self, length: int, branches: int, longest: int) -> int:
        """How many of this process's prompts are scored at once: as many as attention leaves room.

        Branches over a long prompt have [heads, branches, tokens, prompt] scores each.
        """
        mesh, cfg = self._policy.mesh, self._policy.cfg
        with jax.set_mesh(mesh):
            heads = local_size(cfg.heads, "heads")
        rows = max(1, SCORES // (heads * branches * longest * (length + longest)))
        here = len(process_rows(mesh, batch_shards(mesh)))
        return min(self._batch // self._team.count, rows * here)

    def logps(
        self,
        examples: Sequence[Example],
        lengths: Sequence[int],
        branches: int,
        longest: int,
        scored: Callable[[int], None] = lambda count: None,
    ) -> list[list[tuple[float, ...]]]:
        """Log-probabilities by token of every example's branches.

        Args:
          lengths: padded prompt lengths to choose from, ascending.
          branches: the most of one example.
          longest: the most tokens of a branch.
          scored: hears how many more examples are done.
        """
        results: list[list[tuple[float, ...]]] = [[] for _ in examples]
        padding = Example("", [0], ([self._policy.spelling.end],), supervised=())
        # By what is compiled: a prompt's padded length, and its number of branches.
        sizes = sorted({min(1 << i, branches) for i in range(branches.bit_length() + 1)})
        alike: dict[tuple[int, int], list[int]] = {(p, n): [] for p in lengths for n in sizes}
        for i, e in enumerate(examples):
            alike[_above(lengths, len(e.prompt)), _above(sizes, len(e.branches))].append(i)
        # All processes run the same programs: those that the fullest of them needs.
        written = max((len(b) for e in examples for b in e.branches), default=1)
        written, *counts = self._team.max([written, *map(len, alike.values())])
        longest = min(longest, _power(written))
        here = len(process_rows(self._policy.mesh, batch_shards(self._policy.mesh)))
        for ((length, n), indices), count in zip(alike.items(), counts, strict=True):
            share = self._at_once(length, n, longest)
            shape = BatchShape(length, n, longest, self._ids)
            for start in range(0, count, share):
                group = indices[start : start + share]
                rows = min(share, here * _power(-(-max(count - start, LEAST) // here)))
                padded = [examples[i] for i in group] + [padding] * (rows - len(group))
                batch = place(self._policy.mesh, collate(padded, shape))
                values = local_part(self._scorer(self._policy.params, batch))
                for row, i in enumerate(group):
                    results[i] = [
                        tuple(values[row, at, : len(branch)].tolist())
                        for at, branch in enumerate(examples[i].branches)
                    ]
                scored(len(group))
        return results
