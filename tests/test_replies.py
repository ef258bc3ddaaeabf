"""Replies without their thoughts: every family's markers, what is missing, and why."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from dynarag_jax.replies import FINISHED, close_thought, read_choice, read_reply

FAMILIES = {
    "DeepSeek-R1, Qwen3": ("<think>\n", "\n</think>\n\n"),
    "EXAONE Deep": ("<thought>\n", "\n</thought>\n\n"),
    "Seed-OSS": ("<seed:think>", "</seed:think>"),
    "LongCat": ("<longcat_think>", "</longcat_think>"),
    "a prompt that asks for one": ("<scratchpad>", "</scratchpad>"),
    "Magistral": ("[THINK]", "[/THINK]"),
    "Kimi": ("◁think▷", "◁/think▷"),
    "Sky-T1": ("<|begin_of_thought|>\n\n", "\n\n<|end_of_thought|>\n\n"),
    "Command A": ("<|START_THINKING|>", "<|END_THINKING|>"),
    "MedGemma": ("<unused94>thought\n", "<unused95>"),
    "gpt-oss": (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "gpt-oss without special tokens": ("analysis", "assistantfinal"),
    "Granite 3.2": ("Here is my thought process:\n\n", "\n\nHere is my response:\n\n"),
}
THOUGHT = "Passage [1] is off topic, [3] too."


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reply_is_what_stands_behind_the_thought(family):
    opening, closing = FAMILIES[family]
    for reply in ("[2]", "The answer is Paris.\n\nIt is the capital."):
        read = read_reply(f"{opening}{THOUGHT}{closing}{reply}")
        assert (read.text, read.thought, read.missing) == (reply, THOUGHT, "")
        assert read.repaired
    cut = read_reply(opening + THOUGHT)
    assert (cut.text, cut.thought, cut.missing) == ("", THOUGHT, "its thought has no end")
    nothing = read_reply(opening + THOUGHT + closing)
    assert (nothing.text, nothing.missing) == ("", "it holds a thought and no reply")
    if family != "Granite 3.2":
        # The prompt had opened the thought.
        assert read_reply(THOUGHT + closing + "[2]").text == "[2]"


@given(st.text(st.characters(exclude_characters="<[◁HhAa"), max_size=60))
def test_a_reply_without_a_thought_is_itself(text):
    read = read_reply(text)
    assert read.text == text.strip() and not read.thought and not read.repaired
    assert bool(read.missing) == (not text.strip())


@given(
    before=st.sampled_from(["", " \n", "[1]"]),
    pieces=st.lists(st.sampled_from(["<think>", "</think>", "[1]", "\n"]), max_size=6),
)
def test_nothing_inside_a_thought_is_ever_the_reply(before, pieces):
    text = before + "".join(pieces) + "</think>[2]"
    read = read_reply(text)
    assert read.text == ("" if read.missing else "[2]")
    still = read_reply("".join(pieces) + "<think>[3]")
    assert still.text == "" and still.missing


def test_text_on_both_sides_of_a_thought_is_ambiguous():
    assert read_reply("[1] <think>no</think> [2]").missing == "it stands on both sides of a thought"


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("<think>x</think><answer>Paris</answer>", "Paris"),
        ("So: <answer>Paris</answer>.", "Paris"),
        ("<|begin_of_solution|>Paris<|end_of_solution|>", "Paris"),
        ("<answer>Paris", "Paris"),
        ("Paris<|im_end|>\n", "Paris"),
        ("Paris<|eot_id|><|eot_id|>", "Paris"),
    ],
)
def test_tags_and_ends_of_turns_are_taken_off(text, reply):
    assert read_reply(text).text == reply


def test_two_answers_are_none():
    assert read_reply("<answer>A</answer><answer>B</answer>").missing == "it names several answers"


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("length", "cut off"),
        ("content_filter", "filter"),
        ("tool_calls", "tool"),
        ("abort", "gave it up"),
        ("something new", "unknown reason, 'something new'"),
    ],
)
def test_a_reply_that_did_not_end_by_itself_is_missing(finish, reason):
    choice = {"message": {"content": "[2], [1]"}, "finish_reason": finish}
    read = read_choice(choice)
    assert read.text == "" and reason in read.missing


@pytest.mark.parametrize("finish", [*FINISHED, None])
def test_a_reply_that_ended_is_read(finish):
    assert read_choice({"message": {"content": " [2]"}, "finish_reason": finish}).text == "[2]"


def test_thoughts_in_fields_of_their_own():
    for field in ("reasoning_content", "reasoning", "thinking"):
        read = read_choice({"message": {"content": "[2]", field: THOUGHT}})
        assert (read.text, read.thought) == ("[2]", THOUGHT)
        read = read_choice({"message": {"content": None, field: THOUGHT}})
        assert read.missing == "it holds a thought and no reply"
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]},
        {"type": "text", "text": "[2]"},
    ]
    read = read_choice({"message": {"content": parts}})
    assert (read.text, read.thought) == ("[2]", THOUGHT)
    image = [{"type": "image_url", "image_url": {}}]
    assert "image_url" in read_choice({"message": {"content": image}}).missing
    assert "refusal" in read_choice({"message": {"content": "I", "refusal": "no"}}).missing
    assert read_choice({"message": {"content": None}}).missing == "nothing was said"


def test_an_opened_thought_is_closed():
    assert close_thought("user?<think>\n") == "user?<think>\n\n</think>\n\n"
    assert close_thought("user?<think>") == "user?<think>\n\n</think>\n\n"
    assert close_thought("<think> user?") == "<think> user?"


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("<think>\n", "</think>"),
        ("<seed:think>", "</seed:think>"),
        ("◁think▷", "◁/think▷"),
        ("[THINK]", "[/THINK]"),
        ("<|begin_of_thought|>\n", "<|end_of_thought|>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<unused94>thought\n", "<unused95>"),
        ("<|channel>thought\n", "<channel|>"),
        ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ],
)
def test_thoughts_of_all_families_are_closed_where_a_prompt_opens_them(opening, closing):
    """And what is written behind is read as the reply alone."""
    prompt = close_thought(f"user?{opening}")
    assert prompt.startswith(f"user?{opening.rstrip()}") and closing in prompt
    assert close_thought(prompt) == prompt
    assert read_reply(f"{prompt.removeprefix('user?')}[2]").text == "[2]"
