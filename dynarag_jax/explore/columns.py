"""Columns of a file of records: what is searched and sorted, and where each line stands.

A file is read once, strictly, line by line. What cannot be read is counted and named; the numbers
are kept in arrays, the texts in one block, and the lines stay where they are: a record in full is
read from its place when somebody asks for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.predictions import prediction_from_json
from dynarag_jax.fields import Fields
from dynarag_jax.files import LONGEST_LINE, parse_object
from dynarag_jax.records import question_from_json
from dynarag_jax.rollout_records import Rollout, Trajectory, rollout_from_json

UNKNOWN = -1
"""In columns of counts: what the record does not say."""
NAMED = 5
"""Lines that cannot be read and are named; all are counted."""


@dataclass
class Columns:
    """What is known of a file's records.

    Attributes:
      kind: questions, rollouts or predictions.
      arrays: by name; ``offset`` and ``length`` say where the lines stand, in bytes.
      strings: by name, one a record.
      names: codes of an array to what they stand for, by the array's name.
      wrong: the first lines that cannot be read, each with what is wrong.
      unread: how many such lines there are.
      unfinished: whether the last line lacks its end: somebody is writing.
      sha256: of the bytes that were read.
    """

    kind: str
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    strings: dict[str, list[str]] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    unread: int = 0
    unfinished: bool = False
    sha256: str = ""

    def __len__(self) -> int:
        return len(self.arrays["offset"])


def digest(value: Any) -> int:
    """64 bits of a list or a text, to see whether two of them differ."""
    raw = json.dumps(value, ensure_ascii=False).encode()
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


def favorite(trajectories: Sequence[Trajectory]) -> Trajectory | None:
    """The list that was sampled most often; of several, the most probable."""
    return max(trajectories, key=lambda t: (t.count, t.logp), default=None)


def together(each: Sequence[Columns]) -> Columns:
    """Files of one kind as one; ``part`` says which file a record is of. The first of an id counts.

    A system is named in every file alike, so that codes of coded words are those of the whole.
    """
    whole = Columns(each[0].kind)
    words = {n: list(dict.fromkeys(w for c in each for w in c.names[n])) for n in each[0].names}
    systems = [_decoded(c, "system") for c in each]
    seen: set[tuple[str, str]] = set()
    kept = []
    for columns, named in zip(each, systems, strict=True):
        keys = list(zip(named, columns.strings["id"], strict=True))
        kept.append(np.array([key not in seen for key in keys], bool))
        seen.update(keys)
    for name in each[0].arrays:
        if name.startswith("each_"):
            continue
        values = [c.arrays[name] for c in each]
        if name in words:
            values = [
                np.array([words[name].index(w) for w in c.names[name]], np.int32)[c.arrays[name]]
                if len(c)
                else c.arrays[name]
                for c in each
            ]
        whole.arrays[name] = np.concatenate([v[k] for v, k in zip(values, kept, strict=True)])
    counts = [np.full(int(k.sum()), part, np.int32) for part, k in enumerate(kept)]
    whole.arrays["part"] = np.concatenate(counts)
    if "each_start" in each[0].arrays:
        _together_each(whole, each, kept)
    for name in each[0].strings:
        pairs = zip(each, kept, strict=True)
        whole.strings[name] = [
            v for c, k in pairs for v, stays in zip(c.strings[name], k, strict=True) if stays
        ]
    whole.names = words
    whole.unread = sum(c.unread for c in each)
    whole.wrong = [line for c in each for line in c.wrong][:NAMED]
    whole.unfinished = any(c.unfinished for c in each)
    return whole


def _decoded(columns: Columns, name: str) -> list[str]:
    """A coded column's words; empty ones where there is no such column."""
    if name not in columns.names:
        return [""] * len(columns)
    return [columns.names[name][code] for code in columns.arrays[name].tolist()]


def _together_each(whole: Columns, each: Sequence[Columns], kept: Sequence[np.ndarray]) -> None:
    """Put the columns of lists behind each other."""
    sizes = []
    for columns, stays in zip(each, kept, strict=True):
        sizes.append(np.diff(columns.arrays["each_start"])[stays])
    whole.arrays["each_start"] = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
    for name in ("each_k", "each_reward", "each_count"):
        parts = []
        for columns, stays in zip(each, kept, strict=True):
            of = np.repeat(stays, np.diff(columns.arrays["each_start"]))
            parts.append(columns.arrays[name][of])
        whole.arrays[name] = np.concatenate(parts)


# ---------------------------------------------------------------------------- one record


def _question(value: dict[str, Any], where: str) -> dict[str, Any]:
    question = question_from_json(value, where)
    needed = question.gold_list()
    return {
        "id": question.id,
        "text": question.text,
        "task": question.task,
        "type": question.type,
        "needed": UNKNOWN if needed is None else len(needed),
        "candidates": len(question.passages),
    }


