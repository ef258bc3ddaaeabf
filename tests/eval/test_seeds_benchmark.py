"""benchmarks.seeds: stages shared by seeds, and its table against figures by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import seeds
from dynarag_jax.records import Passage, Question
from tests.small_quickstart import STAGES, WORLD, needs_encoder


def asked(name: str, number: int) -> Question:
    passages = tuple(Passage(f"p{i}", "", f"text {i}") for i in range(3))
    return Question(
        f"{name}/{number}", f"what {number}", ("a",), passages=passages, gold=("p0",),
        extra={"dataset": name},
    )  # fmt: skip


def rows(questions, f1, k=1):
    return {
        f"{q.id} {q.text}": {"set_f1": value, "k": k, "answer": None}
        for q, value in zip(questions, f1, strict=True)
    }


def test_the_table_counts_sets_alike_and_questions_by_their_mean_over_seeds():
    """Set a has three questions and b one: (mean of a + mean of b) / 2 of each seed."""
    questions = [*(asked("a", i) for i in range(3)), asked("b", 3)]
    one = {"ours": rows(questions, (1, 1, 1, 0)), "top-1": rows(questions, (0, 1, 0, 0.5))}
    two = {"ours": rows(questions, (1, 0, 0.5, 1)), "top-1": rows(questions, (0, 1, 0, 0.5))}
    one["oracle passages"] = two["oracle passages"] = rows(questions, (1, 1, 1, 1))
    text = seeds.table([one, two], questions, ["ours"])
    (ours,) = [line for line in text.splitlines() if line.startswith("| ours")]
    # Seed one: (1 + 0) / 2; seed two: (0.5 + 1) / 2; questions' means: a 0.75, b 0.5.
    assert "| 62.5 [" in ours
    assert "(50.0 to 75.0)" in ours
    assert "| 75.0 | 50.0 | 1.00 |" in ours
    # The oracle is no system to be better than: top-1 has (1/3 + 1/2) / 2.
    assert "ours less top-1: +20.8 [" in text


def test_lines_that_lack_a_figure_have_no_row():
    questions = [asked("a", 0), asked("a", 1)]
    one = {"ours": rows(questions, (1, 1)), "old": rows(questions, (1, None))}
    text = seeds.table([one], questions, ["ours"])
    assert "| ours |" in text
    assert "| old |" not in text


def test_a_shared_stage_that_the_config_lacks_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["seeds", "configs/dro.py", "--shared", "mix_up"])
    with pytest.raises(SystemExit):
        seeds.main()
    assert "--shared mix_up: configs/dro.py has" in capsys.readouterr().err


@pytest.mark.slow  # programs of their own
@needs_encoder
def test_seeds_share_stages_and_differ_in_what_is_trained(tmp_path, monkeypatch, capsys):
    config = Path("configs/quickstart.py").resolve()
    monkeypatch.setattr(
        sys, "argv",
        ["seeds", str(config), "--seeds", "0", "1", "--directory", str(tmp_path), "--at-once", "2",
         "--shared", "facts", "retrieve", "clean", "pretrain", "lists", "reading", "label",
         "--", *STAGES, *WORLD],
    )  # fmt: skip
    seeds.main()
    assert (tmp_path / "0" / "reading").is_symlink()
    for seed in ("0", "1"):
        assert (tmp_path / seed / "sft" / "model" / "config.json").is_file()
    weights = [(tmp_path / s / "sft" / "model" / "model.safetensors").read_bytes() for s in "01"]
    assert weights[0] != weights[1]
    assert "evaluate, seeds 0, 1:" in capsys.readouterr().out
