"""Every file of real questions converts with no reject, and its counts are those it came with."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dynarag_jax.data.conversion import ConvertData, convert_data
from dynarag_jax.data.formats import FORMATS, detect
from dynarag_jax.data.mapping import FieldPaths
from dynarag_jax.data.reading import QuestionAccount, Reading, numbered_questions
from dynarag_jax.data.values import with_content_ids
from dynarag_jax.errors import InputError
from dynarag_jax.metrics.benchmarks import short_answers
from dynarag_jax.metrics.matching import has_answer
from dynarag_jax.records import Question
from dynarag_jax.records import read_questions as read_ours
from dynarag_jax.retrieval.trec import read_qrels

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no files of real questions in {DATA}")

# file: format, questions, passages, questions with known gold, questions without answers
FILES = {
    "litm-nq-20docs.jsonl.gz": ("contexts", 441, 441 * 20, 441, 0),
    "litm-nq-open-oracle.jsonl.gz": ("contexts", 2655, 2655, 2655, 0),
    "NQ-open.dev.jsonl.gz": ("nq_open", 3610, 0, 0, 0),
    "squad-dev-v1.1.json.gz": ("squad", 10570, 10570, 10570, 0),
    "qed-nq-train-early.jsonl.gz": ("qed", 7167, 7167, 7167, 20),
    "qed-nq-dev.jsonl.gz": ("qed", 1355, 1355, 1355, 0),
    "hotpot-dev500-queries.jsonl.gz": ("titles", 500, 0, 0, 0),
    "hotpot-dev-distractor.first100.jsonl.gz": ("hotpotqa", 100, 992, 100, 0),
    "2wiki.migres200.jsonl.gz": ("2wikimultihopqa", 200, 1634, 164, 0),
    "musique.migres200.jsonl.gz": ("musique", 200, 4000, 200, 0),
    "foolmetwice-dev.jsonl.gz": ("foolmetwice", 1169, 12044, 1169, 0),
    "fever-symmetric-dev.jsonl.gz": ("fever_symmetric", 708, 708, 708, 0),
    "asqa-dev.500.jsonl.gz": ("asqa", 500, 0, 0, 0),
    "clapnq-dev-answerable.jsonl.gz": ("clapnq", 300, 300, 300, 0),
    "clapnq-dev-unanswerable.jsonl.gz": ("clapnq", 300, 300, 300, 300),
    "scifact-claims-train.jsonl.gz": ("scifact", 809, 0, 505, 0),
    "scifact-claims-validation.jsonl.gz": ("scifact", 300, 0, 188, 0),
    "scifact-claims-test.jsonl.gz": ("scifact", 300, 0, 0, 300),
    "hotpot-distractor-new.jsonl.gz": ("hotpotqa", 1889, 18822, 1889, 0),
    "hotpot-distractor-of-shared-dev500.jsonl.gz": ("hotpotqa", 174, 1732, 174, 0),
    "hotpot-fullwiki-dev.jsonl.gz": ("hotpotqa", 1382, 13722, 1379, 0),
    "2wiki-dev.500.jsonl.gz": ("2wikimultihopqa", 500, 4976, 500, 0),
    "musique-new.jsonl.gz": ("musique", 219, 219 * 20, 207, 9),
    "nq-train-retrieved-top5.1000.jsonl.gz": ("contexts", 1000, 4995, 0, 0),
    "popqa-1000-gold-retrieved.jsonl.gz": ("nq_open", 1000, 0, 0, 0),
    "strategyqa-dev-evidence.jsonl.gz": ("strategyqa", 229, 1004, 229, 0),
}
CORPORA = {"hotpot-dev500-corpus.jsonl.gz", "scifact-corpus.jsonl.gz"}


def read(name: str) -> list[Question]:
    account = QuestionAccount()
    questions = [question for _, question in numbered_questions(DATA / name, Reading(), account)]
    assert not account.rejected and not account.repeats
    return questions


def test_the_list_of_files_is_whole():
    there = {path.name for path in DATA.glob("*.gz")}
    assert there == set(FILES) | CORPORA | {"scifact-qrels.beir-test.txt.gz"}


def one_of_each_format():
    """All files; those of a format that another file has before are slow."""
    formats = [how for how, *_ in FILES.values()]
    for place, name in enumerate(FILES):
        again = formats[place] in formats[:place]
        yield pytest.param(name, marks=[pytest.mark.slow] if again else [])


@pytest.mark.parametrize("name", list(one_of_each_format()))
def test_counts(name, tmp_path):
    kind, questions, passages, gold, unanswered = FILES[name]
    assert detect(DATA / name).name == kind
    target = tmp_path / "questions.jsonl"
    outcome = convert_data(ConvertData(str(DATA / name), str(target)))
    assert (outcome.format, outcome.written) == (kind, questions)
    assert not outcome.account.rejected and not outcome.lost
    # Our own reader, strict, reads what was written, and it is what was read.
    ours = read_ours(target)
    if questions < 2000:
        assert ours == read(name)
    assert sum(len(q.passages) for q in ours) == passages
    assert sum(q.gold is not None for q in ours) == gold
    assert sum(not q.answers for q in ours) == unanswered
    # Of fullwiki and Fool Me Twice some needed passages were not retrieved.
    if kind != "foolmetwice" and "fullwiki" not in name:
        assert all(set(q.gold or ()) <= {p.id for p in q.passages} for q in ours if q.passages)


@pytest.mark.parametrize("name", sorted(CORPORA))
def test_a_corpus_is_called_one(name):
    with pytest.raises(InputError, match="is a corpus of passages, not a file of questions"):
        detect(DATA / name)


def test_lost_in_the_middle():
    questions = read("litm-nq-20docs.jsonl.gz")
    # The needed passage stands first and has no score; no distractor holds the answer.
    assert all(q.gold == (q.passages[0].id,) and q.passages[0].score is None for q in questions)
    assert all(q.extra["has_answer"] == list(q.gold or ()) for q in questions)
    distinct = {p.id for q in questions for p in with_content_ids(q).passages}
    assert len(distinct) == 8743


def test_hotpotqa_and_its_relatives():
    hotpot = read("hotpot-dev-distractor.first100.jsonl.gz")
    assert Counter(len(q.gold or ()) for q in hotpot) == {2: 100}
    first = hotpot[0]
    titles = {p.id: p.title for p in first.passages}
    assert [titles[g] for g in first.gold or ()] == ["Scott Derrickson", "Ed Wood"]
    assert first.answers == ("yes",) and first.type == "comparison"
    assert first.passages[1].text.startswith("Scott Derrickson (born July 16, 1966) is an American")
    assert "screenwriter and producer. He lives" in first.passages[1].text
    for question in read("2wiki.migres200.jsonl.gz"):
        facts = {title for title, _ in question.extra["supporting_facts"]}
        named = {p.title for p in question.passages if p.id in (question.gold or ())}
        assert not question.passages or named == facts
    for question in read("musique.migres200.jsonl.gz"):
        assert len(question.passages) == 20
        hops = int(question.type[0])
        assert len(question.gold or ()) == hops == len(question.extra["question_decomposition"])


def test_hotpot_rankings_over_their_corpus(tmp_path):
    seen = {}
    for name in ("distractor_set", "bm25_pooled_top50"):
        target = tmp_path / f"{name}.jsonl"
        corpus = str(DATA / "hotpot-dev500-corpus.jsonl.gz")
        source = str(DATA / "hotpot-dev500-queries.jsonl.gz")
        convert_data(
            ConvertData(source, str(target), corpus=(corpus,), candidates=f"{name}_titles")
        )
        seen[name] = read_ours(target)
        assert len(seen[name]) == 500
        assert all(len(q.gold or ()) == 2 for q in seen[name])
    assert {len(q.passages) for q in seen["bm25_pooled_top50"]} == {50}
    # The same passage has the same id in every ranking.
    assert all(
        len(set(q.gold or ()) & {p.id for p in q.passages}) == 2 for q in seen["distractor_set"]
    )
    gold = [[q.gold for q in questions] for questions in seen.values()]
    assert all(other == gold[0] for other in gold[1:])


def test_needed_pages_that_were_not_retrieved_are_kept_and_counted():
    account = QuestionAccount()
    path = DATA / "hotpot-fullwiki-dev.jsonl.gz"
    questions = [q for _, q in numbered_questions(path, Reading(), account)]
    # Both needed pages retrieved in 398, one in 772, none in 212 (three of which have no pages).
    there = Counter(len(q.gold_list() or ()) for q in questions)
    assert there == {2: 398, 1: 772, 0: 212}
    assert account.needed == 772 + 212 - 3
    for question in questions:
        if question.gold is not None:
            facts = dict.fromkeys(title for title, _ in question.extra["supporting_facts"])
            titles = {p.id: p.title for p in question.passages}
            named = [titles.get(g, g.removeprefix("title:")) for g in question.gold]
            assert named == list(facts)


def test_passages_that_no_format_knows_are_named_and_read_by_paths():
    account = QuestionAccount()
    path = DATA / "popqa-1000-gold-retrieved.jsonl.gz"
    list(numbered_questions(path, Reading(), account))
    assert set(account.passages.values()) == {
        f"{name}[].text" for name in ("gold", "retrieved_keyword", "retrieved_summary")
    }
    assert account.unread["retrieved_keyword"] == 1000
    paths = FieldPaths(
        question="question", answers="answers", id="id", passages="retrieved_keyword[].text",
        titles="retrieved_keyword[].title", gold="gold[].title", type="prop",
    )  # fmt: skip
    account = QuestionAccount()
    reading = Reading(format="fields", fields=paths)
    mapped = [q for _, q in numbered_questions(path, reading, account)]
    assert len(mapped) == 1000 and {len(q.passages) for q in mapped} <= {4, 5}
    assert all(q.gold and q.answers and q.type for q in mapped)
    assert "retrieved_summary" in account.unread and "retrieved_keyword" not in account.unread


def test_passages_beside_the_answer():
    account = QuestionAccount()
    path = DATA / "nq-train-retrieved-top5.1000.jsonl.gz"
    questions = [q for _, q in numbered_questions(path, Reading(), account)]
    assert account.merged == 5 and not account.unread
    # Counted by another rule, the file came with 710.
    holding = [any(has_answer(p.text, q.answers) for p in q.passages) for q in questions]
    assert sum(holding) == pytest.approx(710, abs=15)


def test_asqa_has_what_str_em_reads():
    questions = read("asqa-dev.500.jsonl.gz")
    for question in questions:
        assert all(short_answers(question)) and question.answers
        assert len(question.extra["disambiguations"]) == len(question.extra["qa_pairs"])
        assert question.task == "paragraph" and question.extra["dataset"] == "asqa"
    # Two annotators each, who in a few cases wrote the same.
    assert Counter(len(q.answers) for q in questions).most_common(1)[0] == (2, 497)
    assert questions[0].extra["qa_pairs"][0] == ["Daei", "Ali Daei"]


def test_labels():
    counts = Counter(a for q in read("foolmetwice-dev.jsonl.gz") for a in q.answers)
    assert set(counts) == {"SUPPORTS", "REFUTES"} and sum(counts.values()) == 1169
    scifact = Counter(a for q in read("scifact-claims-train.jsonl.gz") for a in q.answers)
    assert set(scifact) == {"SUPPORTS", "REFUTES", "NOT ENOUGH INFO"}
    assert scifact["NOT ENOUGH INFO"] == 809 - 505


def test_scifact_judgments(tmp_path):
    qrels = DATA / "scifact-qrels.beir-test.txt.gz"
    source, target = DATA / "scifact-claims-validation.jsonl.gz", tmp_path / "q.jsonl"
    convert_data(ConvertData(str(source), str(target), qrels=str(qrels)))
    questions = read_ours(target)
    assert sum(len(q.gold or ()) for q in questions) == 339
    for question in questions:
        assert set(question.gold or ()) == set(question.extra["cited_doc_ids"])
    assert set(read_qrels(qrels)) == {q.id for q in questions}


def test_every_format_of_these_files_is_in_the_table():
    assert {kind for kind, *_ in FILES.values()} <= set(FORMATS)
