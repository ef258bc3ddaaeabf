"""Tokenizers of the families that people bring, each made on the fly, and tables of one shape."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.policy.tokenizer_families import MAKERS, make

SPECIAL = ["<pad>", "<eos>", "<unk>"]
IDS = 20


def _corpus() -> list[str]:
    """Sentences, and lists in plenty, so that a trained tokenizer merges across their pieces."""
    rng = random.Random(0)
    lists = [
        ", ".join(f"[{i}]" for i in rng.sample(range(1, IDS + 1), rng.randint(1, 6)))
        for _ in range(400)
    ]
    words = "None of the passages answers a question about rivers and mayors in 1987".split()
    return lists + ["None"] * 50 + [" ".join(rng.sample(words, 6)) for _ in range(50)]


def _words(pattern: str, vocabulary: list[str]) -> Tokenizer:
    words = {word: i for i, word in enumerate(SPECIAL + vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    return tokenizer


def _byte_bpe(*before: pre_tokenizers.PreTokenizer, use_regex: bool, size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


def _sentencepiece(digits: bool) -> Tokenizer:
    marks = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    if digits:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [marks, pre_tokenizers.Digits(individual_digits=True)]
        )
        trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=SPECIAL, show_progress=False)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = marks
        trainer = trainers.UnigramTrainer(
            vocab_size=90, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=True)
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


NUMBERS = [str(i) for i in range(1, IDS + 1)]
FAMILIES = {
    "ids-as-words": lambda: _words(
        r"\[\d+\]|\w+|[^\w\s]", [f"[{i}]" for i in NUMBERS] + ["None", ",", "the"]
    ),
    "numbers-as-words": lambda: _words(r"\d+|\w+|[^\w\s]", ["[", "]", *NUMBERS, "None", ",", "of"]),
    "byte-bpe": lambda: _byte_bpe(use_regex=True, size=300),
    "byte-bpe-merging-across-everything": lambda: _byte_bpe(use_regex=False, size=420),
    "byte-bpe-digits": lambda: _byte_bpe(
        pre_tokenizers.Digits(individual_digits=True), use_regex=True, size=300
    ),
    "unigram-metaspace": lambda: _sentencepiece(digits=False),
    "bpe-metaspace-digits": lambda: _sentencepiece(digits=True),
}


def wrap(tokenizer: Tokenizer, **special: str) -> Any:
    """As ``transformers`` hands tokenizers out."""
    special = special or {"eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


# The published families, and one of each kind of vocabulary beside them.
FAST = {*MAKERS, "byte-bpe-digits", "unigram-metaspace"}


@pytest.fixture(
    scope="session",
    params=[
        pytest.param(name, marks=[] if name in FAST else pytest.mark.slow)
        for name in (*FAMILIES, *MAKERS)
    ],
)
def family(request, tmp_path_factory):
    """(name, tokenizer) of each family in turn."""
    name = request.param
    if name in MAKERS:
        return name, make(name, _corpus(), tmp_path_factory.mktemp(name) / "tokenizer")
    return name, wrap(FAMILIES[name]())


@pytest.fixture(scope="session")
def numbers_as_words():
    """A word-level tokenizer that knows the numbers 1 to 20."""
    return wrap(FAMILIES["numbers-as-words"]())


@pytest.fixture(scope="session")
def make_words():
    """``make(pattern, vocabulary, **special)``: a word-level tokenizer of one's own."""
    return lambda pattern, vocabulary, **special: wrap(_words(pattern, vocabulary), **special)


def _pad(grammar, states: int, arcs: int):
    count, rows = len(grammar.first_arc), 4 * states + arcs
    assert count <= states
    assert grammar.width <= arcs
    assert len(grammar.arcs) <= rows
    nothing = np.broadcast_to(grammar.arcs[-1:], (rows - len(grammar.arcs), 5))
    return dataclasses.replace(
        grammar,
        arcs=np.concatenate([grammar.arcs, nothing]),
        first_arc=np.pad(grammar.first_arc, (0, states - count)),
        arc_count=np.pad(grammar.arc_count, (0, states - count)),
        width=arcs,
        id_position=0,
    )


@pytest.fixture(scope="session")
def pad():
    """``pad(grammar, states, arcs)``: the same automaton in larger tables, to compile once."""
    return _pad
