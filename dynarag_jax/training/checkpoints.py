"""Checkpoints of a training run: Orbax, asynchronous, restored onto any mesh."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from dynarag_jax.errors import InputError
from dynarag_jax.training.step import State


def _describe(tree: Any) -> dict[str, str]:
    """Type and shape of every array of a tree, by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}"
        for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]
        if hasattr(x, "shape")
    }


class Checkpoints:
    """The checkpoints of one run directory; saving does not hold the training up."""

    def __init__(self, directory: Path, keep: int = 2):
        self.directory = directory.absolute()
        self._manager = ocp.CheckpointManager(
            self.directory,
            # Without its handler, a manager that has not saved yet knows nothing of what is there.
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=True, enable_async_checkpointing=True
            ),
        )

    def save(self, state: State) -> None:
        """Start saving ``state`` under its step; a step that stands is not saved twice."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        self._manager.save(step, args=ocp.args.StandardSave(vars(state)))

    def latest(self) -> int | None:
        """The newest step saved, if any."""
        return self._manager.latest_step()

    def restore(
        self, layout: State, shapes: State, log: Callable[[str], None] = lambda _: None
    ) -> State | None:
        """The newest checkpoint that can be read, placed by ``layout``; None where there is none.

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

    def _check(self, step: int, target: Any) -> None:
        """Refuse a checkpoint whose arrays are others than the configured model's."""
        stored = None
        # What cannot be described is damaged; restoring will say how.
        with contextlib.suppress(ValueError, OSError, KeyError, TypeError, AttributeError):
            stored = self._manager.item_metadata(step)
        tree = getattr(stored, "tree", stored)
        if tree is None:
            return
        there, here = _describe(tree), _describe(target)
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
