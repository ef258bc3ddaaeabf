"""What is found, sorted and counted, against the same said in plain Python over the records."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynarag_jax.errors import InputError
from dynarag_jax.explore.columns import read_columns
from dynarag_jax.explore.overview import overview
from dynarag_jax.explore.query import (
    CHANGES,
    LONGEST,
    SORTS,
    QuestionQuery,
    matching,
    ordered,
    read_query,
)
from dynarag_jax.explore.table import join

NAMES = [f"q{i}" for i in range(8)]
lists = st.lists(st.integers(1, 20), max_size=20, unique=True)


@st.composite
def records(draw):
    """Questions, rollouts and predictions of two systems, as their files' lines."""
    questions, rollouts, predictions = [], [], []
    for name in draw(st.permutations(NAMES)):
        gold = draw(st.none() | st.lists(st.integers(1, 20), max_size=3, unique=True))
        if draw(st.integers(0, 9)):
            questions.append(
                {
                    "id": name,
                    "question": draw(st.sampled_from(["Who is ADA", "straße in Bern", "what"])),
                    "answers": ["a"],
                    "task": draw(st.sampled_from(["short", "label"])),
                    "type": draw(st.sampled_from(["", "bridge"])),
                    "ctxs": [{"id": f"p{i}", "text": "t"} for i in range(1, 21)],
                    **({} if gold is None else {"gold": [f"p{i}" for i in gold]}),
                }
            )
        if draw(st.booleans()):
            own = draw(st.lists(lists.map(tuple), max_size=4, unique=True))
            rollouts.append(
                {
                    "id": name, "shown": 20, "policy": "p", "reference": "r",
                    "trajectories": [
                        {
                            "list": list(one), "count": draw(st.integers(1, 3)),
                            "answer": draw(st.sampled_from("ab")),
                            "terms": {}, "logp": draw(st.sampled_from([-1.0, -2.0])),
                            "reward": draw(st.sampled_from([0.0, 0.25, 1.0, None])),
                        }
                        for one in own
                    ],
                }
            )  # fmt: skip
        for system in ("before", "after"):
            if draw(st.integers(0, 4)):
                failed = draw(st.integers(0, 5)) == 0
                predictions.append(
                    {
                        "id": name, "system": system,
                        "list": [] if failed else draw(lists),
                        "answer": draw(st.sampled_from("ab")),
                        "score": draw(st.sampled_from([0.0, 0.5, 1.0])),
                        **({"failed": "because"} if failed else {}),
                    }
                )  # fmt: skip
    return questions, rollouts, predictions


spans = st.sampled_from(["", "0", "1", "2", "1-3", "4-", "-2", "unknown"])
bounds = st.sampled_from(["", "0", "0.25", "0.5", "1"])
sides = st.sampled_from(["", "before", "after", "sampled"])
queries = st.builds(
    QuestionQuery,
    a=sides, b=sides, q=st.sampled_from(["", "ada", "WHO is", "STRASSE", "q3", "bern q"]),
    task=st.sampled_from(["", "", "short"]), type=st.sampled_from(["", "", "bridge"]),
    needed=spans, ak=spans, bk=spans, amin=bounds, amax=bounds, bmin=bounds, bmax=bounds,
    change=st.sampled_from(["any", *CHANGES]), failed=st.sampled_from(["", "", "a", "b"]),
    sort=st.sampled_from([*SORTS, *(f"-{name}" for name in SORTS)]),
)  # fmt: skip


# ---------------------------------------------------------------------------- in plain Python


