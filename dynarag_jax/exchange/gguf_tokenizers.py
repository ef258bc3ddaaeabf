"""Tokenizers that GGUF files hold, rebuilt: byte-level BPE, and SentencePiece's BPE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.gguf_names import SPLITS
from dynarag_jax.exchange.known import TrackedFields

# Of tokenizer.ggml.token_type: what texts are made of, special tokens, others that are added, and
# those nobody uses.
_NORMAL, _CONTROL, _USER, _UNUSED = 1, 3, 4, 5
_SPACE = "▁"


def byte_level_bpe(
    vocabulary: Mapping[str, int],
    merges: Iterable[str],
    pre: str,
    added: Iterable[tuple[str, bool]],
) -> Tokenizer:
    """A byte-level BPE tokenizer that cuts texts as llama.cpp's kind ``pre`` does.

    Args:
      merges: pairs, a space between.
      added: tokens that stand alone, and whether they are special.
    """
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    tokenizer = Tokenizer(models.BPE(dict(vocabulary), pairs, ignore_merges=pre == "llama-bpe"))  # type: ignore[arg-type]
    digits, pattern = SPLITS[pre]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *([pre_tokenizers.Digits(individual_digits=True)] if digits else []),
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()
    for token, special in added:
        one = [AddedToken(token, special=special, normalized=False)]
        tokenizer.add_special_tokens(one) if special else tokenizer.add_tokens(one)
    return tokenizer


def sentencepiece_bpe(
    tokens: Sequence[str],
    scores: Sequence[float],
    types: Sequence[int],
    unknown: str,
    prefix: bool,
    added: Iterable[tuple[str, bool]],
) -> Tokenizer:
    """A BPE of SentencePiece, as llama.cpp reads it: pairs merge by the scores of what they make.

    Args:
      unknown: the token of what has no bytes.
      prefix: whether a space stands before every text, as before every word.
      added: tokens that stand alone, and whether they are special.
    """
    vocabulary = {token: i for i, token in enumerate(tokens)}
    normal = {t for t, kind in zip(tokens, types, strict=True) if kind == _NORMAL}
    ranked = sorted(
        (-scores[vocabulary[token]], vocabulary[token[:cut]], vocabulary[token[cut:]])
        for token in normal
        for cut in range(1, len(token))
        if token[:cut] in normal and token[cut:] in normal
    )
    merges = [(tokens[left], tokens[right]) for _, left, right in ranked]
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = (  # type: ignore[assignment]
        normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    )
    tokenizer.decoder = decoders.Sequence(  # type: ignore[assignment]
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if prefix else []),
        ]
    )
    for token, special in added:
        one = [AddedToken(token, special=special, normalized=False)]
        tokenizer.add_special_tokens(one) if special else tokenizer.add_tokens(one)
    return tokenizer


def read_tokenizer(fields: TrackedFields, where: str) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer that a file's fields describe, and its tokenizer_config.json."""

    def get(name: str, default: Any = None) -> Any:
        return fields.get(f"tokenizer.ggml.{name}", default)

    model, arch = get("model"), str(fields.get("general.architecture"))
    if model not in ("gpt2", "llama") or (model == "llama" and arch.startswith("gemma")):
        # Gemma's scores do not say in which order its pairs merge.
        raise InputError(
            f"{where}: a tokenizer of kind {model!r} of a file of {arch} is not rebuilt, only "
            f"'gpt2' (byte-level BPE), and 'llama' (SentencePiece) where it is not Gemma's"
        )
    pieces = model == "llama"
    pre = str(get("pre", "default"))
    if pre not in (("default",) if pieces else SPLITS):
        raise InputError(
            f"{where}: tokenizer.ggml.pre = {pre!r} is not known; known are {', '.join(SPLITS)}"
        )
    tokens: list[str] = list(get("tokens") or ())
    merges: list[str] = list(get("merges") or ())
    types = list(get("token_type") or [1] * len(tokens))
    scores = list(get("scores") or ())
    # Unused tokens fill the vocabulary up to the embedding's rows.
    vocabulary = {
        t: i for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind != _UNUSED
    }
    if len(set(tokens)) != len(tokens):
        raise InputError(f"{where}: tokenizer.ggml.tokens names a token twice")
    prefix = bool(get("add_space_prefix", pieces))
    if prefix and not pieces:
        raise InputError(f"{where}: tokenizer.ggml.add_space_prefix is not supported for 'gpt2'")
    if get("remove_extra_whitespaces"):
        raise InputError(f"{where}: tokenizer.ggml.remove_extra_whitespaces is not supported")
    kinds = {_CONTROL: True, _USER: False}
    added = [(t, kinds[kind]) for t, kind in zip(tokens, types, strict=True) if kind in kinds]
    if pieces:
        unknown = get("unknown_token_id", 0)
        if len(scores) != len(tokens) or merges:
            raise InputError(
                f"{where}: a tokenizer of kind 'llama' has a score for each token, and no merges; "
                f"here are {len(scores)} scores for {len(tokens)} tokens and {len(merges)} merges"
            )
        tokenizer = sentencepiece_bpe(tokens, scores, types, tokens[int(unknown)], prefix, added)
    else:
        tokenizer = byte_level_bpe(vocabulary, merges, pre, added)
    named = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
        "padding_side": "right",
    }
    for role, name in named.items():
        i = get(f"{name}_token_id")
        if i is not None:
            settings[f"{role}_token"] = tokens[int(i)]
    if get("add_bos_token", pieces) and "bos_token" in settings:
        bos = settings["bos_token"]
        tokenizer.post_processor = TemplateProcessing(
            single=f"{bos}:0 $A:0", special_tokens=[(bos, vocabulary[bos])]
        )
    if get("add_eos_token"):
        raise InputError(f"{where}: tokenizer.ggml.add_eos_token is not supported")
    for name in ("seperator_token_id", "mask_token_id", "cls_token_id"):
        get(name)  # tokens that no decoder's prompt has
    return tokenizer, settings
