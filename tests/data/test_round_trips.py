"""What a format can hold is the same after it was written and read again."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from dynarag_jax.data.conversion import ConvertData, convert_data
from dynarag_jax.data.formats import FORMATS, WRITTEN, detect, write_rows
from dynarag_jax.data.reading import Reading, numbered_questions
from dynarag_jax.data.values import content_id
from dynarag_jax.errors import InputError
from dynarag_jax.files import dump_line
from dynarag_jax.records import TASKS, Passage, Question, write_questions
from dynarag_jax.records import read_questions as read_ours

CHARACTERS = st.characters(codec="utf-8", exclude_characters="\x00")
WORDS = st.text(CHARACTERS, min_size=1, max_size=8).filter(str.strip)
SCORES = st.none() | st.floats(-1e9, 1e9)


@st.composite
def questions(draw) -> Question:
    texts = draw(st.lists(WORDS, max_size=4, unique=True))
    titles = draw(st.lists(WORDS, min_size=len(texts), max_size=len(texts), unique=True))
    passages = tuple(
        Passage(f"{i}-{draw(WORDS)}", text, title, draw(SCORES))
        for i, (text, title) in enumerate(zip(texts, titles, strict=True))
    )
    ids = [p.id for p in passages]
    order = draw(st.permutations(ids)) if ids else []
    positions = draw(st.permutations(range(1, len(ids) + 1)))
    known = draw(st.booleans())
    return Question(
        id=draw(WORDS),
        text=draw(WORDS),
        answers=tuple(draw(st.lists(WORDS, max_size=3, unique=True))),
        task=draw(st.sampled_from(TASKS)),  # type: ignore[arg-type]
        type=draw(st.just("") | WORDS),
        passages=passages,
        gold=tuple(order[: draw(st.integers(0, len(ids)))]) if known else None,
        expert=tuple(positions[: draw(st.integers(0, len(ids)))]) if known else None,
        expert_source="rerank_label" if known else "",
    )


def held(question: Question, kind: str) -> Question:
    """The question without what the format cannot hold."""
    keeps = FORMATS[kind].keeps
    changes = {
        "answers": (),
        "passages": (),
        "gold": None,
        "expert": None,
        "type": "",
        "task": "short",
    }
    lost = {name: value for name, value in changes.items() if name not in keeps}
    if "expert" in lost:
        lost["expert_source"] = ""
    return replace(question, **lost)


def in_place(question: Question, kind: str) -> Question:
    """What survives of it in a form that says no order of ``gold``, or no ids, or no None."""
    place = {p.id: i for i, p in enumerate(question.passages)}
    if question.gold is not None and kind in ("contexts", "dpr"):
        question = replace(question, gold=tuple(sorted(question.gold, key=place.__getitem__)))
    if kind == "contexts" and not question.passages:  # no passage is there to be marked
        question = replace(question, gold=None)
    if kind == "dpr":  # the needed ones stand first
        gold = question.gold or ()
        first = sorted(question.passages, key=lambda p: p.id not in gold)
        question = replace(question, passages=tuple(first), gold=gold)
    if kind == "hotpotqa":  # passages are named by title, and have no score
        names = {p.id: content_id(p.title, p.text.strip()) for p in question.passages}
        question = replace(
            question,
            passages=tuple(
                Passage(names[p.id], p.text.strip(), p.title) for p in question.passages
            ),
            gold=tuple(names[g] for g in question.gold) if question.gold is not None else None,
        )
        if not question.passages:
            question = replace(question, gold=None)
    return question


@pytest.mark.parametrize("kind", [k for k in WRITTEN if k not in ("alpaca", "preference", "asqa")])
def test_written_and_read_again(kind, tmp_path):
    path = tmp_path / "x.jsonl"

    @settings(max_examples=40)
    @given(questions())
    def tried(question):
        path.write_text("".join(dump_line(row) for row in write_rows(kind, [question])))
        ((_, again),) = numbered_questions(path, Reading(format=kind))
        wanted = in_place(held(question, kind), kind)
        assert replace(again, extra={}) == wanted
        assert detect(path).name == kind

    tried()


SHORT = st.lists(st.lists(WORDS, min_size=1, max_size=3, unique=True), min_size=1, max_size=3)


@settings(max_examples=40)
@given(questions(), SHORT)
def test_asqa_keeps_its_short_answers(tmp_path_factory, question, short):
    extra = {"dataset": "asqa", "qa_pairs": short, "disambiguations": ["r"] * len(short)}
    path = tmp_path_factory.mktemp("asqa") / "x.jsonl"
    wanted = replace(held(question, "asqa"), task="paragraph", extra=extra)
    path.write_text("".join(map(dump_line, write_rows("asqa", [replace(question, extra=extra)]))))
    assert [q for _, q in numbered_questions(path)] == [wanted]
    # And through our own format.
    ours = path.with_name("ours.jsonl")
    write_questions(ours, [wanted])
    assert [q for _, q in numbered_questions(ours)] == read_ours(ours) == [wanted]


@settings(max_examples=40)
@given(st.lists(questions(), min_size=1, max_size=3, unique_by=lambda q: q.id))
def test_beir_directories_and_packed_files(tmp_path_factory, asked):
    place = tmp_path_factory.mktemp("beir")
    write_questions(place / "ours.jsonl", asked)
    for name in ("a.jsonl.gz", "a.jsonl.zst"):
        convert_data(ConvertData(str(place / "ours.jsonl"), str(place / name)))
        assert [q for _, q in numbered_questions(place / name)] == asked
    clean = [
        replace(q, id=f"q{i}", gold=tuple(f"d{i}-{g[0]}" for g in q.gold or ()) or None,
                passages=tuple(replace(p, id=f"d{i}-{p.id[0]}") for p in q.passages))
        for i, q in enumerate(asked)
    ]  # fmt: skip
    write_questions(place / "ours.jsonl", clean)
    convert_data(ConvertData(str(place / "ours.jsonl"), str(place / "beir"), to="beir"))
    if not any(q.gold for q in clean):
        return
    convert_data(ConvertData(str(place / "beir"), str(place / "b.jsonl")))
    again = {q.id: q for q in read_ours(place / "b.jsonl")}
    assert {name: q.gold for name, q in again.items()} == {q.id: q.gold for q in clean if q.gold}
    # The corpus is BEIR's, and the run over it gives the candidates back.
    if not any(q.passages for q in clean):
        return
    convert_data(ConvertData(str(place / "ours.jsonl"), str(place / "r.trec"), to="trec"))
    convert_data(
        ConvertData(
            str(place / "beir" / "queries.jsonl"), str(place / "c.jsonl"),
            run=str(place / "r.trec"), corpus=(str(place / "beir" / "corpus.jsonl"),),
        )
    )  # fmt: skip
    for q in read_ours(place / "c.jsonl"):
        before = next(c for c in clean if c.id == q.id)
        assert {(p.id, p.text, p.title) for p in q.passages} == {
            (p.id, p.text, p.title) for p in before.passages
        }


def test_instructions_come_back(tmp_path):
    rows = [
        {"id": "1", "instruction": "Translate.", "input": "Seine", "output": "Sena", "system": "s"},
        {"id": "2", "instruction": "Say hello.", "input": "", "output": "Hello."},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(map(dump_line, rows)))
    read = [q for _, q in numbered_questions(path)]
    assert list(write_rows("alpaca", read)) == rows
    pair = {"id": "1", "prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"}
    path.write_text(dump_line(pair))
    assert list(write_rows("preference", [q for _, q in numbered_questions(path)])) == [pair]
    with pytest.raises(InputError, match="come from rollouts"):
        list(write_rows("preference", read))


def test_what_a_format_loses_is_counted():
    question = Question("a", "q", ("x",), passages=(Passage("p", "t"),), gold=("p",), expert=(1,))
    lost: Counter[str] = Counter()
    rows = list(write_rows("flashrag", [question, replace(question, gold=None)], lost))
    assert lost == {"passages": 2, "gold": 1, "expert": 2}
    assert json.loads(dump_line(rows[0])) == {"id": "a", "question": "q", "golden_answers": ["x"]}
    with pytest.raises(InputError, match=r"no format that can be written 'squad'"):
        list(write_rows("squad", [question]))
    twins = replace(question, passages=(Passage("p", "t"), Passage("r", "u")))
    with pytest.raises(InputError, match="two passages have one title"):
        list(write_rows("hotpotqa", [twins]))
