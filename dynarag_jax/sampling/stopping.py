"""Where a greedy list would stop, for every bias on stopping at once.

A greedy policy goes on as it would, whatever is added to the score of stopping, until it stops. So
one list that never stops by itself, and at each of its steps how much more stopping would have
taken, say which list every bias gives: the first at which the bias is enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.calibration import NEVER, ListBias
from dynarag_jax.records import Question
from dynarag_jax.sampling.choice import GREEDY
from dynarag_jax.sampling.encoder_sampler import EncoderSampler
from dynarag_jax.sampling.policy_sampler import Chosen, PolicySampler


@dataclass(frozen=True)
class StopPath:
    """A question's greedy lists, by how readily they stop.

    Attributes:
      lists: those at which the policy could stop, in the order in which it comes by them; the last
        is the longest there is.
      needs: the least bias at which it stops with each; of the last minus infinity.
    """

    lists: tuple[Chosen, ...]
    needs: tuple[float, ...]

    def at(self, bias: ListBias) -> Chosen:
        """The list that a bias gives."""
        for chosen, need in zip(self.lists, self.needs, strict=True):
            if need <= (bias.stop if chosen else bias.empty):
                return chosen
        return self.lists[-1]


def _path(
    lists: Sequence[Chosen], tokens: Sequence[Sequence[int]], logps: Sequence[Sequence[float]]
) -> StopPath:
    """The path of lists whose last is the longest, from their tokens' log-probabilities.

    A list parts from the longest at one token; there both have the same alternatives, so that the
    difference of their log-probabilities is that of their scores.
    """
    whole = tokens[-1]
    found = []
    for chosen, own, values in zip(lists[:-1], tokens[:-1], logps[:-1], strict=True):
        at = next(i for i, (a, b) in enumerate(zip(own, whole, strict=False)) if a != b)
        found.append((at, chosen, logps[-1][at] - values[at]))
    found.sort(key=lambda one: one[0])
    return StopPath(
        (*(chosen for _, chosen, _ in found), tuple(lists[-1])),
        (*(need for _, _, need in found), float("-inf")),
    )


def written_paths(sampler: PolicySampler, questions: Sequence[Question]) -> list[StopPath]:
    """The paths of a language model, each in one prompt; a bias it has already counts.

    Raises:
      InputError: a question cannot be served, or its candidates need windows.
    """
    prompts, spelling = sampler.prompts, sampler.policy.spelling
    if many := [q.id for q in questions if len(q.passages) > prompts.ids]:
        raise InputError(
            f"question '{many[0]}' has more passages than prompts.ids = {prompts.ids}, and where "
            f"lists stop is known within one prompt; show its first ones"
        )
    endless = PolicySampler(
        sampler.policy.with_bias(NEVER), prompts, sampler.batch, sampler.seed, sampler.config
    )
    endless.heard = sampler.heard
    longest = endless.lists(questions, GREEDY)
    lists = [_stops(one.lists[0], spelling.ids[: one.shown]) for one in longest]
    thoughts = [one.thoughts[0].tokens if one.thoughts else () for one in longest]
    before = [[own] * len(each) for own, each in zip(thoughts, lists, strict=True)]
    (most,) = sampler.team.max([max((len(each) for each in lists), default=1)])
    logps = sampler.logps(questions, lists, most, before if spelling.thought else ())
    return [
        _path(each, [spelling.spell(chosen, own) for chosen in each], values)
        for each, own, values in zip(lists, thoughts, logps, strict=True)
    ]


def _stops(longest: Chosen, spelled: Sequence[Sequence[int]]) -> list[Chosen]:
    """The lists that a policy could end on its way to the longest, and the longest.

    An id may begin as another does (1 and 10): on the way to the longer one, the shorter one ends.
    """
    found: list[Chosen] = []
    for at, taken in enumerate(longest):
        found.append(longest[:at])
        own = tuple(spelled[taken - 1])
        found += [
            (*longest[:at], i)
            for i, other in enumerate(spelled, 1)
            if i not in longest[:at] and len(other) < len(own) and tuple(other) == own[: len(other)]
        ]
    return [*found, longest]


def drawn_paths(sampler: EncoderSampler, questions: Sequence[Question]) -> list[StopPath]:
    """The paths of an encoder policy; a bias it has already counts.

    Raises:
      InputError: a question has no passages, or too many.
    """
    return [
        StopPath(
            tuple(longest[:at] for at in range(len(longest) + 1)),
            (*margins, float("-inf")),
        )
        for longest, margins in sampler.endless(questions)
    ]


def stop_paths(
    sampler: PolicySampler | EncoderSampler, questions: Sequence[Question]
) -> list[StopPath]:
    """The paths of any policy.

    Raises:
      InputError: a question cannot be served.
    """
    if isinstance(sampler, EncoderSampler):
        return drawn_paths(sampler, questions)
    return written_paths(sampler, questions)
