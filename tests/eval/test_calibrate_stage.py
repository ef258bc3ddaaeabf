"""The stages calibrate and evaluate on a language model: budgets, answers, curves, kills."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.calibration import Calibration, ListBias, read_calibration
from dynarag_jax.files import read_json, read_jsonl, write_json
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.program import run_stage
from dynarag_jax.records import write_questions
from dynarag_jax.stages import calibrate, evaluate
from dynarag_jax.stages.calibrate import Calibrate, CalibrationTarget
from dynarag_jax.stages.common import curves
from dynarag_jax.stages.evaluate import Evaluate

from .conftest import PROMPTS, ask


def ran(place, name, stage):
    context = Context(Run(directory=str(place)), {name: stage}, name)
    run_stage(context, {"calibrate": calibrate.run, "evaluate": evaluate.run}[name])
    return place / name


@pytest.mark.slow  # compiles or waits for long; others of its kind are fast
def test_a_language_model_keeps_a_budget_and_finds_the_best_answers(
    model, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write_questions("dev.jsonl", [ask(i, answers=("ada",)) for i in range(8)])
    stage = Calibrate(
        model=str(model), questions="dev.jsonl", prompts=PROMPTS, dtype="float32", batch=8,
        target=CalibrationTarget(tokens=8.0),
    )  # fmt: skip

    # What a kill leaves is not computed again.
    with monkeypatch.context() as patch:
        patch.setattr(calibrate, "policy_curve", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ran(tmp_path, "calibrate", stage)
    with monkeypatch.context() as patch:
        patch.setattr(curves, "stop_paths", lambda *_: 1 / 0)
        place = ran(tmp_path, "calibrate", stage)
    found = read_calibration(place / "model")
    assert found is not None
    assert 0 < found.reached["tokens"] <= 8
    curve = read_json(place / "curve.json")
    assert max(x for x in curve["tokens"] if x <= 8) == pytest.approx(found.reached["tokens"])
    # The weights are the same files.
    for path in model.iterdir():
        assert (place / "model" / path.name).read_bytes() == path.read_bytes()

    best = dataclasses.replace(stage, target=CalibrationTarget(quality="answer"))
    place = ran(tmp_path, "calibrate", best)
    found = read_calibration(place / "model")
    assert found is not None
    curve = read_json(place / "curve.json")
    assert found.target == {"answer": None}
    assert found.reached["answer"] == pytest.approx(max(curve["answer"]))

    evaluated = Evaluate(
        models={"calibrated": str(place / "model")}, questions="dev.jsonl", prompts=PROMPTS,
        top_k=(), examples=0, batch=8, dtype="float32",
        curve=curves.CurveConfig(3, "answer", "tokens"),
    )  # fmt: skip
    place = ran(tmp_path, "evaluate", evaluated)
    assert "answer (percent) against tokens" in capsys.readouterr().err
    rows = [r for _, r in read_jsonl(place / "predictions.jsonl") if r["system"] == "calibrated"]
    assert np.mean([r["k"] for r in rows]) == pytest.approx(found.reached["mean_k"])
    (own,) = read_json(place / "curves.json")
    # At a bias of 0 stands what the calibrated policy does.
    at = min(range(len(own["values"])), key=lambda i: abs(own["values"][i]))
    assert own["values"][at] == pytest.approx(0, abs=1e-4)
    assert own["tokens"][at] == pytest.approx(found.reached["tokens"])


def test_a_calibration_of_elsewhere_is_understood_or_refused(tmp_path):
    place = tmp_path / "calibration.json"
    assert read_calibration(tmp_path) is None
    write_json(place, {"format": 1, "stop": 0.5, "empty": -1})
    assert read_calibration(tmp_path) == Calibration(ListBias(0.5, -1.0))
    for wrong, said in (
        ({"format": 2, "stop": 0, "empty": 0}, "'format' is 2; this version reads 1"),
        ({"format": 1, "stop": 0}, "field 'empty' must be a number"),
        ({"format": 1, "stop": "0", "empty": 0}, "field 'stop' must be a finite number"),
        ({"format": 1, "stop": 0, "empty": 0, "scale": 2}, "field 'scale' is not known"),
    ):
        write_json(place, wrong)
        with pytest.raises(InputError, match=said):
            read_calibration(tmp_path)
