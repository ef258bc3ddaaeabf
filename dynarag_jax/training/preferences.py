"""Examples from rollouts: sampled lists, and answers, ranked by their rewards.

A judged question gives one example: its prompt, with the best branch first, the worst second and
the others behind them. Pairwise objectives read the first two, listwise preference and group
objectives all of them. Log-probabilities under the reference and the sampling policy come from the
rollouts; those of other weights, another tokenizer or other prompts are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dynarag_jax.errors import InputError
from dynarag_jax.files import fingerprint
from dynarag_jax.objectives.terms import Objectives
from dynarag_jax.policy.batches import Example
from dynarag_jax.policy.examples import ExampleMaker
from dynarag_jax.prompts import Prompt, answer_tokens
from dynarag_jax.records import Question, valid_list
from dynarag_jax.rollout_records import Rollout, Thought, Trajectory

MEND = "compute them with python -m train.reference"


@dataclass(frozen=True)
class RankedRollout:
    """A question's branches in the order in which they are trained on."""

    rollout: Rollout
    order: tuple[int, ...]
    """places in the rollout's lists or answers: the best, the worst, then the others"""


@dataclass(frozen=True)
class RankedCounts:
    """How many rollouts are trained on, and why the others are not."""

    kept: int = 0
    ties: int = 0
    """all branches were rewarded alike, or within the minimum gap"""
    single: int = 0
    """all samples were the same branch"""
    missing: int = 0
    """fewer than two branches have a whole reward: a term of the others could not be had"""


def judge(
    rollouts: Sequence[Rollout], min_gap: float = 0.0, *, pairs: bool, answers: bool = False
) -> tuple[list[RankedRollout], RankedCounts]:
    """The questions whose branches differ in reward, each with its branches in order.

    A branch whose reward lacks a term (a judge did not reply, say) is left out: it is neither
    better nor worse than another.

    Args:
      min_gap: the best reward must exceed the worst by more than this.
      pairs: keep the best and the worst alone, as in the paper.
      answers: judge the rollouts' answers instead of their lists.

    Returns:
      The judged questions and the counts; best and worst are never the same branch.
    """
    kept, ties, single, missing = [], 0, 0, 0
    for rollout in rollouts:
        if answers:
            rewards = rollout.answers.rewards if rollout.answers else ()
        else:
            rewards = tuple(t.reward for t in rollout.trajectories)
        whole = comparable(rollout, answers)
        ranked = sorted(whole, key=lambda i: -rewards[i])
        if len(rewards) < 2:
            single += 1
        elif len(ranked) < 2:
            missing += 1
        elif rewards[ranked[0]] - rewards[ranked[-1]] <= max(min_gap, 1e-9):
            ties += 1
        else:
            order = (ranked[0], ranked[-1], *(() if pairs else ranked[1:-1]))
            kept.append(RankedRollout(rollout, order))
    return kept, RankedCounts(len(kept), ties, single, missing)


def comparable(rollout: Rollout, answers: bool = False) -> list[int]:
    """Places of the lists, or answers, whose rewards lack no term."""
    if not answers:
        return [i for i, t in enumerate(rollout.trajectories) if not t.missing]
    given = rollout.answers
    return [i for i in range(len(given.texts)) if i not in given.missing] if given else []


# ---------------------------------------------------------------------------- what can be trusted


@dataclass(frozen=True)
class Expected:
    """What the rollouts' log-probabilities must come from."""

    rollouts: Path
    """the file, for messages"""
    reference: str
    """fingerprint of the reference's weights"""
    source: str
    """where these weights are, for messages"""
    tokenizer: str
    """fingerprint of the tokenizer that is trained with"""
    max_list: int
    """the longest list of the grammar that is trained under"""
    dtype: str
    """type of the activations in training"""
    thought_tokens: int = 0
    """the longest thought of the grammar"""


