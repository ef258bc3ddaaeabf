"""Write preference pairs of rollouts as text, for training with other tools.

    dynarag pairs configs/quickstart.py
    dynarag pairs configs/quickstart.py --which all --min_gap 0.1 --form llama-factory

Writes lists.jsonl, answers.jsonl where the rollouts have scored answers, and counts.json.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dynarag_jax.data.reading import read_questions
from dynarag_jax.errors import InputError
from dynarag_jax.files import write_json, write_jsonl
from dynarag_jax.launch.context import Context
from dynarag_jax.processes import once
from dynarag_jax.prompts import Style
from dynarag_jax.rollout_records import read_rollouts
from dynarag_jax.training.pairs import (
    Kind,
    all_pairs,
    llama_factory_info,
    llama_factory_records,
    preference_records,
)


@dataclass(frozen=True)
class Pairs:
    """Write preference pairs of rollouts as text, for training with other tools."""

    rollouts: str = "{run}/rollout/rollouts.jsonl"
    questions: str = "{run}/label/train.jsonl"
    """the questions that were sampled from"""
    which: Literal["best_worst", "all"] = "best_worst"
    """each question's best against its worst, or every two that differ enough"""
    min_gap: float = 0.0
    """the better reward must exceed the worse by more than this"""
    form: Literal["preference", "llama-factory"] = "preference"
    """Hugging Face's {prompt, chosen, rejected} in messages, or LLaMA-Factory's alpaca fields"""
    style: Style = "instruct"
    """of the prompts, as the rollouts' ``prompts.style``"""


def run(context: Context, stage: Pairs) -> None:
    """Write the pairs of lists, and of answers."""
    paths = {
        "rollouts": context.path(stage.rollouts),
        "questions": context.path(stage.questions),
    }
    context.manifest(inputs=paths)
    found = once(lambda: found_pairs(context, stage, paths["rollouts"], paths["questions"]))
    directory = context.begin()

    def write() -> None:
        assert found is not None
        records = preference_records if stage.form == "preference" else llama_factory_records
        for name, (pairs, _) in found.items():
            write_jsonl(directory / f"{name}.jsonl", records(pairs))
        if stage.form == "llama-factory":
            files = {f"dynarag_{name}": f"{name}.jsonl" for name in found}
            write_json(directory / "dataset_info.json", llama_factory_info(files))
        write_json(directory / "counts.json", {name: counts for name, (_, counts) in found.items()})

    once(write)


def found_pairs(
    context: Context, stage: Pairs, rollouts_path: Path, questions_path: Path
) -> dict[str, tuple[Any, dict[str, int]]]:
    """The pairs by name, each with its counts, which are said.

    Raises:
      InputError: there is none.
    """
    rollouts = read_rollouts(rollouts_path)
    questions = {question.id: question for question in read_questions(questions_path, context.log)}
    kinds: list[tuple[Kind, str]] = [("list", "lists")]
    if rollouts and all(rollout.answers is not None for rollout in rollouts):
        kinds.append(("answer", "answers"))
    found: dict[str, tuple[Any, dict[str, int]]] = {}
    for kind, name in kinds:
        pairs, counts = all_pairs(
            questions, rollouts, kind, which=stage.which, min_gap=stage.min_gap, style=stage.style
        )
        found[name] = pairs, asdict(counts)
        said = ", ".join(f"{what} {count}" for what, count in found[name][1].items())
        context.log(f"{name} of {len(rollouts)} questions: {said}")
    if not sum(counts["pairs"] for _, counts in found.values()):
        raise InputError(f"{rollouts_path}: no two lists or answers differ enough in reward")
    return found
