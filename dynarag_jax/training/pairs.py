"""Preference pairs as text, for training with other tools: Hugging Face's form, LLaMA-Factory's.

Both kinds of pairs come from the same rollouts: two lists over one reranker's prompt, or two
answers over one generator's prompt. All of a pair is of one rollout and of the question with its
id: which pairs a rollout gives depends on nothing else in the file, nor on its place there.
``train.dpo`` needs none of this; it reads the rollouts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dynarag_jax.errors import InputError
from dynarag_jax.prompts import Message, Style, answer_messages, format_list, rerank_messages
from dynarag_jax.records import Question, valid_list
from dynarag_jax.rollout_records import Rollout
from dynarag_jax.training.preferences import comparable

Which = Literal["best_worst", "all"]
Kind = Literal["list", "answer"]


@dataclass(frozen=True)
class Pair:
    """A preference between two continuations of one prompt.

    Attributes:
      id: the question's.
      kind: what is preferred: a list, or an answer.
      messages: the prompt as chat messages.
      chosen, rejected: the texts; never equal.
      gap: by how much the chosen one's reward is higher.
    """

    id: str
    kind: Kind
    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    gap: float


@dataclass
class PairCounts:
    """How many pairs there are, and what was left out."""

    pairs: int = 0
    ties: int = 0
    """pairs whose rewards are equal, or whose gap is within the minimum"""
    same: int = 0
    """pairs of texts that are alike"""
    missing: int = 0
    """lists or answers whose reward lacks a term"""
    single: int = 0
    """questions with fewer than two lists or answers to compare"""


def ranked_pairs(
    rewards: Sequence[float], texts: Sequence[str], which: Which, min_gap: float, counts: PairCounts
) -> list[tuple[int, int]]:
    """Places (better, worse) of the pairs whose rewards differ by more than ``min_gap``.

    Args:
      which: the best against the worst alone, as in the paper, or every pair.
      counts: is added to.
    """
    order = sorted(range(len(rewards)), key=lambda i: -rewards[i])
    if len(order) < 2:
        counts.single += 1
        return []
    if which == "best_worst":
        candidates = [(order[0], order[-1])]
    else:
        candidates = [(a, b) for at, a in enumerate(order) for b in order[at + 1 :]]
    pairs = []
    for better, worse in candidates:
        if rewards[better] - rewards[worse] <= max(min_gap, 1e-9):
            counts.ties += 1
        elif texts[better].strip() == texts[worse].strip():
            counts.same += 1
        else:
            pairs.append((better, worse))
    counts.pairs += len(pairs)
    return pairs


def pairs_of(
    question: Question,
    rollout: Rollout,
    kind: Kind,
    counts: PairCounts,
    *,
    which: Which = "best_worst",
    min_gap: float = 0.0,
    style: Style = "instruct",
) -> list[Pair]:
    """The pairs of one rollout; those whose rewards lack a term take no part.

    Raises:
      InputError: the rollout is another question's, holds passages that the question has not, its
        lists stand behind thoughts, or answers are asked of one without scored answers.
    """
    where = f"question '{rollout.id}'"
    if rollout.id != question.id:
        raise InputError(f"{where}: its rollout was put beside question '{question.id}'")
    whole = comparable(rollout, kind == "answer")
    if kind == "list":
        if rollout.shown > len(question.passages):
            raise InputError(
                f"{where}: the rollout was shown {rollout.shown} passages, and the question has "
                f"{len(question.passages)}; give the question file that was sampled from"
            )
        if any(t.thought for t in rollout.trajectories):
            raise InputError(
                f"{where}: its lists stand behind thoughts, whose markers these forms leave to "
                f"each model's chat template; train on them with the feedback stage, or sample "
                f"with prompts.thought_tokens = 0"
            )
        messages = rerank_messages(question, question.passages[: rollout.shown], style)
        texts = [format_list(t.list) for t in rollout.trajectories]
        rewards = [t.reward for t in rollout.trajectories]
    else:
        answers = rollout.answers
        if answers is None:
            raise InputError(f"{where} has no scored answers; sample with --answers True")
        if wrong := valid_list(answers.list, len(question.passages)):
            raise InputError(f"{where}: the list of its answers {wrong}, the question's passages")
        passages = [question.passages[i - 1] for i in answers.list]
        messages = answer_messages(question, passages, style)
        texts, rewards = list(answers.texts), list(answers.rewards)
    counts.missing += len(texts) - len(whole)
    chosen = ranked_pairs(
        [rewards[i] for i in whole], [texts[i] for i in whole], which, min_gap, counts
    )
    return [
        Pair(
            question.id, kind, tuple(messages), texts[whole[a]], texts[whole[b]],
            rewards[whole[a]] - rewards[whole[b]],
        )
        for a, b in chosen
    ]  # fmt: skip


def all_pairs(
    questions: Mapping[str, Question], rollouts: Iterable[Rollout], kind: Kind, **options: Any
) -> tuple[list[Pair], PairCounts]:
    """The pairs of all rollouts, in their order, each with the question of its id.

    Args:
      options: those of ``pairs_of``.

    Raises:
      InputError: a question is absent, or as for ``pairs_of``.
    """
    counts, pairs = PairCounts(), []
    for rollout in rollouts:
        if rollout.id not in questions:
            raise InputError(
                f"question '{rollout.id}' of the rollouts is not among the questions; give the "
                f"file that was sampled from"
            )
        pairs += pairs_of(questions[rollout.id], rollout, kind, counts, **options)
    return pairs, counts


# ---------------------------------------------------------------------------- forms


def preference_records(pairs: Iterable[Pair]) -> Iterator[dict[str, Any]]:
    """Hugging Face's conversational preference form, as TRL's DPOTrainer takes it."""
    for pair in pairs:
        yield {
            "id": pair.id,
            "prompt": [dict(message) for message in pair.messages],
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
            "gap": pair.gap,
        }


def llama_factory_records(pairs: Iterable[Pair]) -> Iterator[dict[str, Any]]:
    """LLaMA-Factory's alpaca form of preferences; ``llama_factory_info`` declares it."""
    for pair in pairs:
        said = {"system": "", "user": ""} | {m["role"]: m["content"] for m in pair.messages}
        yield {
            "instruction": said["user"],
            "input": "",
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "system": said["system"],
        }


def llama_factory_info(files: Mapping[str, str]) -> dict[str, Any]:
    """The content of ``dataset_info.json`` for files by the name of their dataset."""
    columns = {
        "prompt": "instruction",
        "query": "input",
        "chosen": "chosen",
        "rejected": "rejected",
        "system": "system",
    }
    return {
        name: {"file_name": file, "ranking": True, "columns": columns}
        for name, file in files.items()
    }
