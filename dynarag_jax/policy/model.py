"""A model directory, loaded and ready: weights on the mesh, tokenizer, list grammar."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.calibration import ListBias
from dynarag_jax.exchange.decoders import load_decoder, weights_fingerprint
from dynarag_jax.exchange.generation import generation_ends
from dynarag_jax.exchange.tokenizers import check_vocabulary, load_tokenizer
from dynarag_jax.models import decoding
from dynarag_jax.models.decoder import DecoderConfig, Params
from dynarag_jax.models.layout import param_shardings
from dynarag_jax.policy.grammar import (
    Grammar,
    Spelling,
    biased,
    build_choices,
    build_grammar,
    find_spelling,
)
from dynarag_jax.policy.thoughts import find_thoughts
from dynarag_jax.prompts import PromptConfig, answer_tokens, decode_answer
from dynarag_jax.sharding import require_whole_prompts
from dynarag_jax.thoughts import find_thinking


@dataclass(frozen=True)
class Policy:
    """Reranker and generator in one: the same weights write lists and answers."""

    cfg: DecoderConfig
    params: Params
    tokenizer: Any
    spelling: Spelling
    grammar: Grammar
    mesh: Mesh
    fingerprint: str
    ends: tuple[int, ...]
    """tokens that end an answer, the tokenizer's end of text first"""

    def with_bias(self, bias: ListBias) -> Policy:
        """The same policy with a bias on ending lists; the weights are shared."""
        other = dataclasses.replace(self, grammar=biased(self.grammar, bias))
        other.__dict__["arrays"] = self.arrays
        return other

    @functools.cached_property
    def arrays(self) -> decoding.LayerArrays:
        """Each layer's weights by themselves, as decoding reads them: a copy, made once."""
        with jax.set_mesh(self.mesh):
            return jax.jit(decoding.unstack, static_argnums=0)(self.cfg, self.params)


def list_grammar(tokenizer: Any, prompts: PromptConfig) -> tuple[Spelling, Grammar]:
    """The spelling and the automaton of lists for a tokenizer and a prompt configuration.

    Where the configuration has thoughts, they stand before the lists.
    """
    spelling = find_spelling(tokenizer, prompts.ids)
    if prompts.thought_tokens:
        thinking = find_thinking(tokenizer, prompts.style)
        thought = find_thoughts(tokenizer, thinking, prompts.thought_tokens)
        spelling = dataclasses.replace(spelling, thought=thought)
    return spelling, build_grammar(spelling, min(prompts.max_list, prompts.ids))


def label_grammar(tokenizer: Any, prompts: PromptConfig) -> tuple[int, Grammar]:
    """The automaton of a closed set of labels, spelled as answers are in training.

    Returns:
      the most tokens a label takes, its end included, and the automaton.

    Raises:
      InputError: a label does not fit an answer, or the tokenizer cannot spell the labels.
    """
    spelled = []
    for label in prompts.labels:
        tokens = answer_tokens(tokenizer, label, prompts.answer_tokens)[:-1]
        if not tokens or decode_answer(tokenizer, tokens) != label:
            raise InputError(
                f"prompts: the label {label!r} cannot be written: the tokenizer does not know its "
                f"words, or it is longer than answer_tokens = {prompts.answer_tokens}"
            )
        spelled.append(tokens)
    return max(map(len, spelled), default=0) + 1, build_choices(spelled, tokenizer.eos_token_id)


def load_policy(
    directory: str | Path, mesh: Mesh, prompts: PromptConfig, dtype: str = "float32"
) -> Policy:
    """Load a model directory onto the mesh for sampling and scoring.

    Args:
      dtype: type of weights and activations.

    Raises:
      InputError: no such model, or its tokenizer cannot spell lists; or the mesh cuts prompts.
    """
    require_whole_prompts(mesh, "a policy that samples")
    cfg, params = load_decoder(
        directory, dtype, shardings=lambda cfg: param_shardings(cfg, mesh), dtype=dtype
    )
    tokenizer = load_tokenizer(str(directory))
    check_vocabulary(cfg, tokenizer, str(directory))
    spelling, grammar = list_grammar(tokenizer, prompts)
    return Policy(
        cfg, params, tokenizer, spelling, grammar, mesh, weights_fingerprint(directory),
        generation_ends(directory, tokenizer),
    )  # fmt: skip


def require_finite(params: Params) -> None:
    """Raise InputError naming a weight that holds NaN or infinity."""
    paths, leaves = zip(*jax.tree_util.tree_flatten_with_path(params)[0], strict=True)
    flags = jax.jit(lambda xs: jnp.stack([jnp.isfinite(x).all() for x in xs]))(leaves)
    bad = [path for path, fine in zip(paths, np.asarray(flags), strict=True) if not fine]
    if bad:
        name = ".".join(str(getattr(k, "key", k)) for k in bad[0])
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise InputError(
            f"the model's weights hold NaN or infinity ('{name}'{more}); take an earlier checkpoint"
        )
