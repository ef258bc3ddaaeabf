"""Answer questions from given lists: a reranker's, the retriever's, a scorer's, or none.

    dynarag answer configs/bench.py --questions runs/bench/rerank/nq.jsonl
    dynarag answer configs/bench.py --questions nq.jsonl --lists top-k --k 5
    dynarag answer configs/bench.py --questions nq.jsonl --lists static --scorer MONOT5 --k 5

Predictions are appended as they are made, so that a killed run continues. A question that cannot be
answered gets an empty answer and the reason in ``failed``: it stays in the denominator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dynarag_jax.config import INHERITED, SameResult
from dynarag_jax.data.reading import read_questions
from dynarag_jax.errors import InputError
from dynarag_jax.evaluation import lists
from dynarag_jax.evaluation.answering import answer
from dynarag_jax.evaluation.predictions import prediction_to_json
from dynarag_jax.evaluation.scoring import require_positive
from dynarag_jax.files import read_jsonl
from dynarag_jax.launch.context import Context
from dynarag_jax.policy.model import load_policy
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import Question
from dynarag_jax.retrieval.relevance import load_scorer
from dynarag_jax.sampling.answer_server import GeneratorConfig
from dynarag_jax.sampling.compiled import SamplingNeeds
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.requests import EngineConfig
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.stages.common.files import opened, questions_by_output
from dynarag_jax.stages.common.predicting import counted
from dynarag_jax.stages.common.scores import score_once
from dynarag_jax.stages.common.servers import generator_of


@dataclass(frozen=True)
class Answer:
    """Answer questions from given lists of passages: one line of predictions a question."""

    model: str = "{run}/feedback/model"
    """the generator"""
    questions: tuple[str, ...] = ("{run}/rerank/evaluation.jsonl",)
    """question files; the predictions of each are written under its own name"""
    lists: Literal["given", "none", "top-k", "static", "oracle"] = "given"
    """given: the questions' own field ``list``, as eval.rerank writes it; none: no passages; top-k:
    the retriever's first ``k``; static: the first ``k`` by ``scorer``; oracle: those needed"""
    k: int = 10
    """passages of the lists top-k and static"""
    scorer: str = ""
    """MonoT5 or cross-encoder with one logit, of the lists static: a directory or hub id"""
    system: str = ""
    """what the predictions are called; empty names them after their lists"""
    prompts: PromptConfig = INHERITED
    dtype: Literal["float32", "bfloat16"] = INHERITED
    """type of the models' weights and activations"""
    batch: SameResult[int] = 64
    """prompts at once"""
    engine: SameResult[EngineConfig] = EngineConfig()
    generator: GeneratorConfig = GeneratorConfig()
    """a server that answers in place of the model"""

    def __post_init__(self) -> None:
        require_positive("answer", "k", (self.k,))
        if (self.lists == "static") != bool(self.scorer):
            raise InputError(
                f"answer: lists = '{self.lists}' and scorer = '{self.scorer}': static lists need a "
                f"scorer, and no others take one"
            )


def to_plan(stage: Answer) -> list[SamplingNeeds]:
    """What the stage samples; nothing where a server does."""
    if stage.generator.url:
        return []
    greedy = Sampling(temperature=0.0)
    return [
        SamplingNeeds(
            stage.model, 0, True, stage.prompts, greedy, stage.batch, stage.engine, stage.dtype
        )
    ]


def system_name(stage: Answer) -> str:
    """What the predictions are called."""
    names = {
        "given": "given lists",
        "none": lists.NO_RETRIEVAL,
        "top-k": lists.top_k_name(stage.k),
        "static": lists.static_name(stage.k),
        "oracle": lists.ORACLE,
    }
    return stage.system or names[stage.lists]


def list_of(stage: Answer, question: Question, scores: Mapping[str, Sequence[float]]) -> Any:
    """The question's list, as the configuration says."""
    if stage.lists == "none":
        return ()
    if stage.lists == "given":
        return lists.given(question)
    if stage.lists == "oracle":
        return lists.oracle(question)
    if stage.lists == "top-k":
        return lists.top_k(question, stage.k)
    return lists.by_scores(question, scores[question.id], stage.k)


def run(context: Context, stage: Answer) -> None:
    """Write the predictions of every question file under its own name."""
    paths = questions_by_output(context, stage.questions)
    models = {"model": context.model(stage.model)}
    if stage.lists == "static":
        models["scorer"] = context.model(stage.scorer)
    context.manifest(inputs=paths | models)
    system = system_name(stage)
    asked = {name: read_questions(path, context.log) for name, path in paths.items()}
    for name, questions in asked.items():
        bare = [q.id for q in questions if not q.passages]
        if stage.lists != "none" and len(bare) == len(questions):
            what = f"question '{bare[0]}' has no passages" if bare else "no questions"
            raise InputError(f"{paths[name]}: {what}; retrieve first")
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in asked}
    if stage.lists == "static":
        scorer = load_scorer(models["scorer"], stage.dtype)
        for name, questions in asked.items():
            output = context.begin() / f"scores-{name}"
            scores[name] = score_once(context, scorer, output, f"scores of {name}", questions)
        del scorer
    # Wrong lists are found before a model is loaded.
    chosen = {
        name: [list_of(stage, q, scores[name]) for q in questions]
        for name, questions in asked.items()
    }
    policy = load_policy(models["model"], context.mesh, stage.prompts, stage.dtype)
    sampler = PolicySampler(policy, stage.prompts, stage.batch, context.run.seed, stage.engine)
    for name, questions in asked.items():
        output = context.begin() / name
        team = sampler.team
        with (
            opened(context, output, team) as rows,
            generator_of(context, stage.generator, sampler) as generator,
            context.progress(len(questions), name) as bar,
        ):
            pairs = zip(questions, chosen[name], strict=True)
            todo = [pair for pair in pairs if pair[0].id not in rows.done]
            bar.start_at(len(questions) - len(todo), len(questions))
            for group, mine in team.groups(todo, sampler.together):
                some, own = [q for q, _ in mine], [one for _, one in mine]
                with counted(sampler, bar, len(group)):
                    for question, found in answer(sampler, some, own, generator):
                        thought = question.extra.get("thought_tokens")
                        if stage.lists == "given" and isinstance(thought, int):
                            found = replace(found, thought_tokens=thought)
                        rows.append(prediction_to_json(found, question, system))
            rows.finish(q.id for q in questions)
        failed = [line for _, line in read_jsonl(output) if "failed" in line]
        if questions and len(failed) == len(questions):
            raise InputError(f"{paths[name]}: no question can be answered ({failed[0]['failed']})")
        context.log(
            f"{name}: {len(questions)} answers of '{system}'"
            + (f"; {len(failed)} failed, see their field 'failed'" if failed else "")
        )
