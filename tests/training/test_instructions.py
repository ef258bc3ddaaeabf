"""Instruction data: both forms, and strict errors."""

from __future__ import annotations

import json

import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.tokenizers import train_word_level
from dynarag_jax.prompts import decode_answer
from dynarag_jax.training.instructions import instruction_examples, read_instructions


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_both_forms_become_a_conversation_and_its_reply(tmp_path):
    path = write(
        tmp_path / "i.jsonl",
        {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief."},
        {"instruction": "Greet.", "input": "", "output": "hello"},
        {"messages": [
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"},
        ]},
    )  # fmt: skip
    first, second, third = read_instructions(path)
    assert first.messages == (
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add.\n\n1 2"},
    )  # fmt: skip
    assert (first.reply, first.id) == ("3", "line 1")
    assert second.messages == ({"role": "user", "content": "Greet."},)
    assert [m["content"] for m in third.messages] == ["a", "b", "c"]
    assert third.reply == "d"


def test_alpacas_own_file_is_an_array(tmp_path):
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps([{"instruction": "a", "output": "b"}] * 3))
    assert [each.id for each in read_instructions(path)] == ["line 1", "line 2", "line 3"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"output": "x"}, r"i.jsonl:1: must have either 'messages' or .* found 'output'"),
        ({"instruction": "x", "messages": [], "output": "y"}, "either 'messages' or"),
        ({"instruction": "x"}, "field 'output' is missing"),
        ({"instruction": "x", "output": " "}, "field 'output' must not be empty"),
        ({"instruction": 3, "output": "x"}, "'instruction' must be a string, found 3"),
        ({"messages": [{"role": "user", "content": "x"}]}, "must end with a user's message and"),
        ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\]: field 'role' must be"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]},
            r"messages\[1\]: field 'role' must not be system",
        ),
        ({"messages": [{"role": "user"}]}, r"messages\[0\]: field 'content' is missing"),
        ("[1]", "expected a JSON object"),
    ],
)
def test_wrong_lines_are_named(tmp_path, row, message):
    with pytest.raises(InputError, match=message):
        read_instructions(write(tmp_path / "i.jsonl", row))


def test_what_does_not_fit_is_left_out_whole_and_counted(tmp_path):
    tokenizer = train_word_level(["say it now or later"], tmp_path / "t", ids=2)
    path = write(
        tmp_path / "i.jsonl",
        {"instruction": "say it", "output": "now or later"},
        {"instruction": "say it now or later", "output": "it"},
        {"instruction": "say", "output": "it now or later"},
    )
    examples, left = instruction_examples(tokenizer, read_instructions(path), 4, 4)
    assert left == 2
    assert [decode_answer(tokenizer, e.branches[0]) for e in examples] == ["now or later"]
    assert examples[0].branches[0][-1] == tokenizer.eos_token_id
    assert examples[0].supervised == (1.0,) and examples[0].shown == 0
