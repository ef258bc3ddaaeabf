"""Experts: exact where the noise is off or certain, within sampling error where it is a chance."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynarag_jax.errors import InputError
from dynarag_jax.facts.expert import ExpertNoise, label_questions, noisy_expert, why_empty
from dynarag_jax.facts.world import WorldConfig, make_world
from dynarag_jax.metrics.ranking import set_f1
from dynarag_jax.records import Passage, Question, valid_list
from dynarag_jax.retrieval.index import build_index
from dynarag_jax.retrieval.rankings import fill, nearest, rows_by_id, with_gold

NO_NOISE = ExpertNoise(lose_first=0, lose_last=0, swap=0, extras=(1.0,))


def question(gold: tuple[int, ...] | None, n: int = 8, name: str = "q") -> Question:
    passages = tuple(Passage(id=f"p{i}", text=f"text {i}") for i in range(1, n + 1))
    ids = None if gold is None else tuple(f"p{i}" for i in gold)
    return Question(id=name, text="?", answers=("x",), passages=passages, gold=ids)


@pytest.fixture(scope="module")
def retrieved() -> list[Question]:
    """Questions with the candidates that a bag-of-words retriever brings (tf-idf, cosine)."""
    world = make_world(WorldConfig(train_questions=1500), 0)
    texts = [p.text for p in world.passages] + [q.text for q in world.train]
    split = [re.findall(r"\w+", text) for text in texts]
    column = {w: i for i, w in enumerate(sorted({w for words in split for w in words}))}
    counts = np.zeros((len(texts), len(column)), dtype=np.float32)
    for row, words in enumerate(split):
        for word in words:
            counts[row, column[word]] += 1
    n = len(world.passages)
    vectors = counts * np.log(n / (1 + (counts[:n] > 0).sum(0)))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    index = build_index(vectors[:n], kind="exact")
    rankings = nearest(world.train, vectors[n:], index, n, 8)
    row = rows_by_id(world.passages)
    rankings = with_gold(world.train, rankings, vectors[n:], vectors[:n], row, 8)
    return [fill(q, one, world.passages) for q, one in zip(world.train, rankings, strict=True)]


def test_default_noise_leaves_something_to_repair(retrieved):
    labeled = label_questions(retrieved, "noisy", seed=0)
    needed = float(np.mean([len(q.gold or ()) for q in labeled]))
    k = float(np.mean([len(q.expert or ()) for q in labeled]))
    f1 = float(np.mean([set_f1(q.expert or (), q.gold_list() or ()) for q in labeled]))
    assert needed == pytest.approx(1.65)
    assert 2.5 < k < 2.9, k
    assert 0.55 < f1 < 0.65, f1

    # Biased, not only noisy: it overlooks the end of a chain, which the retriever ranks low, more
    # often than a passage that answers by itself. Neither is ever swapped.
    def kept(hops: int) -> float:
        lists = [(list(q.gold_list() or ()), q.expert or ()) for q in labeled]
        return float(np.mean([g[-1] in expert for g, expert in lists if len(g) == hops]))

    assert kept(1) > kept(2) + 0.1 and kept(1) > kept(3) + 0.1


def test_without_noise_the_expert_is_gold(retrieved):
    clean = label_questions(retrieved, "noisy", noise=NO_NOISE)
    gold = label_questions(retrieved, "gold")
    assert [q.expert for q in clean] == [q.expert for q in gold]
    for q in gold:
        assert tuple(q.passages[i - 1].id for i in q.expert or ()) == q.gold
        assert q.expert_source == "gold"


@given(
    n=st.integers(1, 12),
    data=st.data(),
    seed=st.integers(0, 10**6),
    lose=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    swap=st.floats(0, 1),
    weights=st.lists(st.integers(0, 9), min_size=1, max_size=14).filter(sum),
)
@settings(max_examples=150)
def test_every_list_is_valid_and_depends_on_seed_and_id_only(n, data, seed, lose, swap, weights):
    gold = tuple(
        data.draw(st.permutations(range(1, n + 1)))[: data.draw(st.integers(0, min(n, 3)))]
    )
    extras = tuple(w / sum(weights) for w in weights)
    noise = ExpertNoise(lose[0], lose[1], swap, extras)
    q = question(gold, n)
    chosen = noisy_expert(q, seed, noise)
    assert valid_list(chosen, n) is None
    assert noisy_expert(q, seed, noise) == chosen
    others = [question((), n, f"other{i}") for i in range(3)]
    assert label_questions([*others, q], "noisy", seed, noise)[-1].expert == chosen


def test_losses_follow_the_rank():
    noise = ExpertNoise(lose_first=0.1, lose_last=0.5, swap=0, extras=(1.0,))
    trials = 4000
    for position, chance in ((1, 0.1), (4, 0.1 + 0.4 * 3 / 7), (8, 0.5)):
        lost = sum(
            noisy_expert(question((position,), name=f"q{i}"), 1, noise) == () for i in range(trials)
        )
        assert abs(lost / trials - chance) < 4 * (chance * (1 - chance) / trials) ** 0.5


def test_extras_are_the_retrievers_best_that_are_not_needed():
    noise = dataclasses.replace(NO_NOISE, extras=(0.2, 0.3, 0.5))
    trials = 4000
    lists = [noisy_expert(question((5, 2), name=f"q{i}"), 0, noise) for i in range(trials)]
    assert set(lists) == {(5, 2), (5, 2, 1), (5, 2, 1, 3)}
    for count, chance in enumerate(noise.extras):
        share = sum(len(chosen) == 2 + count for chosen in lists) / trials
        assert abs(share - chance) < 4 * (chance * (1 - chance) / trials) ** 0.5
    # There may be fewer candidates than extras.
    all_of_it = dataclasses.replace(NO_NOISE, extras=(0.0, 0.0, 0.0, 1.0))
    assert noisy_expert(question((2,), n=3), 0, all_of_it) == (2, 1, 3)


def test_swaps_take_the_most_similar_candidate_for_a_bridge_never_for_the_end():
    texts = [
        "ana velk works for amber mills.",
        "ana moss works for amber mills.",
        "ben ost was born in port velna.",
        "amber mills is based in port velna.",
        "amber labs is based in lake velna.",
    ]
    passages = tuple(Passage(id=f"p{i}", text=text) for i, text in enumerate(texts, 1))
    q = Question(id="q", text="?", passages=passages, gold=("p1", "p4"))
    always = dataclasses.replace(NO_NOISE, swap=1.0)
    assert noisy_expert(q, 0, always) == (2, 4)
    assert noisy_expert(dataclasses.replace(q, gold=("p4",)), 0, always) == (4,)
    # No candidate shares a word: the bridge stays.
    plain = tuple(dataclasses.replace(p, text=p.id) for p in passages)
    assert noisy_expert(dataclasses.replace(q, passages=plain), 0, always) == (1, 4)


def test_answers_that_no_passage_contains_take_gold_or_give_no_list():
    """Else a policy learns that yes/no questions need nothing."""
    closed = dataclasses.replace(question((8, 3), 8), answers=("Yes",))
    (labeled,) = label_questions([closed], "answer")
    assert (labeled.expert, labeled.expert_source) == ((8, 3), "gold")
    (shown,) = label_questions([closed], "answer", shown=4, limit=1)
    assert shown.expert == (3,) and shown.passages == closed.passages
    blind = dataclasses.replace(closed, gold=None)
    (none,) = label_questions([blind], "answer")
    assert none.expert is None and "yes, a no or a label" in why_empty(none)
    verdict = dataclasses.replace(blind, task="label", answers=("SUPPORTS",))
    assert label_questions([verdict], "answer")[0].expert is None


def test_empty_lists_have_a_reason():
    whys = {
        why_empty(label_questions([q], source)[0])
        for q, source in (
            (question((8, 3), 8), "gold"),
            (question((), 8), "gold"),
            (dataclasses.replace(question((), 8), gold=("elsewhere",)), "gold"),
            (dataclasses.replace(question((), 8), answers=("nowhere",)), "answer"),
        )
    }
    assert whys == {
        "",
        "an empty list: nothing is needed",
        "an empty list: what is needed is missing",
        "an empty list: no candidate contains an answer",
    }


def test_answer_source_takes_whole_tokens():
    texts = ["born in 1910.", "The Paris!", "comparison", "10 of them, in paris", ""]
    passages = tuple(Passage(id=f"p{i}", text=text) for i, text in enumerate(texts))
    q = Question(id="q", text="?", answers=("10", "the Paris"), passages=passages)
    (labeled,) = label_questions([q], "answer")
    assert labeled.expert == (2, 4) and labeled.expert_source == "answer"
    (nothing,) = label_questions([dataclasses.replace(q, answers=("rome",))], "answer")
    assert nothing.expert == ()
    (short,) = label_questions([q], "answer", limit=1)
    (few,) = label_questions([q], "answer", shown=2)
    assert short.expert == few.expert == (2,)


def test_needed_passages_that_are_not_shown_are_not_listed():
    q = question((8, 3), 8)
    assert label_questions([q], "gold")[0].expert == (8, 3)
    (labeled,) = label_questions([q], "gold", shown=4)
    assert labeled.expert == (3,) and labeled.passages == q.passages
    certain = dataclasses.replace(NO_NOISE, extras=(0.0,) * 8 + (1.0,))
    assert set(label_questions([q], "noisy", noise=certain, shown=4)[0].expert or ()) == {
        1,
        2,
        3,
        4,
    }


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: label_questions([question(None)], "gold"),
            "question 'q': field 'gold' is missing",
        ),
        (lambda: noisy_expert(question(None), 0), "question 'q': field 'gold' is missing"),
        (lambda: label_questions([], "nosy"), "unknown source 'nosy' (did you mean 'noisy'?)"),  # type: ignore[arg-type]
        (lambda: label_questions([], "gold", limit=0), "limit must be at least 1, found 0"),
        (lambda: ExpertNoise(swap=1.5), "swap must be between 0 and 1, found 1.5"),
        (lambda: ExpertNoise(extras=(0.5, 0.6)), "extras must be chances that sum to 1"),
        (lambda: ExpertNoise(extras=()), "extras must be chances that sum to 1"),
    ],
)
def test_what_cannot_be_labeled_is_refused(call, message):
    with pytest.raises(InputError, match=re.escape(message)):
        call()


def test_a_question_without_an_answer_takes_gold_or_has_no_list():
    """SQuAD 2's impossible questions need nothing; of others without an answer nothing is known."""
    impossible, unknown = (dataclasses.replace(question(gold), answers=()) for gold in ((), None))
    one, other = label_questions([impossible, unknown], "answer")
    assert (one.expert, one.expert_source) == ((), "gold")
    assert other.expert is None and "no answer to look for" in why_empty(other)
