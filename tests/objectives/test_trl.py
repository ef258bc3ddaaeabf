"""Every preference and group objective against TRL's own trainers, in PyTorch on the CPU.

First on given log-probabilities: a stand-in for the model hands TRL's loss the very numbers that
ours gets, in float64. Then through a small Llama that both sides load: losses and gradients of all
parameters.
"""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from dynarag_jax.exchange.decoders import load_decoder
from dynarag_jax.objectives.scores import LossInputs
from dynarag_jax.objectives.terms import (
    Dpo,
    Grpo,
    Hinge,
    Ipo,
    Objectives,
    Rloo,
    RobustDpo,
    SimPo,
    Term,
)
from dynarag_jax.policy.batches import BatchShape, Example, collate
from dynarag_jax.policy.grammar import Spelling, build_grammar
from dynarag_jax.training.step import loss_inputs
from tests.objectives.trl_models import group_trainer, small_llama, tokenizer

warnings.filterwarnings("ignore", category=FutureWarning)
BETA = 0.3

# name of our term: ours, and TRL's loss types, their weights and its label smoothing.
PAIRS: dict[str, tuple[Term, list[str], list[float], float]] = {
    "dpo": (Dpo(1.0, beta=BETA), ["sigmoid"], [1.0], 0.0),
    # On one pair at a time, TRL's "aot" is the sigmoid loss with label smoothing.
    "dpo, conservative": (Dpo(1.0, beta=BETA, label_smoothing=0.2), ["aot"], [1.0], 0.2),
    "dpo, length-normalized": (
        Dpo(1.0, beta=BETA, length_normalized=True), ["sigmoid_norm"], [1.0], 0.0,
    ),
    "robust": (RobustDpo(1.0, beta=BETA, flipped=0.2), ["robust"], [1.0], 0.2),
    "hinge": (Hinge(1.0, beta=BETA), ["hinge"], [1.0], 0.0),
    "ipo": (Ipo(1.0, beta=BETA), ["ipo"], [1.0], 0.0),
    "rpo": (Dpo(1.0, beta=BETA, chosen_nll=0.7), ["sigmoid", "sft"], [1.0, 0.7], 0.0),
}  # fmt: skip


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's DPOTrainer, whole, over a small Llama and another as its reference."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    arguments = trl.DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), use_cpu=True, report_to=[], bf16=False,
        gradient_checkpointing=False, beta=BETA,
    )  # fmt: skip
    data = Dataset.from_dict({"prompt": ["w1 w2"], "chosen": ["w3"], "rejected": ["w4"]})
    made = trl.DPOTrainer(
        model=small_llama(0), ref_model=small_llama(1), args=arguments, train_dataset=data,
        processing_class=tokenizer(),
    )  # fmt: skip
    made.model.train()
    return made


def use(trainer: Any, name: str) -> None:
    _, trainer.loss_types, trainer.loss_weights, trainer.label_smoothing = PAIRS[name]


# ---------------------------------------------------------------------------- given numbers

ROWS, R = 5, 7
CHOSEN, REJECTED = np.array([3, 7, 1, 4, 2]), np.array([5, 2, 1, 4, 7])


