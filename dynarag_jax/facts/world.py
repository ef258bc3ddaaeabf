"""The facts world: a generated corpus, and questions that need exactly 0, 1, 2 or 3 passages of it.

People work for companies, companies are based in cities, cities lie in countries, and so on. Every
fact stands in one passage only, so a question about a chain of facts (*in which country is the
company where ana velk works based?*) needs each passage of the chain: no smaller set entails the
answer. That is a statement about evidence. A reader handed the last passage of a chain alone can
still copy the right answer from it, as an unfounded guess; whoever must *choose* that passage among
candidates that say the same of others needs the links before it.

Evaluation asks about people, companies, cities and countries that no training question and no
training passage names. Their names are made of the same words.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from dynarag_jax.errors import InputError
from dynarag_jax.facts.language import (
    ASIDES,
    COMMON,
    HOBBIES,
    JOBS,
    NAMES,
    QUESTIONS,
    RELATIONS,
    STATED,
    WOMEN,
)
from dynarag_jax.records import Passage, Question

TYPES = ("none", "one_hop", "two_hop", "three_hop")


@dataclass(frozen=True)
class WorldConfig:
    """Sizes of the facts world. The defaults are the quickstart's."""

    train_questions: int = 5000
    """questions to train on"""
    evaluation_questions: int = 600
    """questions to evaluate on"""
    none: float = 0.10
    """share of questions that need no passage"""
    one_hop: float = 0.35
    """share of questions that need exactly one passage"""
    two_hop: float = 0.35
    """share of questions that need exactly two passages"""
    three_hop: float = 0.20
    """share of questions that need exactly three passages; the four shares sum to 1"""
    workers: int = 1000
    """people with an employer, in the part of the world that training asks about"""
    companies: int = 420
    """companies in that part"""
    cities: int = 340
    """cities in that part"""
    countries: int = 70
    """countries in that part"""
    evaluation_workers: int = 160
    """as ``workers``, in the part that evaluation asks about"""
    evaluation_companies: int = 80
    """as ``companies``, in the part that evaluation asks about"""
    evaluation_cities: int = 48
    """as ``cities``, in the part that evaluation asks about"""
    evaluation_countries: int = 19
    """as ``countries``, in the part that evaluation asks about"""
    asides: float = 0.3
    """how likely a passage about a person has a sentence that answers no question, then another"""


@dataclass(frozen=True)
class World:
    """A corpus and the questions about it.

    Attributes:
      passages: the corpus, with ids ``p0001``, ...
      train: questions with ``answers``, ``type`` (one of ``TYPES``) and ``gold``; no candidates
        yet. ``extra["relations"]`` is the chain of relations.
      evaluation: the same, about entities that training never names.
    """

    passages: list[Passage]
    train: list[Question]
    evaluation: list[Question]


@dataclass(frozen=True)
class _Fact:
    relation: str
    subject: str
    object: str


@dataclass
class _Part:
    """One part of the world: who is in it, what is true, and the sentences that say so."""

    kinds: dict[str, list[str]]
    facts: dict[tuple[str, str], _Fact]
    texts: dict[str, _Fact]


def _check(config: WorldConfig) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in (*TYPES, "asides"):
            if not 0 <= value <= 1:
                raise InputError(f"facts: {field.name} must be between 0 and 1, found {value}")
        elif value < 0:
            raise InputError(f"facts: {field.name} must not be negative, found {value}")
    total = sum(getattr(config, name) for name in TYPES)
    if abs(total - 1) > 1e-6:
        raise InputError(f"facts: the shares {', '.join(TYPES)} must sum to 1, found {total:g}")
    for prefix in ("", "evaluation_"):
        # Two cities, so that a birthplace need not be where one works.
        for name, least in (("companies", 1), ("cities", 2), ("countries", 1)):
            value = getattr(config, prefix + name)
            if value < least:
                raise InputError(f"facts: {prefix}{name} must be at least {least}, found {value}")
    needed = {
        "person": config.workers + config.evaluation_workers,
        "company": config.companies + config.evaluation_companies,
        "city": config.cities + config.evaluation_cities,
        "country": config.countries + config.evaluation_countries,
    }
    for kind, count in needed.items():
        first, second = NAMES[kind]
        if count > len(first) * len(second):
            raise InputError(
                f"facts: the config asks for {count} {kind} names, and the language has "
                f"{len(first) * len(second)}; ask for fewer"
            )


def _names(rng: random.Random, kind: str) -> list[str]:
    """Every name of a kind, in random order."""
    first, second = NAMES[kind]
    names = [f"{a} {b}" for a in first for b in second]
    rng.shuffle(names)
    return names


def _make_part(
    rng: random.Random, config: WorldConfig, prefix: str, names: dict[str, Iterator[str]]
) -> _Part:
    """Invent the entities and facts of one part of the world, and write its passages."""

    def take(kind: str, count: int) -> list[str]:
        return [next(names[kind]) for _ in range(count)]

    size = {
        name: getattr(config, prefix + name)
        for name in ("workers", "companies", "cities", "countries")
    }
    companies, cities = take("company", size["companies"]), take("city", size["cities"])
    countries = take("country", size["countries"])
    workers = take("person", size["workers"])
    facts: dict[tuple[str, str], _Fact] = {}
    texts: dict[str, _Fact] = {}

    def state(relation: str, subject: str, object_: str) -> None:
        """Record a fact and write the passage that says it."""
        fact = _Fact(relation, subject, object_)
        facts[relation, subject] = fact
        text = rng.choice(STATED[relation]).format(a=subject, x=object_)
        if RELATIONS[relation][0] == "person":
            for aside in rng.sample(ASIDES, k=len(ASIDES)):
                if rng.random() >= config.asides:
                    break
                text += " " + aside.format(
                    she="she" if subject.split()[0] in WOMEN else "he",
                    job=rng.choice(JOBS),
                    hobby=rng.choice(HOBBIES),
                )
        texts[text] = fact

    for i, city in enumerate(cities):
        # In turn, so that no country is without a city while there are enough cities.
        state("country", city, countries[i % len(countries)])
    for company in companies:
        state("base", company, rng.choice(cities))
    for worker in workers:
        company = rng.choice(companies)
        state("employer", worker, company)
        home = facts["base", company].object
        state("birth", worker, rng.choice([city for city in cities if city != home]))
    kinds = {"person": workers, "company": companies, "city": cities}
    return _Part(kinds, facts, texts)


