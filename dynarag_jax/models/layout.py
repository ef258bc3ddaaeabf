"""Where the parameters that are trained, a decoder's or its adapters', lie on a mesh."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh

from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.models.lora import LoraConfig, adapter_table
from dynarag_jax.sharding import check_shapes, laid_out, named


def trained_table(cfg: DecoderConfig, lora: LoraConfig | None = None) -> dict[str, Any]:
    """The table of what is trained: the model's parameters, or the adapters beside them."""
    return decoder.parameter_table(cfg) if lora is None else adapter_table(cfg, lora)


def param_shardings(cfg: DecoderConfig, mesh: Mesh, lora: LoraConfig | None = None) -> Any:
    """NamedSharding of every trained parameter.

    Raises:
      InputError: the mesh does not divide an array; all of them are listed.
    """
    table = trained_table(cfg, lora)
    flat, _ = jax.tree_util.tree_flatten_with_path(table, is_leaf=decoder.is_parameter)
    check_shapes(mesh, {jax.tree_util.keystr(path): (p.shape, p.axes) for path, p in flat})
    return jax.tree.map(lambda p: named(mesh, p.axes), table, is_leaf=decoder.is_parameter)


def param_shapes(cfg: DecoderConfig, mesh: Mesh) -> Any:
    """The shapes of a decoder's parameters, and where they lie: for what compiles without them.

    Raises:
      InputError: the mesh does not divide an array; all of them are listed.
    """
    shapes = jax.eval_shape(lambda key: decoder.init_params(cfg, key), jax.random.key(0))
    return laid_out(shapes, param_shardings(cfg, mesh))
