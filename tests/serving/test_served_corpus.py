"""A served corpus finds what the retrieve stage finds: by words, by vectors, by both."""

from __future__ import annotations

import random

import pytest

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.launch.console import Console
from dynarag_jax.launch.context import Context
from dynarag_jax.launch.program import run_stage
from dynarag_jax.launch.table import program_of
from dynarag_jax.records import Passage, Question, read_questions, write_passages, write_questions
from dynarag_jax.retrieval.corpora import CorpusConfig
from dynarag_jax.retrieval.index import IndexConfig
from dynarag_jax.serving.corpus import CorpusOptions, open_corpus
from dynarag_jax.stages import BuildIndex, Embed, Retrieve

EXACT = IndexConfig(kind="exact")
DEPTH = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run with an embedded corpus of 60 passages and its index, and 12 questions."""
    pytest.importorskip("torch")
    from tests.retrieval.conftest import WORDS, write_bert

    place = tmp_path_factory.mktemp("served")
    draw = random.Random(0)
    passages = [
        Passage(f"p{i}", " ".join(draw.choices(WORDS, k=9)), draw.choice(WORDS)) for i in range(60)
    ]
    write_passages(place / "corpus.jsonl", passages)
    asked = [Question(f"q{i}", " ".join(draw.choices(WORDS, k=4))) for i in range(12)]
    write_questions(place / "questions.jsonl", asked)
    encoder = str(write_bert(place / "encoder"))
    stages = {
        "embed": Embed(CorpusConfig((str(place / "corpus.jsonl"),)), encoder),
        "index": BuildIndex(index=EXACT, encoder=encoder),
        **{
            source: Retrieve(
                embedded="{run}/embed", indexed="{run}/index", source=source, encoder=encoder,
                questions=(str(place / "questions.jsonl"),), passages=DEPTH, index=EXACT,
            )
            for source in ("dense", "hybrid", "bm25")
        },
    }  # fmt: skip
    for name, stage in stages.items():
        context = Context(Run(directory=str(place / "run")), stages, name)
        assert run_stage(context, program_of(name, stage).run)
    return place


def options_of(place, source, **fields):
    given = {
        "embedded": str(place / "run" / "embed"), "source": source,
        "encoder": str(place / "encoder"), "cache": str(place / "cache"),
    }  # fmt: skip
    return CorpusOptions(**given | fields)


@pytest.mark.parametrize("index", ["", "run/index"])
@pytest.mark.parametrize("source", ["dense", "hybrid", "bm25"])
def test_what_is_found_is_what_retrieve_finds(place, source, index):
    if source == "bm25" and index:
        pytest.skip("words need no index of vectors")
    index = str(place / index) if index else ""
    corpus = open_corpus(Console("serve", primary=False), options_of(place, source, index=index))
    assert len(corpus) == 60
    for question in read_questions(place / "run" / source / "questions.jsonl"):
        found = corpus.search(question.text, DEPTH)
        assert [p.id for p in found] == [p.id for p in question.passages]
        assert corpus.search(question.text, 2) == found[:2] or source == "hybrid"
    assert len(corpus.search("cat", 1000)) <= 60


def test_a_query_to_the_server_is_answered_from_what_was_found(place, start, language_model):
    server = start(language_model, name="over a corpus", corpus=options_of(place, "hybrid"))
    corpus = open_corpus(Console("serve", primary=False), options_of(place, "hybrid"))
    asked = "the cat sat on the red mat"
    sent = {"messages": [{"role": "user", "content": asked}], "passages": DEPTH}
    status, found = server.post("/v1/chat/completions", sent)
    assert status == 200
    candidates = [p.id for p in corpus.search(asked, DEPTH)]
    read = [p["id"] for p in found["passages"]]
    assert set(read) <= set(candidates)
    # The same passages sent along give the same list and the same answer.
    documents = [
        {"id": p.id, "title": p.title, "text": p.text} for p in corpus.search(asked, DEPTH)
    ]
    _, again = server.post("/v1/chat/completions", {**sent, "documents": documents})
    assert [p["id"] for p in again["passages"]] == read
    assert again["choices"] == found["choices"]


def test_vectors_of_another_encoder_are_refused(place, tmp_path):
    from tests.retrieval.conftest import write_bert

    other = write_bert(tmp_path / "other", seed=1)
    options = options_of(place, "dense", encoder=str(other))
    with pytest.raises(InputError, match="encoder"):
        open_corpus(Console("serve", primary=False), options)
