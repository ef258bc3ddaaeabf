"""What a stage's directory records, and when a stage stands, continues or is made anew."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from dynarag_jax.config import Mesh, Run
from dynarag_jax.errors import InputError
from dynarag_jax.files import sha256_file
from dynarag_jax.launch import manifests as record
from dynarag_jax.launch import pipeline as launch_pipeline
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.options import load_config
from dynarag_jax.launch.program import run_stage


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def load(path: Path):
    return json.loads(path.read_text())


# ---------------------------------------------------------------------------- what stands


def count_words(context: Context, stage) -> None:
    source = context.path(stage.source)
    context.manifest(inputs={"words": source})
    (context.begin() / "counted.txt").write_text(f"{len(source.read_text().split())}\n")


def run_one(stage: str = "count", *overrides: str) -> bool:
    run, stages = load_config("good.py", overrides)
    return run_stage(Context(run, stages, stage), count_words)


def test_a_manifest_says_what_made_the_stage(place):
    assert run_one("count", "--run.seed", "5", "--count.pace.rate", "0.25")
    record = load(place / "runs/a/count/run.json")
    assert record["status"] == "done"
    assert record["seed"] == 5
    assert record["config"]["pace"] == {"class": "Pace", "rate": 0.25, "order": "up"}
    assert record["config"]["tops"] == [1, 2]
    assert record["run"]["mesh"]["data"] == -1
    assert record["inputs"] == {
        "words": {"path": "words.txt", "sha256": sha256_file(place / "words.txt")}
    }
    assert record["versions"]["jax"] == jax.__version__
    assert record["python"] == ".".join(map(str, sys.version_info[:3]))
    assert record["devices"]["count"] == jax.device_count()
    assert 0 <= record["seconds"] < 60
    # This process holds JAX: more than 50 MB, and its high-water mark is above what it holds now.
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert record["peak_memory_bytes"] >= 0.9 * pages * os.sysconf("SC_PAGE_SIZE") > 50e6


def test_prompts_are_cut_where_language_models_train_alone():
    run = Run("runs/a", mesh=Mesh(data=1, fsdp=-1, sequence=2, tensor=2))
    context = Context(run, {}, "count")
    count = jax.device_count()
    assert dict(context.training_mesh.shape) == {
        "data": 1, "fsdp": count // 4, "sequence": 2, "tensor": 2
    }  # fmt: skip
    assert dict(context.mesh.shape) == {"data": 1, "fsdp": count // 2, "tensor": 2}
    assert context.mesh.devices.flat[:].tolist() == context.training_mesh.devices.flat[:].tolist()
    context = Context(Run("runs/a", mesh=Mesh(sequence=1)), {}, "count")
    assert context.mesh is context.training_mesh
    with pytest.raises(InputError, match=r"mesh \(1, 1, 0, 1\): sizes are positive"):
        Mesh(data=1, sequence=0)


def test_what_is_done_is_left_alone_and_what_changed_is_made_anew(place, capsys):
    assert run_one()
    before = (place / "runs/a/count/done.json").read_bytes()
    assert not run_one()
    assert "[count] done already" in capsys.readouterr().err
    assert (place / "runs/a/count/done.json").read_bytes() == before

    def redone(reason: str, *overrides: str) -> None:
        assert run_one("count", *overrides)
        said = capsys.readouterr().err
        assert f"[count] to be made anew, {reason}; what stands took 0:00" in said
        assert f"[count] making it anew, {reason}; what stood" in said
        assert not run_one("count", *overrides)
        capsys.readouterr()

    redone("steps was 4 and is 5", "--count.steps", "5")
    redone("steps was 5 and is 4; pace.rate was 0.5 and is 1.0", "--count.pace.rate", "1")
    redone("pace.rate was 1.0 and is 0.5; seed was 0 and is 1", "--run.seed", "1")
    (place / "words.txt").write_text("one two three four")
    redone("input 'words' changed", "--run.seed", "1")
    assert (place / "runs/a/count/counted.txt").read_text() == "4\n"
    assert (place / "runs/a/count.previous-4/counted.txt").read_text() == "3\n"
    (place / "runs/a/count/counted.txt").unlink()
    redone("counted.txt was changed or removed", "--run.seed", "1")
    # Where the run computes is no part of what it computes.
    assert not run_one("count", "--run.seed", "1", "--run.cpu_devices", "3")


@pytest.mark.slow  # nine processes
def test_a_pipeline_makes_only_what_a_change_reaches(place, counting, monkeypatch, capsys):
    def run(context: Context, stage) -> None:
        count_words(context, stage)

    run.__annotations__["stage"] = counting.Count
    run.__module__ = "counting"
    monkeypatch.setattr(counting, "run", run, raising=False)
    (place / "good.py").write_text(
        (place / "good.py").read_text().replace('"report": Report(),', "")
    )

    def pipeline(*overrides: str) -> list[str]:
        with pytest.raises(SystemExit) as stop:
            launch_pipeline.main(["good.py", *overrides])
        said = capsys.readouterr().err
        assert stop.value.code == 0, said
        return re.findall(r"^\[\d/\d\] (\w+): done in", said, re.MULTILINE)

    assert pipeline("--only", "count") == ["count"]
    assert not (place / "runs/a/again").exists()
    assert pipeline() == ["again"]
    (place / "words.txt").write_text("one two three four five")
    assert pipeline() == ["count", "again"]
    assert pipeline() == []
    assert pipeline("--again.steps", "9") == ["again"]
    # The first stage is made anew and writes the same bytes: the second still stands.
    assert pipeline("--again.steps", "9", "--count.steps", "9") == ["count"]
    (place / "words.txt").write_text("one")
    assert pipeline("--again.steps", "9", "--count.steps", "9") == ["count", "again"]
    with pytest.raises(SystemExit):
        launch_pipeline.main(["good.py", "--only", "agian"])
    assert "--only agian: good.py has no such stage (did you mean 'again'?)" in (
        capsys.readouterr().err
    )
    monkeypatch.delattr(counting, "run")
    with pytest.raises(SystemExit) as stop:
        launch_pipeline.main(["good.py"])
    assert stop.value.code == 2
    assert "stage 'count': no program runs a Count" in capsys.readouterr().err


def test_is_done_asks_without_touching_anything(place):
    run, stages = load_config("good.py")
    context = Context(run, stages, "count")
    assert not context.is_done({"words": "words.txt"})
    assert not (place / "runs").exists()
    run_one()
    assert context.is_done({"words": "words.txt"})
    assert not context.is_done({"words": "good.py"})
    assert not context.is_done({"words": "words.txt", "more": "good.py"})


def test_two_classes_of_equal_fields_are_not_taken_for_each_other(place, counting):
    @dataclasses.dataclass(frozen=True)
    class Retort:
        counted: str = "{run}/count/counted.txt"

    def run_it(stage) -> bool:
        context = Context(Run(directory="runs/b"), {"x": stage}, "x")
        return run_stage(context, lambda context, stage: context.manifest(inputs={}))

    assert run_it(counting.Report())
    assert not run_it(counting.Report())
    assert run_it(Retort())


def test_a_manifest_says_what_led_to_a_stage_whatever_ran_since(place):
    run, stages = load_config("good.py")

    def made(name):
        found = []

        def body(context, stage):
            context.manifest(inputs={})
            with pytest.raises(RuntimeError, match="begin"):
                context.made_by()
            context.begin()
            found.append(context.made_by())

        shutil.rmtree(Path(run.directory) / name, ignore_errors=True)
        assert run_stage(Context(run, stages, name), body)
        return found[0]

    before = made("count")
    assert list(before) == ["count"]
    assert list(made("again")) == ["count", "again"]
    assert made("count") == before


def test_directories_are_inputs_by_names_and_contents(place, counting):
    run = Run(directory="runs/b")
    (place / "model/deep").mkdir(parents=True)
    (place / "model/deep/a").write_text("a")
    context = Context(run, {"count": counting.Count()}, "count")

    def body(context, stage):
        context.manifest(inputs={"model": "model"})

    assert run_stage(context, body)
    assert context.is_done({"model": "model"})
    (place / "model/deep/a").write_text("b")
    assert not context.is_done({"model": "model"})
    (place / "model/deep/a").write_text("a")
    assert context.is_done({"model": "model"})
    (place / "model/deep/a").rename(place / "model/a")
    assert not context.is_done({"model": "model"})


def test_the_hash_of_a_large_file_is_remembered_until_it_changes(place, monkeypatch):
    monkeypatch.setattr(record, "LARGE", 4)
    hashes = record.Hashes(place / ".hashes.json")
    first = hashes.content(place / "words.txt")
    assert first == sha256_file(place / "words.txt")
    monkeypatch.setattr(record, "sha256_file", lambda path: pytest.fail("read it again"))
    assert record.Hashes(place / ".hashes.json").content(place / "words.txt") == first
    monkeypatch.undo()
    monkeypatch.setattr(record, "LARGE", 4)
    (place / "words.txt").write_text("other words")
    assert hashes.content(place / "words.txt") == sha256_file(place / "words.txt")


def test_inputs_must_exist_and_their_stages_have_finished(place):
    with pytest.raises(InputError) as caught:
        run_one("again")
    assert str(caught.value) == (
        "runs/a/count/counted.txt: no such file ('words' of stage 'again'); run stage 'count' first"
    )
    assert not (place / "runs/a/again").exists()

    def fails(context, stage):
        count_words(context, stage)
        raise RuntimeError("half-way")

    run, stages = load_config("good.py")
    with pytest.raises(RuntimeError):
        run_stage(Context(run, stages, "count"), fails)
    assert load(place / "runs/a/count/run.json")["status"] == "stopped"
    assert not (place / "runs/a/count/done.json").exists()
    with pytest.raises(InputError, match="stage 'count', which makes it, has not finished"):
        run_one("again")
    run_one("count")
    assert len(load(place / "runs/a/count/run.json")["starts"]) == 2
    assert run_one("again")
    with pytest.raises(InputError, match="no such file"):
        run_one("count", "--count.source", "missing.txt")
    with pytest.raises(InputError, match="is empty"):
        run_one("count", "--count.source", "")
    with pytest.raises(InputError, match="cannot read its own output"):
        run_one("count", "--count.source", "{run}/count/counted.txt")


def test_a_second_process_is_kept_off_a_stage(place):
    (place / "runs/a").mkdir(parents=True)
    with (place / "runs/a/.count.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is at work on this stage"):
            run_one()
    assert run_one()


# ---------------------------------------------------------------------------- metrics


def test_metrics_are_whole_lines_and_resume_without_doubles(place, counting):
    context = Context(Run(directory="runs/m"), {"count": counting.Count()}, "count")
    context.manifest({})
    with pytest.raises(RuntimeError, match=r"context\.begin\(\) opens its directory"):
        context.metrics(2, loss=1.0)
    context.begin()
    for step in (2, 4, 6):
        context.metrics(step, loss=jnp.float32(step / 2), count=step)
    path = place / "runs/m/count/metrics.jsonl"
    with path.open("a") as lines:
        lines.write('{"stage": "count", "step": 8, "lo')  # killed in mid-write
    context.abandon()
    later = Context(Run(directory="runs/m"), {"count": counting.Count()}, "count")
    later.manifest({})
    assert place / later.unfinished == place / later.begin() == path.parent
    later.truncate_metrics(4)
    later.metrics(6, loss=30.0)
    assert [(r["step"], r["loss"]) for r in records(path)] == [(2, 1.0), (4, 2.0), (6, 30.0)]
    assert {r["stage"] for r in records(path)} == {"count"}
    assert all(abs(r["time"] - time.time()) < 60 for r in records(path))
    for bad in (float("nan"), jnp.float32("inf")):
        with pytest.raises(InputError, match=r"loss is (nan|inf) at step 9"):
            later.metrics(9, loss=bad)
    assert len(records(path)) == 3


def test_a_run_directory_needs_a_free_place(place):
    (place / "runs").write_text("not a directory")
    with pytest.raises(InputError, match="a file stands where the run directory should be"):
        run_one()


def test_fields_that_change_nothing_of_the_result_leave_a_stage_standing(place):
    from dynarag_jax.launch.manifests import plain, significant
    from dynarag_jax.sampling.requests import EngineConfig
    from dynarag_jax.stages import Evaluate, SampleRollouts, Sft

    # Results are equal whatever these are: tests of training and of the engine show it.
    for stage, changes in [
        (Sft(), {"log_every": 3, "keep": 7, "profile": (1, 2)}),
        (SampleRollouts(), {"batch": 3, "engine": EngineConfig(chunk=7)}),
        (Evaluate(), {"batch": 5}),
    ]:
        other = dataclasses.replace(stage, **changes)
        assert plain(other) != plain(stage)
        assert significant(plain(other), stage) == significant(plain(stage), stage)
    wider = dataclasses.replace(Sft(), steps=7)
    assert significant(plain(wider), Sft()) != significant(plain(Sft()), Sft())
