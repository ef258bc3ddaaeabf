"""Small tokenizers of the families that models of the hub have.

The classes are transformers' own, which bring each family's normalizer, pre-tokenizer and decoder;
Llama 3 has no class there, its pipeline is what its published tokenizer.json says. Only the
vocabularies are trained here, on text with many lists, so that the merges that matter exist.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from dynarag_jax.exchange.tokenizers import load_tokenizer

BYTES = [f"<0x{i:02X}>" for i in range(256)]
# Numbers of up to three digits are words of their own.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _merges(corpus: list[str], pre: Any, size: int, alphabet: list[str]) -> list[tuple[str, str]]:
    """Merges learned over what ``pre`` makes of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, min_frequency=2, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def _vocabulary(first: list[str], merges: list[tuple[str, str]]) -> dict[str, int]:
    tokens = [*first, *sorted({half for merge in merges for half in merge if len(half) == 1})]
    tokens += [a + b for a, b in merges]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}


def _sentencepiece(corpus: list[str], special: list[str]) -> tuple[dict[str, int], Any]:
    """As SentencePiece trains a BPE: words begin with a mark, digits stand alone."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    pre = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(split=True), digits])
    merges = _merges(corpus, pre, 130, [])
    characters = sorted({c for text in corpus for c in text.replace(" ", "▁")} | {"▁"})
    return _vocabulary([*special, *BYTES, *characters], merges), merges


def _byte_level(corpus: list[str], split: str, special: list[str]) -> tuple[dict[str, int], Any]:
    pre = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _merges(corpus, pre, 360, alphabet)
    return _vocabulary([*special, *alphabet], merges), merges


def _llama2(corpus: list[str]) -> Any:
    vocabulary, merges = _sentencepiece(corpus, ["<unk>", "<s>", "</s>"])
    return LlamaTokenizer(vocab=vocabulary, merges=merges)


def _gemma(corpus: list[str]) -> Any:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    vocabulary, merges = _sentencepiece(corpus, special)
    return GemmaTokenizer(vocab=vocabulary, merges=merges)


def _llama3(corpus: list[str]) -> Any:
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    vocabulary, merges = _byte_level(corpus, LLAMA3, special)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )


def _qwen2(corpus: list[str]) -> Any:
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    vocabulary, merges = _byte_level(corpus, PRETOKENIZE_REGEX, ["<|endoftext|>", "<|im_end|>"])
    return Qwen2Tokenizer(vocab=vocabulary, merges=merges, eos_token="<|im_end|>")


MAKERS: dict[str, Callable[[list[str]], Any]] = {
    "llama2-mistral": _llama2,
    "llama3": _llama3,
    "qwen": _qwen2,
    "gemma": _gemma,
}
# How each family writes "[12], [3]", as its published vocabulary does.
WRITES = {
    "llama2-mistral": ["▁[", "1", "2", "],", "▁[", "3", "]"],
    "llama3": ["[", "12", "],", "Ġ[", "3", "]"],
    "qwen": ["[", "1", "2", "],", "Ġ[", "3", "]"],
    "gemma": ["[", "1", "2", "],", "▁[", "3", "]"],
}


def make(name: str, corpus: list[str], directory: Path) -> Any:
    """A family's tokenizer, saved as its models have it and loaded as everything here loads it."""
    MAKERS[name](corpus).save_pretrained(directory)
    return load_tokenizer(directory)
