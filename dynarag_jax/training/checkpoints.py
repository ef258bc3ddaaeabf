"""Checkpoints of a training run: Orbax, asynchronous, restored onto any mesh."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from dynarag_jax.errors import InputError
from dynarag_jax.files import read_json, write_json
from dynarag_jax.models.config import Params
from dynarag_jax.processes import is_primary
from dynarag_jax.training.step import State


def _describe(tree: Any) -> dict[str, str]:
    """Type and shape of every array of a tree, by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}"
        for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]
        if hasattr(x, "shape")
    }


class _Keep(ocp.checkpoint_managers.PreservationPolicy):
    """Preserve what ``choose`` names among the steps that stand."""

    def __init__(self, choose: Callable[[Sequence[int]], list[int]]):
        self._choose = choose

    def should_preserve(self, checkpoints: Any, *, context: Any) -> Sequence[bool]:
        chosen = self._choose([info.step for info in checkpoints])
        return [info.step in chosen for info in checkpoints]


@dataclass(frozen=True)
class Best:
    """Which checkpoints are kept as the best, beside the latest."""

    figure: str
    """name of the figure that decides: its mean over the steps since the checkpoint before"""
    highest: bool = False
    """whether more is better"""
    keep: int = 1
    """checkpoints kept as the best"""


class Mean(NamedTuple):
    """A running mean."""

    total: float = 0.0
    count: int = 0

    def value(self) -> float | None:
        """The mean; None of nothing."""
        return self.total / self.count if self.count else None


