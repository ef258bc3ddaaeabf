"""Every end that a checkpoint declares: by its tokenizer, its files, and its chat template."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.generation import generation_ends
from dynarag_jax.templates import turn_end

MARKERS = ["<eos>", "<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>"]


def tokenizer(template: str | None = None) -> Any:
    """One token a byte, and markers of several families."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE({c: i for i, c in enumerate([*MARKERS, *alphabet])}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    plain.add_special_tokens([AddedToken(m, special=True, normalized=False) for m in MARKERS])
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="<eos>", chat_template=template
    )


def declare(directory, name: str, **fields) -> None:
    (directory / name).write_text(json.dumps(fields))


def test_ends_of_the_files(tmp_path):
    plain = tokenizer()
    assert generation_ends(tmp_path, plain) == (0,)
    declare(tmp_path, "config.json", eos_token_id=[0, 2])
    assert generation_ends(tmp_path, plain) == (0, 2)
    # Where there is a generation_config.json, transformers asks config.json no more.
    declare(tmp_path, "generation_config.json", eos_token_id=1)
    assert generation_ends(tmp_path, plain) == (0, 1)
    declare(tmp_path, "generation_config.json", eos_token_id=[3, 1], stop_strings=["<|end|>"])
    assert generation_ends(tmp_path, plain) == (0, 3, 1, 4)
    declare(tmp_path, "generation_config.json", stop_strings=["Question:"])
    with pytest.raises(InputError, match=r"stop_strings = 'Question:' is not one token"):
        generation_ends(tmp_path, plain)
    for wrong in ("</s>", [1, None], True, -1, 10**6):
        declare(tmp_path, "generation_config.json", eos_token_id=wrong)
        with pytest.raises(InputError, match=r"eos_token_id = .* must name tokens below 261"):
            generation_ends(tmp_path, plain)


TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}END{% endfor %}"


@pytest.mark.parametrize(
    ("closing", "end"),
    [
        ("<|im_end|>\\n", 2),  # ChatML
        ("<|eot_id|>", 1),  # Llama 3
        ("<end_of_turn>\\n", 3),  # Gemma
        (" <eos>", 0),  # Mistral
        ("<|end|>\\n<eos>", 4),  # Phi-3
        ("\\n### User: ", None),  # words, which end nothing
        ("", None),
    ],
)
def test_the_templates_turn_ends_what_the_model_writes(tmp_path, closing, end):
    chat = tokenizer(TURNS.replace("END", "{{ '" + closing + "' }}"))
    assert turn_end(chat) == end
    assert generation_ends(tmp_path, chat) == tuple(dict.fromkeys([0, *([end] if end else [])]))


def test_a_template_that_fails_declares_no_end():
    assert turn_end(tokenizer("{{ raise_exception('no') }}")) is None
    assert turn_end(tokenizer()) is None
