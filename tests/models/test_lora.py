"""Low-rank adapters: equal to the base at the start, to PEFT always, and trained alone."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.adapters import load_adapters, save_adapters
from dynarag_jax.exchange.decoders import load_decoder, tensor_plan
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.models.layout import param_shardings
from dynarag_jax.models.lora import (
    LoraConfig,
    LowRank,
    adapter_table,
    attach,
    init_adapters,
    merge,
    merge_layers,
)
from dynarag_jax.objectives.terms import Dpo, Objectives, TokenNll
from dynarag_jax.policy.batches import Batch
from dynarag_jax.policy.grammar import Spelling, build_grammar
from dynarag_jax.policy.scoring import make_scorer
from dynarag_jax.sharding import make_mesh
from dynarag_jax.training.step import Adapting, StreamLoss, init_state, loss_and_figures, make_step

LLAMA = DecoderConfig(
    vocab=64, width=32, layers=2, heads=4, kv_heads=2, head_size=8, mlp=48, dtype="float32"
)
# Ids 1..4 are tokens 3..6, separated by 7; 2 is None, 1 the end.
SPELLING = Spelling((), tuple((i + 3,) for i in range(4)), (7,), (), (2,), 1)


def arrays(batch: int = 4) -> Batch:
    rng = np.random.default_rng(0)
    lists = [SPELLING.spell(ids) for ids in ([1, 3], [2], [4, 1, 2], [3])]
    branches = np.zeros((batch, 2, 8), np.int32)
    lengths = np.zeros((batch, 2), np.int32)
    for b in range(batch):
        for n in range(2):
            tokens = lists[(b + n) % len(lists)]
            branches[b, n, : len(tokens)], lengths[b, n] = tokens, len(tokens)
    return Batch(
        trunk=rng.integers(8, 64, (batch, 12)).astype(np.int32),
        trunk_lengths=np.array([12, 7, 9, 12][:batch], np.int32),
        branches=branches,
        branch_lengths=lengths,
        shown=np.full(batch, 4, np.int32),
        supervised=np.ones((batch, 2), np.float32),
        reference=np.zeros(branches.shape, np.float32),
        behavior=np.zeros(branches.shape, np.float32),
        rewards=np.zeros((batch, 2), np.float32),
        counts=np.ones((batch, 2), np.float32),
        preferred=np.ones(batch, bool),
        relevance=np.zeros((batch, 4), np.float32),
        dropped=np.zeros(batch, np.int32),
        dropped_ids=np.zeros(batch, np.int32),
        dropped_tokens=np.zeros(batch, np.int32),
    )


def random_adapters(cfg: DecoderConfig, lora: LoraConfig, seed: int = 1):
    adapters = init_adapters(cfg, lora, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(adapters)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        tree, [jnp.asarray(0.2 * rng.standard_normal(x.shape), jnp.float32) for x in leaves]
    )


def predictions(cfg, params):
    batch = arrays()

    @jax.jit
    def run(params):
        _, y = decoder.trunk_and_branches(
            cfg, params, batch.trunk, batch.trunk_lengths, batch.branches
        )
        return decoder.logits(cfg, params, y)

    return np.asarray(run(params))


def test_targets_are_patterns():
    assert LoraConfig().names() == ["query", "key", "value", "output", "gate", "up", "down"]
    assert LoraConfig(targets=("query", "*u*p*")).names() == ["query", "output", "up"]
    with pytest.raises(InputError, match="'q_proj' matches no matrix; there are query, key"):
        LoraConfig(targets=("q_proj",))
    with pytest.raises(InputError, match="rank = -1: an adapter's rank is at least 1, or 0"):
        LoraConfig(rank=-1)
    with pytest.raises(InputError, match="rank = 0: there are no adapters"):
        adapter_table(LLAMA, LoraConfig(rank=0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fresh_adapters_change_nothing(dtype):
    cfg = decoder.with_dtype(LLAMA, dtype)
    params = decoder.init_params(cfg, jax.random.key(0))
    lora = LoraConfig(rank=4, dropout=0.1)
    adapters = init_adapters(cfg, lora, jax.random.key(1))
    assert all(np.abs(pair["a"]).min(axis=0).max() > 0 for pair in adapters.values())
    ours = predictions(cfg, attach(cfg, lora, params, adapters, jax.random.key(2)))
    np.testing.assert_array_equal(ours, predictions(cfg, params))


def test_merged_equals_applied():
    params = decoder.init_params(LLAMA, jax.random.key(0))
    lora = LoraConfig(rank=3, alpha=5.0)
    adapters = random_adapters(LLAMA, lora)
    applied = predictions(LLAMA, attach(LLAMA, lora, params, adapters))
    merged = merge(lora, params, adapters)
    assert np.abs(applied - predictions(LLAMA, params)).max() > 0.1
    np.testing.assert_allclose(predictions(LLAMA, merged), applied, atol=2e-5)
    # W + alpha / rank * a b, by hand for one matrix of one layer.
    a, b = np.asarray(adapters["output"]["a"][1]), np.asarray(adapters["output"]["b"][1])
    expected = np.asarray(params["layers"]["output"][1]) + 5 / 3 * np.einsum("hkr,rd->hkd", a, b)
    np.testing.assert_allclose(merged["layers"]["output"][1], expected, atol=1e-6)


def test_dropout_keeps_the_mean():
    """A share of the inputs is zeroed, the rest scaled up; streams draw apart."""
    x = jnp.ones((1, 20_000))
    # a and b pass every input through to the output of its place modulo 1: sums of the kept.
    pair = LowRank(jnp.ones((20_000, 1)), jnp.ones((1, 1)), jax.random.key(0), 1.0, 0.25)
    kept = [float(pair.apply(x, stream)[0, 0]) * 0.75 / 20_000 for stream in (3, 4)]
    assert all(abs(k - 0.75) < 0.02 for k in kept)  # 6 deviations of a binomial share
    assert kept[0] != kept[1]


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_only_adapters_are_trained_and_dpo_starts_at_log_2(accumulate):
    mesh = make_mesh(1, devices=jax.devices()[:1])
    params = decoder.init_params(LLAMA, jax.random.key(0))
    before = jax.tree.map(np.array, params)
    grammar = build_grammar(SPELLING)
    lora = LoraConfig(rank=4, targets=("query", "value", "down"), dropout=0.1)
    optimizer = optax.adam(1e-2)
    reference = make_scorer(LLAMA, mesh, grammar)(params, arrays())
    batch = arrays()._replace(reference=np.asarray(reference))
    part = StreamLoss(Objectives(nll=TokenNll(weight=0.0), dpo=Dpo(weight=1.0)))
    step = make_step(
        LLAMA, mesh, optimizer, grammar, {"lists": part}, accumulate,
        Adapting(lora, jax.device_put(params, param_shardings(LLAMA, mesh))),
    )  # fmt: skip
    state = init_state(LLAMA, mesh, optimizer, seed=3, lora=lora)
    assert set(state.params) == {"query", "value", "down"}
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.ndim]
    adapters = jax.tree.leaves(state.params)
    assert sorted(x.shape for x in moments) == sorted(2 * [x.shape for x in adapters])
    losses = []
    for _ in range(8):
        state, figures = step(state, {"lists": batch})
        losses.append(np.float32(figures["loss"]))
    assert losses[0] == np.float32(math.log(2))
    assert losses[-1] < 0.6
    jax.tree.map(np.testing.assert_array_equal, before, params)


def test_adapted_policy_samples_and_scores_as_merged():
    """The same tree serves prefill and extend: cached decoding equals the merged model's."""
    params = decoder.init_params(LLAMA, jax.random.key(0))
    lora = LoraConfig(rank=3, alpha=3.0)
    adapters = random_adapters(LLAMA, lora)
    batch = arrays()
    out = []

    @jax.jit
    def run(p):
        _, cache = decoder.prefill(LLAMA, p, batch.trunk, batch.trunk_lengths)
        own = decoder.empty_branch_cache(LLAMA, 4, 2, 8)
        h, _ = decoder.extend(
            LLAMA, p, batch.branches, cache, batch.trunk_lengths, own, jnp.array(0)
        )
        return decoder.logits(LLAMA, p, h)

    for p in (attach(LLAMA, lora, params, adapters), merge(lora, params, adapters)):
        out.append(np.asarray(run(p)))
    np.testing.assert_allclose(*out, atol=2e-5)


