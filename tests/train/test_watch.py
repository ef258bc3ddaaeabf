"""Metrics for TensorBoard and Weights & Biases: read back with their own readers."""

from __future__ import annotations

import sys

import pytest

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError, MissingExtra
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.trackers import TensorBoard, trackers


def test_what_is_not_asked_for_is_not_imported(tmp_path):
    assert trackers(Run("runs/a"), tmp_path, {}) == []


@pytest.mark.parametrize(("option", "value"), [("tensorboard", True), ("wandb", "project")])
def test_what_is_asked_for_and_missing_is_named(tmp_path, monkeypatch, option, value):
    for name in [n for n in sys.modules if n.split(".")[0] == option]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, option, None)
    run = Run("runs/a", **{option: value})
    with pytest.raises(MissingExtra, match=rf"run.{option} needs .*'{option}'.*\[watch\]"):
        trackers(run, tmp_path, {})


def scalars(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(directory)).Reload()
    return {
        tag: {event.step: event.value for event in found.Scalars(tag)}
        for tag in found.Tags()["scalars"]
    }


def test_tensorboard_reads_what_was_written_and_a_continued_run_replaces_what_it_repeats(tmp_path):
    pytest.importorskip("tensorboard")
    board = TensorBoard(tmp_path, 0)
    for step in range(1, 6):
        board.write(step, {"loss": 1.0 / step, "reranker/nll": float(step)})
    board.close()
    assert scalars(tmp_path)["reranker/nll"] == {s: float(s) for s in range(1, 6)}
    # Killed after step 5, its last checkpoint was of step 3.
    board = TensorBoard(tmp_path, 3)
    board.write(4, {"loss": 40.0})
    board.close()
    assert scalars(tmp_path)["loss"] == pytest.approx({1: 1, 2: 1 / 2, 3: 1 / 3, 4: 40})


def test_a_stage_writes_its_metrics_to_tensorboard_too(tmp_path):
    pytest.importorskip("tensorboard")
    context = Context(Run(str(tmp_path / "run"), tensorboard=True), {"sft": Run("x")}, "sft")
    context.manifest({})
    context.begin()
    context.truncate_metrics(0)
    context.metrics(1, loss=0.5, note="text", flag=True)
    context.finish()
    assert scalars(tmp_path / "run" / "sft" / "tensorboard") == {"loss": {1: 0.5}}


def test_weights_and_biases_keeps_one_run_for_a_stage(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    names = []
    for first in (0, 2):
        (watcher,) = trackers(
            Run("runs/a", wandb="project"), tmp_path / "a" / "sft", {"x": 1}, first
        )
        names.append((watcher._run.id, watcher._run.name))  # type: ignore[attr-defined]
        watcher.write(first + 1, {"loss": 0.5})
        watcher.close()
    assert names[0] == names[1] and names[0][1] == "a/sft"
    (other,) = trackers(Run("runs/b", wandb="project"), tmp_path / "b" / "sft", {"x": 1})
    assert other._run.id != names[0][0]  # type: ignore[attr-defined]
    other.close()
    assert list((tmp_path / "a" / "sft" / "wandb").glob("offline-run-*"))


def test_peaks_are_stated_or_left_out(tmp_path):
    assert Context(Run("runs/a"), {}, "x").peak_flops is None  # a CPU
    import jax

    assert Context(Run("runs/a", peak_flops=2e12), {}, "x").peak_flops == 2e12 * jax.device_count()
    with pytest.raises(InputError, match=r"run.peak_flops = -1\.0 must not be negative"):
        Run("runs/a", peak_flops=-1.0)
