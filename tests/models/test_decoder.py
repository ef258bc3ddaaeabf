"""The decoder against transformers' Llama, and the trunk layout against naive concatenation."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from dynarag_jax.exchange.decoders import load_decoder
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.sampling.sampler import Sampling, sample

VOCAB = 64

LLAMAS = {
    "tied": {"num_attention_heads": 2, "hidden_size": 16, "tie_word_embeddings": True},
    "grouped-untied": {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32},
    "llama3-rope-own-head-size": {
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "hidden_size": 24,
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            # So short that these tests reach the stretched frequencies.
            "original_max_position_embeddings": 16,
        },
    },
}


@pytest.fixture(scope="module", params=LLAMAS, ids=list(LLAMAS))
def llama(request, tmp_path_factory):
    """transformers' model, and ours read from its directory."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        intermediate_size=40,
        num_hidden_layers=2,
        max_position_embeddings=128,
        initializer_range=0.25,  # logits far apart, so that greedy choices are not near-ties
        eos_token_id=None,
        bos_token_id=None,
        **LLAMAS[request.param],
    )
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "norm" in name:  # else all ones, and a lost norm weight would not show
                weight.uniform_(0.5, 1.5)
    directory = tmp_path_factory.mktemp("llama")
    theirs.save_pretrained(directory)
    cfg, params = load_decoder(directory)
    return theirs, cfg, params


def test_logits_equal_transformers(llama):
    theirs, cfg, params = llama
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 40))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()

    @jax.jit
    def ours(params, tokens):
        hidden, _ = decoder.prefill(cfg, params, tokens, jnp.array([40, 40]))
        return decoder.logits(cfg, params, hidden)

    np.testing.assert_allclose(ours(params, tokens), expected, atol=1e-4)
    assert decoder.count_parameters(cfg) == theirs.num_parameters()


def test_bfloat16_errs_no_more_than_transformers_in_bfloat16(llama):
    theirs, cfg, params = llama
    tokens: Any = np.random.default_rng(2).integers(0, VOCAB, (2, 40))
    with torch.no_grad():
        exact = theirs(torch.tensor(tokens)).logits.numpy()
        their_half = copy.deepcopy(theirs).to(torch.bfloat16)(torch.tensor(tokens)).logits

    def ours(params):
        half = decoder.with_dtype(cfg, "bfloat16")
        hidden, _ = decoder.prefill(half, params, tokens, jnp.array([40, 40]))
        assert hidden.dtype == jnp.bfloat16
        return decoder.logits(half, params, hidden)

    logits = jax.jit(ours)(params)
    assert logits.dtype == jnp.float32
    error = np.abs(np.asarray(logits) - exact).mean()
    their_error = np.abs(their_half.float().numpy() - exact).mean()
    assert 0 < error < 1.2 * their_error


def test_greedy_tokens_equal_generate_for_prompts_of_unequal_length(llama):
    theirs, cfg, params = llama
    rng = np.random.default_rng(1)
    lengths = np.array([3, 17, 40])
    trunk = rng.integers(0, VOCAB, (3, 40)).astype(np.int32)
    out = jax.jit(
        lambda params, trunk, lengths, keys: sample(
            cfg, params, trunk, lengths, keys,
            branches=1, max_tokens=32, end=-1, sampling=Sampling(temperature=0.0),
        )
    )(params, trunk, lengths, jax.random.split(jax.random.key(0), 3))  # fmt: skip
    for row, length in enumerate(lengths):
        prompt = torch.tensor(trunk[None, row, :length], dtype=torch.long)
        with torch.no_grad():
            expected = theirs.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=32,
                pad_token_id=0,
            )[0, length:]
        assert out.tokens[row, 0].tolist() == expected.tolist()
    assert not out.finished.any()


# ---------------------------------------------------------------------------- the trunk layout

