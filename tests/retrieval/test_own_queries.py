"""The search as the library composes it: queries that are passages, and those that find nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynarag_jax.data.reading import read_questions
from dynarag_jax.launch.console import Console
from dynarag_jax.records import Passage, Question
from dynarag_jax.retrieval.corpora import CorpusAccount, CorpusConfig, read_corpus
from dynarag_jax.retrieval.index import IndexConfig
from dynarag_jax.retrieval.scores import retrieval_scores
from dynarag_jax.retrieval.search import SearchConfig, Searched, fill_questions, searches
from dynarag_jax.retrieval.store import write_store

# ArguAna's layout: each query is a passage, the other side of the argument is to be found.
CORPUS = [
    Passage("a-pro01a", "Zoos protect rare animals from hunters and give them food.",
            "Zoos protect rare animals"),
    Passage("a-pro01b", "Rare animals suffer in zoos and food is poor.", "Zoos harm rare animals"),
    Passage("a-con02a", "Taxes fund roads and schools for all towns.", "Taxes fund roads"),
    Passage("a-con02b", "Taxes slow growth of towns and schools suffer.", "Taxes slow growth"),
    Passage("a-empty", "", ""),
]  # fmt: skip
ASKED = [Question(p.id, p.text) for p in (CORPUS[0], CORPUS[2])]
JUDGED = {"a-pro01a": {"a-pro01b": 1.0}, "a-con02a": {"a-con02b": 1.0, "a-missing": 1.0}}


def searched(place: Path, corpus, asked, **config) -> list[Question]:
    store = write_store(place / "passages", iter(corpus), CorpusAccount())
    what = Searched(store, place, {"q": Path("q.jsonl")}, {"q": asked})
    how = SearchConfig(**({"source": "bm25", "passages": 3} | config))
    search, together = searches(Console("test"), how, what, 0)
    fill_questions(Console("test"), place, store, "q.jsonl", asked, search["q"], 2, together)
    return read_questions(place / "q.jsonl")


@pytest.mark.parametrize("source", ["bm25", "dense", "hybrid"])
def test_a_query_does_not_find_itself(tmp_path, capsys, bert_directory, source):
    more = {"source": source, "encoder": str(bert_directory), "index": IndexConfig("exact")}
    found = searched(tmp_path, CORPUS, ASKED, **more)
    assert all(p.id != q.id for q in found for p in q.passages)
    assert "2 questions are passages of the corpus" in capsys.readouterr().err
    if source != "bm25":
        assert [len(q.passages) for q in found] == [3, 3]
        return
    # BEIR's figures for this corpus: 1 / (1 + 1 / log2(3)) for the question with two needed.
    scores = retrieval_scores(found, 3, JUDGED)
    assert scores["ndcg@10"].mean == pytest.approx(0.807, abs=5e-4)
    assert scores["recall@1"].mean == 0.75


def test_an_id_that_is_equal_by_chance_leaves_nothing_out(tmp_path, capsys):
    passages = [Passage("1", "red cat"), Passage("2", "blue dog")]
    asked = [Question("1", "a red cat?"), Question("2", "the red one")]
    found = searched(tmp_path / "a", passages, asked, passages=2)
    assert [p.id for p in found[0].passages] == ["1"]
    assert "2 questions have the id of a passage of another text" in capsys.readouterr().err
    found = searched(tmp_path / "b", passages, asked, passages=2, ignore_identical_ids="always")
    assert [[p.id for p in q.passages] for q in found] == [[], ["1"]]
    found = searched(tmp_path / "c", CORPUS, ASKED, ignore_identical_ids="never")
    assert [q.passages[0].id for q in found] == ["a-pro01a", "a-con02a"]


def test_a_question_of_stop_words_stays_without_candidates(tmp_path):
    asked = [Question("q1", "to be or not to be"), Question("q2", "what is Om")]
    passages = [Passage("1", "To be or not to be is a line."), Passage("2", "Om is a river town.")]
    found = searched(tmp_path, passages, asked, passages=1)
    assert [[p.id for p in q.passages] for q in found] == [[], ["2"]]


DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no files of real passages in {DATA}")
@pytest.mark.parametrize(
    ("name", "count", "named"),
    [("hotpot-dev500-corpus", 4937, False), ("scifact-corpus", 5183, True)],
)
def test_real_corpora_are_read_whole(name, count, named):
    account = CorpusAccount()
    config = CorpusConfig((str(DATA / f"{name}.jsonl.gz"),))
    passages = list(read_corpus(config, account))
    assert len(passages) == count and not account.rejected and not account.empty
    assert len({p.id for p in passages}) == count and bool(account.unnamed) != named
