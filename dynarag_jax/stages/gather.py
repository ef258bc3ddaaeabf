"""Make a corpus and question files from questions that come with their passages.

    dynarag gather --source FILE.jsonl.gz                   # into runs/gather/gather
    dynarag gather configs/nq_litm.py --source FILE.jsonl.gz

Writes corpus.jsonl, train.jsonl and evaluation.jsonl into RUN/gather, in seconds.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from dynarag_jax.data.reading import Reading, numbered_questions, with_candidates
from dynarag_jax.data.values import with_content_ids
from dynarag_jax.errors import InputError
from dynarag_jax.launch.context import Context
from dynarag_jax.processes import once
from dynarag_jax.records import Passage, Question, write_passages, write_questions

CONFIG_OPTIONAL = True
"""Options alone will do: no config file is needed."""


@dataclass(frozen=True)
class Gather:
    """Make a corpus and a question file from questions that come with their passages.

    Reads any format of docs/data.md whose questions come with passages: that of Self-RAG, DPR and
    Lost-in-the-Middle, HotpotQA's and others.
    """

    source: str = ""
    """the file to read"""
    format: str = ""
    """its format; empty finds it by the first records"""
    evaluation: float = 0.3
    """share of the questions kept for evaluation, chosen by the run's seed"""


def run(context: Context, stage: Gather) -> None:
    """Write corpus.jsonl, train.jsonl and evaluation.jsonl."""
    if not stage.source:
        raise InputError("gather: name the file to read with --source")
    source = context.path(stage.source)
    context.manifest(inputs={"source": source})
    found = once(lambda: gathered(context, stage, source))
    directory = context.begin()

    def write() -> None:
        assert found is not None
        passages, parts = found
        write_passages(directory / "corpus.jsonl", passages)
        for name, part in parts.items():
            write_questions(directory / f"{name}.jsonl", part)
        context.log(
            f"{len(passages)} passages, {len(parts['train'])} + {len(parts['evaluation'])} "
            f"questions in {directory}"
        )

    once(write)


def gathered(
    context: Context, stage: Gather, source: Path
) -> tuple[list[Passage], dict[str, list[Question]]]:
    """The passages of a file's questions, and these divided."""
    questions: list[Question] = []
    for _, question in numbered_questions(source, Reading(stage.format)):
        # Files number passages as they like, and leave some without an id.
        questions.append(with_content_ids(question))
    with_candidates(questions, source, context.log)
    corpus: dict[str, Passage] = {p.id: p for q in questions for p in q.passages}
    evaluation = set(
        random.Random(f"{context.run.seed}/gather").sample(
            range(len(questions)), round(stage.evaluation * len(questions))
        )
    )
    parts: dict[str, list[Question]] = {"train": [], "evaluation": []}
    for i, question in enumerate(questions):
        parts["evaluation" if i in evaluation else "train"].append(question)
    return list(corpus.values()), parts
