"""The formats by name: how a file's format is found, how its questions are read and written."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynarag_jax.data import claims, instructions, multihop, open_domain, ranked
from dynarag_jax.data.catalog import benchmark
from dynarag_jax.data.stream import read_rows
from dynarag_jax.errors import InputError, nearest
from dynarag_jax.files import PathLike, read_lines
from dynarag_jax.records import TASKS, Question

Reader = Callable[[dict[str, Any], str, str], Iterator[Question]]
"""From a record, where it stands, and the id of a question without one, to its questions."""
Writer = Callable[[Question], "dict[str, Any] | Iterator[dict[str, Any]]"]

LOOKED_AT = 20
"""records that decide what format a file has"""


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
      name: how it is called on command lines.
      fields: the fields of a record, for people.
      fits: whether a record with these field names is of this format, and of no other.
      read: makes questions of a record.
      write: makes records of a question; None where nobody needs the format written.
      keeps: what of a question survives writing, beside id and text: answers, passages (their
        order), gold, expert, type.
    """

    name: str
    fields: str
    fits: Callable[[Mapping[str, Any]], bool]
    read: Reader
    write: Writer | None = None
    keeps: tuple[str, ...] = ()


def _has(*names: str, any_of: tuple[str, ...] = (), none_of: tuple[str, ...] = ()) -> Any:
    """Whether a record has all of ``names``, one of ``any_of`` and none of ``none_of``."""

    def fits(value: Mapping[str, Any]) -> bool:
        return (
            all(name in value for name in names)
            and (not any_of or any(name in value for name in any_of))
            and not any(name in value for name in none_of)
        )

    return fits


_CONTEXTS = ranked.CONTEXTS
_DPR = ("positive_ctxs", "hard_negative_ctxs")
_PLAIN = (
    *_CONTEXTS, *_DPR, "context", "paragraphs", "passages", "supporting_facts", "task", "qa_pairs",
    "gold_titles", "golden_answers", "possible_answers", "question_id", "instruction", "output",
    "chosen", "evidences", "question_decomposition", "qas", "q_id", "annotations",
)  # fmt: skip
_EVERYTHING = ("answers", "passages", "gold", "expert", "type", "task")

