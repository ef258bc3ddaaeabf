"""Sample lists, answer from each, reward the answers: rollouts.jsonl, appended as they finish.

    dynarag rollout configs/quickstart.py
    dynarag rollout configs/quickstart.py --samples 4 --sampling.temperature 0.7
    dynarag rollout configs/nq_litm.py --server.url http://host:8000/v1 --server.model NAME

Each process of a run appends to a part of its own, rollouts.part-0.jsonl and so on; in the end the
parts become rollouts.jsonl, in the order of the questions. A rollout that was killed continues:
what stands in the parts is not computed again, in however many processes it goes on. Questions that
cannot be served are set aside in rejects.jsonl, each with the reason.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from dynarag_jax.config import INHERITED, MorePassages, SameResult
from dynarag_jax.data.reading import read_valid_questions
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.encoder_policies import is_encoder_policy
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.progress import Progress
from dynarag_jax.parts import SharedRows
from dynarag_jax.policy.model import load_policy
from dynarag_jax.processes import ProcessTeam
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import Question
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.rewards.judge import Judge, JudgeConfig
from dynarag_jax.rewards.scorer import BertScoreConfig, Scorer
from dynarag_jax.rollout_records import Rollout, rollout_to_json, signal_figures
from dynarag_jax.sampling.answer_server import GeneratorConfig
from dynarag_jax.sampling.compiled import SamplingNeeds
from dynarag_jax.sampling.credit import CreditKind
from dynarag_jax.sampling.list_sources import ListSource, Reject, policy_lists
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.requests import EngineConfig
from dynarag_jax.sampling.rollouts import check_server_rewards, roll_out
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.sampling.server import ServerConfig, ServerLists
from dynarag_jax.stages.common.calibrated import say_left_out
from dynarag_jax.stages.common.candidates import to_learn, too_many
from dynarag_jax.stages.common.encoder_rollouts import sample_lists, say_unjudged
from dynarag_jax.stages.common.encoder_samplers import check_reader
from dynarag_jax.stages.common.files import opened
from dynarag_jax.stages.common.servers import (
    added_up,
    generator_of,
    key_of,
    replies_of,
    say_asked,
)


@dataclass(frozen=True)
class SampleRollouts:
    """Sample lists, answer from each, reward the answers."""

    model: str = "{run}/sft/model"
    """the policy: it writes the lists, and the answers unless a server does"""
    reference: str = ""
    """model behind the reference log-probabilities; empty is the policy itself"""
    questions: str = "{run}/label/train.jsonl"
    limit: int = 0
    """questions to take, chosen by the seed; 0 takes all"""
    samples: int = 8
    """lists a question"""
    more_passages: MorePassages = INHERITED
    answers: bool = False
    """also score the distinct answers, all from the best list's passages: what preference training
    of the generator needs"""
    sampling: Sampling = Sampling(temperature=1.0, top_p=0.9)
    reward: RewardWeights = RewardWeights()
    credit: CreditKind = ""
    """also find what of a list's reward is owed to each passage, from rewards of its parts: gains,
    what it rises by as passages are added; leave_one_out, what it falls by without each"""
    bertscore: BertScoreConfig = BertScoreConfig()
    judge: JudgeConfig = JudgeConfig()
    prompts: PromptConfig = INHERITED
    dtype: Literal["float32", "bfloat16"] = INHERITED
    batch: SameResult[int] = 64
    """prompts sampled at once"""
    engine: SameResult[EngineConfig] = EngineConfig()
    server: ServerConfig = ServerConfig()
    """another source of the lists; log-probabilities come from here all the same"""
    reader: str = ""
    """of an encoder policy: the language model that answers from its lists; empty answers nothing,
    and only terms that judge the list can be weighed"""
    reader_dtype: Literal["", "float32", "bfloat16"] = ""
    """what the reader computes in; empty takes ``dtype``"""
    generator: GeneratorConfig = GeneratorConfig()
    """a server that answers in place of the policy: the black box whose answers are rewarded"""

    def __post_init__(self) -> None:
        if self.generator.url:
            check_server_rewards(self.reward, self.answers)
        check_reader(self.reader, self.reader_dtype)


def to_plan(stage: SampleRollouts) -> list[SamplingNeeds]:
    """What the stage samples with its policy, of the stage's servers nothing."""
    lists = 0 if stage.server.url else stage.samples
    return [
        SamplingNeeds(
            stage.model, lists, not stage.generator.url, stage.prompts, stage.sampling,
            stage.batch, stage.engine, stage.dtype,
        )
    ]  # fmt: skip


ROLLOUTS, REJECTS = "rollouts", "rejects"


