"""The programs with an encoder policy: from a cross-encoder to lists, feedback and tables."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import optax
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from dynarag_jax.config import Run
from dynarag_jax.data.mapping import FieldPaths
from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.tuning import RulesConfig
from dynarag_jax.exchange.calibration import read_calibration
from dynarag_jax.exchange.encoder_policies import policy_fingerprint, read_encoder_policy
from dynarag_jax.exchange.hub import model_directory
from dynarag_jax.exchange.python_package import PackageConfig
from dynarag_jax.files import read_json, read_jsonl
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.program import run_stage
from dynarag_jax.launch.status import run_status
from dynarag_jax.launch.table import program_of
from dynarag_jax.models.config import DecoderConfig
from dynarag_jax.models.encoder_layout import TrainedEncoder
from dynarag_jax.models.encoder_parts import EncoderConfig
from dynarag_jax.models.list_head import ListHeadConfig
from dynarag_jax.models.pairs import pairs_with_chosen
from dynarag_jax.objectives.terms import Dpo, ListNet, Objectives, PromptNll, Rloo, SetNll, TokenNll
from dynarag_jax.policy.encoder_model import load_encoder_policy
from dynarag_jax.policy.encoder_policy import EncoderPolicyConfig
from dynarag_jax.policy.model import load_policy
from dynarag_jax.prompts import COMPACT_WORDS, PromptConfig
from dynarag_jax.records import Passage, Question, read_questions, write_questions
from dynarag_jax.retrieval.relevance import load_scorer, score_questions
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.rollout_records import read_rollouts
from dynarag_jax.sampling.answer_scoring import gold_likelihood
from dynarag_jax.sampling.choice import Sampling
from dynarag_jax.sampling.encoder_sampler import EncoderSampler
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.requests import EngineConfig
from dynarag_jax.serving.reranker import Reranker
from dynarag_jax.sharding import make_mesh
from dynarag_jax.stages import (
    Calibrate,
    CalibrationTarget,
    Contrast,
    EncoderTraining,
    Evaluate,
    Export,
    Feedback,
    Label,
    Mix,
    Reference,
    Rerank,
    Rounds,
    SampleRollouts,
    Sft,
    Stream,
    rounds,
)
from dynarag_jax.stages.common import training as watched_training
from dynarag_jax.stages.common.curves import CurveConfig
from dynarag_jax.stages.mix import run as mix_run
from dynarag_jax.training.encoder_run import ListInput, begin_encoder_policy
from dynarag_jax.training.encoder_step import init_encoder_state, make_encoder_step
from dynarag_jax.training.list_examples import behavior_lists
from dynarag_jax.training.optimizer import OptimizerConfig
from dynarag_jax.training.update import StreamLoss
from tests.small_model import save_small_model

WORDS = ["needed", *(f"w{i}" for i in range(30))]
HEAD = ListHeadConfig(width=8, layers=1, steps=1, heads=2, mlp=16)
NONE = TokenNll(weight=0.0)
SETS = Objectives(nll=NONE, set_nll=SetNll(weight=1.0))
DPO = Stream(batch=8, objectives=Objectives(nll=NONE, dpo=Dpo(weight=1.0)))


def save_cross_encoder(where):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    where.mkdir()
    tokenizer.save(str(where / "tokenizer.json"))
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=32, num_labels=1, initializer_range=0.2,
        )
    ).save_pretrained(where)  # fmt: skip


def questions_of(count, seed, name):
    """Questions whose needed passages, none to two of five, hold one word."""
    rng = random.Random(seed)
    found = []
    for i in range(count):
        needed = rng.sample(range(5), rng.choice([0, 1, 1, 2, 2]))
        passages = []
        for j in range(5):
            text = rng.choices(WORDS[1:], k=4)
            if j in needed:
                text[rng.randrange(4)] = "needed"
            passages.append(Passage(f"p{j}", " ".join(text), score=rng.random()))
        gold = tuple(f"p{j}" for j in needed)
        text = f"{name} {' '.join(rng.choices(WORDS[1:], k=3))} {i}"
        found.append(Question(f"{i}", text, ("w1",), passages=tuple(passages), gold=gold))
    return found


class Stages:
    """A run over generated questions, in one directory."""

    def __init__(self, place):
        place.mkdir(exist_ok=True)
        self.place = place
        if not (place / "cross").exists():
            save_cross_encoder(place / "cross")
            for name, count in (("one", 160), ("two", 40), ("held", 40)):
                write_questions(place / f"{name}.jsonl", questions_of(count, count, name))
        self.run = Run(
            str(place / "run"), prompts=PromptConfig(ids=5, max_list=3), token_cache="off"
        )
        cross, rates = str(place / "cross"), OptimizerConfig(learning_rate=1e-2)
        encoder = EncoderTraining(head=HEAD, pieces=24, rate=0.3)
        clone = Stream(
            batch=8, objectives=Objectives(nll=TokenNll(weight=1.0), list_net=ListNet(weight=0.5))
        )
        self.stages = {
            "mix": Mix(
                train={n: str(place / f"{n}.jsonl") for n in ("one", "two")},
                held_out={"held": str(place / "held.jsonl")},
                development=0.2,
            ),
            "label": Label(
                questions=("{run}/mix/train.jsonl", "{run}/mix/development.jsonl"), source="gold"
            ),
            "sft": Sft(
                policy="encoder", init=cross, encoder=encoder, reranker=clone, optimizer=rates,
                steps=100, checkpoint_every=50,
            ),
            "rollout": SampleRollouts(
                samples=6, limit=40, sampling=Sampling(temperature=5.0),
                reward=RewardWeights(em=0.0, passages=0.0, set_f1=1.0),
            ),
            "feedback": Feedback(
                policy="encoder", init="{run}/sft/model", encoder=encoder, steps=3,
                reranker=Stream(batch=8, objectives=Objectives(nll=NONE, rloo=Rloo(weight=1.0))),
            ),
            "calibrate": Calibrate(target=CalibrationTarget(mean_k=1.5), moved="stop"),
            "rerank": Rerank(
                model="{run}/feedback/model", questions=("{run}/mix/evaluation.jsonl",)
            ),
            "evaluate": Evaluate(
                models={"sft": "{run}/sft/model", "feedback": "{run}/feedback/model"},
                questions="{run}/mix/evaluation.jsonl",
                rules=RulesConfig(
                    names=("fixed-k", "threshold"), tuning="{run}/label/development.jsonl"
                ),
                scorer=cross, shuffled=True, top_k=(1, 2),
            ),
            "export": Export(model="{run}/calibrate/model"),
            "contrast": Contrast(),
            "reference": Reference(policy="{run}/sft/model"),
        }  # fmt: skip

    def __call__(self, name, **fields):
        stages = self.stages | {name: replace(self.stages[name], **fields)}
        context = Context(self.run, stages, name)
        return run_stage(context, program_of(name, stages[name]).run)

    def __getitem__(self, name):
        return self.place / "run" / name


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    stages = Stages(tmp_path_factory.mktemp("encoder") / "place")
    for name in stages.stages:
        assert stages(name)
    return stages


def test_mixed_files_hold_nothing_twice_and_nothing_held_out(ran):
    parts = {
        name: read_questions(ran["mix"] / f"{name}.jsonl")
        for name in ("train", "development", "evaluation")
    }
    assert [len(part) for part in parts.values()] == [160, 40, 40]
    texts = [q.text for part in parts.values() for q in part]
    assert len(set(texts)) == 240
    assert {q.extra["dataset"] for q in parts["train"]} == {"one", "two"}
    # The needed passages are still those with the word, wherever they now stand.
    for question in parts["train"]:
        wanted = {p.id for p in question.passages if "needed" in p.text.split()}
        assert set(question.gold or ()) == wanted


def test_questions_drawn_by_a_seed_of_their_own_are_those_of_every_run(ran, tmp_path):
    def drawn(directory, **fields):
        stage = replace(ran.stages["mix"], **fields)
        run = replace(ran.run, directory=str(tmp_path / directory), seed=5)
        assert run_stage(Context(run, {"mix": stage}, "mix"), program_of("mix", stage).run)
        return (tmp_path / directory / "mix" / "train.jsonl").read_bytes()

    there = (ran["mix"] / "train.jsonl").read_bytes()
    assert drawn("same", seed=ran.run.seed) == there != drawn("other")


def test_behavior_cloning_learns_which_and_how_many(ran):
    scores = read_json(ran["evaluate"] / "scores.json")
    assert scores["sft"]["set_f1"]["mean"] > 0.9
    assert scores["sft"]["exact_set"]["mean"] > 0.8
    rules = [name for name in scores if name.endswith("tuned")]
    assert len(rules) == 2
    assert all(scores[name]["set_f1"]["mean"] < 0.8 for name in rules)
    assert scores["oracle passages"]["set_f1"]["mean"] == 1
    # Shuffled candidates: the same passages, so the same figures.
    assert scores["sft, shuffled"] == scores["sft"]
    page = (ran["evaluate"] / "scores.md").read_text()
    assert "| best fixed k, tuned |" in page
    assert "0 needed" in page
    lines = [line for _, line in read_jsonl(ran["evaluate"] / "predictions.jsonl")]
    assert len(lines) == 40 * len(scores)


def test_lists_that_were_drawn_before_a_kill_are_not_drawn_again(ran, monkeypatch):
    stages = ran.stages | {
        name: replace(ran.stages["evaluate"], rules=RulesConfig(), scorer="", top_k=())
        for name in ("whole", "killed")
    }

    def go(name):
        context = Context(ran.run, stages, name)
        return run_stage(context, program_of(name, stages[name]).run)

    def lines(name):
        return [line for _, line in read_jsonl(ran[name] / "predictions.jsonl")]

    go("whole")
    asked = []
    draw = EncoderSampler.try_lists

    def counted(self, questions, sampling, samples=1):
        if len(asked) == 24:
            raise KeyboardInterrupt
        asked.extend(q.id for q in questions)
        return draw(self, questions, sampling, samples)

    monkeypatch.setattr(EncoderSampler, "together", 8)
    monkeypatch.setattr(EncoderSampler, "try_lists", counted)
    with pytest.raises(KeyboardInterrupt):
        go("killed")
    assert len(asked) == 24
    assert not (ran["killed"] / "predictions.jsonl").exists()
    # Two models over 40 questions, as they came and shuffled: 160 lists.
    asked.append("more")
    go("killed")
    assert len(asked) == 161
    assert lines("killed") == lines("whole")
    assert not list(ran["killed"].glob("lists*"))


@pytest.mark.slow  # trains a second policy
def test_a_policy_that_reads_again_learns_sets_state_by_state(ran):
    before = ran.stages["sft"]
    again = replace(
        before, encoder=replace(before.encoder, reencode=3), steps=100,
        reranker=replace(before.reranker, objectives=SETS),
    )  # fmt: skip
    measure = replace(
        ran.stages["evaluate"], models={"again": "{run}/again/model"}, rules=RulesConfig(),
        scorer="", shuffled=False, top_k=(),
    )  # fmt: skip
    stages = {"again": again, "measure": measure}
    for name, stage in stages.items():
        assert run_stage(Context(ran.run, stages, name), program_of(name, stage).run)
    scores = read_json(ran["measure"] / "scores.json")["again"]
    assert scores["set_f1"]["mean"] > 0.9
    assert scores["exact_set"]["mean"] > 0.8
    objectives = replace(before.reranker.objectives, set_nll=SetNll(weight=1.0))
    both = replace(again, reranker=replace(before.reranker, objectives=objectives))
    with pytest.raises(InputError, match="'nll' reads whole lists, and 'set_nll'"):
        run_stage(Context(ran.run, {"again": both}, "again"), program_of("again", both).run)


def test_states_are_as_long_and_in_such_orders_as_chance_says(ran):
    questions = [q for q in read_questions(ran["label"] / "train.jsonl") if len(q.expert) == 2][:1]
    cfg = EncoderPolicyConfig(
        encoder=EncoderConfig(vocab=40, width=12, heads=3), reencode=3, max_list=3,
        head=ListHeadConfig(vectors=12), pieces=24,
    )  # fmt: skip
    before = ran.stages["sft"]
    stage = replace(before, reranker=replace(before.reranker, objectives=SETS))
    maker = load_encoder_policy(ran["sft"] / "model", make_mesh()).pair_maker()
    source = behavior_lists(stage, cfg, questions, maker, seed=1)
    a, b = questions[0].expert
    # Every number of chosen passages once an epoch; which of them, and their order, by chance.
    assert source.size == 3
    drawn = Counter()
    for epoch in range(400):
        for index in range(3):
            example = source.make(epoch, index)
            assert len(example.lists[0]) == index
            drawn[example.lists[0], frozenset(example.following)] += 1
    nothing, both = ((), frozenset({a, b})), frozenset({0})
    assert drawn.pop(nothing) == 400
    expected = {((a,), frozenset({b})), ((b,), frozenset({a})), ((a, b), both), ((b, a), both)}
    assert drawn.keys() == expected
    # Pearson's statistic on two degrees of freedom: beyond 13.8 once in a thousand seeds.
    assert sum((drawn[k] - 200) ** 2 / 200 for k in expected) < 13.8
    assert source.make(3, 2) == source.make(3, 2)
    # A batch has room for its word pieces with what was chosen; no padding is computed beside it.
    one = replace(source, stream=replace(source.stream, batch=1))
    mesh = make_mesh(devices=jax.devices()[:1])
    data = ListInput(stage, cfg, [one], mesh, 0, 20)
    for step in range(20):
        batch = data(step)[0]["reranker"]
        chosen = batch.branches[..., :-1]
        assert chosen.shape[-1] == 2
        read = pairs_with_chosen(batch.candidates.pairs, chosen, 3, 512)
        assert int(read.lengths.sum()) <= read.room.positions < read.tokens.size
    # Candidates that see each other are padded: to as many as the batch's own states chose.
    data = ListInput(stage, replace(cfg, interaction=True), [one], mesh, 0, 20)
    for step in range(20):
        batch = data(step)[0]["reranker"]
        assert batch.candidates.pairs.room is None
        assert batch.branches.shape[-1] - 1 == int((batch.branches > 0).sum())
    whole = replace(stage, reranker=before.reranker)
    assert behavior_lists(whole, cfg, questions, maker).make(0, 0).lists == ((a, b),)


@pytest.mark.parametrize(("devices", "accumulate"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_states_that_share_a_room_train_as_padded_ones_do(ran, devices, accumulate):
    stage = replace(
        ran.stages["sft"], encoder=replace(ran.stages["sft"].encoder, reencode=3),
        reranker=replace(ran.stages["sft"].reranker, objectives=SETS), accumulate=accumulate,
        prompts=ran.run.prompts,
    )  # fmt: skip
    mesh = make_mesh(devices=jax.devices()[:devices])
    start = begin_encoder_policy(stage, ran.place / "cross", mesh, 0, lambda _: None)
    questions = read_questions(ran["label"] / "train.jsonl")
    source = behavior_lists(stage, start.cfg, questions, start.pair_maker(), seed=0)
    data = ListInput(stage, start.cfg, [source], mesh, 0, 60)
    update = make_encoder_step(
        start.cfg, stage.encoder.trained, mesh, optax.sgd(1.0), start.params["encoder"],
        {source.name: StreamLoss(SETS)}, accumulate,
    )  # fmt: skip

    def after(batch):
        state = init_encoder_state(
            start.cfg, stage.encoder.trained, mesh, optax.sgd(1.0), start.params, 0
        )
        state, figures = update(state, {source.name: batch})
        return jax.tree.map(np.asarray, state.params), float(figures["loss"])

    for step in (0, 7):
        batch = data(step)[0][source.name]
        pairs = batch.candidates.pairs
        read = pairs_with_chosen(pairs, batch.branches[..., :-1], 3, 512)
        assert pairs.room.rows == 8 // devices // accumulate
        # Microbatch i of a shard is every ``accumulate``-th of its rows.
        pieces = np.asarray(read.lengths).sum(1).reshape(devices, -1, accumulate).sum(1)
        assert pieces.max() <= pairs.room.positions < 8 * 5 * 32 // devices // accumulate
        padded = batch.candidates._replace(pairs=pairs._replace(room=None))
        (ours, loss), (whole, other) = after(batch), after(batch._replace(candidates=padded))
        assert loss == pytest.approx(other, rel=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, whole)


def test_drawn_negatives_stand_beside_all_that_is_needed(ran, tmp_path):
    questions = read_questions(ran["label"] / "train.jsonl")
    before = ran.stages["sft"]
    policy = load_encoder_policy(ran["sft"] / "model", make_mesh())
    maker, cfg = policy.pair_maker(), policy.cfg
    fewer = replace(before, encoder=replace(before.encoder, negatives=2))
    every = behavior_lists(before, cfg, questions, maker, seed=1)
    some = behavior_lists(fewer, cfg, questions, maker, seed=1)
    assert some.size == every.size
    shown = Counter()
    for index, question in enumerate(questions):
        for epoch in range(30):
            whole, part = every.make(epoch, index), some.make(epoch, index)
            needed = len(question.expert)
            assert part.pairs.count == min(needed + 2, 5)
            # The list names the same texts; no candidate comes twice.
            texts = [tuple(row) for row in whole.pairs.tokens]
            places = [texts.index(tuple(row)) for row in part.pairs.tokens]
            assert places == sorted(set(places))
            assert [places[i - 1] + 1 for i in part.lists[0]] == list(whole.lists[0])
            if index == 0:
                shown.update(set(places) - {i - 1 for i in question.expert})
    others = [shown[i] for i in range(5) if i + 1 not in questions[0].expert]
    # Each of the others as often as chance says: six standard deviations.
    share = 2 / len(others)
    assert all(abs(n - 30 * share) < 6 * (30 * share * (1 - share) or 0.1) ** 0.5 for n in others)
    twice = [some.make(3, 2).pairs.fingerprint() for _ in range(2)]
    assert twice[0] == twice[1]
    with pytest.raises(InputError, match="negatives = 2 is of behavior cloning"):
        ran("feedback", encoder=fewer.encoder)


def test_candidates_stand_in_the_order_of_a_scorer_and_keep_its_scores(ran):
    """The scores are those that the label stage of the same run finds, by a pass of its own."""
    cross = str(ran.place / "cross")
    ran.stages["ordered"] = replace(ran.stages["mix"], scorer=cross)
    ran("ordered")
    plain = {q.id: q for q in read_questions(ran["mix"] / "train.jsonl")}
    ordered = read_questions(ran["ordered"] / "train.jsonl")
    assert {q.id for q in ordered} == set(plain)
    for question, found in score_questions(load_scorer(cross), ordered):
        given = [p.score for p in question.passages]
        assert given == sorted(given, reverse=True)
        assert len(set(given)) > 1
        assert {p.id for p in question.passages} == {p.id for p in plain[question.id].passages}
        assert question.gold == plain[question.id].gold
        np.testing.assert_allclose(given, found, atol=1e-6)


def test_held_out_questions_that_are_not_drawn_are_not_trained_on_either(ran, tmp_path):
    held = read_questions(ran.place / "held.jsonl")
    others = read_questions(ran.place / "one.jsonl")[:20]
    both = [*held, *(replace(question, id=f"other {question.id}") for question in others)]
    write_questions(tmp_path / "both.jsonl", both)
    mix = Mix(
        train={"both": str(tmp_path / "both.jsonl")},
        held_out={"held": str(ran.place / "held.jsonl")},
        held_out_limit=5,
    )
    run_stage(Context(replace(ran.run, directory=str(tmp_path)), {"mix": mix}, "mix"), mix_run)
    seen = [
        question.text
        for name in ("train", "development")
        for question in read_questions(tmp_path / "mix" / f"{name}.jsonl")
    ]
    texts = {question.text for question in held}
    assert not texts & set(seen)
    assert set(seen) == {question.text for question in both} - texts
    assert len(read_questions(tmp_path / "mix" / "evaluation.jsonl")) == 5


def test_long_passages_are_cut_and_what_is_lost_is_said(ran, tmp_path, capsys):
    long = "filler " * 30
    rows = []
    for i in range(10):
        text = f"{long}w{i} did" if i < 3 else f"w{i}  did {long}"
        passages = (Passage("a", text), Passage("b", "short"))
        rows.append(
            Question(f"q{i}", f"who made w{i}?", (f"w{i}",), passages=passages, gold=("a",))
        )
    write_questions(tmp_path / "rows.jsonl", rows)
    mix = Mix(train={"rows": str(tmp_path / "rows.jsonl")}, development=0.0, words=12)
    run_stage(Context(replace(ran.run, directory=str(tmp_path)), {"mix": mix}, "mix"), mix_run)
    said = capsys.readouterr().err
    assert "rows: 10 of 20 passages are longer than words = 12" in said
    assert "cut off; of 3 needed ones, the answer" in said
    found = read_questions(tmp_path / "mix" / "train.jsonl")
    texts = {q.text: {p.text for p in q.passages} for q in found}
    assert texts["who made w1?"] == {" ".join(["filler"] * 12), "short"}
    assert texts["who made w5?"] == {"w5 did " + " ".join(["filler"] * 10), "short"}


def test_questions_are_cut_off_to_evaluate_on_and_read_by_their_fields(ran, tmp_path):
    rows = [
        {"asked": f"who made w{i}", "said": [f"w{i}"], "found": [{"t": f"w{i} did"}, {"t": "no"}]}
        for i in range(20)
    ]
    others = '{"question": "Who made w3?", "answer": ["w3"]}\n'
    (tmp_path / "others.jsonl").write_text(others)
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    paths = FieldPaths(question="asked", answers="said", passages="found[].t")
    mix = Mix(
        train={"rows": str(tmp_path / "rows.jsonl"), "one": str(ran.place / "one.jsonl")},
        left_out=(str(tmp_path / "others.jsonl"),),
        fields={"rows": paths},
        answers_as_gold=("rows",),
        evaluated={"rows": 6},
        limits={"one": 9},
        development=0.5,
    )
    run_stage(Context(replace(ran.run, directory=str(tmp_path)), {"mix": mix}, "mix"), mix_run)
    parts = {
        name: read_questions(tmp_path / "mix" / f"{name}.jsonl")
        for name in ("train", "development", "evaluation")
    }
    assert {q.extra["dataset"] for q in parts["evaluation"]} == {"rows"}
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 11, "development": 11, "evaluation": 6,
    }  # fmt: skip
    table = (tmp_path / "mix" / "needed.md").read_text()
    assert "| evaluation | rows |  | 6 |" in table
    texts = {q.text for part in parts.values() for q in part}
    assert len(texts) == 28
    assert "who made w3" not in texts
    for question in parts["evaluation"]:
        assert [question.passages[i - 1].text for i in question.gold_list()] == [
            f"{question.answers[0]} did"
        ]
    with pytest.raises(InputError, match=r"evaluated.two = 3 must be a positive number .*: one"):
        Mix(train={"one": "x"}, held_out={"two": "y"}, evaluated={"two": 3})


def test_where_one_passage_suffices_the_first_stays_alone(tmp_path):
    stages = Stages(tmp_path / "place")
    stages("mix", one_suffices=("one",), shuffled=False)
    before = {q.text: q for q in read_questions(tmp_path / "place" / "one.jsonl")}
    seen = Counter()
    for part in ("train", "development"):
        for question in read_questions(stages["mix"] / f"{part}.jsonl"):
            gold = question.gold_list()
            if question.extra["dataset"] == "two":
                seen["two"] = max(seen["two"], len(gold))
                continue
            old = before[question.text]
            needed = sorted(old.gold_list())
            seen[len(needed)] += 1
            kept = [p for i, p in enumerate(old.passages, 1) if i not in needed[1:]]
            assert [p.text for p in question.passages] == [p.text for p in kept]
            texts = [question.passages[i - 1].text for i in gold]
            assert texts == [old.passages[i - 1].text for i in needed[:1]]
    assert seen["two"] == 2 and seen[0] and seen[1] and seen[2]
    with pytest.raises(InputError, match="'four' is none of the sets one"):
        Mix(train={"one": "x"}, one_suffices=("four",))


def test_a_share_of_a_set_loses_all_that_helps(tmp_path, capsys):
    stages = Stages(tmp_path / "place")
    stages("mix", unanswerable={"one": 0.5, "held": 1.0})
    said = capsys.readouterr().err
    before = {
        q.text: q
        for n in ("one", "two", "held")
        for q in read_questions(stages.place / f"{n}.jsonl")
    }
    taken = Counter()
    for part in ("train", "development", "evaluation"):
        for question in read_questions(stages["mix"] / f"{part}.jsonl"):
            old, name = before[question.text], question.extra["dataset"]
            texts = {p.text: p.id for p in old.passages}
            gone = set(texts.values()) - {texts[p.text] for p in question.passages}
            needed = {texts[question.passages[i - 1].text] for i in question.gold_list()}
            assert gone in (set(), set(old.gold)) and needed == set(old.gold) - gone
            assert question.answers == old.answers
            if old.gold:
                taken[name, bool(gone)] += 1
    assert taken["two", True] == taken["held", False] == 0 != taken["held", True]
    # Six standard deviations of a fair coin.
    heads, tails = taken["one", True], taken["one", False]
    assert abs(heads - tails) < 6 * (heads + tails) ** 0.5 and heads and tails
    assert "held: nothing helps 40 of 40 questions" in said
    with pytest.raises(InputError, match=r"unanswerable\.one = 2 must be a share"):
        Mix(train={"one": "x"}, unanswerable={"one": 2})


@pytest.mark.slow
def test_the_same_seed_gives_the_same_policy_also_after_a_stop(ran, tmp_path):
    before = policy_fingerprint(ran["sft"] / "model")
    again = Stages(tmp_path / "place")
    for name in ("mix", "label"):
        again(name)
    stages = again.stages | {"sft": replace(again.stages["sft"], steps=100)}

    class Once(watched_training.Stopping):
        """Stops after the first checkpoint, as a signal would."""

        def __call__(self, step):
            return step == 60

        def interrupt(self):
            raise KeyboardInterrupt

    original = watched_training.Stopping
    watched_training.Stopping = Once
    try:
        with pytest.raises(KeyboardInterrupt):
            run_stage(Context(again.run, stages, "sft"), program_of("sft", stages["sft"]).run)
    finally:
        watched_training.Stopping = original
    assert not (again["sft"] / "model").exists()
    assert run_stage(Context(again.run, stages, "sft"), program_of("sft", stages["sft"]).run)
    assert policy_fingerprint(again["sft"] / "model") == before


def test_rollouts_are_rewarded_by_the_needed_passages(ran):
    rollouts = read_rollouts(ran["rollout"] / "rollouts.jsonl")
    by_id = {q.id: q for q in read_questions(ran["label"] / "train.jsonl")}
    assert len(rollouts) == 40
    assert len({r.policy for r in rollouts}) == 1
    for rollout in rollouts:
        question = by_id[rollout.id]
        assert sum(t.count for t in rollout.trajectories) == 6
        for t in rollout.trajectories:
            chosen = {question.passages[i - 1].id for i in t.list}
            needed = set(question.gold or ())
            both = len(chosen & needed)
            f1 = 2 * both / (len(chosen) + len(needed)) if chosen or needed else 1.0
            assert t.reward == pytest.approx(f1)
            assert len(t.logps) == len(t.list) + 1
            assert t.logps == t.reference_logps
    figures = [line for _, line in read_jsonl(ran["feedback"] / "metrics.jsonl")]
    assert np.isfinite([line["loss"] for line in figures]).all()


@pytest.mark.slow  # compiles or waits for long; others of its kind are fast
@pytest.mark.parametrize("part", ["frozen", "last", "lora"])
def test_parts_of_the_encoder_are_trained_and_the_others_stay(ran, part):
    trained = TrainedEncoder(part=part, layers=1, rank=2)
    ran("sft", steps=2, encoder=replace(ran.stages["sft"].encoder, trained=trained))
    before = read_encoder_policy(ran.place / "cross").encoder_params
    after = read_encoder_policy(ran["sft"] / "model").encoder_params
    moved = {
        name: bool((np.asarray(after["layers"][name]) != before["layers"][name]).any())
        for name in ("qkv", "up_bias")
    }
    assert (
        moved
        == {
            "frozen": {"qkv": False, "up_bias": False},
            "last": {"qkv": True, "up_bias": True},
            "lora": {"qkv": True, "up_bias": False},
        }[part]
    )
    np.testing.assert_array_equal(after["tokens"], before["tokens"])
    assert (np.asarray(after["layers"]["qkv"][0]) == before["layers"]["qkv"][0]).all() == (
        part != "lora"
    )


@pytest.mark.slow
def test_preferences_read_references_and_refuse_those_of_others(ran):
    ran("sft")
    assert ran("feedback", reranker=DPO, steps=2)
    figures = [line for _, line in read_jsonl(ran["feedback"] / "metrics.jsonl")]
    assert figures[0]["loss"] == pytest.approx(np.log(2), abs=1e-3)
    with pytest.raises(InputError, match="no encoder policy"):
        ran("feedback", reranker=DPO, reference=str(ran.place / "cross"))
    lines = (ran["rollout"] / "rollouts.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    kept = ran.place / "other.jsonl"
    kept.write_text("\n".join([json.dumps(first | {"prompt": "00"}), *lines[1:]]) + "\n")
    with pytest.raises(InputError, match="of other candidates"):
        ran("feedback", rollouts=str(kept), reranker=DPO)
    kept.write_text("\n".join([json.dumps(first | {"reference": "00"}), *lines[1:]]) + "\n")
    with pytest.raises(InputError, match="of other weights"):
        ran("feedback", rollouts=str(kept), reranker=DPO)


@pytest.mark.slow  # three stages more
def test_references_are_computed_anew_and_for_lists_from_elsewhere(ran):
    sampled = read_rollouts(ran["rollout"] / "rollouts.jsonl")
    again = read_rollouts(ran["reference"] / "rollouts.jsonl")
    for one, other in zip(sampled, again, strict=True):
        assert replace(one, trajectories=()) == replace(other, trajectories=())
        for t, u in zip(one.trajectories, other.trajectories, strict=True):
            assert (t.list, t.reward) == (u.list, u.reward)
            np.testing.assert_allclose(u.logps, t.logps, atol=1e-5)
            np.testing.assert_allclose(u.reference_logps, t.reference_logps, atol=1e-5)
    # Needed passages against others, which no policy sampled, become pairs to learn from.
    with pytest.raises(InputError, match="unknown tokenizer"):
        ran("feedback", rollouts="{run}/contrast/rollouts.jsonl", steps=1, reranker=DPO)
    assert ran("reference", rollouts="{run}/contrast/rollouts.jsonl", policy="")
    assert ran("feedback", rollouts="{run}/reference/rollouts.jsonl", steps=1, reranker=DPO)
    figures = [line for _, line in read_jsonl(ran["feedback"] / "metrics.jsonl")]
    assert figures[0]["loss"] == pytest.approx(np.log(2), abs=1e-3)
    for name in ("reference", "feedback"):  # as the others found them
        assert ran(name)
    with pytest.raises(InputError, match="answers is set"):
        ran("reference", answers=True)


def test_reranked_files_hold_the_lists(ran):
    lines = [line for _, line in read_jsonl(ran["rerank"] / "evaluation.jsonl")]
    assert len(lines) == 40
    for line in lines:
        assert line["calls"] == 1
        assert line["shown"] == 5
        assert line["chosen"] == [line["ctxs"][i - 1]["id"] for i in line["list"]]


@pytest.mark.parametrize(
    ("stage", "fields", "message"),
    [
        ("sft", {"shuffled": 0.5}, "their order changes nothing"),
        ("rollout", {"reward": RewardWeights(set_f1=1.0)}, "'em' judges an answer"),
        ("rollout", {"answers": True}, "answers is set"),
        ("mix", {"train": {}}, "name at least one set"),
    ],
)
def test_what_an_encoder_policy_has_no_use_for_is_refused(ran, stage, fields, message):
    with pytest.raises(InputError, match=message):
        ran(stage, **fields)


def test_configurations_that_say_two_things_are_refused():
    sft = {"policy": "encoder", "init": "x"}
    with pytest.raises(InputError, match="begins with a cross-encoder"):
        Sft(policy="encoder")
    with pytest.raises(InputError, match="an encoder policy writes none"):
        Sft(**sft, reranker=Stream(objectives=Objectives(prompt_nll=PromptNll(weight=1.0))))
    sets = Stream(objectives=Objectives(set_nll=SetNll(weight=1.0)))
    with pytest.raises(InputError, match="which an encoder policy computes and a language model"):
        Sft(init="x", reranker=sets)
    assert Sft(**sft, reranker=sets).reranker.objectives.reads("sets") == ["set_nll"]
    with pytest.raises(InputError, match=r"reranker\.batch must not be 0"):
        Sft(**sft, reranker=Stream(batch=0))
    with pytest.raises(InputError, match="of an encoder it is none or full"):
        Sft(**sft, model=DecoderConfig(remat="dots"))
    with pytest.raises(InputError, match="computes vectors once"):
        EncoderTraining(reencode=8, trained=TrainedEncoder(part="frozen"))
    with pytest.raises(InputError, match="rate = 0"):
        EncoderTraining(rate=0)
    for made in (Evaluate, SampleRollouts):
        with pytest.raises(InputError, match="'bfloat16' is of a reader, and none is named"):
            made(reader_dtype="bfloat16")
    with pytest.raises(InputError, match="negatives = -1 must not be negative"):
        EncoderTraining(negatives=-1)
    with pytest.raises(InputError, match="'four' is none of the sets one"):
        Mix(train={"one": "x"}, limits={"four": 3})


@pytest.mark.slow  # five stages
def test_a_calibrated_policy_reaches_its_target_and_is_used_wherever_lists_are_made(ran, capsys):
    place = ran["calibrate"] / "model"
    found = read_calibration(place)
    assert found is not None
    assert found.target == {"mean_k": 1.5}
    assert found.reached["mean_k"] == pytest.approx(1.5, abs=1 / 40)
    assert found.bias.empty == 0 != found.bias.stop
    assert policy_fingerprint(place) == policy_fingerprint(ran["feedback"] / "model")
    assert read_calibration(ran["feedback"] / "model") is None
    assert read_calibration(ran["export"] / "model") == found
    development = ran.place / "run" / "label" / "development.jsonl"
    ran("rerank", model="{run}/export/model", questions=("{run}/label/development.jsonl",))
    assert f"model: {found}" in capsys.readouterr().err
    lines = [line for _, line in read_jsonl(ran["rerank"] / "development.jsonl")]
    assert np.mean([len(line["list"]) for line in lines]) == found.reached["mean_k"]
    reranker = Reranker(ran["export"] / "model")
    assert reranker.calibration == found
    for question, line in zip(read_questions(development), lines, strict=True):
        ranked = reranker.rank(question.text, [p.text for p in question.passages])
        assert [row["corpus_id"] + 1 for row in ranked] == line["list"]
    # The same curve from the calibrated policy and the one it was: only where it stands differs.
    models = {"as it is": "{run}/feedback/model", "calibrated": "{run}/calibrate/model"}
    ran("evaluate", models=models, curve=CurveConfig(points=3), shuffled=False)
    said = capsys.readouterr().err
    assert "set_f1 (percent) against mean_k" in said
    curves = {c["system"]: c for c in read_json(ran["evaluate"] / "curves.json")}
    assert curves["as it is"]["mean_k"] != []
    assert curves["as it is"]["area"] > curves["threshold"]["area"] > 0
    assert {"fixed-k", "largest-gap"} < set(curves)
    scores = read_json(ran["evaluate"] / "scores.json")
    assert scores["calibrated"]["k"]["mean"] != scores["as it is"]["k"]["mean"]


def test_a_policy_travels_as_a_package_in_eight_bits(ran, monkeypatch, tmp_path):
    card = tmp_path / "card.md"
    card.write_text("## Data\n\nGenerated; no license is needed.\n")
    package = PackageConfig("small_lists", "1.2.0", "Apache-2.0", str(card))
    assert ran("export", package=package, model="{run}/calibrate/model")
    place = ran["export"] / "package"
    inside = place / "small_lists" / "model"
    assert not (inside / "model.safetensors").exists()
    whole = (ran["export"] / "model" / "model.safetensors").stat().st_size
    assert (inside / "model.int8.safetensors").stat().st_size < 0.6 * whole
    page = (place / "README.md").read_text()
    assert 'Reranker("package:small_lists")' in page and page.endswith("no license is needed.\n")
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    packed, trained = Reranker("package:small_lists"), Reranker(ran["export"] / "model")
    assert packed.calibration == trained.calibration is not None
    alike = 0
    for question in read_questions(ran["mix"] / "evaluation.jsonl"):
        texts = [p.text for p in question.passages]
        alike += packed.rank(question.text, texts) == trained.rank(question.text, texts) or [
            row["corpus_id"] for row in packed.rank(question.text, texts)
        ] == [row["corpus_id"] for row in trained.rank(question.text, texts)]
    assert alike >= 38
    # The package's own directory is a model, too.
    assert policy_fingerprint(model_directory(inside)) == policy_fingerprint(
        model_directory("package:small_lists")
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "Big-Name"}, "no name of a Python package"),
        ({"name": "mine", "version": "one"}, "no version of a Python package"),
        ({"name": "mine"}, r"package\.license: what is given away needs a license"),
        ({"name": "mine", "license": "MIT"}, r"package\.card: what is given away needs a page"),
    ],
)
def test_packages_that_cannot_be_given_away_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        PackageConfig(**fields)


def reader_model(ran):
    """A small language model that answers."""
    words = [*WORDS, *COMPACT_WORDS, "[UNK]", "one", "two", "held", *map(str, range(160))]
    model = ran.place / "reader" / "model"
    if not model.exists():
        save_small_model(ran.place / "reader", words, 5)
    return model


def test_a_reader_answers_from_each_list_once(ran, monkeypatch):
    model = reader_model(ran)
    asked: list[tuple[str, tuple[int, ...]]] = []
    answers = PolicySampler.try_answers

    def heard(self, pairs):
        asked.extend((question.id, tuple(chosen)) for question, chosen in pairs)
        return answers(self, pairs)

    monkeypatch.setattr(PolicySampler, "try_answers", heard)
    prompts = replace(ran.run.prompts, style="compact", answer_prompt_tokens=96, answer_tokens=3)
    ran("evaluate", reader=str(model), prompts=prompts, batch=8)
    lines = [line for _, line in read_jsonl(ran["evaluate"] / "predictions.jsonl")]
    wanted = {(line["id"], tuple(line["list"])) for line in lines}
    assert len(asked) == len(wanted) < len(lines)
    assert set(asked) == wanted
    assert all("em" in line or line["answer"] is not None for line in lines)
    by_list = {(line["id"], tuple(line["list"])): line["answer"] for line in lines}
    assert all(by_list[line["id"], tuple(line["list"])] == line["answer"] for line in lines)
    # Alone, the same model answers the same.
    questions = {q.id: q for q in read_questions(ran["mix"] / "evaluation.jsonl")}
    policy = load_policy(model, make_mesh(devices=jax.devices()[:1]), prompts, "float32")
    sampler = PolicySampler(policy, prompts, 8, 0, EngineConfig())
    some = list(by_list)[::7]
    found = answers(sampler, [(questions[name], chosen) for name, chosen in some])
    assert list(found) == [by_list[one] for one in some]


@pytest.mark.slow  # a rollout more
def test_a_reader_writes_no_answers_where_the_reward_judges_none(ran, monkeypatch, capsys):
    """DRO's rollouts: how likely the reader finds the references, in the reader's own type."""
    model = reader_model(ran)
    monkeypatch.setattr(PolicySampler, "try_answers", lambda *given: pytest.fail("asked"))
    prompts = replace(ran.run.prompts, style="compact", answer_prompt_tokens=96, answer_tokens=3)
    likely = RewardWeights(em=0.0, passages=0.0, likelihood=1.0)
    ran("rollout", reader=str(model), prompts=prompts, reward=likely, limit=12, batch=8,
        reader_dtype="bfloat16", model="{run}/sft/model")  # fmt: skip
    assert "no term of the reward judges an answer" in capsys.readouterr().err
    questions = {q.id: q for q in read_questions(ran["label"] / "train.jsonl")}
    mesh = make_mesh(devices=jax.devices()[:1])
    exact, rounded = (
        gold_likelihood(PolicySampler(load_policy(model, mesh, prompts, dtype), prompts, 8, 0))
        for dtype in ("float32", "bfloat16")
    )
    apart = 0.0
    rollouts = read_rollouts(ran["rollout"] / "rollouts.jsonl")
    assert len(rollouts) == 12
    for rollout in rollouts:
        pairs = [(questions[rollout.id], t.list) for t in rollout.trajectories]
        for t, own, other in zip(rollout.trajectories, rounded(pairs), exact(pairs), strict=True):
            assert not t.answer
            assert t.reward == t.terms["likelihood"] == pytest.approx(own, rel=0.2)
            apart = max(apart, abs(t.reward - other) / other)
    assert apart > 1e-4  # two batches of float32 are within 1e-5


def test_a_calibration_without_a_target_or_beyond_reach_is_refused(ran):
    with pytest.raises(InputError, match="no target; set one of"):
        ran("calibrate", target=CalibrationTarget())
    with pytest.raises(InputError, match="mean_k = 4 is beyond what a bias reaches"):
        ran("calibrate", target=CalibrationTarget(mean_k=4))
    with pytest.raises(InputError, match="name a language model as 'reader'"):
        ran("calibrate", target=CalibrationTarget(tokens=40))
    with pytest.raises(InputError, match="mean_k and quality are set; a policy has one target"):
        CalibrationTarget(mean_k=1, quality="set_f1")


@pytest.mark.slow  # compiles or waits for long; others of its kind are fast
def test_rounds_go_on_from_each_other_and_the_best_is_kept(ran, monkeypatch, capsys):
    stage = Rounds(rounds=3, figure="set_f1", questions="{run}/label/development.jsonl", patience=9)
    stages = ran.stages | {"rounds": stage}

    def run(**fields):
        own = stages | {"rounds": replace(stage, **fields)}
        context = Context(ran.run, own, "rounds")
        return run_stage(context, rounds.run)

    real = rounds.measure

    def killed(context, stage, parts, number, model):
        if number == 2:
            raise KeyboardInterrupt
        return real(context, stage, parts, number, model)

    with monkeypatch.context() as patch:
        patch.setattr(rounds, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    statuses = {one.name: one for one in run_status(str(ran.place / "run"))[1]}
    assert statuses["rounds"].state == "unfinished"
    assert statuses["feedback_2"].state == "done"
    assert "set_f1 by round 0: " in statuses["rounds"].reason
    capsys.readouterr()
    assert run()
    said = capsys.readouterr().err
    assert "[feedback_2] done already" in said and "[rollout_3] done already" not in said
    # Round 2 sampled from what round 1 made, and learned from that.
    first, second = (policy_fingerprint(ran[n] / "model") for n in ("feedback", "feedback_2"))
    assert len({first, second, policy_fingerprint(ran["feedback_3"] / "model")}) == 3
    for rollout in read_rollouts(ran["rollout_2"] / "rollouts.jsonl"):
        assert rollout.policy == rollout.reference == first
    inputs = read_json(ran["feedback_3"] / "run.json")["inputs"]
    assert inputs["rollouts"]["path"].endswith("rollout_3/rollouts.jsonl")
    assert inputs["init"]["path"].endswith("feedback_2/model")
    assert read_json(ran["feedback_3"] / "run.json")["seed"] == ran.run.seed + 2
    record = read_json(ran["rounds"] / "rounds.json")
    figures = [row["figure"] for row in record["rounds"]]
    assert len(figures) == 4
    assert figures[record["best"]] == max(figures)
    steps = [line for _, line in read_jsonl(ran["rounds"] / "metrics.jsonl")]
    assert [line["set_f1"] for line in steps] == figures[1:]
    assert all(line["k"] > 0 and line["best"] >= line["set_f1"] for line in steps)
    best = "sft" if not record["best"] else f"feedback_{record['best']}".replace("_1", "")
    assert policy_fingerprint(ran["rounds"] / "model") == policy_fingerprint(ran[best] / "model")
    # Another patience is another stage; its parts stand, and only as many are looked at.
    assert run(patience=1, gain=1.0)
    record = read_json(ran["rounds"] / "rounds.json")
    assert [row["round"] for row in record["rounds"]] == [0, 1]
    assert policy_fingerprint(ran["rounds"] / "model") == policy_fingerprint(ran["sft"] / "model")


def test_rounds_that_would_repeat_the_first_are_refused(ran):
    def of(**fields):
        return rounds.of_round(ran.stages, Rounds(**fields), 2)

    assert of()["feedback_2"].init == "{run}/feedback/model"
    anchored = of(references="first")
    assert anchored["rollout_2"].reference == anchored["feedback_2"].reference == "{run}/sft/model"
    assert anchored["rollout_2"].model == "{run}/feedback/model"
    with pytest.raises(InputError, match=r"begins with begin = '\{run\}/other/model'"):
        of(begin="{run}/other/model")
    stages = ran.stages | {"rollout_2": ran.stages["rollout"]}
    with pytest.raises(InputError, match="needs the name 'rollout_2', which a stage has"):
        rounds.of_round(stages, Rounds(), 2)
    context = Context(ran.run, ran.stages | {"rounds": Rounds(repeat=("rolout",))}, "rounds")
    with pytest.raises(InputError, match=r"repeat names 'rolout', .* \(did you mean 'rollout'\?\)"):
        rounds.run(context, context.config)


@pytest.mark.slow  # compiles or waits for long; others of its kind are fast
def test_feedback_learns_from_credit_by_step(ran):
    credited = replace(ran.stages["rollout"], credit="gains", limit=16)
    objectives = Objectives(nll=NONE, rloo=Rloo(weight=1.0, credit=1.0))
    learned = replace(
        ran.stages["feedback"], steps=2, rollouts="{run}/credited/rollouts.jsonl",
        reranker=Stream(batch=8, objectives=objectives),
    )  # fmt: skip
    stages = ran.stages | {"credited": credited, "learned": learned}

    def run(name, **fields):
        own = stages | {name: replace(stages[name], **fields)}
        return run_stage(Context(ran.run, own, name), program_of(name, own[name]).run)

    assert run("credited")
    for rollout in read_rollouts(ran["credited"] / "rollouts.jsonl"):
        assert rollout.credit == "gains"
        for t in rollout.trajectories:
            # Set F1 of the empty list is 1 where nothing is needed, else 0.
            assert t.reward - sum(t.credit) == pytest.approx(round(t.reward - sum(t.credit)))
    assert run("learned")
    lines = [line for _, line in read_jsonl(ran["learned"] / "metrics.jsonl")]
    assert lines[-1]["reranker/rloo/kl_to_sampler"] > 0
    with pytest.raises(InputError, match="no credit by step, which 'rloo' reads"):
        run("learned", rollouts="{run}/rollout/rollouts.jsonl")
