"""RoBERTa's hidden states and one-logit cross-encoders against transformers, float32."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.cross_encoders import load_cross_encoder
from dynarag_jax.exchange.encoder_weights import read_params
from dynarag_jax.exchange.encoders import config_from_hf
from dynarag_jax.models import encoder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
torch.set_num_threads(1)

SHAPE = {
    "vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 40, "initializer_range": 0.3,
}  # fmt: skip
ROBERTA = {"max_position_embeddings": 34, "pad_token_id": 1, "type_vocab_size": 1}


def randomize(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "LayerNorm" in name or name.endswith("bias"):
                p.add_(0.3 * torch.randn_like(p))
    return model.eval()


def batch(longest: int = 32):
    rng = np.random.default_rng(0)
    lengths = np.array([longest, 1, 13, 20], np.int32)
    tokens = rng.integers(2, 60, (4, longest)).astype(np.int32)
    mask = np.arange(longest) < lengths[:, None]
    return np.where(mask, tokens, 1), lengths, mask


@pytest.mark.parametrize("head", [False, True])
def test_roberta_hidden_states(head, tmp_path):
    """Both bare and from a masked-language model, whose head is left where it is."""
    kind = transformers.RobertaForMaskedLM if head else transformers.RobertaModel
    torch.manual_seed(0)
    model = randomize(kind(transformers.RobertaConfig(**SHAPE, **ROBERTA)))
    model.save_pretrained(tmp_path)
    cfg = config_from_hf(json.loads((tmp_path / "config.json").read_text()))
    assert (cfg.positions, cfg.first_position) == (32, 2)
    params = read_params(tmp_path, cfg)
    tokens, lengths, mask = batch()
    base = model.roberta if head else model
    with torch.no_grad():
        expected = base(
            torch.tensor(tokens.astype(np.int64)), attention_mask=torch.tensor(mask).long()
        ).last_hidden_state.numpy()
    ours = np.asarray(encoder.encode(cfg, params, jnp.asarray(tokens), jnp.asarray(lengths)))
    np.testing.assert_allclose(ours[mask], expected[mask], atol=1e-5, rtol=0)


def word_tokenizer(directory, pair: str) -> None:
    vocabulary = {f"w{i}": i for i in range(60)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w2"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="w3 $A w4", pair=pair, special_tokens=[("w3", 3), ("w4", 4)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))


CROSS = {
    "bert": ("BertConfig", "BertForSequenceClassification", {"max_position_embeddings": 40},
             "w3 $A w4 $B:1 w4:1"),
    "roberta": ("RobertaConfig", "RobertaForSequenceClassification", ROBERTA,
                "w3 $A w4 w4 $B w4"),
}  # fmt: skip


@pytest.mark.parametrize("name", CROSS)
def test_cross_encoder_scores(name, tmp_path):
    config, kind, fields, pair = CROSS[name]
    torch.manual_seed(0)
    hf = getattr(transformers, config)(**{**SHAPE, **fields}, num_labels=1)
    model = randomize(getattr(transformers, kind)(hf))
    model.save_pretrained(tmp_path)
    word_tokenizer(tmp_path, pair)
    cross = load_cross_encoder(tmp_path)
    questions = ["w7 w8", "w9", "w10 w11 w12"]
    passages = ["w20 w21 w22 w23", "w30", " ".join(f"w{i}" for i in range(13, 30))]
    tokens, lengths, types = cross.batch(questions, passages)
    assert tokens[0, :4].tolist() == [3, 7, 8, 4]
    assert types.max() == (1 if name == "bert" else 0)
    mask = np.arange(tokens.shape[1]) < lengths[:, None]
    padded = np.where(mask, tokens, hf.pad_token_id)
    with torch.no_grad():
        expected = model(
            torch.tensor(padded.astype(np.int64)),
            attention_mask=torch.tensor(mask).long(),
            token_type_ids=torch.tensor(types.astype(np.int64)),
        ).logits[:, 0].numpy()  # fmt: skip
    run = jax.jit(lambda p, *arrays: encoder.pair_scores(cross.config, p, *arrays))
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(
        run(cross.params, tokens, lengths, types), expected, atol=1e-5, rtol=0
    )


def test_more_than_one_logit_is_refused(tmp_path):
    hf = transformers.BertConfig(**SHAPE, num_labels=3)
    transformers.BertForSequenceClassification(hf).save_pretrained(tmp_path)
    word_tokenizer(tmp_path, "w3 $A w4 $B:1 w4:1")
    with pytest.raises(InputError, match=r"classifier.weight has shape \[3, 24\], not \[1, 24\]"):
        load_cross_encoder(tmp_path)