# ---------------------------------------------------------------------------- PEFT


@pytest.fixture
def llama(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, initializer_range=0.15,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "base")
    return model, tmp_path


def torch_logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.tensor(np.asarray(tokens, np.int64))).logits.numpy()


def test_peft_loads_ours(llama):
    import peft

    model, where = llama
    cfg, params = load_decoder(where / "base")
    lora = LoraConfig(rank=3, alpha=7.0, targets=("query", "output", "gate"), dropout=0.1)
    adapters = random_adapters(cfg, lora)
    save_adapters(where / "adapter", cfg, lora, adapters, base=str(where / "base"))
    theirs = peft.PeftModel.from_pretrained(model, where / "adapter").eval()
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 20)))
    adapted = attach(cfg, lora, params, adapters)
    hidden, _ = decoder.prefill(cfg, adapted, tokens, jnp.array([20, 20]))
    ours = decoder.logits(cfg, adapted, hidden)
    np.testing.assert_allclose(ours, torch_logits(theirs, tokens), atol=1e-4)
    # And back, bit for bit.
    lora_again, again = load_adapters(where / "adapter", cfg)
    assert (lora_again.rank, lora_again.alpha, lora_again.names()) == (3, 7.0, lora.names())
    jax.tree.map(np.testing.assert_array_equal, again, adapters)
    config = json.loads((where / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(where / "base")


@pytest.mark.parametrize("rslora", [False, True])
def test_we_load_peft(llama, rslora):
    import peft
    import torch

    model, where = llama
    cfg, params = load_decoder(where / "base")
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"],
        use_rslora=rslora, task_type="CAUSAL_LM",
    )  # fmt: skip
    theirs = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_" in name:
                p.copy_(0.2 * torch.randn(p.shape))
    theirs.save_pretrained(where / "adapter")
    lora, adapters = load_adapters(where / "adapter", cfg)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 64, (2, 20)))
    expected = torch_logits(theirs, tokens)
    for p in (attach(cfg, lora, params, adapters), merge(lora, params, adapters)):
        hidden, _ = decoder.prefill(cfg, p, tokens, jnp.array([20, 20]))
        np.testing.assert_allclose(decoder.logits(cfg, p, hidden), expected, atol=1e-4)


