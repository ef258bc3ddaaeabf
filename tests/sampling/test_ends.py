"""Answers end at every token that a checkpoint declares as an end, and fit its positions."""

from __future__ import annotations

import dataclasses

import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.requests import Request
from dynarag_jax.sampling.sampler import Sampling


def test_an_answer_ends_at_any_of_the_ends(tiny_policy, question):
    policy, prompts = tiny_policy
    asked = question("alpha"), (1, 2)
    sampler = PolicySampler(policy, prompts, 1, 0)
    prompt = sampler.maker.answer_prompt(*asked).tokens
    request = Request("alpha", prompt, sampling=Sampling(temperature=0.0), stops=policy.ends)
    tokens = next(iter(sampler.answer_engine.run([request]))).branches[0]
    whole = policy.tokenizer.decode(tokens).strip()
    for end in set(tokens):
        ending = dataclasses.replace(policy, ends=(*policy.ends, end))
        cut = policy.tokenizer.decode(tokens[: list(tokens).index(end)]).strip()
        assert PolicySampler(ending, prompts, 1, 0).answers([asked]) == [cut] != [whole]


def test_a_prompt_beyond_the_models_positions_is_refused_by_name(tiny_policy, question):
    policy, prompts = tiny_policy
    sampler = PolicySampler(policy, prompts, 1, 0)
    length = len(sampler.maker.rerank_prompt(question("alpha")).tokens)
    for positions in (length, length - 1):
        cfg = dataclasses.replace(policy.cfg, positions=positions)
        maker = PolicySampler(dataclasses.replace(policy, cfg=cfg), prompts, 1, 0).maker
        if positions == length:
            assert len(maker.rerank_prompt(question("alpha")).tokens) == length
            continue
        with pytest.raises(InputError, match=rf"question 'alpha': .* {length} tokens, more than"):
            maker.rerank_prompt(question("alpha"))