CFG = DecoderConfig(
    vocab=VOCAB, width=16, layers=2, heads=4, kv_heads=2, head_size=8, mlp=24, positions=64
)
LENGTHS = np.array([9, 1, 5])
"""Trunks: full, a single token, padded."""
BRANCH_LENGTHS = {
    1: [[5], [0], [1]],
    2: [[5, 1], [0, 3], [2, 2]],
    8: [[5, 1, 0, 3, 2, 5, 4, 1], [1] * 8, [0] * 4 + [5] * 4],
}
R = 5


@pytest.fixture(scope="module")
def params():
    params: Any = decoder.init_params(CFG, jax.random.key(1))
    # At random, attention is nearly uniform, and a wrong mask or position hardly shows.
    sharper = {name: 3 * params["layers"][name] for name in ("query", "key")}
    return params | {"layers": params["layers"] | sharper}


def pick(cfg, params, hidden, tokens):
    logps = jax.nn.log_softmax(decoder.logits(cfg, params, hidden))
    return jnp.take_along_axis(logps, tokens[..., None], axis=-1)[..., 0]


def branch_logps(cfg, params, trunk, lengths, branches):
    _, hidden = decoder.trunk_and_branches(cfg, params, trunk, lengths, branches)
    return pick(cfg, params, hidden, branches)


def naive_logps(cfg, params, trunk, lengths: Any, branches):
    """Every branch as a sequence of its own: prompt and continuation, one after the other."""
    b, n, r = branches.shape
    p = trunk.shape[1]
    rows: Any = np.zeros((b, n, p + r), np.int32)
    for i in range(b):
        rows[i, :, : lengths[i]] = trunk[i, : lengths[i]]
        rows[i, :, lengths[i] : lengths[i] + r] = branches[i]
    rows = rows.reshape(b * n, p + r)
    hidden, _ = decoder.prefill(cfg, params, rows, jnp.repeat(lengths + r, n))
    logps = pick(cfg, params, hidden[:, :-1], rows[:, 1:]).reshape(b, n, -1)
    return jnp.stack([logps[i, :, lengths[i] - 1 : lengths[i] - 1 + r] for i in range(b)])


def random_batch(n, r=R, seed=0):
    """Trunk and branches whose padding holds arbitrary tokens."""
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, VOCAB, (len(LENGTHS), 9)).astype(np.int32),
        rng.integers(0, VOCAB, (len(LENGTHS), n, r)).astype(np.int32),
    )


@pytest.mark.parametrize("n", [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2)), 8])
def test_trunk_layout_equals_naive_concatenation_with_gradients(params, n):
    trunk, branches = random_batch(n)
    real = np.arange(R) < np.array(BRANCH_LENGTHS[n])[..., None]
    # Every token has a weight of its own, so that no two errors cancel in the gradient.
    weight = np.random.default_rng(9).uniform(0.5, 1.5, branches.shape) / real.sum()

    def total(logps, params):
        values = logps(CFG, params, trunk, LENGTHS, branches)
        return jnp.where(real, values * weight, 0.0).sum(), values

    ours, naive = (
        jax.jit(jax.value_and_grad(lambda params, f=f: total(f, params), has_aux=True))(params)
        for f in (branch_logps, naive_logps)
    )
    np.testing.assert_allclose(ours[0][1][real], naive[0][1][real], atol=1e-5)
    for one, other in zip(jax.tree.leaves(ours[1]), jax.tree.leaves(naive[1]), strict=True):
        assert np.abs(other).max() > 1e-3
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_branches_of_one_token(params):
    trunk, branches = random_batch(2, r=1)
    ours, naive = (
        jax.jit(lambda params, f=f: f(CFG, params, trunk, LENGTHS, branches))(params)
        for f in (branch_logps, naive_logps)
    )
    np.testing.assert_allclose(ours, naive, atol=1e-5)


