"""The order of examples: pure functions, whoever asks when."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from dynarag_jax.errors import InputError
from dynarag_jax.training.order import Mixture, Order, uniform_hash


@given(size=st.integers(1, 60), seed=st.integers(0, 3), epoch=st.integers(0, 1000))
def test_order_is_a_permutation_of_its_own_in_every_epoch(size, seed, epoch):
    order = Order(size, seed, "lists")
    seen = [order.at(epoch * size + place) for place in range(size)]
    assert {e for e, _ in seen} == {epoch}
    assert sorted(i for _, i in seen) == list(range(size))


def test_order_is_a_pure_function_of_seed_name_and_position():
    whole = [Order(50, 1, "lists").at(p)[1] for p in range(200)]
    # Asked at random, backward, or by a process that begins in the middle.
    order = Order(50, 1, "lists")
    for p in np.random.default_rng(0).permutation(200):
        assert order.at(int(p))[1] == whole[p]
    assert [Order(50, 1, "lists").at(p)[1] for p in (173, 20)] == [whole[173], whole[20]]
    epochs = [tuple(whole[e * 50 : e * 50 + 50]) for e in range(4)]
    others = [
        tuple(Order(50, s, n).at(p)[1] for p in range(50)) for s, n in ((2, "lists"), (1, "x"))
    ]
    assert len({*epochs, *others}) == 6
    with pytest.raises(InputError, match="stream 'x' has no examples"):
        Order(0, 1, "x")


# ---------------------------------------------------------------------------- mixtures


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    seed=st.integers(0, 3),
    data=st.data(),
)
@settings(max_examples=50)
def test_parts_of_a_mixture_have_their_shares_in_every_stretch(sizes, seed, data):
    weights = data.draw(
        st.lists(st.floats(0.05, 20), min_size=len(sizes), max_size=len(sizes)), "weights"
    )
    mixture = Mixture(sizes, weights, seed, "lists")
    draws = [mixture.at(p) for p in range(300)]
    counts = np.zeros(len(sizes))
    for n, draw in enumerate(draws, 1):
        counts[draw.part] += 1
        expected = n * np.array(weights) / sum(weights)
        assert (abs(counts - expected) < len(sizes)).all()
    for part, size in enumerate(sizes):
        own = [(d.epoch, d.index) for d in draws if d.part == part]
        # Every epoch is read to its end before the next begins, each example once.
        assert [epoch for epoch, _ in own] == [i // size for i in range(len(own))]
        for epoch in range(len(own) // size):
            seen = [index for e, index in own if e == epoch]
            assert sorted(seen) == list(range(size))


def test_a_mixture_of_one_is_the_plain_order():
    mixture, order = Mixture([13], [2.0], 4, "lists"), Order(13, 4, "lists")
    assert [mixture.at(p)[1:] for p in range(60)] == [order.at(p) for p in range(60)]
    assert mixture.size == 13
    # An epoch is one of the first part: for each of its ten examples come three of the other.
    assert Mixture([10, 7], [1, 3], 0, "x").size == 40


@pytest.mark.parametrize("weights", [[1.0, 0.0], [1.0, -1.0], [1.0, float("inf")]])
def test_weights_that_are_no_shares_are_refused(weights):
    with pytest.raises(InputError, match=r"stream 'x' mixes with weights .* must be positive"):
        Mixture([3, 3], weights, 0, "x")


def test_hashes_are_uniform_and_of_their_arguments_alone():
    numbers = [uniform_hash(0, "contexts", e, i) for e in range(10) for i in range(100)]
    assert numbers == [uniform_hash(0, "contexts", e, i) for e in range(10) for i in range(100)]
    assert len(set(numbers)) == 1000
    assert all(0 <= x < 1 for x in numbers)
    # The mean of a thousand uniform numbers: a standard error of 0.009.
    assert sum(numbers) / 1000 == pytest.approx(0.5, abs=0.04)
    assert uniform_hash(1, "contexts", 0, 0) != numbers[0] != uniform_hash(0, "other", 0, 0)
