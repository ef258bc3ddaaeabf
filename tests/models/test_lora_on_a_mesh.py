"""Adapters on a mesh: the same training, through checkpoints, and out of both."""

from __future__ import annotations

import math

import jax
import numpy as np
import optax
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.cards import ModelCard
from dynarag_jax.exchange.decoders import load_decoder, save_decoder
from dynarag_jax.exchange.tokenizers import train_word_level
from dynarag_jax.models import decoder
from dynarag_jax.models.layout import param_shardings as places
from dynarag_jax.models.lora import LoraConfig
from dynarag_jax.objectives.terms import Dpo, Objectives, TokenNll
from dynarag_jax.policy.grammar import build_grammar
from dynarag_jax.policy.scoring import make_scorer
from dynarag_jax.sharding import make_mesh
from dynarag_jax.training.checkpoints import Checkpoints
from dynarag_jax.training.exports import Start, restore_trained, save_trained
from dynarag_jax.training.step import Adapting, StreamLoss, init_state, make_step
from tests.models.test_lora import LLAMA, SPELLING, arrays

LORA = LoraConfig(rank=4, alpha=8.0, targets=("query", "output", "down"))
GRAMMAR = build_grammar(SPELLING)
DPO = {"lists": StreamLoss(Objectives(nll=TokenNll(weight=0.0), dpo=Dpo(weight=1.0)))}
RATE = 5.0
SGD = optax.sgd(RATE)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random model's directory, and its tokenizer."""
    where = tmp_path_factory.mktemp("base")
    tokenizer = train_word_level(["some words"], where / "tokenizer", ids=4)
    params = decoder.init_params(LLAMA, jax.random.key(0))
    save_decoder(where / "model", LLAMA, params, tokenizer)
    return where / "model", tokenizer


def trained(base, mesh, steps: int = 3):
    """A start on the mesh, its state after some steps of DPO, and the losses."""
    directory, tokenizer = base
    cfg, params = load_decoder(directory, shardings=lambda cfg: places(cfg, mesh))
    start = Start(cfg, params, tokenizer, SPELLING, GRAMMAR, str(directory), LORA)
    batch = arrays()
    reference = np.asarray(make_scorer(cfg, mesh, GRAMMAR)(params, batch))
    batch = batch._replace(reference=reference)
    step = make_step(cfg, mesh, SGD, GRAMMAR, DPO, adapting=Adapting(LORA, params))
    state = init_state(cfg, mesh, SGD, seed=3, lora=LORA)
    losses = []
    for _ in range(steps):
        state, figures = step(state, {"lists": batch})
        losses.append(np.float32(figures["loss"]))
    return start, state, losses


@pytest.fixture(scope="module")
def on_a_mesh(base):
    mesh = make_mesh(2, 2, 2, devices=jax.devices()[:8])
    return mesh, *trained(base, mesh)


@pytest.mark.slow
def test_training_equals_one_device_and_begins_at_log_2(base, on_a_mesh):
    _, _, state, losses = on_a_mesh
    _, one, expected = trained(base, make_mesh(1, devices=jax.devices()[:1]))
    assert losses[0] == expected[0] == np.float32(math.log(2))
    assert losses[-1] < losses[0] - 0.05
    np.testing.assert_allclose(losses, expected, atol=1e-5)
    query = state.params["query"]["a"]
    assert query.addressable_shards[0].data.size * 2 == query.size  # rows over fsdp
    for ours, theirs in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(one.params), strict=True
    ):
        # By gradients: the step magnifies their rounding, which sums in another order make.
        np.testing.assert_allclose(np.asarray(ours) / RATE, np.asarray(theirs) / RATE, atol=1e-5)


def test_checkpoints_hold_adapters_and_give_them_to_any_mesh(on_a_mesh, tmp_path):
    _, start, state, _ = on_a_mesh
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(state)
    checkpoints.wait()
    checkpoints.close()
    size = sum(f.stat().st_size for f in (tmp_path / "checkpoints").rglob("*") if f.is_file())
    # The frozen weights, which hardly pack, would take more alone. What adapters take depends on
    # how many versions of its index the format has written, which is a matter of time.
    assert size < 4 * decoder.count_parameters(LLAMA)
    for mesh in (
        make_mesh(1, 4, 2, devices=jax.devices()[:8]),
        make_mesh(1, devices=jax.devices()[:1]),
    ):
        step, adapters = restore_trained(start, mesh, tmp_path / "checkpoints")
        assert step == 3
        assert set(adapters) == set(LORA.names())
        jax.tree.map(np.testing.assert_array_equal, adapters, state.params)
        assert adapters["query"]["a"].sharding.mesh == mesh
    with pytest.raises(InputError, match=r"no checkpoint of step 2; there are 3"):
        restore_trained(start, mesh, tmp_path / "checkpoints", 2)
    with pytest.raises(InputError, match=r"no such directory of checkpoints"):
        restore_trained(start, mesh, tmp_path / "nowhere")
    import dataclasses

    other = dataclasses.replace(start, lora=dataclasses.replace(LORA, rank=2))
    with pytest.raises(InputError, match=r"params/down/a is float32\[2, 48, 4\] there, float32\["):
        restore_trained(other, mesh, tmp_path / "checkpoints")


def test_the_live_state_and_its_checkpoint_export_the_same_model(base, on_a_mesh, tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    _, start, state, _ = on_a_mesh
    save_trained(tmp_path / "live", start, state.params, card=ModelCard("# A card\n"))
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(state)
    checkpoints.close()
    other = make_mesh(1, 4, 2, devices=jax.devices()[:8])
    directory, _ = base
    cfg, params = load_decoder(directory, shardings=lambda cfg: places(cfg, other))
    again = Start(cfg, params, start.tokenizer, SPELLING, GRAMMAR, str(directory), LORA)
    _, adapters = restore_trained(again, other, tmp_path / "checkpoints")
    save_trained(tmp_path / "later", again, adapters, card=ModelCard("# A card\n"))
    live = sorted(p.relative_to(tmp_path / "live") for p in (tmp_path / "live").rglob("*.*"))
    assert {"model.safetensors", "adapter_model.safetensors"} <= {p.name for p in live}
    for name in live:
        if name.suffix == ".safetensors":
            assert (tmp_path / "live" / name).read_bytes() == (
                tmp_path / "later" / name
            ).read_bytes()
    assert (tmp_path / "live" / "model" / "README.md").read_text() == "# A card\n"

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "live" / "model")
    source = transformers.AutoModelForCausalLM.from_pretrained(directory)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        before = source(tokens).logits
        applied = peft.PeftModel.from_pretrained(source, tmp_path / "live" / "adapters")(tokens)
        ours = model(tokens).logits
    torch.testing.assert_close(ours, applied.logits, atol=1e-4, rtol=0)
    assert (ours - before).abs().max() > 1e-2
