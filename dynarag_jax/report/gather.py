"""The parts of a report from what a run has written: predictions, samples, metrics of training."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynarag_jax.evaluation.lists import NO_RETRIEVAL, ORACLE, SHUFFLED
from dynarag_jax.evaluation.scoring import dataset_of
from dynarag_jax.evaluation.tables import shown
from dynarag_jax.metrics.benchmarks import headline_of
from dynarag_jax.metrics.intervals import bootstrap
from dynarag_jax.metrics.ranking import size_matrix, sizes
from dynarag_jax.records import Question
from dynarag_jax.report.schema import (
    Curve,
    KMatrix,
    PolicyChoice,
    RankRow,
    Role,
    SampledList,
    ShownPassage,
    ShownQuestion,
    SystemRow,
    TypeRow,
    TypeScores,
)
from dynarag_jax.rollout_records import Rollout

Line = Mapping[str, Any]
Lines = Sequence[Line]
"""Lines of predictions.jsonl of one system, or of a stage's metrics.jsonl."""


# ---------------------------------------------------------------------------- systems


def role_of(system: str, before: str, after: str) -> Role:
    """What a system is, for the report's colors and headline.

    Args:
      before, after: the models before and after feedback, by their names in the evaluation.
    """
    roles: dict[str, Role] = {NO_RETRIEVAL: "none", ORACLE: "oracle"}
    roles |= {before: "cloning", after: "feedback"}
    if system in roles:
        return roles[system]
    if system.endswith(SHUFFLED):
        return "shuffled"
    return "fixed" if system.startswith("top-") else "other"


def system_row(name: str, rows: Lines, role: Role, seed: int) -> SystemRow:
    """A system's means with their intervals."""

    def interval(figure: str) -> Any:
        values = [row[figure] for row in rows if row.get(figure) is not None]
        return bootstrap(values, seed=seed) if len(values) == len(rows) else None

    return SystemRow(
        name=name,
        role=role,
        answer=interval("score"),
        set_f1=interval("set_f1"),
        mean_k=interval("k"),
        tokens=interval("tokens"),
        thought_tokens=interval("thought_tokens"),
        k_sd=sizes([row["k"] for row in rows]).sd,
        failed=sum("failed" in row for row in rows),
    )


def answer_metric(questions: Sequence[Question]) -> str:
    """What the answers' score is called: the headline metric, or "score" where it is several."""
    names = {headline_of(dataset_of(question), question.task) for question in questions}
    return shown(names.pop()) if len(names) == 1 else "score"


def type_rows(before: Lines | None, after: Lines | None) -> list[TypeRow]:
    """The scores by type of question, before and after feedback."""

    def scores(rows: Lines | None, name: str) -> TypeScores | None:
        part = [row for row in rows or [] if row["type"] == name]
        if not part:
            return None
        known = all(row["set_f1"] is not None for row in part)
        mean = lambda figure: sum(row[figure] for row in part) / len(part)  # noqa: E731
        return TypeScores(mean("score"), mean("set_f1") if known else None, mean("k"))

    some = after or before or []
    found = []
    for name in dict.fromkeys(row["type"] for row in some if row["type"]):
        part = [row for row in some if row["type"] == name]
        needed = [row["needed"] for row in part]
        mean = None if any(n is None for n in needed) else sum(needed) / len(needed)
        found.append(TypeRow(name, len(part), mean, scores(before, name), scores(after, name)))
    return sorted(found, key=lambda row: (row.needed_k is None, row.needed_k or 0.0, row.name))


# ---------------------------------------------------------------------------- needed passages


def needed_matrix(title: str, rows: Lines | None) -> KMatrix | None:
    """Needed k against chosen k; None where the needed passages are unknown."""
    if not rows or any(row["needed"] is None for row in rows):
        return None
    return KMatrix(title, size_matrix([r["needed"] for r in rows], [r["k"] for r in rows]))


