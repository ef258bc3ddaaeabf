"""Reranker from Python: the policy's lists, scores that say them, and why a list is so long."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dynarag_jax
from dynarag_jax.errors import InputError
from dynarag_jax.evaluation import rules
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.records import Passage, Question
from dynarag_jax.sampling.reranking import rerank
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.sampling.windows import Windows
from dynarag_jax.serving.loading import load_generator, recorded_prompts
from dynarag_jax.serving.policies import RankedList, list_scores, served_scores
from dynarag_jax.serving.rules import CutOff
from dynarag_jax.serving.scored import ScoredLists

QUERY = "where is port 7?"


def texts(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"port {rng.integers(10)} lies on the river {rng.integers(10)}" for _ in range(n)]


@pytest.fixture(scope="module")
def reranker(language_model, one_device):
    return dynarag_jax.Reranker(language_model, devices=one_device, batch=4)


def as_question(documents) -> Question:
    passages = tuple(Passage(str(i), text) for i, text in enumerate(documents))
    return Question("query 0", QUERY, passages=passages)


def test_importing_the_library_imports_no_jax():
    code = "import sys, dynarag_jax; assert not {'jax', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with pytest.raises(AttributeError):
        dynarag_jax.Rerankers  # noqa: B018


def test_a_model_is_used_with_the_prompts_it_was_trained_with(language_model, reranker):
    from .conftest import PROMPTS

    assert recorded_prompts(language_model) == PROMPTS == reranker.policy.sampler.prompts


@pytest.mark.parametrize("n", [1, 5, 12, 30])
def test_lists_are_those_of_the_rerank_stage_also_by_windows(reranker, language_model, n):
    documents = texts(n, n)
    sampler = reranker.policy.sampler
    (expected,) = rerank(
        sampler, [as_question(documents)], Sampling(temperature=0.0), Windows(window=0, budget=0)
    )
    found = reranker.rank(QUERY, documents, return_documents=True)
    assert [row["corpus_id"] + 1 for row in found] == list(expected.list)
    assert [row["text"] for row in found] == [documents[i - 1] for i in expected.list]
    scores = [row["score"] for row in found]
    assert scores == sorted(scores, reverse=True) and all(0 < s < 1 for s in scores)
    assert reranker.rank(QUERY, documents, top_k=1) == reranker.rank(QUERY, documents)[:1]


def test_many_queries_at_once_get_what_each_gets_alone(reranker):
    queries = [f"where is port {i}?" for i in range(6)]
    documents = [texts(n, n) for n in (3, 0, 12, 25, 1, 7)]
    together = reranker.rank_all(queries, documents)
    alone = [reranker.rank(q, d) for q, d in zip(queries, documents, strict=True)]
    assert together == alone
    assert together[1] == []
    assert len({len(rows) for rows in together}) > 1


def test_an_answer_is_read_from_the_list(reranker):
    documents = texts(6)
    found = reranker.answer(QUERY, documents)
    assert list(found.corpus_ids) == [r["corpus_id"] for r in reranker.rank(QUERY, documents)]
    chosen = tuple(i + 1 for i in found.corpus_ids)
    assert [found.answer] == reranker.policy.sampler.answers([(as_question(documents), chosen)])
    assert reranker.answer(QUERY).corpus_ids == ()


def test_every_step_of_a_list_against_all_lists_there_are(reranker):
    """Also where the id 1 is spelled like the beginning of 10."""
    question = as_question(texts(11))
    sampler = reranker.policy.sampler
    every = [p for k in range(4) for p in itertools.permutations(range(1, 12), k)]
    groups = [every[i : i + 100] for i in range(0, len(every), 100)]
    rows = sampler.logps([question] * len(groups), groups, 100)
    flat = [np.exp(np.sum(logps, dtype=np.float64)) for row in rows for logps in row]
    table = dict(zip(every, flat, strict=True))
    assert sum(flat) == pytest.approx(1, abs=1e-4)
    for chosen in [(), (1,), (10, 1), (3, 1, 10)]:
        found = reranker.explain(QUERY, [p.text for p in question.passages],
                                 [c - 1 for c in chosen])  # fmt: skip
        assert found.logp == pytest.approx(np.log(table[chosen]), rel=1e-5)
        assert [s.chosen for s in found.steps] == [*chosen, 0]
        for place, step in enumerate(found.steps):
            before = chosen[:place]
            begun = sum(p for ids, p in table.items() if ids[:place] == before)
            for position, logp in step.logps.items():
                if position == 0:
                    mass = table[before]
                else:
                    mass = sum(
                        p for ids, p in table.items() if ids[: place + 1] == (*before, position)
                    )
                assert np.exp(logp) == pytest.approx(mass / begun, abs=2e-4)
        assert sum(step.logps[step.chosen] for step in found.steps) == pytest.approx(
            found.logp, rel=1e-5
        )
    own = reranker.explain(QUERY, [p.text for p in question.passages])
    ranked = reranker.rank(QUERY, [p.text for p in question.passages])
    assert [c - 1 for c in own.chosen] == [row["corpus_id"] for row in ranked]


@pytest.mark.parametrize(
    ("rule", "plain"),
    [
        (CutOff("fixed-k", k=2), lambda s: rules.fixed_k(s, 2)),
        (CutOff("threshold", threshold=0.4), lambda s: rules.score_threshold(s, 0.4)),
        (CutOff("largest-gap", more=1), lambda s: rules.largest_gap(s, 1)),
        (CutOff("clusters", clusters=3), lambda s: rules.score_clusters(s, 3)),
        (CutOff("cumulative-mass", share=0.6), lambda s: rules.cumulative_mass(s, 0.6, 0.1)),
    ],
)
def test_a_cross_encoder_is_cut_off_by_a_rule(cross_encoder, one_device, rule, plain):
    import torch
    from tokenizers import Tokenizer
    from transformers import BertForSequenceClassification

    documents = list(dict.fromkeys(texts(9)))
    found = dynarag_jax.Reranker(cross_encoder, rule=rule, devices=one_device)
    rows = found.rank(QUERY, documents)
    tokenizer = Tokenizer.from_file(str(cross_encoder / "tokenizer.json"))
    model = BertForSequenceClassification.from_pretrained(cross_encoder).eval()
    scores = []
    with torch.no_grad():
        for document in documents:
            pair = tokenizer.encode(QUERY, document)
            ids, types = torch.tensor([pair.ids]), torch.tensor([pair.type_ids])
            logit = model(input_ids=ids, token_type_ids=types).logits[0, 0]
            scores.append(float(torch.sigmoid(logit)))
    assert [row["corpus_id"] + 1 for row in rows] == list(plain(scores))
    assert [row["score"] for row in rows] == pytest.approx(
        [scores[row["corpus_id"]] for row in rows], abs=1e-5
    )
    explained = found.explain(QUERY, documents)
    assert explained.logp is None and explained.scores == pytest.approx(scores, abs=1e-5)
    with pytest.raises(InputError, match="a cross-encoder writes no answers; give a language"):
        found.answer(QUERY, documents)


def test_a_cross_encoder_and_a_generator_answer_together(cross_encoder, language_model, one_device):
    both = dynarag_jax.Reranker(
        cross_encoder, generator=language_model, rule=CutOff("fixed-k", k=2), devices=one_device
    )
    documents = texts(5)
    found = both.answer(QUERY, documents)
    assert found.corpus_ids == tuple(row["corpus_id"] for row in both.rank(QUERY, documents))
    assert len(found.corpus_ids) == 2


@given(
    st.integers(1, 60).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.permutations(range(1, n + 1)),
            st.integers(0, n),
            st.none() | st.lists(st.floats(0, 1), min_size=n, max_size=n),
        )
    )
)
def test_scores_say_the_list(case):
    n, order, k, scores = case
    ranked = RankedList(tuple(order[:k]), tuple(scores or ()))
    found = served_scores(ranked, n)
    by_score = sorted(found, key=lambda p: -found[p])
    assert set(found) == set(range(1, n + 1))
    assert len(set(found.values())) == n and all(0 < s < 1 for s in found.values())
    assert tuple(by_score[:k]) == ranked.chosen
    assert {p for p, s in found.items() if s > 0.5} == set(ranked.chosen)
    own = list_scores(ranked, n)
    assert len(own) == k and own == sorted(own, reverse=True)


def test_what_is_wrong_is_said_in_one_line(reranker, language_model, tmp_path):
    wrong = [
        (lambda: reranker.rank("", ["a"]), "query 0 must be a text that is not blank"),
        (lambda: reranker.rank(QUERY, "abc"), "expected a list of documents"),
        (lambda: reranker.rank(QUERY, [3]), "query 0: document 0: expected a text or an object"),
        (lambda: reranker.rank(QUERY, [{"txt": "a"}]), r"unknown field 'txt' \(did you mean"),
        (lambda: reranker.rank(QUERY, ["a"], top_k=-1), "top_k = -1 must not be negative"),
        (lambda: reranker.rank_all([QUERY], []), "1 queries and 0 lists of documents"),
        (lambda: reranker.explain(QUERY, ["a", "b"], [0, 0]), "holds 1 twice"),
        (lambda: reranker.explain(QUERY, ["a", "b"], [5]), "holds 6, outside 1..2"),
        (lambda: reranker.explain(QUERY, texts(9), [0, 1, 2, 3]), "lists at most prompts.max_list"),
        (lambda: dynarag_jax.Reranker(language_model, bach=3), r"'bach' \(did you mean 'batch'"),
        (lambda: dynarag_jax.Reranker(language_model, kind="lm"), "kind = 'lm' is none of"),
        (lambda: dynarag_jax.Reranker(tmp_path / "none"), "no such model directory"),
        (lambda: dynarag_jax.Reranker(tmp_path), "holds no config.json"),
        (lambda: CutOff("treshold"), r"'treshold' is none of .* \(did you mean 'threshold'"),
        (lambda: CutOff("fixed-k", k=-1), "k = -1 must be at least 0"),
    ]
    for call, message in wrong:
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_more_documents_than_a_prompt_shows_by_one_rule(language_model, one_device):
    documents = texts(20)
    first = dynarag_jax.Reranker(language_model, more_passages="show_first", devices=one_device)
    refusing = dynarag_jax.Reranker(language_model, more_passages="set_aside", devices=one_device)
    assert first.rank(QUERY, documents) == first.rank(QUERY, documents[:12])
    with pytest.raises(InputError, match="has 20 passages, and a prompt shows 12"):
        refusing.rank(QUERY, documents)


def test_standard_prompts_fit_a_model_of_few_positions(language_model, one_device, tmp_path):
    copy = tmp_path / "model"
    copy.mkdir()
    for file in language_model.iterdir():
        (copy / file.name).symlink_to(file)
    prompts = load_generator(copy, dynarag_jax.serving.loading.ServedModel(), 0, one_device).prompts
    assert prompts == dataclasses.replace(
        PromptConfig(), rerank_tokens=512 - 90, answer_prompt_tokens=512 - 50
    )


def test_scored_lists_are_a_policy_for_any_scorer(cross_encoder, one_device):
    from dynarag_jax.retrieval.relevance import load_scorer

    policy = ScoredLists(load_scorer(cross_encoder), CutOff(k=3), one_device)
    worker = policy.worker()
    questions = {f"k{i}": as_question(texts(n, n)) for i, n in enumerate((4, 9, 2))}
    for key, question in questions.items():
        worker.submit(key, question)
    worker.cancel("k1")
    found = {}
    while worker.busy:
        found |= dict(worker.step())
    assert set(found) == {"k0", "k2"}
    alone = policy.rank_lists([questions["k0"], questions["k2"]])
    assert [found[k].chosen for k in ("k0", "k2")] == [one.chosen for one in alone]


@pytest.mark.slow  # many batches
def test_lists_of_questions_that_come_and_go_are_those_of_all_at_once(reranker):
    """Windows of many questions share the slots; one that nobody waits for is left out."""
    questions = {f"k{i}": as_question(texts(n, n)) for i, n in enumerate((4, 30, 12, 1, 25, 60, 7))}
    questions["none"] = as_question([])
    expected = reranker.policy.rank_lists(list(questions.values()))
    worker = reranker.policy.worker()
    found: dict = {}
    for key, question in questions.items():
        worker.submit(key, question)
        if key == "k4":
            found |= dict(worker.step())
            worker.cancel("k1")
    while worker.busy:
        found |= dict(worker.step())
    assert set(found) == set(questions) - {"k1"}
    assert isinstance(found["none"], InputError) and "has no passages" in str(found["none"])
    for (key, _), one in zip(questions.items(), expected, strict=True):
        if key not in ("k1", "none"):
            assert (found[key].chosen, found[key].calls, found[key].shown) == (
                one.chosen, one.calls, one.shown,
            )  # fmt: skip
            assert found[key].tokens > 0


def test_answers_are_readable_while_they_are_written(reranker):
    from dynarag_jax.serving.answering import AnswerPart, AnswerRequest, AnswerWorker

    sampler = reranker.policy.sampler
    worker = AnswerWorker(sampler)
    questions = {
        f"k{i}": dataclasses.replace(as_question(texts(4, i)), id=f"q{i}") for i in range(5)
    }
    for key, question in questions.items():
        worker.submit(key, AnswerRequest(question, (2, 1)))
    worker.submit("bad", AnswerRequest(questions["k0"], (9,)))
    worker.submit("short", AnswerRequest(questions["k1"], (2, 1), max_tokens=2))
    worker.cancel("k4")
    parts: dict[str, list] = {}
    while worker.busy:
        for key, part in worker.step():
            parts.setdefault(key, []).append(part)
    assert set(parts) == {"k0", "k1", "k2", "k3", "bad", "short"}
    assert isinstance(parts.pop("bad")[0], InputError)
    last = parts["short"][-1]
    assert last.tokens == 2 and not last.ended and last.done
    expected = sampler.answers([(q, (2, 1)) for q in questions.values()])
    for (key, _), answer in zip(list(questions.items())[:4], expected, strict=False):
        assert all(isinstance(part, AnswerPart) for part in parts[key])
        assert parts[key][-1].text == answer and parts[key][-1].done and parts[key][-1].read == 2


@pytest.mark.slow  # a scorer of its own
def test_a_warm_scorer_compiles_nothing_more_and_scores_the_same(cross_encoder, one_device):
    import jax

    from dynarag_jax.retrieval.relevance import load_scorer

    scorer = load_scorer(cross_encoder)
    cold, warm = (ScoredLists(scorer, CutOff(k=3), one_device) for _ in range(2))
    warm.warm()
    questions = [as_question(texts(n, n)) for n in (1, 3, 40, 0, 150)]
    compiled: list[str] = []
    listen = lambda name, *_, **__: compiled.append(name)  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listen)
    found = warm.rank_lists(questions)
    assert not [name for name in compiled if "backend_compile" in name]
    jax.monitoring.unregister_event_duration_listener(listen)
    for one, other in zip(found, cold.rank_lists(questions), strict=True):
        assert isinstance(one, RankedList) and isinstance(other, RankedList)
        assert one.scores == pytest.approx(other.scores, abs=1e-5)
        assert one.tokens == other.tokens
