"""ModernBERT (and ettin's encoders, which are ModernBERTs) against transformers, float32."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.cross_encoders import load_cross_encoder
from dynarag_jax.exchange.encoder_configs import config_from_hf
from dynarag_jax.exchange.encoder_weights import read_params
from dynarag_jax.models import encoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
torch.set_num_threads(1)

SHAPE = {
    "vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 5, "num_attention_heads": 3,
    "intermediate_size": 40, "initializer_range": 0.3, "max_position_embeddings": 64,
    "local_attention": 8, "pad_token_id": 1, "bos_token_id": 3, "eos_token_id": 4,
    "cls_token_id": 3, "sep_token_id": 4,
}  # fmt: skip


def make(kind: str, directory, **fields):
    torch.manual_seed(0)
    config = transformers.ModernBertConfig(**{**SHAPE, **fields})
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                p.add_(0.3 * torch.randn_like(p))
    model.set_attn_implementation("eager")
    model.save_pretrained(directory)
    return model


@pytest.mark.parametrize("kind", ["ModernBertModel", "ModernBertForMaskedLM"])
def test_hidden_states_several_windows_long(kind, tmp_path):
    model = make(kind, tmp_path)
    hf = json.loads((tmp_path / "config.json").read_text())
    cfg = config_from_hf(hf)
    assert (cfg.window, cfg.windowed) == (4, (False, True, True, False, True))
    params = read_params(tmp_path, cfg)
    rng = np.random.default_rng(0)
    lengths = np.array([40, 1, 13, 20], np.int32)
    mask = np.arange(40) < lengths[:, None]
    tokens = np.where(mask, rng.integers(2, 60, (4, 40)), 1).astype(np.int32)
    base = model if kind == "ModernBertModel" else model.model
    with torch.no_grad():
        expected = base(
            torch.tensor(tokens.astype(np.int64)), attention_mask=torch.tensor(mask).long()
        ).last_hidden_state.numpy()
    run = jax.jit(lambda p, *arrays: encoder.encode(cfg, p, *arrays))
    ours = np.asarray(run(params, jnp.asarray(tokens), jnp.asarray(lengths)))
    np.testing.assert_allclose(ours[mask], expected[mask], atol=2e-5, rtol=0)
    assert np.isfinite(ours).all()
    wide = dataclasses.replace(cfg, window=5)
    wider = np.asarray(encoder.encode(wide, params, jnp.asarray(tokens), jnp.asarray(lengths)))
    assert np.abs(wider[mask] - expected[mask]).max() > 1e-3  # the window matters here


def test_the_configs_of_both_releases_of_transformers_are_one():
    old = {
        "model_type": "modernbert", "hidden_activation": "gelu", "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0, "global_attn_every_n_layers": 3, "layer_norm_eps": 1e-05,
        "position_embedding_type": "absolute", "norm_eps": 1e-05, **SHAPE,
    }  # fmt: skip
    new = transformers.ModernBertConfig(**SHAPE).to_dict()
    assert config_from_hf(old) == config_from_hf(json.loads(json.dumps(new)))


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_activation": "relu"}, {"norm_bias": True}, {"attention_bias": True},
        {"mlp_bias": True}, {"layer_types": ["full_attention"]}, {"new_field": 1},
        {"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1e4}}},
    ],
    ids=lambda fields: next(iter(fields)),
)  # fmt: skip
def test_other_modernberts_are_refused(fields):
    hf = json.loads(json.dumps(transformers.ModernBertConfig(**SHAPE).to_dict()))
    with pytest.raises(InputError, match=next(iter(fields))):
        config_from_hf(hf | fields)


def test_cross_encoder_scores(tmp_path):
    model = make("ModernBertForSequenceClassification", tmp_path, num_labels=1)
    vocabulary = {f"w{i}": i for i in range(60)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w2"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="w3 $A w4", pair="w3 $A w4 $B w4", special_tokens=[("w3", 3), ("w4", 4)]
    )
    words.save(str(tmp_path / "tokenizer.json"))
    cross = load_cross_encoder(tmp_path)
    passages = ["w20 w21 w22 w23", "w30", " ".join(f"w{i}" for i in range(13, 40))]
    tokens, lengths, types = cross.batch(["w7 w8", "w9", "w10 w11 w12"], passages)
    mask = np.arange(tokens.shape[1]) < lengths[:, None]
    with torch.no_grad():
        expected = model(
            torch.tensor(np.where(mask, tokens, 1).astype(np.int64)),
            attention_mask=torch.tensor(mask).long(),
        ).logits[:, 0].numpy()  # fmt: skip
    run = jax.jit(lambda p, *arrays: encoder.pair_scores(cross.config, p, *arrays))
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(
        run(cross.params, tokens, lengths, types), expected, atol=1e-5, rtol=0
    )
    config = json.loads((tmp_path / "config.json").read_text())
    for field, value in (("classifier_pooling", "mean"), ("classifier_bias", True)):
        (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
        with pytest.raises(InputError, match=field):
            load_cross_encoder(tmp_path)


def test_initial_parameters_have_the_shapes_that_encode_takes():
    cfg = config_from_hf(json.loads(json.dumps(transformers.ModernBertConfig(**SHAPE).to_dict())))
    params = encoder.init_params(cfg, jax.random.key(0), scored=True)
    tokens, lengths = jnp.ones((2, 6), jnp.int32), jnp.array([6, 0])
    scores = encoder.pair_scores(cfg, params, tokens, lengths)
    assert scores.shape == (2,) and np.isfinite(np.asarray(scores)).all()
