"""The rollout program: what it sets aside, what a kill leaves, and several processes."""

from __future__ import annotations

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.decoders import load_decoder, save_decoder
from dynarag_jax.exchange.tokenizers import load_tokenizer
from dynarag_jax.files import read_json, read_jsonl
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.program import run_stage
from dynarag_jax.launch.progress import Progress
from dynarag_jax.prompts import answer_tokens
from dynarag_jax.records import question_to_json
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.rewards.judge import JudgeConfig
from dynarag_jax.rollout_records import read_rollouts, rollout_from_json, rollout_to_json
from dynarag_jax.sampling import given_branches
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.rollouts import sample_rollouts
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.stages import rollout
from dynarag_jax.stages.rollout import SampleRollouts, show_work
from tests.hosts import joined
from tests.local_server import JsonHandler, serving

ROOT = Path(__file__).parents[2]

CONFIG = """
from dynarag_jax.config import Mesh, Run
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.sampling.requests import EngineConfig
from dynarag_jax.stages.rollout import SampleRollouts

run = Run(directory={directory!r}, mesh=Mesh({mesh}), cpu_devices={devices})
stages = {{
    "rollout": SampleRollouts(
        model={model!r}, questions={questions!r}, samples=4, batch=8,
        prompts=PromptConfig(
            style="compact", ids=4, max_list=3, rerank_tokens=200, answer_prompt_tokens=200,
            answer_tokens=5,
        ),
        engine=EngineConfig(turn=4),
    )
}}
"""


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rolled(directory: Path, model: Path, questions: Path, prompts, **more) -> Context:
    """Run the stage in this process."""
    stage = SampleRollouts(
        model=str(model), questions=str(questions), samples=4, batch=8, prompts=prompts, **more
    )
    run = Run(str(directory))
    context = Context(run, {"rollout": stage}, "rollout")
    context.mesh = jax.make_mesh(  # type: ignore[misc] - one device, of the eight simulated
        (1, 1, 1), ("data", "fsdp", "tensor"), devices=jax.devices()[:1],
        axis_types=(jax.sharding.AxisType.Auto,) * 3,
    )  # fmt: skip
    run_stage(context, rollout.run)
    return context


def test_bad_records_are_set_aside_and_the_rest_goes_on(
    tmp_path, tiny_model, tiny_policy, question, capsys
):
    rows = [question_to_json(question(f"q{i}", passages=1 + i % 4)) for i in range(20)]
    bad = {
        "wide": question_to_json(question("wide", passages=5)),
        "blank": question_to_json(question("blank")) | {"question": "  "},
        "bare": question_to_json(question("bare", passages=0)),
        "silent": question_to_json(question("silent", answers=())),
        "huge": question_to_json(question("huge", text="where? " * 99)),
        "thick": question_to_json(question("thick")),
        "q3": rows[3],
    }
    bad["thick"]["ctxs"][0]["text"] = "river " * 400
    questions = write(tmp_path / "q.jsonl", [*bad.values(), *rows[4:], *rows[:3]])
    rolled(tmp_path / "run", tiny_model, questions, tiny_policy[1], more_passages="set_aside")
    directory = tmp_path / "run" / "rollout"
    made = read_rollouts(directory / "rollouts.jsonl")
    # The order is the questions', not that in which they finished.
    assert [r.id for r in made] == ["q3", *(f"q{i}" for i in range(4, 20)), "q0", "q1", "q2"]
    assert all(sum(t.count for t in r.trajectories) == 4 for r in made)
    assert [r.shown for r in made][:3] == [4, 1, 2]
    said = capsys.readouterr().err
    assert "set aside: question 'wide' has 5 passages, and the grammar has prompts.ids = 4" in said
    reasons = {r["id"]: r["reason"] for _, r in read_jsonl(directory / "rejects.jsonl")}
    for name, says in {
        "blank": "field 'question' must not be empty", "bare": "has no passages",
        "silent": "has no answers", "wide": "has 5 passages",
        "huge": "takes more than 200 tokens even without passages",
        "thick": "passage 'thick/0' alone is longer than the limit of 200 tokens",
    }.items():  # fmt: skip
        assert (says in reasons[name] and name in reasons[name]) or name == "blank"
    assert set(reasons) == set(bad) - {"q3"}
    assert not list(directory.glob("*.part-*"))
    metrics = [row for _, row in read_jsonl(directory / "metrics.jsonl")]
    assert sum(row["dropped_passages"] for row in metrics) == 0
    figures = metrics[-1]
    assert figures["saved/lists"] == pytest.approx(0.75)
    assert 1 <= figures["distinct"] <= 4 and 0 <= figures["mean_k"] <= 3
    assert figures["prompts_per_second"] > 0 and figures["tokens_per_second"] > 0


