"""A bias on stopping: exact in every probability, and every list it gives known from one path."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import jax
import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.calibration import ListBias
from dynarag_jax.policy.model import load_policy
from dynarag_jax.sampling.choice import GREEDY, Sampling
from dynarag_jax.sampling.encoder_sampler import EncoderSampler
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.stopping import stop_paths
from dynarag_jax.sharding import make_mesh
from tests.sampling.small_encoder import small_encoder_policy


@pytest.fixture(scope="module")
def samplers(tiny_model, tiny_policy):
    """A sampler of each kind over few passages, and of a language model whose ids begin alike."""
    policy, prompts = tiny_policy
    many = dataclasses.replace(prompts, ids=12, rerank_tokens=400, max_list=4)
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    wide = load_policy(tiny_model, mesh, many)
    assert wide.spelling.ids[9][: len(wide.spelling.ids[0])] == wide.spelling.ids[0]
    return {
        "language model": PolicySampler(policy, prompts, 8, 0),
        "ids that begin alike": PolicySampler(wide, many, 8, 0),
        "encoder policy": EncoderSampler(small_encoder_policy(), 8, 0),
    }


def with_bias(sampler, bias):
    """The same sampler with a bias."""
    own = sampler.policy.with_bias(bias)
    if isinstance(sampler, EncoderSampler):
        return EncoderSampler(own, sampler.batch, sampler.seed)
    return PolicySampler(own, sampler.prompts, sampler.batch, sampler.seed)


def probabilities(sampler, question, lists):
    if isinstance(sampler, EncoderSampler):
        (logps,) = sampler.logps([question], [lists])
    else:
        (logps,) = sampler.logps([question], [lists], len(lists))
    return {own: math.exp(sum(x)) for own, x in zip(lists, logps, strict=True)}


@pytest.mark.parametrize("kind", ["language model", "encoder policy"])
def test_a_bias_is_added_to_the_odds_of_ending_a_list_and_to_nothing_else(samplers, question, kind):
    """All lists over two passages, whose decisions are few enough to write down."""
    asked = question("q", 2)
    lists = [(), (1,), (2,), (1, 2), (2, 1)]
    bias = ListBias(stop=0.7, empty=-1.3)
    plain = probabilities(samplers[kind], asked, lists)
    own = probabilities(with_bias(samplers[kind], bias), asked, lists)
    assert sum(plain.values()) == pytest.approx(1, abs=1e-5)
    assert sum(own.values()) == pytest.approx(1, abs=1e-5)

    def moved(p, b):
        return p * math.exp(b) / (p * math.exp(b) + 1 - p)

    nothing = moved(plain[()], bias.empty)
    assert own[()] == pytest.approx(nothing, rel=1e-4)
    for first, second in ((1, 2), (2, 1)):
        begun = plain[(first,)] + plain[first, second]
        stops = moved(plain[(first,)] / begun, bias.stop)
        share = begun / (1 - plain[()]) * (1 - nothing)
        assert own[(first,)] == pytest.approx(share * stops, rel=1e-4)
        assert own[first, second] == pytest.approx(share * (1 - stops), rel=1e-4)


@pytest.mark.parametrize(
    "kind",
    [
        "language model",
        pytest.param("ids that begin alike", marks=pytest.mark.slow),
        "encoder policy",
    ],
)
def test_a_path_gives_the_very_lists_of_every_bias(samplers, question, kind):
    sampler = samplers[kind]
    most = 11 if kind.startswith("ids") else 3
    questions = [question(f"q{i}", most - i % 2, text=f"where is river {i}") for i in range(6)]
    paths = stop_paths(sampler, questions)
    edges = sorted({need for path in paths for need in path.needs if math.isfinite(need)})
    middles = [(a + b) / 2 for a, b in itertools.pairwise(edges) if b - a > 1e-3]
    assert len(middles) > 5
    half = middles[len(middles) // 2]
    apart = [ListBias(half, -50.0), ListBias(-50.0, half)]
    some = [edges[0] - 1, half, edges[-1] + 1]
    seen = set()
    # Of an encoder policy every bias is compiled by itself.
    every = [*(ListBias(value, value) for value in some), *apart]
    for bias in every if kind != "encoder policy" else every[1:4]:
        found = with_bias(sampler, bias).lists(questions, GREEDY)
        lists = [one.lists[0] for one in found]
        assert lists == [path.at(bias) for path in paths]
        seen |= set(map(len, lists))
    assert len(seen) >= 2
    # Lists only get shorter as a bias on both rises.
    values = np.linspace(edges[0] - 1, edges[-1] + 1, 50)
    for path in paths:
        sizes = [len(path.at(ListBias(v, v))) for v in values]
        assert sizes == sorted(sizes, reverse=True)


def test_sampled_lists_carry_the_probabilities_of_the_biased_policy(samplers, question):
    asked = [question(f"q{i}", 3) for i in range(4)]
    for kind in ("language model", "encoder policy"):
        own = with_bias(samplers[kind], ListBias(0.8, -2.0))
        for one, q in zip(own.lists(asked, Sampling(), 4), asked, strict=True):
            known = probabilities(own, q, every_list(3, 3))
            for chosen, logp in zip(one.lists, one.logps, strict=True):
                assert math.exp(logp) == pytest.approx(known[chosen], rel=1e-4)


@functools.cache
def every_list(n, most):
    return [p for k in range(most + 1) for p in itertools.permutations(range(1, n + 1), k)]


def test_beam_search_finds_the_most_probable_list_of_the_biased_policy(samplers, question):
    asked = question("q", 3)
    for value in (-3.0, 3.0):
        own = with_bias(samplers["language model"], ListBias(value, value))
        known = probabilities(own, asked, every_list(3, 3))
        (found,) = own.lists([asked], Sampling(method="beam", width=32))
        assert found.lists[0] == max(known, key=lambda one: known[one])
        assert math.exp(found.logps[0]) == pytest.approx(max(known.values()), rel=1e-4)


def test_windows_have_no_path(samplers, question):
    with pytest.raises(InputError, match=r"'q' has more passages than prompts\.ids = 4"):
        stop_paths(samplers["language model"], [question("q", 5)])


@pytest.mark.parametrize("reencode", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_any_padding_gives_the_same_lists(question, reencode):
    """None between pairs, that of like questions, and the few shapes of accelerators."""
    policy = small_encoder_policy(reencode=reencode)
    asked = [question(f"q{i}", n) for i, n in enumerate((1, 3, 3, 7, 12))]
    samplers = [
        EncoderSampler(policy, 4, 0),
        EncoderSampler(policy, 4, 0, packs=False),
        EncoderSampler(policy, 4, 0, coarse=True),
    ]
    drawn = Sampling(temperature=1.0)
    for sampling in (GREEDY, drawn, dataclasses.replace(drawn, method="distinct")):
        found = [sampler.lists(asked, sampling, 3) for sampler in samplers]
        for one, *others in zip(*found, strict=True):
            for other in others:
                assert one.lists == other.lists
                np.testing.assert_allclose(one.logps, other.logps, atol=1e-5)
    lists = [own.lists for own in found[0]]
    scored = [sampler.logps(asked, lists) for sampler in samplers]
    for one, *others in zip(*scored, strict=True):
        for other in others:
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, other)
