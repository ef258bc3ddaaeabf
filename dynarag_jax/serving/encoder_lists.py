"""An encoder policy as serving knows it: lists drawn passage by passage, each step explained."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.policy.encoder_policy import STOP, step_of, trunk_of
from dynarag_jax.policy.pair_tokens import collate_pairs, padded_count, padded_pieces
from dynarag_jax.records import Question, valid_list
from dynarag_jax.sampling.choice import GREEDY, Sampling
from dynarag_jax.sampling.encoder_sampler import EncoderSampler
from dynarag_jax.serving.policies import (
    BatchedLists,
    Chosen,
    ExplainedList,
    ListStep,
    RankedList,
)


class EncoderPolicyLists:
    """The lists of an encoder policy; a ``ListPolicy``.

    Args:
      sampling: how a list is chosen; greedily by default.
    """

    def __init__(self, sampler: EncoderSampler, sampling: Sampling = GREEDY):
        self._sampler, self._sampling = sampler, sampling
        policy = sampler.policy

        def scores(params, candidates, tokens):
            memory = trunk_of(policy.cfg, params, candidates)
            step = step_of(policy.cfg, params, candidates, memory, tokens)
            return jax.nn.log_softmax(jnp.where(step.mask, step.scores, -jnp.inf), axis=-1)

        self._steps = jax.jit(scores)

    @property
    def kind(self) -> str:
        return "encoder policy"

    def rank_lists(self, questions: Sequence[Question]) -> list[RankedList | InputError]:
        ranked: list[RankedList | InputError] = []
        found = self._sampler.try_lists(questions, self._sampling)
        for question, one in zip(questions, found, strict=True):
            if isinstance(one, InputError):
                ranked.append(one)
                continue
            chosen = one.lists[0]
            calls, read = self._sampler.reading(question, chosen)
            ranked.append(RankedList(chosen, calls=calls, tokens=read, shown=one.shown))
        return ranked

    def explain(self, question: Question, chosen: Chosen | None = None) -> ExplainedList:
        if chosen is None:
            (ranked,) = self.rank_lists([question])
            if isinstance(ranked, InputError):
                raise ranked
            chosen = ranked.chosen
        most, n = self._sampler.policy.cfg.max_list, len(question.passages)
        wrong = valid_list(chosen, n)
        if not wrong and len(chosen) > most:
            wrong = f"has {len(chosen)} passages, more than max_list = {most}"
        if wrong:
            raise InputError(f"question '{question.id}': the list {list(chosen)} {wrong}")
        pairs = self._sampler.maker.pairs(question)
        pieces = padded_pieces(pairs.longest, self._sampler.policy.cfg.pieces)
        candidates = collate_pairs([pairs], padded_count(n), pieces)
        # One row a step: what was chosen before it. As many rows as lists may have steps, so that
        # lists of all lengths share a program.
        tokens = np.zeros((1, most + 1, most + 1), np.int32)
        for step in range(len(chosen) + 1):
            tokens[0, step, :step] = chosen[:step]
        policy = self._sampler.policy
        with jax.set_mesh(policy.mesh):
            logps = np.asarray(self._steps(policy.params, candidates, tokens))[0]
        steps, total = [], 0.0
        for own, taken in zip(logps, (*chosen, STOP), strict=False):
            left = {int(i): float(own[i]) for i in np.flatnonzero(np.isfinite(own))}
            total += left[taken]
            if len(steps) < most:  # a list as long as lists may be stops by itself
                steps.append(ListStep(taken, left))
        return ExplainedList(chosen, total, tuple(steps))

    def worker(self) -> BatchedLists:
        return BatchedLists(self)
