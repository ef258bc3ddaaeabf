"""A real, small policy on questions: distinct lists, labels, windows, and the program over them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.files import read_jsonl
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.program import run_stage
from dynarag_jax.policy.model import load_policy
from dynarag_jax.prompts import COMPACT_WORDS, PromptConfig
from dynarag_jax.records import Passage, Question, valid_list, write_questions
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.sampling.distinct import search_shape
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.pool_sizes import slot_bytes
from dynarag_jax.sampling.requests import EngineConfig
from dynarag_jax.sampling.reranking import rerank
from dynarag_jax.sampling.rollouts import sample_rollouts
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.sampling.windows import Seen, Windows, run_plans
from dynarag_jax.sharding import make_mesh
from dynarag_jax.stages import rerank as program
from dynarag_jax.stages.rerank import Rerank
from tests.small_model import save_small_model

IDS = 6
LABELS = ("supports", "refutes", "not enough info")
PROMPTS = PromptConfig(
    style="compact", ids=IDS, max_list=3, rerank_tokens=64, answer_prompt_tokens=64,
    answer_tokens=6, labels=LABELS,
)  # fmt: skip
WORDS = "ada arlo lives in bern rome oslo kyiv works where who founded what".split()


def question(number: int, passages: int, task: Any = "short") -> Question:
    rng = np.random.default_rng(number)
    shown = tuple(
        Passage(f"q{number}p{i}", " ".join(rng.choice(WORDS, 3))) for i in range(1, passages + 1)
    )
    text = " ".join(rng.choice(WORDS, 3))
    return Question(f"q{number}", text, answers=("bern",), task=task, passages=shown)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A model directory with random weights, larger than at the start of training."""
    return save_small_model(
        tmp_path_factory.mktemp("model"), [*WORDS, *COMPACT_WORDS, *LABELS], IDS
    )


@pytest.fixture(scope="module")
def sampler(directory):
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    return PolicySampler(load_policy(directory, mesh, PROMPTS), PROMPTS, 8, seed=0)


@pytest.mark.slow  # a rollout more
def test_rollouts_of_distinct_lists_carry_weights(sampler):
    questions = [question(i, passages) for i, passages in enumerate([6, 3, 2, 1, 5])]
    rollouts = sample_rollouts(
        sampler, sampler, questions, Sampling(method="distinct"), 8, RewardWeights()
    )
    exist = [1 + 6 + 30 + 120, 1 + 3 + 6 + 6, 1 + 2 + 2, 2, 1 + 5 + 20 + 60]
    for rollout, count in zip(rollouts, exist, strict=True):
        found = [t.list for t in rollout.trajectories]
        assert len(set(found)) == len(found) == min(8, count)
        assert all(t.count == 1 for t in rollout.trajectories)
        weights: Any = [t.weight for t in rollout.trajectories]
        if count <= 8:  # all there are: the weights are the probabilities of the training forward
            expected = np.exp([t.logp for t in rollout.trajectories])
            np.testing.assert_allclose(weights, expected, rtol=1e-3)
            assert sum(weights) == pytest.approx(1, abs=1e-4)
    again = sampler.lists(questions, Sampling(method="distinct"), 8)
    for rollout, found in zip(rollouts, again, strict=True):
        logps = [t.logp for t in rollout.trajectories]
        np.testing.assert_allclose(found.logps, logps, atol=1e-4)


def test_the_beams_best_list_is_at_least_as_probable_as_the_greedy_one(sampler):
    questions = [question(i, 6) for i in range(12)]
    greedy = sampler.lists(questions, Sampling(temperature=0.0))
    beam = sampler.lists(questions, Sampling(method="beam", width=160))
    for one, other in zip(greedy, beam, strict=True):
        assert other.logps[0] >= one.logps[0] - 1e-4
    assert any(b.logps[0] > g.logps[0] + 1e-3 for g, b in zip(greedy, beam, strict=True))


def test_a_search_takes_as_many_prompts_as_memory_holds(sampler):
    """Two of the eight at a time, then not even one: the same lists, then the reason by name."""
    questions = [question(i, 4) for i in range(5)]
    beam = Sampling(method="beam", width=4)
    longest = sampler.policy.spelling.longest(PROMPTS.max_list)
    one = slot_bytes(sampler.policy.cfg, search_shape(1, 64, 4, longest))

    def with_room(prompts: float) -> PolicySampler:
        room = EngineConfig(cache_gib=2 * prompts * one / 2**30)  # lists have half of it
        return PolicySampler(sampler.policy, PROMPTS, 8, seed=0, engine=room)

    by_two, together = (x.lists(questions, beam) for x in (with_room(2.5), sampler))
    assert [found.lists for found in by_two] == [found.lists for found in together]
    np.testing.assert_allclose([x.logps for x in by_two], [x.logps for x in together], atol=1e-5)
    for found in with_room(0.9).try_lists(questions, beam):
        assert isinstance(found, InputError)
    with pytest.raises(InputError, match=r"'q0': a search .* up to 64 tokens needs .* GiB"):
        with_room(0.9).lists(questions, beam)


