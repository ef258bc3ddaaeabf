"""Rewards of many answers at once: the paper's five terms, what is missing, what needs a model."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from dynarag_jax.chat_cache import Replies, reply_key
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.encoders import LoadedEncoder
from dynarag_jax.metrics.bertscore import BertScorer
from dynarag_jax.models.encoder import EncoderConfig, init_params
from dynarag_jax.records import Question
from dynarag_jax.replies import Reply
from dynarag_jax.rewards.combine import RewardWeights
from dynarag_jax.rewards.judge import Asked, Judge, JudgeConfig
from dynarag_jax.rewards.scorer import Answered, BertScoreConfig, Scorer
from tests.local_server import JsonHandler, serving

PAPER = RewardWeights(em=0.2, bertscore=0.2, rouge_l=0.2, length=0.2, judge=0.2, passages=0)
QUESTION = Question("q", "Which port?", ("port lira", "lira"))


@pytest.fixture(scope="module")
def bertscore() -> BertScorer:
    words = "[PAD] [CLS] [SEP] [UNK] port lira orta the of river sea".split()
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    cfg = EncoderConfig(vocab=len(words), width=16, layers=2, heads=2, mlp=24, positions=24)
    params = jax.tree.map(lambda p: 20 * p, init_params(cfg, jax.random.key(0)))
    loaded = LoadedEncoder("tiny", cfg, params, tokenizer, "mean", False, 24, "", "", "")
    return BertScorer(loaded, 2)


class Vague(JsonHandler):
    """Never gives a grade."""

    def do_POST(self) -> None:
        self.body()
        message = {"role": "assistant", "content": "Not bad."}
        self.reply(200, {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {}})


@pytest.fixture
def judge(tmp_path):
    """A judge that has replied to three answers before; what it is asked anew stays vague."""
    with serving(Vague) as server:
        yield from _judge(tmp_path, server.url)


def _judge(tmp_path, url: str):
    config = JudgeConfig(url, "m", retries=0, timeout=5.0)
    replies = Replies(tmp_path / "judge.jsonl")
    with Judge(config, replies=replies) as judge:
        for answer, says in {"lira": "92.5", "orta": "Not bad.", "the port": "Score: 1/10"}.items():
            key = reply_key(judge._body(Asked(QUESTION.text, QUESTION.answers, answer)))
            replies.put(key, Reply(says), 9)
        yield judge


def answered(*texts: str, k: int = 2) -> list[Answered]:
    return [Answered(QUESTION, tuple(range(1, k + 1)), text) for text in texts]


def test_the_papers_reward_by_hand(bertscore, judge):
    (found,) = Scorer(PAPER, bertscore=bertscore, judge=judge).score(answered("lira"))
    raw = float(bertscore.score(["lira"], [["port lira", "lira"]]).f1[0])
    # The score of equal texts is 1 but for rounding, and no term exceeds 1.
    expected = min(raw, 1.0)
    assert raw == pytest.approx(1.0, abs=1e-6)
    assert found.terms == {
        "em": 1.0, "rouge_l": 1.0, "length": 0.5, "bertscore": expected, "judge": 0.925,
    }  # fmt: skip
    assert found.value == pytest.approx(0.2 * (1 + 1 + 0.5 + expected + 0.925))
    assert found.missing == () and expected == pytest.approx(1, abs=1e-5)


def test_a_judgment_that_could_not_be_read_is_missing_and_nothing_stands_in(bertscore, judge):
    """The released code multiplies the judge's text by a float."""
    scorer = Scorer(PAPER, bertscore=bertscore, judge=judge)
    whole, lacks, low = scorer.score(answered("lira", "orta", "the port"))
    assert lacks.missing == ("judge",) and "judge" not in lacks.terms
    # The other weights stay what they are.
    others = sum(0.2 * value for value in lacks.terms.values())
    assert lacks.value == pytest.approx(others)
    assert whole.missing == low.missing == () and low.terms["judge"] == pytest.approx(0.1)


def test_every_term_lies_in_the_unit_interval_and_is_computed_in_one_call(bertscore, judge):
    texts = ["lira", "", " ", "the sea of the river port orta", "lira", "x y z"]
    weights = RewardWeights(em=0.5, bertscore=1, rouge_l=1, length=1, f1=1, containment=1)
    before = bertscore.embedded
    found = Scorer(weights, bertscore=bertscore).score(answered(*texts))
    assert bertscore.embedded - before == 4  # distinct texts with words, references included
    assert all(0 <= term <= 1 for reward in found for term in reward.terms.values())
    assert found[0] == found[4]
    assert set(found[1].terms.values()) == set(found[2].terms.values()) == {0.0}
    assert Scorer(weights, bertscore=bertscore).score([]) == []


def test_a_baseline_moves_scores_but_none_below_zero_and_blank_stays_zero(bertscore):
    moved = BertScorer(bertscore.encoder, 2, baseline=(0.99, 0.99, 0.99))
    weights = RewardWeights(em=0, passages=0, bertscore=1)
    terms = [r.terms["bertscore"] for r in Scorer(weights, bertscore=moved).score(
        answered("the sea of river orta", "", "lira")
    )]  # fmt: skip
    assert terms == [0, 0, pytest.approx(1, abs=1e-3)]
    raw = Scorer(weights, bertscore=bertscore).score(answered("the sea of river orta"))[0]
    assert 0 < raw.terms["bertscore"] < 0.99


def test_the_likelihood_of_the_reference_is_a_term_of_the_list():
    seen = []

    def likelihood(asked):
        seen.append([(question.id, chosen) for question, chosen in asked])
        return [0.25, None]

    scorer = Scorer(RewardWeights(em=1, passages=0, likelihood=2, price=0.1), likelihood=likelihood)
    first, second = scorer.score([*answered("lira", k=1), *answered("lira", k=3)])
    assert seen == [[("q", (1,)), ("q", (1, 2, 3))]]
    assert first.value == pytest.approx(1 + 2 * 0.25 - 0.1)
    assert second.missing == ("likelihood",) and second.value == pytest.approx(1 - 0.3)


def test_absent_models_are_named():
    for name, says in (("bertscore", "bertscore.encoder"), ("judge", "judge.url")):
        with pytest.raises(InputError, match=f"weighs '{name}'.*{says}"):
            Scorer(RewardWeights(**{name: 0.2}))
    with pytest.raises(InputError, match="no generator is here"):
        Scorer(RewardWeights(likelihood=1)).score(answered("x"))
    with pytest.raises(InputError, match="'encoder' is empty"):
        BertScoreConfig().load()
    with pytest.raises(InputError, match="must be three numbers"):
        BertScoreConfig(baseline=(0.1, 0.2))
    assert np.isfinite(PAPER.highest) and PAPER.describe().count("0.2 ×") == 5
