"""Group objectives on the very arrays that TRL's trainers get: values and gradients to 1e-6.

TRL is handed advantages, which are worked out here by their papers' formulas, sample by sample.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dynarag_jax.objectives.scores import LossInputs
from dynarag_jax.objectives.terms import Dro, Grpo, Rloo, Term
from dynarag_jax.rollout_records import Rollout, Trajectory
from dynarag_jax.training.preferences import judge
from tests.objectives.trl_models import group_trainer, small_llama

warnings.filterwarnings("ignore", category=FutureWarning)

B, N, R = 4, 3, 6
COUNTS = np.ones((B, N))


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Log-probabilities under three policies [B, N, R], their mask, rewards [B, N], steps."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, R + 1, (B, N))
    where = np.arange(R) < lengths[..., None]
    logps = np.where(where, -rng.exponential(1.0, (B, N, R)), 0)
    near = np.where(where, logps + rng.normal(scale=0.25, size=logps.shape), 0)
    far = np.where(where, logps + rng.normal(scale=0.7, size=logps.shape), 0)
    rewards = rng.uniform(0, 1, (B, N))
    rewards[2] = 0.4  # a group without signal
    ends = where & ((rng.random(where.shape) < 0.6) | (np.arange(R) == lengths[..., None] - 1))
    steps = np.where(ends, rng.uniform(-1, 1, where.shape), 0)
    return {
        "logps": logps, "behavior": near, "reference": far, "where": where, "rewards": rewards,
        "ends": ends, "steps": steps,
    }  # fmt: skip


def inputs_of(given: dict[str, np.ndarray], logps: Any, counts: np.ndarray = COUNTS) -> LossInputs:
    return LossInputs(
        unconstrained_logps=logps,
        constrained_logps=logps,
        token_mask=jnp.asarray(given["where"]),
        supervised=jnp.zeros(counts.shape),
        preferred=jnp.zeros(len(counts), bool),
        reference=jnp.asarray(given["reference"]),
        behavior=jnp.asarray(given["behavior"]),
        rewards=jnp.asarray(given["rewards"]),
        counts=jnp.asarray(counts),
        prompt_logps=jnp.zeros((len(counts), 1)),
        prompt_mask=jnp.zeros((len(counts), 1), bool),
        id_scores=jnp.zeros((len(counts), 1)),
        relevance=jnp.zeros((len(counts), 1)),
        shown=jnp.zeros((len(counts), 1), bool),
        step_rewards=jnp.asarray(given["steps"]),
        step_ends=jnp.asarray(given["ends"]),
    )


def ours(term: Term, given: dict[str, np.ndarray], counts: np.ndarray = COUNTS) -> Any:
    """The term's mean loss in float64, and its gradient by the log-probabilities."""
    with jax.enable_x64(True):

        def loss(logps: Any) -> Any:
            value = term(inputs_of(given, logps, counts))
            return value.total / value.count

        value, gradient = jax.value_and_grad(loss)(jnp.asarray(given["logps"]))
        assert value.dtype == jnp.float64
        return float(value), np.asarray(gradient)


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """``trainers(kind, **settings)``: TRL's trainer, its forward pass taken from an array."""
    model = small_llama(0)

    def make(kind: str, **settings: Any) -> Any:
        made = group_trainer(kind, copy.deepcopy(model), tmp_path_factory.mktemp("trl"), **settings)
        made._get_per_token_logps_and_entropies = lambda *_, **__: (
            made.given, torch.zeros_like(made.given), None,
        )  # fmt: skip
        return made

    return make


def theirs(made: Any, given: dict[str, np.ndarray], advantages: np.ndarray) -> Any:
    """TRL's loss, and its gradient by the log-probabilities."""
    rows = given["logps"].reshape(-1, R)
    made.given = torch.tensor(rows, requires_grad=True)
    mask = torch.tensor(given["where"].reshape(rows.shape)).long()
    old = torch.tensor(given["behavior"].reshape(rows.shape))
    loss = made._compute_loss(
        made.model,
        {
            "prompt_ids": torch.zeros(len(rows), 2, dtype=torch.long),
            "prompt_mask": torch.ones(len(rows), 2, dtype=torch.long),
            "completion_ids": torch.zeros(rows.shape, dtype=torch.long),
            "completion_mask": mask,
            "advantages": torch.tensor(advantages.reshape(len(rows), *advantages.shape[2:])),
            "old_per_token_logps": old,
            "old_logps": (old * mask).sum(-1),
            "ref_per_token_logps": torch.tensor(given["reference"].reshape(rows.shape)),
            "num_items_in_batch": mask.sum(),
        },
    )
    loss.backward()
    slope: Any = made.given.grad
    return loss.item(), slope.numpy().reshape(given["logps"].shape)


