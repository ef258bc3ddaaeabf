"""A stage's directory: what the stage stands for, and whether it is done.

    sft/
      run.json        what made it: configuration, seed, versions, inputs, devices, time, memory
      metrics.jsonl   one line per report, whole lines only
      done.json       written last: the stage stands, for the configuration and inputs it names
      ...             what the stage makes
    sft.previous/     what stood there before a changed configuration made it anew

A stage stands for exactly one configuration, seed and set of input files: ``begin`` decides whether
it is done, can be continued, or must be made anew.
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
    versions,
)
from dynarag_jax.launch.progress import clock

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
        self._hashes = Hashes(self._root / ".hashes.json")

    @property
    def begun(self) -> bool:
        """Whether ``begin`` has written this stage's record."""
        return bool(self._record)

    def require(self, inputs: Mapping[str, PathLike], unfinished: Collection[str] = ()) -> None:
        """Check that the stage's inputs exist, and that the stages they come from have finished.

        Args:
          unfinished: names of inputs that may come from a stage that has not finished.

        Raises:
          InputError: one does not.
        """
        for name, path in inputs.items():
            self._require(name, Path(path), name in unfinished)

    def is_done(self, inputs: Mapping[str, PathLike]) -> bool:
        """Whether the stage stands, made by this configuration and seed from these very files."""
        return self._judge(self._key(inputs))[0] == "done"

    def begin(self, inputs: Mapping[str, PathLike], log: Callable[[str], None]) -> bool:
        """Take the stage's lock and make its directory ready; whether it is done already.

        Raises:
          InputError: another process is at work on this stage.
        """
        self._take_lock()
        key = self._key(inputs)
        verdict, reason = self._judge(key)
        if verdict == "done":
            log(f"done already ({reason})")
        else:
            self._start(key, inputs, verdict, reason, log)
        return verdict == "done"

    def finish(self) -> str:
        """Record that the stage stands: run.json, then done.json; returns how long it took."""
        self._write_end("done")
        outputs = {
            path.name: path.stat().st_size if path.is_file() else None
            for path in sorted(self.path.iterdir())
            if path.name not in RECORDS
        }
        done = {"finished": now(), "seconds": self._record["seconds"], "outputs": outputs}
        write_json(self.path / "done.json", done)
        self.release()
        return clock(self._record["seconds"])

    def abandon(self) -> None:
        """Record that the stage was cut off."""
        if self._record:
            self._write_end("stopped")

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
        if changed := differences(before, key):
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
        self,
        key: dict[str, Any],
        inputs: Mapping[str, PathLike],
        verdict: str,
        reason: str,
        log: Callable[[str], None],
    ) -> None:
        """Make the directory ready and write run.json."""
        starts: list[str] = []
        if verdict == "redo":
            aside = self._root / f"{self._stage}.previous"
            if aside.exists():
                shutil.rmtree(aside)
            os.replace(self.path, aside)
            log(f"making it anew, {reason}; what stood there is now in {aside}")
        elif verdict == "continue":
            record = read_json(self.path / "run.json")
            starts, self._earlier = record["starts"], record["seconds"]
            log("continuing what was cut off")
        self.path.mkdir(parents=True, exist_ok=True)
        self._began = time.monotonic()
        self._record = {
            "stage": self._stage,
            "status": "running",
            "command": shlex.join(["python", *sys.orig_argv[1:]]),
            "config": key["config"],
            "seed": key["seed"],
            "run": plain(self._run),
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
        """Keep a second process off this stage; the lock ends with the process."""
        import fcntl

        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(
                f"{error.filename}: a file stands where the run directory should be"
            ) from None
        self._lock = (self._root / f".{self._stage}.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self.path}: another process is at work on this stage; wait for it "
                f"or choose another --run.directory"
            ) from None
        except OSError:
            pass  # a file system without locks