def rank_rows(questions: Sequence[Question], shown: int) -> list[RankRow]:
    """At which ranks of the candidates the needed passages stand, by how many are needed.

    Questions that need none, or do not say what they need, have no part in it.

    Args:
      shown: candidates that the reranker sees; what lies beyond counts as absent.
    """
    by_needed: dict[int, list[Question]] = {}
    for question in questions:
        if question.gold:
            by_needed.setdefault(len(set(question.gold)), []).append(question)
    rows = []
    for needed, questions_of in sorted(by_needed.items()):
        at = [0] * max(len(question.passages[:shown]) for question in questions_of)
        for question in questions_of:
            for rank, passage in enumerate(question.passages[:shown]):
                at[rank] += passage.id in (question.gold or ())
        rows.append(RankRow(needed, len(questions_of), at, needed * len(questions_of) - sum(at)))
    return rows


# ---------------------------------------------------------------------------- training


def _panel(
    found: list[Curve],
    stage: str,
    label: str,
    lines: Lines,
    wanted: Mapping[str, str],
    axis: str = "training step",
) -> None:
    """Add the series of ``wanted`` (key -> name) that some line has."""
    series = {
        name: [line.get(key) for line in lines]
        for key, name in wanted.items()
        if any(key in line for line in lines)
    }
    if series:
        found.append(Curve(stage, label, [line["step"] for line in lines], series, axis))


def rollout_curves(stage: str, lines: Lines) -> list[Curve]:
    """The mean reward of a rollout, question by question."""
    curves: list[Curve] = []
    _panel(curves, stage, "mean reward", lines, {"reward": "reward"}, "questions sampled")
    return curves


_LISTS = {"reranker": "list", "generator": "answer"}


def training_curves(stage: str, lines: Lines, terms: Mapping[str, Sequence[str]]) -> list[Curve]:
    """Panels of what a training stage logged: each of its losses, or the total if it logged none.

    Args:
      terms: of each stream (reranker, generator), the objectives beside the likelihoods.
    """
    curves: list[Curve] = []
    _panel(
        curves,
        stage,
        "loss (nats per token)",
        lines,
        {
            "reranker/nll": "lists",
            "generator/nll": "answers",
            "instructions/nll": "instructions",
            "reranker/dpo/chosen_nll": "chosen lists",
        },
    )
    for stream, names in terms.items():
        what = _LISTS.get(stream, stream)
        for term in names:
            key = f"{stream}/{term}"
            said = term if stream == "reranker" else f"{term} of {what}s"
            _panel(curves, stage, f"{said}: loss", lines, {key: "loss"})
            rewards = {
                f"{key}/chosen_reward": f"best {what}",
                f"{key}/rejected_reward": f"worst {what}",
            }
            _panel(curves, stage, f"{said}: implicit reward", lines, rewards)
            right = {f"{key}/accuracy": "pairs"}
            _panel(curves, stage, f"{said}: share of pairs ranked right", lines, right)
            clipped = {f"{key}/clipped": "clipped"}
            _panel(curves, stage, f"{said}: share of ratios clipped", lines, clipped)
            apart = {f"{key}/kl_to_sampler": "from the sampler"}
            _panel(curves, stage, f"{said}: divergence", lines, apart)
    if not curves:
        _panel(curves, stage, "loss", lines, {"loss": "loss"})
    return curves


# ---------------------------------------------------------------------------- the run


def config_name(command: str) -> str:
    """The name of the config file that a recorded command names; empty where it names none."""
    files = [Path(word).stem for word in shlex.split(command) if word.endswith(".py")]
    return files[-1] if files else ""


# ---------------------------------------------------------------------------- examples


def shown_question(
    question: Question, rollout: Rollout, chosen: Sequence[tuple[str, Line]]
) -> ShownQuestion:
    """A question in full: its passages, the lists sampled, what each policy chose."""
    gold = question.gold_list()
    return ShownQuestion(
        id=question.id,
        question=question.text,
        answers=question.answers,
        type=question.type,
        passages=[
            ShownPassage(i, p.text, p.title, None if gold is None else i in gold)
            for i, p in enumerate(question.passages[: rollout.shown], 1)
        ],
        sampled=[
            SampledList(t.list, t.count, t.answer, t.reward, t.terms) for t in rollout.trajectories
        ],
        choices=[PolicyChoice(n, r["list"], r["answer"], r["score"] == 1) for n, r in chosen],
    )
