"""A report with every part filled; numbers are made from a seed."""

import numpy as np
import pytest

from dynarag_jax.metrics.intervals import bootstrap, paired_bootstrap
from dynarag_jax.metrics.ranking import size_matrix
from dynarag_jax.report import schema as s


def full_report() -> s.RunReport:
    rng = np.random.default_rng(0)
    n = 600

    def interval(mean, spread=None):
        values = rng.random(n) < mean if spread is None else rng.normal(mean, spread, n).clip(0)
        return bootstrap(values, samples=200)

    def system(name, role, em, f1, k, tokens, **more):
        return s.SystemRow(
            name, role, interval(em), interval(f1),
            interval(k, 0.0 if role in ("fixed", "none") else 1.1),
            interval(tokens, 9.0 * (k > 0)), **more,
        )  # fmt: skip

    systems = [
        system("behavior cloning", "cloning", 0.77, 0.58, 2.70, 54, k_sd=1.42),
        system("feedback, round 1", "feedback", 0.83, 0.87, 1.80, 36, k_sd=1.01, failed=3),
        system("feedback, round 2", "feedback", 0.84, 0.89, 1.72, 34, k_sd=0.98),
        system("feedback, round 2, shuffled", "shuffled", 0.66, 0.51, 1.9, 37, k_sd=1.1),
        *(
            system(f"top {k}", "fixed", em, 0.5, float(k), 20.0 * k)
            for k, em in ((1, 0.49), (2, 0.61), (3, 0.68), (4, 0.665), (5, 0.64), (6, 0.6),
                          (8, 0.55))
        ),
        system("no retrieval", "none", 0.12, 0.1, 0.0, 0),
        system("oracle passages", "oracle", 0.98, 1.0, 1.66, 33),
    ]  # fmt: skip
    steps = list(range(0, 1400, 4))
    curves = [
        s.Curve(
            "supervised training", "loss (nats per token)", steps,
            {"lists": [5.5 * np.exp(-i / 150) + 0.05 + 0.04 * rng.random() for i in steps],
             "answers": [5.6 * np.exp(-i / 250) + 0.03 + 0.05 * rng.random() for i in steps]},
        ),
        s.Curve(
            "feedback, round 1", "loss (nats per pair)", list(range(48)),
            {"DPO": [0.69 * np.exp(-i / 30) + 0.05 * rng.random() for i in range(48)]},
        ),
        s.Curve(
            "rollouts", "mean reward", [1, 2], {"sampled": [0.81, 0.93], "best": [1.12, 1.17]},
            x_label="round",
        ),
        s.Curve(
            "feedback, round 1, margins", "log-probability against reference (nats)",
            list(range(48)),
            {"preferred list": [0.05 * i if i != 20 else None for i in range(48)],
             "rejected list": [-0.2 * i + rng.normal() for i in range(48)]},
        ),
    ]  # fmt: skip
    needed = rng.choice(4, n, p=[0.1, 0.35, 0.35, 0.2])
    before = np.clip(needed + rng.integers(-1, 4, n), 0, 8)
    after = np.clip(needed + rng.choice([-1, 0, 1], n, p=[0.1, 0.82, 0.08]), 0, 8)
    names = ("Berlant", "Ostrava Works", "Kelmont", "the country of Velden")
    passages = tuple(
        s.ShownPassage(
            i, f"{names[i % 4]} was founded in {names[(i + 1) % 4]} by a person named below. "
            f"It has {i} branches.", names[i % 4], i in (2, 5),
        )
        for i in range(1, 9)
    )  # fmt: skip
    example = s.ShownQuestion(
        "test-0017", "In which country was the founder of Ostrava Works born?", ("Velden",),
        passages, "two_hop",
        (
            s.SampledList((2, 5), 4, "Velden", 1.083, {"em": 1.0, "passages": 1 / 3}),
            s.SampledList((5, 1, 7, 2), 2, "Velden", 1.05, {"em": 1.0, "passages": 0.2}),
            s.SampledList((), 1, "", 0.0, {"em": 0.0, "passages": 0.0}),
            s.SampledList((8, 3, 1, 4, 6, 7, 2), 1, "Kelmont", 0.0, {"em": 0.0, "passages": 0.0}),
        ),
        (
            s.PolicyChoice("behavior cloning", (5, 1, 7), "Kelmont", False),
            s.PolicyChoice("feedback, round 2", (2, 5), "Velden", True),
        ),
    )  # fmt: skip
    long = s.ShownQuestion(
        "nq-3", "who wrote the song that was played at the opening of the games in the year in "
        "which the tower was finished", ("Ann Author", "A. Author", "Ann B. Author"),
        tuple(s.ShownPassage(i, "Some long passage of a hundred words. " * 15, f"Title {i}", None)
              for i in range(1, 21)), "",
        (), (s.PolicyChoice("feedback, round 2", (), "", None),),
    )  # fmt: skip
    a, b = rng.random(n) < 0.84, rng.random(n) < 0.77
    return s.RunReport(
        title="Learning how many passages to read",
        facts=s.RunFacts(
            config="quickstart", seed=0, questions=n, candidates=8,
            needed_mean_k=float(needed.mean()), reward="EM + 0.25 × 1/(1 + k) if right",
            seconds={"retrieve": 6.2, "label": 0.4, "sft": 241.0, "rollout": 38.1, "dpo": 41.7,
                     "evaluate": 27.9},
            peak_memory_bytes=1_873_000_000,
            versions={"jax": "0.10.2", "flax": "0.12.8", "optax": "0.2.8"},
            command="python -m train.pipeline configs/quickstart.py --seed 0",
        ),
        systems=systems,
        curves=curves,
        k_before=s.KMatrix("after behavior cloning", size_matrix(needed.tolist(), before.tolist())),
        k_after=s.KMatrix("after feedback, round 2", size_matrix(needed.tolist(), after.tolist())),
        change=paired_bootstrap(a.astype(float), b.astype(float), samples=300),
        types=tuple(
            s.TypeRow(name, 150, float(k), s.TypeScores(0.7 + k / 20, 0.5, k + 0.9),
                      s.TypeScores(0.8 + k / 20, 0.9, k + 0.1))
            for k, name in enumerate(("common knowledge", "one_hop", "two_hop", "three_hop"))
        ),
        ranks=(
            s.RankRow(1, 210, (190, 9, 4, 3, 2, 1, 1, 0)),
            s.RankRow(2, 205, (180, 8, 6, 5, 7, 170, 9, 20), 5),
            s.RankRow(3, 120, (100, 6, 7, 5, 96, 99, 20, 21), 6),
        ),
        examples=[example, long],
        notes=("These numbers are made up for a test.",),
    )  # fmt: skip


@pytest.fixture
def report() -> s.RunReport:
    return full_report()
