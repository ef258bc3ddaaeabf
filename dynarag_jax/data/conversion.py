"""From a file of questions in one format to a file in another, and to prepared datasets."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from dynarag_jax.atomic import atomic_directory, atomic_write
from dynarag_jax.data.builders import PreparedQuestions, is_prepared, splits
from dynarag_jax.data.formats import WRITTEN, detect, losses, named, write_rows
from dynarag_jax.data.layouts import judgments_file, queries_file
from dynarag_jax.data.mapping import FieldPaths
from dynarag_jax.data.reading import QuestionAccount, Reading, numbered_questions
from dynarag_jax.data.sidecars import JudgedGold, RankedCandidates, TitledCandidates
from dynarag_jax.data.values import with_content_ids
from dynarag_jax.delimited import Quotes
from dynarag_jax.errors import InputError, MissingExtra, nearest
from dynarag_jax.files import dump_line, require_file, write_jsonl
from dynarag_jax.records import Question, passage_to_json, question_to_json
from dynarag_jax.retrieval.trec import trec_lines

TARGETS = (*WRITTEN, "trec")


@dataclass(frozen=True)
class ConvertData:
    """Convert a file of questions from one format to another."""

    source: str = ""
    """the file to read; a directory of BEIR's, or a dataset that train.prepare made"""
    target: str = ""
    """the file to write, packed if its name ends in .gz or .zst; for beir a directory"""
    format: str = ""
    """the source's format; empty finds it by its first records"""
    to: str = "records"
    """the target's format; trec writes the candidates as a run"""
    dataset: str = ""
    """the benchmark the questions are of, which sets their task; empty takes what the file says"""
    task: Literal["", "short", "label", "paragraph"] = ""
    """the form of the answers; empty takes what the file or the dataset says"""
    split: str = ""
    """of a directory, which split; empty is the only one, or BEIR's test"""
    repeats: Literal["refuse", "drop", "rename"] = "refuse"
    """what to do with questions whose id came before"""
    passage_ids: Literal["file", "content"] = "file"
    """content names passages by their text, so that equal passages of several files are one"""
    qrels: str = ""
    """a file of judgments, which become the needed passages"""
    run: str = ""
    """a TREC run, whose passages become the candidates; needs corpus"""
    corpus: tuple[str, ...] = ()
    """files of the corpus that run or titles name passages of"""
    candidates: str = "bm25_pooled_top50_titles"
    """of the format titles, the list whose passages become the candidates"""
    depth: int = 0
    """candidates of a run to keep; 0 keeps all"""
    reject_limit: int = 0
    """bad records that are set aside, in TARGET.rejects.jsonl, before the file is refused"""
    overwrite: bool = False
    """replace a target that exists"""
    columns: tuple[str, ...] = ()
    """of a table without a header line: the columns' names in order, such as question answers"""
    quotes: Quotes = "auto"
    """of tables: csv takes quotes as CSV has them, none as they stand, auto sees it from the whole
    file"""
    fields: FieldPaths = FieldPaths()
    """with format fields: paths into any JSON or Parquet, such as documents[].text"""
    dry_run: bool = False
    """read the first record, show it as it is read, and write nothing"""

    def reading(self) -> Reading:
        """How the source is read."""
        return Reading(
            self.format, self.dataset, self.task, self.repeats, self.reject_limit, self.columns,
            self.quotes, self.fields,
        )  # fmt: skip


@dataclass
class Outcome:
    """What a conversion did.

    Attributes:
      format: of the source.
      account: what became of its records.
      written: records in the target.
      lost: how many questions lost what, since the target's format cannot hold it.
      first: of a dry run, the first question as it is read, in our format.
    """

    format: str = ""
    account: QuestionAccount = field(default_factory=QuestionAccount)
    written: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    first: dict[str, Any] | None = None


def convert_data(
    options: ConvertData, progress: Callable[[int], object] = lambda n: None
) -> Outcome:
    """Convert as the options say; the target is written whole or not at all.

    Args:
      progress: called with 1 for each question.

    Raises:
      InputError: an option is wrong, the source is, or the target cannot hold a question.
    """
    source, target = _places(options)
    outcome = Outcome()
    questions = _questions(options, source, outcome)
    if options.dry_run:
        for question in itertools.islice(questions, 1):
            outcome.first = question_to_json(question)
        return outcome
    counted = _counted(questions, outcome, options.to, progress)
    if options.passage_ids == "content":
        counted = map(with_content_ids, counted)
    rejects = target.with_name(target.name + ".rejects.jsonl")
    try:
        if options.to == "beir":
            outcome.written = _write_beir(target, counted, options)
        elif options.to == "trec":
            with packed_write(target) as stream:
                for line in trec_lines(counted):
                    stream.write(line)
                    outcome.written += 1
                if not outcome.written:
                    raise InputError(f"{source}: no question has passages, which a run ranks")
        else:
            with packed_write(target) as stream:
                for row in write_rows(options.to, counted):
                    stream.write(_line(row))
                    outcome.written += 1
        if not outcome.account.questions and not is_prepared(source):
            raise InputError(f"{source}: none of its records could be read; see {rejects}")
    finally:
        if outcome.account.rejected and options.reject_limit:
            rows = [{"line": n, "reason": reason} for n, reason in outcome.account.rejected]
            write_jsonl(rejects, rows)
        elif options.overwrite:
            rejects.unlink(missing_ok=True)
    return outcome


