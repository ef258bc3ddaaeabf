"""What a run has recorded of questions: rollouts, predictions, and the question files behind them.

Stages are known by their ``run.json``, whose configuration names its class; those of classes that
are not listed here record nothing that is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.lists import SHUFFLED
from dynarag_jax.files import read_json
from dynarag_jax.parts import parts

ROLLOUTS = ("SampleRollouts", "Rollout", "Contrast", "Reference")
SAMPLED = ROLLOUTS[:2]
"""Of these, the ones whose lists a model of the run wrote."""
EVALUATIONS = ("Evaluate",)
BENCHES = ("Bench",)


@dataclass(frozen=True)
class ModelRecord:
    """A model that wrote lists, and how it was asked.

    Attributes:
      path: its directory.
      prompts: the stage's prompts, as recorded.
      dtype: type of weights and activations.
      seed: the run's.
    """

    path: Path
    prompts: Mapping[str, Any]
    dtype: str
    seed: int


@dataclass
class RecordFile:
    """A file of rollouts or predictions.

    Attributes:
      name: what it is called on the page: the stage, and what of it where there is more.
      kind: rollouts or predictions.
      paths: the file, or its parts while the stage is at work.
      models: by system; of rollouts by the empty name.
      first, last: of predictions, the systems before and after feedback, where the run says so.
      about: what the stage was asked to do, in words.
    """

    name: str
    kind: str
    paths: list[Path]
    models: dict[str, ModelRecord] = field(default_factory=dict)
    first: str = ""
    last: str = ""
    about: dict[str, Any] = field(default_factory=dict)


@dataclass
class QuestionSet:
    """A question file, and all that was recorded of its questions.

    Attributes:
      name: unique in the run.
      questions: the file.
      recorded: stage -> SHA-256 of the file when the stage read it.
    """

    name: str
    questions: Path
    recorded: dict[str, str] = field(default_factory=dict)
    files: list[RecordFile] = field(default_factory=list)


def find_sets(root: Path) -> list[QuestionSet]:
    """The question sets of a run, in the order in which its stages began.

    Raises:
      InputError: the directory is no run, or nothing in it is of questions.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such run; give a run's directory or its config file")
    records = {path.parent.name: read_json(path) for path in sorted(root.glob("*/run.json"))}
    # What a stage made before lies beside it under another name.
    begun = {name: r for name, r in records.items() if r.get("stage") == name}
    if not begun:
        raise InputError(f"{root}: no stage has run here")
    sets: dict[Path, QuestionSet] = {}
    for name in sorted(begun, key=lambda name: begun[name].get("starts", [])[:1]):
        record = begun[name]
        for what, found in _files_of(root, name, record, begun):
            source = record.get("inputs", {}).get(what)
            if not source or not found.paths:
                continue
            path = _now(root, record, source["path"])
            one = sets.setdefault(path.absolute(), QuestionSet("", path))
            one.recorded[name] = source.get("sha256", "")
            one.files.append(found)
    if not sets:
        known = ", ".join(begun)
        raise InputError(
            f"{root}: none of its stages ({known}) has recorded rollouts or predictions yet; run "
            f"the stages rollout, evaluate or bench first"
        )
    _name(root, list(sets.values()))
    return list(sets.values())


def _files_of(
    root: Path, name: str, record: Mapping[str, Any], begun: Mapping[str, Any]
) -> Iterator[tuple[str, RecordFile]]:
    """The record files of one stage, each with the name of the input that holds its questions."""
    config = record.get("config", {})
    kind = config.get("class")
    if kind in ROLLOUTS:
        asked = _model(root, record, "model") if kind in SAMPLED else None
        model = {} if asked is None else {"": asked}
        about = {key: config.get(key) for key in ("samples", "sampling", "reward")}
        yield (
            "questions",
            RecordFile(name, "rollouts", parts(root / name, "rollouts"), model, about=about),
        )
    elif kind in EVALUATIONS:
        models = {
            system: found
            for system in config.get("models", {})
            if (found := _model(root, record, system))
        }
        first, last = _before_after(name, config, begun)
        found = parts(root / name, "predictions")
        yield "questions", RecordFile(name, "predictions", found, models, first, last)
        asked = dict(zip([""], models.values(), strict=False))
        about = {"samples": config.get("samples"), "sampling": config.get("examples_sampling")}
        yield "questions", RecordFile(
            f"{name}, examples", "rollouts", parts(root / name, "examples"), asked,
            about=about | {"reward": config.get("reward")},
        )  # fmt: skip
    elif kind in BENCHES:
        models = {
            system: found
            for system in config.get("models", {})
            if (found := _model(root, record, f"model {system}"))
        }
        named = list(models)
        standing = {
            path.stem.partition(".part-")[0].removeprefix("predictions-")
            for path in (root / name).glob("predictions-*.jsonl")
        }
        for dataset in sorted(standing):
            yield dataset, RecordFile(
                f"{name}, {dataset}", "predictions", parts(root / name, f"predictions-{dataset}"),
                models,
                named[0] if len(named) > 1 else "", named[-1] if named else "",
            )  # fmt: skip


def _model(root: Path, record: Mapping[str, Any], what: str) -> ModelRecord | None:
    """The model among a stage's inputs; None where the lists came from elsewhere."""
    given, config = record.get("inputs", {}).get(what), record.get("config", {})
    if given is None or (config.get("server") or {}).get("url"):
        return None
    path = _now(root, record, given["path"])
    prompts = {k: v for k, v in (config.get("prompts") or {}).items() if k != "class"}
    return ModelRecord(path, prompts, config.get("dtype") or "float32", record.get("seed", 0))


def _before_after(
    stage: str, config: Mapping[str, Any], begun: Mapping[str, Any]
) -> tuple[str, str]:
    """The systems before and after feedback: as the run's report says, else the first and last."""
    models = list(config.get("models", {}))
    for record in begun.values():
        told = record.get("config", {})
        names = (told.get("before"), told.get("after"))
        tells = told.get("class") == "Report" and told.get("evaluation") == stage
        if tells and all(name in models for name in names):
            return str(names[0]), str(names[1])
    return (models[0] if len(models) > 1 else "", models[-1] if models else "")


def _now(root: Path, record: Mapping[str, Any], path: str) -> Path:
    """Where an input is, for who looks at the run from another folder than it was made in."""
    made_in = Path(record.get("run", {}).get("directory", ""))
    if made_in != Path() and Path(path).is_relative_to(made_in):
        return root / Path(path).relative_to(made_in)
    return Path(path)


def _name(root: Path, sets: list[QuestionSet]) -> None:
    """Name each set by its file, with as many folders as tell it from the others."""
    for one in sets:
        path = one.questions
        inside = path.absolute().is_relative_to(root.absolute())
        name = path.absolute().relative_to(root.absolute()) if inside else path
        one.name = str(name).removesuffix(".gz").removesuffix(".jsonl").removesuffix(".json")


def is_shuffled(system: str) -> bool:
    """Whether a system saw the candidates in another order than the question has them in."""
    return system.endswith(SHUFFLED)
