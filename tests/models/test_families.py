"""Every decoder family against transformers, float32, small random models.

Each family is written by transformers, read by us, and compared: logits, greedy generation, the
trunk layout against plain concatenation, and one device against a mesh of eight.
"""

from __future__ import annotations

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.exchange.decoders import config_to_hf, decoder_config, load_decoder, tensor_plan
from dynarag_jax.exchange.tensors import write_tensors
from dynarag_jax.files import write_json
from dynarag_jax.models import decoder
from dynarag_jax.models.layout import param_shardings
from dynarag_jax.sampling.sampler import Sampling, sample
from dynarag_jax.sharding import make_mesh, named

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

SHAPE = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # The embeddings that order-1 logits ask for, also where they are tied.
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
    "rope_theta": 500.0,
}
LOCAL = ["sliding_attention", "full_attention"]
# name -> (configuration class, its fields); windows are short enough to bite in 40 tokens.
FAMILIES = {
    "llama2": ("LlamaConfig", {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "llama3": ("LlamaConfig", {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}),
    "llama3.2": ("LlamaConfig", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-head-size": ("LlamaConfig", {"head_dim": 20}),
    "mistral": ("MistralConfig", {"sliding_window": 7}),
    "mistral-full": ("MistralConfig", {"sliding_window": None, "head_dim": 16}),
    "qwen2.5": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2.5-window": (
        "Qwen2Config", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 24,
         "attn_logit_softcapping": 4.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 24, "layer_types": LOCAL,
         "rope_parameters": {
             "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 2000.0},
             "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}},
    ),
    # As the smallest Gemma 3: one key head, and heads wider together than the model.
    "gemma3-270m": (
        "Gemma3TextConfig",
        {"head_dim": 32, "num_key_value_heads": 1, "sliding_window": 8,
         "query_pre_attn_scalar": 32, "layer_types": LOCAL},
    ),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0], "tie_word_embeddings": True}),
    "smollm3-window": (
        "SmolLM3Config",
        {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 6},
    ),
    "olmo2": ("Olmo2Config", {"tie_word_embeddings": False}),
    "granite": (
        "GraniteConfig",
        {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.4,
         "logits_scaling": 0.5, "tie_word_embeddings": True},
    ),
    "phi3": ("Phi3Config", {"sliding_window": 9, "tie_word_embeddings": False}),
    # As Phi-4-mini: a part of each head turns, each frequency by a factor of its own, and turned
    # numbers are scaled; the texts here end before the first positions do.
    "phi4-mini": (
        "Phi3Config",
        {"hidden_size": 64, "num_attention_heads": 4, "tie_word_embeddings": True,
         "partial_rotary_factor": 0.75, "original_max_position_embeddings": 128,
         "rope_parameters": {
             "rope_type": "longrope", "rope_theta": 100.0, "partial_rotary_factor": 0.75,
             "short_factor": [1.0, 1.2, 1.5, 2.0, 2.5, 3.0],
             "long_factor": [4.0, 5.0, 6.0, 7.0, 8.0, 9.0]}},
    ),
}  # fmt: skip


def source_model(name: str):
    """A random transformers model of a family, every parameter random (norms and biases too)."""
    kind, fields = FAMILIES[name]
    config = getattr(transformers, kind)(**{**SHAPE, **fields})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for key, p in model.named_parameters():
            if p.ndim == 1:
                p += 0.3 * torch.randn(p.shape)
            if key.endswith("embed_tokens.weight") and config.model_type.startswith("gemma"):
                p /= config.hidden_size**0.5 * SHAPE["initializer_range"]
    return model.eval()


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    for name in FAMILIES:
        source_model(name).save_pretrained(root / name)
    return {name: root / name for name in FAMILIES}