_ALL = (
    Format(
        "records", "id, question, answers, task, type, ctxs, gold, expert",
        _has("id", "question", "task"), ranked.read_records, ranked.write_records, _EVERYTHING,
    ),
    Format(
        "contexts", "id, question, answers, ctxs: [id, title, text, score, isgold, has_answer]",
        _has(any_of=_CONTEXTS, none_of=("task", "qa_pairs", "output", "positive_ctxs")),
        ranked.read_contexts, ranked.write_contexts,
        ("answers", "passages", "gold", "expert", "type"),
    ),
    Format(
        "dpr", "question, answers, positive_ctxs, hard_negative_ctxs, negative_ctxs",
        _has("question", any_of=_DPR, none_of=("task",)),
        ranked.read_dpr, ranked.write_dpr, ("answers", "passages", "gold"),
    ),
    Format(
        "rankllm", "query: {text, qid}, candidates: [docid, score, doc]",
        _has("query", "candidates"), ranked.read_rankllm, ranked.write_rankllm, ("passages",),
    ),
    Format(
        "titles", "_id, question, answer, gold_titles, NAME_titles (with a corpus)",
        _has("question", "gold_titles"), ranked.read_titles,
    ),
    Format(
        "nq_open", "question, answer",
        _has("question", any_of=("answer", "answers"), none_of=_PLAIN),
        open_domain.read_qa, open_domain.write_qa, ("answers",),
    ),
    Format(
        "triviaqa", "Question, QuestionId, Answer",
        _has(any_of=("QuestionId", "question_id"),
             none_of=("ctxs", "possible_answers", "golden_answers", "task")),
        open_domain.read_triviaqa,
    ),
    Format(
        "popqa", "id, question, possible_answers, prop",
        _has("question", "possible_answers", none_of=(*_CONTEXTS, "task")), open_domain.read_popqa,
    ),
    Format(
        "hotpotqa", "_id, question, answer, supporting_facts, context, type, level",
        _has("question", "context", any_of=("supporting_facts", "level", "_id"),
             none_of=("evidences", "task", "answers")),
        multihop.read_hotpotqa, multihop.write_hotpotqa,
        ("answers", "passages", "gold", "type"),
    ),
    Format(
        "2wikimultihopqa", "_id, question, answer, supporting_facts, context, evidences",
        _has("question", "evidences", none_of=("task",)), multihop.read_2wikimultihopqa,
    ),
    Format(
        "musique", "id, question, answer, answer_aliases, paragraphs, question_decomposition",
        _has("question", "paragraphs", none_of=("task", *_CONTEXTS)), multihop.read_musique,
    ),
    Format(
        "squad", "title, paragraphs: [context, qas]; or question, context, answers",
        lambda v: (
            ("paragraphs" in v and "question" not in v)
            or ("context" in v and "question" in v and "answers" in v and "task" not in v)
        ),
        multihop.read_squad,
    ),
    Format(
        "qed", "example_id, question_text, paragraph_text, original_nq_answers",
        _has("question_text", "paragraph_text"), multihop.read_qed,
    ),
    Format(
        "asqa", "sample_id, ambiguous_question, qa_pairs, annotations (docs)",
        _has("qa_pairs", any_of=("annotations", "ambiguous_question", "docs"),
             none_of=("task", "supporting_facts")),
        open_domain.read_asqa, open_domain.write_asqa, ("answers",),
    ),
    Format(
        "eli5", "q_id, title, selftext, answers",
        _has("q_id", "title"), open_domain.read_eli5,
    ),
    Format(
        "kilt", "id, input, output: [answer, provenance]",
        _has("input", none_of=("instruction", "passages", "ctxs", "question", "task")),
        open_domain.read_kilt, open_domain.write_kilt, ("answers",),
    ),
    Format(
        "clapnq", "id, input, passages, output",
        _has("input", "passages"), open_domain.read_clapnq,
    ),
    Format(
        "flashrag", "id, question, golden_answers",
        _has("question", "golden_answers", none_of=("task", *_CONTEXTS)),
        open_domain.read_flashrag, open_domain.write_flashrag, ("answers",),
    ),
    Format(
        "beir", "_id, text, metadata (with qrels)",
        _has("_id", "text", none_of=("title", "question", "label")),
        open_domain.read_beir, open_domain.write_beir,
    ),
    Format(
        "fever", "id, claim, label, evidence",
        _has("claim", none_of=("cited_doc_ids", "sentence1", "gold_label", "evid", "task", "ctxs")),
        claims.read_fever,
    ),
    Format(
        "fever_symmetric", "id, claim, evidence, gold_label",
        _has("claim", any_of=("sentence1", "gold_label", "evid")), claims.read_symmetric,
    ),
    Format(
        "foolmetwice", "id, text, label, gold_evidence, retrieved_evidence",
        _has("text", "gold_evidence"), claims.read_foolmetwice,
    ),
    Format(
        "scifact", "id, claim, cited_doc_ids, evidence",
        _has("claim", "cited_doc_ids"), claims.read_scifact,
    ),
    Format(
        "alpaca", "instruction, input, output (or chosen, rejected), system",
        _has("instruction", any_of=("output", "chosen"), none_of=(*_CONTEXTS, "task")),
        instructions.read_alpaca, instructions.write_alpaca,
    ),
    Format(
        "preference", "prompt, chosen, rejected",
        _has("prompt", "chosen", "rejected"),
        instructions.read_preference, instructions.write_preference, ("answers",),
    ),
)  # fmt: skip

