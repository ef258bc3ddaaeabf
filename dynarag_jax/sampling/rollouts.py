"""From questions to rollouts: lists, an answer from each, and its reward."""

from __future__ import annotations

from collections.abc import Sequence

from dynarag_jax.records import Question, Rollout, Trajectory
from dynarag_jax.rewards.combine import RewardWeights, score_answer
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.sampling.writer import Writer


def sample_rollouts(
    writer: Writer,
    reference: Writer,
    questions: Sequence[Question],
    sampling: Sampling,
    samples: int,
    reward: RewardWeights,
) -> list[Rollout]:
    """Sample ``samples`` lists for each question, answer from each distinct one, reward it.

    Args:
      writer: the policy; it writes the lists and the answers.
      reference: the model behind the reference log-probabilities; may be ``writer`` itself.
    """
    sampled = writer.lists(questions, sampling, samples)
    distinct = [tuple(dict.fromkeys(s.lists)) for s in sampled]
    logps = writer.logps(questions, distinct, samples)
    references = logps if reference is writer else reference.logps(questions, distinct, samples)
    asked = [(q, chosen) for q, lists in zip(questions, distinct, strict=True) for chosen in lists]
    answers = iter(writer.answers(asked))
    rollouts = []
    for i, question in enumerate(questions):
        trajectories = []
        for j, chosen in enumerate(distinct[i]):
            answer = next(answers)
            value, terms = score_answer(answer, question.answers, len(chosen), reward)
            trajectories.append(
                Trajectory(
                    list=chosen,
                    count=sampled[i].lists.count(chosen),
                    answer=answer,
                    terms=terms,
                    reward=value,
                    logp=logps[i][j],
                    reference_logp=references[i][j],
                    weight=sampled[i].weights[j] if sampled[i].weights else None,
                )
            )
        rollouts.append(
            Rollout(
                id=question.id,
                shown=sampled[i].shown,
                trajectories=tuple(trajectories),
                policy=writer.policy.fingerprint,
                reference=reference.policy.fingerprint,
            )
        )
    return rollouts
