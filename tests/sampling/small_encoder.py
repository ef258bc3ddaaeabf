"""A small encoder policy of random weights."""

from __future__ import annotations

import jax
import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from dynarag_jax.models.config import is_parameter
from dynarag_jax.models.encoder_parts import EncoderConfig
from dynarag_jax.models.list_head import ListHeadConfig
from dynarag_jax.policy.encoder_model import EncoderPolicy
from dynarag_jax.policy.encoder_policy import EncoderPolicyConfig, policy_table
from dynarag_jax.sharding import make_mesh

WORDS = "where is port lies on river".split()


def small_encoder_policy(reencode: int = 0) -> EncoderPolicy:
    """A policy of random weights, none of which is at its start of zero or one."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *map(str, range(12))]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    cfg = EncoderPolicyConfig(
        encoder=EncoderConfig(
            vocab=len(words), width=12, layers=1, heads=3, mlp=16, positions=40, types=2
        ),
        head=ListHeadConfig(width=8, layers=1, steps=1, heads=2, mlp=12, vectors=12),
        pieces=24,
        max_list=3,
        reencode=reencode,
    )
    rng = np.random.default_rng(0)

    def one(p):
        start = 1.0 if p.scale is None else 0.0
        return np.float32(start + rng.normal(size=p.shape) * ((p.scale or 0) + 0.3))

    params = jax.tree.map(one, policy_table(cfg), is_leaf=is_parameter)
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    return EncoderPolicy(cfg, params, tokenizer, mesh, "")
