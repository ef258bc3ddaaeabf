"""Which metrics each benchmark has, and that each follows its own rules."""

import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.metrics import answers, benchmarks
from dynarag_jax.metrics.benchmarks import BENCHMARKS, HEADLINE, headline_of, score_prediction
from dynarag_jax.records import Question


def question(*golds: str, task: str = "short", **extra) -> Question:
    return Question("q1", "?", golds, task=task, extra=extra)  # type: ignore[arg-type]


def test_headlines_are_those_of_the_papers_table():
    assert HEADLINE == {
        "nq": "em",
        "triviaqa": "em",
        "hotpotqa": "em",
        "2wikimultihopqa": "em",
        "asqa": "str_em",
        "fever": "accuracy",
        "eli5": "rouge_l",
        "popqa": "containment",
        "musique": "em",
        "squad": "em",
    }
    assert [headline_of("", t) for t in ("short", "label", "paragraph")] == [
        "em", "accuracy", "rouge_l",
    ]  # fmt: skip


def test_triviaqa_has_its_own_normalizer():
    q = question("rock n roll")
    assert score_prediction(q, "Rock-n-roll", "triviaqa") == {"em": 1, "acc": 1, "f1": 1}
    assert score_prediction(q, "Rock-n-roll", "nq") == {"em": 0, "f1": 0, "containment": 0}
    assert score_prediction(q, "old rock_n_roll`s", "triviaqa")["acc"] == 1


def test_yes_no_rule_belongs_to_the_multihop_benchmarks_alone():
    q = question("no")
    for dataset in ("hotpotqa", "2wikimultihopqa"):
        assert score_prediction(q, "no one", dataset)["f1"] == 0
    for dataset in ("nq", "triviaqa", "musique", "squad", "popqa"):
        assert score_prediction(q, "no one", dataset)["f1"] == pytest.approx(2 / 3)


def test_asqa_reads_its_pairs_and_its_long_answers():
    q = question(
        "Alpha won at home. Beta won away.",
        "It was Alpha.",
        task="paragraph",
        qa_pairs=[["alpha", "A. Team"], ["beta"]],
    )
    found = score_prediction(q, "It was ALPHA.", "asqa")
    assert found == {"str_em": 0.5, "rouge_lsum": 1.0, "str_hit": 0.0}
    assert score_prediction(q, "Alpha, then Beta", "asqa")["str_hit"] == 1
    # Sentences count one by one: their order does not matter, as it would to ROUGE-L.
    turned = score_prediction(q, "Beta won away. Alpha won at home.", "asqa")
    assert turned["rouge_lsum"] == 1 > answers.rouge_l("Beta won. Alpha won.", q.answers)
    objects = question("x", qa_pairs=[{"question": "?", "short_answers": ["alpha"]}])
    assert score_prediction(objects, "alpha", "asqa")["str_em"] == 1


@pytest.mark.parametrize("pairs", [None, [], "alpha", [["a"], "b"], [[1]], [{"answers": ["a"]}]])
def test_asqa_without_short_answers_is_refused(pairs):
    with pytest.raises(InputError, match=r"question 'q1': .*qa_pairs"):
        score_prediction(question("x", qa_pairs=pairs), "x", "asqa")


def test_fever_and_other_labels():
    q = question("REFUTES", task="label")
    assert score_prediction(q, "It is refuted.", "fever") == {"accuracy": 1}
    assert score_prediction(q, "It is refuted.") == {"accuracy": 1}
    assert score_prediction(q, "maybe", "fever") == {"accuracy": 0}
    assert score_prediction(question("B", task="label"), "b.") == {"accuracy": 1}
    with pytest.raises(InputError, match="question 'q1': reference label 'B'"):
        score_prediction(question("B", task="label"), "b", "fever")


def test_blank_predictions_score_zero_everywhere():
    for dataset in (*BENCHMARKS, ""):
        q = question("SUPPORTS", qa_pairs=[["a"], [""]])
        for blank in ("", " \n"):
            assert set(score_prediction(q, blank, dataset).values()) == {0.0}, dataset


def test_the_task_stands_in_for_a_dataset():
    assert list(score_prediction(question("a b"), "a b")) == ["em", "f1", "containment"]
    assert score_prediction(question("a cat", task="paragraph"), "the cats")["rouge_l"] == 0.5


def test_unknown_datasets_are_named():
    with pytest.raises(InputError, match=r"'hotpot'.*did you mean 'hotpotqa'"):
        benchmarks.metrics_of("hotpot")
