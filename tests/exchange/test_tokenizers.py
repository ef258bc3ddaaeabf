"""Tokenizers: what is saved is loaded by transformers itself, and texts come back."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.tokenizers import (
    load_tokenizer,
    save_tokenizer,
    tokenizer_fingerprint,
    train_bpe,
    train_word_level,
)

IDS = 16
TEXTS = [
    "who leads the company where ana velk works?",
    "amber mills is based in port velna. she likes chess.",
    "question: is it (so), or not; yes!",
]
CORPUS = [f"passage {i} was written in {1990 + i}, in port velna. Ünïcode!" for i in range(40)]


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizers") / "words"
    train_word_level(TEXTS, path, ids=IDS)
    return path


@pytest.fixture(scope="module")
def bpe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizers") / "bpe"
    train_bpe(CORPUS, path, vocab_size=320)
    return path


@pytest.fixture(scope="module", params=["words", "bpe"])
def either(request) -> Path:
    return request.getfixturevalue(request.param)


def test_transformers_loads_the_directory(either):
    files = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert {f.name for f in either.iterdir()} == files
    theirs, ours = AutoTokenizer.from_pretrained(either), load_tokenizer(either)
    assert isinstance(theirs, PreTrainedTokenizerFast) and theirs.is_fast
    assert theirs.get_vocab() == ours.get_vocab()
    for name, token in (("pad", "<pad>"), ("eos", "<eos>"), ("unk", "<unk>")):
        assert getattr(theirs, f"{name}_token") == getattr(ours, f"{name}_token") == token
    assert [ours.pad_token_id, ours.eos_token_id, ours.unk_token_id] == [0, 1, 2]
    assert len(theirs) == max(theirs.get_vocab().values()) + 1
    # No token is put in unasked.
    text = "[3], [1]"
    assert theirs(text)["input_ids"] == theirs(text, add_special_tokens=False)["input_ids"]


def test_words_and_ids_are_one_token_each(words):
    tokenizer = load_tokenizer(words)
    vocabulary = tokenizer.get_vocab()
    found = {w for text in TEXTS for w in re.findall(r"\w+|[^\w\s]", text)}
    fixed = ["<pad>", "<eos>", "<unk>", "None", ",", *(f"[{i}]" for i in range(1, IDS + 1))]
    assert sorted(vocabulary, key=lambda token: vocabulary[token]) == [
        *fixed,
        *sorted(found - {","}),
    ]
    for i in range(1, IDS + 1):
        assert tokenizer(f"[{i}]")["input_ids"] == [vocabulary[f"[{i}]"]]
        assert tokenizer(f"x[{i}]amber")["input_ids"] == [
            tokenizer.unk_token_id,
            vocabulary[f"[{i}]"],
            vocabulary["amber"],
        ]
    assert tokenizer(f"[{IDS + 1}] zebra")["input_ids"] == [tokenizer.unk_token_id] * 2
    assert tokenizer("None")["input_ids"] == [vocabulary["None"]]


@given(data=st.data())
def test_lists_and_answers_come_back(words, data):
    tokenizer = load_tokenizer(words)
    ids = data.draw(st.lists(st.integers(1, IDS), unique=True, max_size=IDS))
    text = ", ".join(f"[{i}]" for i in ids) or "None"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    ended = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert tokenizer.decode(ended, skip_special_tokens=True) == text


@given(
    sentences=st.lists(
        st.tuples(
            st.lists(st.sampled_from("ana velk amber mills [2] works (so) where".split())),
            st.sampled_from(". , ? ! : ;".split()),
        ),
        min_size=1,
        max_size=4,
    ),
    gap=st.sampled_from([" ", "  ", "\n", "\t "]),
)
def test_spacing_is_normalized_and_nothing_else(words, sentences, gap):
    tokenizer = load_tokenizer(words)
    pieces = [" ".join(("who", *middle)) + end for middle, end in sentences]
    normal = " ".join(pieces)
    assert tokenizer.decode(tokenizer(normal)["input_ids"]) == normal
    loose = normal.replace(" ", gap).replace("?", f"{gap}?")
    assert tokenizer.decode(tokenizer(loose)["input_ids"]) == normal


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_bpe_gives_back_any_text(bpe, text):
    tokenizer = load_tokenizer(bpe)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids


@given(
    before=st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    after=st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    i=st.integers(1, 500),
)
def test_bpe_spells_an_id_the_same_everywhere(bpe, before, after, i):
    tokenizer = load_tokenizer(bpe)
    alone = tokenizer(f"[{i}]")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(alone) == ["[", *str(i), "]"]
    left, right = tokenizer(before)["input_ids"], tokenizer(after)["input_ids"]
    assert tokenizer(f"{before}[{i}]{after}")["input_ids"] == [*left, *alone, *right]


def test_bpe_learns_from_the_corpus(bpe, tmp_path):
    tokenizer = load_tokenizer(bpe)
    # The corpus has fewer pairs to merge than there is room for.
    assert 259 < len(tokenizer) < 320
    assert len(train_bpe(CORPUS, tmp_path / "smaller", vocab_size=270)) == 270
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("passage in port velna")["input_ids"])
    assert tokens == ["passage", "Ġin", "Ġport", "Ġvelna"]


def digest(path: Path) -> str:
    return hashlib.sha256(b"".join(f.read_bytes() for f in sorted(path.iterdir()))).hexdigest()


def test_training_twice_gives_the_same_bytes(words, bpe, tmp_path):
    train_word_level(iter(TEXTS[::-1]), tmp_path / "words", ids=IDS)
    assert digest(tmp_path / "words") == digest(words)
    for i, texts in enumerate((CORPUS, CORPUS[::-1])):
        train_bpe(iter(texts), tmp_path / f"bpe{i}", vocab_size=320)
        assert digest(tmp_path / f"bpe{i}") == digest(bpe)


def test_directories_are_written_whole_or_not_at_all(words, tmp_path):
    place = tmp_path / "tokenizer"

    def broken():
        yield "fine"
        raise RuntimeError("the source failed")

    with pytest.raises(RuntimeError, match="the source failed"):
        train_word_level(broken(), place, ids=2)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="exists already"):
        train_word_level(TEXTS, words, ids=2)
    assert len(train_word_level(["a"], place, ids=2)) == 8
    assert len(train_word_level(["a b"], place, ids=2, overwrite=True)) == 9
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer"]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (lambda path: train_word_level(["a"], path, ids=0), "ids must be at least 1, found 0"),
        (lambda path: train_word_level([" ", ""], path, ids=1), "there are no words to train on"),
        (lambda path: train_word_level("a b", path, ids=1), "found one string 'a b'"),
        (
            lambda path: train_word_level(json.loads('["a", 3]'), path, ids=1),
            "text 1 must be a string",
        ),
        (lambda path: train_bpe([], path, 300), "there are no words to train on"),
        (lambda path: train_bpe(["a"], path, 258), "vocab_size must be at least 259 (256 bytes"),
    ],
)
def test_what_cannot_be_trained_is_refused(train, message, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)):
        train(tmp_path / "tokenizer")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------- loading


def edited(source: Path, target: Path, **changes: str | None) -> Path:
    """A copy whose tokenizer_config.json differs; None removes a key."""
    target.mkdir()
    (target / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    config = json.loads((source / "tokenizer_config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    return target


def test_without_a_pad_token_the_end_of_text_pads(bpe, tmp_path):
    place = edited(bpe, tmp_path / "llama", pad_token=None, padding_side="left")
    tokenizer = load_tokenizer(str(place))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1
    assert len(tokenizer) == len(load_tokenizer(bpe))
    assert tokenizer(["port", "port velna"], padding=True)["input_ids"][0][-1] == 1


def test_without_an_end_of_text_it_is_refused(bpe, tmp_path):
    place = edited(bpe, tmp_path / "endless", eos_token=None)
    with pytest.raises(InputError, match="endless: has no eos_token"):
        load_tokenizer(place)


def test_a_python_tokenizer_is_refused(tmp_path):
    place = tmp_path / "slow"
    place.mkdir()
    (place / "vocab.json").write_text('{"<unk>": 0, "a</w>": 1}')
    (place / "merges.txt").write_text("#version: 0.2\n")
    (place / "tokenizer_config.json").write_text('{"tokenizer_class": "CTRLTokenizer"}')
    with pytest.raises(InputError, match="slow: CTRLTokenizer is not a fast tokenizer"):
        load_tokenizer(place)


def test_places_without_a_tokenizer_are_refused(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}: holds no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="missing: no such directory"):
        load_tokenizer(tmp_path / "missing")
    file = tmp_path / "tokenizer.json"
    file.write_text('{"broken')
    with pytest.raises(InputError, match="expected a tokenizer directory, found a file"):
        load_tokenizer(file)
    with pytest.raises(InputError, match="the tokenizer files cannot be read") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no directory, and not on the hub") as caught:
        load_tokenizer("nobody/has-this-model")
    assert "\n" not in str(caught.value)


def test_an_unchanged_tokenizer_is_copied_byte_for_byte(tmp_path):
    train_bpe(["is [1] needed?"], tmp_path / "source", 270)
    (tmp_path / "source" / "chat_template.jinja").write_text("{{ messages[0].content }}\n")
    (tmp_path / "source" / "model.safetensors").write_text("none of the tokenizer's")
    tokenizer = load_tokenizer(tmp_path / "source")
    (tmp_path / "same").mkdir()
    save_tokenizer(tokenizer, tmp_path / "same")
    names = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert {p.name for p in (tmp_path / "same").iterdir()} == names | {"chat_template.jinja"}
    for path in (tmp_path / "same").iterdir():
        assert path.read_bytes() == (tmp_path / "source" / path.name).read_bytes()
    for change in (
        lambda t: t.add_tokens(["<extra>"], special_tokens=True),
        lambda t: setattr(t, "chat_template", "{{ messages[-1].content }}"),
    ):
        tokenizer = load_tokenizer(tmp_path / "source")
        change(tokenizer)
        (tmp_path / "other").mkdir(exist_ok=True)
        save_tokenizer(tokenizer, tmp_path / "other")
        config = json.loads((tmp_path / "other" / "tokenizer_config.json").read_text())
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert not isinstance(config.get("extra_special_tokens"), list)
        again = load_tokenizer(tmp_path / "other")
        assert tokenizer_fingerprint(again) == tokenizer_fingerprint(tokenizer)
