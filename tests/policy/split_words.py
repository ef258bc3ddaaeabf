"""A tokenizer of single words, made on the fly, and what turns records into examples with it."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dynarag_jax.policy.examples import ExampleMaker
from dynarag_jax.policy.grammar import find_spelling
from dynarag_jax.prompts import PromptConfig

WORDS = "<eos> <unk> None , : question passages list answer who founded arlo ada lives here".split()
IDS = 8


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each of ``WORDS`` and each id; whatever stands between them is dropped."""
    words = {w: i for i, w in enumerate([*WORDS, *(f"[{i}]" for i in range(1, IDS + 1))])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"\[\d+\]|\w+|[^\w\s]"), behavior="removed", invert=True
    )
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>", unk_token="<unk>")


def example_maker(tokenizer: PreTrainedTokenizerFast) -> ExampleMaker:
    """Examples of at most three ids and answers of three tokens."""
    prompts = PromptConfig(
        style="compact", ids=IDS, max_list=3, rerank_tokens=200, answer_prompt_tokens=100,
        answer_tokens=3,
    )  # fmt: skip
    return ExampleMaker(tokenizer, find_spelling(tokenizer, IDS), prompts)
