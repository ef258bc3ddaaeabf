"""What a stage made before: set aside by number, bounded, and brought back.

A finished result is never displaced by an unfinished one: each has a number of its own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.files import read_json


def take_lock(root: Path, stage: str) -> Any:
    """Keep other processes off a stage until the file that is returned is closed.

    Raises:
      InputError: another one is at work on it.
    """
    import fcntl

    try:
        root.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{error.filename}: a file stands where the run directory should be"
        ) from None
    lock = (root / f".{stage}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"{root / stage}: another process is at work on this stage; wait for it "
            f"or choose another --run.directory"
        ) from None
    except OSError:
        pass  # a file system without locks
    return lock


def finished_seconds(directory: Path) -> float | None:
    """How long a finished stage took; None where it has not finished."""
    done = directory / "done.json"
    return float(read_json(done)["seconds"]) if done.is_file() else None


def previous(root: Path, stage: str) -> dict[int, Path]:
    """What a stage made before, by number, the oldest first."""
    numbered = {}
    for path in root.glob(f"{stage}.previous-*"):
        number = path.name.rpartition("-")[2]
        if number.isdigit() and path.is_dir():
            numbered[int(number)] = path
    return dict(sorted(numbered.items()))


def set_aside(
    root: Path, stage: str, log: Callable[[str], None], keep_unfinished: bool = False
) -> Path:
    """Move a stage's directory to the next number; of unfinished ones only the newest stays."""
    before = previous(root, stage)
    if not keep_unfinished and not (root / stage / "done.json").is_file():
        for path in before.values():
            if not (path / "done.json").is_file():
                _remove(path, "an unfinished attempt, and a newer one is set aside", log)
    aside = root / f"{stage}.previous-{max(before, default=0) + 1}"
    os.replace(root / stage, aside)
    return aside


def remove_oldest(root: Path, stage: str, keep: int, log: Callable[[str], None]) -> None:
    """Remove the oldest finished results beyond ``keep``; 0 keeps all."""
    finished = [p for p in previous(root, stage).values() if (p / "done.json").is_file()]
    for path in finished[: max(len(finished) - keep, 0)] if keep else []:
        _remove(path, f"run.keep_previous = {keep}", log)


def restore(root: Path, stage: str, number: int, log: Callable[[str], None]) -> None:
    """Bring back what a stage made before; what stands now takes the next number.

    Args:
      number: which; 0 takes the newest that finished.

    Raises:
      InputError: there is none of that number, or another process is at work on the stage.
    """
    before = previous(root, stage)
    finished = [n for n, path in before.items() if (path / "done.json").is_file()]
    if not number and finished:
        number = finished[-1]
    if number not in before:
        there = ", ".join(map(str, before)) or "none"
        raise InputError(
            f"{root / stage}: there is no previous result {number or ''}; there: {there}"
        )
    lock = take_lock(root, stage)
    try:
        if (root / stage).exists():
            aside = set_aside(root, stage, log, keep_unfinished=True)
            log(f"what stood in {root / stage} is now in {aside}")
        os.replace(before[number], root / stage)
        log(f"{root / stage} is again what stood in {before[number]}")
    finally:
        lock.close()


def _remove(path: Path, why: str, log: Callable[[str], None]) -> None:
    size = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    shutil.rmtree(path)
    log(f"removed {path}, {size / 2**20:,.1f} MiB ({why})")
