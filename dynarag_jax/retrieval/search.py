"""Questions searched for in a corpus, by embeddings, words, both, or somebody's run; resumably.

Questions are searched in batches, and a batch's records appended together; a search that was killed
goes on behind them. Several processes share the batches, or each searches its part of the index.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from dynarag_jax.atomic import atomic_write
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.encoders import LoadedEncoder, load_encoder
from dynarag_jax.files import fingerprint, output_stem
from dynarag_jax.parts import SharedRows
from dynarag_jax.processes import ProcessTeam, once
from dynarag_jax.records import Question, question_to_json, stream_questions
from dynarag_jax.retrieval.bm25 import Bm25Config
from dynarag_jax.retrieval.embed import MINILM
from dynarag_jax.retrieval.fusion import Fusion, Ranking, fuse
from dynarag_jax.retrieval.index import IndexConfig
from dynarag_jax.retrieval.materials import (
    BM25,
    INDEX,
    VECTORS,
    bm25_of,
    index_of,
    load_index_of,
    passage_vectors,
    require_encoder,
    vectors_of,
)
from dynarag_jax.retrieval.rankings import (
    Identical,
    fill,
    nearest,
    own_rows,
    rows_by_id,
    with_gold,
    without,
)
from dynarag_jax.retrieval.shards import Vectors
from dynarag_jax.retrieval.store import Store
from dynarag_jax.retrieval.trec import read_run, trec_lines, trec_word
from dynarag_jax.retrieval.voice import Voice

# The questions of one file to their rankings, a batch at a time.
Search = Callable[[Sequence[Question], range], list[Ranking]]


@dataclass(frozen=True)
class SearchConfig:
    """How questions are searched for."""

    source: Literal["dense", "bm25", "hybrid", "run"] = "dense"
    """dense: embeddings; bm25: words; hybrid: both, fused; run: TREC runs made elsewhere"""
    passages: int = 45
    """candidates a question"""
    encoder: str = MINILM
    """embedding model: a directory, a hub id, or package:NAME of an installed package"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type of the encoder's activations"""
    keep_gold: bool = False
    """the needed passages are always among the candidates (HotpotQA's distractor setting)"""
    ignore_identical_ids: Identical = "auto"
    """leave out a passage that has the question's id, as BEIR does: always, never, or auto, where
    it is the question's text, too (ArguAna, whose queries are passages of the corpus)"""
    index: IndexConfig = IndexConfig()
    """of the index that is built here"""
    bm25: Bm25Config = Bm25Config()
    fusion: Fusion = Fusion()
    batch: int = 1024
    """questions searched at once"""

    def __post_init__(self) -> None:
        self.index.check()
        if self.batch < 1:
            raise InputError(f"batch = {self.batch} must be at least 1")
        if self.keep_gold and self.source != "dense":
            raise InputError(
                f"keep_gold places the needed passages by their embeddings, and source is "
                f"'{self.source}'; it goes with source 'dense'"
            )


@dataclass(frozen=True)
class Searched:
    """What is searched, and for what.

    Attributes:
      store: the passages.
      vectors: their embeddings, or None to make them in ``directory``.
      embedded: where these come from, for messages.
      indexed: directory of their index, or None to build it.
      directory: where everything that is made comes to lie.
      files: question files by their names here.
      questions: theirs.
      runs: of source run, the runs by the same names.
    """

    store: Store
    directory: Path
    files: Mapping[str, Path]
    questions: Mapping[str, Sequence[Question]]
    vectors: Vectors | None = None
    embedded: str = ""
    indexed: Path | None = None
    runs: Mapping[str, Path] | None = None


