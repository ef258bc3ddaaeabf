"""The command ``dynarag``: its help, its stages, shell completion, from any folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dynarag_jax.launch import cli
from dynarag_jax.launch.table import DIRECTORY, program, program_of, summaries
from dynarag_jax.stages import Sft

ROOT = Path(__file__).resolve().parents[2]


def ended(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_help_lists_every_stage_with_a_line(capsys):
    code, out, _ = ended(capsys, "--help")
    assert code == 0
    names = {path.stem for path in DIRECTORY.glob("*.py")} - {"__init__"}
    assert set(summaries()) == names
    lines = {
        line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines() if line[:2] == "  "
    }
    for name in (*names, *cli.COMMANDS):
        assert len(lines[name]) > 20, name
    for name in names:
        one = program(name)
        assert one.name == name
        assert one.config.__doc__, name


def test_help_needs_neither_jax_nor_a_stage():
    script = (
        "import sys\n"
        "from dynarag_jax.launch import cli\n"
        "cli.usage()\n"
        "print([m for m in ('jax', 'dynarag_jax.stages.sft') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sfft", "c.py"], "no stage 'sfft' (did you mean 'sft'?)"),
        (["--verbose"], "unknown option '--verbose'"),
        (["sft"], "the config file comes first: dynarag sft CONFIG.py"),
        (["run"], "the config file comes first: dynarag run CONFIG.py"),
        (["sft", "nowhere.py"], "nowhere.py: no such config file"),
        (["--completion", "cmd"], "--completion takes bash, zsh, tcsh, found 'cmd'"),
    ],
)
def test_wrong_commands_are_one_line(arguments, message, capsys):
    code, _, err = ended(capsys, *arguments)
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def test_a_stage_goes_by_its_own_name_in_a_config_file(capsys, monkeypatch, tmp_path):
    (tmp_path / "c.py").write_text(
        "from dynarag_jax.config import Run\n"
        "from dynarag_jax.stages import Gather\n"
        f"run = Run({str(tmp_path / 'run')!r})\n"
        "stages = {'first': Gather(source='nowhere.jsonl')}\n"
    )
    code, _, err = ended(capsys, "first", str(tmp_path / "c.py"))
    assert code == 2 and "nowhere.jsonl: no such file ('source' of stage 'first')" in err
    code, out, _ = ended(capsys, "first", str(tmp_path / "c.py"), "--help")
    assert code == 0 and "dynarag first" in out and "--evaluation FLOAT" in out


def test_a_corpus_is_gathered_without_a_config_file(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    passages = [{"id": f"p{i}", "text": f"text {i}"} for i in range(4)]
    rows = [
        {"id": f"q{i}", "question": "who?", "answers": ["a"], "ctxs": passages[i : i + 2]}
        for i in range(3)
    ]
    Path("q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, _, err = ended(capsys, "gather", "--source", "q.jsonl", "--evaluation", "0.34")
    assert code == 0 and "4 passages, 2 + 1 questions in runs/gather/gather" in err
    assert {p.name for p in Path("runs/gather/gather").glob("*.jsonl")} == {
        "corpus.jsonl", "train.jsonl", "evaluation.jsonl"
    }  # fmt: skip


def test_the_earlier_name_of_feedback_is_known():
    assert program("dpo").name == "feedback"
    assert program_of("pretrain", Sft()).name == "sft"


@pytest.mark.slow
def test_completion_is_a_script_that_bash_takes(capsys):
    code, out, _ = ended(capsys, "--completion", "bash")
    assert code == 0
    assert "optimizer.learning_rate" in out and "feedback" in out
    subprocess.run(["bash", "-n"], input=out, text=True, check=True, timeout=60)


def test_config_files_of_earlier_names_still_run():
    import dynarag_jax.records
    import dynarag_jax.rollout_records
    import dynarag_jax.stages

    with pytest.warns(FutureWarning, match="is now Feedback"):
        assert dynarag_jax.stages.Dpo is dynarag_jax.stages.Feedback
    with pytest.raises(AttributeError, match="no attribute 'Dpoo'"):
        _ = dynarag_jax.stages.Dpoo
    assert dynarag_jax.records.read_rollouts is dynarag_jax.rollout_records.read_rollouts
