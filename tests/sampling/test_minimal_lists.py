"""Leave-one-out minimal sets: nothing more can go, and what went was missed least."""

from __future__ import annotations

from dynarag_jax.sampling.answer_scoring import gold_likelihood
from dynarag_jax.sampling.minimal_lists import minimal_lists
from dynarag_jax.sampling.policy_sampler import PolicySampler


def test_a_reader_s_minimal_sets_are_minimal(tiny_policy, question):
    policy, prompts = tiny_policy
    sampler = PolicySampler(policy, prompts, 8, 0)
    likelihood = gold_likelihood(sampler)
    questions = [question(f"q{i}", 4) for i in range(5)] + [question("none", 3, answers=())]
    questions += [question("long", 3, text="who " * 500)]
    begin = [(2, 1, 4)] * 5 + [(1, 2)] * 2
    done = []
    found = minimal_lists(likelihood, questions, begin, 0.999, done.append)
    assert sum(done) == 7
    assert found[-2:] == [None, None]
    for one, chosen, first in zip(questions[:5], found, begin, strict=False):
        assert chosen is not None
        assert [i for i in first if i in chosen] == list(chosen)
        (whole,) = likelihood([(one, first)])
        (kept,) = likelihood([(one, chosen)])
        assert whole is not None and kept is not None
        assert chosen == first or kept >= 0.999 * whole
        for left in chosen:
            (less,) = likelihood([(one, tuple(i for i in chosen if i != left))])
            assert less is not None and less < 0.999 * whole
    # The least share lets everything go, and one above all lets nothing go.
    assert minimal_lists(likelihood, questions[:2], begin[:2], 0.0) == [(), ()]
    assert minimal_lists(likelihood, questions[:2], begin[:2], 1e9) == begin[:2]


def test_the_passage_that_is_missed_least_goes_first():
    worth = {1: 0.5, 2: 0.3, 3: 0.15, 4: 0.01}

    def likelihood(pairs):
        return [sum(worth[i] for i in chosen) for _, chosen in pairs]

    assert minimal_lists(likelihood, [None], [(4, 3, 2, 1)], 0.8) == [(2, 1)]
    assert minimal_lists(likelihood, [None], [(4, 3, 2, 1)], 0.9) == [(3, 2, 1)]
