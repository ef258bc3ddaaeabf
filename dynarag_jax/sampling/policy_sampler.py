"""The policy at work on questions: lists from the reranker, answers from the generator."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from dynarag_jax.errors import InputError
from dynarag_jax.policy.batches import Example
from dynarag_jax.policy.examples import ExampleMaker
from dynarag_jax.policy.grammar import Grammar, read_list
from dynarag_jax.policy.model import Policy, label_grammar, require_finite
from dynarag_jax.processes import ProcessTeam
from dynarag_jax.prompts import PromptConfig, buckets, decode_answer
from dynarag_jax.records import Question
from dynarag_jax.rollout_records import Thought
from dynarag_jax.sampling.distinct import find
from dynarag_jax.sampling.engine import Engine
from dynarag_jax.sampling.given_branches import GivenBranches
from dynarag_jax.sampling.pool_sizes import free_bytes
from dynarag_jax.sampling.requests import EngineConfig, Request, Sampled
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.sampling.search import ListSearch, width_of
from dynarag_jax.sharding import batch_shards

Chosen = tuple[int, ...]


@dataclass(frozen=True)
class Lists:
    """The lists sampled for one question."""

    shown: int
    """passages the reranker saw"""
    lists: tuple[Chosen, ...]
    logps: tuple[float, ...]
    token_logps: tuple[tuple[float, ...], ...] = ()
    """by token, where the lists were drawn one by one"""
    weights: tuple[float, ...] = ()
    """of lists drawn without replacement: what each is worth in an estimate of an expectation under
    the policy (``distinct.importance_weights``)"""
    thoughts: tuple[Thought, ...] = ()
    """before each list, where the policy thinks; the log-probabilities of a list are then given
    its thought"""


class PolicySampler:
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
        self.team = ProcessTeam(policy.mesh)
        self.heard: Callable[[], None] = lambda: None
        """called for every list or answer as it is written"""
        self.scored: Callable[[int], None] = lambda count: None
        """called with how many more prompts have their given branches' log-probabilities"""
        self.maker = ExampleMaker(
            policy.tokenizer, policy.spelling, prompts, positions=policy.cfg.positions,
            strict=policy.cfg.strict_positions,
        )  # fmt: skip
        self._given = GivenBranches(policy, prompts.ids, self.batch, self.team)
        self._list_engines: dict[int, Engine] = {}
        self._searches: dict[tuple[int, Sampling], ListSearch] = {}

    # ------------------------------------------------------------------ lists

    @property
    def together(self) -> int:
        """Questions after which what was found should be kept: some batches."""
        return 4 * self.batch

    def list_engine(self, samples: int) -> Engine:
        """The engine that writes ``samples`` lists a question."""
        if samples not in self._list_engines:
            self._list_engines[samples] = self.new_list_engine(samples)
        return self._list_engines[samples]

    def new_list_engine(self, samples: int) -> Engine:
        """One of its own, for who submits requests as they come."""
        longest = self.policy.spelling.longest(self.prompts.max_list)
        lengths = buckets(self.prompts.rerank_tokens)
        return self._engine(samples, longest, lengths, self.policy.grammar)

    def _engine(
        self, branches: int, longest: int, lengths: Sequence[int], grammar: Grammar | None
    ) -> Engine:
        return Engine(
            self.policy.cfg,
            self.policy.params,
            self.policy.mesh,
            branches=branches,
            max_tokens=longest,
            lengths=lengths,
            slots=self.batch,
            config=self.config,
            grammar=grammar,
            seed=self.seed,
            budget=self._budget,
            arrays=self.policy.arrays,
        )

    @functools.cached_property
    def _budget(self) -> int:
        given = int(self.config.cache_gib * 2**30)
        _ = self.policy.arrays  # they take of what is free
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
        if self.policy.spelling.thought is None:
            return Lists(shown, written, sampled.logps, sampled.token_logps)
        pairs = zip(sampled.branches, sampled.token_logps, strict=True)
        thoughts = tuple(self.read_thought(tokens, logps) for tokens, logps in pairs)
        logps = tuple(
            x[len(t.tokens) :] for t, x in zip(thoughts, sampled.token_logps, strict=True)
        )
        return Lists(shown, written, tuple(map(math.fsum, logps)), logps, thoughts=thoughts)

    def read_thought(self, tokens: Sequence[int], logps: Sequence[float] = ()) -> Thought:
        """The thought at the front of a branch.

        Args:
          logps: of the branch's tokens.
        """
        spelling = self.policy.spelling.thought
        assert spelling is not None
        count, cut = spelling.split(tokens)
        text = self.policy.tokenizer.decode(spelling.thought(tokens)).strip()
        return Thought(text, tuple(tokens[:count]), tuple(logps[:count]), cut=cut)

    def lists(
        self, questions: Sequence[Question], sampling: Sampling, samples: int = 1
    ) -> list[Lists]:
        """``samples`` lists for every question, by the sampling's method; prompts computed once.

        Methods ``distinct`` and ``beam`` give fewer where fewer lists exist, the best score first.

        Raises:
          InputError: a question cannot be served; it is named.
        """
        found: list[Lists] = []
        for one in self.try_lists(questions, sampling, samples):
            if isinstance(one, InputError):
                raise one
            found.append(one)
        return found

    def try_lists(
        self, questions: Sequence[Question], sampling: Sampling, samples: int = 1
    ) -> list[Lists | InputError]:
        """As ``lists``; in place of those that cannot be written, the reason."""
        found: dict[int, Lists | InputError] = {}
        requests: dict[int, Request] = {}
        for place, question in enumerate(questions):
            try:
                requests[place] = self.list_request(question, sampling)
            except InputError as error:
                found[place] = error
        if sampling.method != "independent":
            found |= self._searched_lists(requests, sampling, samples)
            return [found[place] for place in range(len(questions))]
        # The same id may ask about several prompts: a name apart, and the same random numbers.
        named = {f"{place}/{r.id}": place for place, r in requests.items()}
        renamed = [replace(requests[i], id=name, key=requests[i].id) for name, i in named.items()]
        for sampled in self.list_engine(samples).run(renamed):
            self.heard()
            place = named[sampled.id]
            request = requests[place]
            found[place] = (
                InputError(f"question '{request.id}': {sampled.refused}")
                if sampled.refused
                else self.read(request.shown or 0, sampled)
            )
        return [found[place] for place in range(len(questions))]

    def _searched_lists(
        self, requests: Mapping[int, Request], sampling: Sampling, samples: int
    ) -> Mapping[int, Lists | InputError]:
        """Different lists of every request; none of a policy that thinks before it lists."""
        if self.prompts.thought_tokens:
            why = InputError(
                f"method '{sampling.method}' searches lists, and this policy writes a thought "
                f"before each: set sampling.method = 'independent', or prompts.thought_tokens = 0"
            )
            return dict.fromkeys(requests, why)
        spelling, prompts = self.policy.spelling, self.prompts
        key = (samples, sampling)
        if key not in self._searches:
            self._searches[key] = ListSearch(
                self.policy.cfg,
                self.policy.mesh,
                branches=samples,
                max_tokens=spelling.longest(prompts.max_list),
                end=spelling.end,
                sampling=sampling,
                grammar=self.policy.grammar,
                chunk=self.config.chunk,
            )
        places, asked = list(requests), list(requests.values())
        searched = find(
            self._searches[key],
            self.policy.cfg,
            self.policy.params,
            self.policy.arrays,
            self.policy.mesh,
            asked,
            batch=self.batch,
            budget=self._budget,
            width=width_of(samples, sampling),
            longest=spelling.longest(prompts.max_list),
            lengths=buckets(prompts.rerank_tokens),
            seed=self.seed,
            team=self.team,
        )
        results: dict[int, Lists | InputError] = {}
        for index, one in searched:
            self.heard()
            if isinstance(one, InputError):
                results[places[index]] = one
                continue
            results[places[index]] = Lists(
                asked[index].shown or 0,
                tuple(read_list(spelling, tokens) for tokens in one.branches),
                one.logps,
                weights=one.weights() if sampling.method == "distinct" else (),
            )
        return results

    # ------------------------------------------------------------------ answers

    @functools.cached_property
    def answer_engine(self) -> Engine:
        """The engine that writes answers."""
        return self.new_answer_engine()

    def new_answer_engine(self) -> Engine:
        """One of its own, for who submits requests as they come."""
        lengths = buckets(self.prompts.answer_prompt_tokens)
        return self._engine(1, self.prompts.answer_tokens, lengths, None)

    @functools.cached_property
    def label_engine(self) -> Engine:
        """The engine that answers with one of the configured labels."""
        longest, grammar = label_grammar(self.policy.tokenizer, self.prompts)
        lengths = buckets(self.prompts.answer_prompt_tokens)
        return self._engine(1, longest, lengths, grammar)

    def answers(self, pairs: Sequence[tuple[Question, Chosen]]) -> list[str]:
        """Answer each question greedily from its chosen passages; equal requests run once.

        Label questions are answered with one of the configured labels, where there are any.

        Raises:
          InputError: a question cannot be served; it is named.
        """
        answers = self.try_answers(pairs)
        for (question, _), answer in zip(pairs, answers, strict=True):
            if isinstance(answer, InputError):
                raise InputError(f"question '{question.id}': {answer}")
        return [str(answer) for answer in answers]

    def try_answers(self, pairs: Sequence[tuple[Question, Chosen]]) -> list[str | InputError]:
        """As ``answers``; in place of an answer that cannot be given, the reason."""
        keys = [(q.id, chosen) for q, chosen in pairs]
        distinct = {key: question for key, (question, _) in zip(keys, pairs, strict=True)}
        answers: dict[tuple[str, Chosen], str | InputError] = {}
        free: list[Request] = []
        labels: list[Request] = []
        names = {}
        for (qid, chosen), question in distinct.items():
            try:
                tokens = self.maker.answer_prompt(question, chosen).tokens
            except InputError as error:
                answers[qid, chosen] = error
                continue
            name = f"{qid}/{chosen}"
            names[name] = qid, chosen
            closed = question.task == "label" and bool(self.prompts.labels)
            (labels if closed else free).append(
                Request(
                    name,
                    tokens,
                    shown=0 if closed else None,
                    sampling=Sampling(temperature=0.0),
                    stops=(self.policy.spelling.end,) if closed else self.policy.ends,
                )
            )
        results = self.answer_engine.run(free)
        if self.prompts.labels:
            results = itertools.chain(results, self.label_engine.run(labels))
        for sampled in results:
            self.heard()
            answers[names[sampled.id]] = (
                InputError(f"its answer: {sampled.refused}")
                if sampled.refused
                else decode_answer(self.policy.tokenizer, sampled.branches[0], self.policy.ends)
            )
        return [answers[key] for key in keys]

    # ------------------------------------------------------------------ log-probabilities

    def logps(
        self,
        questions: Sequence[Question],
        lists: Sequence[Sequence[Chosen]],
        branches: int,
        thoughts: Sequence[Sequence[Sequence[int]]] = (),
    ) -> list[list[tuple[float, ...]]]:
        """Log-probabilities by token of given lists, by the training forward.

        Args:
          branches: the most lists of one question.
          thoughts: tokens before each list, whose log-probabilities come first; empty is none.

        Raises:
          InputError: the policy thinks before it lists, and what it thought is not given.
        """
        if self.policy.spelling.thought is not None and not thoughts:
            raise InputError(
                "the probability of a list is given its thought where a policy thinks, and no "
                "thoughts are known here; set prompts.thought_tokens to 0"
            )
        examples = []
        before_all = thoughts or [[()] * len(chosen) for chosen in lists]
        for question, chosen, before in zip(questions, lists, before_all, strict=True):
            prompt = self.maker.rerank_prompt(question)
            spelled = tuple(map(self.policy.spelling.spell, chosen, before))
            examples.append(
                Example(question.id, prompt.tokens, spelled, shown=prompt.shown, supervised=())
            )
        longest = self.policy.spelling.longest(self.prompts.max_list)
        lengths = buckets(self.prompts.rerank_tokens, between=True)
        return self._given.logps(examples, lengths, branches, longest, self.scored)

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
        lengths = buckets(self.prompts.answer_prompt_tokens, between=True)
        longest = self.prompts.answer_tokens
        return self._given.logps(examples, lengths, branches, longest, self.scored)
