"""Examples from records: targets as they are, nothing shuffled, padded or taken from a neighbor."""

from __future__ import annotations

import dataclasses

import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.policy.examples import Reads
from dynarag_jax.policy.grammar import read_list
from dynarag_jax.prompts import answer_prompt, decode_answer, rerank_prompt
from dynarag_jax.records import Passage, Question
from tests.policy.split_words import example_maker, word_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


QUESTION = Question(
    "q1", "who founded arlo", answers=("ada lives", "ada"),
    passages=tuple(Passage(f"p{i}", "ada lives here") for i in range(8)),
    expert=(6, 2, 8),
)  # fmt: skip


@pytest.fixture
def maker(tokenizer):
    return example_maker(tokenizer)


def test_behavior_cloning_imitates_the_experts_very_list(maker, tokenizer):
    example = maker.behavior(QUESTION)
    assert read_list(maker.spelling, example.branches[0]) == (6, 2, 8)
    assert example.ranking == (6, 2, 8)
    assert (example.shown, example.preferred, example.supervised) == (8, False, (1.0,))
    assert example.prompt == rerank_prompt(tokenizer, QUESTION, "compact", 200).tokens
    empty = maker.behavior(dataclasses.replace(QUESTION, id="q2", expert=()))
    assert tokenizer.decode(empty.branches[0]) == "None <eos>"
    with pytest.raises(InputError, match="'q3' has no expert list; run the label stage"):
        maker.behavior(dataclasses.replace(QUESTION, id="q3", expert=None))


def test_prompts_show_the_passages_that_are_given_whatever_was_shown_before(maker, tokenizer):
    """One maker sees a question twice, with its candidates in another order or other ones."""
    words = ("lives", "here", "founded")
    shown = tuple(Passage(f"p{i}", f"ada {word}") for i, word in enumerate(words))
    first = dataclasses.replace(QUESTION, passages=shown)
    for passages in (shown, shown[::-1], shown[:2], (Passage("p0", "arlo lives"), *shown[1:])):
        question = dataclasses.replace(first, passages=passages)
        expected = rerank_prompt(tokenizer, question, "compact", 200)
        assert maker.rerank_prompt(question) == expected
        assert maker.answer_prompt(question, (2, 1)) == answer_prompt(
            tokenizer, question, (2, 1), "compact", 100
        )


def test_experts_ids_that_cannot_be_imitated_are_dropped_and_counted(maker, tokenizer):
    long = dataclasses.replace(QUESTION, id="long", expert=(6, 2, 8, 1, 3))
    example = maker.behavior(long)
    assert example.ranking == (6, 2, 8)  # the longest list has 3
    assert (example.dropped, example.dropped_ids) == (0, 2)
    seven = len(rerank_prompt(tokenizer, QUESTION, "compact", 200, 7).tokens)
    tight = dataclasses.replace(maker, rerank_length=seven)
    example = tight.behavior(QUESTION)
    assert example.shown == 7
    assert example.ranking == (6, 2)
    assert (example.dropped, example.dropped_ids) == (1, 1)


def test_the_generator_learns_the_first_answer_from_the_chosen_passages(maker, tokenizer):
    example = maker.answer(QUESTION, (2, 5))
    assert example.prompt == answer_prompt(tokenizer, QUESTION, (2, 5), "compact", 100).tokens
    assert decode_answer(tokenizer, example.branches[0]) == "ada lives"
    assert example.branches[0][-1] == tokenizer.eos_token_id
    assert example.shown == 0
    with pytest.raises(InputError, match="'q1' has no answer"):
        maker.answer(dataclasses.replace(QUESTION, answers=()), ())


def test_prompts_are_tokenized_once_and_memory_is_bounded(maker):
    first = maker.behavior(QUESTION)
    assert maker.behavior(QUESTION) == first
    assert (maker.reads.tokenized, maker.reads.read) == (1, 0)
    # Room for one prompt only: each pushes the other out.
    small = dataclasses.replace(maker, memory=1, _kept={}, _held=0, reads=Reads())
    for chosen in ((1,), (2,), (1,)):
        small.answer(QUESTION, chosen)
        assert len(small._kept) == 1
    assert small.reads.tokenized == 3
