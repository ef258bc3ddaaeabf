"""Write preference pairs of rollouts as text, for training with other tools.

    dynarag pairs configs/quickstart.py
    dynarag pairs configs/quickstart.py --which all --min_gap 0.1 --form llama-factory

Writes lists.jsonl, answers.jsonl where the rollouts have scored answers, and counts.json.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from dynarag_jax.data.reading import read_questions
from dynarag_jax.errors import InputError
from dynarag_jax.files import write_json, write_jsonl
from dynarag_jax.launch.context import Context
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
    context.require_one_process()
    paths = {
        "rollouts": context.path(stage.rollouts),
        "questions": context.path(stage.questions),
    }
    context.manifest(inputs=paths)
    rollouts = read_rollouts(paths["rollouts"])
    questions = {
        question.id: question for question in read_questions(paths["questions"], context.log)
    }
    kinds: list[tuple[Kind, str]] = [("list", "lists")]
    if rollouts and all(rollout.answers is not None for rollout in rollouts):
        kinds.append(("answer", "answers"))
    records = preference_records if stage.form == "preference" else llama_factory_records
    counted, files, found = {}, {}, {}
    for kind, name in kinds:
        found[name], counts = all_pairs(
            questions, rollouts, kind, which=stage.which, min_gap=stage.min_gap, style=stage.style
        )
        files[f"dynarag_{name}"] = f"{name}.jsonl"
        counted[name] = asdict(counts)
        said = ", ".join(f"{what} {count}" for what, count in counted[name].items())
        context.log(f"{name} of {len(rollouts)} questions: {said}")
    if not sum(counts["pairs"] for counts in counted.values()):
        raise InputError(f"{paths['rollouts']}: no two lists or answers differ enough in reward")
    directory = context.begin()
    for name, pairs in found.items():
        write_jsonl(directory / f"{name}.jsonl", records(pairs))
    if stage.form == "llama-factory":
        write_json(directory / "dataset_info.json", llama_factory_info(files))
    write_json(directory / "counts.json", counted)