FORMATS: Mapping[str, Format] = {each.name: each for each in _ALL}
WRITTEN: tuple[str, ...] = tuple(each.name for each in _ALL if each.write)


def named(name: str, written: bool = False) -> Format:
    """The format of this name; InputError naming the nearest where there is none."""
    known = WRITTEN if written else tuple(FORMATS)
    if name not in known:
        what = "format that can be written" if written else "format"
        raise InputError(f"no {what} '{name}'{nearest(name, known)}; there are {', '.join(known)}")
    return FORMATS[name]


def detect(path: PathLike) -> Format:
    """The format of a file, by the fields of its first records; never by its name.

    Raises:
      InputError: the file holds no record, or its records are of no format or of several.
    """
    rows = itertools.islice(read_rows(path), LOOKED_AT)
    first = [(number, row) for number, row in rows if isinstance(row, dict)]
    if not first:
        for _, row in itertools.islice(read_rows(path), 1):
            if isinstance(row, InputError):
                raise InputError(f"{row}{_trec(path)}")
        raise InputError(f"{path}: holds no records")
    fitting = [f for f in _ALL if all(f.fits(row) for _, row in first)]
    if len(fitting) == 1:
        return fitting[0]
    number, row = first[0]
    if fitting:
        names = ", ".join(f.name for f in fitting)
        raise InputError(f"{path}: could be {names}; say which with --format")
    for name in ("text", "contents"):
        if name in row and not {"question", "claim", "query"} & set(row):
            raise InputError(f"{path}:{number}: is a corpus of passages, not a file of questions")
    mixed = [f.name for f in _ALL if f.fits(row)]
    shown = " ".join(", ".join(list(row)[:12]).split())[:200] or "nothing"
    hint = f" (the first record is of {mixed[0]}, others differ)" if mixed else ""
    raise InputError(
        f"{path}:{number}: of no known format{hint}: a record has the fields {shown}; name one "
        f"with --format: {', '.join(FORMATS)}"
    )


def _trec(path: PathLike) -> str:
    """What to do with a file of judgments or a run, of which somebody wants the questions."""
    columns = len(next((line for _, line in read_lines(path)), b"").split())
    what = {3: "judgments", 4: "judgments", 6: "a run"}.get(columns)
    option = "--run" if columns == 6 else "--qrels"
    return f"; {what} of TREC's? Give it as {option} beside the questions" if what else ""


@dataclass
class Account:
    """What became of a file's records; filled while they are read.

    Attributes:
      questions: handed out.
      repeats: left out because an earlier one has the same id, or renamed.
      rejected: bad records, as (line, what is wrong).
      seen: the ids so far, and the line of each.
      lines: of all files so far.
    """

    questions: int = 0
    repeats: int = 0
    rejected: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    seen: dict[str, int] = dataclasses.field(default_factory=dict, repr=False)
    lines: int = 0


@dataclass(frozen=True)
class Reading:
    """How a file of questions is read."""

    format: str = ""
    """name of the format; empty finds it by the first records"""
    dataset: str = ""
    """the benchmark the questions are of; sets their task and their field ``dataset``"""
    task: str = ""
    """form of the answers (short, label, paragraph), where the file does not tell"""
    repeats: str = "refuse"
    """questions whose id came before: refuse, drop or rename (``id#2``)"""
    reject_limit: int = 0
    """bad records that are set aside before the file is refused"""

    def __post_init__(self) -> None:
        if self.repeats not in ("refuse", "drop", "rename"):
            raise InputError(f"repeats must be refuse, drop or rename, found '{self.repeats}'")
        if self.task and self.task not in TASKS:
            raise InputError(
                f"task must be one of {', '.join(TASKS)}{nearest(self.task, TASKS)}, found "
                f"'{self.task}'"
            )
        if self.reject_limit < 0:
            raise InputError(f"reject_limit = {self.reject_limit} must not be negative")
        if self.format:
            named(self.format)
        if self.dataset:
            benchmark(self.dataset)