class Plain:
    """The records as dictionaries, and the question whether one is found."""

    def __init__(self, questions, rollouts, predictions):
        self.questions = {q["id"]: q for q in questions}
        self.sides = {"sampled": {r["id"]: self.of_rollout(r) for r in rollouts}}
        for p in predictions:
            self.sides.setdefault(p["system"], {})[p["id"]] = {
                "k": len(p["list"]), "value": p["score"], "list": p["list"],
                "answer": p["answer"], "failed": "failed" in p,
                "lists": [(len(p["list"]), p["score"], 1)], "score": True,
            }  # fmt: skip
        known = {name for side in self.sides.values() for name in side}
        self.ids = [name for name in self.questions if name in known]
        self.ids += sorted(known - set(self.ids), key=self.seen(rollouts, predictions).index)

    @staticmethod
    def seen(rollouts, predictions):
        return [x["id"] for x in [*rollouts, *predictions]]

    @staticmethod
    def of_rollout(rollout):
        own = rollout["trajectories"]
        best = max(own, key=lambda t: (t["count"], t["logp"]), default=None)
        known = [t for t in own if t["reward"] is not None]
        count = sum(t["count"] for t in known)
        rewards = [t["reward"] for t in known]
        return {
            "k": None if best is None else len(best["list"]),
            "list": None if best is None else best["list"],
            "answer": None if best is None else best["answer"],
            "value": sum(t["reward"] * t["count"] for t in known) / count if known else None,
            "spread": max(rewards) - min(rewards) if rewards else None,
            "failed": False, "score": False,
            "lists": [(len(t["list"]), t["reward"], t["count"]) for t in own],
        }  # fmt: skip

    def needed(self, name):
        gold = self.questions.get(name, {}).get("gold")
        return None if gold is None else len(gold)

    @staticmethod
    def in_span(text, value):
        if not text:
            return True
        if text == "unknown" or value is None:
            return text == "unknown" and value is None
        least, dash, most = text.partition("-")
        if not dash:
            return value == int(least)
        return (not least or value >= int(least)) and (not most or value <= int(most))

    def find(self, query):
        """The ids found, in the file's order; None where the query makes no sense."""
        a, b = self.sides.get(query.a), self.sides.get(query.b)
        for name, side in ((query.a, a), (query.b, b)):
            if name and side is None:
                return None
        for letter, side in (("a", a), ("b", b)):
            asked = [getattr(query, f"{letter}{x}") for x in ("k", "min", "max")]
            if side is None and (any(asked) or query.failed == letter):
                return None
        if query.change != "any" and (a is None or b is None):
            return None
        if query.change in ("better", "worse") and (query.a == "sampled") != (query.b == "sampled"):
            return None
        for field in ("task", "type"):
            wanted = getattr(query, field)
            if wanted and wanted not in {q[field] for q in self.questions.values()}:
                return None
        return [name for name in self.ids if self.fits(query, name, a, b)]

    def fits(self, query, name, a, b):
        question = self.questions.get(name, {"question": "", "task": None, "type": None})
        text = f"{question['question']} {name}".casefold()
        if not all(word in text for word in query.q.casefold().split()):
            return False
        if query.task and question["task"] != query.task:
            return False
        if query.type and question["type"] != query.type:
            return False
        if not self.in_span(query.needed, self.needed(name)):
            return False
        for letter, side in (("a", a), ("b", b)):
            one = side.get(name) if side is not None else None
            if not self.in_span(getattr(query, f"{letter}k"), one and one["k"]):
                return False
            value = one["value"] if one else None
            least, most = getattr(query, f"{letter}min"), getattr(query, f"{letter}max")
            if (least or most) and value is None:
                return False
            if (least and value < float(least)) or (most and value > float(most)):
                return False
            if query.failed == letter and not (one and one["failed"]):
                return False
        return query.change == "any" or self.changed(query.change, a.get(name), b.get(name))

    @staticmethod
    def changed(change, one, other):
        if one is None or other is None:
            return False
        if change in ("better", "worse"):
            if one["value"] is None or other["value"] is None:
                return False
            gain = other["value"] - one["value"]
            return gain > 0 if change == "better" else gain < 0
        if one["failed"] or other["failed"]:
            return False
        if change == "answer":
            return one["answer"] != other["answer"]
        if one["k"] is None or other["k"] is None:
            return False
        return {
            "list": one["list"] != other["list"],
            "same": one["list"] == other["list"],
            "even": one["k"] == other["k"],
            "longer": other["k"] > one["k"],
            "shorter": other["k"] < one["k"],
        }[change]


def table_of(where, questions, rollouts, predictions):
    files = []
    for kind, rows in (
        ("questions", questions), ("rollouts", rollouts), ("predictions", predictions)
    ):  # fmt: skip
        path = where / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        files.append(read_columns(path, kind))
        assert (files[-1].unread, len(files[-1])) == (0, len(rows)), files[-1].wrong
    return join(files[0], [("sampled", "rollouts", files[1]), ("eval", "predictions", files[2])])


