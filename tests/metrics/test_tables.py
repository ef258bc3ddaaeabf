"""Tables: the denominator, types, comparisons, and the forms read back."""

import json

import numpy as np
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.metrics import released, tables
from dynarag_jax.metrics.intervals import bootstrap, paired_bootstrap
from dynarag_jax.metrics.tables import ALL, Scored, compare, tabulate


def rows(values, dataset="nq", **more):
    return [Scored(f"q{i}", {"em": v, "k": i % 3}, dataset, **more) for i, v in enumerate(values)]


def test_failed_questions_stay_in_the_denominator_and_are_counted():
    """The released code drops them: [1, 1, failed, failed] is 100 % there and 50 % here."""
    scored = [
        *rows([1.0, 1.0]),
        Scored("q2", dataset="nq", failed=True),
        Scored("q3", {"em": 1.0, "k": 4}, "nq", failed=True),  # a failure's score is not read
    ]
    (row,) = tabulate("ours", scored)
    assert (row.questions, row.failed) == (4, 2)
    assert row.figures["em"] == bootstrap([1, 1, 0, 0])
    assert row.figures["k"].mean == 5 / 4  # what was chosen before the answer failed counts
    assert row.spread["k"] == pytest.approx(np.std([0, 1, 0, 4]))


def test_rows_per_dataset_and_type():
    scored = [
        Scored("1", {"em": 1.0}, "hotpotqa", "bridge"),
        Scored("2", {"em": 0.0}, "hotpotqa", "comparison"),
        Scored("3", {"em": 0.0}, "hotpotqa", "bridge"),
        Scored("1", {"rouge_l": 0.5}, "eli5"),
    ]
    found = {(r.dataset, r.type): r for r in tabulate("ours", scored)}
    assert list(found) == [
        ("hotpotqa", ALL), ("hotpotqa", "bridge"), ("hotpotqa", "comparison"), ("eli5", ALL),
    ]  # fmt: skip
    assert found["hotpotqa", ALL].figures["em"].mean == pytest.approx(1 / 3)
    assert found["hotpotqa", "bridge"].figures["em"].mean == 0.5
    assert set(found["eli5", ALL].figures) == {"rouge_l"}


def test_wrong_rows_are_named():
    with pytest.raises(InputError, match="question 'q0' of 'nq' is scored twice"):
        tabulate("ours", rows([1.0]) * 2)
    with pytest.raises(InputError, match=r"ours: question 'x' .* has no 'em'"):
        tabulate("ours", [*rows([1.0]), Scored("x", {"k": 1}, "nq")])
    with pytest.raises(InputError, match="no questions"):
        tabulate("ours", [])


def test_comparison_is_paired_whatever_the_order():
    rng = np.random.default_rng(0)
    a, b = (rng.random(60) < 0.7).astype(float), (rng.random(60) < 0.5).astype(float)
    (found,) = compare("a", rows(a), "b", rows(b)[::-1])
    assert found.figures["em"] == paired_bootstrap(a, b)
    assert found.questions == 60
    with pytest.raises(InputError, match=r"'q59' of dataset 'nq' is in a and not in b \(1 of 60"):
        compare("a", rows(a), "b", rows(b[:59]))
    with pytest.raises(InputError, match="in b and not in a"):
        compare("a", rows(a[:50]), "b", rows(b))


def test_a_failure_counts_in_comparisons_too():
    failed = [Scored("q0", dataset="nq", failed=True), *rows([0.0, 1.0])[1:]]
    (found,) = compare("a", rows([1.0, 1.0]), "b", failed)
    assert found.figures["em"].mean == 0.5


def test_markdown_shows_percent_intervals_counts_and_marks():
    text = tables.markdown(tabulate("a|b", rows([1.0, 0.0, 1.0, 1.0])), note=released.MARK)
    assert text.startswith("released-code: wrong on purpose\n\n| system | dataset |")
    assert "| em % | k |" in text
    assert "| a\\|b | nq | all | 4 | 0 | 75.0 [" in text and " 0.8 ± 0.8 [" in text
    differences = tables.markdown_comparison(compare("a", rows([1.0, 1.0]), "b", rows([0.0, 1.0])))
    assert "| a - b | nq | all | em | 2 | +50.0 [" in differences


def test_json_reads_back():
    made = [*tabulate("a", rows([1.0, 0.0])), *compare("a", rows([1.0]), "b", rows([0.0]))]
    table, comparison = json.loads(tables.dumps(made))
    assert table["figures"]["em"]["mean"] == 0.5 and table["failed"] == 0
    assert comparison["figures"]["em"]["p_value"] <= 1


def test_trec_form_reads_back():
    scored = [*rows([1.0, 0.25]), Scored("q 9", dataset="nq", failed=True)]
    found = tables.read_trec(tables.trec("my run", scored))
    assert found["em"] == {"q0": "1.0000", "q1": "0.2500", "q_9": "0.0000", "all": "0.4167"}
    assert (found["num_q"]["all"], found["num_failed"]["all"]) == ("3", "1")
    assert found["runid"]["all"] == "my_run"
    both = tables.read_trec(tables.trec("r", [*scored, *rows([1.0], dataset="squad")]))
    assert both["squad/em"]["all"] == "1.0000" and both["nq/num_q"]["all"] == "3"
    with pytest.raises(InputError, match="line 1: expected metric, question and value"):
        tables.read_trec("em all")
