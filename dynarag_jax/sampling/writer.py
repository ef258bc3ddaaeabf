"""The policy at work on questions: lists from the reranker, answers from the generator."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.models.config import Params
from dynarag_jax.policy.grammar import read_list
from dynarag_jax.policy.model import Policy
from dynarag_jax.prompts import PromptConfig, buckets, decode_answer
from dynarag_jax.records import Question
from dynarag_jax.sampling.engine import Engine, EngineConfig, Request, Sampled
from dynarag_jax.sampling.pool import free_bytes, local_part
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.sampling.together import Together
from dynarag_jax.sharding import batch_shards
from dynarag_jax.training.batches import Example, Shape, collate, place
from dynarag_jax.training.examples import ExampleMaker
from dynarag_jax.training.step import make_scorer

Chosen = tuple[int, ...]


@dataclass(frozen=True)
class Lists:
    """The lists sampled for one question."""

    shown: int
    """passages the reranker saw"""
    lists: tuple[Chosen, ...]
    token_logps: tuple[tuple[float, ...], ...]
    """of each list, under the grammar"""


class Writer:
    """Writes lists and answers with one policy; compiled programs are kept between calls.

    In a run of several processes each calls the same methods with questions of its own.

    Args:
      batch: prompts in flight.
      engine: how memory and time are used; lists and answers have half of the memory each.

    Raises:
      InputError: the weights hold NaN or infinity.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: PromptConfig,
        batch: int,
        seed: int,
        engine: EngineConfig | None = None,
    ):
        require_finite(policy.params)
        self.policy, self.prompts, self.seed = policy, prompts, seed
        self.config = engine or EngineConfig()
        # A batch smaller than the mesh, or one that does not divide, is rounded up to what does.
        shards = batch_shards(policy.mesh)
        self.batch = -(-batch // shards) * shards
        self.together = Together(policy.mesh)
        self.maker = ExampleMaker(policy.tokenizer, policy.spelling, prompts)
        self._scorer = make_scorer(policy.cfg, policy.mesh, policy.grammar)
        self._list_engines: dict[int, Engine] = {}

    # ------------------------------------------------------------------ lists

    def list_engine(self, samples: int) -> Engine:
        """The engine that writes ``samples`` lists a question."""
        if samples not in self._list_engines:
            longest = self.policy.spelling.longest(self.prompts.max_list)
            lengths = buckets(self.prompts.rerank_tokens)
            self._list_engines[samples] = self._engine(samples, longest, lengths)
        return self._list_engines[samples]

    def _engine(self, branches: int, longest: int, lengths: Sequence[int]) -> Engine:
        return Engine(
            self.policy.cfg,
            self.policy.params,
            self.policy.mesh,
            branches=branches,
            max_tokens=longest,
            lengths=lengths,
            slots=self.batch,
            config=self.config,
            grammar=self.policy.grammar,
            seed=self.seed,
            budget=self._budget,
        )

    @functools.cached_property
    def _budget(self) -> int:
        given = int(self.config.cache_gib * 2**30)
        return (given or free_bytes(self.policy.mesh)) // 2

    def list_request(self, question: Question, sampling: Sampling) -> Request:
        """The request for a question's lists.

        Raises:
          InputError: the question has no passages, or not even one fits the prompt.
        """
        prompt = self.maker.rerank_prompt(question)
        return Request(
            question.id,
            prompt.tokens,
            shown=prompt.shown,
            sampling=sampling,
            stops=(self.policy.spelling.end,),
        )

    def read(self, shown: int, sampled: Sampled) -> Lists:
        """The lists that an engine wrote."""
        written = tuple(read_list(self.policy.spelling, tokens) for tokens in sampled.branches)
        return Lists(shown, written, sampled.token_logps)

    def lists(
        self, questions: Sequence[Question], sampling: Sampling, samples: int = 1
    ) -> list[Lists]:
        """Sample ``samples`` lists for every question; the prompt is computed once.

        Raises:
          InputError: a question cannot be served; it is named.
        """
        requests = [self.list_request(q, sampling) for q in questions]
        shown = {r.id: r.shown or 0 for r in requests}
        found: dict[str, Lists] = {}
        for sampled in self.list_engine(samples).run(requests):
            if sampled.refused:
                raise InputError(f"question '{sampled.id}': {sampled.refused}")
            found[sampled.id] = self.read(shown[sampled.id], sampled)
        return [found[q.id] for q in questions]

    # ------------------------------------------------------------------ answers

    @functools.cached_property
    def answer_engine(self) -> Engine:
        """The engine that writes answers."""
        return self._engine(
            1, self.prompts.answer_tokens, buckets(self.prompts.answer_prompt_tokens)
        )

    def answers(self, asked: Sequence[tuple[Question, Chosen]]) -> list[str]:
        """Answer each question greedily from its chosen passages; equal requests run once.

        Raises:
          InputError: a question cannot be served; it is named.
        """
        found = self.try_answers(asked)
        for (question, _), answer in zip(asked, found, strict=True):
            if isinstance(answer, InputError):
                raise InputError(f"question '{question.id}': {answer}")
        return [str(answer) for answer in found]

    def try_answers(self, asked: Sequence[tuple[Question, Chosen]]) -> list[str | InputError]:
        """As ``answers``; in place of an answer that cannot be given, the reason."""
        keys = [(q.id, chosen) for q, chosen in asked]
        distinct = {key: question for key, (question, _) in zip(keys, asked, strict=True)}
        answers: dict[tuple[str, Chosen], str | InputError] = {}
        requests, names = [], {}
        for (qid, chosen), question in distinct.items():
            try:
                tokens = self.maker.answer_prompt(question, chosen).tokens
            except InputError as error:
                answers[qid, chosen] = error
                continue
            name = f"{qid}/{chosen}"
            names[name] = qid, chosen
            requests.append(
                Request(
                    name,
                    tokens,
                    sampling=Sampling(temperature=0.0),
                    stops=(self.policy.spelling.end,),
                )
            )
        for sampled in self.answer_engine.run(requests):
            answers[names[sampled.id]] = (
                InputError(f"its answer: {sampled.refused}")
                if sampled.refused
                else decode_answer(self.policy.tokenizer, sampled.branches[0])
            )
        return [answers[key] for key in keys]

    # ------------------------------------------------------------------ log-probabilities

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
        padding = Example("", [0], ([self.policy.spelling.end],), supervised=())
        share = self.batch // self.together.teams
        for length in lengths:
            indices = [
                i for i, e in enumerate(examples)
                if len(e.prompt) <= length and not any(len(e.prompt) <= s < length for s in lengths)
            ]  # fmt: skip
            shape = Shape(length, branches, longest, self.prompts.ids)
            (rounds,) = self.together.most([-(-len(indices) // share)])
            for start in range(0, rounds * share, share):
                group = indices[start : start + share]
                padded = [examples[i] for i in group] + [padding] * (share - len(group))
                batch = place(self.policy.mesh, collate(padded, shape))
                values = local_part(self._scorer(self.policy.params, batch))
                for row, i in enumerate(group):
                    results[i] = [
                        tuple(values[row, n, : len(branch)].tolist())
                        for n, branch in enumerate(examples[i].branches)
                    ]
        return results


def require_finite(params: Params) -> None:
    """Raise InputError naming a weight that holds NaN or infinity."""
    paths, leaves = zip(*jax.tree_util.tree_flatten_with_path(params)[0], strict=True)
    flags = jax.jit(lambda xs: jnp.stack([jnp.isfinite(x).all() for x in xs]))(leaves)
    bad = [path for path, fine in zip(paths, np.asarray(flags), strict=True) if not fine]
    if bad:
        name = ".".join(str(getattr(k, "key", k)) for k in bad[0])
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise InputError(
            f"the model's weights hold NaN or infinity ('{name}'{more}); take an earlier checkpoint"
        )
