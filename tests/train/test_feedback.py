"""Feedback by program: rollouts with log-probabilities, groups, answers, and what is stale."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.files import read_jsonl
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.options import load_config
from dynarag_jax.launch.program import run_stage
from dynarag_jax.launch.table import program_of
from dynarag_jax.records import read_questions, write_questions
from dynarag_jax.retrieval.corpora import CorpusConfig, read_corpus
from dynarag_jax.rollout_records import read_rollouts
from tests.small_quickstart import WORLD

pytestmark = pytest.mark.slow  # two minutes on one core; test_preferences covers the parts

SMALL = """
--facts.world.train_questions 24 --facts.world.evaluation_questions 4
--facts.lessons.questions 24 --facts.lessons.passages 2
--facts.lessons.near 24 --facts.lessons.near_passages 2
--pretrain.model.layers 1 --pretrain.model.width 32 --pretrain.model.mlp 48
--pretrain.steps 2 --pretrain.reranker.batch 8 --pretrain.generator.batch 8
--pretrain.checkpoint_every 0
--rollout.limit 16 --rollout.batch 16 --rollout.answers --rollout.model {run}/pretrain/model
--rollout.reward.length 0.5
--feedback.init {run}/pretrain/model --feedback.steps 1 --feedback.reranker.batch 8
--feedback.generator.batch 0 --feedback.log_every 1 --feedback.checkpoint_every 0
""".split()


class Stages:
    """Stages of a configuration in one directory."""

    def __init__(self, directory: Path, *more: str, config: str = "configs/grpo.py"):
        questions = [
            f"--{s}.questions={{run}}/questions.jsonl" for s in ("pretrain", "rollout", "feedback")
        ]
        overrides = [*WORLD, *SMALL, *questions, "--run.directory", str(directory), *more]
        self.run, self.stages = load_config(config, overrides)
        self.directory = directory

    def __call__(self, name: str) -> bool:
        context = Context(self.run, self.stages, name)
        return run_stage(context, program_of(name, self.stages[name]).run)

    def figures(self, name: str) -> dict[str, float]:
        return next(line for _, line in read_jsonl(self.directory / name / "metrics.jsonl"))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """A small model and its rollouts, over candidates put together here."""
    stages = Stages(tmp_path_factory.mktemp("runs") / "small")
    assert stages("facts")
    corpus = CorpusConfig((str(stages.directory / "facts" / "corpus.jsonl"),))
    passages = list(read_corpus(corpus))
    by_id, rng, questions = {p.id: p for p in passages}, random.Random(0), []
    for question in read_questions(stages.directory / "facts" / "train.jsonl"):
        gold = [by_id[i] for i in question.gold or ()]
        others = [p for p in rng.sample(passages, 12) if p not in gold]
        shown = (gold + others)[:6]
        rng.shuffle(shown)
        expert = tuple(shown.index(p) + 1 for p in gold)
        questions.append(
            type(question)(**vars(question) | {"passages": tuple(shown), "expert": expert})
        )
    write_questions(stages.directory / "questions.jsonl", questions)
    assert stages("pretrain")
    assert stages("rollout")
    # A model of two steps answers nothing right: say which lists and answers were better, and let
    # everything that follows be real.
    path = stages.directory / "rollout" / "rollouts.jsonl"
    (stages.directory / "original.jsonl").write_bytes(path.read_bytes())
    lines = []
    for _, record in read_jsonl(path):
        for trajectory in record["trajectories"]:
            trajectory["reward"] = 1 / (1 + len(trajectory["list"]))
        texts = record["answers"]["texts"]
        record["answers"]["rewards"] = [1 / (1 + i) for i in range(len(texts))]
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n")
    return stages


def test_rollouts_hold_log_probabilities_by_token_and_where_they_are_from(ran: Stages) -> None:
    rollouts = read_rollouts(ran.directory / "rollout" / "rollouts.jsonl")
    assert len({(r.policy, r.reference, r.tokenizer) for r in rollouts}) == 1
    assert len({r.prompt for r in rollouts}) == len(rollouts) == 16
    for rollout in rollouts:
        assert rollout.tokenizer and rollout.answers
        for t in rollout.trajectories:
            assert t.logp == t.reference_logp == pytest.approx(math.fsum(t.logps))
            assert t.logps == t.reference_logps and len(t.logps) >= 2
        assert len(set(rollout.answers.texts)) == len(rollout.answers.texts)
        given = {t.answer for t in rollout.trajectories}
        assert set(rollout.answers.texts) <= given


def test_groups_and_answers_train_from_the_same_rollouts(ran: Stages) -> None:
    """At the first step the policy is the sampler and the reference: every ratio is 1."""
    terms = ("rloo", "plackett_luce", "lipo", "dpo")
    more = [x for t in terms for x in (f"--feedback.reranker.objectives.{t}.weight", "0.5")]
    stages = Stages(
        ran.directory, *more, "--feedback.reranker.objectives.rloo.kl", "0.1",
        "--feedback.answers.batch", "8", "--feedback.answers.objectives.ipo.weight", "0.1",
        "--feedback.optimizer.learning_rate", "0.01",
    )  # fmt: skip
    assert stages("feedback")
    first = stages.figures("feedback")
    assert first["reranker/grpo/kl_to_sampler"] == pytest.approx(0, abs=1e-5)
    assert first["reranker/grpo/kl"] == pytest.approx(0, abs=1e-6)
    assert first["reranker/rloo/kl"] == pytest.approx(0, abs=1e-4)
    assert first["reranker/rloo/clipped"] == 0
    # Advantages of a group sum to 0, and so does the loss where all ratios are 1.
    assert first["reranker/rloo"] == pytest.approx(0, abs=1e-4)
    assert 0 < first["reranker/grpo/reward"] <= 1
    assert first["reranker/dpo/preference"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["answers/dpo/preference"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["answers/ipo/preference"] == pytest.approx(25, abs=1e-2)  # (1 / (2 * 0.1))^2
    assert first["reranker/plackett_luce"] > math.log(2)  # more than two lists
    assert first["gradient_norm"] > 0


def test_reference_gives_what_the_rollout_gave_and_serves_another_reference(
    ran: Stages, tmp_path: Path
) -> None:
    from dynarag_jax.stages.reference import Reference

    place = tmp_path / "run"
    stages = Stages(place)
    source = ran.directory / "original.jsonl"
    common = {
        "model": str(ran.directory / "pretrain" / "model"),
        "questions": str(ran.directory / "questions.jsonl"),
        "prompts": stages.stages["rollout"].prompts, "batch": 8,
        "reward": stages.stages["rollout"].reward, "answers": True,
    }  # fmt: skip
    # As another tool would write them: lists, answers, rewards.
    bare = tmp_path / "bare.jsonl"
    kept = ("list", "count", "answer", "terms", "reward")
    lines = []
    for _, record in read_jsonl(source):
        trajectories = [{k: t[k] for k in kept} for t in record["trajectories"]]
        lines.append(
            json.dumps({k: record[k] for k in ("id", "shown", "policy", "reference")}
                       | {"policy": "elsewhere", "trajectories": trajectories})
        )  # fmt: skip
    bare.write_text("\n".join(lines) + "\n")
    stages.stages["reference"] = Reference(rollouts=str(bare), policy=common["model"], **common)
    assert stages("reference")
    made = read_rollouts(place / "reference" / "rollouts.jsonl")
    for one, other in zip(made, read_rollouts(source), strict=True):
        assert (one.id, one.reference, one.tokenizer, one.prompt) == (
            other.id, other.reference, other.tokenizer, other.prompt,
        )  # fmt: skip
        assert one.policy == other.policy
        assert one.answers and other.answers
        assert one.answers.texts == other.answers.texts
        for t, u in zip(one.trajectories, other.trajectories, strict=True):
            np.testing.assert_allclose(t.logps, u.logps, atol=1e-5)
            np.testing.assert_allclose(t.reference_logps, u.reference_logps, atol=1e-5)
        for x, y in zip(one.answers.reference_logps, other.answers.reference_logps, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)
    # A list that the prompt cannot show is named.
    stages.stages["short"] = Reference(
        rollouts=str(bare), **common | {"prompts": type(common["prompts"])(
            **vars(common["prompts"]) | {"max_list": 1})},
    )  # fmt: skip
    with pytest.raises(InputError, match=r"the list \[.*\] is longer than prompts.max_list = 1"):
        stages("short")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--feedback.init", "{ran}/other"),
         r"of other weights \(.*\) than .*other \(.*\); name their"),
        (("--feedback.tokenizer", "{ran}/tokenizer"), "are of another tokenizer"),
        (("--feedback.prompts.ids", "5"), "another prompt|outside 1..5|at most 6 ids"),
        (("--feedback.answers.batch", "8", "--feedback.answers.objectives.grpo.weight", "1"),
         "'grpo' needs samples of one prompt"),
        (("--feedback.init", "", "--feedback.tokenizer", "{ran}/tokenizer"),
         "does not begin at the weights of 'init'; name the model behind them as 'reference'"),
    ],
    ids=["weights", "tokenizer", "prompts", "answers", "no init"],
)  # fmt: skip
def test_what_is_stale_is_refused_in_one_line(
    ran: Stages, tmp_path: Path, options: tuple[str, ...], says: str
) -> None:
    import shutil

    from dynarag_jax.exchange.decoders import load_decoder, save_decoder
    from dynarag_jax.exchange.tokenizers import load_tokenizer

    model = ran.directory / "pretrain" / "model"
    if any("other" in o for o in options):
        cfg, params = load_decoder(model)
        params["final_norm"] = params["final_norm"] * 1.5  # type: ignore[index]
        save_decoder(tmp_path / "other", cfg, params, load_tokenizer(model))
    if any("tokenizer" in o for o in options):
        shutil.copytree(ran.directory / "facts" / "tokenizer", tmp_path / "tokenizer")
        path = tmp_path / "tokenizer" / "tokenizer_config.json"
        config = json.loads(path.read_text())
        config["chat_template"] = "{{ messages[0]['content'] }}"
        path.write_text(json.dumps(config))
    places = [o.replace("{ran}", str(tmp_path)) for o in options]
    shared = {
        "rollouts": ran.directory / "rollout" / "rollouts.jsonl",
        "questions": ran.directory / "questions.jsonl", "init": model,
    }  # fmt: skip
    given = [x for k, v in shared.items() for x in (f"--feedback.{k}", str(v))]
    stages = Stages(
        tmp_path / "run", *given, "--feedback.reranker.objectives.grpo.kl", "0.1", *places
    )
    with pytest.raises(InputError, match=says) as error:
        stages("feedback")
    assert "\n" not in str(error.value)


def test_instruction_data_is_a_third_stream(ran: Stages, tmp_path: Path) -> None:
    path = tmp_path / "instructions.jsonl"
    rows = [
        {"instruction": "which country is it in?", "input": "it is here", "output": "here"},
        {"messages": [{"role": "user", "content": "list"}, {"role": "assistant", "content": "it"}]},
        {"instruction": "list", "output": "it " * 60},
    ]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    more = ("--pretrain.questions", str(ran.directory / "questions.jsonl"),
            "--pretrain.tokenizer", str(ran.directory / "facts" / "tokenizer"),
            "--pretrain.instruction_file", str(path), "--pretrain.instructions.batch", "8",
            "--pretrain.instruction_tokens", "16", "--pretrain.steps", "1")  # fmt: skip
    stages = Stages(tmp_path / "run", *more)
    assert stages("pretrain")
    figures = stages.figures("pretrain")
    assert figures["instructions/nll"] > 1
    assert {"reranker/nll", "generator/nll"} <= set(figures)
    with pytest.raises(InputError, match=r"generator: objective 'rank_net' .* reads ranked lists"):
        Stages(tmp_path / "lists", *more, "--pretrain.generator.objectives.rank_net.weight", "1")(
            "pretrain"
        )
    with pytest.raises(InputError, match=r"reranker: objective 'dpo' .* reads sampled branches"):
        Stages(tmp_path / "pairs", *more, "--pretrain.reranker.objectives.dpo.weight", "1")(
            "pretrain"
        )
    with pytest.raises(InputError, match="instruction data needs both, or neither"):
        Stages(tmp_path / "other", "--pretrain.instructions.batch", "8")
