"""Lists from which no passage can be left out: what a reader needs, as targets to imitate.

Leave-one-out minimal sets (Context-Picker, arXiv 2512.14465): as long as some passage can go
without the reader finding the reference answer much less likely, the one that is missed least goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dynarag_jax.records import Question
from dynarag_jax.rewards.scorer import Likelihood
from dynarag_jax.sampling.policy_sampler import Chosen


def minimal_lists(
    likelihood: Likelihood,
    questions: Sequence[Question],
    lists: Sequence[Chosen],
    keep: float,
    heard: Callable[[int], object] = lambda n: None,
    goes_on: Callable[[bool], bool] = bool,
) -> list[Chosen | None]:
    """For each question the list that is left of one to begin with.

    Args:
      likelihood: of ``answer_scoring.gold_likelihood``: how likely a reader finds a reference.
      lists: what to begin with, 1-based positions.
      keep: a passage may go while the likelihood stays at least this share of the first list's.
      heard: hears how many questions are done.
      goes_on: whether there is a next round, told whether one of these questions is in it; of
        several processes all go on while one does, since ``likelihood`` is computed in common.

    Returns:
      the lists, their order kept; None where no reference answer can be scored.
    """
    current: list[Chosen | None] = list(lists)
    first = likelihood(list(zip(questions, lists, strict=True)))
    active = []
    for i, value in enumerate(first):
        if value is None:
            current[i] = None
            heard(1)
        else:
            active.append(i)
    while goes_on(bool(active)):
        tries: list[tuple[int, Chosen]] = []
        for i in active:
            own = current[i] or ()
            tries += [(i, own[:at] + own[at + 1 :]) for at in range(len(own))]
        values = likelihood([(questions[i], one) for i, one in tries])
        best: dict[int, tuple[float, Chosen]] = {}
        for (i, one), value in zip(tries, values, strict=True):
            if value is not None and (i not in best or value > best[i][0]):
                best[i] = value, one
        going = []
        for i in active:
            value, one = best.get(i, (0.0, ()))
            if i in best and value >= keep * (first[i] or 0.0):
                current[i] = one
                going.append(i)
            else:
                heard(1)
        active = going
    return current
