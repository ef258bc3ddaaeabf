"""Write gold lists against hard negatives, as rollouts: preference data without sampling.

    dynarag contrast configs/nq_litm.py
    dynarag reference configs/nq_litm.py --rollouts runs/nq_litm/contrast/rollouts.jsonl
    dynarag feedback configs/nq_litm.py --rollouts runs/nq_litm/reference/rollouts.jsonl

DDRO, direct document relevance optimization (arXiv 2504.05181): after behavior cloning, DPO on a
relevant list against an irrelevant one. Each question's needed passages, in the order of its
candidates, are preferred to as many candidates that are not needed, the retriever's best of them.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dynarag_jax.config import INHERITED
from dynarag_jax.data.reading import read_questions
from dynarag_jax.errors import InputError
from dynarag_jax.files import write_jsonl
from dynarag_jax.launch.context import Context
from dynarag_jax.processes import once
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import Question
from dynarag_jax.rollout_records import Rollout, Trajectory, rollout_to_json


@dataclass(frozen=True)
class Contrast:
    """Write gold lists against hard negatives, as rollouts."""

    questions: str = "{run}/label/train.jsonl"
    """questions that say which passages they need, with candidates in the retriever's order"""
    negatives: Literal["first", "random", "replace"] = "first"
    """first: the first candidates that are not needed; random: any of them; replace: the gold list
    with its last passage replaced by the first that is not needed"""
    prompts: PromptConfig = INHERITED


def negative_list(
    question: Question, gold: tuple[int, ...], ids: int, stage: Contrast, rng: random.Random
) -> tuple[int, ...]:
    """A list as long as ``gold`` that is wrong, or ``()`` where there are not enough candidates."""
    others = [i for i in range(1, min(ids, len(question.passages)) + 1) if i not in gold]
    if stage.negatives == "replace":
        return (*gold[:-1], others[0]) if others else ()
    if len(others) < len(gold):
        return ()
    if stage.negatives == "random":
        return tuple(rng.sample(others, len(gold)))
    return tuple(others[: len(gold)])


def run(context: Context, stage: Contrast) -> None:
    """Write the pairs, and say which questions have none."""
    path = context.path(stage.questions)
    context.manifest(inputs={"questions": path})
    rows = once(lambda: found_pairs(context, stage, path))
    output = context.begin() / "rollouts.jsonl"
    once(lambda: write_jsonl(output, rows or []))


def found_pairs(context: Context, stage: Contrast, path: Path) -> list[dict[str, Any]]:
    """The pairs as lines of rollouts; how many there are is said, and which questions have none.

    Raises:
      InputError: no question gives a pair.
    """
    left_out: Counter[str] = Counter()
    rows = []
    ids, longest = stage.prompts.ids, stage.prompts.max_list
    for question in read_questions(path, context.log):
        gold = question.gold_list()
        if gold is None:
            left_out["do not say which passages they need"] += 1
            continue
        gold = tuple(sorted(i for i in gold if i <= ids))[:longest]
        if not gold:
            left_out["have no needed passage among their candidates"] += 1
            continue
        rng = random.Random(f"{context.run.seed} contrast {question.id}")
        wrong = negative_list(question, gold, ids, stage, rng)
        if not wrong:
            left_out["have too few candidates that are not needed"] += 1
            continue
        pair = (
            Trajectory(gold, terms={"gold": 1.0}, reward=1.0),
            Trajectory(wrong, terms={"gold": 0.0}, reward=0.0),
        )
        shown = min(len(question.passages), ids)
        rows.append(
            rollout_to_json(Rollout(question.id, shown, pair, policy="gold", reference="none"))
        )
    said = "; ".join(f"{count} {why}" for why, count in left_out.items())
    if not rows:
        raise InputError(f"{path}: no question gives a pair{f' ({said})' if said else ''}")
    context.log(f"{len(rows)} pairs" + (f"; of the other questions {said}" if said else ""))
    return rows