class Checkpoints:
    """The checkpoints of one run directory; saving does not hold the training up.

    The latest ``keep`` are kept, and the best ones by a figure if ``best`` names it. The values of
    that figure lie beside the directory, in a file of its name and ``.json``.
    """

    def __init__(
        self,
        directory: Path,
        keep: int = 2,
        best: Best | None = None,
        read_only: bool = False,
    ):
        self.directory = directory.absolute()
        if read_only and not self.directory.is_dir():
            raise InputError(f"{self.directory}: no such directory of checkpoints; train first")
        self.best = best
        self._values_path = self.directory.with_suffix(".json")
        self._values = self._read_values() if best else {}
        policies = ocp.checkpoint_managers
        latest = policies.LatestN(keep)
        self._manager = ocp.CheckpointManager(
            self.directory,
            # Without its handler, a manager that has not saved yet knows nothing of what is there.
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=None
                if read_only
                else policies.AnyPreservationPolicy([latest, _Keep(self.best_steps)])
                if best
                else latest,
                create=not read_only,
                read_only=read_only,
                enable_async_checkpointing=not read_only,
                # What a kill left half written.
                cleanup_tmp_directories=not read_only,
            ),
        )

    def save(self, state: State, mean: Mean = Mean(), scheduled: bool = True) -> None:
        """Start saving ``state`` under its step; a step that stands is not saved twice.

        Args:
          mean: of the best checkpoints' figure, over the steps since the last scheduled save.
          scheduled: False for a save because the run is stopped: it does not compete to be best,
            and ``mean`` goes on from it.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if self.best:
            self._values[step] = (mean, scheduled)
            self._write_values()
        self._manager.save(step, args=ocp.args.StandardSave(vars(state)))

    def best_steps(self, steps: Sequence[int] | None = None) -> list[int]:
        """The best of ``steps`` (or of those that stand) by the figure, the best first."""
        if self.best is None:
            return []
        steps = self._manager.all_steps() if steps is None else steps
        sign = -1 if self.best.highest else 1
        ranked = []
        for step in steps:
            mean, scheduled = self._values.get(step, (Mean(), False))
            value = mean.value()
            if scheduled and value is not None:
                ranked.append((sign * value, step))
        return [step for _, step in sorted(ranked)][: self.best.keep]

    def mean_at(self, step: int) -> Mean:
        """The mean that goes on from the checkpoint of ``step``."""
        mean, scheduled = self._values.get(step, (Mean(), True))
        return Mean() if scheduled else mean

    def _read_values(self) -> dict[int, tuple[Mean, bool]]:
        try:
            record = read_json(self._values_path)
            if record["figure"] != vars(self.best)["figure"]:
                return {}
            return {
                int(step): (Mean(float(total), int(count)), bool(scheduled))
                for step, (total, count, scheduled) in record["steps"].items()
            }
        except (InputError, KeyError, TypeError, ValueError, AttributeError):
            # Absent, or cut off with the machine: its checkpoints then do not count as the best.
            return {}

    def _write_values(self) -> None:
        if is_primary() and self.best:
            steps = {str(k): [*mean, scheduled] for k, (mean, scheduled) in self._values.items()}
            write_json(self._values_path, {"figure": self.best.figure, "steps": steps})

    def latest(self) -> int | None:
        """The newest step saved, if any."""
        return self._manager.latest_step()

    def restore(
        self,
        layout: State,
        shapes: State,
        log: Callable[[str], None] = lambda _: None,
        only: int | None = None,
    ) -> State | None:
        """The newest checkpoint that can be read, placed by ``layout``; None where there is none.

        With ``only``, the checkpoint of that step or nothing.

        A damaged newest checkpoint falls back to the one before, saying so through ``log``; it is
        then removed, so that training can save that step again.

        Raises:
          InputError: checkpoints exist, but they hold another model's shapes or none can be read.
        """
        target = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            vars(shapes),
            vars(layout),
        )
        steps = sorted(self._manager.all_steps(), reverse=True)
        if only is not None:
            steps = [step for step in steps if step == only]
        failures: dict[int, str] = {}
        for step in steps:
            self._check(step, target)
            try:
                tree = self._manager.restore(step, args=ocp.args.StandardRestore(target))
            except Exception as error:  # noqa: BLE001 - Orbax raises a bare Exception, too
                failures[step] = str(error).split("\n")[0][:200]
                log(
                    f"checkpoint of step {step} cannot be read ({failures[step]}); "
                    f"trying the one before"
                )
                continue
            # Orbax saves no step before its newest, so the damaged ones would block what follows.
            for damaged in failures:
                self._manager.delete(damaged)
            return State(**tree)
        if failures:
            reasons = "; ".join(f"step {step}: {reason}" for step, reason in failures.items())
            raise InputError(
                f"{self.directory}: no checkpoint can be read ({reasons}); "
                f"remove the directory to start afresh"
            )
        return None

    def restore_params(self, layout: Params, shapes: Params, step: int = 0) -> tuple[int, Params]:
        """What was trained, out of a checkpoint, without the optimizer's moments.

        Args:
          layout: where to place it; shapes: what to expect.
          step: which checkpoint; 0 is the newest.

        Returns:
          The step, and the parameters (or adapters).

        Raises:
          InputError: there is no such checkpoint, it cannot be read, or it is another model's.
        """
        steps = sorted(self._manager.all_steps())
        if not steps or (step and step not in steps):
            there = f"there are {', '.join(map(str, steps))}" if steps else "there is none"
            wanted = f"no checkpoint of step {step}" if step else "no checkpoint"
            raise InputError(f"{self.directory}: {wanted}; {there}")
        step = step or steps[-1]
        target = {
            "params": jax.tree.map(
                lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
                shapes,
                layout,
            )
        }
        self._check(step, target, only="params")
        arguments = ocp.checkpoint_utils.construct_restore_args(target)
        with ocp.PyTreeCheckpointer() as reader:
            try:
                tree = reader.restore(
                    self.directory / str(step) / "default",
                    args=ocp.args.PyTreeRestore(
                        target, restore_args=arguments, partial_restore=True
                    ),
                )
            except Exception as error:  # noqa: BLE001 - Orbax raises a bare Exception, too
                reason = str(error).split("\n")[0][:200]
                raise InputError(
                    f"{self.directory}: the checkpoint of step {step} cannot be read ({reason}); "
                    f"take another with 'step'"
                ) from None
        return step, tree["params"]

    def _check(self, step: int, target: Any, only: str = "") -> None:
        """Refuse a checkpoint whose arrays are others than the configured model's."""
        stored = None
        # What cannot be described is damaged; restoring will say how.
        with contextlib.suppress(ValueError, OSError, KeyError, TypeError, AttributeError):
            stored = self._manager.item_metadata(step)
        tree = getattr(stored, "tree", stored)
        if tree is None:
            return
        there, here = _describe(tree), _describe(target)
        there = {name: x for name, x in there.items() if name.startswith(only)}
        wrong = [
            f"{name} is {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
            for name in sorted(there | here)
            if there.get(name) != here.get(name)
        ]
        if wrong:
            more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
            raise InputError(
                f"{self.directory}: the checkpoint of step {step} is of another shape: "
                f"{'; '.join(wrong[:4])}{more}; choose another run directory, or the model and "
                f"optimizer it was made with"
            )

    def wait(self) -> None:
        """Block until everything started is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish saving and release the directory."""
        self._manager.wait_until_finished()
        self._manager.close()


def latest_step(directory: Path) -> int | None:
    """The newest step that stands in a directory of checkpoints, if any; nothing is changed."""
    if not directory.is_dir():
        return None
    checkpoints = Checkpoints(directory, read_only=True)
    try:
        return checkpoints.latest()
    finally:
        checkpoints.close()
