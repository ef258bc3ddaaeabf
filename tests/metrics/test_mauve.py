"""MAUVE is another package's: what it is given, and what is said where it is absent."""

import importlib.util
import random

import pytest

from dynarag_jax.errors import InputError, MissingExtra
from dynarag_jax.metrics.mauve import mauve, mauve_texts


def test_texts_are_alces():
    assert mauve_texts(["Who?"], [" It was\nOrlen.!  "]) == ["Who? It was Orlen"]
    assert mauve_texts(["q"], ["w " * 300]) == [" ".join(["q", *["w"] * 99])]


def test_numbers_must_agree():
    with pytest.raises(InputError, match="2 questions, 1 predictions and 1 references"):
        mauve(["a", "b"], ["c"], ["d"])


@pytest.mark.skipif(importlib.util.find_spec("mauve") is not None, reason="mauve-text is here")
def test_the_absent_package_is_named():
    with pytest.raises(MissingExtra, match=r"MAUVE needs the package 'mauve-text'.*\[mauve\]"):
        mauve(["a"], ["b"], ["c"])


def test_like_texts_score_high_and_others_low(tmp_path):
    """Through the package itself, with a small GPT-2 of random weights."""
    tmp_path /= "gpt2"  # mauve-text takes what its name says for the kind of model
    pytest.importorskip("mauve", reason="mauve-text is not installed")
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    letters = Tokenizer(models.BPE())
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    end = "<|endoftext|>"
    letters.train_from_iterator(
        ["a"], trainers.BpeTrainer(special_tokens=[end], initial_alphabet=alphabet)
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=letters, eos_token=end)
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    size = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2)
    transformers.GPT2LMHeadModel(size).save_pretrained(tmp_path)

    draw = random.Random(0)

    def texts(words: str) -> list[str]:
        return [" ".join(draw.choices(words.split(), k=8)) for _ in range(60)]

    greek = "alpha beta gamma delta zeta"
    questions, answers, alike, other = texts(greek), texts(greek), texts(greek), texts("x 12 yy 3")
    options = {"model": str(tmp_path), "verbose": False}
    assert mauve(questions, answers, answers, **options) == pytest.approx(1)
    assert mauve(questions, alike, answers, **options) > 0.8
    assert mauve(questions, other, answers, **options) < 0.2
