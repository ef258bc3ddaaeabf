"""The training step: the same on any mesh and in any number of microbatches."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.objectives.terms import (
    Dpo,
    Grpo,
    ListMle,
    Objectives,
    PlackettLuce,
    PromptNll,
    TokenNll,
)
from dynarag_jax.policy.batches import BatchShape, Example, collate
from dynarag_jax.policy.grammar import Spelling, build_grammar
from dynarag_jax.policy.scoring import make_scorer
from dynarag_jax.sharding import make_mesh
from dynarag_jax.training.meter import batch_figures, reference_kl
from dynarag_jax.training.optimizer import OptimizerConfig, make_optimizer
from dynarag_jax.training.step import (
    StreamLoss,
    _masks,
    init_state,
    loss_and_figures,
    make_step,
    state_shardings,
)

CFG = DecoderConfig(
    vocab=32, width=16, layers=2, heads=4, kv_heads=2, head_size=8, mlp=24, positions=64
)
SPELLING = Spelling(
    opening=(10,), ids=tuple((i,) for i in range(1, 7)), between=(20, 10), closing=(20,),
    none=(30,), end=31,
)  # fmt: skip
GRAMMAR = build_grammar(SPELLING)
PART = StreamLoss(
    Objectives(
        nll=TokenNll(weight=1.0), prompt_nll=PromptNll(weight=0.2),
        list_mle=ListMle(weight=0.3), dpo=Dpo(weight=0.5, beta=0.7, chosen_nll=0.2),
        plackett_luce=PlackettLuce(weight=0.2), grpo=Grpo(weight=0.4, kl=0.2, normalize="tokens"),
    )
)  # fmt: skip
SHAPE = BatchShape(prompt=10, branches=2, branch=SPELLING.longest(6), ids=6)


def make_batch(seed=0, shape=SHAPE):
    """Eight rows of very unequal lengths: expert lists, preferred pairs and answers, mixed."""
    rng = np.random.default_rng(seed)

    def ids(n):
        return rng.permutation(np.arange(1, n + 1))[: rng.integers(0, n + 1)].tolist()

    rows = []
    for row in range(8):
        prompt = rng.integers(0, 30, rng.integers(2, 11)).tolist()
        shown = int(rng.integers(1, 7))
        if row % 4 == 3:
            rows.append(Example(f"answer{row}", prompt, [rng.integers(0, 30, row).tolist()]))
        elif row % 2:
            pair = (SPELLING.spell(ids(shown)), SPELLING.spell(ids(shown)))
            rows.append(
                Example(
                    f"pair{row}", prompt, pair, shown=shown, supervised=(0.0, 0.0),
                    reference=tuple(tuple([-0.4] * len(b)) for b in pair),
                    behavior=tuple(tuple([-0.5] * len(b)) for b in pair),
                    rewards=(0.9, float(rng.uniform(0, 0.8))), counts=(row, 2), preferred=True,
                )
            )  # fmt: skip
        else:
            expert = ids(shown)
            rows.append(
                Example(
                    f"expert{row}", prompt, [SPELLING.spell(expert)], shown=shown, ranking=expert
                )
            )
    return collate(rows, shape)


OPTIMIZER = make_optimizer(
    OptimizerConfig(learning_rate=0.02, weight_decay=0.1, warmup=0.0, clip=0.5), 8
)


def mesh_of(*sizes):
    return make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])


@pytest.fixture(scope="module")
def weights():
    """As NumPy arrays, since every step gives its state away."""
    return jax.tree.map(np.asarray, decoder.init_params(CFG, jax.random.key(0)))


def trained(mesh, weights, accumulate=1):
    """State and last figures after two steps."""
    state = init_state(CFG, mesh, OPTIMIZER, weights)
    step = make_step(CFG, mesh, OPTIMIZER, GRAMMAR, {"mixed": PART}, accumulate)
    figures = {}
    for number in range(2):
        state, figures = step(state, {"mixed": make_batch(seed=number)})
    return jax.tree.map(np.asarray, state), {k: float(v) for k, v in figures.items()}


@pytest.fixture(scope="module")
def on_one(weights):
    return trained(mesh_of(1, 1, 1), weights)


def assert_equal_runs(run, other, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), run[0], other[0])
    assert run[1].keys() == other[1].keys()
    for name, value in run[1].items():
        assert value == pytest.approx(other[1][name], abs=1e-4, rel=1e-4), name


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((8, 1, 1), marks=pytest.mark.slow),
        pytest.param((1, 8, 1), marks=pytest.mark.slow),
        (2, 2, 2),
    ],
    ids=str,
)
def test_eight_devices_train_as_one(weights, on_one, sizes):
    mesh = mesh_of(*sizes)
    state, _ = run = trained(mesh, weights)
    assert state.step == 2
    moved = np.abs(state.params["embedding"] - weights["embedding"]).max()
    assert moved > 0.01  # or equality would prove nothing
    assert_equal_runs(run, on_one)


@pytest.mark.slow
def test_microbatches_of_unequal_token_counts_train_as_the_whole(weights, on_one):
    assert_equal_runs(trained(mesh_of(1, 1, 1), weights, accumulate=4), on_one)
    assert_equal_runs(trained(mesh_of(2, 1, 1), weights, accumulate=2), on_one)


def test_figures_of_streams_are_what_their_terms_say(weights):
    parts = {
        "lists": PART,
        "answers": StreamLoss(Objectives(prompt_nll=PromptNll(weight=0.1)), weight=0.5),
        "idle": StreamLoss(Objectives(nll=TokenNll(weight=0.0))),
    }
    mesh = mesh_of(1, 1, 1)
    step = make_step(CFG, mesh, OPTIMIZER, GRAMMAR, parts)
    batches = {"lists": make_batch(), "answers": make_batch(seed=1)}
    _, figures = step(init_state(CFG, mesh, OPTIMIZER, weights), batches)
    assert {name.split("/")[0] for name in figures} == {"loss", "gradient_norm", "lists", "answers"}
    terms = PART.objectives.active()
    assert len(terms) == 6
    lists = sum(term.weight * figures[f"lists/{name}"] for name, term in terms.items())
    answers = figures["answers/nll"] + 0.1 * figures["answers/prompt_nll"]
    assert figures["loss"] == pytest.approx(float(lists + 0.5 * answers), rel=1e-5)
    dpo = figures["lists/dpo/preference"] + 0.2 * figures["lists/dpo/chosen_nll"]
    assert figures["lists/dpo"] == pytest.approx(float(dpo), rel=1e-5)
    assert 0 <= figures["lists/dpo/accuracy"] <= 1


def test_a_batch_without_rows_of_a_kind_has_loss_zero_and_finite_gradients(weights):
    batch = make_batch()
    nothing = batch._replace(
        shown=0 * batch.shown,
        supervised=0 * batch.supervised,
        preferred=np.zeros(8, bool),
        relevance=0 * batch.relevance,
        counts=0 * batch.counts,
    )
    batches = {"mixed": nothing}
    loss, gradient = jax.jit(
        jax.value_and_grad(
            lambda p: loss_and_figures(CFG, p, batches, batches, GRAMMAR, {"mixed": PART})[0]
        )
    )(weights)
    assert loss == 0
    assert all(np.isfinite(g).all() and not np.any(g) for g in jax.tree.leaves(gradient))


def test_random_weights_do_not_depend_on_the_mesh():
    first = jax.tree.map(np.asarray, init_state(CFG, mesh_of(1, 1, 1), OPTIMIZER, seed=3))
    other = jax.tree.map(np.asarray, init_state(CFG, mesh_of(2, 2, 2), OPTIMIZER, seed=3))
    jax.tree.map(np.testing.assert_array_equal, first, other)
    assert first.step == 0


@pytest.mark.parametrize("name", ["adamw", "muon", "lion", "adafactor", "sgd"])
def test_moments_lie_where_their_parameters_lie(name):
    # Wide enough that Adafactor factors its moments.
    cfg = dataclasses.replace(CFG, vocab=256, width=128)
    mesh = mesh_of(2, 2, 2)
    rule = make_optimizer(OptimizerConfig(name=name, weight_decay=0.1), 10)
    zeros = jax.tree.map(
        lambda p: np.zeros(p.shape, np.float32),
        decoder.parameter_table(cfg),
        is_leaf=decoder.is_parameter,
    )
    state = init_state(cfg, mesh, rule, zeros)
    layout = state_shardings(cfg, mesh, rule)
    assert jax.tree.structure(state) == jax.tree.structure(layout)
    embedding = state.params["embedding"]
    assert embedding.addressable_shards[0].data.shape == (128, 64)  # vocab / tensor, embed / fsdp
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.shape == embedding.shape]
    assert bool(moments) == (name != "adafactor")
    assert all(x.sharding.is_equivalent_to(embedding.sharding, 2) for x in moments)


def test_scorer_gives_the_policys_log_probability_of_branches(weights):
    batch = make_batch()
    one, eight = (
        make_scorer(CFG, mesh, GRAMMAR)(weights, batch)
        for mesh in (mesh_of(1, 1, 1), mesh_of(2, 2, 2))
    )
    np.testing.assert_allclose(one, eight, atol=1e-5)
    assert (np.asarray(one) <= 0).all()
    # A branch that is not there has probability one; two lists of the grammar are possible.
    padding = np.arange(batch.branches.shape[-1]) >= np.asarray(batch.branch_lengths)[..., None]
    assert not np.asarray(one)[padding].any()
    assert np.isfinite(one).all()
    # The scores are those that DPO sees: with them as reference, its loss is log 2.
    batch = batch._replace(reference=np.asarray(one))
    dpo = {"x": StreamLoss(Objectives(nll=TokenNll(0.0), dpo=Dpo(weight=1.0)))}
    loss, _ = jax.jit(lambda p: loss_and_figures(CFG, p, {"x": batch}, {"x": batch}, GRAMMAR, dpo))(
        weights
    )
    assert loss == np.float32(np.log(2))


@pytest.mark.slow
def test_gradients_of_bfloat16_weights_are_summed_in_float32(weights):
    """Eight microbatches: a bfloat16 sum would lose what each adds beyond 8 bits."""
    cfg = dataclasses.replace(CFG, param_dtype="bfloat16")
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights)
    rule = make_optimizer(
        OptimizerConfig("sgd", learning_rate=1.0, schedule="constant", warmup=0, b1=0.0, clip=0), 1
    )
    runs = {}
    for accumulate in (1, 8):
        mesh, parts = mesh_of(1, 1, 1), {"mixed": StreamLoss(Objectives())}
        step = make_step(cfg, mesh, rule, GRAMMAR, parts, accumulate)
        _, figures = step(init_state(cfg, mesh, rule, half), {"mixed": make_batch()})
        runs[accumulate] = float(figures["gradient_norm"])
    assert runs[8] == pytest.approx(runs[1], rel=2e-3)


# ---------------------------------------------------------------------------- refusals


def test_a_model_that_the_mesh_does_not_divide_is_refused_with_every_array():
    cfg = dataclasses.replace(CFG, kv_heads=1, mlp=25)
    with pytest.raises(InputError) as error:
        state_shardings(cfg, mesh_of(1, 1, 2), OPTIMIZER)
    message = str(error.value)
    for name in ("key", "value", "gate", "up", "down"):
        assert f"['{name}']" in message
    assert "size 25 over 2 devices" in message
    assert "query" not in message


def test_listwise_supervision_needs_ids_of_distinct_first_tokens():
    digits = Spelling((10,), ((1,), (2,), (1, 0)), (20, 10), (20,), (30,), 31)
    with pytest.raises(InputError, match=r"lists: .* begins \[1\] and \[3\] with the same"):
        make_step(CFG, mesh_of(1, 1, 1), OPTIMIZER, build_grammar(digits), {"lists": PART})


def test_an_update_that_is_not_finite_is_left_out_on_every_device_and_training_goes_on(weights):
    mesh = mesh_of(2, 1, 1)
    part = {"mixed": StreamLoss(Objectives(nll=TokenNll(weight=1.0)))}
    step = make_step(CFG, mesh, OPTIMIZER, GRAMMAR, part, skip_nonfinite=True)
    good, bad = make_batch(0), make_batch(1)
    bad.supervised[0, 0] = np.inf
    state, _ = step(init_state(CFG, mesh, OPTIMIZER, weights), {"mixed": good})
    before = jax.tree.map(np.asarray, state)
    state, figures = step(state, {"mixed": bad})
    assert not np.isfinite(figures["loss"]) and figures["skipped"] == 1
    after = jax.tree.map(np.asarray, state)
    assert after.step == before.step + 1
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    jax.tree.map(np.testing.assert_array_equal, after.optimizer, before.optimizer)
    # What follows is what would follow had the step not been: the very same weights.
    state, figures = step(state, {"mixed": make_batch(2)})
    assert figures["skipped"] == 0 and np.isfinite(figures["loss"])
    other, _ = step(init_state(CFG, mesh, OPTIMIZER, weights), {"mixed": good})
    other, _ = step(other, {"mixed": make_batch(2)})
    jax.tree.map(np.testing.assert_array_equal, state.params, other.params)


def test_figures_count_tokens_positions_and_what_was_cut():
    batch = make_batch()
    batch.dropped[:3] = (4, 0, 1)
    batch.dropped_ids[5] = 2
    batch.dropped_tokens[6] = 7
    figures = batch_figures({"mixed": batch})
    tokens = batch.trunk_lengths.sum() + batch.branch_lengths.sum()
    assert figures["mixed/tokens"] == tokens
    assert figures["mixed/positions"] == 8 * 10 + 8 * 2 * SHAPE.branch
    assert figures["mixed/dropped_passages"] == 5 and figures["mixed/dropped_ids"] == 2
    assert figures["mixed/dropped_tokens"] == 7


def test_divergence_from_the_reference_is_the_mean_drift_of_sampled_branches():
    rng = np.random.default_rng(0)
    policy, reference = -rng.exponential(size=(2, 3, 2, 4)).astype(np.float32)
    mask = np.arange(4) < np.array([[4, 2], [3, 0], [1, 4]])[..., None]
    batch = make_batch()
    scores = _masks(batch, Objectives())._replace(
        constrained_logps=policy, reference=reference, token_mask=mask,
        preferred=np.array([True, True, False]),
    )  # fmt: skip
    # By hand: the first row has two branches, the second one, and the third was not sampled.
    drift = [
        (reference[b, n, :length] - policy[b, n, :length]).sum()
        for b, n, length in ((0, 0, 4), (0, 1, 2), (1, 0, 3))
    ]
    total, count = reference_kl(scores)
    assert count == 3 and total == pytest.approx(sum(drift), rel=1e-5)
    assert reference_kl(scores._replace(reference=policy))[0] == 0


@pytest.mark.slow  # two steps of two optimizers
def test_updates_that_bfloat16_weights_lose_are_counted(weights):
    """Adam's first update is the learning rate in size: next to nothing beside most weights."""
    half = jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16), weights)
    cfg, mesh = dataclasses.replace(CFG, param_dtype="bfloat16"), mesh_of(1, 1, 1)
    lost = {}
    for rate in (1e-5, 0.3):
        rule = optax.adam(rate)
        step = make_step(cfg, mesh, rule, GRAMMAR, {"mixed": PART})
        state, figures = step(init_state(cfg, mesh, rule, half), {"mixed": make_batch()})
        lost[rate] = float(figures["lost_updates"])
        moved = sum(
            int((np.asarray(a) != b).sum())
            for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(half), strict=True)
        )
        count = sum(x.size for x in jax.tree.leaves(half))
        # Rows of the embedding that no token reads have no gradient, and nothing to lose.
        assert moved <= (1 - lost[rate]) * count
    assert lost[1e-5] > 0.5 and lost[0.3] < 0.01
    step = make_step(CFG, mesh, OPTIMIZER, GRAMMAR, {"mixed": PART})
    _, figures = step(init_state(CFG, mesh, OPTIMIZER, weights), {"mixed": make_batch()})
    assert "lost_updates" not in figures
