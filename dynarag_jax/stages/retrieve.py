"""Fill questions with their best passages of a corpus.

    dynarag retrieve configs/quickstart.py --index.kind exact
    dynarag retrieve configs/wikipedia.py --source hybrid --evaluate

Writes each question file with its passages, a TREC run and recall.json into RUN/retrieve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from dynarag_jax.data.reading import stream_questions
from dynarag_jax.errors import InputError
from dynarag_jax.files import output_stem, write_json
from dynarag_jax.launch.context import Context
from dynarag_jax.processes import once
from dynarag_jax.records import Question
from dynarag_jax.retrieval.compiled import EmbeddingNeeds
from dynarag_jax.retrieval.corpora import CorpusConfig, located
from dynarag_jax.retrieval.judgments import read_qrels
from dynarag_jax.retrieval.materials import (
    INDEX,
    PASSAGES,
    VECTORS,
    corpus_inputs,
    embedded,
    index_inputs,
    store_of,
)
from dynarag_jax.retrieval.rankings import check
from dynarag_jax.retrieval.scores import recalls, retrieval_scores, scores_table
from dynarag_jax.retrieval.search import (
    SearchConfig,
    Searched,
    fill_questions,
    searches,
)
from dynarag_jax.retrieval.shards import Vectors
from dynarag_jax.stages.common.files import questions_by_output


@dataclass(frozen=True)
class Retrieve(SearchConfig):
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
    runs: dict[str, str] = field(default_factory=dict)
    """with source run: question file -> its TREC run"""
    evaluate: bool = False
    """also report recall, nDCG, MRR and answer recall with intervals"""
    judgments: dict[str, str] = field(default_factory=dict)
    """for ``evaluate``: question file -> its relevance judgments (TREC or BEIR qrels), in place of
    the questions' own needed passages"""
    compare_given: bool = False
    """also report the recall of the order in which the questions' own passages are given"""

    def __post_init__(self) -> None:
        super().__post_init__()
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


def to_plan(stage: Retrieve) -> list[EmbeddingNeeds]:
    """What the stage embeds with; nothing where it searches words or takes a run."""
    dense = stage.source in ("dense", "hybrid")
    return [EmbeddingNeeds(stage.encoder, stage.dtype)] if dense else []


READ_BY = {
    "encoder": ("dense", "hybrid"), "dtype": ("dense", "hybrid"), "index": ("dense", "hybrid"),
    "bm25": ("bm25", "hybrid"), "fusion": ("hybrid",), "runs": ("run",),
}  # fmt: skip
"""Options that only some sources read."""


def without_effect(stage: Retrieve) -> list[str]:
    """Options that are set and change nothing, a line each."""
    usual = Retrieve()
    idle = {
        name: f"source '{stage.source}' does not read it; {' and '.join(sources)} "
        f"{'do' if len(sources) > 1 else 'does'}"
        for name, sources in READ_BY.items()
        if stage.source not in sources
    }
    if not stage.evaluate:
        idle["judgments"] = "they are read where 'evaluate' is set"
    lines = []
    for name, why in idle.items():
        value = getattr(stage, name)
        if value != getattr(usual, name):
            shown = f"{name} = '{value}'" if isinstance(value, str) else name
            lines.append(f"{shown} has no effect: {why}")
    return lines


def run(context: Context, stage: Retrieve) -> None:
    """Embed, index, search; write each question file, its run, and recall.json."""
    files = {name: context.path(name) for name in stage.questions}
    questions_by_output(context, stage.questions)
    corpus = located(stage.corpus, context.path)
    inputs = {path.name: path for path in files.values()}
    if stage.embedded:
        inputs["vectors"] = context.path(stage.embedded) / VECTORS / "manifest.json"
    else:
        inputs |= corpus_inputs(corpus)
    indexed = context.path(stage.indexed) / INDEX if stage.indexed else None
    if indexed is not None:
        inputs |= index_inputs(indexed)
    for kind, places in (("run", stage.runs), ("judgments", stage.judgments)):
        inputs |= {f"{kind} of {name}": context.path(place) for name, place in places.items()}
    context.manifest(inputs=inputs)
    for line in without_effect(stage):
        context.log(line)
    # Of passages that come with the questions only their order is of use, and only to be compared.
    sets = {
        name: [
            q if stage.compare_given else replace(q, passages=())
            for q in stream_questions(path, context.log)
        ]
        for name, path in files.items()
    }
    vectors: Vectors | None = None
    directory = context.begin()
    if stage.embedded:
        _, store, vectors = embedded(context.path(stage.embedded))
    else:
        store = store_of(context, corpus, directory / PASSAGES)
    for name, questions in sets.items():
        lacking = check(questions, store, stage.passages, stage.keep_gold)
        if lacking:
            context.log(f"{name}: {lacking} questions need a passage that the corpus lacks")
    runs = {name: context.path(place) for name, place in stage.runs.items()}
    what = Searched(store, directory, files, sets, vectors, stage.embedded, indexed, runs)
    search, together = searches(context, stage, what, context.run.seed)
    for name, questions in sets.items():
        fill_questions(
            context, directory, store, files[name].name, questions, search[name],
            stage.batch, together,
        )  # fmt: skip
    once(lambda: conclude(context, stage, files, sets))


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
        output = context.stage_directory / f"{output_stem(path.name)}.jsonl"
        found[path.name] = recalls(stream_questions(output))
        if stage.compare_given and (given := recalls(sets[name])):
            found[f"{path.name}, as given"] = given
        short = sum(len(q.passages) < stage.passages for q in stream_questions(output))
        if short:
            context.log(
                f"{path.name}: {short} of {len(sets[name])} questions have fewer than "
                f"{stage.passages} passages, since no more were found"
            )
        bare = [q for q in stream_questions(output) if not q.passages]
        if bare:
            context.log(
                f"{path.name}: nothing was found for {len(bare)} questions, '{bare[0].id}' "
                f"({bare[0].text[:60]!r}) among them; they go on without candidates"
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
