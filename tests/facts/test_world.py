"""The facts world against a reader written for these tests: its own patterns, its own reasoning."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.tokenizers import train_word_level
from dynarag_jax.facts.language import QUESTIONS, vocabulary
from dynarag_jax.facts.world import TYPES, World, WorldConfig, make_world
from dynarag_jax.prompts import COMPACT_WORDS, answer_messages, rerank_messages
from dynarag_jax.records import Question, question_from_json, question_to_json

SMALL = WorldConfig(
    train_questions=200,
    evaluation_questions=80,
    workers=40,
    companies=20,
    cities=14,
    countries=8,
    evaluation_workers=16,
    evaluation_companies=8,
    evaluation_cities=8,
    evaluation_countries=4,
)

NAME = r"([a-z]+ [a-z]+)"
STATEMENTS = {
    "employer": [
        f"{NAME} works for {NAME}",
        f"{NAME} has a job at {NAME}",
        f"{NAME} is employed by {NAME}",
    ],
    "birth": [f"{NAME} was born in {NAME}", f"the birthplace of {NAME} is {NAME}"],
    "base": [f"{NAME} is based in {NAME}", f"the home city of {NAME} is {NAME}"],
    "country": [f"{NAME} is in {NAME}", f"{NAME} is a city in {NAME}"],
}
# Noun phrases that stand for the object of a relation, and what is left to ask at the end.
PHRASES = [
    (r"the company that employs X|the company where X works|the employer of X", ["employer"]),
    (r"the birthplace of X", ["birth"]),
]
ENDS = [
    (r"(who|what) is X", []),
    (r"where does X work|which company does X work for|who is X employed by", ["employer"]),
    (r"where was X born|which city was X born in", ["birth"]),
    (r"where is X based|which city is X based in|in which city is X based", ["base"]),
    (r"what is the home city of X", ["base"]),
    (r"which country is X in|in which country is X|what is the country of X", ["country"]),
    (r"in which country was X born|which country was X born in", ["birth", "country"]),
    (r"in which country is X based|which country is X based in", ["base", "country"]),
    (r"what is the home country of X", ["base", "country"]),
]


def read_passage(text: str) -> tuple[str, str, str]:
    """(relation, subject, object) of a passage's first sentence; what follows must say nothing."""
    first, *rest = text.removesuffix(".").split(". ")
    for sentence in rest:
        assert re.fullmatch(r"(she|he) (is a|likes) [a-z]+", sentence), text
    found = [
        (relation, match[1], match[2])
        for relation, patterns in STATEMENTS.items()
        for pattern in patterns
        if (match := re.fullmatch(pattern, first))
    ]
    assert len(found) == 1, (text, found)
    return found[0]


def read_question(text: str, names: set[str]) -> tuple[str, list[str]]:
    """(entity, chain of relations) of a question."""
    words = text.removesuffix("?").split()
    pairs = [" ".join(words[i : i + 2]) for i in range(len(words) - 1)]
    (start,) = [pair for pair in pairs if pair in names]
    left, chain = text.removesuffix("?").replace(start, "X"), []
    reduced = True
    while reduced:
        reduced = False
        for pattern, relations in PHRASES:
            left, count = re.subn(pattern, "X", left)
            if count:
                chain += relations
                reduced = True
    (end,) = [relations for pattern, relations in ENDS if re.fullmatch(pattern, left)]
    return start, chain + end


def derive(
    start: str,
    chain: list[str],
    facts: dict[tuple[str, str], str],
    missing: tuple[str, str] | None = None,
) -> str | None:
    """Where a chain leads by the facts, all but the missing one; None if it breaks."""
    here: str | None = start
    for relation in chain:
        if here is None or (relation, here) == missing:
            return None
        here = facts.get((relation, here))
    return here


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(WorldConfig(), 0)


@pytest.fixture(scope="module")
def stated(world: World) -> dict[str, tuple[str, str, str]]:
    """Passage id -> the fact it states."""
    return {p.id: read_passage(p.text) for p in world.passages}


@pytest.fixture(scope="module")
def names(stated) -> set[str]:
    return {name for _, a, x in stated.values() for name in (a, x)}


def asking(world: World) -> list[Question]:
    return [q for q in world.train + world.evaluation if q.type != "none"]


def test_every_fact_stands_in_one_passage_only(world, stated):
    assert len({(r, a) for r, a, _ in stated.values()}) == len(world.passages)
    assert len({p.text for p in world.passages}) == len(world.passages)


def test_answer_follows_from_needed_passages_and_from_no_fewer(world, stated, names):
    facts = {(r, a): x for r, a, x in stated.values()}
    where = {(r, a): pid for pid, (r, a, _) in stated.items()}
    for question in asking(world):
        start, chain = read_question(question.text, names)
        assert chain == question.extra["relations"], question
        assert TYPES[len(chain)] == question.type
        assert (derive(start, chain, facts),) == question.answers
        path, here = [], start
        for relation in chain:
            path.append(where[relation, here])
            here = facts[relation, here]
        assert tuple(path) == question.gold and len(set(path)) == len(chain)
        alone = {stated[g][:2]: stated[g][2] for g in path}
        assert (derive(start, chain, alone),) == question.answers
        for missing in path:
            # The whole corpus without one needed passage.
            assert derive(start, chain, facts, missing=stated[missing][:2]) is None