def _places(options: ConvertData) -> tuple[Path, Path]:
    for name in ("source", "target"):
        if not getattr(options, name) and not (name == "target" and options.dry_run):
            raise InputError(f"convert_data: name the {name}: SOURCE TARGET")
    if options.to not in TARGETS:
        raise InputError(
            f"convert_data: to = '{options.to}' is no format that can be written"
            f"{nearest(options.to, TARGETS)}; there are {', '.join(TARGETS)}"
        )
    if options.depth < 0:
        raise InputError(f"convert_data: depth = {options.depth} must not be negative")
    if options.run and not options.corpus:
        raise InputError("convert_data: --run needs --corpus, where the passages' text is")
    options.reading()  # checks format, dataset and the rest before anything is read
    source, target = Path(options.source), Path(options.target)
    if not source.is_dir():
        require_file(source)
    if options.dry_run:
        return source, target
    if target.exists() and target.resolve() == source.resolve():
        raise InputError(f"{target}: is the source, too; name another target")
    if target.is_dir() and options.to != "beir":
        raise InputError(f"{target}: is a directory; name a file to write")
    if target.exists() and not options.overwrite:
        raise InputError(f"{target}: exists already; --overwrite replaces it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror})") from None
    return source, target


def _questions(options: ConvertData, source: Path, outcome: Outcome) -> Iterator[Question]:
    qrels, judged_only = options.qrels, False
    if is_prepared(source):
        outcome.format = "prepared"
        questions: Iterator[Question] = iter(PreparedQuestions(source, _split(source, options)))
    else:
        if source.is_dir():
            judged_only = not options.qrels
            place, source = source, queries_file(source)
            qrels = qrels or str(judgments_file(place, options.split or "test"))
        elif options.split:
            raise InputError(f"convert_data: --split is for directories, and {source} is a file")
        reader = (
            named(options.format)
            if options.format
            else detect(source, options.columns, options.quotes)
        )
        outcome.format = reader.name
        rows = numbered_questions(source, options.reading(), outcome.account)
        questions = (question for _, question in rows)
    if qrels:
        judged = JudgedGold.read(qrels)
        if judged_only:
            questions = (q for q in questions if judged.of(q) is not None)
        questions = judged.attach(questions)
    if options.run:
        questions = RankedCandidates.read(options.run, options.corpus, options.depth).attach(
            questions
        )
    elif outcome.format == "titles" and options.corpus:
        questions = TitledCandidates.read(options.candidates, options.corpus).attach(questions)
    elif options.corpus:
        raise InputError("convert_data: --corpus is read with --run, or for the format titles")
    return questions


def _split(source: Path, options: ConvertData) -> str:
    there = splits(source)
    if options.split or len(there) == 1:
        return options.split or next(iter(there))
    raise InputError(f"{source}: has the splits {', '.join(there)}; choose one with --split")


def _counted(
    questions: Iterable[Question], outcome: Outcome, to: str, progress: Callable[[int], object]
) -> Iterator[Question]:
    chosen = named(to, written=True) if to != "trec" else None
    for question in questions:
        if chosen is None:
            outcome.lost.update(["answers"] if question.answers else [])
        elif to == "beir":
            outcome.lost.update(w for w in losses(chosen, question) if w in ("answers", "expert"))
        else:
            outcome.lost.update(losses(chosen, question))
        progress(1)
        yield question


def _line(row: dict[str, Any]) -> str:
    try:
        return dump_line(row)
    except RecursionError:
        raise InputError(f"a record is nested too deeply to be written ({str(row)[:40]})") from None


@contextlib.contextmanager
def packed_write(path: Path) -> Iterator[IO[str]]:
    """Write a text file atomically, packed if its name ends in ``.gz`` or ``.zst``.

    Equal texts give equal bytes.
    """
    with atomic_write(path, "wb") as raw:
        stream: Any = raw
        if path.suffix == ".gz":
            stream = gzip.GzipFile("", "wb", 6, fileobj=raw, mtime=0)
        elif path.suffix == ".zst":
            try:
                import zstandard
            except ImportError:
                raise MissingExtra("zstandard", "data", "writing .zst files") from None
            stream = zstandard.ZstdCompressor().stream_writer(raw, closefd=False)
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="\n")
        yield text
        text.flush()
        text.detach()
        if stream is not raw:
            stream.close()


def _write_beir(target: Path, questions: Iterable[Question], options: ConvertData) -> int:
    """BEIR's directory: queries.jsonl, corpus.jsonl, qrels/SPLIT.tsv."""
    count, known = 0, set()
    with atomic_directory(target, options.overwrite) as place, contextlib.ExitStack() as stack:
        (place / "qrels").mkdir()
        files = ("queries.jsonl", "corpus.jsonl", f"qrels/{options.split or 'test'}.tsv")
        queries, corpus, qrels = (
            stack.enter_context((place / name).open("w", encoding="utf-8")) for name in files
        )
        # As BEIR writes them, and its loader reads them: CSV with tabs.
        judgments = csv.writer(qrels, delimiter="\t", lineterminator="\n")
        judgments.writerow(("query-id", "corpus-id", "score"))
        for question in questions:
            queries.write(_line({"_id": question.id, "text": question.text}))
            count += 1
            for passage in question.passages:
                if passage.id not in known:
                    known.add(passage.id)
                    value = passage_to_json(passage)
                    row = {"_id": passage.id, "title": value["title"], "text": value["text"]}
                    corpus.write(_line(row))
            judgments.writerows((question.id, name, 1) for name in question.gold or ())
    return count