def run(context: Context, stage: SampleRollouts) -> None:
    """Sample until every question has its rollout."""
    paths = {"questions": context.path(stage.questions), "model": context.model(stage.model)}
    if stage.reference:
        paths["reference"] = context.model(stage.reference)
    if stage.reader:
        paths["reader"] = context.model(stage.reader)
    context.manifest(inputs=paths)
    say_left_out(context, paths["model"])
    if is_encoder_policy(paths["model"]):
        return sample_lists(context, stage, paths, scorer_of)
    if stage.reader:
        raise InputError(
            f"reader = '{stage.reader}': the policy {paths['model']} is a language model and "
            f"answers itself; leave it empty"
        )
    questions, rejects = questions_of(paths["questions"], stage, context.run.seed)
    if not questions:
        reason = f" ({rejects[0].reason})" if rejects else ""
        raise InputError(f"{paths['questions']}: no question can be used{reason}")
    ids, rule = stage.prompts.ids, stage.more_passages
    to_learn(questions, ids, rule, paths["questions"].name, context.log)
    seed, team = context.run.seed, ProcessTeam(context.mesh)
    if not stage.answers:
        say_unjudged(context, stage.reward)
    scorer = scorer_of(context, stage, team)
    policy = load_policy(paths["model"], context.mesh, stage.prompts, stage.dtype)
    sampler = reference = PolicySampler(policy, stage.prompts, stage.batch, seed, stage.engine)
    if stage.reference:
        other = load_policy(paths["reference"], context.mesh, stage.prompts, stage.dtype)
        reference = PolicySampler(other, stage.prompts, stage.batch, seed, stage.engine)

    directory = context.begin()
    with ExitStack() as stack:
        if scorer.judge is not None:
            stack.callback(scorer.judge.close)
        made, aside = (
            stack.enter_context(opened(context, directory / f"{kind}.jsonl", team))
            for kind in (ROLLOUTS, REJECTS)
        )
        done = made.done | aside.done
        todo = team.mine([q for q in questions if q.id not in done])
        source = source_of(stage, sampler, todo)
        if isinstance(source, ServerLists):
            stack.callback(source.close)
        context.truncate_metrics(len(done))
        account = RolloutReport(context, stage, sampler, len(done), team.count)
        passages = {q.id: len(q.passages) for q in todo}
        if context.primary:
            for reject in rejects:
                if reject.id not in done:
                    account.reject(aside, reject)
        generator = stack.enter_context(generator_of(context, stage.generator, sampler))
        bar = stack.enter_context(context.progress(len(questions), context.stage))
        bar.start_at(sum(q.id in done for q in questions), len(questions))
        show_work(bar, sampler, reference)
        for result in roll_out(
            sampler, reference, source, stage.samples, scorer, stage.answers, generator,
            stage.credit,
        ):  # fmt: skip
            if isinstance(result, Reject):
                account.reject(aside, result)
            else:
                made.append(rollout_to_json(result))
                account.add(result, passages[result.id] - result.shown)
            left = bar.n < len(questions)
            bar.update(min(team.count, len(questions) - bar.n) if left else 0)
    account.report()
    if isinstance(source, ServerLists):
        repairs = added_up(source.repairs)
        kinds = ", ".join(f"{name} {count}" for name, count in sorted(repairs.items()) if count)
        context.log(f"repairs of the server's lists: {kinds or 'none'}")
    if judge := scorer.judge:
        say_asked(context, "the judge's grades", judge.counts, judge.reasons)
    made.finish(q.id for q in questions)
    order = [*(r.id for r in rejects), *(q.id for q in questions)]
    if left_out := aside.finish(order, always=False):
        context.log(f"set aside {left_out} questions: see {aside.path}")


def show_work(bar: Progress, *samplers: PolicySampler) -> None:
    """Show what was written and scored so far: rollouts come in batches, minutes apart."""
    work = Counter[str]()

    def more(kind: str, count: int) -> None:
        work[kind] += count
        bar.update(0, **work)

    for sampler in samplers:
        sampler.heard = partial(more, "written", 1)
        sampler.scored = partial(more, "scored")


def questions_of(
    path: Path, stage: SampleRollouts, seed: int
) -> tuple[list[Question], list[Reject]]:
    """The questions to sample, and those that cannot be used."""
    questions, wrong = read_valid_questions(path)
    rejects = [Reject(name, reason) for name, reason in wrong]
    usable, ids = [], stage.prompts.ids
    for question in questions:
        if not question.passages:
            reason = "has no passages; retrieve some first"
        elif not question.answers:
            reason = "has no answers, and the reward needs one"
        elif len(question.passages) > ids and stage.more_passages == "set_aside":
            reason = too_many(question, ids)
        else:
            usable.append(question)
            continue
        rejects.append(Reject(question.id, f"question '{question.id}' {reason}"))
    if stage.limit:
        random.Random(f"{seed}/rollout").shuffle(usable)
        usable = usable[: stage.limit]
    return usable, rejects