def test_only_the_last_needed_passage_holds_the_answer(world, stated):
    text = {p.id: p.text for p in world.passages}
    for question in asking(world):
        (answer,), gold = question.answers, list(question.gold or ())
        assert 1 <= len(answer.split()) <= 3
        *earlier, last = gold
        before = set(re.findall(r"\w+", question.text))
        before |= {w for g in gold for w in stated[g][1].split()}
        assert not before & set(answer.split()), question
        assert all(answer not in text[g] for g in earlier) and answer in text[last]


def test_question_words_do_not_tell_the_answer():
    """Naive Bayes from a question's words to a word of the answer, kind of question by kind.

    It has seen every training question, and does no better than always saying the most frequent
    word, up to four standard deviations of chance.
    """
    world = make_world(WorldConfig(evaluation_questions=1500), 0)
    train, asked = collections.defaultdict(list), collections.defaultdict(list)
    for questions, table in ((world.train, train), (world.evaluation, asked)):
        for q in questions:
            if q.type != "none":
                table[tuple(q.extra["relations"])].append(q)
    assert len(asked) == 8
    for chain, position in itertools.product(asked, (0, 1)):
        prior, given = collections.Counter(), collections.defaultdict(collections.Counter)
        for q in train[chain]:
            target = q.answers[0].split()[position]
            prior[target] += 1
            for word in set(q.text.rstrip("?").split()):
                given[target][word] += 1
        informed = blind = 0
        for q in asked[chain]:
            words = set(q.text.rstrip("?").split())
            guess = max(
                prior,
                key=lambda t: (
                    math.log(prior[t])
                    + sum(math.log((given[t][w] + 0.1) / (prior[t] + 1)) for w in words)
                ),
            )
            informed += guess == q.answers[0].split()[position]
            blind += prior.most_common(1)[0][0] == q.answers[0].split()[position]
        n = len(asked[chain])
        assert n >= 48
        rate = max(blind / n, 1 / len(prior))
        assert informed - rate * n < 4 * (n * rate * (1 - rate)) ** 0.5, (chain, informed, blind, n)


def test_common_knowledge_is_told_in_training_and_by_no_passage(world):
    corpus = {word for p in world.passages for word in re.findall(r"\w+", p.text)}
    train = {q.text: q.answers for q in world.train if q.type == "none"}
    evaluation = [q for q in world.evaluation if q.type == "none"]
    assert len(train) >= 20
    for q in evaluation:
        assert q.gold == () and train[q.text] == q.answers
        assert not corpus & set(q.answers[0].split())


def test_evaluation_asks_no_common_knowledge_that_training_left_out():
    few = make_world(dataclasses.replace(SMALL, train_questions=50), 0)
    told = {q.text for q in few.train if q.type == "none"}
    asked = [q for q in few.evaluation if q.type == "none"]
    assert len(told) == 5 and len(asked) == 8
    assert {q.text for q in asked} <= told


def test_no_one_is_born_where_they_work(world, stated):
    """Else two chains of different length would lead to one answer."""
    facts = {(r, a): x for r, a, x in stated.values()}
    for (relation, person), company in list(facts.items()):
        if relation == "employer":
            assert facts["birth", person] != facts["base", company]


@pytest.mark.parametrize("name", ["train", "evaluation"])
def test_shares_and_needed_mean(world, name):
    questions = getattr(world, name)
    n = len(questions)
    count = collections.Counter(q.type for q in questions)
    assert [count[t] / n for t in TYPES] == [0.10, 0.35, 0.35, 0.20]
    assert sum(len(q.gold) for q in questions) / n == pytest.approx(0.35 + 2 * 0.35 + 3 * 0.2)
    # Within a type all chains are asked, none more than three times as often as another.
    for hops in (1, 2, 3):
        chains = collections.Counter(
            tuple(q.extra["relations"]) for q in questions if len(q.gold) == hops
        )
        asked = {chain for chain in QUESTIONS if len(chain) == hops}
        assert set(chains) == asked and max(chains.values()) <= 3 * min(chains.values()), chains


def test_evaluation_names_nothing_that_training_names(world, stated, names):
    linked = collections.defaultdict(set)
    for _, a, x in stated.values():
        linked[a].add(x)
        linked[x].add(a)

    def everything_near(questions: list[Question]) -> set[str]:
        reached: set[str] = set()
        fresh = {name for q in questions for g in q.gold or () for name in stated[g][1:]}
        while fresh:
            reached |= fresh
            fresh = {x for name in fresh for x in linked[name]} - reached
        return reached

    train, evaluation = everything_near(world.train), everything_near(world.evaluation)
    assert len(train) > 500 and len(evaluation) > 150
    assert not train & evaluation
    for text in [q.text for q in world.train]:
        words = re.findall(r"\w+", text)
        assert not evaluation & {" ".join(words[i : i + 2]) for i in range(len(words) - 1)}
    # Unseen names, but of words that training has seen.
    assert {w for n in evaluation for w in n.split()} <= {w for n in train for w in n.split()}


