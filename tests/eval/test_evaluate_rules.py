"""The stage evaluate with rules for how many, and with other rules of normalization."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.evaluation import rules
from dynarag_jax.evaluation.lists import NO_RETRIEVAL, ORACLE
from dynarag_jax.evaluation.tuning import RulesConfig
from dynarag_jax.files import read_json, read_jsonl
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.program import run_stage
from dynarag_jax.metrics.normalizers import MetricsConfig
from dynarag_jax.records import write_questions
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.stages import evaluate
from dynarag_jax.stages.evaluate import Evaluate

from .conftest import PROMPTS, ask

GREEDY = Sampling(temperature=0.0)


def ran(directory: Path, stage: Evaluate) -> Path:
    context = Context(Run(directory=str(directory)), {"evaluate": stage}, "evaluate")
    assert run_stage(context, evaluate.run)
    return directory / "evaluate"


def test_an_evaluation_with_rules_and_the_rules_of_another_script(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def scored(number):
        question = ask(number)
        with_scores = (dataclasses.replace(p, score=float(len(p.text))) for p in question.passages)
        return dataclasses.replace(question, passages=tuple(with_scores))

    questions = [scored(i) for i in range(3)]
    write_questions("q.jsonl", questions)
    write_questions("dev.jsonl", [scored(i) for i in range(30, 38)])
    config = Evaluate(
        models={"m": str(model)}, questions="q.jsonl", prompts=PROMPTS, sampling=GREEDY, top_k=(1,),
        examples=0, batch=8, shuffled=True, metrics=MetricsConfig("unicode"),
        rules=RulesConfig(("largest-gap", "clusters"), "dev.jsonl"), dtype="float32",
    )  # fmt: skip
    place = ran(tmp_path, config)
    gap, clusters = read_json(place / "rules.json")
    assert gap["questions"] == 8 and gap["parameters"].keys() == {"more"}
    found = {(r["system"], r["id"]): r for _, r in read_jsonl(place / "predictions.jsonl")}
    for question in questions:
        scores = [p.score for p in question.passages]
        chosen = found[gap["system"], question.id]["list"]
        assert chosen == list(rules.largest_gap(scores, gap["parameters"]["more"]))
    means = read_json(place / "scores.json")
    assert list(means) == [
        "m", "m, shuffled", NO_RETRIEVAL, "top-1", ORACLE, gap["system"], clusters["system"]
    ]  # fmt: skip
    wrong = dataclasses.replace(config, rules=RulesConfig(("threshold",), "q.jsonl"))
    with pytest.raises(InputError, match="is evaluated and, as 'q0', tuned on"):
        ran(tmp_path, wrong)
    bare = dataclasses.replace(config, questions="bare.jsonl")
    write_questions("bare.jsonl", [ask(1)])
    with pytest.raises(InputError, match="passage 'q1p1' has no score, and rules choose by scores"):
        ran(tmp_path, bare)
