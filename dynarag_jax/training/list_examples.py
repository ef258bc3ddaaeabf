"""Examples of an encoder policy: experts' lists, and sampled lists ranked by their rewards."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.objectives.terms import Objectives
from dynarag_jax.policy.encoder_policy import STOP, EncoderPolicyConfig
from dynarag_jax.policy.kept_vectors import Vectors
from dynarag_jax.policy.list_batches import ListExample, ListShape
from dynarag_jax.policy.pair_tokens import PairMaker, QuestionPairs
from dynarag_jax.records import Question, valid_list
from dynarag_jax.training.config import Train
from dynarag_jax.training.preferences import MEND, RankedRollout, step_rewards
from dynarag_jax.training.sources import ExampleSource


def _with_vectors(
    question: Question, pairs: QuestionPairs, vectors: Vectors | None
) -> dict[str, Any]:
    if vectors is None:
        return {}
    own, scores = vectors[question.id]
    return {"vectors": own, "scores": scores}


def _some(needed: Sequence[int], count: int, negatives: int, rng: random.Random) -> list[int]:
    """The needed of ``count`` candidates and so many of the others, 1-based, in their order."""
    others = [i for i in range(1, count + 1) if i not in needed]
    return sorted([*needed, *rng.sample(others, min(negatives, len(others)))])


def behavior_lists(
    stage: Train,
    cfg: EncoderPolicyConfig,
    questions: Sequence[Question],
    maker: PairMaker,
    vectors: Vectors | None = None,
    seed: int = 0,
) -> ExampleSource:
    """Behavior cloning of the experts' lists; questions without a list are left out.

    Of a policy that reads again what was chosen, lists are learned whole by ``nll``, one pass over
    the candidates a step, and as sets by ``set_nll``: one state a time. An example is a question
    and so many of its needed passages, each number of them once an epoch, so that a list weighs by
    its steps; which ones, and in what order, the seed and the epoch draw. What may come next is any
    that is left, or stop.

    With ``stage.encoder.negatives`` an example holds all needed candidates and so many of the
    others, drawn anew.

    Raises:
      InputError: no question has a list, or an objective would do nothing.
    """
    objectives = stage.reranker.objectives
    states = bool(cfg.reencode and objectives.reads("sets"))
    if states and (other := [name for name in objectives.active() if name != "set_nll"]):
        raise InputError(
            f"reranker: objective '{other[0]}' reads whole lists, and 'set_nll' of a policy that "
            f"reads again what was chosen (reencode) learns one state at a time; set the weight of "
            f"one of them to 0"
        )
    if idle := [*objectives.reads("pairs"), *objectives.reads("groups")]:
        raise InputError(
            f"reranker: objective '{idle[0]}' has nothing to learn from in this stream: it reads "
            f"sampled branches; set its weight to 0"
        )
    labeled = [q for q in questions if q.expert is not None and q.passages]
    if questions and not labeled:
        raise InputError(
            f"none of {len(questions)} questions has an expert's list, '{questions[0].id}' among "
            f"them; run the label stage"
        )

    # A question, and of states how many of its needed passages are chosen. Behind the longest list
    # nothing is left to choose, and nothing to learn.
    most = cfg.max_list - 1 if states else 0
    places = [(q, size) for q in labeled for size in range(min(len(q.expert or ()), most) + 1)]

    def make(epoch: int, index: int) -> ListExample:
        question, size = places[index]
        expert = question.expert or ()
        dropped = 0 if size else len(expert) - cfg.max_list
        pairs = maker.pairs(question)
        known = _with_vectors(question, pairs, vectors)
        rng = random.Random(f"{seed}/state/{epoch}/{question.id}/{size}")
        if stage.encoder.negatives:
            shown = _some(expert, pairs.count, stage.encoder.negatives, rng)
            pairs = pairs.of([i - 1 for i in shown])
            known = {name: rows[[i - 1 for i in shown]] for name, rows in known.items()}
            expert = tuple(shown.index(i) + 1 for i in expert)
        kept = expert[: cfg.max_list]
        one, left = kept, ()
        if states:
            one = tuple(rng.sample(kept, size))
            left = tuple(i for i in kept if i not in one) or (STOP,)
        return ListExample(
            question.id, pairs, (one,), ranking=kept, following=left,
            dropped_ids=max(dropped, 0), **known,
        )  # fmt: skip

    longest = max((len(q.expert or ()) for q in labeled), default=0)
    shape = ListShape(1, min(longest, cfg.max_list) + 1, cfg.pieces, states=states)
    return ExampleSource("reranker", stage.reranker, len(places), make, shape)


def ranked_lists(
    stage: Train,
    cfg: EncoderPolicyConfig,
    judged: Sequence[RankedRollout],
    questions: Mapping[str, Question],
    maker: PairMaker,
    vectors: Vectors | None = None,
) -> ExampleSource:
    """Sampled lists with their rewards: the best first, the worst second, then the others."""
    objectives = stage.reranker.objectives

    def make(epoch: int, index: int) -> ListExample:
        del epoch
        one = judged[index]
        return ranked_example(cfg, questions[one.rollout.id], one, objectives, maker, vectors)

    lists = [one.rollout.trajectories[i].list for one in judged for i in one.order]
    shape = ListShape(
        max(len(one.order) for one in judged), max(map(len, lists)) + 1, cfg.pieces,
        bool(objectives.reads("behavior")),
    )  # fmt: skip
    return ExampleSource("reranker", stage.reranker, len(judged), make, shape)


def ranked_example(
    cfg: EncoderPolicyConfig,
    question: Question,
    judged: RankedRollout,
    objectives: Objectives,
    maker: PairMaker,
    vectors: Vectors | None = None,
) -> ListExample:
    """A question with its sampled lists.

    Raises:
      InputError: a list is none of this policy's, or log-probabilities that the objectives read
        are of other candidates.
    """
    pairs = maker.pairs(question)
    rollout = judged.rollout
    chosen = [rollout.trajectories[i] for i in judged.order]
    for t in chosen:
        wrong = valid_list(t.list, pairs.count)
        if not wrong and len(t.list) > cfg.max_list:
            wrong = f"has {len(t.list)} passages, more than prompts.max_list = {cfg.max_list}"
        if wrong:
            raise InputError(
                f"question '{question.id}': the sampled list {list(t.list)} {wrong}; train with "
                f"the candidates and the max_list it was sampled with"
            )
    reference, behavior = objectives.reads("reference"), objectives.reads("behavior")
    if (reference or behavior) and rollout.prompt != pairs.fingerprint():
        raise InputError(
            f"question '{question.id}': the rollouts' log-probabilities are of other candidates "
            f"({rollout.prompt or 'none on record'}) than this stage reads "
            f"({pairs.fingerprint()}); take the passages and the pieces they were sampled with, "
            f"or {MEND}"
        )
    return ListExample(
        id=question.id,
        pairs=pairs,
        lists=tuple(t.list for t in chosen),
        supervised=(),
        reference=tuple(t.reference_logps for t in chosen) if reference else (),
        behavior=tuple(t.logps for t in chosen) if behavior else (),
        rewards=tuple(t.reward for t in chosen),
        counts=tuple(float(t.count) for t in chosen),
        preferred=True,
        step_rewards=tuple(map(step_rewards, chosen)),
        **_with_vectors(question, pairs, vectors),
    )
