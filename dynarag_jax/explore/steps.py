"""Steps of a list, computed by the run's own model when somebody asks."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynarag_jax.errors import InputError
from dynarag_jax.explore.kept import Stamp, stamp
from dynarag_jax.explore.sources import ModelRecord
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import Question

if TYPE_CHECKING:
    from dynarag_jax.serving.policies import ListPolicy

HELD = 2
"""Models in memory at once: the one before feedback and the one after."""


class StepModels:
    """The run's models, loaded when first asked; one list is computed at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[Any, tuple[ListPolicy, str]] = OrderedDict()

    def steps(
        self, model: ModelRecord, question: Question, chosen: Sequence[int]
    ) -> dict[str, Any]:
        """The steps of a list under a model, and what it was computed with.

        Raises:
          InputError: there is no such model any more, or it cannot write this list.
        """
        with self._lock:
            policy, fingerprint = self._policy(model)
            explained = policy.explain(question, tuple(chosen))
        steps = [
            {
                "taken": step.chosen or None,
                "stop": math.exp(step.logps[0]),
                "ids": sorted(
                    ((i, math.exp(p)) for i, p in step.logps.items() if i), key=lambda x: -x[1]
                ),
            }
            for step in explained.steps
            if step.logps
        ]
        if not steps:
            raise InputError(f"{model.path}: a {policy.kind} draws no lists, and so has no steps")
        return {
            "model": model.path.parent.name,
            "policy": fingerprint,
            "shown": len(steps[0]["ids"]),
            "candidates": len(question.passages),
            "logp": explained.logp,
            "steps": steps,
        }

    def _policy(self, model: ModelRecord) -> tuple[ListPolicy, str]:
        # JAX and the model's code are loaded only where somebody asks for steps.
        import jax

        from dynarag_jax.exchange.decoders import weights_fingerprint
        from dynarag_jax.serving.loading import ServedModel, load_list_policy

        key = (model.path, _weights(model.path), repr(sorted(model.prompts.items())), model.dtype)
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        while len(self._held) >= HELD:
            self._held.popitem(last=False)
        how = ServedModel(prompts=_prompts(model), dtype=_dtype(model), batch=1)
        # On one device: a list's steps are a few prompts.
        policy = load_list_policy(model.path, how, model.seed, jax.local_devices()[:1])
        self._held[key] = policy, weights_fingerprint(model.path)
        return self._held[key]


def _weights(directory: Path) -> tuple[tuple[str, Stamp | None], ...]:
    """What tells that a model was made anew.

    Raises:
      InputError: it is gone.
    """
    if not directory.is_dir():
        raise InputError(
            f"{directory}: the model is not there any more; steps are computed from it, and the "
            f"run recorded none"
        )
    return tuple((path.name, stamp(path)) for path in sorted(directory.glob("*.safetensors")))


def _dtype(model: ModelRecord) -> Any:
    if model.dtype not in ("float32", "bfloat16"):
        raise InputError(f"the run computed in '{model.dtype}', which this version does not know")
    return model.dtype


def _prompts(model: ModelRecord) -> PromptConfig:
    """The prompts as recorded.

    Raises:
      InputError: another version of the library recorded them, with fields of its own.
    """
    known = {f.name for f in fields(PromptConfig)}
    if unknown := [name for name in model.prompts if name not in known]:
        raise InputError(
            f"the run's prompts have a field '{unknown[0]}' that this version does not know; steps "
            f"would be of another prompt"
        )
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in model.prompts.items()
    }
    return PromptConfig(**values)
