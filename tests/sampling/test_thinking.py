"""A policy that thinks before it lists: sampled, scored, recorded, reranked, learned."""

from __future__ import annotations

import dataclasses
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.decoders import save_decoder
from dynarag_jax.exchange.tokenizers import load_tokenizer, train_word_level
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.objectives.terms import Dpo, Grpo, ListMle, Objectives, TokenNll
from dynarag_jax.policy.batches import BatchShape, collate
from dynarag_jax.policy.examples import ExampleMaker
from dynarag_jax.policy.model import list_grammar, load_policy
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import question_from_json, question_to_json
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.rollout_records import rollout_from_json, rollout_to_json
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.reranking import rerank
from dynarag_jax.sampling.rescoring import with_logps
from dynarag_jax.sampling.rollouts import sample_rollouts
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.sampling.windows import Windows
from dynarag_jax.sharding import make_mesh
from dynarag_jax.training.preferences import Expected, check_rollouts, judge, list_example
from dynarag_jax.training.step import StreamLoss, loss_and_figures

LIMIT = 14
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt "
    "%}<|assistant|>{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
MESH = make_mesh(1, 1, 1, devices=jax.devices()[:1])


@pytest.fixture(scope="module", params=["cue", "markers"])
def sampler(request, tiny_model, tiny_policy, tmp_path_factory) -> PolicySampler:
    """A tiny policy that thinks, behind a cue or between the markers of its family."""
    prompts = dataclasses.replace(tiny_policy[1], thought_tokens=LIMIT)
    where = tiny_model
    if request.param == "markers":
        where = tmp_path_factory.mktemp("thinks") / "model"
        tokenizer = load_tokenizer(str(tiny_model))
        tokenizer.add_tokens(["<think>", "</think>"])
        tokenizer.chat_template = CHAT
        cfg = DecoderConfig(
            vocab=-(-len(tokenizer) // 8) * 8, width=16, layers=1, heads=2, kv_heads=2,
            head_size=8, mlp=24,
        )  # fmt: skip
        save_decoder(where, cfg, decoder.init_params(cfg, jax.random.key(0)), tokenizer)
    else:
        prompts = dataclasses.replace(prompts, thought_tokens=LIMIT + 2)
    return PolicySampler(load_policy(where, MESH, prompts), prompts, 4, 0)


@pytest.fixture(scope="module")
def questions(question):
    return [question(f"q{i}", passages=2 + i % 3) for i in range(5)]


@pytest.fixture(scope="module")
def made(sampler, questions):
    """Rollouts of eight samples a question."""
    return sample_rollouts(sampler, sampler, questions, Sampling(1.5), 8, RewardWeights())


def test_the_prompt_opens_the_thought(sampler, questions):
    tokens = sampler.maker.rerank_prompt(questions[0]).tokens
    text = sampler.policy.tokenizer.decode(tokens)
    plain = dataclasses.replace(sampler.prompts, thought_tokens=0)
    other = PolicySampler(load_policy_like(sampler, plain), plain, 4, 0)
    unthinking = sampler.policy.tokenizer.decode(other.maker.rerank_prompt(questions[0]).tokens)
    if sampler.maker.thinking.cued:
        assert text.endswith("passages :") and unthinking.endswith("list :")
    else:
        assert text.endswith("<|assistant|><think>\n")
        assert unthinking.endswith("<think>\n\n</think>\n\n")


def load_policy_like(sampler, prompts):
    """The policy with the grammar of other prompts."""
    spelling, grammar = list_grammar(sampler.policy.tokenizer, prompts)
    return dataclasses.replace(sampler.policy, spelling=spelling, grammar=grammar)


def test_samples_are_thoughts_and_lists_and_their_probabilities_are_the_training_forwards(
    sampler, questions, made
):
    spelling = sampler.policy.spelling.thought
    lists = [[t.list for t in r.trajectories] for r in made]
    thoughts = [[t.thought.tokens for t in r.trajectories] for r in made]
    logps = sampler.logps(questions, lists, 8, thoughts)
    cuts = set()
    for rollout, each in zip(made, logps, strict=True):
        assert rollout.thought_tokens == sampler.prompts.thought_tokens
        assert sum(t.count for t in rollout.trajectories) == 8
        for t, whole in zip(rollout.trajectories, each, strict=True):
            n = len(t.thought.tokens)
            assert spelling.split(t.thought.tokens) == (n, t.thought.cut)
            assert t.thought.tokens[n - len(spelling.closing) :] == spelling.closing
            np.testing.assert_allclose(t.thought.logps, whole[:n], atol=1e-4)
            np.testing.assert_allclose(t.logps, whole[n:], atol=1e-4)
            assert t.logp == pytest.approx(sum(whole[n:]), abs=1e-4)
            # What closes a cut thought, and stands behind its end, is no choice.
            free = spelling.limit if t.thought.cut else n - len(spelling.behind)
            assert all(x == 0 for x in t.thought.logps[free:])
            assert not set(t.thought.tokens[:free]) & set(spelling.banned)
            said = sampler.policy.tokenizer.decode(spelling.thought(t.thought.tokens))
            assert t.thought.text == said.strip()
            cuts.add(t.thought.cut)
    assert True in cuts


def test_equal_lists_behind_other_thoughts_are_other_trajectories(made):
    every = [(r.id, t) for r in made for t in r.trajectories]
    written = {(name, t.written) for name, t in every}
    assert len(written) == len(every) > len({(name, t.list) for name, t in every})
    for rollout in made:
        line = json.loads(json.dumps(rollout_to_json(rollout)))
        assert rollout_from_json(line, "x:1") == rollout
        line["trajectories"].append(line["trajectories"][0])
        with pytest.raises(InputError, match=r"x:1: trajectories\[\d+\] repeats the list"):
            rollout_from_json(line, "x:1")
    line = json.loads(json.dumps(rollout_to_json(made[0])))
    line["trajectories"][0]["thought"]["logps"] = [0.0]
    with pytest.raises(InputError, match="field 'logps' has 1 numbers for"):
        rollout_from_json(line, "x:1")
    for name, value in (("cut", "no"), ("tokens", [-1]), ("text", None)):
        line["trajectories"][0]["thought"] = {"text": "a", "tokens": [1], name: value}
        with pytest.raises(InputError, match=f"thought: field '{name}'"):
            rollout_from_json(line, "x:1")


def test_the_same_is_computed_anew_for_rollouts_from_elsewhere(sampler, questions, made):
    bare = [
        dataclasses.replace(
            r,
            trajectories=tuple(
                dataclasses.replace(t, logps=(), thought=dataclasses.replace(t.thought, logps=()))
                for t in r.trajectories
            ),
        )
        for r in made
    ]
    for one, two in zip(with_logps(sampler, questions, bare, 8, "behavior"), made, strict=True):
        for a, b in zip(one.trajectories, two.trajectories, strict=True):
            np.testing.assert_allclose(a.thought.logps, b.thought.logps, atol=1e-4)
            np.testing.assert_allclose(a.logps, b.logps, atol=1e-4)
    with pytest.raises(InputError, match="probability of a list is given its thought"):
        sampler.logps(questions[:1], [[(1,)]], 1)
    plain = dataclasses.replace(sampler.prompts, thought_tokens=0)
    other = PolicySampler(load_policy_like(sampler, plain), plain, 4, 0)
    with pytest.raises(InputError, match=r"has a thought before it, and prompts\.thought"):
        with_logps(other, questions, made, 8, "behavior")
    longer = dataclasses.replace(sampler.prompts, thought_tokens=LIMIT + 9)
    other = PolicySampler(load_policy_like(sampler, longer), longer, 4, 0)
    with pytest.raises(InputError, match="do not end as this model closes thoughts"):
        with_logps(other, questions, made, 8, "behavior")


def test_what_reranking_thought_is_told_with_its_cost(sampler, questions, question):
    asked = [*questions[:2], question("wide", passages=9)]
    found = rerank(sampler, asked, Sampling(0.0), Windows(3, budget=2))
    assert [len(one.thoughts) for one in found] == [one.calls for one in found]
    assert found[2].calls >= 3
    for one in found:
        assert all(len(t.tokens) <= sampler.policy.spelling.thought.longest for t in one.thoughts)


@pytest.mark.parametrize("method", ["beam", "distinct"])
def test_searches_over_thoughts_are_refused(sampler, questions, method):
    with pytest.raises(InputError, match=f"method '{method}' searches lists, and this policy writ"):
        sampler.lists(questions[:1], Sampling(method=method), 2)


# ---------------------------------------------------------------------------- learned


def experts(questions):
    """Questions with lists, the first with a thought, the second with a long one."""
    said = ("river 2", "river 2 lies on port " * 5, "")
    return [
        dataclasses.replace(q, expert=(2, 1), expert_thought=text)
        for q, text in zip(questions, said, strict=False)
    ]


def test_expert_thoughts_are_learned_cut_ones_and_absent_ones_are_given(sampler, questions):
    thinks, long, bare = (sampler.maker.behavior(q) for q in experts(questions))
    spelling = sampler.policy.spelling
    assert question_from_json(question_to_json(experts(questions)[0]), "x").expert_thought
    for example in (thinks, long, bare):
        count, cut = spelling.thought.split(example.branches[0])
        assert example.thoughts == (count,) and cut == (example is long)
        assert example.branches[0][count:] == spelling.spell((2, 1))
    assert thinks.given == (0,) and thinks.dropped_tokens == 0
    text = sampler.policy.tokenizer.decode(spelling.thought.thought(thinks.branches[0]))
    assert text.strip() == "river 2"
    assert long.given == long.thoughts and long.dropped_tokens > 0
    assert bare.given == bare.thoughts == (len(spelling.thought.closing),)
    mixed, _ = experts(questions)[0].shuffled(4, random.Random(0))
    assert sampler.maker.behavior(mixed).given == bare.given


def test_a_thought_with_its_own_end_inside_is_refused_or_loses_it(sampler, questions):
    closing = sampler.maker.thinking.closing
    spoiled = dataclasses.replace(experts(questions)[0], expert_thought=f"a {closing} b")
    if sampler.maker.thinking.cued:
        with pytest.raises(InputError, match=r"question 'q0': its thought .* closes a thought"):
            sampler.maker.behavior(spoiled)
    else:  # markers of the tokenizer are taken out of all texts
        assert sampler.maker.behavior(spoiled).given == (0,)


def test_a_thought_of_words_that_the_tokenizer_lacks_is_refused_by_that_name(tmp_path):
    tokenizer = train_word_level(["question : passages : list : so"], tmp_path / "words", 4)
    prompts = PromptConfig(style="compact", ids=4, max_list=4, thought_tokens=6)
    maker = ExampleMaker(tokenizer, list_grammar(tokenizer, prompts)[0], prompts)
    assert maker.thought("q0", "so so")[1] is False
    with pytest.raises(InputError, match=r"question 'q0': its thought 'so what' .* does not know"):
        maker.thought("q0", "so what")


def loss_of(sampler, examples, objectives, branches):
    """The loss of a batch of lists, and its figures."""
    policy = sampler.policy
    shape = BatchShape(200, branches, policy.spelling.longest(3), 4, thoughts=True)
    batch = collate(examples, shape)
    value, figures = jax.jit(
        lambda params: loss_and_figures(
            policy.cfg, params, {"lists": batch}, {"lists": batch}, policy.grammar,
            {"lists": StreamLoss(objectives)},
        )
    )(policy.params)  # fmt: skip
    return float(value), figures


@pytest.mark.slow  # compiles or waits for long; others of its kind are fast
def test_cloning_counts_the_tokens_that_are_learned(sampler, questions):
    """The loss is the mean over learned tokens of the unconstrained log-probabilities."""
    examples = [sampler.maker.behavior(q) for q in experts(questions)]
    loss, _ = loss_of(sampler, examples, Objectives(), 1)
    cfg, params = sampler.policy.cfg, sampler.policy.params
    total = count = 0.0
    for e in examples:
        tokens = jnp.asarray([[*e.prompt, *e.branches[0]]])
        hidden, _ = decoder.prefill(cfg, params, tokens, jnp.array([tokens.shape[1]]))
        logps = jax.nn.log_softmax(decoder.logits(cfg, params, hidden)[0], axis=-1)
        for place in range(e.given[0], len(e.branches[0])):
            total -= float(logps[len(e.prompt) + place - 1, e.branches[0][place]])
            count += 1
    assert loss == pytest.approx(total / count, rel=1e-4)
    figures = {"list_mle": ListMle(weight=1.0), "nll": TokenNll(weight=0.0)}
    value, _ = loss_of(sampler, examples, Objectives(**figures), 1)
    assert np.isfinite(value)


@pytest.mark.parametrize("both", [False, True])
def test_feedback_on_lists_alone_or_on_thoughts_too(sampler, questions, made, both):
    """At the policy that sampled, every ratio is one: DPO's loss is log 2, GRPO's KL is 0."""
    scored = [
        dataclasses.replace(
            r,
            trajectories=tuple(
                dataclasses.replace(t, reward=float(i)) for i, t in enumerate(r.trajectories)
            ),
        )
        for r in made
    ]
    objectives = Objectives(
        nll=TokenNll(weight=0.0), dpo=Dpo(weight=1.0), grpo=Grpo(weight=1.0, kl=0.5)
    )
    judged, counts = judge(scored, pairs=False)
    by_id = {q.id: q for q in questions}
    assert counts.kept == len(questions)
    examples = [
        list_example(sampler.maker, by_id[j.rollout.id], j, objectives, both) for j in judged
    ]
    for example in examples:
        assert example.given == (() if both else example.thoughts)
    _, figures = loss_of(sampler, examples, objectives, 8)
    assert float(figures["lists/dpo"]) == pytest.approx(np.log(2), abs=1e-4)
    assert float(figures["lists/kl"]) == pytest.approx(0, abs=1e-3)
    expected = Expected(
        "r.jsonl", sampler.policy.fingerprint, "m", scored[0].tokenizer, 3, "float32", 0
    )
    with pytest.raises(InputError, match=r"thoughts of at most .* this stage has prompts"):
        check_rollouts(scored, objectives, expected)
    longest = sampler.prompts.thought_tokens
    check_rollouts(scored, objectives, dataclasses.replace(expected, thought_tokens=longest))