def test_label_questions_get_a_label_and_others_what_the_generator_writes(sampler):
    asked: Any = [question(i, 4, "label" if i % 2 else "short") for i in range(12)]
    answers = sampler.answers([(q, (1, 2)) for q in asked])
    assert all(answer in LABELS for answer in answers[1::2])
    assert any(answer not in LABELS for answer in answers[::2])
    # Without a closed set, the same questions are answered in other words.
    free = PolicySampler(sampler.policy, dataclasses.replace(PROMPTS, labels=()), 8, seed=0)
    assert any(a not in LABELS for a in free.answers([(q, (1, 2)) for q in asked[1::2]]))


def test_windows_over_a_policy_are_its_lists_by_passage(sampler):
    """As one window after another by hand; positions are those of the whole candidate list."""
    questions = [question(0, 4), question(1, 20), question(2, 6), question(3, 33)]
    windows = Windows(window=5, stride=3, budget=3)
    found = rerank(sampler, questions, Sampling(temperature=0.0), windows)
    by_hand = []

    def one(views):
        seen = []
        for _, view in views:
            shown = tuple(asked.passages[p - 1] for p in view)
            part = sampler.lists(
                [dataclasses.replace(asked, passages=shown)], Sampling(temperature=0.0)
            )[0]
            seen.append(Seen(part.lists[0], part.shown))
        return seen

    for asked in questions:
        if len(asked.passages) <= IDS:
            by_hand.append(sampler.lists([asked], Sampling(temperature=0.0))[0].lists[0])
        else:
            by_hand += run_plans([len(asked.passages)], windows, one)
    assert [r.list for r in found] == by_hand
    assert [r.calls == 1 for r in found] == [True, False, True, False]
    assert [r.shown for r in found] == [4, 20, 6, 33]


def test_the_program_writes_lists_continues_and_sets_aside(directory, tmp_path):
    questions = [question(i, passages) for i, passages in enumerate([3, 25, 6, 14, 2])]
    long = dataclasses.replace(question(7, 2), passages=(Passage("long", "ada " * 100),))
    bare = dataclasses.replace(question(8, 2), passages=())
    path = tmp_path / "asked.jsonl"
    write_questions(path, [*questions, long, bare])
    stage = Rerank(
        model=str(directory), questions=(str(path),), prompts=PROMPTS,
        windows=Windows(window=6, budget=3), batch=4,
    )  # fmt: skip

    def ran(name):
        context = Context(Run(directory=str(tmp_path / name)), {"rerank": stage}, "rerank")
        assert run_stage(context, program.run)
        return tmp_path / name / "rerank"

    whole = ran("a")
    rows = {line["id"]: line for _, line in read_jsonl(whole / "asked.jsonl")}
    assert set(rows) == {q.id for q in questions}
    for q in questions:
        row = rows[q.id]
        assert valid_list(row["list"], len(q.passages)) is None
        assert row["chosen"] == [q.passages[i - 1].id for i in row["list"]]
        assert row["shown"] == len(q.passages) == len(row["ctxs"])
        assert (row["calls"] > 1) == (len(q.passages) > IDS)
    rejects = {line["id"]: line["reason"] for _, line in read_jsonl(whole / "rejects-asked.jsonl")}
    assert "longer than the limit" in rejects["q7"]
    assert "has no passages" in rejects["q8"]
    # Cut off in the middle of a line and run again: the same records.
    (whole / "done.json").unlink()
    lines = (whole / "asked.jsonl").read_text().splitlines(keepends=True)
    (whole / "asked.jsonl").write_text("".join(lines[:2]) + lines[2][:40])
    ran("a")
    assert {line["id"]: line for _, line in read_jsonl(whole / "asked.jsonl")} == rows


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (Windows(window=7, budget=2), "window = 7 shows more passages than a prompt's ids = 6"),
        (Windows(window=6, budget=4), "budget = 4 is more than a list holds, max_list = 3"),
    ],
)
def test_windows_beyond_the_prompt_are_refused(windows, message):
    with pytest.raises(InputError, match=message):
        Rerank(prompts=PROMPTS, windows=windows)


def test_windows_are_the_prompts_size_unless_told_otherwise(sampler):
    """The default fits any prompt, also one far below the paper's 40 passages."""
    stage = Rerank(prompts=PROMPTS)
    asked = [question(1, 20)]
    left_open = rerank(sampler, asked, Sampling(temperature=0.0), stage.windows)
    said = rerank(sampler, asked, Sampling(temperature=0.0), Windows(IDS, 0, PROMPTS.max_list))
    assert left_open == said and said[0].calls > 1