def searches(
    voice: Voice, config: SearchConfig, what: Searched, seed: int
) -> tuple[dict[str, Search], bool]:
    """How the questions of each file are searched for.

    Also whether all processes must search for the same questions, each in its part of the corpus.

    Args:
      seed: of the sample of questions on which an index that is built is tuned.
    """
    n, store, row = config.passages, what.store, rows_by_id(what.store)
    if config.source == "run":
        runs = what.runs or {}
        return {name: _from_run(runs[name], n, row) for name in what.questions}, False
    mine: dict[str, list[int | None]] = {}
    for name, questions in what.questions.items():
        mine[name], others = own_rows(questions, store, row, config.ignore_identical_ids)
        if count := sum(place is not None for place in mine[name]):
            voice.log(f"{name}: {count} questions are passages of the corpus; they are left out of "
                      f"their own candidates (ignore_identical_ids)")  # fmt: skip
        if others:
            voice.log(f"{name}: {others} questions have the id of a passage of another text, which "
                      f"stays; ignore_identical_ids always leaves such passages out")  # fmt: skip
    spare = int(any(place is not None for each in mine.values() for place in each))
    wanted = max(n, config.fusion.depth) if config.source == "hybrid" else n
    depth = min(wanted + spare, len(store))
    words = (
        bm25_of(voice, store, config.bm25, what.directory / BM25)
        if config.source in ("bm25", "hybrid")
        else None
    )

    def by_words(name: str, which: range) -> list[Ranking]:
        assert words is not None
        asked = [what.questions[name][i].text for i in which]
        found = zip(*words.search(asked, depth), strict=True)
        return [without(one, mine[name][i], wanted) for one, i in zip(found, which, strict=True)]

    if config.source == "bm25":

        def in_words(name: str) -> Search:
            return lambda questions, which: by_words(name, which)

        return {name: in_words(name) for name in what.questions}, False
    encoder = load_encoder(config.encoder, dtype=config.dtype)
    vectors = what.vectors
    if vectors is None:
        vectors = passage_vectors(voice, encoder, store, what.directory / VECTORS, "passages")
    else:
        require_encoder(what.embedded, vectors, config.encoder, encoder)
    asked = {
        name: _queries(voice, encoder, questions, what.directory, what.files[name].name)
        for name, questions in what.questions.items()
    }
    if what.indexed is not None:
        index = load_index_of(voice, store, vectors, what.indexed)
    else:
        # Recall is measured on the questions: passages find their like more easily than they do.
        most = max(asked.values(), key=len)
        rng = np.random.default_rng(seed)
        count = min(config.index.sample, len(most))
        sample = most.rows(np.sort(rng.choice(len(most), count, replace=False)))
        place = what.directory / INDEX
        index = index_of(voice, store, vectors, place, config.index, sample if count else None)

    def by_meaning(name: str) -> Search:
        def search(questions: Sequence[Question], which: range) -> list[Ranking]:
            some = [questions[i] for i in which]
            own = asked[name].rows(np.arange(which.start, which.stop))
            found = zip(nearest(some, own, index, len(store), depth), which, strict=True)
            dense = [without(ranking, mine[name][i], wanted) for ranking, i in found]
            if config.keep_gold:
                return with_gold(some, dense, own, vectors, row, n)
            if words is None:
                return dense
            weights = (1.0, 1.0)
            if config.fusion.method == "weighted":
                weights = (config.fusion.weight, 1 - config.fusion.weight)
            both = zip(dense, by_words(name, which), strict=True)
            return [fuse(pair, weights, config.fusion, n) for pair in both]

        return search

    together = index.kind == "sharded" and jax.process_count() > 1
    return {name: by_meaning(name) for name in what.questions}, together


def _queries(
    voice: Voice, encoder: LoadedEncoder, questions: Sequence[Question], directory: Path, name: str
) -> Vectors:
    """The questions' embeddings."""
    texts = [question.text for question in questions]
    place = directory / "queries" / name
    return vectors_of(voice, encoder, texts, encoder.query_prompt, place, name, fingerprint(texts))


def _from_run(path: Path, n: int, row: Callable[[str], int | None]) -> Search:
    """Rankings that somebody else has made."""
    rankings = read_run(path, row)
    nothing = (np.zeros(0, np.int64), np.zeros(0))

    def search(questions: Sequence[Question], which: range) -> list[Ranking]:
        names = (questions[i].id for i in which)
        found = [rankings.get(name) or rankings.get(trec_word(name), nothing) for name in names]
        return [(positions[:n], scores[:n]) for positions, scores in found]

    return search


def fill_questions(
    voice: Voice,
    directory: Path,
    store: Store,
    name: str,
    questions: Sequence[Question],
    search: Search,
    batch: int,
    together: bool,
) -> None:
    """Write a question file with its passages, and its run.

    Args:
      name: of the file.
      batch: questions searched at once.
      together: all processes search for all questions, and process 0 writes; else each process
        searches for and writes its share.
    """
    kind = output_stem(name)
    # Who searches together does as one process would: all of it, and one of them writes.
    team = ProcessTeam(None)
    batches = [range(i, min(i + batch, len(questions))) for i in range(0, len(questions), batch)]
    batches = batches if together else team.mine(batches)
    total = sum(map(len, batches))
    with (
        SharedRows(directory / f"{kind}.jsonl", team) as rows,
        voice.progress(total, f"{name}: questions") as bar,
    ):
        standing = sum(questions[i].id in rows.done for which in batches for i in which)
        bar.start_at(standing, total)
        for which in batches:
            todo = [i for i in which if questions[i].id not in rows.done]
            if not todo:
                continue
            # Whole batches, so that a run that was cut off searches as one that was not.
            rankings = search(questions, which)
            if team.index == 0 or not together:
                for i in todo:
                    filled = fill(questions[i], rankings[i - which.start], store)
                    rows.append(question_to_json(filled))
            bar.update(len(todo))
        rows.finish(q.id for q in questions)
    once(lambda: write_run(directory / f"{kind}.jsonl", directory / f"{kind}.trec"))


def write_run(source: Path, target: Path) -> None:
    """The questions' passages as a TREC run."""
    with atomic_write(target) as stream:
        stream.writelines(trec_lines(stream_questions(source)))
