"""Lists of the systems that no language model reranks for: the baselines of every evaluation.

A list is a tuple of 1-based positions in the question's candidates, as the reranker's are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dynarag_jax.errors import InputError
from dynarag_jax.fields import Fields
from dynarag_jax.records import Question, valid_list

Chosen = tuple[int, ...]

NO_RETRIEVAL, ORACLE = "no retrieval", "oracle passages"


SHUFFLED = ", shuffled"
"""behind a model's name: it saw the candidates in random order"""


def shuffled_name(system: str) -> str:
    """The name of a system that is shown the candidates in random order."""
    return system + SHUFFLED


def top_k_name(k: int) -> str:
    """The name of the system that reads the retriever's first ``k`` passages."""
    return f"top-{k}"


def static_name(k: int) -> str:
    """The name of the system that reads the first ``k`` passages in a scorer's order."""
    return f"static reranker, top-{k}"


def top_k(question: Question, k: int) -> Chosen:
    """The retriever's first ``k`` candidates, all where there are fewer."""
    return tuple(range(1, min(k, len(question.passages)) + 1))


def oracle(question: Question) -> Chosen:
    """The needed passages among the candidates.

    Raises:
      InputError: the needed passages are unknown.
    """
    needed = question.gold_list()
    if needed is None:
        raise InputError(
            f"question '{question.id}' does not say which passages are needed (field 'gold'); "
            f"leave the oracle out"
        )
    return needed


def by_scores(question: Question, scores: Sequence[float], k: int) -> Chosen:
    """The ``k`` candidates with the highest scores, best first; ties keep the retriever's order.

    Raises:
      InputError: there is not one score a candidate.
    """
    if len(scores) != len(question.passages):
        raise InputError(
            f"question '{question.id}': {len(scores)} scores for {len(question.passages)} "
            f"candidates; they were made from other questions"
        )
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    return tuple(i + 1 for i in order[:k])


def given(question: Question) -> Chosen:
    """The list that stands in the question's field ``list``, as ``eval.rerank`` writes it.

    Raises:
      InputError: there is none, or it is no list over the candidates.
    """
    fields = Fields(f"question '{question.id}'", dict(question.extra))
    if not fields.has("list"):
        raise InputError(
            f"question '{question.id}' has no field 'list'; make the lists with eval.rerank, or "
            f"choose another source of lists"
        )
    positions = fields.integers("list")
    if wrong := valid_list(positions, len(question.passages)):
        raise InputError(f"question '{question.id}': field 'list' {wrong}")
    return positions


def fixed_systems(
    questions: Sequence[Question], cuts: Sequence[int], ids: int
) -> dict[str, list[Chosen]]:
    """The lists of no retrieval, of fixed top-k, and of the oracle where ``gold`` is known.

    Args:
      cuts: each k; a question with fewer candidates gives all of them, and a cut beyond ``ids`` or
        beyond the candidates of every question is left out.
      ids: passages that the reranker is shown at most: no baseline sees more.
    """
    n = min(ids, max((len(q.passages) for q in questions), default=0))
    systems: dict[str, list[Chosen]] = {NO_RETRIEVAL: [() for _ in questions]}
    for k in cuts:
        if k <= n:
            systems[top_k_name(k)] = [top_k(q, k) for q in questions]
    if all(q.gold is not None for q in questions):
        systems[ORACLE] = [oracle(q) for q in questions]
    return systems


def static_systems(
    questions: Sequence[Question], scores: Mapping[str, Sequence[float]], cuts: Sequence[int]
) -> dict[str, list[Chosen]]:
    """The lists of a static reranker cut at each k, from its scores by question id."""
    return {static_name(k): [by_scores(q, scores[q.id], k) for q in questions] for k in cuts}
