"""What stands beside a file of questions: judgments, a run, and the corpus their ids name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from urllib.parse import unquote

from dynarag_jax.data.values import Record, content_id, missing_id
from dynarag_jax.errors import InputError, nearest
from dynarag_jax.files import PathLike
from dynarag_jax.records import Passage, Question
from dynarag_jax.retrieval.corpora import CorpusConfig, read_corpus
from dynarag_jax.retrieval.judgments import graded, read_qrels
from dynarag_jax.retrieval.trec import read_run, trec_word
from dynarag_jax.rows import read_rows


def corpus_passages(paths: Iterable[PathLike], wanted: set[str]) -> dict[str, Passage]:
    """The passages of these ids, out of a corpus of any size: only they are held.

    An id that the corpus lacks as it is written is looked for as ``trec_word`` writes ids.

    Raises:
      InputError: the corpus cannot be read, or lacks one of them.
    """
    files = tuple(str(path) for path in paths)
    passages: dict[str, Passage] = {}
    encoded: dict[str, Passage] = {}
    for passage in read_corpus(CorpusConfig(files)):
        if passage.id in wanted:
            passages[passage.id] = passage
        elif (word := trec_word(passage.id)) in wanted:
            encoded[word] = passage
    passages = encoded | passages
    if lacking := wanted - passages.keys():
        some = ", ".join(f"'{name}'" for name in sorted(lacking)[:3])
        raise InputError(f"{', '.join(files)}: lacks {len(lacking)} passages, {some} among them")
    return passages


@dataclass(frozen=True)
class JudgedGold:
    """Judgments of relevance, as ``gold``: the passages of relevance above 0, best first."""

    path: PathLike
    grades: Mapping[str, Mapping[str, float]]

    @classmethod
    def read(cls, path: PathLike) -> JudgedGold:
        """Judgments of any layout; see ``retrieval/judgments.py``."""
        return cls(path, read_qrels(path))

    def of(self, question: Question) -> Mapping[str, float] | None:
        """The relevance of a question's passages; None where it is not judged."""
        if (grades := self.grades.get(question.id)) is not None:
            return grades
        grades = self.grades.get(trec_word(question.id))
        return None if grades is None else {unquote(name): g for name, g in grades.items()}

    def attach(self, questions: Iterable[Question]) -> Iterator[Question]:
        """The questions with ``gold`` set where they are judged.

        Raises:
          InputError: after the last, if none of them is judged.
        """
        known = 0
        for question in questions:
            grades = self.of(question)
            if grades is None:
                yield question
                continue
            known += 1
            yield replace(question, gold=graded(grades))
        if not known:
            raise InputError(f"{self.path}: judges none of these questions; are the ids the same?")


@dataclass(frozen=True)
class RankedCandidates:
    """A run, as ``passages``: the candidates in the order of their scores, and their text."""

    path: PathLike
    ranking: Mapping[str, tuple[tuple[str, float], ...]]
    corpus: Mapping[str, Passage]

    @classmethod
    def read(cls, path: PathLike, corpus: Iterable[PathLike], depth: int = 0) -> RankedCandidates:
        """A TREC run over a corpus; ``depth`` keeps the first so many passages, 0 all."""
        places: dict[str, int] = {}
        rows = read_run(path, lambda name: places.setdefault(name, len(places)))
        names = list(places)
        ranking: dict[str, tuple[tuple[str, float], ...]] = {}
        for question, (positions, scores) in rows.items():
            kept = depth or len(positions)
            best = zip(positions[:kept].tolist(), scores[:kept].tolist(), strict=True)
            ranking[question] = tuple((names[place], score) for place, score in best)
        wanted = {name for ranked in ranking.values() for name, _ in ranked}
        return cls(path, ranking, corpus_passages(corpus, wanted))

    def attach(self, questions: Iterable[Question]) -> Iterator[Question]:
        """The questions with the run's candidates; those that the run lacks get none.

        Raises:
          InputError: after the last, if the run has none of them.
        """
        known = 0
        for question in questions:
            ranked = self.ranking.get(question.id) or self.ranking.get(trec_word(question.id), ())
            known += bool(ranked)
            passages = tuple(replace(self.corpus[name], score=score) for name, score in ranked)
            yield replace(
                question, passages=passages, expert=None, expert_source="", expert_thought=""
            )
        if not known:
            raise InputError(f"{self.path}: ranks none of these questions; are the ids the same?")


@dataclass(frozen=True)
class TitledCandidates:
    """A corpus by title, for questions that rank titles (format ``titles``)."""

    field: str
    corpus: Mapping[str, Passage]

    @classmethod
    def read(cls, field: str, corpus: Iterable[PathLike]) -> TitledCandidates:
        """A corpus of ``{title, text}`` a record, whose titles are unique."""
        by_title: dict[str, Passage] = {}
        for path in corpus:
            for number, row in read_rows(path):
                if isinstance(row, InputError):
                    raise row
                record = Record(f"{path}:{number}", row)
                title, text = record.text("title"), record.text("text", "contents", blank=True)
                if title in by_title:
                    raise InputError(f"{path}:{number}: the title '{title}' is there twice")
                name = record.identity("id", "_id", default=content_id(title, text))
                by_title[title] = Passage(name, text, title)
        return cls(field, by_title)

    def _needed(self, title: str) -> str:
        known = self.corpus.get(title)
        return known.id if known else missing_id(title)

    def _passage(self, title: str, question: Question) -> Passage:
        if title not in self.corpus:
            raise InputError(f"question '{question.id}': the corpus has no title '{title}'")
        return self.corpus[title]

    def attach(self, questions: Iterable[Question]) -> Iterator[Question]:
        """The questions with the titles of ``field`` as candidates, in its order, and ``gold``.

        Raises:
          InputError: a question has no such field, or the corpus no such title.
        """
        for question in questions:
            titles = question.extra.get(self.field)
            if not isinstance(titles, list):
                known = [name for name in question.extra if name.endswith("_titles")]
                raise InputError(
                    f"question '{question.id}': no list '{self.field}'"
                    f"{nearest(self.field, known)}; it has {', '.join(known) or 'no such lists'}"
                )
            passages = dict.fromkeys(self._passage(title, question) for title in titles)
            gold = question.extra.get("gold_titles")
            needed = gold if isinstance(gold, list) else []
            yield replace(
                question,
                passages=tuple(passages),
                gold=tuple(dict.fromkeys(map(self._needed, needed)))
                if isinstance(gold, list)
                else question.gold,
                extra={k: v for k, v in question.extra.items() if not k.endswith("_titles")},
            )