def read_questions(
    path: PathLike,
    reading: Reading = Reading(),
    account: Account | None = None,
) -> Iterator[tuple[int, Question]]:
    """Yield ``(line number, question)`` of a file of any known format, as it is read.

    Memory holds one record and the ids of all questions. A question without an id is called ``q``
    and its line number.

    Args:
      account: is filled; one account for several files makes them one, with ids that do not repeat.

    Raises:
      InputError: the file is damaged or of no known format, or more of its records are bad than
        ``reading.reject_limit``; the message names file, line, field and value.
    """
    account = Account() if account is None else account
    found = named(reading.format) if reading.format else detect(path)
    seen, before, number = account.seen, account.lines, 0
    for number, row in read_rows(path):
        # Records of a JSON array may share a line; their ids are of the lines that follow.
        account.lines = max(before + number, account.lines + 1)
        try:
            questions = _questions(found, path, number, row, reading, f"q{account.lines}")
            for question in questions:
                if question.id in seen:
                    renamed = _repeated(question, seen, f"{path}:{number}", reading.repeats)
                    account.repeats += 1
                    if renamed is None:
                        continue
                    question = renamed
                seen[question.id] = account.lines
                account.questions += 1
                yield number, question
        except InputError as error:
            # What a file holds, and so what is quoted of it, may run over several lines.
            wrong = " ".join(str(error).splitlines())
            account.rejected.append((number, wrong))
            if len(account.rejected) > reading.reject_limit:
                many = f" (bad record {len(account.rejected)})" if reading.reject_limit else ""
                guess = "" if reading.format else f"; read as '{found.name}'"
                raise InputError(f"{wrong}{guess}{many}") from None
    if not number:
        raise InputError(f"{path}: holds no records")


def _questions(
    found: Format, path: PathLike, number: int, row: Any, reading: Reading, default: str
) -> list[Question]:
    if isinstance(row, InputError):
        raise row
    where = f"{path}:{number}"
    questions = []
    for question in found.read(row, where, default):
        changes: dict[str, Any] = {}
        if reading.dataset:
            entry = benchmark(reading.dataset)
            changes |= {"task": entry.task, "extra": question.extra | {"dataset": entry.name}}
        if reading.task:
            changes["task"] = reading.task
        questions.append(replace(question, **changes))
    return questions


def _repeated(
    question: Question, seen: Mapping[str, int], where: str, repeats: str
) -> Question | None:
    if repeats == "drop":
        return None
    if repeats == "rename":
        count = next(n for n in itertools.count(2) if f"{question.id}#{n}" not in seen)
        return replace(question, id=f"{question.id}#{count}")
    raise InputError(
        f"{where}: the id '{question.id}' is that of line {seen[question.id]}; --repeats drop or "
        f"--repeats rename goes on"
    )


def write_rows(
    name: str, questions: Iterable[Question], lost: Counter[str] | None = None
) -> Iterator[dict[str, Any]]:
    """The records of questions in a format, one after the other.

    Args:
      lost: counts, by what is lost, the questions of which the format cannot keep something.

    Raises:
      InputError: there is no such format to write, or it cannot hold a question.
    """
    chosen = named(name, written=True)
    assert chosen.write is not None
    for question in questions:
        if lost is not None:
            lost.update(losses(chosen, question))
        written = chosen.write(question)
        yield from [written] if isinstance(written, dict) else written


def losses(chosen: Format, question: Question) -> list[str]:
    """What of a question a format cannot keep."""
    held = {
        "answers": bool(question.answers),
        "passages": bool(question.passages),
        "gold": question.gold is not None,
        "expert": question.expert is not None,
    }
    if chosen.name == "alpaca":  # keeps its words, not its fields
        return [] if question.answers or question.expert is not None else ["question"]
    return [what for what, there in held.items() if there and what not in chosen.keeps]
