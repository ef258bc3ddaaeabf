"""Encoder policies on disk: cross-encoders for others, exactly themselves for us, ONNX files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.calibration import Calibration, ListBias, write_calibration
from dynarag_jax.exchange.encoder_policies import (
    is_encoder_policy,
    policy_fingerprint,
    read_encoder_policy,
    save_encoder_policy,
)
from dynarag_jax.exchange.onnx_policy import onnx_list, write_onnx
from dynarag_jax.models.config import is_parameter
from dynarag_jax.models.list_head import ListHeadConfig, list_head_table
from dynarag_jax.policy.encoder_model import load_encoder_policy
from dynarag_jax.policy.encoder_policy import list_logps
from dynarag_jax.policy.pair_tokens import collate_pairs
from dynarag_jax.records import Passage, Question
from dynarag_jax.sampling.choice import Sampling
from dynarag_jax.sampling.encoder_sampler import EncoderSampler
from dynarag_jax.sharding import make_mesh

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
WORDS = [f"w{i}" for i in range(40)]
SIZES = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40,
    "num_labels": 1, "initializer_range": 0.4, "max_position_embeddings": 66,
}  # fmt: skip
FAMILIES = {
    "bert": ("BertConfig", "BertForSequenceClassification", {}),
    "roberta": ("RobertaConfig", "RobertaForSequenceClassification", {"pad_token_id": 1}),
    "modernbert": (
        "ModernBertConfig", "ModernBertForSequenceClassification",
        {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, "cls_token_id": 2,
         "sep_token_id": 3, "local_attention": 8, "classifier_pooling": "cls"},
    ),
}  # fmt: skip


def save_cross_encoder(where, family):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    table = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(table, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    second = 0 if family == "modernbert" else 1
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A [SEP] $B:{second} [SEP]:{second}",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(where / "tokenizer.json"))
    config, name, more = FAMILIES[family]
    if family == "roberta":
        more = more | {"type_vocab_size": 2}
    torch.manual_seed(0)
    model = getattr(transformers, name)(
        getattr(transformers, config)(vocab_size=len(words), **SIZES | more)
    )
    model.save_pretrained(where)
    return model.eval()


def with_head(stored, seed=0, **fields):
    """The cross-encoder as a policy with a head of which nothing is at its start."""
    settings = {k: v for k, v in fields.items() if k in ("interaction", "pooling", "reencode")}
    shape = {k: v for k, v in fields.items() if k not in settings}
    cfg = ListHeadConfig(
        **{"width": 8, "layers": 2, "steps": 2, "heads": 2, "mlp": 12, "vectors": 24} | shape
    )
    rng = np.random.default_rng(seed)

    def one(p):
        start = 1.0 if p.scale is None else 0.0
        return np.float32(start + rng.normal(size=p.shape) * ((p.scale or 0) + 0.3))

    head = jax.tree.map(one, list_head_table(cfg), is_leaf=is_parameter)
    settings = {"pieces": 40, "max_list": 4, **settings}
    return replace(stored, head=cfg, head_params=head, settings=settings)


def questions(count=3, n=6):
    rng = np.random.default_rng(1)
    text = lambda n: " ".join(rng.choice(WORDS, n))  # noqa: E731
    return [
        Question(
            f"q{i}",
            text(4),
            passages=tuple(
                Passage(f"p{j}", text(int(rng.integers(1, 20))), score=float(rng.normal()))
                for j in range(n)
            ),
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_others_read_the_cross_encoder_and_we_read_all_of_it_exactly(family, tmp_path):
    model = save_cross_encoder(tmp_path, family)
    stored = with_head(read_encoder_policy(tmp_path), retriever=family == "bert")
    assert not is_encoder_policy(tmp_path)
    save_encoder_policy(tmp_path / "policy", stored)
    assert is_encoder_policy(tmp_path / "policy")
    again = read_encoder_policy(tmp_path / "policy")
    assert (again.head, again.settings, again.encoder) == (
        stored.head, stored.settings, stored.encoder,
    )  # fmt: skip
    for one, other in ((again.encoder_params, stored.encoder_params),
                       (again.head_params, stored.head_params)):  # fmt: skip
        jax.tree.map(np.testing.assert_array_equal, one, other)
    # Written again, it is the same in every byte.
    save_encoder_policy(tmp_path / "twice", again)
    assert policy_fingerprint(tmp_path / "policy") == policy_fingerprint(tmp_path / "twice")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "policy")
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(theirs.state_dict()[name], tensor, err_msg=name)
    # As a cross-encoder it scores what its scores are to the head.
    policy = load_encoder_policy(tmp_path / "policy", make_mesh(devices=jax.devices()[:1]))
    (question,) = questions(1)
    pairs = policy.pair_maker().pairs(question)
    for tokens, kinds, text in zip(pairs.tokens, pairs.types, question.passages, strict=True):
        encoded = policy.tokenizer.encode(question.text, text.text)
        assert tokens.tolist() == encoded.ids
        del kinds


def test_sentence_transformers_reads_it_as_a_cross_encoder(tmp_path):
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    save_cross_encoder(tmp_path, "bert")
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]", model_max_length=64,
    )  # fmt: skip
    wrapped.save_pretrained(tmp_path)
    save_encoder_policy(tmp_path / "policy", with_head(read_encoder_policy(tmp_path), layers=0))
    theirs = sentence_transformers.CrossEncoder(str(tmp_path / "policy"), device="cpu")
    (question,) = questions(1)
    found = theirs.predict([(question.text, p.text) for p in question.passages])
    policy = load_encoder_policy(tmp_path / "policy", make_mesh(devices=jax.devices()[:1]))
    candidates = collate_pairs([policy.pair_maker().pairs(question)], 6, 40)
    first = jax.jit(list_logps, static_argnums=0)(
        policy.cfg, policy.params, candidates, np.zeros((1, 1, 1), np.int32), np.ones((1, 1), int)
    ).first
    np.testing.assert_allclose(first[0], found, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("bert", {}),
        ("bert", {"retriever": True, "pooling": "mean"}),
        ("bert", {"interaction": True, "pair_score": False}),
        ("roberta", {}),
        ("bert", {"layers": 0}),
    ],
    ids=["bert", "retriever and mean", "interaction", "roberta", "plain"],
)
def test_onnx_files_give_our_lists_and_scores(family, fields, tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    save_cross_encoder(tmp_path, family)
    stored = with_head(read_encoder_policy(tmp_path), **fields)
    save_encoder_policy(tmp_path / "policy", stored)
    bias = ListBias(0.7, -1.2) if family == "roberta" or "layers" in fields else ListBias()
    if bias:
        write_calibration(tmp_path / "policy", Calibration(bias))
    write_onnx(tmp_path / "policy", tmp_path / "policy.onnx")
    session = runtime.InferenceSession(str(tmp_path / "policy.onnx"))
    policy = load_encoder_policy(tmp_path / "policy", make_mesh(devices=jax.devices()[:1]))
    policy = policy.with_bias(bias)
    sampler = EncoderSampler(policy, 4, 0)
    run = jax.jit(list_logps, static_argnums=0)
    for question in questions():
        pairs = sampler.maker.pairs(question)
        candidates = collate_pairs([pairs], 6, 40)
        batch = candidates.pairs
        longest = pairs.longest
        feeds = {
            "tokens": np.asarray(batch.tokens[0, :, :longest], np.int64),
            "mask": np.asarray(np.arange(longest) < batch.lengths[0][:, None], np.int64),
            "types": np.asarray(batch.types[0, :, :longest], np.int64),
        }
        if fields.get("retriever"):
            feeds["retriever"] = pairs.retriever
        (ours,) = sampler.lists([question], Sampling(temperature=0.0))
        assert onnx_list(session, feeds, 4) == ours.lists[0]
        # Every step's logits, after the same normalization, are our log-probabilities.
        one = (2, 5, 1)
        tokens = np.array([[[*one, 0]]], np.int32)
        steps = run(policy.cfg, policy.params, candidates, tokens, np.array([[4]])).steps[0, 0]
        memory, base = session.run(["memory", "base"], feeds)
        chosen = np.zeros((4, 7), np.float32)
        for step in range(4):
            chosen[step, list(one[:step])] = 1
        (logits,) = session.run(
            ["logits"], {"memory_in": memory, "base_in": base, "chosen": chosen}
        )
        logits = np.where(chosen > 0, -np.inf, logits)
        logps = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        expected = [logps[step, token] for step, token in enumerate((*one, 0))]
        np.testing.assert_allclose(expected, steps, atol=1e-4)


def test_eight_bits_are_small_and_near(tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    save_cross_encoder(tmp_path, "bert")
    save_encoder_policy(tmp_path / "policy", with_head(read_encoder_policy(tmp_path)))
    scores = {}
    for int8 in (False, True):
        path = tmp_path / f"{int8}.onnx"
        write_onnx(tmp_path / "policy", path, int8)
        session = runtime.InferenceSession(str(path))
        policy = load_encoder_policy(tmp_path / "policy", make_mesh(devices=jax.devices()[:1]))
        pairs = policy.pair_maker().pairs(questions(1)[0])
        batch = collate_pairs([pairs], 6, 40).pairs
        feeds = {
            "tokens": np.asarray(batch.tokens[0], np.int64),
            "mask": np.asarray(np.arange(40) < batch.lengths[0][:, None], np.int64),
            "types": np.asarray(batch.types[0], np.int64),
        }
        (scores[int8],) = session.run(["scores"], feeds)
        assert len(onnx_list(session, feeds, 4)) <= 4
    assert np.corrcoef(scores[False], scores[True])[0, 1] > 0.95
    assert (tmp_path / "True.onnx").stat().st_size < (tmp_path / "False.onnx").stat().st_size


def test_what_is_no_policy_is_refused_by_name(tmp_path):
    save_cross_encoder(tmp_path, "bert")
    stored = with_head(read_encoder_policy(tmp_path))
    with pytest.raises(InputError, match="not yet a policy over lists"):
        load_encoder_policy(tmp_path, make_mesh(devices=jax.devices()[:1]))
    with pytest.raises(InputError, match="has no list head"):
        save_encoder_policy(tmp_path / "bare", read_encoder_policy(tmp_path))
    save_encoder_policy(tmp_path / "policy", stored)
    with pytest.raises(InputError, match="exists"):
        save_encoder_policy(tmp_path / "policy", stored)

    def changed(**fields):
        other = tmp_path / "other"
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(tmp_path / "policy", other)
        said = json.loads((other / "list_policy.json").read_text())
        (other / "list_policy.json").write_text(json.dumps(said | fields))
        return other

    mesh = make_mesh(devices=jax.devices()[:1])
    for fields, message in (
        ({"format": 9}, "'format' is 9"),
        ({"polling": "mean"}, "'polling' is not known .did you mean 'pooling'"),
        ({"pieces": "many"}, "'pieces' must be int, found 'many'"),
        ({"pooling": "last"}, "'pooling' is 'last'"),
        ({"head": {"widht": 3}}, "'head.widht' is not known"),
        ({"head": {"width": 6, "heads": 2, "vectors": 24}}, "do not fit list_policy.json"),
        ({"head": 3}, "'head' must be an object"),
    ):
        with pytest.raises(InputError, match=message):
            load_encoder_policy(changed(**fields), mesh)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(InputError, match="'model_type' is 'llama'"):
        read_encoder_policy(tmp_path)


def test_an_encoder_without_a_head_begins_with_scores_of_zero(tmp_path):
    save_cross_encoder(tmp_path, "bert")
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path).bert
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).unlink()
    model.save_pretrained(tmp_path)
    stored = read_encoder_policy(tmp_path)
    assert not np.asarray(stored.encoder_params["head"]["score"]).any()
    assert np.asarray(stored.encoder_params["head"]["dense"]).any()