def test_what_does_not_fit_is_refused(tmp_path):
    lora = LoraConfig(rank=2, targets=("query",))
    adapters = init_adapters(LLAMA, lora, jax.random.key(0))
    save_adapters(tmp_path / "a", LLAMA, lora, adapters)
    smaller = DecoderConfig(vocab=64, width=16, layers=2, heads=4, kv_heads=2, head_size=8, mlp=48)
    with pytest.raises(InputError, match=r"do not fit adapter_config.json: .*shape \[2, 32\]"):
        load_adapters(tmp_path / "a", smaller)
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    for field, value in (("peft_type", "LOHA"), ("use_dora", True), ("bias", "all")):
        text = json.dumps({**config, field: value})
        (tmp_path / "a" / "adapter_config.json").write_text(text)
        with pytest.raises(InputError, match=f"{field} = .* is not supported"):
            load_adapters(tmp_path / "a", LLAMA)


def test_streams_of_a_step_drop_other_inputs():
    """Two streams of one batch: without dropout their losses are one number, with it they differ.

    The first stream draws as it does alone.
    """
    params, batch = decoder.init_params(LLAMA, jax.random.key(0)), arrays()
    grammar, part = build_grammar(SPELLING), StreamLoss(Objectives())

    def losses(dropout: float, *names: str) -> list[float]:
        lora = LoraConfig(rank=4, dropout=dropout)
        adapted = attach(LLAMA, lora, params, random_adapters(LLAMA, lora), jax.random.key(2))
        batches = dict.fromkeys(names, batch)
        parts = dict.fromkeys(names, part)
        _, figures = jax.jit(
            lambda p: loss_and_figures(LLAMA, p, batches, batches, grammar, parts)
        )(adapted)
        return [float(figures[f"{name}/nll"]) for name in names]

    same = losses(0.0, "lists", "answers")
    assert same[0] == same[1]
    first, second = losses(0.3, "lists", "answers")
    assert abs(first - second) > 1e-4
    assert losses(0.3, "lists") == pytest.approx([first], abs=1e-6)


def test_merging_by_layer_holds_no_second_model():
    """What is saved is computed as it is read: equal to the whole merge, layer by layer."""
    params, lora = decoder.init_params(LLAMA, jax.random.key(0)), LoraConfig(rank=3, alpha=5.0)
    adapters = random_adapters(LLAMA, lora)
    merged = merge(lora, params, adapters)
    before = {id(x) for x in jax.live_arrays()}
    plan = tensor_plan(LLAMA, merge_layers(lora, params, adapters))
    assert {id(x) for x in jax.live_arrays()} == before
    for ours, theirs in zip(plan, tensor_plan(LLAMA, merged), strict=True):
        assert ours.name == theirs.name and ours.shape == theirs.shape
        np.testing.assert_allclose(ours.get(), theirs.get(), atol=1e-6)