def check_rollouts(
    rollouts: Sequence[Rollout],
    objectives: Objectives,
    expected: Expected,
    *,
    answers: bool = False,
) -> None:
    """Refuse rollouts whose log-probabilities are missing or stale for these objectives.

    Raises:
      InputError: one line that names the rollout, what does not fit, and the mend.
    """
    reference, behavior = objectives.reads("reference"), objectives.reads("behavior")
    judging = {*objectives.reads("pairs"), *objectives.reads("groups")}
    if idle := [name for name in objectives.active() if name not in judging]:
        raise InputError(
            f"objective '{idle[0]}' learns from given targets, and these branches were sampled: it "
            f"would do nothing; set its weight to 0 (the likelihood of preferred branches is "
            f"'chosen_nll')"
        )
    if answers and behavior:
        raise InputError(
            f"objective '{behavior[0]}' needs samples of one prompt, and answers come from "
            f"different lists; train answers on a preference objective"
        )
    likelihoods, steps = objectives.reads("likelihoods"), objectives.reads("steps")
    if answers and likelihoods:
        raise InputError(
            f"objective '{likelihoods[0]}' weighs lists by what they make likely, and answers are "
            f"no lists; train answers on a preference objective"
        )
    for rollout in rollouts:
        where = f"{expected.rollouts}: question '{rollout.id}'"
        if likelihoods:
            check_likelihoods(rollout, where, likelihoods[0])
        if answers and rollout.answers is None:
            raise InputError(
                f"{where} has no scored answers; sample with --answers True, or {MEND} "
                f"--answers True"
            )
        if steps and not rollout.credit:
            raise InputError(
                f"{where}: no credit by step, which '{steps[0]}' reads (credit above 0); sample "
                f"with --credit gains or --credit leave_one_out"
            )
        if not (reference or behavior):
            continue
        if rollout.tokenizer != expected.tokenizer:
            raise InputError(
                f"{where}: its log-probabilities are of "
                f"{'another' if rollout.tokenizer else 'an unknown'} tokenizer "
                f"({rollout.tokenizer or 'none on record'}, this one is {expected.tokenizer}); "
                f"{MEND}"
            )
        if not answers and rollout.max_list != expected.max_list:
            raise InputError(
                f"{where}: its log-probabilities are under the grammar of lists of at most "
                f"{rollout.max_list or 'an unknown number of'} ids, and this stage has "
                f"prompts.max_list = {expected.max_list}; set it to what was sampled with, or "
                f"{MEND}"
            )
        if not answers and rollout.thought_tokens != expected.thought_tokens:
            raise InputError(
                f"{where}: its lists stand behind thoughts of at most {rollout.thought_tokens} "
                f"tokens (0: behind none), and this stage has prompts.thought_tokens = "
                f"{expected.thought_tokens}; set it to what was sampled with"
            )
        if rollout.dtype != expected.dtype:
            raise InputError(
                f"{where}: its log-probabilities were computed in "
                f"{rollout.dtype or 'a type that is not on record'}, and this stage computes in "
                f"{expected.dtype}: their difference would be rounding; set model.dtype to that "
                f"type, or {MEND} with dtype {expected.dtype}"
            )
        if reference and rollout.reference != expected.reference:
            raise InputError(
                f"{where}: its reference log-probabilities are of other weights "
                f"({rollout.reference}) than {expected.source} ({expected.reference}); name their "
                f"model as 'reference', or {MEND}"
            )
        for t in rollout.trajectories:
            if reference and not answers and not t.reference_logps:
                raise InputError(
                    f"{where}: no reference log-probabilities by token, which "
                    f"'{reference[0]}' reads; {MEND}"
                )
            if behavior and not t.logps:
                raise InputError(
                    f"{where}: no log-probabilities of the sampling policy by token, which "
                    f"'{behavior[0]}' reads; {MEND} --policy MODEL"
                )


def check_likelihoods(rollout: Rollout, where: str, name: str) -> None:
    """Refuse rewards that are anything but a likelihood, up to its weight."""
    weights = set()
    for t in (t for t in rollout.trajectories if not t.missing):
        likelihood = t.terms.get("likelihood")
        if likelihood is None or t.reward < 0 or set(t.terms) != {"likelihood"}:
            recorded = " + ".join(t.terms) or "unknown terms"
            raise InputError(
                f"{where}: objective '{name}' takes rewards for likelihoods of the reference "
                f"answer, and these are of {recorded}; sample with --reward.likelihood 1 and every "
                f"other weight 0"
            )
        if likelihood > 0:
            weights.add(float(f"{t.reward / likelihood:.4g}"))
    if len(weights) > 1:
        raise InputError(
            f"{where}: objective '{name}' takes rewards for likelihoods of the reference answer, "
            f"and these carry a price of passages as well; sample with --reward.price 0"
        )


def _check_prompt(question: Question, prompt: Prompt, recorded: str) -> None:
    """Refuse log-probabilities of another prompt."""
    now = fingerprint(list(prompt.tokens))
    if recorded != now:
        raise InputError(
            f"question '{question.id}': the rollouts' log-probabilities are of another prompt "
            f"({recorded or 'none on record'}) than this stage shows ({now}); take the passages "
            f"and the prompt limits they were sampled with, or {MEND}"
        )


# ---------------------------------------------------------------------------- examples


