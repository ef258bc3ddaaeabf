"""``dynarag status``: what stands in a run, what would be made anew and why; it touches nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynarag_jax.config import Run, inherit
from dynarag_jax.errors import InputError
from dynarag_jax.files import read_json
from dynarag_jax.launch.config_file import read_config
from dynarag_jax.launch.directory import StageDirectory
from dynarag_jax.launch.manifests import Hashes
from dynarag_jax.launch.previous import finished_seconds, previous
from dynarag_jax.launch.progress import clock


@dataclass(frozen=True)
class StageStatus:
    """What is known of one stage.

    Attributes:
      state: done, unfinished, "not begun" or "to be made anew".
      reason: why it would be made anew, or when it finished.
      seconds: of work so far; None where it has not begun.
      size: bytes of its directory.
      previous: numbers of what it made before.
    """

    name: str
    state: str
    reason: str = ""
    seconds: float | None = None
    size: int = 0
    previous: tuple[int, ...] = ()


def run_status(target: str) -> tuple[Path, list[StageStatus]]:
    """The run's directory, and its stages in order.

    Args:
      target: a config file, whose values are compared with what stands; or a run's directory.

    Raises:
      InputError: the target is neither.
    """
    path = Path(target)
    if path.suffix == ".py":
        run, stages = read_config(path)
        filled = {name: inherit(run, stage) for name, stage in stages.items()}
        return Path(run.directory), _of_config(run, filled)
    if not path.is_dir():
        raise InputError(f"{path}: no such run; give a config file or a run's directory")
    records = {p.parent.name: read_json(p) for p in path.glob("*/run.json")}
    begun = {n: r for n, r in records.items() if r.get("stage") == n}
    if not begun:
        raise InputError(f"{path}: no stage has run here")
    order = sorted(begun, key=lambda name: begun[name]["starts"][:1])
    hashes = Hashes(path / ".hashes.json")
    return path, [_of_record(path, name, begun[name], hashes) for name in order]


def table(statuses: list[StageStatus]) -> str:
    """The stages as lines of text."""
    width = max(len(one.name) for one in statuses)
    lines = []
    for one in statuses:
        took = "" if one.seconds is None else clock(one.seconds)
        size = f"{one.size / 2**20:,.1f} MiB" if one.size else ""
        line = f"{one.name:<{width}}  {one.state:<16}{took:>9}{size:>14}"
        if one.reason:
            line += f"  {one.reason}"
        if one.previous:
            line += f"  (before: {', '.join(map(str, one.previous))})"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _of_config(run: Run, stages: Mapping[str, Any]) -> list[StageStatus]:
    root, statuses, anew = Path(run.directory), [], []
    for name in stages:
        record = root / name / "run.json"
        if not record.is_file():
            statuses.append(StageStatus(name, "not begun", previous=_numbers(root, name)))
            continue
        recorded = read_json(record)
        given = recorded.get("inputs", {})
        inputs = {n: _now(root, recorded, i["path"]) for n, i in given.items()}
        missing = [path for path in inputs.values() if not path.exists()]
        waits = [m for m in anew if any(_inside(root / m, path) for path in inputs.values())]
        if missing:
            state, reason = "to be made anew", f"{missing[0]} is gone"
        else:
            verdict, reason = StageDirectory(run, stages, name).judge(inputs)
            state = {"done": "done", "continue": "unfinished"}.get(verdict, "to be made anew")
            if verdict == "done":
                reason = read_json(root / name / "done.json")["finished"]
            if verdict == "done" and waits:
                reason += f"; anew, if '{waits[0]}' makes something else"
        if state == "to be made anew":
            anew.append(name)
        statuses.append(_status(root, name, state, _with_rounds(root / name, reason), recorded))
    return [*statuses, *_rounds(root, stages)]


def _rounds(root: Path, stages: Mapping[str, Any]) -> list[StageStatus]:
    """What stages that are repeated made in later rounds, ``NAME_2`` and so on, oldest first."""
    found = []
    for path in root.glob("*_*/run.json"):
        name = path.parent.name
        base, _, number = name.rpartition("_")
        if base in stages and number.isdigit() and name not in stages:
            found.append((read_json(path)["starts"][:1], name))
    hashes = Hashes(root / ".hashes.json")
    return [
        _of_record(root, name, read_json(root / name / "run.json"), hashes)
        for _, name in sorted(found)
    ]


def _with_rounds(directory: Path, reason: str) -> str:
    """The reason, with what rounds have reached so far."""
    if not (path := directory / "rounds.json").is_file():
        return reason
    said = read_json(path)
    reached = ", ".join(f"{row['round']}: {row['figure']:.4f}" for row in said["rounds"])
    text = f"{said['figure']} by round {reached}; the best is {said['best']}"
    return f"{reason}; {text}" if reason else text


def _of_record(root: Path, name: str, recorded: Mapping[str, Any], hashes: Hashes) -> StageStatus:
    for what, one in recorded.get("inputs", {}).items():
        path = _now(root, recorded, one["path"])
        if not path.exists():
            reason = f"input '{what}' ({path}) is gone"
        elif hashes.content(path) != one["sha256"]:
            reason = f"input '{what}' changed"
        else:
            continue
        return _status(root, name, "to be made anew", reason, recorded)
    finished = finished_seconds(root / name) is not None
    reason = read_json(root / name / "done.json")["finished"] if finished else ""
    reason = _with_rounds(root / name, reason)
    return _status(root, name, "done" if finished else "unfinished", reason, recorded)


def _status(
    root: Path, name: str, state: str, reason: str, recorded: Mapping[str, Any]
) -> StageStatus:
    size = sum(p.stat().st_size for p in (root / name).rglob("*") if p.is_file())
    return StageStatus(name, state, reason, recorded["seconds"], size, _numbers(root, name))


def _numbers(root: Path, name: str) -> tuple[int, ...]:
    return tuple(previous(root, name))


def _now(root: Path, recorded: Mapping[str, Any], path: str) -> Path:
    """Where an input is, for who looks at the run from another folder than it was made in."""
    made_in = Path(recorded["run"]["directory"])
    if Path(path).is_relative_to(made_in):
        return root / Path(path).relative_to(made_in)
    return Path(recorded.get("folder", "")) / path


def _inside(directory: Path, path: Path) -> bool:
    return path.absolute().is_relative_to(directory.absolute())
