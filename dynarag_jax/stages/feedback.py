"""Feedback: train on sampled lists and their rewards, generator SFT beside it.

    python -m train.feedback configs/quickstart.py
    python -m train.feedback configs/quickstart.py --reranker.objectives.dpo.beta 0.5
    python -m train.feedback configs/quickstart.py --reranker.objectives.dpo.weight 0 \
        --reranker.objectives.grpo.weight 1

Pairwise objectives take each question's best and worst list; where listwise preference or a group
objective carries weight, all of its lists are trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from dynarag_jax.data.reading import read_questions
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.decoders import weights_fingerprint
from dynarag_jax.exchange.tokenizers import tokenizer_fingerprint
from dynarag_jax.launch.context import Context
from dynarag_jax.objectives.terms import Dpo, Objectives, TokenNll
from dynarag_jax.policy.batches import Example
from dynarag_jax.rollout_records import read_rollouts
from dynarag_jax.stages.common.candidates import divide, to_learn
from dynarag_jax.stages.common.encoder_training import train_on_rollouts
from dynarag_jax.stages.common.leakage import say_leakage
from dynarag_jax.stages.common.training import inputs, start_stage, train_stage
from dynarag_jax.stages.reference import asked
from dynarag_jax.training.config import Stream, StreamShape, Train
from dynarag_jax.training.posteriors import posteriors_of
from dynarag_jax.training.preferences import (
    Expected,
    RankedRollout,
    answer_example,
    check_rollouts,
    judge,
    list_example,
)
from dynarag_jax.training.run import (
    ExampleSource,
    answers_source,
    example_maker,
    generator_source,
    reranker_source,
)


@dataclass(frozen=True)
class Feedback(Train):
    """Feedback: preference or group objectives on the sampled lists, generator SFT beside them.

    Pairwise objectives take each question's best and worst list; where listwise preference or a
    group objective carries weight, all of its lists are trained on.
    """

    rollouts: str = "{run}/rollout/rollouts.jsonl"
    """sampled lists with rewards and reference log-probabilities"""
    reference: str = ""
    """model that the reference log-probabilities must come from; empty is ``init``"""
    min_gap: float = 0.0
    """the best reward must exceed the worst by more than this"""
    feedback_on: Literal["list", "thought_and_list"] = "list"
    """of a policy that thinks: what learns from a reward, the list given its thought, or both"""
    reranker: Stream = field(
        default_factory=lambda: Stream(
            objectives=Objectives(nll=TokenNll(weight=0.0), dpo=Dpo(weight=1.0))
        )
    )
    """lists"""
    answers: Stream = field(
        default_factory=lambda: Stream(
            batch=0, objectives=Objectives(nll=TokenNll(weight=0.0), dpo=Dpo(weight=1.0))
        )
    )
    """answers preferred to others, given the same passages; needs rollouts made with ``answers``"""

    def shapes(self, list_tokens: int, samples: int) -> dict[str, StreamShape]:
        """As of every training stage, with pairs or groups of lists and of answers."""

        def branches(stream: Stream) -> int:
            return samples if stream.objectives.reads("groups") else 2

        shapes = super().shapes(list_tokens, samples)
        p, lists = self.prompts, replace(shapes["reranker"], branches=branches(self.reranker))
        answers = StreamShape(
            self.answers, p.answer_prompt_tokens, branches(self.answers), p.answer_tokens
        )
        return shapes | {"reranker": lists, "answers": answers}


FIRST = 32
"""examples made before training begins, so that wrong prompts are refused at once"""


def run(context: Context, stage: Feedback) -> None:
    """Train on preferences between lists, or on groups of them; the same for answers."""
    if stage.feedback_on == "thought_and_list" and not stage.prompts.thought_tokens:
        raise InputError(
            "feedback_on = 'thought_and_list', and prompts.thought_tokens is 0: no list has a "
            "thought before it; set it to what was sampled with"
        )
    rollouts_path = context.path(stage.rollouts)
    paths = inputs(context, stage) | {"rollouts": rollouts_path}
    if stage.reference:
        paths["reference"] = context.model(stage.reference)
    context.manifest(inputs=paths)
    say_leakage(context, [stage.questions])
    rollouts = read_rollouts(rollouts_path)
    if stage.policy == "encoder":
        reference = paths.get("reference")
        return train_on_rollouts(context, stage, rollouts, rollouts_path, reference, stage.min_gap)
    questions = read_questions(context.path(stage.questions), context.log)
    given = asked(rollouts, questions, str(rollouts_path), stage.questions)
    ids, rule = stage.prompts.ids, stage.more_passages
    given = to_learn(given, ids, rule, rollouts_path.name, context.log)
    by_id = {question.id: question for question in given}
    rollouts = [rollout for rollout in rollouts if rollout.id in by_id]
    questions, _ = divide(questions, ids, rule)
    streams = {"list": stage.reranker, "answer": stage.answers}
    if any(s.batch and s.objectives.reads("reference") for s in streams.values()):
        source = paths.get("reference") or paths.get("init")
        if source is None or (stage.adapters and not stage.reference):
            raise InputError(
                "the objectives read reference log-probabilities, and the stage does not begin at "
                "the weights of 'init'; name the model behind them as 'reference'"
            )
        reference, where = weights_fingerprint(source), str(source)
    else:
        reference = where = ""
    start = start_stage(context, stage)
    expected = Expected(
        rollouts_path,
        reference,
        where,
        tokenizer_fingerprint(start.tokenizer),
        min(stage.prompts.max_list, stage.prompts.ids),
        start.cfg.dtype,
        stage.prompts.thought_tokens,
    )
    maker = example_maker(stage, start, context.token_cache)

    def examples(kind: str) -> tuple[list[RankedRollout], Callable[[int, int], Example]]:
        stream, answers = streams[kind], kind == "answer"
        check_rollouts(rollouts, stream.objectives, expected, answers=answers)
        pairs = not stream.objectives.reads("groups")
        judged, counts = judge(rollouts, stage.min_gap, pairs=pairs, answers=answers)
        context.log(
            f"{counts.kept} {'pairs' if pairs else 'groups'} of {kind}s from {len(rollouts)} "
            f"questions; left out: {counts.ties} rewarded alike, {counts.single} with one distinct "
            f"{kind}" + (f", {counts.missing} for want of whole rewards" if counts.missing else "")
        )
        if not judged:
            mend = (
                f"more samples, or a higher sampling.temperature, make {kind}s differ"
                if counts.single > counts.ties
                else "a reward that is seldom 0 tells them apart, such as reward.likelihood, or "
                "more behavior cloning first"
            )
            raise InputError(
                f"{rollouts_path}: no question has two {kind}s of different reward; in 'rollout', "
                f"{mend}"
            )
        both = stage.feedback_on == "thought_and_list"

        def make(_: int, index: int) -> Example:
            one = judged[index]
            question = by_id[one.rollout.id]
            if answers:
                return answer_example(maker, question, one, stream.objectives)
            return list_example(maker, question, one, stream.objectives, both)

        for index in range(min(FIRST, len(judged))):
            make(0, index)
        return judged, make

    sources: list[ExampleSource] = []
    if trains(stage.reranker):
        judged, make = examples("list")
        branches = widest(judged)
        sources.append(reranker_source(stage, start, len(judged), branches, make))
    posteriors = None
    if stage.contexts.sampled and stage.generator.batch:
        temperature = stage.reranker.objectives.dro.temperature
        posteriors = posteriors_of(rollouts, rollouts_path, temperature)
    sources.append(generator_source(stage, questions, maker, context.run.seed, posteriors))
    if trains(stage.answers):
        judged, make = examples("answer")
        sources.append(answers_source(stage, stage.answers, len(judged), widest(judged), make))
    train_stage(context, stage, start, sources, maker)


def trains(stream: Stream) -> bool:
    """Whether a stream takes part."""
    return stream.batch > 0 and bool(stream.objectives.active())


def widest(judged: list[RankedRollout]) -> int:
    """Branches of a padded example."""
    return max(len(one.order) for one in judged)
