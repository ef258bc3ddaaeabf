"""eval.answer, eval.score, eval.compare and eval.bench with a real small model."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
from pathlib import Path

import jax
import pytest

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.answering import answer
from dynarag_jax.evaluation.lists import NO_RETRIEVAL, ORACLE
from dynarag_jax.evaluation.reported import COLUMNS
from dynarag_jax.evaluation.scoring import by_benchmark, scored_line
from dynarag_jax.evaluation.tuning import RulesConfig
from dynarag_jax.files import read_json, read_jsonl
from dynarag_jax.launch import program
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.options import load_config
from dynarag_jax.launch.program import run_stage
from dynarag_jax.launch.table import program_of
from dynarag_jax.policy.model import load_policy
from dynarag_jax.records import Passage, question_to_json, read_questions, write_questions
from dynarag_jax.retrieval.relevance import load_scorer, score_questions
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.sharding import make_mesh
from dynarag_jax.stages.answer import Answer
from dynarag_jax.stages.bench import Bench
from dynarag_jax.stages.label import Label
from dynarag_jax.stages.rerank import Rerank
from dynarag_jax.stages.score import Score

from .conftest import IDS, PROMPTS, ask

GREEDY = Sampling(temperature=0.0)


def ran(directory: Path, stage, name: str, fresh: bool = True) -> Path:
    context = Context(Run(directory=str(directory)), {name: stage}, name)
    assert run_stage(context, program_of(name, stage).run) == fresh
    return directory / name


def rows_of(path: Path) -> dict[str, dict]:
    return {row["id"]: row for _, row in read_jsonl(path)}


def cut(path: Path, whole: int) -> list[str]:
    """Cut a file off in the middle of a line, mark its first answer, forget that it was done."""
    lines = path.read_text().splitlines(keepends=True)
    marked = lines[0].replace('"answer": "', '"answer": "kept ', 1)
    path.write_text(marked + "".join(lines[1:whole]) + lines[whole][:20])
    (path.parent / "done.json").unlink()
    return [marked, *lines[1:]]


@pytest.fixture(scope="module")
def sampler(model):
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    return PolicySampler(load_policy(model, mesh, PROMPTS), PROMPTS, 8, seed=0)


QUESTIONS = [ask(i, passages) for i, passages in enumerate([5, 3, 9, 1, 5, 6])]


@pytest.mark.slow
def test_answers_from_every_kind_of_list(model, scorer, sampler, tmp_path):
    path = tmp_path / "asked.jsonl"
    write_questions(path, QUESTIONS)
    stage = Rerank(model=str(model), questions=(str(path),), prompts=PROMPTS, batch=8)
    lists = ran(tmp_path, stage, "rerank")
    reranked = rows_of(lists / "asked.jsonl")
    scores = [s for _, s in score_questions(load_scorer(scorer), QUESTIONS)]
    expected = {
        "given": [tuple(reranked[q.id]["list"]) for q in QUESTIONS],
        "none": [() for _ in QUESTIONS],
        "top-k": [tuple(range(1, min(2, len(q.passages)) + 1)) for q in QUESTIONS],
        "static": [
            tuple(sorted(range(1, len(s) + 1), key=lambda i: -s[i - 1])[:2]) for s in scores
        ],
        "oracle": [q.gold_list() for q in QUESTIONS],
    }
    names = {"given": "ours", "none": NO_RETRIEVAL, "top-k": "top-2", "oracle": ORACLE}
    for kind, chosen in expected.items():
        stage = Answer(
            model=str(model),
            questions=(str(lists / "asked.jsonl" if kind == "given" else path),),
            lists=kind,  # type: ignore[arg-type]
            k=2,
            scorer=str(scorer) if kind == "static" else "",
            system="ours" if kind == "given" else "",
            prompts=PROMPTS,
            batch=8,
        )
        name = f"answer_{kind.replace('-', '_')}"
        found = rows_of(ran(tmp_path, stage, name) / "asked.jsonl")
        by_hand = sampler.answers([(q, tuple(c)) for q, c in zip(QUESTIONS, chosen, strict=True)])
        for q, ids, text in zip(QUESTIONS, chosen, by_hand, strict=True):
            row = found[q.id]
            assert row["list"] == list(ids) and row["k"] == len(ids)
            assert row["chosen"] == [q.passages[i - 1].id for i in ids]
            assert row["answer"] == text and "failed" not in row
            # "[1]" is one token here, and each passage has three words.
            assert row["tokens"] == sum(1 + len(q.passages[i - 1].text.split()) for i in ids)
            assert row["system"] == names.get(kind, "static reranker, top-2")
    assert len({tuple(map(tuple, c)) for c in expected.values()}) == 5


def test_answering_continues_and_keeps_what_fails(model, tmp_path):
    questions = [*QUESTIONS, ask(8, text="what " * 80), ask(9, passages=0)]
    path = tmp_path / "asked.jsonl"
    write_questions(path, questions)
    stage = Answer(
        model=str(model), questions=(str(path),), lists="top-k", k=1, prompts=PROMPTS, batch=8
    )
    output = ran(tmp_path, stage, "answer") / "asked.jsonl"
    first = rows_of(output)
    assert set(first) == {q.id for q in questions}
    assert "takes more than 64 tokens" in first["q8"]["failed"] and first["q8"]["answer"] == ""
    assert first["q9"]["list"] == []
    kept = cut(output, 3)
    ran(tmp_path, stage, "answer")
    again = output.read_text().splitlines(keepends=True)
    assert again[:3] == kept[:3]
    assert rows_of(output) == first | {"q0": json.loads(kept[0])}
    ran(tmp_path, stage, "answer", fresh=False)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lists": "given"}, "question 'q0' has no field 'list'; make the lists with eval.rerank"),
        ({"lists": "oracle"}, "question 'q0' does not say which passages are needed"),
        ({"questions": ()}, "name at least one file in 'questions'"),
        ({"questions": ("asked.jsonl", "x/asked.jsonl")}, "would both be written to asked.jsonl"),
    ],
)
def test_lists_that_cannot_be_made(fields, message, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_questions("asked.jsonl", [dataclasses.replace(ask(0), gold=None)])
    stage = Answer(
        **{"model": str(model), "questions": ("asked.jsonl",), "prompts": PROMPTS} | fields
    )
    with pytest.raises(InputError, match=message):
        ran(tmp_path, stage, "answer")


def test_settings_of_answers_and_benches():
    for wrong, message in [
        ({"lists": "static"}, "static lists need a scorer"),
        ({"scorer": "x"}, "no others take one"),
        ({"k": 0}, "k = 0 must be at least 1"),
    ]:
        with pytest.raises(InputError, match=message):
            Answer(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"'hotpot'.*did you mean 'hotpotqa'"):
        Bench(datasets={"hotpot": "x.jsonl"})
    with pytest.raises(InputError, match="cutoffs = 0"):
        Score(cutoffs=(0,))


# ---------------------------------------------------------------------------- score and compare


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    questions = [dataclasses.replace(q, extra={"dataset": "nq"}) for q in QUESTIONS]
    write_questions("q.jsonl", questions)
    right = [{"id": q.id, "answer": q.answers[0], "list": [1]} for q in questions]
    Path("right.jsonl").write_text("".join(json.dumps(r) + "\n" for r in right))
    wrong = [r | {"answer": "nowhere"} for r in right[:4]]
    Path("wrong.jsonl").write_text("".join(json.dumps(r) + "\n" for r in wrong))
    return tmp_path


def said(name, capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        program.main(name, list(arguments))
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_scoring_plain_files(files, capsys):
    given = ("--questions", "q.jsonl", "--predictions", "right.jsonl", "worse=wrong.jsonl")
    code, out, _ = said("score", capsys, *given)
    assert code == 0 and "| right | 6 | 0 | 100.0 [100.0, 100.0] |" in out
    assert "| worse | 6 | 2 (2 missing) | 0.0 [0.0, 0.0] |" in out
    place = files / "runs/score/score"
    found = read_json(place / "scores.json")
    assert [s["system"] for s in found["summaries"]] == ["right", "worse"]
    assert found["summaries"][0]["figures"]["em"]["n"] == 6
    assert len(list(read_jsonl(place / "rows.jsonl"))) == 12
    assert {p.name for p in (place / "trec").iterdir()} == {
        "right.run", "worse.run", "judgments.qrels", "right.values", "worse.values",
    }  # fmt: skip
    values = [line.split("\t") for line in (place / "trec/worse.values").read_text().splitlines()]
    assert ["num_q", "all", "6"] in values and ["num_failed", "all", "2"] in values
    assert ["em", "all", "0.0000"] in values and sum(name == "em" for name, *_ in values) == 7
    assert (place / "run.json").exists() and (place / "scores.md").read_text() == out
    # Nothing has changed: the same table, at once. Another protocol is another scoring.
    code, again, err = said("score", capsys, *given)
    assert code == 0 and again == out and "done already" in err
    code, out, _ = said("score", capsys, *given, "--protocol", "released-code")
    assert code == 0 and out.startswith("**released-code: wrong on purpose.**")


def test_comparing_plain_files(files, capsys):
    given = ("--questions", "q.jsonl", "--predictions", "wrong.jsonl", "right.jsonl")
    code, out, _ = said("compare", capsys, *given)
    # Of six differences of the same sign, two of 2^6 assignments are as far out.
    assert code == 0 and "| right − wrong | all | 6 | EM | +100.0 [+100.0, +100.0] | 0.031 |" in out
    found = read_json(files / "runs/compare/compare/compare.json")["compared"][0]
    assert (found["a"], found["b"], found["wins"], found["losses"]) == ("right", "wrong", 6, 0)
    code, _, err = said("compare", capsys, *given, "--baseline", "rigth")
    assert code == 2 and "did you mean 'right'" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "or its options without one"),
        (["--questions", "q.jsonl"], "name at least one file with --predictions"),
        (["--predictions", "right.jsonl"], "name at least one file with --questions"),
        (["--questions", "q.jsonl", "--predictions", "no.jsonl"], "no.jsonl: no such file"),
        (
            ["--questions", "right.jsonl", "--predictions", "q.jsonl"],
            "right.jsonl:1: of no known format",
        ),
        (["--questions", "q.jsonl", "--prediction", "x"], "Perhaps you meant: --predictions"),
        (["--questions", "q.jsonl", "--predictions", "x", "--dataset", "NQ"], "for dataset 'NQ'"),
        (["nowhere.py", "--dataset", "nq"], "nowhere.py: no such config file"),
    ],
)
def test_mistakes_are_one_line(arguments, message, files, capsys):
    code, _, err = said("score", capsys, *arguments)
    assert code == 2 and message in " ".join(re.sub("│|-{9,}", " ", err).split())
    assert "Traceback" not in err


# ---------------------------------------------------------------------------- bench


def benched(model: Path, judge: Path, **fields) -> Bench:
    given = {
        "datasets": {"nq": "nq.jsonl", "eli5": "eli5.jsonl"},
        "models": {"first": str(model), "second": str(model)},
        "top_k": (2,),
        "scorer": str(judge),
        "retriever": "by hand",
        "prompts": PROMPTS,
        "answer_tokens": {"eli5": 5},
        "sampling": GREEDY,
        "batch": 8,
    }
    return Bench(**(given | fields))  # type: ignore[arg-type]


@pytest.mark.slow  # a whole benchmark
def test_bench_from_end_to_end(model, scorer, sampler, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    long = dataclasses.replace(ask(7, 2), passages=(Passage("long", "ada " * 100),), gold=())
    nq = [*QUESTIONS, long]
    eli5 = [dataclasses.replace(q, task="paragraph") for q in QUESTIONS[:3]]
    write_questions("nq.jsonl", nq)
    write_questions("eli5.jsonl", eli5)
    for dataset in ("nq", "eli5"):
        write_questions(f"dev-{dataset}.jsonl", [ask(i) for i in range(20, 26)])
    tuned = RulesConfig(("threshold", "fixed-k"), "dev-{dataset}.jsonl")
    config = benched(model, scorer, rules=tuned)
    place = ran(tmp_path, config, "bench")
    page = capsys.readouterr().out
    systems = ["first", "second", NO_RETRIEVAL, "top-2", "static reranker, top-2", ORACLE]
    systems += ["score threshold, tuned", "best fixed k, tuned"]
    found: dict[str, dict[str, dict]] = {}
    for _, row in read_jsonl(place / "predictions-nq.jsonl"):
        found.setdefault(row["system"], {})[row["id"]] = row
    assert list(found) == systems and all(len(rows) == 7 for rows in found.values())
    # The rules choose by the scorer's scores, as they were tuned on other questions.
    judged = {row["id"]: row["scores"] for _, row in read_jsonl(place / "scores-nq.jsonl")}
    threshold = read_json(place / "rules.json")["nq"][0]
    assert threshold["system"] == systems[6] and threshold["questions"] == 6
    for name, row in found[systems[6]].items():
        kept = [s for s in judged[name] if s >= threshold["parameters"]["threshold"]]
        assert [judged[name][i - 1] for i in row["list"]] == sorted(kept, reverse=True)
    # What could not be reranked is there, and says why.
    assert "longer than the limit" in found["first"]["q7"]["failed"]
    assert {k: v for k, v in found["first"]["q2"].items() if k != "system"} == {
        k: v for k, v in found["second"]["q2"].items() if k != "system"
    }
    small = [q for q in QUESTIONS if len(q.passages) <= IDS]
    by_hand = [found.lists[0] for found in sampler.lists(small, GREEDY)]
    assert [tuple(found["first"][q.id]["list"]) for q in small] == by_hand
    answers = sampler.answers(list(zip(small, by_hand, strict=True)))
    assert [found["first"][q.id]["answer"] for q in small] == answers
    longest = [len(r["answer"].split()) for _, r in read_jsonl(place / "predictions-eli5.jsonl")]
    assert max(longest) > PROMPTS.answer_tokens  # ELI5's answers are longer
    scores = read_json(place / "scores.json")["summaries"]
    assert [(s["dataset"], s["system"]) for s in scores] == [
        (d, s) for d in ("nq", "eli5") for s in systems
    ]
    first = scores[0]
    assert first["questions"] == 7 and first["states"]["failed"] == 1
    assert first["figures"]["em"]["n"] == 7 and scores[8]["headline"] == "rouge_l"
    # The paper's rows stand beside ours, and what differs is named.
    assert "| DynamicRAG-8B | paper | 48.4 | 24.6 |" in page
    assert "| vanilla RAG | paper | 36.4 | 24.0 |" in page
    assert page.index("| top-2 | this run |") < page.index("| vanilla RAG | paper |")
    assert "| candidates shown to the reranker | 45 | 1 to 9 | differs |" in page
    assert "| questions of nq | 3,610 | 7 | differs |" in page
    assert "| retriever | Contriever" in page and "| by hand | differs |" in page
    assert (place / "trec/nq/static-reranker-top-2.run").exists()
    assert (place / "bench.md").read_text() == page

    # Cut off: what stands is not made again, and nothing is lost.
    kept = cut(place / "predictions-nq.jsonl", 16)
    ran(tmp_path, config, "bench")
    again = (place / "predictions-nq.jsonl").read_text().splitlines(keepends=True)
    assert again[:16] == kept[:16] and sorted(again) == sorted(kept)
    ran(tmp_path, config, "bench", fresh=False)


def test_a_bench_without_scorer_or_gold_and_wrong_ones(model, scorer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_questions("nq.jsonl", [dataclasses.replace(q, gold=None) for q in QUESTIONS[:2]])
    few = {"datasets": {"nq": "nq.jsonl"}, "models": {"m": str(model)}, "limit": 1, "scorer": ""}
    place = ran(tmp_path, benched(model, scorer, **few), "bench")
    systems = [row["system"] for _, row in read_jsonl(place / "predictions-nq.jsonl")]
    assert systems == ["m", NO_RETRIEVAL, "top-2"]
    for wrong, message in [
        ({"datasets": {}}, "name at least one dataset"),
        ({"models": {}}, "name at least one model"),
        ({"models": {"top-2": str(model)}}, "'top-2' is a baseline's name"),
        ({"datasets": {"nq": "none.jsonl"}}, r"none\.jsonl: no such file"),
    ]:
        with pytest.raises(InputError, match=message):
            ran(tmp_path, benched(model, scorer, **(few | wrong)), "bench")
    bare = question_to_json(dataclasses.replace(ask(1), passages=(), gold=None))
    Path("nq.jsonl").write_text(json.dumps(bare) + "\n")
    with pytest.raises(InputError, match=r"nq\.jsonl: question 'q1' has no passages"):
        ran(tmp_path, benched(model, scorer, **few), "bench")


def test_the_config_of_the_paper_takes_overrides():
    given = ["--bench.datasets.nq", "a.jsonl", "--bench.only", "nq", "--bench.limit", "9"]
    more = ["--bench.models.DynamicRAG", "m"]
    run, stages = load_config("configs/bench.py", [*given, *more])
    assert stages["bench"].chosen() == {"nq": "a.jsonl"} and stages["bench"].limit == 9
    assert stages["bench"].models == {"DynamicRAG": "m"} and run.directory == "runs/bench"
    assert set(load_config("configs/bench.py")[1]["bench"].chosen()) == set(COLUMNS)
    with pytest.raises(
        InputError, match=r"only = 'hotpot' is none .* \(did you mean 'hotpotqa'\?\)"
    ):
        load_config("configs/bench.py", ["--bench.only", "hotpot"])


def test_an_evaluation_keeps_a_question_whose_prompt_is_too_long(model):
    """It counts 0 and says why; the others are what they were."""
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    tight = dataclasses.replace(PROMPTS, answer_prompt_tokens=32)
    sampler = PolicySampler(load_policy(model, mesh, tight), tight, 8, seed=0)
    long = ask(3, text="what " * 40)
    rows = [
        scored_line(found, question, "top-1", by_benchmark())
        for question, found in answer(sampler, [QUESTIONS[0], long], [(2,), (1,)])
    ]
    assert [r["id"] for r in rows] == ["q0", "q3"] and "failed" not in rows[0]
    assert list(rows[0]) == [
        "id", "system", "type", "list", "chosen", "answer", "k", "tokens",
        "score", "set_f1", "needed",
    ]  # fmt: skip
    assert rows[0]["set_f1"] == pytest.approx(2 / 3) and rows[0]["needed"] == 2
    assert "takes more than 32 tokens" in rows[1]["failed"]
    assert (rows[1]["answer"], rows[1]["score"], rows[1]["k"]) == ("", 0.0, 1)


def test_results_of_a_packed_file_are_named_without_the_packing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    question = dataclasses.replace(ask(0), gold=(ask(0).passages[0].id,))
    write_questions("asked.jsonl", [question])
    Path("asked.jsonl.gz").write_bytes(gzip.compress(Path("asked.jsonl").read_bytes()))
    ran(tmp_path, Label(questions=("asked.jsonl.gz",)), "label")
    (labeled,) = read_questions(tmp_path / "label" / "asked.jsonl")
    assert labeled.expert == (1,)
    both = Label(questions=("asked.jsonl.gz", "asked.jsonl"))
    with pytest.raises(InputError, match=r"asked\.jsonl\.gz and asked\.jsonl would both"):
        ran(tmp_path, both, "label")
