"""An encoder policy, loaded and ready: weights on the mesh, tokenizer, how lists are made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
from jax.sharding import Mesh
from tokenizers import Tokenizer

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.calibration import ListBias
from dynarag_jax.exchange.encoder_policies import (
    POLICY,
    StoredPolicy,
    is_encoder_policy,
    policy_fingerprint,
    read_encoder_policy,
    settings_of,
)
from dynarag_jax.files import PathLike, fingerprint
from dynarag_jax.models.config import is_parameter
from dynarag_jax.models.encoder_parts import Params
from dynarag_jax.policy.encoder_policy import EncoderPolicyConfig, policy_table
from dynarag_jax.policy.pair_tokens import PairMaker
from dynarag_jax.sharding import check_shapes, named

SETTINGS: dict[str, Any] = {
    "pooling": "first",
    "interaction": False,
    "reencode": 0,
    "reread": 0,
    "pieces": 160,
    "max_list": 15,
}
"""What list_policy.json says beside the head, with the value where it says nothing."""


@dataclass(frozen=True)
class EncoderPolicy:
    """A distribution over lists that an encoder and a list head compute."""

    cfg: EncoderPolicyConfig
    params: Params
    tokenizer: Tokenizer
    mesh: Mesh
    fingerprint: str

    def with_bias(self, bias: ListBias) -> EncoderPolicy:
        """The same policy with a bias on ending lists; the weights are shared."""
        return replace(self, cfg=replace(self.cfg, bias=bias))

    def pair_maker(self) -> PairMaker:
        """What tokenizes its pairs."""
        return PairMaker(self.tokenizer, self.cfg.pieces, self.cfg.encoder.types)


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """A hash of a tokenizer, for stamping what was computed with it."""
    return fingerprint(tokenizer.to_str())


def policy_shardings(cfg: EncoderPolicyConfig, mesh: Mesh, table: Any = None) -> Any:
    """NamedSharding of every parameter of a policy, or of a part of its table.

    Raises:
      InputError: the mesh does not divide an array; all of them are listed.
    """
    table = policy_table(cfg) if table is None else table
    flat, _ = jax.tree_util.tree_flatten_with_path(table, is_leaf=is_parameter)
    check_shapes(mesh, {jax.tree_util.keystr(path): (p.shape, p.axes) for path, p in flat})
    return jax.tree.map(lambda p: named(mesh, p.axes), table, is_leaf=is_parameter)


def config_of(stored: StoredPolicy) -> EncoderPolicyConfig:
    """The policy that a directory describes.

    Raises:
      InputError: it has no list head, or its settings are wrong.
    """
    if stored.head is None:
        raise InputError(
            f"{stored.source}: no {POLICY}: this is a cross-encoder or an encoder, not yet a "
            f"policy over lists; train one from it"
        )
    settings = settings_of(stored.settings, SETTINGS, str(stored.source / POLICY))
    if settings["pooling"] not in ("first", "mean"):
        raise InputError(
            f"{stored.source / POLICY}: field 'pooling' is {settings['pooling']!r}; there are "
            f"first, mean"
        )
    return EncoderPolicyConfig(encoder=stored.encoder, head=stored.head, **settings)


def settings_to_store(cfg: EncoderPolicyConfig) -> dict[str, Any]:
    """The settings of a policy as list_policy.json says them."""
    return {name: getattr(cfg, name) for name in SETTINGS}


def load_encoder_policy(
    directory: PathLike,
    mesh: Mesh,
    *,
    max_list: int = 0,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> EncoderPolicy:
    """Load a policy's directory onto the mesh for sampling and scoring.

    Args:
      max_list: passages of a list at most; 0 takes what the policy was trained with.
      dtype: type of the encoder's activations.

    Raises:
      InputError: no such policy, or the mesh does not divide it.
    """
    stored = read_encoder_policy(directory, dtype)
    cfg = config_of(stored)
    if max_list:
        cfg = replace(cfg, max_list=max_list)
    params = {"encoder": stored.encoder_params, "head": stored.head_params}
    params = jax.device_put(params, policy_shardings(cfg, mesh))
    return EncoderPolicy(cfg, params, stored.tokenizer, mesh, policy_fingerprint(stored.source))


__all__ = [
    "SETTINGS",
    "EncoderPolicy",
    "config_of",
    "is_encoder_policy",
    "load_encoder_policy",
    "policy_shardings",
    "settings_to_store",
    "tokenizer_hash",
]