def list_example(
    maker: ExampleMaker,
    question: Question,
    judged: RankedRollout,
    objectives: Objectives,
    learn_thoughts: bool = False,
) -> Example:
    """The reranker's prompt with sampled lists.

    Args:
      learn_thoughts: learn the thoughts before the lists, too; else they are given.

    Raises:
      InputError: a list holds a passage that this prompt does not show, or is longer than the
        grammar allows, or log-probabilities that the objectives read are of another prompt.
    """
    prompt = maker.rerank_prompt(question)
    chosen = [judged.rollout.trajectories[i] for i in judged.order]
    longest = min(maker.prompts.max_list, maker.prompts.ids)
    for t in chosen:
        if len(t.list) > longest:
            raise InputError(
                f"question '{question.id}': the sampled list {list(t.list)} has {len(t.list)} ids, "
                f"more than prompts.max_list = {longest}: it cannot be written under this grammar; "
                f"train with the max_list it was sampled with"
            )
        if wrong := valid_list(t.list, prompt.shown):
            raise InputError(
                f"question '{question.id}': the sampled list {list(t.list)} {wrong} "
                f"that the prompt shows; train with the prompt limits it was sampled with"
            )
    reference, behavior = objectives.reads("reference"), objectives.reads("behavior")
    if reference or behavior:
        _check_prompt(question, prompt, judged.rollout.prompt)
    before = [_thought(maker, question, t) for t in chosen]

    def places(of: Callable[[Sequence[int], int], list[int]]) -> tuple[list[int], ...]:
        return tuple(of(t.list, len(b.tokens)) for t, b in zip(chosen, before, strict=True))

    thoughts = () if maker.spelling.thought is None else tuple(len(b.tokens) for b in before)
    return Example(
        id=question.id,
        prompt=prompt.tokens,
        branches=tuple(
            maker.spelling.spell(t.list, b.tokens) for t, b in zip(chosen, before, strict=True)
        ),
        thoughts=thoughts,
        given=() if learn_thoughts else thoughts,
        shown=prompt.shown,
        supervised=(),
        reference=tuple(
            (*_by_token(b, b.reference_logps, learn_thoughts, question), *t.reference_logps)
            for t, b in zip(chosen, before, strict=True)
        )
        if reference
        else (),
        behavior=tuple(
            (*_by_token(b, b.logps, learn_thoughts, question), *t.logps)
            for t, b in zip(chosen, before, strict=True)
        )
        if behavior
        else (),
        rewards=tuple(t.reward for t in chosen),
        counts=tuple(float(t.count) for t in chosen),
        preferred=True,
        dropped=maker.dropped(question, prompt),
        step_rewards=tuple(map(step_rewards, chosen)),
        step_ends=places(maker.spelling.step_ends),
        deciding=places(maker.spelling.deciding),
    )


def step_rewards(trajectory: Trajectory) -> tuple[float, ...]:
    """The rewards of a list's steps: the credit of each passage, and nothing for stopping."""
    return (*(trajectory.credit or [0.0] * len(trajectory.list)), 0.0)


def _thought(maker: ExampleMaker, question: Question, trajectory: Trajectory) -> Thought:
    """What stands before a sampled list.

    Raises:
      InputError: there is a thought and the policy has none, or the other way round.
    """
    if (maker.spelling.thought is None) != (trajectory.thought is None):
        raise InputError(
            f"question '{question.id}': a sampled list has {'no' if maker.thinking else 'a'} "
            f"thought before it, and this stage has prompts.thought_tokens = "
            f"{maker.prompts.thought_tokens}; set it to what was sampled with"
        )
    return trajectory.thought or Thought("", ())


def _by_token(
    thought: Thought, logps: tuple[float, ...], learned: bool, question: Question
) -> tuple[float, ...]:
    """Log-probabilities of a thought's tokens; where they are given, nothing reads them."""
    if logps or not thought.tokens or not learned:
        return logps or (0.0,) * len(thought.tokens)
    raise InputError(
        f"question '{question.id}': its thoughts have no log-probabilities by token, and they are "
        f"to be learned; {MEND}, or set feedback_on to 'list'"
    )


def answer_example(
    maker: ExampleMaker, question: Question, judged: RankedRollout, objectives: Objectives
) -> Example:
    """The generator's prompt over the best list's passages, with the answers given anywhere.

    Raises:
      InputError: log-probabilities that the objectives read are of another prompt.
    """
    answers = judged.rollout.answers
    assert answers is not None
    prompt = maker.answer_prompt(question, answers.list)
    reference = objectives.reads("reference")
    if reference:
        _check_prompt(question, prompt, answers.prompt)
    limit = maker.prompts.answer_tokens
    texts = [answers.texts[i] for i in judged.order]
    whole = [answer_tokens(maker.tokenizer, text) for text in texts]
    return Example(
        id=question.id,
        prompt=prompt.tokens,
        branches=tuple(tokens[:limit] for tokens in whole),
        dropped_tokens=sum(max(len(tokens) - limit, 0) for tokens in whole),
        supervised=(),
        reference=tuple(answers.reference_logps[i] for i in judged.order) if reference else (),
        rewards=tuple(answers.rewards[i] for i in judged.order),
        counts=(1.0,) * len(texts),
        preferred=True,
        dropped=len(answers.list) - prompt.shown,
    )
