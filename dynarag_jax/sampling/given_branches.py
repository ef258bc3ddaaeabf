"""Log-probabilities of branches that are given, by the training forward."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from dynarag_jax.policy.batches import BatchShape, Example, collate, place, process_rows
from dynarag_jax.policy.model import Policy
from dynarag_jax.policy.scoring import make_scorer
from dynarag_jax.processes import ProcessTeam
from dynarag_jax.sampling.pool import local_part
from dynarag_jax.sharding import batch_shards, local_size

SCORES = 1 << 28
"""Scores of attention that a device holds at once while given branches are scored: 1 GiB."""


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
        self, examples: Sequence[Example], lengths: Sequence[int], branches: int, longest: int
    ) -> list[list[tuple[float, ...]]]:
        """Log-probabilities by token of every example's branches.

        Args:
          lengths: padded prompt lengths to choose from.
          branches: the most of one example.
          longest: the most tokens of a branch.
        """
        results: list[list[tuple[float, ...]]] = [[] for _ in examples]
        padding = Example("", [0], ([self._policy.spelling.end],), supervised=())
        for length in lengths:
            share = self._at_once(length, branches, longest)
            indices = [
                i for i, e in enumerate(examples)
                if len(e.prompt) <= length and not any(len(e.prompt) <= s < length for s in lengths)
            ]  # fmt: skip
            shape = BatchShape(length, branches, longest, self._ids)
            (rounds,) = self._team.max([-(-len(indices) // share)])
            for start in range(0, rounds * share, share):
                group = indices[start : start + share]
                padded = [examples[i] for i in group] + [padding] * (share - len(group))
                batch = place(self._policy.mesh, collate(padded, shape))
                values = local_part(self._scorer(self._policy.params, batch))
                for row, i in enumerate(group):
                    results[i] = [
                        tuple(values[row, n, : len(branch)].tolist())
                        for n, branch in enumerate(examples[i].branches)
                    ]
        return results
