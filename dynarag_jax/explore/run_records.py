"""A run's records as the page asks for them: read once, and read again where files change."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dynarag_jax.errors import InputError, nearest
from dynarag_jax.explore import details
from dynarag_jax.explore.columns import Columns, together
from dynarag_jax.explore.kept import KeptColumns, Stamp, stamp
from dynarag_jax.explore.overview import overview
from dynarag_jax.explore.query import matching, ordered, read_query, side_of
from dynarag_jax.explore.rows import row_json, set_json
from dynarag_jax.explore.sources import ModelRecord, QuestionSet, RecordFile, find_sets, is_shuffled
from dynarag_jax.explore.steps import StepModels
from dynarag_jax.explore.table import QuestionTable, Side, join
from dynarag_jax.records import Question

LOOK_EVERY = 2.0
"""seconds between two looks at the files' sizes and times"""


@dataclass
class ReadSet:
    """One question set, read.

    Attributes:
      questions: columns of the question file; None where it cannot be read.
      path: the file that their places are of.
      columns: of each of the set's record files; None where it cannot be read.
    """

    source: QuestionSet
    questions: Columns | None
    path: Path
    columns: list[Columns | None]
    table: QuestionTable
    notes: list[str] = field(default_factory=list)


@dataclass
class RunState:
    """A state of the run's files, as read.

    Attributes:
      stamps: sizes and times of all files then.
      version: counts the times the run was read.
    """

    sets: dict[str, ReadSet]
    stamps: dict[Path, Stamp | None]
    version: int
    seconds: float


