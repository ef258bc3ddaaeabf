"""An option without effect is refused, or said in a line; never ignored."""

from __future__ import annotations

import dataclasses

import pytest

from dynarag_jax.config import Run, inherit
from dynarag_jax.errors import InputError
from dynarag_jax.hardware import ACCELERATORS, accelerator
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.stages import retrieve
from dynarag_jax.stages.common.training import without_effect
from dynarag_jax.stages.retrieve import Retrieve
from dynarag_jax.stages.sft import Sft
from dynarag_jax.training.config import Stream
from dynarag_jax.training.optimizer import OptimizerConfig

RUN = Run(directory="r", prompts=PromptConfig(rerank_tokens=100, answer_prompt_tokens=50))


def test_an_encoder_says_nothing_to_words():
    said = retrieve.without_effect(Retrieve(source="bm25", encoder="mine"))
    assert said == [
        "encoder = 'mine' has no effect: source 'bm25' does not read it; dense and hybrid do"
    ]
    runs = Retrieve(runs={"questions.jsonl": "a.trec"}, judgments={"questions.jsonl": "b"})
    assert [line.split()[0] for line in retrieve.without_effect(runs)] == ["runs", "judgments"]
    for source in ("dense", "bm25", "hybrid"):
        assert not retrieve.without_effect(Retrieve(source=source))
    assert not retrieve.without_effect(Retrieve(source="hybrid", encoder="mine"))


def test_a_training_stage_without_anything_to_learn_is_refused():
    with pytest.raises(InputError, match="nothing to train on: every stream has batch 0"):
        Sft(reranker=Stream(batch=0), generator=Stream(batch=0))
    Sft(reranker=Stream(batch=0))


@pytest.mark.parametrize(
    ("stream", "limit"), [("reranker", "rerank_tokens"), ("generator", "answer_prompt_tokens")]
)
def test_a_streams_length_above_the_prompts_is_refused_and_one_below_said(stream, limit):
    most = getattr(RUN.prompts, limit)
    for length in (0, 1, most - 1, most, most + 1):
        stage = Sft(**{stream: Stream(length=length)})  # type: ignore[arg-type]
        if length > most:
            with pytest.raises(InputError, match=f"{stream}.length = {length} is more than"):
                inherit(RUN, stage)
            continue
        said = without_effect(inherit(RUN, stage), "gpu")
        assert (len(said) == 1 and f"{stream}.length = {length} cuts" in said[0]) == (
            0 < length < most
        )


def test_moments_are_not_offloaded_from_a_cpu():
    stage = inherit(RUN, Sft(optimizer=OptimizerConfig(offload=True)))
    assert [line.split()[0] for line in without_effect(stage, "cpu")] == ["optimizer.offload"]
    assert not without_effect(stage, "gpu")
    usual = dataclasses.replace(stage, optimizer=OptimizerConfig())
    assert not without_effect(usual, "cpu")


def test_a_stream_that_is_not_trained_is_said():
    assert without_effect(inherit(RUN, Sft(reranker=Stream(batch=0))), "gpu") == [
        "reranker.batch = 0: lists are not trained"
    ]
    assert without_effect(inherit(RUN, Sft(generator=Stream(batch=0))), "gpu") == [
        "generator.batch = 0: answers are not trained"
    ]


def test_an_accelerator_of_two_sizes_is_the_usual_one():
    assert accelerator("a100") is ACCELERATORS["a100-80"]
