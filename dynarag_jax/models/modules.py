"""What the Flax modules of our models have in common: parameters declared by one table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.core.scope import LazyRng

from dynarag_jax.models.config import Params, initializer, is_parameter
from dynarag_jax.sharding import spec


class _Subtree(nn.Module):
    """Declares a (sub)tree of a parameter table under its own names."""

    entries: Mapping[str, Any]
    dtype: str

    @nn.compact
    def __call__(self) -> Params:
        return declare(self, self.entries, self.dtype)


def declare(module: nn.Module, table: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The parameters of a table, declared in a module with the partitioning that their axes have.

    The names of the partitioning are axes of our meshes, by ``sharding.RULES``:
    ``nn.get_partition_spec`` gives the layout that training places the parameters by.
    """
    tree: dict[str, Any] = {}
    for name, p in table.items():
        if is_parameter(p):
            start = nn.with_partitioning(initializer(p), tuple(spec(p.axes)))
            tree[name] = module.param(name, start, p.shape, jnp.dtype(dtype))
        else:
            tree[name] = _Subtree(p, dtype, name=name, parent=module)()
    return tree


class TableModule(nn.Module):
    """A module whose parameters are a table; a model's module says which, and adds methods.

    ``init(key, method="parameters")`` makes them without running the model.
    """

    def table(self) -> Mapping[str, Any]:
        """The parameters as a tree of ``Parameter``."""
        raise NotImplementedError

    @nn.compact
    def parameters(self) -> Params:
        """The parameters as the nested tree that the model's functions take."""
        if self.is_initializing() and self.scope is not None:
            # Keys follow from paths in Flax: this one keeps the numbers that a seed always gave.
            rngs: dict[str, Any] = self.scope.rngs  # type: ignore[assignment]
            rngs["params"] = LazyRng.create(rngs["params"], "decoder")
        tree = declare(self, self.table(), self.cfg.param_dtype)  # type: ignore[attr-defined]
        if self.has_variable("params", "adapters"):
            tree["adapters"] = self.get_variable("params", "adapters")
        return tree
