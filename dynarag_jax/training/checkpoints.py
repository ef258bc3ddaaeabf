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


class Checkpoints:
    """The checkpoints of one run directory; saving does not hold the training up."""

    def __init__(self, directory: Path, keep: int = 2):
        self.directory = directory.absolute()
        self._manager = ocp.CheckpointManager(
            self.directory,
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

        A damaged newest checkpoint falls back to the one before, saying so through ``log``.

        Raises:
          InputError: checkpoints exist, but they hold another model's shapes or none can be read.
        """
        target = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            vars(shapes),
            vars(layout),
        )
        steps = sorted(self._manager.all_steps(), reverse=True)
        failures = []
        for step in steps:
            self._check(step, target)
            try:
                tree = self._manager.restore(step, args=ocp.args.StandardRestore(target))
            except (ValueError, OSError, KeyError, TypeError) as error:
                reason = str(error).split("\n")[0][:200]
                failures.append(f"step {step}: {reason}")
                log(f"checkpoint of step {step} cannot be read ({reason}); trying the one before")
                continue
            return State(**tree)
        if failures:
            raise InputError(
                f"{self.directory}: no checkpoint can be read ({'; '.join(failures)}); "
                f"remove the directory to start afresh"
            )
        return None

    def _check(self, step: int, target: Any) -> None:
        """Refuse a checkpoint whose arrays have other shapes than the configured model."""
        stored = None
        with contextlib.suppress(ValueError, OSError, KeyError, TypeError, AttributeError):
            stored = self._manager.item_metadata(step)
        tree = getattr(stored, "tree", stored)
        if tree is None:
            return
        flat = lambda t: {  # noqa: E731
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.shape)
            for path, x in jax.tree_util.tree_flatten_with_path(t)[0]
            if hasattr(x, "shape")
        }
        there, here = flat(tree), flat(target)
        wrong = [
            f"{name} is {list(there[name])} there, {list(here[name])} here"
            for name in sorted(set(there) & set(here))
            if there[name] != here[name]
        ]
        if wrong:
            raise InputError(
                f"{self.directory}: the checkpoint of step {step} is of another shape: "
                f"{'; '.join(wrong[:4])}; choose another run directory or the same model"
            )

    def wait(self) -> None:
        """Block until everything started is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish saving and release the directory."""
        self._manager.wait_until_finished()
        self._manager.close()