@settings(max_examples=120)
@given(given_records=records(), query=queries)
def test_found_is_what_plain_python_finds(tmp_path_factory, given_records, query):
    table = table_of(tmp_path_factory.getbasetemp(), *given_records)
    plain = Plain(*given_records)
    assert table.ids == plain.ids
    expected = plain.find(query)
    if expected is None:
        with pytest.raises(InputError):
            matching(table, query)
        return
    found = matching(table, query)
    assert [name for name, one in zip(table.ids, found, strict=True) if one] == expected
    check_counts(table, plain, query, found, expected)
    check_order(table, plain, query, found, expected)


def check_counts(table, plain, query, found, expected):
    sides = [table.sides.get(query.a), table.sides.get(query.b)]
    counted = overview(table, found, *sides)["sides"]
    for letter, name in (("a", query.a), ("b", query.b)):
        if not name:
            assert letter not in counted
            continue
        cells, sums = Counter(), {}
        for question in expected:
            one = plain.sides[name].get(question)
            if one is None or one["failed"]:
                continue
            needed = plain.needed(question)
            for k, value, count in one["lists"]:
                size = min(k, LONGEST)
                cells[-1 if needed is None else min(needed, LONGEST), size] += count
                if value is not None:
                    sums.setdefault(size, []).extend([value] * count)
        assert {(n, k): count for n, k, count in counted[letter]["cells"]} == dict(cells)
        assert [k for k, _, _ in counted[letter]["by_k"]] == sorted(sums)
        for k, count, mean in counted[letter]["by_k"]:
            assert count == len(sums[k])
            assert mean == pytest.approx(sum(sums[k]) / count)


def check_order(table, plain, query, found, expected):
    name, down = query.sort.removeprefix("-"), query.sort.startswith("-")
    sides = {"a": plain.sides.get(query.a), "b": plain.sides.get(query.b)}
    wants = {"needed": "", "file": "", "change": "ab"}.get(name, name[0])
    senseless = any(sides[letter] is None for letter in wants)
    if name.endswith(".spread") and not senseless:
        senseless = getattr(query, name[0]) != "sampled"
    if senseless:
        with pytest.raises(InputError):
            ordered(table, query, found)
        return

    def value(question):
        if name == "needed":
            return plain.needed(question)
        if name == "change":
            one, other = (sides[x].get(question) for x in "ab")
            if not one or not other or None in (one["value"], other["value"]):
                return None
            return other["value"] - one["value"]
        one = sides[name[0]].get(question)
        return one and one[{"k": "k", "value": "value", "spread": "spread"}[name[2:]]]

    if name == "file":
        wanted = expected[::-1] if down else expected
    else:
        values = {question: value(question) for question in expected}
        sign = -1 if down else 1
        wanted = sorted(expected, key=lambda q: math.inf if values[q] is None else sign * values[q])
    assert [table.ids[i] for i in ordered(table, query, found)] == wanted


@given(query=queries)
def test_a_query_is_read_as_it_is_written(query):
    written = {k: str(v) for k, v in dataclasses.asdict(query).items()}
    assert read_query(written) == query
    left_out = {k: v for k, v in written.items() if v}
    assert read_query(left_out) == query


@pytest.mark.parametrize(
    ("given_parameters", "said"),
    [
        ({"ned": "2"}, "unknown parameter 'ned'"),
        ({"needed": "many"}, "needed = 'many' must be like"),
        ({"needed": "-"}, "needed = '-' must be like"),
        ({"ak": "1--3"}, "ak = '1--3'"),
        ({"ak": "٣"}, "ak = '٣'"),
        ({"amin": "nan"}, "amin = 'nan' must be a number"),
        ({"amax": "1e999"}, "must be a number"),
        ({"offset": "-1"}, "offset = '-1' must be a number from 0"),
        ({"limit": "501"}, "at most 500"),
        ({"change": "beter"}, "did you mean 'better'"),
        ({"sort": "a.valu"}, "did you mean 'a.value'"),
        ({"failed": "c"}, "must be a or b"),
    ],
)
def test_a_wrong_query_is_refused_by_name(given_parameters, said):
    with pytest.raises(InputError) as refused:
        read_query(given_parameters)
    assert said in str(refused.value)


def test_digests_tell_lists_apart(tmp_path):
    rows = [{"id": f"q{i}", "system": "s", "list": one} for i, one in enumerate(
        [[], [1], [2], [1, 2], [2, 1], [12]]
    )]  # fmt: skip
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(np.unique(read_columns(path, "predictions").arrays["list"])) == len(rows)