def _rollout(value: dict[str, Any], where: str) -> dict[str, Any]:
    rollout = rollout_from_json(value, where)
    first = favorite(rollout.trajectories)
    rewards, counts = _rewards(rollout)
    known = [(r, c) for r, c in zip(rewards, counts, strict=True) if r == r]
    samples = sum(c for _, c in known)
    return {
        "id": rollout.id,
        "k": UNKNOWN if first is None else len(first.list),
        "list": digest(None if first is None else first.list),
        "answer": digest(None if first is None else first.answer),
        "mean": sum(r * c for r, c in known) / samples if known else float("nan"),
        "best": max((r for r, _ in known), default=float("nan")),
        "worst": min((r for r, _ in known), default=float("nan")),
        "distinct": len(rollout.trajectories),
        "each_k": [len(t.list) for t in rollout.trajectories],
        "each_reward": rewards,
        "each_count": counts,
    }


def _rewards(rollout: Rollout) -> tuple[list[float], list[int]]:
    """The rewards of its lists, NaN where a term is missing, and how often each was sampled."""
    rewards = [float("nan") if t.missing else t.reward for t in rollout.trajectories]
    return rewards, [t.count for t in rollout.trajectories]


def _prediction(value: dict[str, Any], where: str) -> dict[str, Any]:
    one, fields = prediction_from_json(value, where), Fields(where, value)
    size = UNKNOWN
    if one.has_list():
        size = len(one.list if one.list is not None else one.chosen or ())
    score = fields.number("score")
    listed = one.list if one.list is not None else ["chosen", *(one.chosen or ())]
    return {
        "id": one.id,
        "system": fields.string("system", default=""),
        "k": size,
        "score": float("nan") if score is None else score,
        "list": digest(listed),
        "answer": digest(one.answer),
        "failed": bool(one.failed),
    }


READERS: Mapping[str, Callable[[dict[str, Any], str], dict[str, Any]]] = {
    "questions": _question,
    "rollouts": _rollout,
    "predictions": _prediction,
}
TYPES = {
    "needed": np.int32, "candidates": np.int32, "k": np.int32, "distinct": np.int32,
    "mean": np.float64, "best": np.float64, "worst": np.float64, "score": np.float64,
    "list": np.uint64, "answer": np.uint64, "failed": np.bool_,
    "offset": np.int64, "length": np.int64,
    "each_k": np.int32, "each_reward": np.float64, "each_count": np.int64,
}  # fmt: skip
CODED = ("task", "type", "system")
STRINGS = ("id", "text")


# ---------------------------------------------------------------------------- a whole file


def read_columns(
    path: Path, kind: str, heard: Callable[[int], None] = lambda size: None
) -> Columns:
    """Read a plain JSONL file of one kind of records.

    Args:
      heard: called now and then with the bytes read since the last call.

    Raises:
      InputError: the file cannot be read as lines at all.
    """
    read, found = READERS[kind], Columns(kind)
    rows: dict[str, list[Any]] = {}
    hashed, seen, unheard = hashlib.sha256(), {}, 0
    for number, offset, raw in _lines(path):
        hashed.update(raw)
        unheard += len(raw)
        if unheard > 1 << 20:
            heard(unheard)
            unheard = 0
        if not raw.endswith(b"\n"):
            # The trace of a writer at work or killed, unless it is whole all the same.
            found.unfinished = True
        if not raw.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = parse_object(raw, where)
            row = read(value, where)
            key = (row.get("system", ""), row["id"])
            if key in seen:
                raise InputError(f"{where}: repeats '{row['id']}' of line {seen[key]}")
        except InputError as error:
            if found.unfinished:
                continue
            found.unread += 1
            if len(found.wrong) < NAMED:
                found.wrong.append(" ".join(str(error).split()))
            continue
        found.unfinished = False
        seen[key] = number
        row |= {"offset": offset, "length": len(raw)}
        for name, item in row.items():
            rows.setdefault(name, []).append(item)
    heard(unheard)
    found.sha256 = hashed.hexdigest()
    _pack(found, rows)
    return found


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Number, place and bytes of each line of a file that is not packed."""
    offset = 0
    with path.open("rb") as stream:
        number = 0
        while line := stream.readline(LONGEST_LINE + 1):
            number += 1
            if len(line) > LONGEST_LINE:
                raise InputError(f"{path}:{number}: a line of more than {LONGEST_LINE >> 20} MiB")
            yield number, offset, line
            offset += len(line)


def _pack(found: Columns, rows: dict[str, list[Any]]) -> None:
    """The rows' values as arrays, coded words and strings."""
    wanted = READERS_GIVE[found.kind]
    for name in (*wanted, "offset", "length"):
        values = rows.get(name, [])
        if name in STRINGS:
            found.strings[name] = values
        elif name in CODED:
            known = {word: code for code, word in enumerate(dict.fromkeys(values))}
            found.names[name] = list(known)
            found.arrays[name] = np.array([known[v] for v in values], np.int32)
        elif name.startswith("each_"):
            found.arrays[name] = np.array([x for own in values for x in own], TYPES[name])
            ends = np.cumsum([0, *map(len, values)], dtype=np.int64)
            found.arrays["each_start"] = ends
        else:
            found.arrays[name] = np.array(values, TYPES[name])


READERS_GIVE = {
    "questions": ("id", "text", "task", "type", "needed", "candidates"),
    "rollouts": (
        "id", "k", "list", "answer", "mean", "best", "worst", "distinct",
        "each_k", "each_reward", "each_count",
    ),
    "predictions": ("id", "system", "k", "score", "list", "answer", "failed"),
}  # fmt: skip
"""Columns of each kind, in files without records, too."""
