"""The policy at work on questions: lists from the reranker, answers from the generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from dynarag_jax.policy.grammar import read_list
from dynarag_jax.policy.model import Policy, label_grammar
from dynarag_jax.prompts import PromptConfig, buckets, decode_answer
from dynarag_jax.records import Question
from dynarag_jax.sampling.distinct import find
from dynarag_jax.sampling.sampler import Sampling, make_sampler
from dynarag_jax.sampling.schedule import Request, run
from dynarag_jax.sampling.search import make_search
from dynarag_jax.sharding import batch_shards, named
from dynarag_jax.training.batches import Example, Shape, collate
from dynarag_jax.training.examples import ExampleMaker
from dynarag_jax.training.step import make_scorer

Chosen = tuple[int, ...]


@dataclass(frozen=True)
class Lists:
    """The lists sampled for one question."""

    shown: int
    """passages the reranker saw"""
    lists: tuple[Chosen, ...]
    logps: tuple[float, ...]
    weights: tuple[float, ...] = ()
    """of lists drawn without replacement: what each is worth in an estimate of an expectation under
    the policy (``distinct.importance_weights``)"""


class Writer:
    """Writes lists and answers with one policy; compiled samplers are kept between calls."""

    def __init__(self, policy: Policy, prompts: PromptConfig, batch: int, seed: int):
        self.policy, self.prompts, self.seed = policy, prompts, seed
        # A batch smaller than the mesh, or one that does not divide, is rounded up to what does.
        shards = batch_shards(policy.mesh)
        self.batch = -(-batch // shards) * shards
        self.maker = ExampleMaker(policy.tokenizer, policy.spelling, prompts)
        self._samplers: dict[tuple[str, int, Sampling], Callable] = {}
        self._scorer = make_scorer(policy.cfg, policy.mesh, policy.grammar)

    def _sampler(self, kind: str, samples: int, sampling: Sampling) -> Callable:
        key = (kind, samples, sampling)
        if key not in self._samplers:
            longest, grammar = self.prompts.answer_tokens, None
            if kind == "lists":
                longest = self.policy.spelling.longest(self.prompts.max_list)
                grammar = self.policy.grammar
            elif kind == "labels":
                longest, grammar = label_grammar(self.policy.tokenizer, self.prompts)
            self._samplers[key] = make_sampler(
                self.policy.cfg,
                self.policy.mesh,
                branches=samples,
                max_tokens=longest,
                end=self.policy.spelling.end,
                sampling=sampling,
                grammar=grammar,
            )
        return self._samplers[key]

    def lists(
        self, questions: Sequence[Question], sampling: Sampling, samples: int = 1
    ) -> list[Lists]:
        """``samples`` lists for every question, by the sampling's method; prompts computed once.

        Methods ``distinct`` and ``beam`` give fewer where fewer lists exist, the best score first.
        """
        prompts = [self.maker.rerank_prompt(q) for q in questions]
        requests = [
            Request(q.id, p.tokens, p.shown) for q, p in zip(questions, prompts, strict=True)
        ]
        if sampling.method != "independent":
            return self._found(requests, sampling, samples)
        results: list[Lists | None] = [None] * len(questions)
        for index, sampled in run(
            self._sampler("lists", samples, sampling),
            self.policy.params,
            self.policy.mesh,
            requests,
            batch=self.batch,
            lengths=buckets(self.prompts.rerank_tokens),
            seed=self.seed,
        ):
            written = [read_list(self.policy.spelling, tokens) for tokens in sampled.branches]
            results[index] = Lists(prompts[index].shown, tuple(written), sampled.logps)
        return [r for r in results if r is not None]

    def _found(self, requests: Sequence[Request], sampling: Sampling, samples: int) -> list[Lists]:
        """Different lists of every request."""
        spelling, prompts = self.policy.spelling, self.prompts
        key = ("search", samples, sampling)
        if key not in self._samplers:
            self._samplers[key] = make_search(
                self.policy.cfg,
                self.policy.mesh,
                branches=samples,
                max_tokens=spelling.longest(prompts.max_list),
                end=spelling.end,
                sampling=sampling,
                grammar=self.policy.grammar,
            )
        found = find(
            self._samplers[key],
            self.policy.params,
            self.policy.mesh,
            requests,
            batch=self.batch,
            lengths=buckets(prompts.rerank_tokens),
            seed=self.seed,
        )
        results = {
            index: Lists(
                requests[index].shown,
                tuple(read_list(spelling, tokens) for tokens in one.branches),
                one.logps,
                one.weights() if sampling.method == "distinct" else (),
            )
            for index, one in found
        }
        return [results[index] for index in range(len(requests))]

    def answers(self, asked: Sequence[tuple[Question, Chosen]]) -> list[str]:
        """Answer each question greedily from its chosen passages; equal requests run once.

        Label questions are answered with one of the configured labels, where there are any.
        """
        keys = [(q.id, chosen) for q, chosen in asked]
        distinct = {key: question for key, (question, _) in zip(keys, asked, strict=True)}
        by_kind: dict[str, list[tuple[str, Chosen]]] = {}
        for key, question in distinct.items():
            closed = question.task == "label" and self.prompts.labels
            by_kind.setdefault("labels" if closed else "answers", []).append(key)
        texts: dict[tuple[str, Chosen], str] = {}
        for kind, order in by_kind.items():
            requests = [
                Request(
                    f"{qid}/{chosen}",
                    self.maker.answer_prompt(distinct[qid, chosen], chosen).tokens,
                )
                for qid, chosen in order
            ]
            for index, sampled in run(
                self._sampler(kind, 1, Sampling(temperature=0.0)),
                self.policy.params,
                self.policy.mesh,
                requests,
                batch=self.batch,
                lengths=buckets(self.prompts.answer_prompt_tokens),
                seed=self.seed,
            ):
                texts[order[index]] = decode_answer(self.policy.tokenizer, sampled.branches[0])
        return [texts[key] for key in keys]

    def logps(
        self, questions: Sequence[Question], lists: Sequence[Sequence[Chosen]], branches: int
    ) -> list[list[tuple[float, ...]]]:
        """Log-probabilities by token of given lists, by the training forward.

        Args:
          branches: the most lists of one question.
        """
        examples = []
        for question, chosen in zip(questions, lists, strict=True):
            prompt = self.maker.rerank_prompt(question)
            spelled = tuple(self.policy.spelling.spell(c) for c in chosen)
            examples.append(
                Example(question.id, prompt.tokens, spelled, shown=prompt.shown, supervised=())
            )
        longest = self.policy.spelling.longest(self.prompts.max_list)
        return self._logps(examples, buckets(self.prompts.rerank_tokens), branches, longest)

    def answer_logps(
        self,
        questions: Sequence[Question],
        contexts: Sequence[Chosen],
        answers: Sequence[Sequence[Sequence[int]]],
        branches: int,
    ) -> list[list[tuple[float, ...]]]:
        """Log-probabilities by token of given answers (as tokens) from given passages."""
        examples = [
            Example(
                question.id,
                self.maker.answer_prompt(question, context).tokens,
                tuple(given),
                supervised=(),
            )
            for question, context, given in zip(questions, contexts, answers, strict=True)
        ]
        p = self.prompts
        return self._logps(examples, buckets(p.answer_prompt_tokens), branches, p.answer_tokens)

    def _logps(
        self, examples: Sequence[Example], lengths: Sequence[int], branches: int, longest: int
    ) -> list[list[tuple[float, ...]]]:
        results: list[list[tuple[float, ...]]] = [[] for _ in examples]
        rows = named(self.policy.mesh, ("batch",))
        for length in lengths:
            indices = [
                i for i, e in enumerate(examples)
                if len(e.prompt) <= length and not any(len(e.prompt) <= s < length for s in lengths)
            ]  # fmt: skip
            shape = Shape(length, branches, longest, self.prompts.ids)
            for start in range(0, len(indices), self.batch):
                group = indices[start : start + self.batch]
                padded = [examples[i] for i in group]
                padded += [examples[group[0]]] * (self.batch - len(group))
                batch = jax.device_put(collate(padded, shape), rows)
                values = np.asarray(self._scorer(self.policy.params, batch))
                for row, i in enumerate(group):
                    results[i] = [
                        tuple(values[row, n, : len(branch)].tolist())
                        for n, branch in enumerate(examples[i].branches)
                    ]
        return results
