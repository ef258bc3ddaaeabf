"""A stage's directory: what the stage stands for, and whether it is done.

    sft/
      run.json        what made it: configuration, seed, versions, inputs, devices, time, memory
      metrics.jsonl   one line per report, whole lines only
      done.json       written last: the stage stands, for the configuration and inputs it names
      ...             what the stage makes
    sft.previous-1/   what stood there before it was made anew; ``dynarag restore`` brings it back

A stage stands for exactly one configuration, seed and set of input files: ``open`` decides whether
it is done, can be continued, or must be made anew. What stands is moved only by ``begin``, when the
new attempt is about to write, and comes back where it fails before it has made anything.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.files import PathLike, read_json, write_json
from dynarag_jax.launch.manifests import (
    Hashes,
    devices,
    differences,
    now,
    peak_memory,
    plain,
    significant,
    versions,
)
from dynarag_jax.launch.previous import finished_seconds, remove_oldest, set_aside, take_lock
from dynarag_jax.launch.progress import clock

WORTH_ASKING = 60.0
"""seconds of work from which on it is asked before a finished stage is made anew"""

RECORDS = ("run.json", "done.json", "metrics.jsonl")
"""Files in a stage directory that no stage makes itself."""


class StageDirectory:
    """What one stage of a run stands for.

    Attributes:
      path: the directory.
    """

    def __init__(self, run: Run, stages: Mapping[str, Any], stage: str):
        self._run, self._stages, self._stage = run, stages, stage
        self._root = Path(run.directory)
        self.path = self._root / stage
        self._record: dict[str, Any] = {}
        self._earlier, self._began = 0.0, time.monotonic()
        self._lock: Any = None
        self._next: tuple[dict[str, Any], dict[str, PathLike], str, str] | None = None
        self._aside: Path | None = None
        self._log: Callable[[str], None] = lambda text: None
        self._hashes = Hashes(self._root / ".hashes.json")

    @property
    def begun(self) -> bool:
        """Whether ``open`` has found something to do."""
        return self._next is not None or bool(self._record)

    def require(self, inputs: Mapping[str, PathLike], unfinished: Collection[str] = ()) -> None:
        """Check that the stage's inputs exist, and that the stages they come from have finished.

        Args:
          unfinished: names of inputs that may come from a stage that has not finished.

        Raises:
          InputError: one does not.
        """
        for name, path in inputs.items():
            self._require(name, Path(path), name in unfinished)

    def judge(self, inputs: Mapping[str, PathLike]) -> tuple[str, str]:
        """What these inputs would make of the stage, touching nothing.

        Returns:
          One of done, continue, fresh and redo, and why.
        """
        return self._judge(self._key(inputs))

    def open(
        self,
        inputs: Mapping[str, PathLike],
        log: Callable[[str], None],
        consent: Callable[[str], bool] = lambda question: True,
    ) -> str:
        """Take the stage's lock and find out what is to be done, moving nothing.

        Args:
          consent: asked before a finished stage is made anew that took long to make.

        Returns:
          One of done, continue, fresh and redo.

        Raises:
          InputError: another process is at work on this stage, or ``consent`` was not given.
        """
        self._take_lock()
        self._log = log
        key = self._key(inputs)
        verdict, reason = self._judge(key)
        if verdict == "done":
            log(f"done already ({reason})")
            return verdict
        seconds = finished_seconds(self.path)
        if verdict == "redo" and seconds is not None:
            took = f"{self._stage}: {clock(seconds)} of work"
            log(f"to be made anew, {reason}; what stands took {clock(seconds)}")
            if seconds >= WORTH_ASKING and not consent(f"make anew what stands ({took})?"):
                raise InputError(f"{self.path}: left as it is; --yes makes it anew without asking")
        self._next = (key, dict(inputs), verdict, reason)
        return verdict

    def begin(self) -> None:
        """Make the directory ready for writing; what is to be made anew is set aside.

        Raises:
          RuntimeError: ``open`` was not called, or found it done.
        """
        if not self.begun:
            raise RuntimeError(f"stage '{self._stage}' begins without a manifest")
        if self._next is not None:
            (key, inputs, verdict, reason), self._next = self._next, None
            self._start(key, inputs, verdict, reason)

    def finish(self) -> str:
        """Record that the stage stands: run.json, then done.json; returns how long it took."""
        self.begin()
        self._write_end("done")
        outputs = {
            path.name: path.stat().st_size if path.is_file() else None
            for path in sorted(self.path.iterdir())
            if path.name not in RECORDS
        }
        done = {"finished": now(), "seconds": self._record["seconds"], "outputs": outputs}
        write_json(self.path / "done.json", done)
        remove_oldest(self._root, self._stage, self._run.keep_previous, self._log)
        self.release()
        return clock(self._record["seconds"])

    def abandon(self) -> None:
        """Record that the stage was cut off; what it set aside returns if it made nothing."""
        self._next = None
        if not self._record:
            return
        self._write_end("stopped")
        made = [p for p in self.path.rglob("*") if p.is_file() and p.stat().st_size]
        if self._aside is not None and all(path.name == "run.json" for path in made):
            shutil.rmtree(self.path)
            os.replace(self._aside, self.path)
            self._log(f"nothing was made; {self.path} is again what it was")
        self._record = {}

    def release(self) -> None:
        """Give the stage's lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # ------------------------------------------------------------------ what stands

    def _require(self, name: str, path: Path, unfinished: bool) -> None:
        root, absolute = self._root.absolute(), path.absolute()
        inside = absolute.relative_to(root).parts if absolute.is_relative_to(root) else ()
        maker = inside[0] if inside and inside[0] in self._stages else ""
        if maker == self._stage:
            raise InputError(f"{path}: stage '{maker}' cannot read its own output ('{name}')")
        begun = maker and (self._root / maker / "run.json").exists()
        if not unfinished and begun and not (self._root / maker / "done.json").exists():
            raise InputError(
                f"{path}: stage '{maker}', which makes it, has not finished; run it first"
            )
        if not path.exists():
            mend = f"; run stage '{maker}' first" if maker else ""
            raise InputError(f"{path}: no such file ('{name}' of stage '{self._stage}'){mend}")

    def _key(self, inputs: Mapping[str, PathLike]) -> dict[str, Any]:
        """What the stage stands for."""
        return {
            "config": plain(self._stages[self._stage]),
            "seed": self._run.seed,
            "inputs": {name: self._hashes.content(Path(path)) for name, path in inputs.items()},
        }

    def _judge(self, key: dict[str, Any]) -> tuple[str, str]:
        """One of done, continue, fresh and redo, and why."""
        run, done = self.path / "run.json", self.path / "done.json"
        if not run.exists():
            return "fresh", ""
        record = read_json(run)
        before = {name: record.get(name) for name in ("config", "seed")}
        before["inputs"] = {n: i.get("sha256") for n, i in record.get("inputs", {}).items()}
        config = self._stages[self._stage]
        before["config"] = significant(before["config"], config)
        if changed := differences(before, key | {"config": significant(key["config"], config)}):
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            return "redo", "; ".join(changed[:3]) + more
        if not done.exists():
            return "continue", ""
        finished = read_json(done)
        for name, size in finished["outputs"].items():
            path = self.path / name
            if not path.exists() or (size is not None and path.stat().st_size != size):
                return "redo", f"{name} was changed or removed"
        return "done", f"{finished['finished']}, {clock(finished['seconds'])}"

    def _start(
        self, key: dict[str, Any], inputs: Mapping[str, PathLike], verdict: str, reason: str
    ) -> None:
        """Make the directory ready and write run.json."""
        starts: list[str] = []
        if verdict == "redo":
            self._aside = set_aside(self._root, self._stage, self._log)
            self._log(f"making it anew, {reason}; what stood there is now in {self._aside}")
        elif verdict == "continue":
            record = read_json(self.path / "run.json")
            starts, self._earlier = record["starts"], record["seconds"]
            self._log("continuing what was cut off")
        self.path.mkdir(parents=True, exist_ok=True)
        self._began = time.monotonic()
        self._record = {
            "stage": self._stage,
            "status": "running",
            "command": shlex.join(["python", *sys.orig_argv[1:]]),
            "config": key["config"],
            "seed": key["seed"],
            "run": plain(self._run),
            "folder": os.getcwd(),
            "inputs": {
                name: {"path": str(path), "sha256": key["inputs"][name]}
                for name, path in inputs.items()
            },
            "starts": [*starts, now()],
            "seconds": self._earlier,
            "versions": versions(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "devices": devices(),
        }
        write_json(self.path / "run.json", self._record)

    def _write_end(self, status: str) -> None:
        self._record |= {
            "status": status,
            "seconds": round(self._earlier + time.monotonic() - self._began, 3),
            "peak_memory_bytes": peak_memory(),
        }
        write_json(self.path / "run.json", self._record)

    def _take_lock(self) -> None:
        self._lock = take_lock(self._root, self._stage)
