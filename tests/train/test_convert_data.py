"""The programs that convert questions and prepare benchmarks, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynarag_jax.files import read_jsonl
from dynarag_jax.launch.program import main
from dynarag_jax.records import read_questions

ROW = {"id": "1", "question": "q", "answers": ["a"], "ctxs": [{"title": "t", "text": "x"}]}


def run(program: str, *arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main(program, [str(a) for a in arguments])
    return int(stop.value.code or 0)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("in.jsonl").write_text(json.dumps(ROW) + "\n")
    Path("qrels.txt").write_text("q1 0 d1 1\n")
    Path("c.jsonl").write_text('{"id": "d0", "text": "t"}\n')
    Path("run.txt").write_text("q1 Q0 d1 1 0.5 bm25\n")
    return tmp_path


def refused(capsys, program, *arguments: object) -> str:
    before = set(Path().rglob("*"))
    assert run(program, *arguments) == 2
    assert set(Path().rglob("*")) == before, "something was left"
    return complaint(capsys)


def complaint(capsys) -> str:
    """Our one line, or what tyro says in its box."""
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if "For full helptext" in said:
        return " ".join(said.replace("│", " ").split())
    last = said.splitlines()[-1]
    assert last.startswith("error: "), said
    return last.removeprefix("error: ")


def test_it_converts_and_says_what_it_did(place, capsys):
    assert run("convert_data", "in.jsonl", "out.jsonl.gz") == 0
    assert "1 questions of format contexts, 1 lines in out.jsonl.gz" in capsys.readouterr().err
    assert run("convert_data", "out.jsonl.gz", "f.jsonl", "--to", "flashrag") == 0
    assert "the format flashrag does not hold the passages of 1" in capsys.readouterr().err
    assert json.loads(Path("f.jsonl").read_text())["golden_answers"] == ["a"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl", "o"], "nowhere.jsonl: no such file"),
        (["in.jsonl"], "name the target: SOURCE TARGET"),
        (["in.jsonl", "o", "--to", "dpr2"], "'dpr2' is no format that can be written (did you"),
        (["in.jsonl", "o", "--format", "squat"], "no format 'squat' (did you mean 'squad'?)"),
        (["in.jsonl", "o", "--fromat", "dpr"], "Unrecognized options: --fromat, dpr"),
        (["in.jsonl", "o", "--dataset", "hotpott"], "no benchmark 'hotpott' (did you mean"),
        (["in.jsonl", "o", "--reject-limit", "x"], "x"),
        (["in.jsonl", "o", "--repeats", "keep"], "keep"),
        (["in.jsonl", "o", "--split", "test"], "--split is for directories"),
        (["in.jsonl", "o", "--run", "r"], "--run needs --corpus"),
        (["in.jsonl", "o", "--corpus", "r"], "--corpus is read with --run"),
        (["in.jsonl", "in.jsonl"], "is the source, too"),
        (["in.jsonl", "in.jsonl/o"], "in.jsonl/o: cannot be written"),
        (["run.txt", "o"], "a run of TREC's? Give it as --run beside the questions"),
        (["in.jsonl", "o", "--qrels", "none.tsv"], "none.tsv: no such file"),
        (["in.jsonl", "o", "--qrels", "qrels.txt"], "judges none of these questions"),
        (["in.jsonl", "o", "--run", "run.txt", "--corpus", "c.jsonl"], "lacks 1 passages, 'd1'"),
        ([".", "o"], "neither a prepared dataset"),
        (["in.jsonl", "."], "is a directory"),
        (["in.jsonl", "o", "--format", "asqa"], "in.jsonl:1: field 'qa_pairs' is missing"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(arguments, message, place, capsys):
    assert message in refused(capsys, "convert_data", *arguments)


def test_a_target_that_exists_is_kept(place, capsys):
    Path("out.jsonl").write_text("mine\n")
    assert "--overwrite replaces it" in refused(capsys, "convert_data", "in.jsonl", "out.jsonl")
    assert Path("out.jsonl").read_text() == "mine\n"
    assert run("convert_data", "in.jsonl", "out.jsonl", "--overwrite") == 0
    assert len(read_questions("out.jsonl")) == 1


def test_bad_records_are_set_aside_up_to_the_limit(place, capsys):
    bad = [ROW | {"id": str(i), "answers": i if i > 2 else ["a"]} for i in range(1, 5)]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bad))
    said = refused(capsys, "convert_data", "in.jsonl", "o.jsonl", "--format", "contexts")
    assert said.startswith("in.jsonl:3: field 'answers'") and "found 3" in said
    assert run("convert_data", "in.jsonl", "o.jsonl", "--reject-limit", "2") == 0
    assert "2 set aside in o.jsonl.rejects.jsonl" in capsys.readouterr().err
    rejects = list(read_jsonl("o.jsonl.rejects.jsonl"))
    assert [row["line"] for _, row in rejects] == [3, 4] and "answers" in rejects[0][1]["reason"]
    assert len(read_questions("o.jsonl")) == 2
    # Above the limit: exit 2, the bad records are on file, the target is not written.
    assert run("convert_data", "in.jsonl", "p.jsonl", "--reject-limit", "1") == 2
    assert "bad record 2" in capsys.readouterr().err
    assert Path("p.jsonl.rejects.jsonl").exists() and not Path("p.jsonl").exists()


def test_prepare_from_files_and_back(place, capsys):
    Path("dev.jsonl").write_text(json.dumps({"question": "w", "answer": "a"}) + "\n")
    sources = ["--from", "train=in.jsonl", "validation=dev.jsonl"]
    assert run("prepare", "nq", *sources, "--directory", "d") == 0
    assert "d/nq/1.0.0: train 1, validation 1 questions" in capsys.readouterr().err
    said = refused(capsys, "convert_data", "d/nq", "o.jsonl")
    assert "has the splits train, validation; choose one with --split" in said
    assert run("convert_data", "d/nq", "o.jsonl", "--split", "train") == 0
    (question,) = read_questions("o.jsonl")
    assert question.extra == {"dataset": "nq"} and question.passages[0].text == "x"
    assert "is prepared already" in refused(capsys, "prepare", "nq", *sources, "--directory", "d")
    assert run("prepare", "mine", "--from", "in.jsonl", "--task", "label", "--directory", "d") == 0
    assert run("convert_data", "d/mine", "m.jsonl") == 0
    assert read_questions("m.jsonl")[0].task == "label"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nqq"], "no benchmark 'nqq' (did you mean 'nq'?)"),
        (["--directory", "d"], "name the benchmark"),
        (["nq", "--from", "none.jsonl"], "none.jsonl: no such file"),
        (["nq"], "get its files elsewhere and name them with --from"),
        (["mine", "--from", "in.jsonl"], "no benchmark 'mine'"),
        (["nq", "--from"], "--from needs the files to read"),
        (["nq", "--from", "in.jsonl", "--directory", "in.jsonl/d"], "cannot be written"),
        (["hotpotqa", "--from", "in.jsonl", "--format", "hotpotqa", "--task", "x"], "x"),
        (["asqa", "--from", "in.jsonl", "--format", "asqa"], "in.jsonl:1: field 'qa_pairs' is mis"),
    ],
)
def test_mistakes_of_prepare(arguments, message, place, capsys):
    before = set(Path().rglob("*"))
    assert run("prepare", *arguments) == 2
    assert message in complaint(capsys)
    assert set(Path().rglob("*")) == before
