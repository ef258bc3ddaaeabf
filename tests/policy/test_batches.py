"""The trunk-and-branches batch: padding, what is refused, and the rows of each process."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.policy.batches import (
    Batch,
    BatchShape,
    Example,
    collate,
    place,
    process_rows,
)
from dynarag_jax.sharding import make_mesh

SHAPE = BatchShape(prompt=5, branches=2, branch=4, ids=3)


def test_examples_are_padded_on_the_right_with_their_lengths():
    pair = Example(
        "q1", [5, 6, 7], [[8, 9], [4, 4, 4, 2]], shown=3, supervised=(0.0, 0.0),
        reference=((-1.0, -0.5), (-2.5, 0.0, 0.0, 1.0)), rewards=(0.5, 0.25), counts=(3, 1),
        preferred=True, ranking=(3, 1),
    )  # fmt: skip
    batch = collate([pair, Example("q2", [1], [[2]])], SHAPE)
    assert batch.trunk.tolist() == [[5, 6, 7, 0, 0], [1, 0, 0, 0, 0]]
    assert batch.trunk_lengths.tolist() == [3, 1]
    assert batch.branches.tolist() == [[[8, 9, 0, 0], [4, 4, 4, 2]], [[2, 0, 0, 0], [0] * 4]]
    assert batch.branch_lengths.tolist() == [[2, 4], [1, 0]]
    assert batch.shown.tolist() == [3, 0]
    assert batch.supervised.tolist() == [[0, 0], [1, 0]]
    assert batch.reference.tolist() == [[[-1, -0.5, 0, 0], [-2.5, 0, 0, 1]], [[0] * 4] * 2]
    assert not batch.behavior.any()
    assert batch.rewards.tolist() == [[0.5, 0.25], [0, 0]]
    assert batch.counts.tolist() == [[3, 1], [0, 0]]
    assert batch.preferred.tolist() == [True, False]
    assert batch.relevance.tolist() == [[1, 0, 2], [0, 0, 0]]


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example("q", [1] * 6, [[1]]), "prompt of 6 .* do not fit the configured 5 and 4"),
        (Example("q", [], [[1]]), "prompt of 0"),
        (Example("q", [1], [[1] * 5]), "branch of 5"),
        (Example("q", [1], [[1]] * 3, supervised=(1.0,) * 3), "3 branches"),
        (Example("q", [1], [[1]] * 2), "supervised has 1 values for 2 branches"),
        (Example("q", [1], [[1]], rewards=(1.0, 2.0)), "rewards has 2 values for 1 branches"),
        (Example("q", [1], [[1]], reference=((1.0,), (2.0,))), "reference has 2 values for 1 br"),
        (
            Example("q", [1], [[1, 2]], behavior=((1.0,),)),
            r"behavior\[0\] has 1 values for 2 tokens",
        ),
        (Example("q", [1], [[1]], shown=4), "shows 4 passages, more than 3 ids"),
        (Example("q", [1], [[1]], shown=3, ranking=(0,)), r"holds 0, outside 1\.\.3"),
        (Example("q", [1], [[1]], shown=2, ranking=(3,)), r"holds 3, outside 1\.\.2"),
        (Example("q", [1], [[1]], shown=2, ranking=(2, 2)), "holds 2 twice"),
        (Example("q", [1], [[1]], preferred=True), "needs two"),
    ],
)
def test_examples_that_do_not_fit_are_named_and_nothing_is_cut(example, message):
    with pytest.raises(InputError, match=f"example 'q'.*{message}"):
        collate([example], SHAPE)


def test_rows_of_one_process_are_the_batch():
    mesh = make_mesh(2, 2, 2, devices=jax.devices()[:8])
    assert process_rows(mesh, 8) == list(range(8))
    with pytest.raises(InputError, match="batch = 6 does not divide over 4 batch shards"):
        process_rows(mesh, 6)


def test_a_batch_is_placed_over_the_batch_axes():
    examples = [Example(str(i), [i + 1], [[i]]) for i in range(8)]
    batch = collate(examples, SHAPE)
    placed = place(make_mesh(4, 2, 1, devices=jax.devices()[:8]), batch)
    assert isinstance(placed, Batch)
    assert {shard.data.shape for shard in placed.trunk.addressable_shards} == {(1, 5)}
    np.testing.assert_array_equal(placed.trunk, batch.trunk)
