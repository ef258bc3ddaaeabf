"""Streams of examples from question files: which of their questions each stream reads."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from scipy.stats import chisquare

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.decoders import save_decoder
from dynarag_jax.exchange.tokenizers import train_word_level
from dynarag_jax.models.decoder import DecoderConfig, init_params
from dynarag_jax.prompts import COMPACT_WORDS, PromptConfig
from dynarag_jax.records import Passage, Question
from dynarag_jax.rollout_records import Rollout, Trajectory
from dynarag_jax.sharding import make_mesh
from dynarag_jax.stages.sft import Sft
from dynarag_jax.training.config import Contexts, Stream
from dynarag_jax.training.posteriors import posteriors_of
from dynarag_jax.training.run import begin, behavior_source, example_maker, generator_source

PROMPTS = PromptConfig(
    style="compact", ids=2, max_list=2, rerank_tokens=32, answer_prompt_tokens=32, answer_tokens=4
)


def questions(*experts):
    passages = (Passage("0", "w0"), Passage("1", "w1"))
    return [
        Question(f"q{i}", "w0", ("w1",), passages=passages, expert=expert)
        for i, expert in enumerate(experts)
    ]


def test_only_questions_with_an_experts_list_are_imitated(tmp_path):
    tokenizer = train_word_level(["w0", "w1", *COMPACT_WORDS], tmp_path / "tokenizer", 2)
    cfg = DecoderConfig(vocab=len(tokenizer), width=8, layers=1, heads=1, kv_heads=1, head_size=8)
    save_decoder(tmp_path / "init", cfg, init_params(cfg, jax.random.key(0)), tokenizer)
    stage = Sft(
        init=str(tmp_path / "init"), prompts=PROMPTS, model=cfg, reranker=Stream(batch=1)
    )  # fmt: skip
    start = begin(stage, tmp_path / "init", None, make_mesh(1, devices=jax.devices()[:1]))
    maker = example_maker(stage, start)
    # The empty list is a list; none is none.
    source = behavior_source(stage, start, questions(None, (2, 1), None, ()), maker, 0)
    assert source.size == 2
    assert [source.make(0, i).ranking for i in range(2)] == [(2, 1), ()]
    with pytest.raises(InputError, match="none of 2 questions has an expert's list, 'q0' among"):
        behavior_source(stage, start, questions(None, None), maker, 0)


def test_the_generator_reads_sampled_lists_by_their_share_in_the_answer(tmp_path):
    tokenizer = train_word_level(["w0", "w1", *COMPACT_WORDS], tmp_path / "tokenizer", 2)
    cfg = DecoderConfig(vocab=len(tokenizer), width=8, layers=1, heads=1, kv_heads=1, head_size=8)
    save_decoder(tmp_path / "init", cfg, init_params(cfg, jax.random.key(0)), tokenizer)
    stage = Sft(
        init=str(tmp_path / "init"), prompts=PROMPTS, model=cfg, contexts=Contexts(sampled=0.8),
        generator=Stream(batch=1),
    )  # fmt: skip
    start = begin(stage, tmp_path / "init", None, make_mesh(1, devices=jax.devices()[:1]))
    maker = example_maker(stage, start)
    asked = questions((2, 1), (2, 1))

    def of(*lists):
        return Rollout(
            "q0", 2, tuple(
                Trajectory(one, count, terms={"likelihood": p}, reward=2 * p)
                for one, count, p in lists
            ), "", "",
        )  # fmt: skip

    path = Path("rollouts.jsonl")
    found = posteriors_of([of(((), 1, 0.1), ((1,), 3, 0.2), ((2,), 1, 0.3))], path)
    # Likelihood times how often it was drawn: 0.1, 0.6 and 0.3.
    assert found["q0"].lists == ((), (1,), (2,))
    assert found["q0"].weights == pytest.approx((0.1, 0.6, 0.3), abs=1e-6)
    warmer = posteriors_of([of(((), 1, 0.04), ((1,), 1, 0.36))], path, temperature=2.0)
    assert warmer["q0"].weights == pytest.approx((0.25, 0.75), abs=1e-6)
    assert posteriors_of([of(((), 1, 0.0))], path) == {}
    source = generator_source(stage, asked, maker, 0, found)
    read = Counter(tuple(source.make(epoch, 0).prompt) for epoch in range(3000))
    prompts = {one: tuple(maker.answer(asked[0], one).prompt) for one in ((), (1,), (2,), (2, 1))}
    wanted = {(): 0.08, (1,): 0.48, (2,): 0.24, (2, 1): 0.2}
    observed = [read[prompts[one]] for one in wanted]
    assert sum(observed) == 3000
    assert chisquare(observed, [3000 * p for p in wanted.values()]).pvalue > 1e-4
    # A question without a rollout reads its expert's list.
    others = {tuple(source.make(epoch, 1).prompt) for epoch in range(50)}
    assert others == {tuple(maker.answer(asked[1], (2, 1)).prompt)}
    with pytest.raises(InputError, match="draws lists from rollouts, and this stage has none"):
        generator_source(stage, asked, maker, 0)
    wrong = replace(of(((1,), 1, 0.5)), trajectories=(Trajectory((1,), terms={"em": 1.0}),))
    with pytest.raises(InputError, match="takes rewards for likelihoods"):
        posteriors_of([wrong], path)