def _follow(part: _Part, start: str, chain: Sequence[str]) -> list[_Fact] | None:
    """The facts of a chain, or None where it breaks or where its names would betray its answer."""
    facts, here = [], start
    for relation in chain:
        fact = part.facts.get((relation, here))
        if fact is None:
            return None
        facts.append(fact)
        here = fact.object
    before = {word for fact in facts for word in fact.subject.split()}
    return None if before & set(here.split()) else facts


def _counts(total: int, shares: Sequence[float]) -> list[int]:
    """Split a total by shares, to whole numbers that sum to it (largest remainders)."""
    exact = [total * share for share in shares]
    counts = [int(x + 1e-9) for x in exact]
    order = sorted(range(len(shares)), key=lambda i: (counts[i] - exact[i], i))
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts


def _in_turn(rng: random.Random, groups: Sequence[list[Question]], count: int) -> list[Question]:
    """``count`` items, drawn from the groups in turn until they are empty."""
    queues = [group.copy() for group in groups]
    for queue in queues:
        rng.shuffle(queue)
    taken: list[Question] = []
    while len(taken) < count and any(queues):
        for queue in queues:
            if queue and len(taken) < count:
                taken.append(queue.pop())
    return taken


def _common(count: int) -> list[Question]:
    """Common knowledge, over and over: every fact once in each phrasing, then again."""
    longest = max(len(forms) for forms, _ in COMMON)
    names = [
        Question(id="", text=forms[i], answers=(answer,), type="none", gold=())
        for i in range(longest)
        for forms, answer in COMMON
        if i < len(forms)
    ]
    return [names[i % len(names)] for i in range(count)]


def _ask(
    rng: random.Random,
    part: _Part,
    ids: dict[_Fact, str],
    counts: Sequence[int],
    name: str,
    common: list[Question],
) -> list[Question]:
    """Questions about one part of the world, ``counts`` of each type."""
    questions = common
    for hops in (1, 2, 3):
        groups = []
        for chain, forms in QUESTIONS.items():
            if len(chain) != hops:
                continue
            groups.append([])
            for start in part.kinds[RELATIONS[chain[0]][0]]:
                facts = _follow(part, start, chain)
                if facts is None:
                    continue
                groups[-1] += [
                    Question(
                        id="",
                        text=form.format(start),
                        answers=(facts[-1].object,),
                        type=TYPES[hops],
                        gold=tuple(ids[fact] for fact in facts),
                        extra={"relations": list(chain)},
                    )
                    for form in forms
                ]
        taken = _in_turn(rng, groups, counts[hops])
        if len(taken) < counts[hops]:
            raise InputError(
                f"facts: the config asks for {counts[hops]} {TYPES[hops]} questions for {name}, "
                f"and its part of the world has {len(taken)}; add people or companies to it"
            )
        questions = questions + taken
    rng.shuffle(questions)
    width = max(4, len(str(len(questions))))
    return [
        dataclasses.replace(question, id=f"{name}-{i:0{width}}")
        for i, question in enumerate(questions, 1)
    ]


def make_world(config: WorldConfig, seed: int) -> World:
    """Generate a world; the same config and seed give the same world everywhere.

    Questions carry no candidate passages: retrieval brings those. Every question of a type other
    than ``none`` differs in text from all others; common knowledge repeats.

    Raises:
      InputError: a size is negative, the shares do not sum to 1, or the sizes ask for more
        names than the language has or for more questions than the world holds.
    """
    _check(config)
    rng = random.Random(f"facts world {seed}")
    names = {kind: iter(_names(rng, kind)) for kind in ("person", "company", "city", "country")}
    parts = [_make_part(rng, config, prefix, names) for prefix in ("", "evaluation_")]

    written = [(text, fact) for part in parts for text, fact in part.texts.items()]
    rng.shuffle(written)
    width = max(4, len(str(len(written))))
    passages, ids = [], {}
    for i, (text, fact) in enumerate(written, 1):
        passages.append(Passage(id=f"p{i:0{width}}", text=text))
        ids[fact] = passages[-1].id

    shares = [getattr(config, name) for name in TYPES]
    asked = []
    for part, name, total in zip(
        parts, ("train", "eval"), (config.train_questions, config.evaluation_questions), strict=True
    ):
        counts = _counts(total, shares)
        common = _common(counts[0])
        if name == "eval":
            # Only what training has told can be remembered.
            told = {q.text for q in asked[0]}
            common = [q for q in common if q.text in told] or common
            common = [common[i % len(common)] for i in range(counts[0])]
        asked.append(_ask(rng, part, ids, counts, name, common))
    return World(passages, asked[0], asked[1])