def test_names_are_confusable_and_people_have_several_passages(world, stated):
    people = {a for r, a, _ in stated.values() if r in ("employer", "birth")}
    surnames = collections.Counter(person.split()[1] for person in people)
    assert min(surnames.values()) >= 10
    subjects = collections.Counter(a for _, a, _ in stated.values())
    for relation in ("employer", "base", "country"):
        names = {a for r, a, _ in stated.values() if r == relation}
        words = collections.Counter(word for name in names for word in name.split())
        alike = sum(any(words[word] > 1 for word in name.split()) for name in names)
        assert alike / len(names) > 0.9
    workers = {a for r, a, _ in stated.values() if r == "employer"}
    assert all(subjects[name] == 2 for name in workers)


def test_questions_are_distinct_and_survive_their_file(world):
    questions = asking(world)
    assert len({q.text for q in questions}) == len(questions)
    everything = world.train + world.evaluation
    assert len({q.id for q in everything}) == len(everything)
    for q in everything[::50]:
        assert question_from_json(question_to_json(q), "here") == q


def test_sizes_fit_a_small_prompt(world):
    def tokens(text: str) -> int:
        return len(re.findall(r"\w+|[^\w\s]", text))

    lengths = [tokens(p.text) for p in world.passages]
    assert 8 < sum(lengths) / len(lengths) < 12 and max(lengths) <= 18
    assert max(tokens(q.text) for q in asking(world)) <= 16
    assert len(world.passages) <= 4000


def test_one_vocabulary_holds_every_world(world, tmp_path):
    tokenizer = train_word_level([*vocabulary(), *COMPACT_WORDS], tmp_path / "words", ids=16)
    assert 250 < len(tokenizer) < 320
    unknown = tokenizer.unk_token_id
    for some in (world, make_world(SMALL, 7)):
        questions = some.train + some.evaluation
        texts = [p.text for p in some.passages] + [q.text for q in questions]
        texts += sorted({answer for q in questions for answer in q.answers})
        encoded = tokenizer(texts)["input_ids"]
        assert not any(unknown in ids for ids in encoded)
        assert tokenizer.batch_decode(encoded[::5]) == texts[::5]
        for q in questions[:20]:
            for make in (rerank_messages, answer_messages):
                (message,) = make(q, some.passages[:8], "compact")
                assert unknown not in tokenizer(message["content"])["input_ids"]


def fingerprint(world: World) -> str:
    questions = [question_to_json(q) for q in (*world.train, *world.evaluation)]
    text = json.dumps([[vars(p) for p in world.passages], questions])
    return hashlib.sha256(text.encode()).hexdigest()


def test_same_seed_same_world_whatever_the_process():
    here = fingerprint(make_world(SMALL, 3))
    assert here != fingerprint(make_world(SMALL, 4))
    code = (
        "import sys, importlib.util as u\n"
        "s = u.spec_from_file_location('m', sys.argv[1]); m = u.module_from_spec(s)\n"
        "sys.modules['m'] = m; s.loader.exec_module(m)\n"
        "print(m.fingerprint(m.make_world(m.SMALL, 3)))"
    )
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONHASHSEED": "12345", "PYTHONPATH": str(root)}
    there = subprocess.run(
        [sys.executable, "-c", code, __file__],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert there.stdout.strip() == here


@given(
    parts=st.lists(st.integers(0, 20), min_size=4, max_size=4).filter(lambda p: sum(p) > 0),
    n=st.integers(1, 90),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25)
def test_types_come_in_the_shares_asked_for(parts, n, seed):
    shares = [p / sum(parts) for p in parts]
    config = dataclasses.replace(
        SMALL,
        train_questions=n,
        evaluation_questions=10,
        **dict(zip(TYPES, shares, strict=True)),
    )
    world = make_world(config, seed)
    count = collections.Counter(q.type for q in world.train)
    assert len(world.train) == n and len(world.evaluation) == 10
    for name, share in zip(TYPES, shares, strict=True):
        assert abs(count[name] - n * share) < 1
    for q in world.train + world.evaluation:
        assert len(q.gold or ()) == TYPES.index(q.type)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"none": 0.5}, "the shares none, one_hop, two_hop, three_hop must sum to 1, found 1.4"),
        ({"one_hop": -0.35}, "one_hop must be between 0 and 1, found -0.35"),
        ({"cities": 1}, "cities must be at least 2, found 1"),
        ({"train_questions": -1}, "train_questions must not be negative, found -1"),
        ({"countries": 87}, "asks for 91 country names, and the language has 90"),
        ({"train_questions": 20000}, "asks for 7000 one_hop questions for train"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(InputError, match=re.escape(message)):
        make_world(dataclasses.replace(SMALL, **change), 0)