@pytest.mark.parametrize("more", [{}, {"more_passages": "show_first"}])
def test_the_first_passages_of_a_question_with_more_are_shown_and_said(
    tmp_path, tiny_model, tiny_policy, question, capsys, more
):
    rows = [question_to_json(question(f"q{i}", passages=3 + i)) for i in range(3)]
    questions = write(tmp_path / "q.jsonl", rows)
    context = rolled(tmp_path / "run", tiny_model, questions, tiny_policy[1], **more)
    made = read_rollouts(context.stage_directory / "rollouts.jsonl")
    assert [r.shown for r in made] == [3, 4, 4]
    assert not (context.stage_directory / "rejects.jsonl").exists()
    metrics = [row for _, row in read_jsonl(context.stage_directory / "metrics.jsonl")]
    assert sum(row["dropped_passages"] for row in metrics) == 1
    said = capsys.readouterr().err
    assert "1 passages not shown" in said
    assert "1 of 3 questions have more passages than prompts.ids = 4, 'q2' the first" in said


def test_a_kill_loses_and_repeats_nothing(tmp_path, tiny_model, tiny_policy, question, monkeypatch):
    """Cut off after any number of records, in mid-line, it goes on to the same file."""
    rows = [question_to_json(question(f"q{i}", passages=1 + i % 4)) for i in range(20)]
    questions = write(tmp_path / "q.jsonl", [*rows, {"id": "bad", "question": ""}])
    rolled(tmp_path / "a", tiny_model, questions, tiny_policy[1])
    whole = (tmp_path / "a" / "rollout" / "rollouts.jsonl").read_bytes()
    asides = (tmp_path / "a" / "rollout" / "rejects.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)

    asked, inner = [], rollout.source_of

    def watched(stage, sampler, todo):
        asked.extend(todo)
        return inner(stage, sampler, todo)

    monkeypatch.setattr(rollout, "source_of", watched)
    directory = tmp_path / "a" / "rollout"
    for standing in (0, 5, 20):
        (directory / "done.json").unlink()
        (directory / "rollouts.jsonl").unlink()
        # As two processes left it, each killed in the middle of a line.
        order = random.Random(standing).sample(lines, len(lines))
        half = standing // 2
        (directory / "rollouts.part-0.jsonl").write_bytes(b"".join(order[:half]) + order[-1][:30])
        second = directory / "rollouts.part-1.jsonl"
        second.write_bytes(b"".join(order[half:standing]) + order[-1][:9])
        asked.clear()
        rolled(tmp_path / "a", tiny_model, questions, tiny_policy[1])
        assert len(asked) == 20 - standing
        assert (directory / "rollouts.jsonl").read_bytes() == whole
        assert (directory / "rejects.jsonl").read_bytes() == asides


def test_broken_weights_end_the_run_at_once(tmp_path, tiny_model, tiny_policy, question):
    cfg, params = load_decoder(tiny_model)
    layers = dict(params["layers"])
    layers["gate"] = layers["gate"].at[0, 1, 2].set(np.nan)
    tokenizer = load_tokenizer(str(tiny_model))
    save_decoder(tmp_path / "broken", cfg, dict(params) | {"layers": layers}, tokenizer)
    questions = write(tmp_path / "q.jsonl", [question_to_json(question("q0"))])
    with pytest.raises(InputError, match=r"weights hold NaN or infinity \('layers.gate'\)"):
        rolled(tmp_path / "run", tmp_path / "broken", questions, tiny_policy[1])


def test_no_usable_question_is_one_clear_line(tmp_path, tiny_model, tiny_policy, question):
    questions = write(tmp_path / "q.jsonl", [question_to_json(question("q0", passages=0))])
    with pytest.raises(InputError, match=r"no question can be used .*'q0' has no passages"):
        rolled(tmp_path / "run", tiny_model, questions, tiny_policy[1])


# ---------------------------------------------------------------------------- processes


def config(place: Path, name: str, model: Path, questions: Path, mesh: str, devices: int) -> Path:
    path = place / f"{name}.py"
    path.write_text(
        CONFIG.format(
            directory=str(place / name), model=str(model), questions=str(questions), mesh=mesh,
            devices=devices,
        )
    )  # fmt: skip
    return path


def environment(**more: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    return env | {"PYTHONPATH": str(ROOT)} | more


def start(path: Path, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "train.rollout", str(path)], cwd=ROOT, env=environment(**env),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


KILLS = """
import json, os, random, signal, sys, time
from pathlib import Path

import dynarag_jax.stages.rollout
from dynarag_jax.launch.program import main

whole, killed, runs = sys.argv[1:]


def child(config):
    pid = os.fork()  # everything is imported, and JAX has not begun
    if not pid:
        main("rollout", [config])
    return pid


def ended(pid, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (found := os.waitpid(pid, os.WNOHANG))[0]:
            return found[1]
        time.sleep(0.005)
    return None


assert ended(child(whole), 900) == 0
began = time.monotonic()  # the second is as fast as those to come: compiled programs are kept
for file in (Path(runs) / "whole/rollout").iterdir():
    file.unlink()
assert ended(child(whole), 900) == 0
lasts = time.monotonic() - began
directory, rng = Path(runs) / "killed/rollout", random.Random(0)
standing, kills, early, late = [], 0, 0, 0
while True:
    pid = child(killed)
    # Some kills fall into starting, most where records are made.
    status = ended(pid, rng.uniform(0.1, 1.1) * lasts if kills < 20 else 900)
    assert status in (None, 0), status
    if status == 0 and kills == 20:
        break
    if status == 0:  # it came to its end between two kills: begin anew
        for file in directory.iterdir():
            file.unlink()
        standing = []
        continue
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    kills += 1
    lines = [
        line
        for part in sorted(directory.glob("rollouts*.jsonl"))
        for line in part.read_text().splitlines(keepends=True)
        if line.endswith("\\n")
    ]
    found = [json.loads(line)["id"] for line in lines]
    merged = (directory / "rollouts.jsonl").exists()
    assert merged or len(found) == len(set(found)), "computed twice"
    assert set(standing) <= set(found), "lost"
    late += len(found) > len(standing)
    standing = found
print(kills, "kills,", late, "of them after new records")
"""


@pytest.mark.slow  # starts the program some twenty-five times
def test_twenty_kills_leave_the_file_of_an_uninterrupted_run(tmp_path, tiny_model, question):
    rows = [question_to_json(question(f"q{i}", passages=1 + i % 4)) for i in range(1000)]
    questions = write(tmp_path / "q.jsonl", rows)
    paths = [
        str(config(tmp_path, name, tiny_model, questions, "1, 1, 1", 1))
        for name in ("whole", "killed")
    ]
    done = subprocess.run(
        [sys.executable, "-c", KILLS, *paths, str(tmp_path)], cwd=ROOT, env=environment(),
        capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.split()
    assert said[:2] == ["20", "kills,"] and int(said[2]) >= 3, done.stdout
    one, other = (tmp_path / name / "rollout" / "rollouts.jsonl" for name in ("whole", "killed"))
    assert one.read_bytes() == other.read_bytes()


def start_two(path: Path) -> list[subprocess.Popen[str]]:
    """Two processes of one run."""
    return [start(path, **own) for own in joined(2)]


@pytest.mark.slow  # processes that compile for themselves
@pytest.mark.parametrize("told", [0, 1])
def test_sigterm_to_one_of_two_processes_ends_both_and_loses_nothing(
    tmp_path, tiny_model, question, told
):
    rows = [question_to_json(question(f"q{i}", passages=1 + i % 4)) for i in range(400)]
    questions = write(tmp_path / "q.jsonl", rows)
    one = start(config(tmp_path, "one", tiny_model, questions, "1, 1, 1", 1))
    said, _ = one.communicate(timeout=600)
    assert one.returncode == 0, said
    path = config(tmp_path, "two", tiny_model, questions, "-1, 1, 1", 1)
    both = start_two(path)
    directory = tmp_path / "two" / "rollout"
    lines = lambda: sum(  # noqa: E731
        len(part.read_text().splitlines()) for part in directory.glob("rollouts.part-*.jsonl")
    )
    while lines() < 20:
        assert all(process.poll() is None for process in both)
        time.sleep(0.01)
    both[told].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [143, 143], "\n".join(said)
    assert all("stopp" in text for text in said) and "Traceback" not in "".join(said)
    stood = lines()
    assert 20 <= stood < 400
    both = start_two(path)
    said = [process.communicate(timeout=600)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)
    first, second = (
        read_rollouts(tmp_path / name / "rollout" / "rollouts.jsonl") for name in ("one", "two")
    )
    assert [(r.id, [t.list for t in r.trajectories]) for r in first] == [
        (r.id, [t.list for t in r.trajectories]) for r in second
    ]


@pytest.mark.slow  # processes that compile for themselves
@pytest.mark.parametrize("mesh", ["-1, 2, 1", "1, 2, 2", "1, 1, 4"])
def test_two_processes_make_the_file_of_one(tmp_path, tiny_model, question, mesh):
    """Two hosts of two devices: a batch shard each and weights in common, or one of all four."""
    cfg, _ = load_decoder(tiny_model)
    wide = replace(cfg, heads=4, kv_heads=4, vocab=cfg.vocab, layers=2)
    from dynarag_jax.models.decoder import init_params

    tokenizer = load_tokenizer(str(tiny_model))
    model = tmp_path / "model"
    save_decoder(model, wide, init_params(wide, jax.random.key(1)), tokenizer)
    rows = [question_to_json(question(f"q{i}", passages=1 + i % 4)) for i in range(31)]
    questions = write(tmp_path / "q.jsonl", [*rows, {"id": "bad", "question": " "}])
    one = start(config(tmp_path, "one", model, questions, "1, 1, 1", 1))
    said, _ = one.communicate(timeout=600)
    assert one.returncode == 0, said
    path = config(tmp_path, "two", model, questions, mesh, 2)
    both = start_two(path)
    said = [p.communicate(timeout=600)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], "\n".join(said)
    files = [tmp_path / name / "rollout" for name in ("one", "two")]
    first, second = (read_rollouts(f / "rollouts.jsonl") for f in files)
    assert [r.id for r in first] == [r.id for r in second] == [row["id"] for row in rows]
    for a, b in zip(first, second, strict=True):
        assert [(t.list, t.count, t.answer) for t in a.trajectories] == [
            (t.list, t.count, t.answer) for t in b.trajectories
        ]
        assert [t.logp for t in a.trajectories] == pytest.approx(
            [t.logp for t in b.trajectories], abs=1e-4
        )
    assert [r["id"] for _, r in read_jsonl(files[1] / "rejects.jsonl")] == ["bad"]
    assert read_json(files[1] / "done.json")["outputs"].keys() == {
        "rollouts.jsonl", "rejects.jsonl"
    }  # fmt: skip


def test_likelihood_of_the_references_as_reward_equals_the_writers_own_log_probabilities(
    tiny_policy, question
):
    sampler = PolicySampler(*tiny_policy, 4, 0)
    long = question("long", answers=("here " * 40,))  # longer than an answer may be
    questions = [question("a", answers=("here", "port", " ")), long]
    weights = RewardWeights(em=0, passages=0, likelihood=1.0, price=0.05)
    made, other = sample_rollouts(
        sampler, sampler, questions, Sampling(), 3, weights, answers=False
    )
    for t in made.trajectories:
        spelled = [answer_tokens(sampler.policy.tokenizer, a, 5) for a in ("here", "port")]
        logps = sampler.answer_logps(questions[:1], [t.list], [spelled], 2)[0]
        expected = max(math.exp(sum(each) / len(each)) for each in logps)
        assert t.terms == {"likelihood": pytest.approx(expected, rel=1e-4)} and not t.missing
        assert t.reward == pytest.approx(expected - 0.05 * len(t.list), rel=1e-4)
    assert all(t.missing == ("likelihood",) for t in other.trajectories)
    again = json.loads(json.dumps(rollout_to_json(other)))
    assert rollout_from_json(again, "x") == other


def test_what_is_written_and_scored_is_shown_before_a_batch_of_rollouts_is_done(
    capsys, tiny_policy, question
):
    sampler = PolicySampler(*tiny_policy, 4, 0)
    bar = Progress(4, "rollout", every=0.0)
    show_work(bar, sampler)
    sample_rollouts(
        sampler, sampler, [question(name) for name in "abcd"], Sampling(), 3,
        RewardWeights(em=1.0, passages=0, likelihood=1.0),
    )  # fmt: skip
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("[rollout] 0/4") for line in lines)
    # Four times three lists and their answers, equal ones once; a likelihood for each.
    said = [dict(re.findall(r"(written|scored) (\d+)", line)) for line in lines]
    assert int(said[-1]["written"]) > 4 and int(said[-1]["scored"]) >= 4
    assert any(int(one.get("written", 0)) < int(said[-1]["written"]) for one in said)


@pytest.mark.slow  # a rollout more
def test_the_judge_and_its_file_take_part_in_a_rollout(tmp_path, tiny_model, tiny_policy, question):
    """Grades come from a server; what it said is on disk, and is not asked again."""
    log: list[str] = []

    class Handler(JsonHandler):
        def do_POST(self) -> None:
            body = self.body()
            log.append(body["messages"][0]["content"])
            says = "Fine." if "port q1" in log[-1] else "Score: 8/10"
            self.say(says)

    rows = [question_to_json(question(f"q{i}")) for i in range(4)]
    questions = write(tmp_path / "q.jsonl", rows)
    with serving(Handler) as server:
        judge = JudgeConfig(server.url, "m")
        reward = RewardWeights(em=0.5, judge=0.5, passages=0)
        asked = []
        for name in ("one", "two"):
            shared = replace(judge, cache=str(tmp_path / "judge.jsonl"))
            rolled(
                tmp_path / name, tiny_model, questions, tiny_policy[1], reward=reward, judge=shared
            )
            asked.append(len(log))
    texts = [(tmp_path / n / "rollout" / "rollouts.jsonl").read_text() for n in ("one", "two")]
    assert texts[0] == texts[1]
    # What could not be read is asked for again, and nothing else.
    again = log[asked[0] :]
    assert asked[0] == len(set(log)) > len(again) > 0
    assert all("port q1" in text for text in again)
    for made in read_rollouts(tmp_path / "one" / "rollout" / "rollouts.jsonl"):
        for t in made.trajectories:
            if made.id == "q1" and t.answer.strip():
                assert t.missing == ("judge",) and t.reward == 0.5 * t.terms["em"]
            else:
                assert t.terms["judge"] == (0.8 if t.answer.strip() else 0) and not t.missing


def test_given_lists_are_scored_in_parts_where_their_attention_is_large(
    tiny_policy, question, monkeypatch
):
    policy, prompts = tiny_policy
    sampler = PolicySampler(policy, prompts, 4, 0)
    questions = [question(f"q{i}", passages=3) for i in range(5)]
    lists = [[(1,), (2, 3)], [(3,)], [()], [(2,), (1,)], [(3, 1)]]
    whole = sampler.logps(questions, lists, 2)
    rows, scorer = [], sampler._given._scorer

    def counted(params, batch):
        rows.append(len(batch.trunk))
        return scorer(params, batch)

    monkeypatch.setattr(sampler._given, "_scorer", counted)
    # Room for two prompts: two heads, two branches of the longest list, over 200 tokens.
    longest = policy.spelling.longest(prompts.max_list)
    monkeypatch.setattr(given_branches, "SCORES", 2 * (2 * 2 * longest * (200 + longest)))
    for ours, theirs in zip(sampler.logps(questions, lists, 2), whole, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a == pytest.approx(b, abs=1e-5)
    assert max(rows) <= 4 and min(rows) < 4 and sum(rows) >= 5
    monkeypatch.setattr(given_branches, "SCORES", 1)
    rows.clear()
    sampler.logps(questions, lists, 2)
    assert rows == [1] * 5