def source_of(
    stage: SampleRollouts, sampler: PolicySampler, questions: Sequence[Question]
) -> ListSource:
    """Where the lists come from."""
    if not stage.server.url:
        return policy_lists(sampler, questions, stage.sampling, stage.samples)
    key = key_of(stage.server)
    return ServerLists(stage.server, sampler, questions, stage.sampling, stage.samples, key)


def scorer_of(context: Context, stage: SampleRollouts, team: ProcessTeam) -> Scorer:
    """The reward with the models that its terms need."""
    judge = None
    if stage.reward.judge:
        replies = replies_of(context, stage.judge, team)
        judge = Judge(stage.judge, key_of(stage.judge), replies, team)
    bertscore = stage.bertscore.load() if stage.reward.bertscore else None
    return Scorer(stage.reward, bertscore=bertscore, judge=judge)


# ---------------------------------------------------------------------------- what is said


class RolloutReport:
    """What was sampled since the last report, said now and then."""

    def __init__(
        self, context: Context, stage: SampleRollouts, sampler: PolicySampler, done: int, teams: int
    ):
        self._context, self._sampler = context, sampler
        self._engines = [sampler.list_engine(stage.samples), sampler.answer_engine]
        self._own = not stage.server.url
        self._every = 4 * sampler.batch // teams
        self._done, self._teams = done, teams
        self._rejected = 0
        self._recent: list[Rollout] = []
        self._dropped = 0
        self._began, self._before = time.monotonic(), (0, 0)

    def reject(self, rows: SharedRows, reject: Reject) -> None:
        """Set a question aside."""
        rows.append({"id": reject.id, "reason": reject.reason})
        self._rejected += 1
        if self._rejected <= 5:
            self._context.log(f"set aside: {reject.reason}")

    def add(self, rollout: Rollout, dropped: int) -> None:
        """Count a rollout and the passages its prompt did not show; report after some."""
        self._recent.append(rollout)
        self._dropped += dropped
        if len(self._recent) >= self._every:
            self.report()

    def report(self) -> None:
        """Write this process's figures since the last report as metrics and to the log."""
        recent, self._recent = self._recent, []
        dropped, self._dropped = self._dropped, 0
        if not recent:
            return
        self._done += len(recent) * self._teams
        now = time.monotonic()
        seconds, self._began = max(now - self._began, 1e-9), now
        prompts = sum(e.work.prompts for e in self._engines)
        tokens = sum(e.work.tokens for e in self._engines)
        before, self._before = self._before, (prompts, tokens)
        every = [t for r in recent for t in r.trajectories for _ in range(t.count)]
        lists, answers = (e.work.saved for e in self._engines)
        figures = {
            "reward": float(np.mean([t.reward for t in every])),
            "mean_k": float(np.mean([len(t.list) for t in every])),
            "distinct": float(np.mean([len(r.trajectories) for r in recent])),
            "prompts_per_second": (prompts - before[0]) / seconds * self._teams,
            "tokens_per_second": (tokens - before[1]) / seconds * self._teams,
            "saved/answers": answers,
            "dropped_passages": float(dropped),
            **signal_figures(recent),
        }
        if self._own:
            figures["saved/lists"] = lists
        terms = {
            f"term/{name}": float(np.mean([t.terms[name] for t in every if name in t.terms]))
            for name in dict.fromkeys(name for t in every for name in t.terms)
        }
        thoughts = [t.thought for t in every if t.thought is not None]
        if thoughts:
            figures |= {
                "thought_tokens": float(np.mean([len(one.tokens) for one in thoughts])),
                "thoughts_cut": float(np.mean([one.cut for one in thoughts])),
            }
        if lacking := sum(bool(t.missing) for r in recent for t in r.trajectories):
            figures["missing_rewards"] = float(lacking)
        self._context.metrics(self._done, **figures, **terms)
        saved = f"{100 * lists:.0f} % of lists' and " if self._own else ""
        self._context.log(
            f"{figures['prompts_per_second']:.1f} prompts/s, "
            f"{figures['tokens_per_second']:.0f} tokens/s; prompt computation saved: {saved}"
            f"{100 * answers:.0f} % of answers'; {figures['distinct']:.2f} distinct lists a "
            f"question, mean k {figures['mean_k']:.2f}, reward {figures['reward']:.3f}"
            + (
                f", thoughts of {figures['thought_tokens']:.1f} tokens, "
                f"{100 * figures['thoughts_cut']:.0f} % cut at the limit"
                if thoughts
                else ""
            )
            + (f", {dropped} passages not shown" if dropped else "")
            + (f", {lacking} lists without a whole reward" if lacking else "")
        )