def given(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token log-probabilities of policy and reference [ROWS, 2, R], and which are real."""
    rng = np.random.default_rng(seed)
    where = np.arange(R) < np.stack([CHOSEN, REJECTED], 1)[..., None]
    ours = np.where(where, -rng.exponential(1.0, (ROWS, 2, R)), 0)
    return ours, np.where(where, ours + rng.normal(scale=0.7, size=ours.shape), 0), where


def as_scores(logps: Any, reference: Any, where: Any, **more: Any) -> LossInputs:
    """Inputs as a term sees them; what no preference reads is empty."""
    rows, n = logps.shape[:2]
    nothing = jnp.zeros((rows, 1))
    values: dict[str, Any] = {
        "unconstrained_logps": logps, "constrained_logps": logps, "token_mask": where,
        "supervised": jnp.zeros((rows, n)), "preferred": jnp.ones(rows, bool),
        "reference": reference, "behavior": jnp.zeros(logps.shape),
        "rewards": jnp.zeros((rows, n)), "counts": jnp.zeros((rows, n)),
        "prompt_logps": None, "prompt_mask": nothing > 0, "id_scores": None,
        "relevance": nothing, "shown": nothing > 0,
    }  # fmt: skip
    return LossInputs(**(values | more))


def theirs_on(trainer: Any, logps: np.ndarray, reference: np.ndarray, where: np.ndarray) -> Any:
    """TRL's loss and its gradient on given numbers of one pair [2, R]."""
    values = torch.tensor(logps, requires_grad=True)
    zero = torch.zeros(2, R, dtype=torch.float64)

    def stand_in(**_: Any) -> Any:
        # The last prompt token predicts the first branch token, as in the model's own output.
        return SimpleNamespace(
            log_probs=values, entropy=zero, mean_logits=zero, is_top1=zero.bool()
        )

    completion = torch.cat([torch.zeros(2, 1), torch.tensor(where)], 1).long()
    sums = torch.tensor(reference.sum(-1))
    inputs = {
        "input_ids": torch.zeros(2, R + 1, dtype=torch.long),
        "attention_mask": torch.ones(2, R + 1, dtype=torch.long),
        "completion_mask": completion,
        "ref_chosen_logps": sums[:1],
        "ref_rejected_logps": sums[1:],
    }
    trainer.precompute_ref_logps = True
    try:
        loss = trainer._compute_loss(stand_in, inputs, False)
    finally:
        trainer.precompute_ref_logps = False
    loss.backward()
    assert values.grad is not None
    # At padding the model gives a constant 0.
    return loss.item(), values.grad.numpy() * where


@pytest.mark.parametrize("name", PAIRS)
def test_equals_trl_on_the_same_log_probabilities(trainer: Any, name: str) -> None:
    use(trainer, name)
    term = PAIRS[name][0]
    logps, reference, where = given()
    losses = []
    with jax.enable_x64(True):
        for row in range(ROWS):
            one = slice(row, row + 1)

            def ours(x: Any, one: slice = one) -> Any:
                return term(as_scores(x, jnp.asarray(reference[one]), where[one])).total

            loss, gradient = jax.value_and_grad(ours)(jnp.asarray(logps[one]))
            their_loss, their_gradient = theirs_on(trainer, logps[row], reference[row], where[row])
            assert loss.dtype == jnp.float64
            assert float(loss) == pytest.approx(their_loss, abs=1e-6, rel=0)
            np.testing.assert_allclose(gradient[0], their_gradient, atol=1e-6, rtol=0)
            losses.append(float(loss))
        value = term(as_scores(jnp.asarray(logps), jnp.asarray(reference), where))
    assert np.std(losses) > 1e-3  # or the cases would show nothing
    assert float(value.total) == pytest.approx(sum(losses), rel=1e-9)
    assert int(value.count) == ROWS
    # In float32, as it trains.
    single = [
        jnp.float32(term(as_scores(*(jnp.float32(x[i : i + 1]) for x in (logps, reference)),
                                   where[i : i + 1])).total)
        for i in range(ROWS)
    ]  # fmt: skip
    np.testing.assert_allclose(single, losses, rtol=2e-6, atol=1e-6)


def cpo(beta: float, gamma: float) -> Any:
    """What TRL's CPOTrainer.cpo_loss reads of its trainer, for SimPO."""
    pytest.importorskip("trl")
    from trl.experimental.cpo import CPOTrainer

    settings = SimpleNamespace(
        alpha=0.0, beta=beta, loss_type="simpo", simpo_gamma=gamma, label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    return lambda chosen, rejected: CPOTrainer.cpo_loss(settings, chosen, rejected)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
def test_simpo_equals_trl_on_the_same_log_probabilities() -> None:
    logps, _, where = given(seed=1)
    averages = torch.tensor(logps.sum(-1) / where.sum(-1), requires_grad=True)
    losses, chosen, rejected = cpo(2.5, 0.8)(averages[:, 0], averages[:, 1])
    losses.sum().backward()
    assert averages.grad is not None
    with jax.enable_x64(True):
        term = SimPo(1.0, beta=2.5, gamma=0.8)
        value, gradient = jax.value_and_grad(
            lambda x: term(as_scores(x, jnp.zeros(x.shape), where)).total
        )(jnp.asarray(logps))
        figures = term(as_scores(jnp.asarray(logps), jnp.zeros(logps.shape), where)).figures
    assert float(value) == pytest.approx(losses.sum().item(), abs=1e-6)
    assert float(figures["margin"]) == pytest.approx((chosen - rejected).sum().item(), abs=1e-6)
    expected = (averages.grad.numpy() / where.sum(-1))[..., None] * where
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


# ---------------------------------------------------------------------------- a small model

PROMPTS = ([5, 9, 2, 7], [3, 8], [1, 1, 4, 6, 2, 9])
BRANCHES = (
    # Chosen branches are equally long: TRL averages the likelihood term over the tokens of a batch.
    ([11, 12, 60], [13, 60]),
    ([14, 15, 60], [16, 17, 18, 19, 60]),
    ([21, 22, 60], [21, 23, 60]),
)
# Room for three branches: pairs and groups then share what is compiled.
SHAPE = BatchShape(prompt=8, branches=3, branch=6, ids=6)
SPELLING = Spelling(
    opening=(50,), ids=tuple((i,) for i in range(40, 46)), between=(51, 50), closing=(51,),
    none=(52,), end=60,
)  # fmt: skip
GRAMMAR = build_grammar(SPELLING)


def their_batch(branches: Any = BRANCHES) -> dict[str, Any]:
    """Prompts and branches as TRL lays them out: [chosen; rejected], padded on the right."""
    rows = [
        (p, b[side]) for side in range(len(branches[0]))
        for p, b in zip(PROMPTS, branches, strict=True)
    ]  # fmt: skip
    width = max(len(p) + len(b) for p, b in rows)
    arrays = {n: np.zeros((len(rows), width), np.int64) for n in ("input_ids", "attention_mask")}
    arrays["completion_mask"] = np.zeros((len(rows), width), np.int64)
    for i, (p, b) in enumerate(rows):
        arrays["input_ids"][i, : len(p) + len(b)] = [*p, *b]
        arrays["attention_mask"][i, : len(p) + len(b)] = 1
        arrays["completion_mask"][i, len(p) : len(p) + len(b)] = 1
    return {name: torch.tensor(x) for name, x in arrays.items()}


@pytest.fixture(scope="module")
def ours(trainer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Our configuration, parameters and reference parameters of the trainer's two models."""
    loaded = []
    for model in (trainer.model, trainer.ref_model):
        place = tmp_path_factory.mktemp("llama")
        model.save_pretrained(place)
        loaded.append(load_decoder(place))
    (cfg, params), (_, reference) = loaded

    def logps(params: Any, batch: Any) -> Any:
        """The training step's forward: answers, whose log-probabilities are TRL's."""
        scores = loss_inputs(cfg, params, batch, GRAMMAR, Objectives())
        return jnp.where(scores.token_mask, scores.constrained_logps, 0.0)

    def pull(params: Any, batch: Any, cotangent: Any) -> Any:
        return jax.vjp(lambda p: logps(p, batch), params)[1](cotangent)[0]

    # One compilation serves all objectives: each is differentiated down to the log-probabilities,
    # and the model from there.
    return SimpleNamespace(
        cfg=cfg, params=params, reference=reference, logps=jax.jit(logps), pull=jax.jit(pull)
    )


def through_model(ours: Any, term: Term, batch: Any) -> tuple[Any, dict[str, Any], Any]:
    """A term's loss on a batch, its figures, and the gradient of all parameters."""
    where = np.arange(batch.branches.shape[-1]) < batch.branch_lengths[..., None]
    more = {
        n: jnp.asarray(getattr(batch, n)) for n in ("preferred", "behavior", "rewards", "counts")
    }

    def loss(logps: Any) -> Any:
        value = term(as_scores(logps, jnp.asarray(batch.reference), jnp.asarray(where), **more))
        return value.total / value.count, {n: x / value.count for n, x in value.figures.items()}

    logps = ours.logps(ours.params, batch)
    (value, figures), cotangent = jax.value_and_grad(loss, has_aux=True)(logps)
    return float(value), figures, ours.pull(ours.params, batch, cotangent)


def gradients(model: Any, place: Any) -> Any:
    """The gradients of a torch model, in our layout: read like weights."""
    other = copy.deepcopy(model)
    for own, held in zip(other.parameters(), model.parameters(), strict=True):
        own.data = held.grad if held.grad is not None else torch.zeros_like(held)
    other.save_pretrained(place)
    return load_decoder(place)[1]


def assert_equal_gradients(ours: Any, theirs: Any) -> None:
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=0)
    assert max(np.abs(x).max() for x in jax.tree.leaves(theirs)) > 1e-2


@pytest.mark.parametrize("name", [*PAIRS, "simpo"])
@pytest.mark.filterwarnings("ignore")
def test_losses_and_gradients_through_a_model_equal_trl(
    trainer: Any, ours: Any, tmp_path: Any, name: str
) -> None:
    model = trainer.model
    model.zero_grad()
    term = PAIRS[name][0] if name in PAIRS else SimPo(1.0, beta=2.5, gamma=0.8)
    rows = BRANCHES
    if name == "simpo":
        batch = their_batch()
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        picked = torch.log_softmax(logits[:, :-1], -1).gather(-1, batch["input_ids"][:, 1:, None])[
            ..., 0
        ]
        mask = batch["completion_mask"][:, 1:]
        average = (picked * mask).sum(1) / mask.sum(1)
        loss = cpo(2.5, 0.8)(*average.chunk(2))[0].mean()
    elif name == "dpo, conservative":
        # TRL's "aot" sorts over the batch: hand it one pair at a time.
        use(trainer, name)
        whole = their_batch()
        picks = [torch.tensor([i, i + len(rows)]) for i in range(len(rows))]
        losses = [trainer.compute_loss(model, {k: v[p] for k, v in whole.items()}) for p in picks]
        loss = torch.stack(losses).mean()
    else:
        use(trainer, name)
        loss = trainer.compute_loss(model, their_batch())
    loss.backward()
    pairs = enumerate(zip(PROMPTS, rows, strict=True))
    plain = collate([Example(str(i), p, b, supervised=()) for i, (p, b) in pairs], SHAPE)
    fixed = np.asarray(ours.logps(ours.reference, plain))
    batch = plain._replace(reference=fixed, preferred=np.ones(len(rows), bool))
    value, _, gradient = through_model(ours, term, batch)
    assert float(value) == pytest.approx(loss.item(), abs=1e-5)
    assert_equal_gradients(gradient, gradients(model, tmp_path))


# ---------------------------------------------------------------------------- groups

GROUPS = (
    ([11, 12, 60], [13, 60], [14, 15, 16, 60]),
    ([14, 60], [16, 17, 18, 19, 60], [20, 60]),
    ([21, 22, 60], [21, 23, 60], [24, 60]),
)
REWARDS = np.array([[1.0, 0.2, 0.5], [0.0, 0.7, 0.1], [0.3, 0.9, 0.4]], np.float32)


CASES = {
    "grpo": (Grpo(1.0), {}),
    "grpo with KL": (Grpo(1.0, kl=0.3, clip_low=0.1, clip_high=0.3),
                     {"beta": 0.3, "epsilon": 0.1, "epsilon_high": 0.3,
                      "use_bias_correction_kl": False}),
    "grpo with weighted KL": (Grpo(1.0, kl=0.3, weighted_kl=True),
                              {"beta": 0.3, "use_bias_correction_kl": True}),
    "dr_grpo": (Grpo(1.0, scale=False, normalize="none"),
                {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "tokens": (Grpo(1.0, normalize="tokens"), {"loss_type": "bnpo"}),
    "gspo": (Grpo(1.0, ratio="sequence"), {"importance_sampling_level": "sequence"}),
    "rloo": (Rloo(1.0, clip_low=0.1, clip_high=0.3), {"epsilon": 0.1, "epsilon_high": 0.3}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_group_objectives_through_a_model_equal_trl(
    ours: Any, trainer: Any, tmp_path: Any, name: str
) -> None:
    term, settings = CASES[name]
    kind = "rloo" if isinstance(term, Rloo) else "grpo"
    model = copy.deepcopy(trainer.model)
    made = group_trainer(
        kind,
        model,
        tmp_path / "trl",
        **({"loss_type": "grpo"} if kind == "grpo" else {}) | settings,
    )
    made.model.zero_grad()
    examples = [
        Example(str(i), p, b, supervised=(), rewards=tuple(r), counts=(1.0,) * 3)
        for i, (p, b, r) in enumerate(zip(PROMPTS, GROUPS, REWARDS, strict=True))
    ]
    plain = collate(examples, SHAPE)
    between = jax.tree.map(lambda x, y: 0.9 * x + 0.1 * y, ours.params, ours.reference)
    behavior, fixed = (np.asarray(ours.logps(p, plain)) for p in (between, ours.reference))
    batch = plain._replace(behavior=behavior, reference=fixed)
    value, figures, gradient = through_model(ours, term, batch)

    # TRL's rows: prompts padded on the left, completions on the right; a group is in a row.
    flat = [(p, b) for p, bs in zip(PROMPTS, GROUPS, strict=True) for b in bs]
    width = max(map(len, PROMPTS))
    left = [[0] * (width - len(p)) + [1] * len(p) for p, _ in flat]
    rewards = REWARDS.astype(np.float64)
    if kind == "rloo":
        advantages = rewards - (rewards.sum(1, keepdims=True) - rewards) / 2
    else:
        advantages = rewards - rewards.mean(1, keepdims=True)
        if getattr(term, "scale"):  # noqa: B009 - only GRPO's term has it
            advantages /= rewards.std(1, ddof=1, keepdims=True) + 1e-4
    inputs: dict[str, Any] = {
        "prompt_ids": torch.tensor([[0] * (width - len(p)) + list(p) for p, _ in flat]),
        "prompt_mask": torch.tensor(left),
        "completion_ids": torch.tensor([list(b) + [0] * (6 - len(b)) for _, b in flat]),
        "completion_mask": torch.tensor([[1] * len(b) + [0] * (6 - len(b)) for _, b in flat]),
        "advantages": torch.tensor(advantages.reshape(-1), dtype=torch.float32),
        "old_per_token_logps": torch.tensor(behavior.reshape(9, 6)),
        "old_logps": torch.tensor(behavior.reshape(9, 6).sum(-1)),
        "ref_per_token_logps": torch.tensor(fixed.reshape(9, 6)),
        "num_items_in_batch": torch.tensor(sum(len(b) for _, b in flat)),
    }
    loss = made._compute_loss(made.model, inputs)
    loss.backward()
    scale = 6.0 if name == "dr_grpo" else 1.0  # TRL divides by the longest completion
    assert float(value) == pytest.approx(scale * loss.item(), abs=1e-5)
    theirs = jax.tree.map(lambda x: scale * x, gradients(made.model, tmp_path / "gradients"))
    assert_equal_gradients(gradient, theirs)
    assert 0 <= float(figures["clipped"]) < 1