def test_neither_padding_nor_siblings_change_a_branch(params):
    logps = jax.jit(lambda *x: branch_logps(CFG, params, *x))
    trunk, branches = random_batch(2)
    before = np.asarray(logps(trunk, LENGTHS, branches))
    other_trunk, other_branches = random_batch(2, seed=1)
    padding = np.arange(trunk.shape[1]) >= LENGTHS[:, None]
    changed = branches.copy()
    changed[:, 1] = other_branches[:, 1]
    changed[:, 0, 3:] = other_branches[:, 0, 3:]
    after = np.asarray(logps(np.where(padding, other_trunk, trunk), LENGTHS, changed))
    np.testing.assert_array_equal(before[:, 0, :3], after[:, 0, :3])
    assert (before[:, 1] != after[:, 1]).any()


def test_decoding_in_pieces_equals_the_training_pass(params):
    """Branch tokens run in pieces of 2, 2 and 1 against caches, as when decoding."""
    trunk, branches = random_batch(2)

    @jax.jit
    def in_pieces(trunk, lengths, branches):
        hidden, cache = decoder.prefill(CFG, params, trunk, lengths)
        own = decoder.empty_branch_cache(CFG, len(LENGTHS), 2, R)
        pieces = []
        for first, last in ((0, 2), (2, 4), (4, 5)):
            y, own = decoder.extend(
                CFG, params, branches[:, :, first:last], cache, lengths, own, jnp.int32(first)
            )
            pieces.append(y)
        return decoder.last_hidden(hidden, lengths), jnp.concatenate(pieces, axis=2)

    last, pieces = in_pieces(trunk, LENGTHS, branches)
    x, y = jax.jit(lambda *a: decoder.trunk_and_branches(CFG, params, *a))(trunk, LENGTHS, branches)
    np.testing.assert_allclose(pieces[:, :, :-1], y[:, :, 1:], atol=2e-5)
    np.testing.assert_allclose(last, y[:, 0, 0], atol=2e-5)
    np.testing.assert_allclose(last[0], x[0, LENGTHS[0] - 1], atol=2e-5)


@pytest.mark.parametrize(
    ("remat", "unroll"),
    [
        ("full", 1),
        *(pytest.param(*how, marks=pytest.mark.slow) for how in (("dots", 1), ("none", 2))),
    ],
)
def test_recomputing_and_unrolling_change_nothing(params, remat, unroll):
    trunk, branches = random_batch(2)

    def gradient(cfg):
        def total(params):
            return branch_logps(cfg, params, trunk, LENGTHS, branches).mean()

        # The compiler's own level: without optimization, sums that are computed again round anew.
        level = {"xla_backend_optimization_level": 2}
        step = jax.jit(jax.value_and_grad(total)).lower(params)
        return step.compile(level)(params)

    other = gradient(dataclasses.replace(CFG, remat=remat, unroll=unroll))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient(CFG), other)


# ---------------------------------------------------------------------------- parameters


def test_random_parameters_follow_the_table():
    cfg = DecoderConfig(vocab=256, width=64, layers=2, mlp=128, tied=False, param_dtype="bfloat16")
    tree = decoder.init_params(cfg, jax.random.key(0))
    table = decoder.parameter_table(cfg)
    assert jax.tree.structure(tree) == jax.tree.structure(table, is_leaf=decoder.is_parameter)
    leaves = zip(
        jax.tree.leaves(tree), jax.tree.leaves(table, is_leaf=decoder.is_parameter), strict=True
    )
    for array, p in leaves:
        assert array.shape == p.shape
        assert array.dtype == jnp.bfloat16
        values = np.asarray(array, np.float64)
        if p.scale is None:
            assert (values == 1).all()
        else:
            assert values.std() == pytest.approx(p.scale, rel=0.05)
    assert sum(x.size for x in jax.tree.leaves(tree)) == decoder.count_parameters(cfg)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"heads": 3, "kv_heads": 2}, "not a multiple"), ({"head_size": 7}, "must be even")],
)
def test_impossible_shapes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**sizes)
