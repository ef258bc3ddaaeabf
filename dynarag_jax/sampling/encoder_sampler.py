"""An encoder policy at work on questions: lists and their log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.calibration import ListBias
from dynarag_jax.policy.encoder_model import EncoderPolicy
from dynarag_jax.policy.encoder_policy import list_logps
from dynarag_jax.policy.kept_vectors import (
    Vectors,
    VectorStore,
    collate_vectors,
    frozen_vectors,
)
from dynarag_jax.policy.pair_tokens import QuestionPairs, collate_pairs
from dynarag_jax.processes import ProcessTeam
from dynarag_jax.records import Question, valid_list
from dynarag_jax.sampling.choice import GREEDY, Sampling
from dynarag_jax.sampling.distinct import importance_weights
from dynarag_jax.sampling.encoder_batches import BatchOf, packed_batches, padded_batches
from dynarag_jax.sampling.encoder_lists import Drawn, longest_list, make_list_writer
from dynarag_jax.sampling.policy_sampler import Chosen, Lists
from dynarag_jax.sampling.requests import request_key
from dynarag_jax.sharding import batch_shards, named


class EncoderSampler:
    """Draws and scores lists with one encoder policy; compiled programs are kept between calls.

    Questions of like numbers of candidates and like lengths share batches; a question's lists do
    not depend on what it shares one with. On a CPU, where ``models.packed`` can, no padding between
    their pairs is computed. In a run of several processes each works by itself, with
    the policy on its own devices.

    Args:
      batch: questions at once, at most.
      store: vectors of the policy's encoder: what it holds is not encoded again. A policy that
        reads again what was chosen has no use for it.
      coarse: pad to few shapes; None does so on accelerators, which more compiled programs cost
        more than padding does.
      packs: False pads all pairs.
    """

    def __init__(
        self, policy: EncoderPolicy, batch: int, seed: int, store: VectorStore | None = None,
        coarse: bool | None = None, packs: bool = True,
    ):  # fmt: skip
        self._store = None if policy.cfg.reencode else store
        on_cpu = policy.mesh.devices.flat[0].platform == "cpu"
        self._coarse = not on_cpu if coarse is None else coarse
        cfg = policy.cfg
        self._packs = (
            packs
            and not self._coarse
            and self._store is None
            and cfg.encoder.family == "bert"
            and not cfg.interaction
        )
        self.policy, self.batch, self.seed = policy, max(batch, 1), seed
        self.maker, self.team = policy.pair_maker(), ProcessTeam(None)
        self.heard: Callable[[], None] = lambda: None
        """called for every question as its lists are written"""
        self._writers: dict[tuple[int, Sampling, bool], Callable[..., Any]] = {}
        rows = named(policy.mesh, ("batch",))
        self._scorer = jax.jit(
            lambda params, candidates, lists, lengths: (
                list_logps(policy.cfg, params, candidates, lists, lengths).steps
            ),
            in_shardings=(None, rows, rows, rows),
            out_shardings=rows,
        )

    @property
    def together(self) -> int:
        """Questions after which what was found should be kept: a minute's work or less."""
        # Reading again takes a CPU a pass a step, in batches of few questions.
        slow = self.policy.cfg.reencode and not self._coarse
        return max(self.batch // 4, 1) if slow else 4 * self.batch

    def with_bias(self, bias: ListBias) -> EncoderSampler:
        """The same policy with a bias on ending lists."""
        policy = self.policy.with_bias(bias)
        own = EncoderSampler(policy, self.batch, self.seed, self._store, self._coarse, self._packs)
        own.heard = self.heard
        return own

    def _batches(self, pairs: Sequence[QuestionPairs], lists: int) -> Iterator[BatchOf]:
        cfg, shards = self.policy.cfg, batch_shards(self.policy.mesh)
        if self._packs:
            return packed_batches(cfg, pairs, lists, self.batch, shards)
        return padded_batches(cfg, pairs, lists, self.batch, shards, self._coarse)

    def _kept(self, questions: Sequence[Question]) -> Vectors | None:
        """Vectors of the questions where there is a store; what it lacks is computed."""
        if self._store is None:
            return None
        policy = self.policy
        return frozen_vectors(
            policy.cfg, policy.params, questions, self.maker, policy.mesh, store=self._store
        )

    def _candidates(
        self, questions: Sequence[Question], pairs: Sequence[QuestionPairs],
        vectors: Vectors | None, batch: BatchOf,
    ) -> Any:  # fmt: skip
        places = [*batch.places, *[batch.places[-1]] * (batch.rows - len(batch.places))]
        own, n = [pairs[i] for i in places], batch.candidates
        if vectors is None:
            candidates = collate_pairs(own, n, batch.pieces, batch.room)
        else:
            candidates = collate_vectors(own, [vectors[questions[i].id] for i in places], n)
        return candidates if self.policy.cfg.head.retriever else candidates._replace(retriever=None)

    def lists(
        self, questions: Sequence[Question], sampling: Sampling, samples: int = 1
    ) -> list[Lists]:
        """``samples`` lists for every question, by the sampling's method.

        Methods ``distinct`` and ``beam`` give fewer where fewer lists exist, the best score first.

        Raises:
          InputError: a question has no passages, or too many.
        """
        results: dict[int, Lists] = {}
        for i, row, count, out in self._written(questions, sampling, samples):
            results[i] = _read(out, row, count, sampling)
        return [results[i] for i in range(len(questions))]

    def endless(self, questions: Sequence[Question]) -> list[tuple[Chosen, tuple[float, ...]]]:
        """Greedy lists that stop only where nothing else is left.

        Returns:
          A list for every question, and at each of its passages by how much, in log-probability,
          it was preferred to stopping; less than 0 where the policy would have stopped.

        Raises:
          InputError: a question has no passages, or too many.
        """
        results: dict[int, tuple[Chosen, tuple[float, ...]]] = {}
        for i, row, _, out in self._written(questions, GREEDY, 1, endless=True):
            size = int(out.lengths[row, 0]) - 1
            margins = (out.logps - out.stops)[row, 0, :size]
            results[i] = tuple(out.tokens[row, 0, :size].tolist()), tuple(margins.tolist())
        return [results[i] for i in range(len(questions))]

    def _written(
        self, questions: Sequence[Question], sampling: Sampling, samples: int,
        endless: bool = False,
    ) -> Iterator[tuple[int, int, int, Any]]:  # fmt: skip
        """Of every question, in some order, its place, and its row in what a program wrote."""
        key = (samples, sampling, endless)
        if key not in self._writers:
            policy = self.policy
            self._writers[key] = make_list_writer(
                policy.cfg, policy.mesh, samples, sampling, endless
            )
        pairs = [self.maker.pairs(question) for question in questions]
        vectors = self._kept(questions)
        for batch in self._batches(pairs, samples):
            seeds = np.zeros(batch.rows, np.uint32)
            own = [request_key(self.seed, questions[i].id) for i in batch.places]
            seeds[: len(own)] = own
            keys = jax.vmap(jax.random.key)(jnp.asarray(seeds))
            candidates = self._candidates(questions, pairs, vectors, batch)
            out = self._writers[key](self.policy.params, candidates, keys)
            out = jax.tree.map(np.asarray, out)
            for row, i in enumerate(batch.places):
                yield i, row, pairs[i].count, out
                self.heard()

    def reading(self, question: Question, chosen: Chosen) -> tuple[int, int]:
        """Passes over the candidates that a list took, and about how many word pieces they read.

        The passages chosen before a step are not counted, and candidates that are read again count
        as much as the others.
        """
        cfg, pairs = self.policy.cfg, self.maker.pairs(question)
        once = sum(map(len, pairs.tokens))
        if not cfg.reencode:
            return 1, once
        passes = min(len(chosen) + 1, longest_list(cfg, pairs.count) - 1)
        share = min(cfg.reread / pairs.count, 1.0) if cfg.reread else 1.0
        return passes, once + round((passes - 1) * share * once)

    def try_lists(
        self, questions: Sequence[Question], sampling: Sampling, samples: int = 1
    ) -> list[Lists | InputError]:
        """As ``lists``; in place of the lists of a question that cannot be read, the reason."""
        wrong: dict[int, InputError] = {}
        for i, question in enumerate(questions):
            try:
                self.maker.pairs(question)
            except InputError as error:
                wrong[i] = error
        good = [question for i, question in enumerate(questions) if i not in wrong]
        found = iter(self.lists(good, sampling, samples) if good else [])
        return [wrong[i] if i in wrong else next(found) for i in range(len(questions))]

    def logps(
        self, questions: Sequence[Question], lists: Sequence[Sequence[Chosen]]
    ) -> list[list[tuple[float, ...]]]:
        """Log-probabilities of the steps of given lists, that of stopping included.

        Raises:
          InputError: a list is none of the policy's.
        """
        most = self.policy.cfg.max_list
        for question, own in zip(questions, lists, strict=True):
            for one in own:
                wrong = valid_list(one, len(question.passages))
                if not wrong and len(one) > most:
                    wrong = f"has {len(one)} passages, more than prompts.max_list = {most}"
                if wrong:
                    raise InputError(f"question '{question.id}': the list {list(one)} {wrong}")
        pairs, vectors = [self.maker.pairs(q) for q in questions], self._kept(questions)
        count = max((len(own) for own in lists), default=0)
        steps = max((len(one) for own in lists for one in own), default=0) + 1
        results: dict[int, list[tuple[float, ...]]] = {}
        for batch in self._batches(pairs, count):
            tokens = np.zeros((batch.rows, count, steps), np.int32)
            lengths = np.zeros((batch.rows, count), np.int32)
            for row, i in enumerate(batch.places):
                for j, one in enumerate(lists[i]):
                    tokens[row, j, : len(one)] = one
                    lengths[row, j] = len(one) + 1
            candidates = self._candidates(questions, pairs, vectors, batch)
            with jax.set_mesh(self.policy.mesh):
                found = np.asarray(self._scorer(self.policy.params, candidates, tokens, lengths))
            for row, i in enumerate(batch.places):
                results[i] = [
                    tuple(found[row, j, : len(one) + 1].tolist()) for j, one in enumerate(lists[i])
                ]
        return [results[i] for i in range(len(questions))]


def _read(out: Any, row: int, shown: int, sampling: Sampling) -> Lists:
    """The lists of one row."""
    drawn = isinstance(out, Drawn)
    kept = np.ones(out.tokens.shape[1], bool) if drawn else out.valid[row]
    tokens, lengths = out.tokens[row][kept], out.lengths[row][kept]
    lists = tuple(tuple(t[: n - 1].tolist()) for t, n in zip(tokens, lengths, strict=True))
    if drawn:
        steps = out.logps[row]
        each = tuple(tuple(x[:n].tolist()) for x, n in zip(steps, lengths, strict=True))
        return Lists(shown, lists, tuple(map(math.fsum, each)), each)
    logps, weights = out.logps[row][kept], ()
    if sampling.method == "distinct":
        found = importance_weights(logps, out.drawn[row][kept], out.threshold[row])
        weights = tuple(found.tolist())
    return Lists(shown, lists, tuple(logps.tolist()), weights=weights)
