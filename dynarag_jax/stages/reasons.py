r"""Ask a server for the reasons behind each list: thoughts before lists, to be imitated.

    dynarag reasons configs/llama3_8b.py --prompts.thought_tokens 256 \
        --tokenizer meta-llama/Llama-3.1-8B --server.url http://host:8000/v1 --server.model NAME
    dynarag sft configs/llama3_8b.py --prompts.thought_tokens 256 \
        --questions runs/llama3_8b/reasons/train.jsonl

Writes each question file with thoughts before its lists into RUN/reasons, and says how many lists
have none, and why. Replies are kept, so that a killed run goes on and nothing is paid for twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dynarag_jax.config import INHERITED
from dynarag_jax.data.reading import read_questions
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.tokenizers import load_tokenizer
from dynarag_jax.files import read_jsonl
from dynarag_jax.launch.context import Context
from dynarag_jax.policy.examples import ExampleMaker
from dynarag_jax.policy.model import list_grammar
from dynarag_jax.processes import ProcessTeam, once
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import Question, write_questions
from dynarag_jax.sampling.reason_server import ReasonConfig, Reasons, ServerReasons
from dynarag_jax.stages.common.files import opened, questions_by_output
from dynarag_jax.stages.common.servers import key_of, replies_of, say_asked

TOGETHER = 64
"""Questions whose reasons are asked for together."""


@dataclass(frozen=True)
class CollectReasons:
    """Ask a server for the reasons behind each list: thoughts before lists, to be imitated."""

    questions: tuple[str, ...] = ("{run}/label/train.jsonl",)
    """question files with lists, as ``label`` writes them"""
    tokenizer: str = ""
    """directory or hub id of the model that is to learn the reasons: its tokenizer counts them"""
    failed: Literal["keep", "leave_out"] = "keep"
    """questions whose list gets no reasons: keep them, their list learned behind an empty thought,
    or leave them out; either is said and counted"""
    server: ReasonConfig = ReasonConfig()
    """an OpenAI-compatible server that gives reasons"""
    prompts: PromptConfig = INHERITED


def run(context: Context, stage: CollectReasons) -> None:
    """Ask about every question that has a list and no thought before it."""
    if not stage.server.url:
        raise InputError("reasons need a server: set server.url and server.model")
    if not stage.prompts.thought_tokens:
        raise InputError(
            "prompts.thought_tokens = 0: the policy writes no thoughts; set it to the longest one, "
            "in the run's prompts, so that all stages have it"
        )
    if not stage.tokenizer:
        raise InputError("'tokenizer' is empty; name the model that is to learn the reasons")
    paths = questions_by_output(context, stage.questions)
    tokenizer = context.model(stage.tokenizer)
    context.manifest(inputs=dict(paths) | {"tokenizer": tokenizer})
    files = {name: read_questions(path, context.log) for name, path in paths.items()}
    for name, questions in files.items():
        if all(question.expert is None for question in questions):
            raise InputError(
                f"{paths[name]}: no question has a list to give reasons for; run the label stage"
            )
    loaded = load_tokenizer(str(tokenizer))
    spelling, _ = list_grammar(loaded, stage.prompts)
    maker = ExampleMaker(loaded, spelling, stage.prompts, cache=context.token_cache)
    team = ProcessTeam(None)
    replies = replies_of(context, stage.server, team)
    teacher = ServerReasons(stage.server, maker, key_of(stage.server), replies, team)
    try:
        directory = context.begin()
        for name, questions in files.items():
            found = collected(context, teacher, team, directory / f"replies-{name}", questions)
            write_reasons(context, stage, name, questions, found)
    finally:
        teacher.close()
        if maker.cache is not None:
            maker.cache.flush()
    say_asked(context, "reasons", teacher.counts, teacher.reasons)


def collected(
    context: Context,
    teacher: ServerReasons,
    team: ProcessTeam,
    path: Path,
    questions: Sequence[Question],
) -> dict[str, Reasons]:
    """The reasons of every question that has a list and no thought, by its id."""
    asked = [q for q in questions if q.expert is not None and not q.expert_thought.strip()]
    with (
        opened(context, path, team, afresh=True) as rows,
        context.progress(len(asked), path.stem.removeprefix("replies-")) as bar,
    ):
        # What stands of an attempt that was cut off is made anew, from the replies on record: those
        # that could not be had are asked for again.
        for every, mine in team.groups(asked, TOGETHER * team.count):
            for question, one in zip(mine, teacher.ask(mine), strict=True):
                rows.append({"id": question.id} | dataclasses.asdict(one))
            bar.update(len(every))
        rows.finish(question.id for question in asked)
    return {row.pop("id"): Reasons(**row) for _, row in read_jsonl(rows.path)}


def write_reasons(
    context: Context,
    stage: CollectReasons,
    name: str,
    questions: Sequence[Question],
    found: dict[str, Reasons],
) -> None:
    """Write a file's questions with their thoughts, and say how many there are and how long."""
    good = {key: one for key, one in found.items() if not one.failed}
    written = []
    for question in questions:
        one = good.get(question.id)
        if one is not None:
            source = f"{question.expert_source}, reasons by {stage.server.model}".lstrip(", ")
            question = dataclasses.replace(question, expert_thought=one.text, expert_source=source)
        elif question.id in found and stage.failed == "leave_out":
            continue
        written.append(question)
    output = context.stage_directory / name
    once(lambda: write_questions(output, written))
    mean = sum(one.tokens for one in good.values()) / max(len(good), 1)
    said = [f"{len(good)} of {len(found)} lists have reasons, {mean:.1f} tokens on average"]
    again, cut = (sum(map(test, good.values())) for test in (asked_again, was_cut))
    said += [f"{again} after another try"] if again else []
    said += [f"{cut} without their last sentences"] if cut else []
    if failed := len(found) - len(good):
        what = "are left out" if stage.failed == "leave_out" else "have their list alone"
        said.append(f"{failed} {what}")
    bare = sum(question.expert is None for question in questions)
    said += [f"{bare} questions have no list"] if bare else []
    had = len(questions) - bare - len(found)
    said += [f"{had} had a thought before and keep it"] if had else []
    context.log(f"{name}: {'; '.join(said)}")


def asked_again(one: Reasons) -> bool:
    """Whether the first reply could not be used."""
    return one.attempts > 1


def was_cut(one: Reasons) -> bool:
    """Whether sentences were left out at the end."""
    return one.cut
