"""The formats by name: how a file's format is found, how its questions are read and written."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynarag_jax.data import claims, instructions, multihop, open_domain, ranked
from dynarag_jax.data.values import missing_id
from dynarag_jax.delimited import Quotes
from dynarag_jax.errors import InputError, nearest
from dynarag_jax.files import PathLike, read_lines
from dynarag_jax.records import Question
from dynarag_jax.rows import read_rows

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


def _ours(value: Mapping[str, Any]) -> bool:
    """Whether a record is of our own layout, whose ``task`` may be left to its default."""
    gold = value.get("gold")
    return _has("id", "question")(value) and (
        "task" in value
        or isinstance(value.get("expert"), dict)
        or (isinstance(gold, list) and all(isinstance(g, str) for g in gold) and "ctxs" in value)
    )


def _queries(value: Mapping[str, Any]) -> bool:
    """Whether a record is a query of BEIR's or MTEB's; a passage has a title, or its field."""
    return (
        _has("text", any_of=("_id", "id"), none_of=(
            "question", "label", "gold_evidence", "claim", "contents", "ctxs", "task"))(value)
        and not value.get("title")
    )  # fmt: skip


_CONTEXTS = ranked.CONTEXTS
_DPR = ("positive_ctxs", "hard_negative_ctxs")


def _unmapped(value: dict[str, Any], where: str, default: str) -> Iterator[Question]:
    raise InputError(f"{where}: is read by --fields.question and other paths")


_PLAIN = (
    *_CONTEXTS, *_DPR, "context", "paragraphs", "passages", "supporting_facts", "task", "qa_pairs",
    "gold_titles", "golden_answers", "possible_answers", "question_id", "instruction", "output",
    "chosen", "evidences", "question_decomposition", "qas", "q_id", "annotations", "decomposition",
)  # fmt: skip
_EVERYTHING = ("answers", "passages", "gold", "expert", "type", "task")

_ALL = (
    Format(
        "records", "id, question, answers, task, type, ctxs, gold, expert",
        _ours, ranked.read_records, ranked.write_records, _EVERYTHING,
    ),
    Format(
        "contexts", "id, question, answers, ctxs: [id, title, text, score, isgold, has_answer]",
        lambda v: (
            _has(any_of=("question", "instruction"))(v) and not _ours(v)
            and _has(any_of=_CONTEXTS, none_of=("task", "qa_pairs", "output", "positive_ctxs"))(v)
        ),
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
        lambda v: (
            _has("question", any_of=("answer", "answers"), none_of=_PLAIN)(v) and not _ours(v)
        ),
        open_domain.read_qa, open_domain.write_qa, ("answers",),
    ),
    Format(
        "strategyqa", "qid, question, answer (true or false), decomposition, evidence_paragraphs",
        _has("question", "answer", "decomposition", any_of=("facts", "evidence")),
        open_domain.read_strategyqa,
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
        "beir", "_id (or id), text, metadata (with qrels)",
        _queries,
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
        "fields", "any, by paths: --fields.question, --fields.answers, --fields.passages ...",
        lambda v: False, _unmapped,
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


def detect(path: PathLike, columns: Sequence[str] = (), quotes: Quotes = "auto") -> Format:
    """The format of a file, by the fields of its first records; never by its name.

    Args:
      columns, quotes: of a table, as of ``rows.read_rows``.

    Raises:
      InputError: the file holds no record, or its records are of no format or of several.
    """
    rows = itertools.islice(read_rows(path, columns, quotes), LOOKED_AT)
    first = [(number, row) for number, row in rows if isinstance(row, dict)]
    if not first:
        for _, row in itertools.islice(read_rows(path, columns, quotes), 1):
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
    if _ours(row):
        return FORMATS["records"]  # what the others lack is named when they are read
    for name in ("text", "contents"):
        if name in row and not {"question", "claim", "query"} & set(row):
            raise InputError(
                f"{path}:{number}: is a corpus of passages, not a file of questions; --format beir "
                f"reads its texts as questions"
            )
    mixed = [f.name for f in _ALL if f.fits(row)]
    shown = " ".join(", ".join(list(row)[:12]).split())[:200] or "nothing"
    hint = f" (the first record is of {mixed[0]}, others differ)" if mixed else _pandas(row)
    raise InputError(
        f"{path}:{number}: of no known format{hint}: a record has the fields {shown}; name one "
        f"with --format ({', '.join(FORMATS)}), or say by --format fields where things stand"
    )


def _pandas(row: Mapping[str, Any]) -> str:
    """What to do with a table that pandas wrote column by column."""
    columns = [value for value in row.values() if isinstance(value, dict) and "0" in value]
    if len(columns) < len(row) or len(row) < 2:
        return ""
    return " (whole columns, as pandas' to_json; write it with orient='records', lines=True)"


def _trec(path: PathLike) -> str:
    """What to do with a file of judgments or a run, of which somebody wants the questions."""
    columns = len(next((line for _, line in read_lines(path)), b"").split())
    what = {3: "judgments", 4: "judgments", 6: "a run"}.get(columns)
    option = "--run" if columns == 6 else "--qrels"
    return f"; {what} of TREC's? Give it as {option} beside the questions" if what else ""


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


CANDIDATES_ONLY = ("contexts", "dpr", "hotpotqa")
"""Formats that mark the needed passages where they stand among the candidates."""


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
    lost = [what for what, there in held.items() if there and what not in chosen.keeps]
    there = {passage.id for passage in question.passages}
    absent = [name for name in question.gold or () if name not in there]
    if chosen.name == "hotpotqa":  # names passages by title
        absent = [name for name in absent if not name.startswith(missing_id(""))]
    if chosen.name in CANDIDATES_ONLY and absent:
        lost.append("needed passages that are no candidates")
    return lost
