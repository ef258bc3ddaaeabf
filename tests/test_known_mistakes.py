"""Mistakes of the code released with DynamicRAG, by number: each test fails on the old behavior.

A check is a function of the behavior under test. It holds for ours, and ``fails_on`` shows that it
does not for the old behavior, written down here from its description. What stands in further tests
of a room is named beside each.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rouge import Rouge

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.predictions import Prediction
from dynarag_jax.evaluation.scoring import score_system
from dynarag_jax.evaluation.summary import summarize
from dynarag_jax.files import JsonlAppender, read_jsonl
from dynarag_jax.metrics import answers, benchmarks, released
from dynarag_jax.metrics.intervals import bootstrap
from dynarag_jax.metrics.rouge import rouge_l_kilt
from dynarag_jax.prompts import (
    answer_messages,
    format_list,
    format_passage,
    parse_list_leniently,
    rerank_messages,
)
from dynarag_jax.records import Passage, Question
from dynarag_jax.retrieval.relevance import above
from dynarag_jax.rewards import terms
from dynarag_jax.rewards.verdicts import parse_verdict
from dynarag_jax.rollout_records import Answers, Rollout, Trajectory
from dynarag_jax.sampling.windows import Seen, Windows, plan
from dynarag_jax.training.pairs import PairCounts, all_pairs, pairs_of

ROOT = Path(__file__).parents[1]


def fails_on(old: Callable, check: Callable[[Callable], None]) -> None:
    """The check does not hold for the old behavior, whether by a wrong result or a crash."""
    with pytest.raises((AssertionError, TypeError, IndexError, ValueError)):
        check(old)


# ---------------------------------------------------------------------------- 1: answer metrics


def test_1_match_does_not_pay_for_an_empty_prediction():
    """More: metrics/test_answers, metrics/test_official."""

    def check(match):
        assert match("", ["Paris"]) == 0
        assert match("Par", ["Paris"]) == 0
        assert match("It is Paris.", ["Paris"]) == 1

    check(answers.containment)
    fails_on(released.match, check)


def test_1_f1_counts_words():
    def check(f1):
        assert f1("new york city", ["york"]) == pytest.approx(0.5)
        assert f1("abcd", ["abxx"]) == 0

    check(answers.f1)
    fails_on(released.zipped_f1, check)


def test_1_accuracy_reads_the_label():
    def check(accuracy):
        assert accuracy("SAYS so", ["SUPPORTS"]) == 0
        assert accuracy("The claim is supported.", ["SUPPORTS"]) == 1

    check(answers.label_accuracy)
    fails_on(released.first_letter, check)


# ---------------------------------------------------------------------------- 2: aggregation


def test_2_failed_and_unanswerable_questions_stay_in_the_denominator():
    """More: eval/test_scoring."""
    questions = [Question("a", "?", ("x",)), Question("b", "?", ("x",)), Question("c", "?", ())]
    predictions: dict[str, str | None] = {"a": "x", "b": None, "c": "x"}

    def ours(questions, predictions):
        answered = {
            q.id: Prediction(q.id, answer=text)
            if (text := predictions[q.id]) is not None
            else Prediction(q.id, failed="its prompt is too long")
            for q in questions
        }
        (summary,) = summarize(score_system(questions, "ours", answered, dataset="nq"))
        return summary.figures["em"].mean

    def released_mean(questions, predictions):
        scores = [released.score_prediction(q, predictions[q.id], "nq", "em") for q in questions]
        kept = [score for score in scores if score is not None]
        return sum(kept) / len(kept)

    def check(mean):
        assert mean(questions, predictions) == pytest.approx(1 / 3)

    check(ours)
    fails_on(released_mean, check)


def test_2_rouge_is_given_prediction_and_reference_in_their_places():
    """More: metrics/test_rouge, metrics/test_answers."""
    # What is taken where several common subsequences are longest depends on the order.
    rng = random.Random(3)
    texts = [" ".join(rng.choices("abcde.", k=12)) for _ in range(60)]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))

    def check(rouge):
        for prediction, reference in pairs:
            theirs = Rouge(metrics=["rouge-l"]).get_scores(prediction, reference)[0]
            assert rouge(prediction, [reference]) == pytest.approx(theirs["rouge-l"]["f"], abs=1e-9)

    check(rouge_l_kilt)
    fails_on(released.swapped_rouge, check)


def test_2_the_short_answers_of_an_ambiguous_question_are_kept_apart():
    pairs = [["1969"], ["Neil Armstrong"], ["Apollo 11"]]
    question = Question("q", "?", ("long",), extra={"qa_pairs": pairs})

    def check(score):
        assert score(question, "1969") == pytest.approx(1 / 3)

    check(lambda q, p: benchmarks.score_prediction(q, p, "asqa")["str_em"])
    fails_on(lambda q, p: released.score_prediction(q, p, "asqa", "match"), check)


# ---------------------------------------------------------------------------- 3: rewards


def test_3_the_length_reward_reads_one_answer():
    """More: rewards/test_rewards."""
    eight = ["Paris", "in Paris", *["It is the city of Paris"] * 6]

    def check(lengths):
        found = lengths(eight)
        assert found == [1 / 2, 1 / 3, *[1 / 7] * 6]

    check(lambda all_answers: [terms.length(answer) for answer in all_answers])
    fails_on(lambda all_answers: [1 / (1 + len(all_answers)) for _ in all_answers], check)


def test_3_the_judges_text_becomes_a_number_or_nothing():
    """More: rewards/test_judge, rewards/test_scorer."""

    def check(read):
        assert read("92.5") == pytest.approx(0.925)
        assert read("Score: 8/10") == pytest.approx(0.8)
        assert read("A good answer.") is None

    check(lambda text: parse_verdict(text).score)
    fails_on(lambda text: text.replace(".", "").strip(), check)
    fails_on(lambda text: float(text.replace(".", "")), check)


def test_3_exact_match_in_the_reward_is_no_containment():
    def check(em):
        assert em("a", ["Paris"]) == em("It is Paris", ["Paris"]) == 0
        assert em("the PARIS!", ["Paris"]) == 1

    def old(prediction, references):
        a, b = prediction.lower(), references[0].lower()
        return float(a in b or b in a)

    check(terms.em)
    fails_on(old, check)


# ---------------------------------------------------------------------------- 4: behavior cloning


def test_4_the_experts_list_is_imitated_in_its_order_and_once():
    """More: training/test_examples, retrieval/test_relevance."""
    scores = [0.1, 0.95, 0.2, 0.9, 0.99, 0.3]

    def check(targets):
        assert targets(scores) == [(5, 2, 4)]

    def old(scores):
        good = [i for i, s in enumerate(scores, 1) if s > 0.8]
        bad = [i for i, s in enumerate(scores, 1) if s <= 0.8]
        rng = random.Random(0)
        return [
            tuple(rng.sample(good, len(good)) + rng.sample(bad, max(0, length - len(good))))
            for length in range(len(good), len(scores) + 1)
        ]

    check(lambda scores: [above(scores, 0.8, 15)])
    fails_on(old, check)


# ---------------------------------------------------------------------------- 5: ids


def test_5_ids_that_choose_nothing_are_dropped_alone_and_counted():
    """More: test_prompts, sampling/test_server; lists sampled here cannot hold such ids at all."""
    passages = ["first", "second", "third"]

    def check(read):
        assert read("[0]") == []  # not the last passage
        assert read("[2], [9]") == ["second"]  # the question is kept
        assert read("[2], [2], [1]") == ["second", "first"]
        assert read("1, 3") == ["first", "third"]  # not None

    def old(text):
        return [passages[int(i) - 1] for i in re.findall(r"\[(\d+)\]", text)]

    check(lambda text: [passages[i - 1] for i in parse_list_leniently(text, 3)[0]])
    fails_on(old, check)
    assert parse_list_leniently("[2], [9], [2], [0]", 3)[1].out_of_range == 2
    assert parse_list_leniently("1, 3", 3)[1].unbracketed == 2


# ---------------------------------------------------------------------------- 6: windows


def test_6_a_windows_ids_name_the_windows_passages():
    """More: sampling/test_windows."""

    def rerank(view):
        """Knows that passage 95 is needed, and no other."""
        return [view.index(95) + 1] if 95 in view else []

    def ours(n):
        going = plan(n, Windows(40, 0, 15))
        ask = next(going)
        try:
            while True:
                ask = going.send([Seen(rerank(view), len(view)) for view in ask])
        except StopIteration as stop:
            return stop.value

    def old(n):
        found: list[int] = []
        for start in range(0, n, 40):
            view = list(range(1, n + 1))[start : start + 40]
            found += [i for i in rerank(view) if i not in found]  # the window's ids
        return tuple(found)

    def check(windowed):
        assert windowed(100) == (95,)

    check(ours)
    fails_on(old, check)


# ---------------------------------------------------------------------------- 7: prompts


def test_7_one_prompt_in_training_and_inference_with_the_ids_of_the_instruction():
    """More: test_prompts, training/test_examples."""
    passages = tuple(Passage(f"p{i}", f"text {i}\n\nmore", f"Title {i}") for i in range(3))
    question = Question("q", "who?", ("x",), passages=passages)

    def check(listing):
        lines = listing(passages)
        for number, line in enumerate(lines, 1):
            assert line.startswith(format_list([number]))  # as the list will write it
            assert "\n" not in line

    check(lambda ps: [format_passage(i, p) for i, p in enumerate(ps, 1)])
    fails_on(
        lambda ps: [f"{i}. Topic: {p.title}\nContent: {p.text}" for i, p in enumerate(ps, 1)], check
    )
    for style in ("instruct", "compact"):
        said = rerank_messages(question, passages, style)[-1]["content"]
        assert all(f"[{i}]" in said for i in (1, 2, 3))
        # The generator's passages are numbered as they are shown, by the same words.
        chosen = answer_messages(question, passages[::-1], style)[-1]["content"]
        assert chosen.index("text 2") < chosen.index("text 1") < chosen.index("text 0")
    # Training, sampling and evaluation make prompts by one class; nobody else has the words.
    sources = {p: p.read_text() for p in (ROOT / "dynarag_jax").rglob("*.py")}
    callers = [p.name for p, text in sources.items() if re.search(r"\b_instruct\(", text)]
    assert callers == ["prompts.py"]


# ---------------------------------------------------------------------------- 8: pairs


def pair_case(count: int) -> tuple[dict[str, Question], list[Rollout]]:
    questions, rollouts = {}, []
    for i in range(count):
        name = f"q{i}"
        passages = tuple(Passage(f"{name}/{j}", "text") for j in range(2))
        questions[name] = Question(name, "?", (f"gold {i}",), passages=passages)
        # Every third question's answers are all alike.
        texts = (f"gold {i}", "same" if i % 3 else f"gold {i}")
        lists = tuple(Trajectory((j + 1,), answer=t, reward=1.0 - j) for j, t in enumerate(texts))
        judged = Answers((1,), "p", texts, (1.0, 0.0), ((), ()))
        rollouts.append(Rollout(name, 2, lists, "p", "r", answers=judged))
    return questions, rollouts


def old_pairs(questions, rollouts):
    """The first records feed the generator only; what was rejected last stays in a variable."""
    lists, given, rejected = [], [], "?"
    for rollout in rollouts:
        gold = questions[rollout.id].answers[0]
        for t in rollout.trajectories:
            if t.answer != gold:
                rejected = t.answer
                break
        record = (rollout.id, gold, rejected)
        (given if len(given) < 4 else lists).append(record)
    return lists, given


def test_8_pairs_come_from_their_own_record_and_never_prefer_a_text_to_itself():
    """More: training/test_pairs, training/test_preferences."""
    questions, rollouts = pair_case(9)

    def ours(questions, rollouts):
        made = []
        for kind in ("list", "answer"):
            pairs, _ = all_pairs(questions, rollouts, kind)
            made.append([(p.id, p.chosen, p.rejected) for p in pairs])
        return tuple(made)

    def check(make):
        lists, given = make(questions, rollouts)
        assert [i for i, *_ in lists] == [r.id for r in rollouts]  # wherever they stand
        assert [i for i, *_ in given] == [r.id for n, r in enumerate(rollouts) if n % 3]
        for name, chosen, rejected in [*lists, *given]:
            assert chosen != rejected
            own = next(r for r in rollouts if r.id == name)
            said = {format_list(t.list) for t in own.trajectories}
            assert {chosen, rejected} <= said | {t.answer for t in own.trajectories}
        again = make(questions, rollouts[::-1])
        assert [sorted(x) for x in again] == [sorted(lists), sorted(given)]

    check(ours)
    fails_on(old_pairs, check)
    counts = PairCounts()
    assert not pairs_of(questions["q0"], rollouts[0], "answer", counts) and counts.same == 1


# ---------------------------------------------------------------------------- 9: programs


def test_9_the_dataset_is_named_and_not_guessed_from_a_path():
    def check(dataset_of):
        with pytest.raises(InputError, match="no metrics for dataset"):
            dataset_of("runs/search/predictions.jsonl")

    def guessed(path):
        return next(name for name in ("fever", "nq", "eli5", "arc", "asqa") if name in path)

    check(benchmarks.metrics_of)
    with pytest.raises(pytest.fail.Exception):
        check(guessed)


def test_9_results_are_written_as_they_come_and_seeds_are_explicit(tmp_path):
    """More: train/test_kills, sampling/test_rollouts, metrics/test_intervals."""
    rows = JsonlAppender(tmp_path / "out.jsonl")
    rows.append({"id": "1"})
    assert [row["id"] for _, row in read_jsonl(tmp_path / "out.jsonl")] == ["1"]  # before the end
    rows.close()
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1)


def test_9_no_debugger_waits_in_the_code():
    for room in ("dynarag_jax", "train", "eval"):
        for path in (ROOT / room).rglob("*.py"):
            assert not re.search(r"set_trace\(|breakpoint\(\)|import i?pdb", path.read_text()), path