def standardized(rewards: np.ndarray, scale: bool = True) -> np.ndarray:
    away = rewards - rewards.mean(-1, keepdims=True)
    return away / (rewards.std(-1, ddof=1, keepdims=True) + 1e-4) if scale else away


def over_the_others(rewards: np.ndarray) -> np.ndarray:
    others = [np.delete(rewards, i, -1).mean(-1) for i in range(rewards.shape[-1])]
    return rewards - np.stack(others, -1)


def process(given: dict[str, np.ndarray], scale: bool, leave_out: bool = False) -> np.ndarray:
    """Advantages [B, N, R] of tokens by the steps behind them, sample by sample."""
    found = np.zeros(given["where"].shape)
    for b in range(B):
        own = [given["steps"][b, i][given["ends"][b, i]] for i in range(N)]
        every = np.concatenate(own)
        for i in range(N):
            rest = np.concatenate([x for j, x in enumerate(own) if j != i])
            mean = rest.mean() if leave_out else every.mean()
            divisor = every.std(ddof=1) + 1e-4 if scale else 1.0
            for t in range(R):
                later = given["ends"][b, i] & (np.arange(R) >= t)
                found[b, i, t] = ((given["steps"][b, i][later] - mean) / divisor).sum()
    return found


DAPO = Grpo(1.0, normalize="tokens", clip_low=0.2, clip_high=0.28)
LONGEST = {"loss_type": "dr_grpo", "scale_rewards": "none"}
CASES: dict[str, tuple[Term, dict[str, Any]]] = {
    "grpo": (Grpo(1.0), {"loss_type": "grpo"}),
    "clip higher": (
        Grpo(1.0, clip_low=0.1, clip_high=0.3),
        {"loss_type": "grpo", "epsilon": 0.1, "epsilon_high": 0.3},
    ),
    "KL": (Grpo(1.0, kl=0.3), {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False}),
    "weighted KL": (
        Grpo(1.0, kl=0.3, weighted_kl=True),
        {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": True},
    ),
    "Dr. GRPO": (Grpo(1.0, scale=False, normalize="none"), LONGEST),
    "DAPO": (DAPO, {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28}),
    "tokens": (Grpo(1.0, normalize="tokens"), {"loss_type": "bnpo"}),
    "GSPO": (
        Grpo(1.0, ratio="sequence", clip_low=0.05, clip_high=0.1),
        {
            "loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.05,
            "epsilon_high": 0.1,
        },
    ),
    "RLOO": (Rloo(1.0, clip_low=0.1, clip_high=0.3), {"epsilon": 0.1, "epsilon_high": 0.3}),
    "RLOO, KL": (Rloo(1.0, kl=0.3), {}),
    "GRPO, steps": (Grpo(1.0, credit=1.0), {"loss_type": "grpo"}),
    "GRPO, steps and lists": (
        Grpo(1.0, credit=0.4, kl=0.3, normalize="tokens", clip_high=0.28),
        {
            "loss_type": "dapo", "beta": 0.3, "use_bias_correction_kl": False, "epsilon": 0.2,
            "epsilon_high": 0.28,
        },
    ),
    "RLOO, steps and lists": (Rloo(1.0, credit=0.4), LONGEST),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_values_and_gradients_equal_trl_on_the_same_arrays(trainers: Any, name: str) -> None:
    term, settings = CASES[name]
    loss_of = "rloo" if isinstance(term, Rloo) and not term.credit else "grpo"
    made = trainers(loss_of, **settings)
    for seed in range(3):
        given = arrays(seed)
        rewards = given["rewards"]
        if isinstance(term, Rloo):
            moved = ((given["behavior"] - given["reference"]) * given["where"]).sum(-1)
            advantages = over_the_others(rewards - term.kl * moved)
            by_step = process(given, scale=False, leave_out=True)
        else:
            assert isinstance(term, Grpo)
            advantages = standardized(rewards, term.scale)
            by_step = process(given, term.scale)
        if term.credit:
            advantages = (1 - term.credit) * advantages[..., None] + term.credit * by_step
        expected, slope = theirs(made, given, advantages)
        # TRL divides Dr. GRPO's sum of tokens by the longest completion it may sample.
        scale = 6.0 if settings.get("loss_type") == "dr_grpo" else 1.0
        value, gradient = ours(term, given)
        assert value == pytest.approx(scale * expected, abs=1e-6, rel=0)
        np.testing.assert_allclose(gradient, scale * slope, atol=1e-6, rtol=0)
        assert np.abs(slope).max() > 1e-3  # or the case would show nothing


@pytest.mark.filterwarnings("ignore")
def test_dynamic_sampling_leaves_groups_without_signal_out(trainers: Any) -> None:
    """DAPO on what ``feedback`` keeps of the rollouts: TRL's loss of the other groups alone."""
    given = arrays()
    lists = ((1,), (2,), (3,))
    rollouts = [
        Rollout(
            str(b),
            3,
            tuple(Trajectory(x, reward=float(r)) for x, r in zip(lists, row, strict=True)),
            "policy",
            "reference",
        )
        for b, row in enumerate(given["rewards"])
    ]
    judged, counts = judge(rollouts, pairs=False)
    assert (counts.kept, counts.ties) == (3, 1)
    kept = [int(one.rollout.id) for one in judged]
    rest = {name: x[kept] for name, x in given.items()}
    made = trainers("grpo", loss_type="dapo", epsilon=0.2, epsilon_high=0.28)
    expected, slope = theirs(made, rest, standardized(rest["rewards"]))
    value, gradient = ours(DAPO, rest, COUNTS[kept])
    assert value == pytest.approx(expected, abs=1e-6, rel=0)
    np.testing.assert_allclose(gradient, slope, atol=1e-6, rtol=0)
    whole, _ = ours(DAPO, given)
    # The group without signal adds nothing to the sum, and its tokens to what divides it.
    share = rest["where"].sum() / given["where"].sum()
    assert whole == pytest.approx(share * value, abs=1e-9) and share < 0.9


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_dro_equals_its_formula_in_value_and_gradient(temperature: float) -> None:
    """-sum of w log pi(list), w = softmax of log p(answer | list) / T over samples, constant."""
    given = arrays(1)
    counts = np.array([[1, 2, 1], [3, 0, 1], [1, 1, 1], [0, 2, 2]], float)
    logps = torch.tensor(given["logps"], requires_grad=True)
    losses = []
    for b in range(B):
        which = [i for i in range(N) for _ in range(int(counts[b, i]))]
        weights = torch.softmax(torch.tensor(given["rewards"][b][which]).log() / temperature, 0)
        losses.append(-(weights * logps[b, which].sum(-1)).sum())
    loss = torch.stack(losses).mean()
    loss.backward()
    assert logps.grad is not None
    value, gradient = ours(Dro(1.0, temperature=temperature), given, counts)
    assert value == pytest.approx(loss.item(), abs=1e-6, rel=0)
    expected = logps.grad.numpy() * given["where"]
    np.testing.assert_allclose(gradient, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("normalize", ["sequence", "tokens", "none"])
def test_figures_are_of_tokens_however_the_loss_is_divided(normalize: Any) -> None:
    given = arrays()
    low, high = 0.05, 0.1  # so tight that tokens are clipped
    term = Grpo(weight=1.0, normalize=normalize, clip_low=low, clip_high=high, kl=0.1)
    value = term(inputs_of(given, jnp.asarray(given["logps"])))
    rewards, where = given["rewards"], given["where"]
    spread = rewards.std(1, keepdims=True)
    advantages = (rewards - rewards.mean(1, keepdims=True)) / np.where(spread > 1e-9, spread, 1)
    ratio = np.exp(given["logps"] - given["behavior"])
    stopped = (ratio > 1 + high) & (advantages[..., None] > 1e-9)
    stopped |= (ratio < 1 - low) & (advantages[..., None] < -1e-9)
    apart = np.where(where, given["behavior"] - given["logps"], 0)
    expected = {"clipped": np.where(where, stopped, False), "kl_to_sampler": apart}
    for name, of_tokens in expected.items():
        if normalize == "tokens":
            mean = of_tokens.sum() / where.sum()
        else:
            mean = (of_tokens.sum(-1) / where.sum(-1)).mean()
        assert float(value.figures[name] / value.count) == pytest.approx(mean, abs=1e-6)
    assert expected["clipped"].any()
