"""Tokenizers: trained from texts, or loaded from a Hugging Face directory or hub id.

What is trained here is saved as ``tokenizer.json``, ``tokenizer_config.json`` and
``special_tokens_map.json``, which ``transformers.AutoTokenizer`` and vLLM load as they are.
Neither tokenizer adds special tokens by itself: prompts say where text ends.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from dynarag_jax.atomic import atomic_directory
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.hub import model_directory
from dynarag_jax.files import PathLike, fingerprint, read_json, write_json
from dynarag_jax.models.config import DecoderConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
NONE = "None"
_SPECIAL = {"pad_token": PAD, "eos_token": EOS, "unk_token": UNK}

# A passage id, a run of letters and digits, or one punctuation mark; white space only separates.
_WORD = r"\[\d+\]|\w+|[^\w\s]"


def _checked(texts: Iterable[str], what: str) -> Iterator[str]:
    """Pass texts through; InputError for a single string, a non-string, or nothing but blanks."""
    if isinstance(texts, str):
        raise InputError(f"{what}: expected a list of texts, found one string {texts[:40]!r}")
    blank = True
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{what}: text {number} must be a string, found {text!r:.60}")
        blank = blank and not text.strip()
        yield text
    if blank:
        raise InputError(f"{what}: there are no words to train on; give at least one text")


def _save(tokenizer: Tokenizer, directory: PathLike, overwrite: bool) -> None:
    with atomic_directory(directory, overwrite=overwrite) as place:
        tokenizer.save(str(place / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **_SPECIAL,
            "padding_side": "right",
            # The decoder already places the spaces; transformers must not edit them again.
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000,
        }
        for name, value in (
            ("tokenizer_config.json", config),
            ("special_tokens_map.json", _SPECIAL),
        ):
            (place / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def train_word_level(
    texts: Iterable[str], directory: PathLike, ids: int, overwrite: bool = False
) -> PreTrainedTokenizerFast:
    """Make a tokenizer in which every word of ``texts`` and every passage id is one token.

    The vocabulary is: pad, eos, unk, ``None``, the comma, ``[1]`` to ``[ids]``, then the words and
    punctuation marks of ``texts`` in alphabetical order, whatever order the texts come in. A word
    seen nowhere in ``texts`` becomes unk. Decoding puts one space between words and none before
    closing punctuation, so text so written comes back unchanged: ``[3], [1]``, ``is it so?``.

    Args:
      texts: what the vocabulary is taken from: passages, questions, answers, prompt templates.
      directory: where to save; written as a whole or not at all.
      ids: how many passages a list may choose among.
      overwrite: replace ``directory`` if it exists.

    Returns:
      The tokenizer, as ``load_tokenizer(directory)`` loads it.

    Raises:
      InputError: no words, ``ids`` below 1, or ``directory`` exists and ``overwrite`` is false.
    """
    if ids < 1:
        raise InputError(f"word-level tokenizer: ids must be at least 1, found {ids}")
    split = pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)
    words: set[str] = set()
    for text in _checked(texts, "word-level tokenizer"):
        words.update(word for word, _ in split.pre_tokenize_str(text))
    first = [PAD, EOS, UNK, NONE, ",", *(f"[{i}]" for i in range(1, ids + 1))]
    vocabulary = first + sorted(words.difference(first))
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNK)
    )
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex(r"^(?![.,?!:;)])"), " "),
            decoders.Fuse(),
            decoders.Replace("( ", "("),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens([PAD, EOS, UNK])
    _save(tokenizer, directory, overwrite)
    return load_tokenizer(directory)


def train_bpe(
    texts: Iterable[str], directory: PathLike, vocab_size: int, overwrite: bool = False
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer of ``vocab_size`` tokens.

    Any text can be encoded and comes back byte for byte. ``[12]`` is always the tokens ``[``,
    ``1``, ``2``, ``]``, whatever stands around it, and every other number is split into digits
    too: the tokens of an id depend neither on the corpus nor on their neighbors.

    Args:
      texts: what to train on.
      directory: where to save; written as a whole or not at all.
      vocab_size: pad, eos and unk, the 256 bytes, and merges; fewer if the texts hold no more.
      overwrite: replace ``directory`` if it exists.

    Returns:
      The tokenizer, as ``load_tokenizer(directory)`` loads it.

    Raises:
      InputError: no words, ``vocab_size`` too small for the bytes, or ``directory`` exists and
        ``overwrite`` is false.
    """
    least = 256 + len(_SPECIAL)
    if vocab_size < least:
        raise InputError(
            f"BPE tokenizer: vocab_size must be at least {least} (256 bytes and "
            f"{len(_SPECIAL)} special tokens), found {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Brackets stay alone, so that no merge such as "],": the id's last token is always "]".
            pre_tokenizers.Split(Regex(r"[\[\]]"), behavior="isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_checked(texts, "BPE tokenizer"), trainer)
    _save(tokenizer, directory, overwrite)
    return load_tokenizer(directory)


def load_tokenizer(source: PathLike) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer from a directory or a Hugging Face hub id.

    A tokenizer without a pad token (Llama's) pads with its end-of-text token, and no token is
    added; a batch must therefore carry lengths, since a pad cannot be told from an end of text.
    Padding is on the right.

    Raises:
      InputError: the directory does not exist or holds no tokenizer, the hub id cannot be loaded,
        the tokenizer is not a fast one, or it has no end-of-text token.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    name = str(source)
    if name.startswith("package:") or name.endswith(".gguf"):
        source = model_directory(source)
        name = str(source)
    here = Path(source).is_dir()
    if Path(source).is_file():
        raise InputError(f"{name}: expected a tokenizer directory, found a file")
    if not here and (isinstance(source, Path) or name.startswith((".", "/", "~"))):
        raise InputError(f"{name}: no such directory")
    files = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
    if here and not any((Path(source) / file).is_file() for file in files):
        raise InputError(
            f"{name}: holds no tokenizer (none of {', '.join(files)}); give the directory of a "
            "Hugging Face model or of a tokenizer trained here"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True)
    except Exception as error:  # noqa: BLE001 - tokenizers raises a bare Exception for bad files
        reason = " ".join(str(error).split())[:200]
        where = "the tokenizer files cannot be read" if here else "no directory, and not on the hub"
        raise InputError(f"{name}: {where} ({type(error).__name__}: {reason})") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(
            f"{name}: {type(tokenizer).__name__} is not a fast tokenizer; "
            "convert it to a tokenizer.json first"
        )
    if tokenizer.eos_token_id is None:
        raise InputError(f"{name}: has no eos_token; set it in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


# Everything a directory may hold of a tokenizer.
_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt"),
    *("vocab.txt", "chat_template.jinja", "chat_template.json"),
)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Write a tokenizer's files into a directory.

    One that is still as it was loaded is copied byte for byte. Another one is written so that
    transformers 4, which serving engines pin, reads it as well as 5 does.
    """
    if (source := _unchanged(tokenizer)) is not None:
        for name in _FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, directory / name)
        templates = source / "additional_chat_templates"
        if templates.is_dir():
            shutil.copytree(templates, directory / templates.name)
        return
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    config = read_json(path)
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    write_json(path, config)


def _unchanged(tokenizer: PreTrainedTokenizerFast) -> Path | None:
    """The directory whose files say exactly what the tokenizer does, if there is one."""
    name = str(tokenizer.name_or_path or "")
    try:
        again = load_tokenizer(name) if name else None
        if again is None or tokenizer_fingerprint(again) != tokenizer_fingerprint(tokenizer):
            return None
        return model_directory(name)
    except InputError:
        return None


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """A hash of all that decides how a fast tokenizer turns messages into tokens."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    # Settings of the last call, not of the tokenizer.
    parts = {name: part for name, part in parts.items() if name not in ("padding", "truncation")}
    special = [tokenizer.eos_token_id, sorted(map(str, tokenizer.all_special_tokens))]
    return fingerprint([parts, tokenizer.chat_template, special])


def check_vocabulary(cfg: DecoderConfig, tokenizer: Sized, where: str) -> None:
    """Raise InputError if the tokenizer has tokens that the model does not know."""
    if len(tokenizer) > cfg.vocab:
        raise InputError(
            f"{where}: the tokenizer has {len(tokenizer)} tokens, the model only {cfg.vocab}; "
            f"they do not belong together"
        )
