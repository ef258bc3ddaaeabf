"""T5 1.0 and 1.1 and MonoT5 scores against transformers, float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.t5 import load_t5, monot5_text, monot5_tokens
from dynarag_jax.models import t5
from dynarag_jax.sharding import make_mesh, named

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)

KINDS = {
    "1.0": {"feed_forward_proj": "relu"},
    "1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    where = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=96, d_model=32, d_kv=12, d_ff=48, num_layers=2, num_decoder_layers=3,
        num_heads=4, relative_attention_num_buckets=8, relative_attention_max_distance=20,
        decoder_start_token_id=0, **KINDS[request.param],
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config)
    if request.param == "1.1":
        model.lm_head.weight = torch.nn.Parameter(0.2 * torch.randn(96, 32))
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn(p.shape)
    model.save_pretrained(where)
    return transformers.T5ForConditionalGeneration.from_pretrained(where).eval(), where


def texts() -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, 96, (3, 40)), rng.integers(0, 96, (3, 30))
    return jnp.asarray(tokens), jnp.array([40, 23, 1]), jnp.asarray(targets)


def theirs(model, tokens, lengths, targets):
    tokens, lengths, targets = (
        torch.tensor(np.asarray(x, np.int64)) for x in (tokens, lengths, targets)
    )
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]
    with torch.no_grad():
        return model(
            input_ids=tokens,
            attention_mask=mask.long(),
            decoder_input_ids=targets,
        )


def test_hidden_states_and_logits(model):
    model, where = model
    cfg, params = load_t5(where)
    tokens, lengths, targets = texts()
    expected = theirs(model, tokens, lengths, targets)
    encoded = jax.jit(lambda p: t5.encode(cfg, p, tokens, lengths))(params)
    for b, n in enumerate(lengths.tolist()):
        np.testing.assert_allclose(
            encoded[b, :n], expected.encoder_last_hidden_state[b, :n], atol=1e-5, rtol=0
        )
    logits = jax.jit(lambda p: t5.logits(cfg, p, t5.decode(cfg, p, encoded, lengths, targets)))(
        params
    )
    assert 0.3 < expected.logits.std() < 30
    np.testing.assert_allclose(logits, expected.logits, atol=1e-4, rtol=0)


def test_monot5_scores(model):
    model, where = model
    cfg, params = load_t5(where)
    tokens, lengths, _ = texts()
    scores = jax.jit(lambda p: t5.monot5_scores(cfg, p, tokens, lengths, true=7, false=11))(params)
    first = theirs(model, tokens, lengths, np.zeros((3, 1))).logits[:, 0, [7, 11]]
    expected = torch.log_softmax(first, dim=-1)[:, 0].numpy()
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(scores, expected, atol=1e-5, rtol=0)


def test_mesh_equals_one_device(model):
    _, where = model
    mesh = make_mesh(2, 2, 2, devices=jax.devices()[:8])
    place = lambda cfg: jax.tree.map(  # noqa: E731
        lambda p: named(mesh, p.axes), t5.parameter_table(cfg), is_leaf=lambda x: hasattr(x, "axes")
    )
    cfg, params = load_t5(where, shardings=place)
    _, single = load_t5(where)
    tokens, lengths, _ = texts()
    run = jax.jit(lambda p: t5.monot5_scores(cfg, p, tokens, lengths, 7, 11))
    assert params["decoder"]["layers"]["cross_query"].addressable_shards[0].data.shape[1:] == (
        16, 2, 12,
    )  # fmt: skip
    np.testing.assert_allclose(run(params), run(single), atol=1e-5, rtol=0)


def test_the_prompt_and_its_tokens():
    assert monot5_text("who?", "me.") == "Query: who? Document: me. Relevant:"
    words = {"true": [5], "false": [6]}
    assert monot5_tokens(lambda word, add_special_tokens: {"input_ids": words[word]}) == (5, 6)
    words["false"] = [6, 7]
    with pytest.raises(InputError, match="single tokens"):
        monot5_tokens(lambda word, add_special_tokens: {"input_ids": words[word]})
