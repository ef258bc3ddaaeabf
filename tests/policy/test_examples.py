"""Examples from records: targets as they are, nothing shuffled, padded or taken from a neighbor."""

from __future__ import annotations

import dataclasses

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dynarag_jax.errors import InputError
from dynarag_jax.policy.examples import ExampleMaker, Reads
from dynarag_jax.policy.grammar import find_spelling, read_list
from dynarag_jax.prompts import PromptConfig, answer_prompt, decode_answer, rerank_prompt
from dynarag_jax.records import Passage, Question

WORDS = "<eos> <unk> None , : question passages list answer who founded arlo ada lives here".split()


@pytest.fixture(scope="module")
def tokenizer():
    words = {w: i for i, w in enumerate([*WORDS, *(f"[{i}]" for i in range(1, 9))])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"\[\d+\]|\w+|[^\w\s]"), behavior="removed", invert=True
    )
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>", unk_token="<unk>")


QUESTION = Question(
    "q1", "who founded arlo", answers=("ada lives", "ada"),
    passages=tuple(Passage(f"p{i}", "ada lives here") for i in range(8)),
    expert=(6, 2, 8),
)  # fmt: skip


@pytest.fixture
def maker(tokenizer):
    prompts = PromptConfig(
        style="compact", ids=8, max_list=3, rerank_tokens=200, answer_prompt_tokens=100,
        answer_tokens=3,
    )  # fmt: skip
    return ExampleMaker(tokenizer, find_spelling(tokenizer, 8), prompts)


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
