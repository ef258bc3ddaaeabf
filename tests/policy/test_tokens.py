"""Tokenized prompts on disk: read again, by anyone, whatever a kill left of them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from dynarag_jax.exchange.tokenizers import load_tokenizer, train_bpe, train_word_level
from dynarag_jax.policy.examples import ExampleMaker
from dynarag_jax.policy.grammar import find_spelling
from dynarag_jax.policy.tokens import TokenCache
from dynarag_jax.prompts import COMPACT_WORDS, Prompt, PromptConfig
from dynarag_jax.records import Passage, Question

ROOT = Path(__file__).resolve().parents[2]


def key(i: int) -> bytes:
    return bytes([i]) * 16


def entry(i: int) -> Prompt:
    return Prompt([i * 1000 + j for j in range(i)], i)


def stored(cache: TokenCache, i: int) -> Prompt | None:
    found = cache.get(key(i))
    return None if found is None else Prompt(found[0].tolist(), found[1])


def fill(directory: Path, numbers) -> None:
    cache = TokenCache(directory)
    for i in numbers:
        cache.put(key(i), entry(i))
    cache.close()


def test_what_was_put_is_read_by_this_process_and_the_next(tmp_path):
    cache = TokenCache(tmp_path)
    assert len(cache) == 0 and cache.get(key(1)) is None
    for i in range(5):
        cache.put(key(i), entry(i))
    assert [stored(cache, i) for i in range(5)] == [entry(i) for i in range(5)]
    cache.flush()
    assert [stored(TokenCache(tmp_path), i) for i in range(6)] == [*map(entry, range(5)), None]


@pytest.fixture(scope="module")
def segment(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    fill(directory, range(8))
    (path,) = directory.iterdir()
    return path.read_bytes()


@given(data=st.data())
@settings(max_examples=150)
def test_damage_anywhere_loses_records_and_never_changes_one(segment, data):
    """Cut off by a kill, or with one byte turned: what is still given out is as it was put."""
    at = data.draw(st.integers(0, len(segment) - 1), "at")
    if data.draw(st.booleans(), "cut"):
        damaged = segment[:at]
    else:
        flip = data.draw(st.integers(1, 255), "flip")
        damaged = segment[:at] + bytes([segment[at] ^ flip]) + segment[at + 1 :]
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "a.prompts").write_bytes(damaged)
        cache = TokenCache(Path(place))
        found = [stored(cache, i) for i in range(8)]
        assert all(one is None or one == entry(i) for i, one in enumerate(found))
        # Records before the damage stand: a header of 28 bytes and 4 bytes a token each.
        whole = [i for i in range(8) if sum(28 + 4 * j for j in range(i + 1)) <= at]
        assert all(found[i] is not None for i in whole)
        # And the directory serves on.
        for i in range(8):
            if found[i] is None:
                cache.put(key(i), entry(i))
        cache.close()
        again = TokenCache(Path(place))
        assert [stored(again, i) for i in range(8)] == [entry(i) for i in range(8)]


WRITE = """
import sys
from pathlib import Path
from dynarag_jax.prompts import Prompt
from dynarag_jax.policy.tokens import TokenCache

cache = TokenCache(Path(sys.argv[1]))
for i in range(int(sys.argv[2]), 40, 3):
    cache.put(bytes([i]) * 16, Prompt([i * 1000 + j for j in range(i)], i))
cache.close()
"""


def test_processes_write_beside_each_other(tmp_path):
    workers = [
        subprocess.Popen([sys.executable, "-c", WRITE, tmp_path, str(i)], cwd=ROOT)
        for i in range(3)
    ]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0, 0]
    assert len(list(tmp_path.iterdir())) == 3
    cache = TokenCache(tmp_path)
    assert [stored(cache, i) for i in range(40)] == [entry(i) for i in range(40)]


# ---------------------------------------------------------------------------- examples

WORDS = "who founded arlo ada lives here by the sea".split()
QUESTION = Question(
    "q1", "who founded arlo", answers=("ada",), expert=(2, 1),
    passages=tuple(Passage(f"p{i}", f"ada lives {word}") for i, word in enumerate(WORDS[:4])),
)  # fmt: skip
PROMPTS = PromptConfig(
    style="compact", ids=4, max_list=4, rerank_tokens=200, answer_prompt_tokens=100, answer_tokens=3
)


class Silent:
    """A tokenizer that cannot tokenize, but for targets: a list or an answer, no passages."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, text, **kwargs):
        assert "passages" not in str(text), "tokenized again"
        return self._tokenizer(text, **kwargs)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    place = tmp_path_factory.mktemp("tokenizer") / "words"
    train_word_level([*WORDS, *COMPACT_WORDS], place, 4)
    return load_tokenizer(place)


def make(tokenizer, directory, prompts=PROMPTS):
    return ExampleMaker(
        tokenizer, find_spelling(tokenizer, 4), prompts, cache=TokenCache(directory)
    )


def test_a_second_run_reads_every_prompt_and_tokenizes_none(tokenizer, tmp_path):
    first = make(tokenizer, tmp_path)

    def examples(maker):
        return [maker.behavior(QUESTION), *(maker.answer(QUESTION, c) for c in ((2, 1), ()))]

    made = examples(first)
    assert (first.reads.tokenized, first.reads.read) == (3, 0)
    assert first.cache is not None
    first.cache.flush()
    second = make(Silent(tokenizer), tmp_path)
    again = [
        second.behavior(QUESTION),
        second.answer(QUESTION, (2, 1)),
        second.answer(QUESTION, ()),
    ]
    assert again == made
    assert (second.reads.tokenized, second.reads.read) == (0, 3)


def test_what_a_prompt_depends_on_is_in_its_key(tokenizer, tmp_path):
    first = make(tokenizer, tmp_path)
    whole = first.behavior(QUESTION)
    assert first.cache is not None
    first.cache.flush()
    train_bpe([*WORDS, *COMPACT_WORDS], tmp_path / "bpe", 300)
    seven = len(whole.prompt) - 1
    changed = {
        "tokenizer": (load_tokenizer(tmp_path / "bpe"), PROMPTS, QUESTION),
        "style": (tokenizer, dataclasses.replace(PROMPTS, style="instruct"), QUESTION),
        "limit": (tokenizer, dataclasses.replace(PROMPTS, rerank_tokens=seven), QUESTION),
        "ids": (tokenizer, dataclasses.replace(PROMPTS, ids=3), QUESTION),
        "text": (tokenizer, PROMPTS, dataclasses.replace(QUESTION, text="who lives here")),
        "order": (
            tokenizer, PROMPTS, dataclasses.replace(QUESTION, passages=QUESTION.passages[::-1])
        ),
        "task": (tokenizer, PROMPTS, dataclasses.replace(QUESTION, task="label")),
    }  # fmt: skip
    for name, (by, prompts, question) in changed.items():
        maker = make(by, tmp_path, prompts)
        fresh = ExampleMaker(by, maker.spelling, prompts)
        assert maker.rerank_prompt(question) == fresh.rerank_prompt(question), name
        # The reranker's compact prompt does not name the task.
        assert maker.reads.tokenized == (name != "task"), name
        assert maker.answer_prompt(question, (1,)) == fresh.answer_prompt(question, (1,)), name