class RunRecords:
    """The records of a run.

    Attributes:
      root: the run's directory.
      log: hears when files are read, and why.
    """

    def __init__(self, root: Path, log: Callable[[str], object] = lambda line: None):
        self.root, self.log = root, log
        find_sets(root)  # a run without records is refused before anything is served
        self._kept = KeptColumns(root / ".explore")
        if not self._kept.writable:
            log(f"{self._kept.place}: cannot be written; the files are read at each start")
        self._models = StepModels()
        self._current: RunState | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._read, self._total, self._why = 0, 0, ""
        self._failed = ""
        self._looked = 0.0

    # ------------------------------------------------------------------ reading

    def refresh(self) -> None:
        """Begin to read the files where they changed since, in a thread of its own."""
        with self._lock:
            now = time.monotonic()
            busy = self._thread is not None and self._thread.is_alive()
            if busy or (self._current and now - self._looked < LOOK_EVERY):
                return
            self._looked = now
            try:
                sets = find_sets(self.root)
            except InputError as error:
                self._failed = str(error)
                return
            stamps = {path: stamp(path) for path in _paths(sets)}
            if self._current and stamps == self._current.stamps:
                return
            self._why = _why(self._current.stamps if self._current else None, stamps)
            self._read, self._total = 0, sum(s[0] for s in stamps.values() if s)
            self._thread = threading.Thread(target=self._build, args=(sets, stamps), daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Read what there is to read, and return when it is read."""
        self._looked = 0.0
        self.refresh()
        if self._thread is not None:
            self._thread.join()

    def _build(self, sets: list[QuestionSet], stamps: dict[Path, Stamp | None]) -> None:
        began = time.monotonic()
        self.log(f"reading {self._total / 2**20:,.1f} MiB of records ({self._why})")
        try:
            read = {one.name: self._read_set(one) for one in sets}
        except Exception as error:  # noqa: BLE001 - a thread's error would be said nowhere else
            self._failed = f"{type(error).__name__}: {error}"
            self.log(f"cannot read the records: {self._failed}")
            return
        seconds = time.monotonic() - began
        version = self._current.version + 1 if self._current else 1
        self._failed = ""
        self._current = RunState(read, stamps, version, seconds)
        for one in read.values():
            for note in one.notes:
                self.log(note)
            counts = f"{len(one.table):,} questions, {len(one.table.sides)} sides"
            self.log(f"{one.source.name}: {counts}")
        self.log(f"read in {seconds:.1f} s")

    def _heard(self, size: int) -> None:
        self._read += size

    def _read_set(self, source: QuestionSet) -> ReadSet:
        notes: list[str] = []
        questions, path = None, source.questions
        try:
            questions, path = self._kept.get(source.questions, "questions", self._heard)
            notes += _notes(source.questions, questions)
            for stage, recorded in source.recorded.items():
                if questions.sha256 and recorded not in ("", questions.sha256):
                    notes.append(f"{source.questions}: was changed after stage '{stage}' read it")
        except InputError as error:
            notes.append(f"{error}; questions are shown by their ids, without texts and candidates")
        columns: list[Columns | None] = []
        for file in source.files:
            try:
                each = [self._kept.get(p, file.kind, self._heard)[0] for p in file.paths]
                columns.append(together(each) if len(each) > 1 else each[0])
                for one, own in zip(each, file.paths, strict=True):
                    notes += _notes(own, one)
            except InputError as error:
                notes.append(str(error))
                columns.append(None)
        named = zip(source.files, columns, strict=True)
        table = join(questions, [(file.name, file.kind, own) for file, own in named])
        if questions is not None and (lost := int((table.place < 0).sum())):
            first = table.ids[int(np.argmin(table.place))]
            notes.append(
                f"{source.questions}: lacks {lost} questions that records are of, '{first}' among "
                f"them"
            )
        return ReadSet(source, questions, path, columns, table, notes)

    # ------------------------------------------------------------------ answers

    def state(self) -> dict[str, Any]:
        """What the page asks first: what there is, and whether it is being read."""
        self.refresh()
        reading, current = self._thread is not None and self._thread.is_alive(), self._current
        return {
            "run": self.root.absolute().name,
            "path": str(self.root),
            "version": current.version if current else 0,
            "reading": {"part": min(self._read / max(self._total, 1), 1.0), "why": self._why}
            if reading
            else None,
            "failed": self._failed,
            "kept": self._kept.writable,
            "sets": [
                set_json(one.source, one.table, one.questions, one.notes)
                for one in current.sets.values()
            ]
            if current
            else [],
        }

    def questions(self, given: Mapping[str, str]) -> dict[str, Any]:
        """Questions by their addresses' parameters: a page of them, and counts of all found.

        Raises:
          InputError: a parameter is wrong.
        """
        one, rest = self._set(given)
        query = read_query(rest)
        table = one.table
        found = matching(table, query)
        places = ordered(table, query, found)
        a, b = side_of(table, query.a), side_of(table, query.b)
        page = places[query.offset : query.offset + query.limit]
        return {
            "total": len(places),
            "of": len(table),
            "rows": [row_json(table, i, a, b) for i in page.tolist()],
            "overview": overview(table, found, a, b),
            "version": self._current.version if self._current else 0,
        }

    def question(self, given: Mapping[str, str]) -> dict[str, Any]:
        """One question in full: ``set``, ``id``.

        Raises:
          InputError: there is no such question, or its files changed meanwhile.
        """
        one, rest = self._set(given)
        place = _place(one.table, rest)
        question = _question(one, place)
        value: dict[str, Any] = {
            "id": one.table.ids[place],
            "text": one.table.texts[place],
            "question": None if question is None else details.question_json(question),
            "systems": [],
            "rollouts": [],
        }
        for side in one.table.sides.values():
            at = int(side.place[place])
            if at < 0:
                continue
            file = one.source.files[side.file]
            model, why = _model_of(file, side)
            about = {"name": side.name, "model": model is not None, "why": why}
            if side.value_name == "reward":
                rollout = details.read_rollout(side.columns, file.paths, at)
                value["rollouts"].append(about | file.about | details.rollout_json(rollout))
            else:
                found = details.prediction_json(side.columns, file.paths, at, question)
                value["systems"].append(about | found)
        return value

    def steps(self, given: Mapping[str, str]) -> dict[str, Any]:
        """The steps of a list: ``set``, ``id``, ``side`` whose model is asked, ``list``: ``3,1``.

        Raises:
          InputError: that side has no model, or it cannot write the list.
        """
        one, rest = self._set(given)
        place = _place(one.table, {"id": rest.get("id", "")})
        if unknown := set(rest) - {"id", "side", "list"}:
            raise InputError(f"unknown parameter '{min(unknown)}'")
        side = side_of(one.table, rest.get("side", ""))
        if side is None:
            raise InputError("name the side whose model is asked: side")
        model, why = _model_of(one.source.files[side.file], side)
        question = _question(one, place)
        if model is None or question is None:
            raise InputError(why or "the question file is gone, and with it the prompt")
        words = [word for word in rest.get("list", "").split(",") if word]
        if not all(w.isascii() and w.isdigit() and len(w) < 7 for w in words):
            raise InputError("list must be positions of candidates, such as 3,1")
        return self._models.steps(model, question, [int(word) for word in words])

    def _set(self, given: Mapping[str, str]) -> tuple[ReadSet, dict[str, str]]:
        self.refresh()
        if self._current is None:
            raise details.RecordsChanged(self._failed or "the records are being read")
        rest = dict(given)
        name = rest.pop("set", "")
        if name not in self._current.sets:
            known = list(self._current.sets)
            raise InputError(f"no question set '{name[:80]}'{nearest(name, known)}")
        return self._current.sets[name], rest


# ---------------------------------------------------------------------------- parts of answers


def _paths(sets: list[QuestionSet]) -> list[Path]:
    return [p for one in sets for p in (one.questions, *(p for f in one.files for p in f.paths))]


def _why(before: Mapping[Path, Stamp | None] | None, now: Mapping[Path, Stamp | None]) -> str:
    if before is None:
        return "first look"
    other = [path for path in now if before.get(path) != now[path]]
    other += [path for path in before if path not in now]
    return f"{other[0]} changed" if other else "nothing changed"


def _notes(path: Path, columns: Columns) -> list[str]:
    notes = []
    if columns.unread:
        notes.append(
            f"{path}: {columns.unread} records cannot be read and are left out: "
            f"{'; '.join(columns.wrong)}"
        )
    if columns.unfinished:
        notes.append(f"{path}: the last line is unfinished and left out")
    return notes


def _place(table: QuestionTable, rest: Mapping[str, str]) -> int:
    if unknown := set(rest) - {"id"}:
        raise InputError(f"unknown parameter '{min(unknown)}'")
    try:
        return table.ids.index(rest.get("id", ""))
    except ValueError:
        raise InputError(f"no question '{rest.get('id', '')[:80]}' in this set") from None


def _question(one: ReadSet, place: int) -> Question | None:
    at = int(one.table.place[place])
    if one.questions is None or at < 0:
        return None
    return details.read_question(one.questions, one.path, at)


def _model_of(file: RecordFile, side: Side) -> tuple[ModelRecord | None, str]:
    """The model that wrote a side's lists; None, and why there is none."""
    system = "" if file.kind == "rollouts" else side.name
    if is_shuffled(system):
        return None, "it saw the candidates in a random order of its own"
    model = file.models.get(system)
    if model is None:
        return None, "no model of this run wrote these lists"
    if not model.path.is_dir():
        return None, f"its model, {model.path}, is not there any more"
    return model, ""
