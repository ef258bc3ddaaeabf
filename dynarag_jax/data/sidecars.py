"""What stands beside a file of questions: judgments, a run, and the corpus their ids name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from dynarag_jax.data.stream import read_rows
from dynarag_jax.data.values import Record, content_id
from dynarag_jax.errors import InputError, nearest
from dynarag_jax.files import PathLike
from dynarag_jax.records import Passage, Question
from dynarag_jax.retrieval.corpora import CorpusConfig, read_corpus
from dynarag_jax.retrieval.trec import read_qrels, read_run


def corpus_passages(paths: Iterable[PathLike], wanted: set[str]) -> dict[str, Passage]:
    """The passages of these ids, out of a corpus of any size: only they are held.

    Raises:
      InputError: the corpus cannot be read, or lacks one of them.
    """
    files = tuple(str(path) for path in paths)
    found = {p.id: p for p in read_corpus(CorpusConfig(files)) if p.id in wanted}
    if lacking := wanted - found.keys():
        some = ", ".join(f"'{name}'" for name in sorted(lacking)[:3])
        raise InputError(f"{', '.join(files)}: lacks {len(lacking)} passages, {some} among them")
    return found


@dataclass(frozen=True)
class Judged:
    """Judgments of relevance, as ``gold``: the passages of relevance above 0, best first."""

    path: PathLike
    grades: Mapping[str, Mapping[str, float]]

    @classmethod
    def read(cls, path: PathLike) -> Judged:
        """TREC's four columns or BEIR's three with a header."""
        return cls(path, read_qrels(path))

    def attach(self, questions: Iterable[Question]) -> Iterator[Question]:
        """The questions with ``gold`` set where they are judged.

        Raises:
          InputError: after the last, if none of them is judged.
        """
        known = 0
        for question in questions:
            grades = self.grades.get(question.id)
            if grades is None:
                yield question
                continue
            known += 1
            best = sorted(grades.items(), key=lambda judged: -judged[1])
            yield replace(question, gold=tuple(name for name, grade in best if grade > 0))
        if not known:
            raise InputError(f"{self.path}: judges none of these questions; are the ids the same?")


@dataclass(frozen=True)
class Ranked:
    """A run, as ``passages``: the candidates in the order of their scores, and their text."""

    path: PathLike
    ranking: Mapping[str, tuple[tuple[str, float], ...]]
    corpus: Mapping[str, Passage]

    @classmethod
    def read(cls, path: PathLike, corpus: Iterable[PathLike], depth: int = 0) -> Ranked:
        """A TREC run over a corpus; ``depth`` keeps the first so many passages, 0 all."""
        places: dict[str, int] = {}
        rows = read_run(path, lambda name: places.setdefault(name, len(places)))
        names = list(places)
        ranking: dict[str, tuple[tuple[str, float], ...]] = {}
        for asked, (positions, scores) in rows.items():
            kept = depth or len(positions)
            best = zip(positions[:kept].tolist(), scores[:kept].tolist(), strict=True)
            ranking[asked] = tuple((names[place], score) for place, score in best)
        wanted = {name for ranked in ranking.values() for name, _ in ranked}
        return cls(path, ranking, corpus_passages(corpus, wanted))

    def attach(self, questions: Iterable[Question]) -> Iterator[Question]:
        """The questions with the run's candidates; those that the run lacks get none.

        Raises:
          InputError: after the last, if the run has none of them.
        """
        known = 0
        for question in questions:
            ranked = self.ranking.get(question.id, ())
            known += bool(ranked)
            passages = tuple(replace(self.corpus[name], score=score) for name, score in ranked)
            yield replace(question, passages=passages, expert=None, expert_source="")
        if not known:
            raise InputError(f"{self.path}: ranks none of these questions; are the ids the same?")


@dataclass(frozen=True)
class Titles:
    """A corpus by title, for questions that rank titles (format ``titles``)."""

    field: str
    corpus: Mapping[str, Passage]

    @classmethod
    def read(cls, field: str, corpus: Iterable[PathLike]) -> Titles:
        """A corpus of ``{title, text}`` a record, whose titles are unique."""
        found: dict[str, Passage] = {}
        for path in corpus:
            for number, row in read_rows(path):
                if isinstance(row, InputError):
                    raise row
                record = Record(f"{path}:{number}", row)
                title, text = record.text("title"), record.text("text", "contents", blank=True)
                if title in found:
                    raise InputError(f"{path}:{number}: the title '{title}' is there twice")
                name = record.identity("id", "_id", default=content_id(title, text))
                found[title] = Passage(name, text, title)
        return cls(field, found)

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
                gold=tuple(dict.fromkeys(self._passage(t, question).id for t in needed))
                if isinstance(gold, list)
                else question.gold,
                extra={k: v for k, v in question.extra.items() if not k.endswith("_titles")},
            )
