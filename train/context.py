"""What a stage's program works with: its directory, its record of itself, its voice.

    directory/
      sft/
        run.json        what made it: configuration, seed, versions, inputs, devices, time, memory
        metrics.jsonl   one line per report, whole lines only
        done.json       written last: the stage stands, for the configuration and inputs it names
        ...             what the stage makes
      sft.previous/     what stood there before a changed configuration made it anew

A stage stands for exactly one configuration, seed and set of input files: ``manifest`` decides
whether it is done, can be continued, or must be made anew.
"""

from __future__ import annotations

import functools
import math
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.hub import model_directory
from dynarag_jax.files import (
    JsonlAppender,
    PathLike,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)
from dynarag_jax.hardware import of_kind
from dynarag_jax.policy.tokens import TokenCache
from dynarag_jax.sharding import make_mesh
from train.progress import Progress, clock, say
from train.record import (
    Hashes,
    devices,
    differences,
    manifest_of,
    now,
    peak_memory,
    plain,
    versions,
)
from train.watch import Watcher, watchers

RECORDS = ("run.json", "done.json", "metrics.jsonl")
"""The context's own files in a stage directory."""


class StageDone(Exception):
    """Raised by ``Context.manifest`` when nothing is left to do; the program ends well."""


class Context:
    """One stage of a run, as its program sees it.

    In a run of several processes only process 0 writes logs, metrics and records.

    Attributes:
      run: the run's configuration.
      stages: the configuration of every stage of the run, in order.
      stage: the name of this stage.
      directory: the run's directory.
      stage_directory: the stage's own directory in it.
      seed: the run's seed.
    """

    def __init__(self, run: Run, stages: Mapping[str, Any], stage: str):
        self.run, self.stages, self.stage = run, stages, stage
        self.directory = Path(run.directory)
        self.stage_directory = self.directory / stage
        self.seed = run.seed
        self._record: dict[str, Any] = {}
        self._earlier, self._began = 0.0, time.monotonic()
        self._metrics: JsonlAppender | None = None
        self._watchers: list[Watcher] | None = None
        self._lock: Any = None
        self._hashes = Hashes(self.directory / ".hashes.json")

    @property
    def config(self) -> Any:
        """The stage's configuration."""
        return self.stages[self.stage]

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The run's mesh over all devices."""
        sizes = self.run.mesh
        return make_mesh(sizes.data, sizes.fsdp, sizes.tensor, slices=sizes.slices)

    @functools.cached_property
    def token_cache(self) -> TokenCache | None:
        """The run's tokenized prompts on disk; None where it keeps none."""
        place = self.run.token_cache
        if place == "off":
            return None
        return TokenCache(Path(place) if place else self.directory / ".prompts")

    @property
    def peak_flops(self) -> float | None:
        """Operations a second of all devices together; None where nobody has stated them."""
        known = of_kind(jax.devices()[0].device_kind)
        each = self.run.peak_flops or (known.peak if known else 0)
        return each * jax.device_count() or None

    @functools.cached_property
    def primary(self) -> bool:
        """Whether this process writes; true of one process."""
        return not jax.distributed.is_initialized() or jax.process_index() == 0

    def require_one_process(self) -> None:
        """Refuse to run as one of several processes what samples or writes for all of them.

        Raises:
          InputError: this process is one of several.
        """
        if jax.process_count() > 1:
            raise InputError(
                f"stage '{self.stage}' runs in one process, with all accelerators of its host, and "
                f"this is one of {jax.process_count()}; start it on one host alone"
            )

    # ------------------------------------------------------------------ paths

    def path(self, text: str) -> Path:
        """A path of the configuration; ``{run}`` stands for the run's directory.

        Raises:
          InputError: the path is empty.
        """
        if not text:
            raise InputError(f"stage '{self.stage}': a path of its configuration is empty")
        return Path(text.replace("{run}", str(self.directory)))

    def model(self, text: str) -> Path:
        """A model's directory: as ``path``, or a hub id by way of the hub's cache.

        Raises:
          InputError: the path is empty, or the hub does not give the model.
        """
        path = self.path(text)
        local = path.exists() or "{run}" in text or text.startswith((".", "/", "~"))
        return path if local or text.count("/") != 1 else model_directory(text)

    def optional_model(self, text: str) -> Path | None:
        """As ``model``; None where it is empty."""
        return self.model(text) if text else None

    # ------------------------------------------------------------------ voice

    def log(self, text: str) -> None:
        """Say something on the terminal."""
        if self.primary:
            for line in text.splitlines() or [""]:
                say(f"[{self.stage}] {line}")

    def progress(self, total: int | None = None, description: str = "") -> Progress:
        """A bar with rate and time left, or lines where there is no terminal; a context manager."""
        return Progress(total, description or self.stage, shown=self.primary)

    def metrics(self, step: int, **figures: Any) -> None:
        """Append one line of figures to the stage's metrics.jsonl.

        Raises:
          InputError: a figure is NaN or infinite.
        """
        if not self.primary:
            return
        line = {"stage": self.stage, "step": int(step), "time": round(time.time(), 3)}
        for name, value in figures.items():
            if isinstance(value, np.ndarray | np.generic | jax.Array):
                value = value.item()
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(
                    f"stage '{self.stage}': {name} is {value} at step {step}, and nothing that "
                    f"follows can be trusted; a smaller learning rate or other data may help"
                )
            line[name] = value
        if self._metrics is None:
            self._metrics = JsonlAppender(self._metrics_path, key=lambda r: str(r.get("step")))
        self._metrics.append(line)
        for watcher in self._watching(0):
            numbers = {k: v for k, v in line.items() if k in figures and _is_number(v)}
            watcher.write(line["step"], numbers)

    def _watching(self, first: int) -> list[Watcher]:
        if self._watchers is None:
            config = plain(self.config)
            self._watchers = watchers(self.run, self.stage_directory, config, first)
        return self._watchers

    def truncate_metrics(self, step: int) -> None:
        """Forget what was reported after ``step``: a stage that continues reports it again."""
        if not self.primary:
            return
        self._close_metrics()
        # Opening cuts off an unfinished last line, the trace of a kill.
        JsonlAppender(self._metrics_path, key=lambda r: str(r.get("step"))).close()
        lines = [line for _, line in read_jsonl(self._metrics_path)]
        kept = [line for line in lines if line.get("step", 0) <= step]
        if len(kept) < len(lines):
            write_jsonl(self._metrics_path, kept)
        self._watching(step)

    @property
    def _metrics_path(self) -> Path:
        return self.stage_directory / "metrics.jsonl"

    def _close_metrics(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        for watcher in self._watchers or ():
            watcher.close()
        self._watchers = None

    def made_by(self) -> dict[str, Any]:
        """The run's manifest for model cards: what each stage that has run stands for."""
        return manifest_of(self.directory, self.stages)

    # ------------------------------------------------------------------ what stands

    def is_done(self, inputs: Mapping[str, PathLike]) -> bool:
        """Whether the stage stands, made by this configuration and seed from these very files."""
        return self._judge(self._key(inputs))[0] == "done"

    def manifest(self, inputs: Mapping[str, PathLike], unfinished: Collection[str] = ()) -> None:
        """Name the files and directories the stage reads; call this before it writes anything.

        Args:
          unfinished: names of inputs that may come from a stage that has not finished.

        A stage that stands for them is left as it is; one that was cut off is continued; one made
        by another configuration, seed or other inputs is set aside as ``STAGE.previous``, and the
        stage starts afresh. The log says which, and why.

        Raises:
          StageDone: nothing is left to do. ``run_stage`` takes it for success.
          InputError: an input is missing or comes from a stage that has not finished; another
            process is at work on this stage.
        """
        for name, path in inputs.items():
            self._require(name, Path(path), name in unfinished)
        verdict = ""
        if self.primary:
            self._take_lock()
            key = self._key(inputs)
            verdict, reason = self._judge(key)
            if verdict == "done":
                self.log(f"done already ({reason})")
            else:
                self._start(key, inputs, verdict, reason)
        if _agree(verdict == "done"):
            self._release_lock()
            raise StageDone

    def _require(self, name: str, path: Path, unfinished: bool) -> None:
        """Check that an input exists, and that the stage it comes from has finished."""
        root, place = self.directory.absolute(), path.absolute()
        inside = place.relative_to(root).parts if place.is_relative_to(root) else ()
        maker = inside[0] if inside and inside[0] in self.stages else ""
        if maker == self.stage:
            raise InputError(f"{path}: stage '{maker}' cannot read its own output ('{name}')")
        begun = maker and (self.directory / maker / "run.json").exists()
        if not unfinished and begun and not (self.directory / maker / "done.json").exists():
            raise InputError(
                f"{path}: stage '{maker}', which makes it, has not finished; run it first"
            )
        if not path.exists():
            mend = f"; run stage '{maker}' first" if maker else ""
            raise InputError(f"{path}: no such file ('{name}' of stage '{self.stage}'){mend}")

    def _key(self, inputs: Mapping[str, PathLike]) -> dict[str, Any]:
        """What a stage stands for."""
        return {
            "config": plain(self.config),
            "seed": self.run.seed,
            "inputs": {name: self._hashes.content(Path(path)) for name, path in inputs.items()},
        }

    def _judge(self, key: dict[str, Any]) -> tuple[str, str]:
        """One of done, continue, fresh and redo, and why."""
        run, done = self.stage_directory / "run.json", self.stage_directory / "done.json"
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
            path = self.stage_directory / name
            if not path.exists() or (size is not None and path.stat().st_size != size):
                return "redo", f"{name} was changed or removed"
        return "done", f"{finished['finished']}, {clock(finished['seconds'])}"

    def _start(
        self, key: dict[str, Any], inputs: Mapping[str, PathLike], verdict: str, reason: str
    ) -> None:
        """Make the directory ready and write run.json."""
        starts: list[str] = []
        if verdict == "redo":
            aside = self.directory / f"{self.stage}.previous"
            if aside.exists():
                shutil.rmtree(aside)
            os.replace(self.stage_directory, aside)
            self.log(f"making it anew, {reason}; what stood there is now in {aside}")
        elif verdict == "continue":
            record = read_json(self.stage_directory / "run.json")
            starts, self._earlier = record["starts"], record["seconds"]
            self.log("continuing what was cut off")
        self.stage_directory.mkdir(parents=True, exist_ok=True)
        self._began = time.monotonic()
        self._record = {
            "stage": self.stage,
            "status": "running",
            "command": shlex.join(["python", *sys.orig_argv[1:]]),
            "config": key["config"],
            "seed": key["seed"],
            "run": plain(self.run),
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
        write_json(self.stage_directory / "run.json", self._record)

    def finish(self) -> None:
        """Record that the stage stands: run.json, then done.json."""
        if not self._record and self.primary:
            raise RuntimeError(f"stage '{self.stage}' finished without a manifest")
        if jax.distributed.is_initialized():
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices(f"finish {self.stage}")
        if not self.primary:
            return
        self._close_metrics()
        self._write_end("done")
        outputs = {
            path.name: path.stat().st_size if path.is_file() else None
            for path in sorted(self.stage_directory.iterdir())
            if path.name not in RECORDS
        }
        done = {"finished": now(), "seconds": self._record["seconds"], "outputs": outputs}
        write_json(self.stage_directory / "done.json", done)
        self._release_lock()
        self.log(f"done in {clock(self._record['seconds'])}")

    def abandon(self) -> None:
        """Record that the stage was cut off."""
        if self._record and self.primary:
            self._close_metrics()
            self._write_end("stopped")
        self._release_lock()

    def _write_end(self, status: str) -> None:
        self._record |= {
            "status": status,
            "seconds": round(self._earlier + time.monotonic() - self._began, 3),
            "peak_memory_bytes": peak_memory(),
        }
        write_json(self.stage_directory / "run.json", self._record)

    # ------------------------------------------------------------------ the lock

    def _take_lock(self) -> None:
        """Keep a second process off this stage; the lock ends with the process."""
        import fcntl

        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(
                f"{error.filename}: a file stands where the run directory should be"
            ) from None
        self._lock = (self.directory / f".{self.stage}.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self.stage_directory}: another process is at work on this stage; wait for it "
                f"or choose another --run.directory"
            ) from None
        except OSError:
            pass  # a file system without locks

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _agree(value: bool) -> bool:
    """Process 0's word, in every process."""
    if not jax.distributed.is_initialized():
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))
