"""The Flax modules: what a Flax user writes, and that it is what training computes."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynarag_jax.models import decoder, encoder, lora, t5
from dynarag_jax.models.decoder import Decoder, DecoderConfig
from dynarag_jax.models.layout import param_shardings
from dynarag_jax.policy.grammar import Spelling, build_grammar
from dynarag_jax.policy.logprobs import token_logps
from dynarag_jax.policy.modules import Generator, RerankerModule
from dynarag_jax.sharding import make_mesh, spec
from dynarag_jax.training.step import init_state

CFG = DecoderConfig(
    vocab=64, width=16, layers=2, heads=4, kv_heads=2, head_size=8, mlp=24, tied=False
)
EVERYTHING = dataclasses.replace(
    CFG, tied=True, qkv_bias=True, qk_norm=True, post_norms=True, norm_offset=True
)
TRUNK = np.random.default_rng(0).integers(0, 64, (3, 9)).astype(np.int32)
BRANCHES = np.random.default_rng(1).integers(0, 64, (3, 2, 5)).astype(np.int32)
LENGTHS = np.array([9, 1, 5], np.int32)
DOCS = Path(__file__).parents[2] / "docs" / "models.md"


def equal(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow  # trains
def test_the_loop_of_the_documentation_learns_and_decodes_what_it_learned():
    text = DOCS.read_text(encoding="utf-8")
    section = text.split("## As Flax modules")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 2
    world: dict[str, Any] = {}
    exec("\n".join(blocks), world)
    assert world["losses"][0] > 3.5  # near log 64
    assert world["losses"][-1] < 0.1
    np.testing.assert_array_equal(world["answers"], world["branches"])
    query = world["variables"]["params"]["layers"]["query"]
    shards = min(8, len(jax.devices()))
    assert query.addressable_shards[0].data.size * shards == query.size


@pytest.mark.parametrize("cfg", [CFG, EVERYTHING], ids=["plain", "everything"])
def test_the_module_starts_with_the_numbers_that_training_starts_with(cfg):
    mesh = make_mesh(devices=jax.devices()[:1])
    state = init_state(cfg, mesh, optax.sgd(0.1), seed=3)
    variables = jax.jit(Decoder(cfg).init)(jax.random.key(3), TRUNK, LENGTHS, BRANCHES)
    equal(nn.unbox(variables), {"params": state.params})


def test_a_seed_gives_the_numbers_that_it_always_gave():
    """Sums of absolute values at seed 0, noted before modules declared a table's own names."""
    params = decoder.init_params(CFG, jax.random.key(0))
    arrays = [params["embedding"], params["head"], params["layers"]["query"]]
    sums = [np.abs(np.asarray(x, np.float64)).sum() for x in arrays]
    np.testing.assert_allclose(sums, [206.488026516, 203.758274133, 207.682764919], rtol=1e-8)


def test_partitioning_is_that_of_the_one_table():
    variables = jax.eval_shape(
        lambda key: Decoder(EVERYTHING).init(key, method="parameters"), jax.random.key(0)
    )
    table = decoder.parameter_table(EVERYTHING)
    expected = jax.tree.map(lambda p: spec(p.axes), table, is_leaf=decoder.is_parameter)
    assert nn.get_partition_spec(variables) == {"params": expected}
    mesh = make_mesh(2, 2, 2, devices=jax.devices()[:8])
    assert nn.get_sharding(variables, mesh)["params"] == param_shardings(EVERYTHING, mesh)


def test_methods_are_the_functions():
    params = decoder.init_params(CFG, jax.random.key(1))
    model = Decoder(CFG).bind({"params": params})
    x, y = model(TRUNK, LENGTHS, BRANCHES)
    equal((x, y), decoder.trunk_and_branches(CFG, params, TRUNK, LENGTHS, BRANCHES))
    hidden, cache = model.prefill(TRUNK, LENGTHS)
    mine = decoder.empty_branch_cache(CFG, 3, 2, 5)
    steps = []
    for place in range(5):
        step, mine = model.extend(BRANCHES[:, :, place : place + 1], cache, LENGTHS, mine, place)
        steps.append(step)
    np.testing.assert_allclose(hidden[0], x[0], atol=1e-5)
    np.testing.assert_allclose(jnp.concatenate(steps[:-1], axis=2), y[:, :, 1:], atol=1e-5)
    equal(model.logits(y), decoder.logits(CFG, params, y))


def test_attached_adapters_apply():
    rank = lora.LoraConfig(rank=2)
    params = decoder.init_params(CFG, jax.random.key(1))
    adapters = jax.tree.map(lambda x: x + 0.1, lora.init_adapters(CFG, rank, jax.random.key(2)))
    attached = lora.attach(CFG, rank, params, adapters)
    merged = lora.merge(rank, params, adapters)
    ours, theirs = (
        Decoder(CFG).apply({"params": p}, TRUNK, LENGTHS, BRANCHES)[1] for p in (attached, merged)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    plain = Decoder(CFG).apply({"params": params}, TRUNK, LENGTHS, BRANCHES)[1]
    assert np.abs(ours - plain).max() > 0.1


def test_reranker_and_generator_are_views_of_the_same_parameters():
    spelling = Spelling((10,), tuple((i,) for i in range(1, 7)), (20, 10), (20,), (30,), 31)
    grammar = build_grammar(spelling)
    lists = np.array([[spelling.spell([1, 2]), spelling.spell([4, 1])]] * 3, np.int32)
    shown = np.array([6, 6, 5], np.int32)
    params = decoder.init_params(CFG, jax.random.key(1))
    for view in (RerankerModule(CFG), Generator(CFG)):
        made = jax.jit(lambda key, view=view: view.init(key, method="parameters"))
        equal(nn.unbox(made(jax.random.key(1)))["params"], params)
    _, hidden = decoder.trunk_and_branches(CFG, params, TRUNK, LENGTHS, lists)
    under = RerankerModule(CFG).apply({"params": params}, TRUNK, LENGTHS, lists, shown, grammar)
    equal(under, token_logps(CFG, params, hidden, lists, grammar, shown > 0, shown))
    over = Generator(CFG).apply({"params": params}, TRUNK, LENGTHS, lists)
    equal(over, token_logps(CFG, params, hidden, lists))


@pytest.mark.slow
def test_encoders_and_t5_have_their_functions_as_methods():
    cfg = encoder.EncoderConfig(vocab=50, width=16, layers=2, heads=2, mlp=24, positions=20)
    params = encoder.init_params(cfg, jax.random.key(0), scored=True)
    model = encoder.Encoder(cfg, scored=True)
    tokens = TRUNK % 50
    types = jnp.asarray(tokens % 2)
    equal(
        model.apply({"params": params}, tokens, LENGTHS, types, method="pair_scores"),
        encoder.pair_scores(cfg, params, tokens, LENGTHS, types),
    )
    small = t5.T5Config(
        vocab=50, width=16, layers=2, decoder_layers=2, heads=2, head_size=8, mlp=20
    )
    weights = t5.init_params(small, jax.random.key(0))
    seq = t5.T5(small).bind({"params": weights})
    encoded = seq.encode(tokens, LENGTHS)
    hidden = t5.decode(small, weights, encoded, LENGTHS, tokens)
    equal(seq(tokens, LENGTHS, tokens), t5.logits(small, weights, hidden))
    equal(
        seq.monot5_scores(tokens, LENGTHS, 3, 4),
        t5.monot5_scores(small, weights, tokens, LENGTHS, 3, 4),
    )