def batch(vocab: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Two trunks of unequal lengths with two branches each."""
    rng = np.random.default_rng(1)
    trunk, branches = rng.integers(0, vocab, (2, 30)), rng.integers(0, vocab, (2, 2, 11))
    return jnp.asarray(trunk), jnp.array([30, 19]), jnp.asarray(branches)


def theirs(model, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens.astype(np.int64))).logits.numpy()


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_layout(name, directories):
    """Prefill, training pass and cached extension all give transformers' logits."""
    model = source_model(name)
    cfg, params = load_decoder(directories[name])
    trunk, lengths, branches = batch(cfg.vocab)

    @jax.jit
    def run(params):
        hidden, cache = decoder.prefill(cfg, params, trunk, lengths)
        _, y = decoder.trunk_and_branches(cfg, params, trunk, lengths, branches)
        own, steps = decoder.empty_branch_cache(cfg, 2, 2, branches.shape[2]), []
        for first, last in ((0, 4), (4, 5), (5, 11)):
            piece = branches[:, :, first:last]
            h, own = decoder.extend(cfg, params, piece, cache, lengths, own, jnp.array(first))
            steps.append(h)
        extended = jnp.concatenate(steps, axis=2)
        return [decoder.logits(cfg, params, x) for x in (hidden, y, extended)]

    prefilled, predicted, extended = map(np.asarray, run(params))
    trunk, branches = np.asarray(trunk), np.asarray(branches)
    for b, n in enumerate(lengths.tolist()):
        whole = np.stack([np.concatenate([trunk[b, :n], branch]) for branch in branches[b]])
        for i, expected in enumerate(theirs(model, whole)):
            assert 0.3 < expected.std() < 30, "logits of order 1"
            np.testing.assert_allclose(prefilled[b, :n], expected[:n], atol=1e-4, rtol=0)
            np.testing.assert_allclose(predicted[b, i], expected[n - 1 : -1], atol=1e-4, rtol=0)
            np.testing.assert_allclose(extended[b, i], expected[n:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_is_the_model_that_was_read(name, directories, tmp_path):
    """Configuration and tensors, out and read by transformers, and by us."""
    cfg, params = load_decoder(directories[name])
    config = config_to_hf(cfg, "float32", {"bos_token_id": 1, "eos_token_id": 2})
    write_json(tmp_path / "config.json", config)
    write_tensors(tmp_path, tensor_plan(cfg, params), "float32", 10**9)
    assert decoder_config(tmp_path) == cfg
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    tokens = np.asarray(batch(cfg.vocab)[0])
    expected = theirs(source_model(name), tokens)
    np.testing.assert_allclose(theirs(model.eval(), tokens), expected, atol=1e-5)


def sizes_for(name: str) -> tuple[int, int, int]:
    """A mesh of several devices that divides a family's model: one key head is not cut."""
    return (1, 4, 1) if FAMILIES[name][1].get("num_key_value_heads") == 1 else (2, 2, 2)


# One of each way to lay tensors out; the others have the same tensors, of other sizes.
LAID_OUT = {"llama2", "qwen3", "gemma2", "gemma3-270m", "olmo2", "granite", "phi4-mini"}
MESHES = [
    name if name in LAID_OUT else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES
]
# One device, and a mesh data x fsdp x tensor of eight.
FAST = {*((name, (1, 1, 1)) for name in LAID_OUT), ("gemma3", (2, 2, 2))}
SIZES = [
    one if one in FAST else pytest.param(*one, marks=pytest.mark.slow)
    for name in FAMILIES
    for one in ((name, (1, 1, 1)), (name, sizes_for(name)))
]


@pytest.mark.parametrize(("name", "sizes"), SIZES)
def test_greedy_equals_generate(name, sizes, directories):
    """64 greedy tokens against the trunk cache equal ``generate``."""
    model = source_model(name)
    mesh = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
    cfg, params = load_decoder(directories[name], shardings=lambda cfg: param_shardings(cfg, mesh))
    copies = 2 if math.prod(sizes) > 1 else 1  # rows for every shard of the batch
    trunk, lengths = (jnp.concatenate([x] * copies) for x in batch(cfg.vocab)[:2])
    run = jax.jit(
        lambda params, trunk, lengths: sample(
            cfg, params, trunk, lengths, jax.random.split(jax.random.key(0), 2 * copies),
            branches=1, max_tokens=64, end=-1, sampling=Sampling(temperature=0.0),
        ).tokens
    )  # fmt: skip
    with jax.set_mesh(mesh):
        rows = jax.device_put((trunk, lengths), named(mesh, ("batch",)))
        ours = np.asarray(run(params, *rows))
    np.testing.assert_array_equal(ours[:2], ours[-2:])
    for b, n in enumerate(lengths.tolist()[:2]):
        prompt = torch.tensor(np.asarray(trunk, np.int64)[b : b + 1, :n])
        with torch.no_grad():
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64,
                min_new_tokens=64, do_sample=False, pad_token_id=0,
            )  # fmt: skip
        np.testing.assert_array_equal(ours[b, 0], out[0, n:].numpy())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3"])
def test_gradients_are_finite_beyond_the_lengths(name, directories):
    """Windows leave rows of padding no key of their own; they must not poison the gradient."""
    cfg, params = load_decoder(directories[name])
    trunk, _, branches = batch(cfg.vocab)
    lengths = jnp.array([3, 1])

    def loss(params):
        x, y = decoder.trunk_and_branches(cfg, params, trunk, lengths, branches)
        return decoder.logits(cfg, params, y).mean() + 0 * x.sum()

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", MESHES)
def test_mesh_equals_one_device(name, directories):
    """Loaded onto a mesh of simulated devices: equal results."""
    sizes = sizes_for(name)
    mesh = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
    cfg, params = load_decoder(directories[name], shardings=lambda cfg: param_shardings(cfg, mesh))
    query = params["layers"]["query"]
    assert query.addressable_shards[0].data.size * 4 == query.size
    trunk, lengths, branches = (jnp.concatenate([x, x]) for x in batch(cfg.vocab))

    @jax.jit
    def run(params):
        _, y = decoder.trunk_and_branches(cfg, params, trunk, lengths, branches)
        return decoder.logits(cfg, params, y)

    with jax.set_mesh(mesh):
        many = np.asarray(run(params))
    _, one = load_decoder(directories[name])
    for n, b in zip(np.asarray(run(one)), many, strict=True):
        np.testing.assert_allclose(b, n, atol=1e-4, rtol=0)
